"""How a command ends, and the shell words of the next one."""

import errno
import os
import re
import shlex
import shutil
import sys
from contextlib import contextmanager, suppress

from console import interrupts
from console.terminal import complain, visible

WINDOWS = os.name == "nt"
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# what torch says of an exception in a loader process, of one that is gone, of memory they share
_FROM_LOADER = re.compile(r"Caught \w+ in DataLoader worker process \d+\.")
_LOADER_DIED = re.compile(r"DataLoader worker \(pid|shared memory|/torch_\d+")


def one_line(error, limit=300):
    """An exception in one line: its message, or the name of its class where it has none."""
    lines = [line.strip() for line in str(error).splitlines()]
    if lines and _FROM_LOADER.match(lines[0]):  # torch puts the whole traceback there
        lines = [lines[-1].removeprefix(f"{type(error).__name__}: ")]
    text = visible(" ".join(lines) or type(error).__name__)
    return text if len(text) <= limit else f"{text[:limit]}..."


def command(script, *words):
    """The shell command that runs a script of this repository with this Python from here.

    On Windows it is one for cmd.exe and PowerShell alike: forward slashes, double quotes.
    """
    path = os.path.join(ROOT, script)
    with suppress(ValueError, OSError):  # another drive of Windows; the current folder is gone
        path = os.path.relpath(path)
    # by folder, not by file: the pythons of two virtual environments may be links to one file
    found = os.path.dirname(os.path.abspath(shutil.which("python") or ""))
    same = found == os.path.dirname(os.path.abspath(sys.executable))
    words = ["python" if same else sys.executable, path, *words]
    return " ".join(map(_windows_word if WINDOWS else shlex.quote, words))


def _windows_word(word):
    word = word.replace("\\", "/")
    return word if re.fullmatch(r"[\w./:+=-]+", word) else f'"{word}"'


# how torch, its libraries and the system say that memory has run out, in a RuntimeError
_NO_MEMORY = re.compile(
    r"DefaultCPUAllocator|could not create a (primitive|memory)|bad_alloc|out of memory"
    r"|ALLOC_FAILED|[Cc]an(not|'t) allocate|[Uu]nable to allocate|[Nn]ot enough memory"
    r"|shared memory"
)


def is_out_of_memory(error):
    """Whether an exception says that memory has run out, of the host or of a GPU."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    return isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error)))


def out_of_memory(error, advice=None):
    """Such an exception in one line: what was asked for, and `advice()`, what to do."""
    text = str(error)
    found = re.search(r"allocate (?:more than )?([\d.,]+ ?(?:bytes|B|[KMGTPE]i?B))", text)
    what = f"when it asked for {found[1]}" if found else f"({one_line(error, 120)})"
    if what.endswith("bytes"):
        what = f"when it asked for {int(found[1].split()[0]) / 2**20:,.1f} MiB"
    todo = advice() if advice else "close other programs, or lower --batch_size if there is one"
    if "shared memory" in text:  # of loader processes
        todo = "lower --workers; with 0 there are no loader processes, which need it"
    return f"out of {'GPU ' if 'CUDA' in text else ''}memory {what}; {todo}"


@contextmanager
def memory_errors(prog, advice=None):
    """Memory that runs out ends as one line with exit code 1; `advice()` says what to do."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        end(prog, out_of_memory(error, advice), 1, error)


def no_deterministic_form(error):
    """Whether an exception says that an op has none, under torch's deterministic algorithms."""
    return isinstance(error, RuntimeError) and "deterministic implementation" in str(error)


NO_COMPILER = (
    "--compile needs a C++ compiler (g++, clang++ or cl.exe on the PATH) and found none; install "
    "one, or leave --compile out"
)
_COMPILER = re.compile(r"InvalidCxxCompiler|C\+\+ compiler|find C compiler")


@contextmanager
def usage_errors(prog, advice=None):
    """Around what the user can correct: wrong input ends as one line with exit code 2, a file that
    cannot be read or written and memory that runs out (`memory_errors`) with 1."""
    try:
        with interrupts.caught(), memory_errors(prog, advice):
            yield
    except ValueError as error:
        end(prog, one_line(error, 2000), 2, error)
    except OSError as error:
        end(prog, one_line(error, 2000), 1, error)
    except KeyboardInterrupt:
        end_interrupted(prog, "interrupted", 130)


@contextmanager
def run_errors(prog, run=None, advice=None):
    """Around the work: a full disk or memory, a diverged loss, a loader process that died, Ctrl-C
    or a signal ends as one line, exit code 1 (128 + the number of the signal). `run` is a
    tracking.run.Run, which has saved what it could by then; `advice` as in `memory_errors`."""
    try:
        with interrupts.caught(), memory_errors(prog, advice):
            yield
    except KeyboardInterrupt as error:
        text = (str(error) or "interrupted") if run is None else run.farewell(error)
        end_interrupted(prog, text, interrupts.exit_code(error))
    except RuntimeError as error:
        if _LOADER_DIED.search(str(error)):
            end(prog, _loader_died(error, run), 1, error)
        if _COMPILER.search(str(error)):
            end(prog, f"{NO_COMPILER} ({one_line(error, 120)})", 1, error)
        if not no_deterministic_form(error):
            raise
        op = str(error).split()[0]
        end(prog, f"{op} has no deterministic form; leave --deterministic out", 1, error)
    except FloatingPointError as error:
        end(prog, one_line(error) if run is None else run.not_finite(error), 1, error)
    except OSError as error:
        go_on = "" if run is None else f"; the run has stopped{run.way_on()}"
        end(prog, one_line(f"{_describe(error)}{go_on}", 2000), 1, error)


def _describe(error):
    """An OSError: the file, what is wrong with it, what to do."""
    if error.errno is None or error.filename is None:
        return one_line(error, 2000)
    path = os.path.relpath(error.filename)
    path = error.filename if path.startswith("..") else path
    text = f"{path} cannot be written or read ({error.strerror})"
    if errno.errorcode.get(error.errno) in ("ENOSPC", "EDQUOT", "EFBIG", "EIO"):
        text += "; free some room on that disk"
    return text


def _loader_died(error, run):
    text = (
        "a loader process died, mostly for want of memory, or of shared memory (/dev/shm, which a "
        "container may have little of); use fewer --workers, or --workers 0"
    )
    again = "" if run is None or not run.files.has_checkpoint() else ", and --resume"
    return f"{text}{again} ({one_line(error, 120)})"


def end_interrupted(prog, text, code):
    """As `end`, below the ^C of a terminal."""
    interrupts.below_the_c()
    end(prog, text, code, None)


def end(prog, text, code, cause):
    """Print the last line of a command that failed and leave with exit code `code`."""
    complain(f"{prog}: {text}")
    raise SystemExit(code) from cause
