"""How a command ends, and the shell words of the next one."""

import errno
import os
import re
import shlex
import shutil
import sys
from contextlib import contextmanager, suppress

from console import interrupts, one_voice
from console.terminal import byte_size, visible

WINDOWS = os.name == "nt"
ROOT = interrupts.ROOT

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
)


def is_out_of_memory(error):
    """Whether an exception says that memory has run out, of the host or of a GPU; not the shared
    memory of loader processes."""
    if _LOADER_DIED.search(str(error)):
        return False
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
        what = f"when it asked for {byte_size(int(found[1].split()[0].replace(',', '')))}"
    todo = advice() if advice else "close other programs, or lower --batch_size if there is one"
    return f"out of {'GPU ' if 'CUDA' in text else ''}memory {what}; {todo}"


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
    """Around what the user can correct: wrong input ends as one line with exit code 2, all else
    that `ending` knows, such as a file that cannot be read, with 1."""
    with _ends_in_one_line(prog, lambda error: ending(error, advice=advice)):
        try:
            with interrupts.caught():
                yield
        except ValueError as error:
            end(prog, one_line(error, 2000), 2, error)


@contextmanager
def run_errors(prog, run=None, advice=None):
    """Around the work: what `ending` knows ends as one line. `run`, a tracking.run.Run within, has
    saved what it could by then, and has that line at the end of its log."""
    with _ends_in_one_line(prog, lambda error: ending(error, run, advice)):
        with interrupts.caught():
            yield


@contextmanager
def _ends_in_one_line(prog, ending_of):
    try:
        yield
    except BaseException as error:
        found = ending_of(error)
        if found is None:
            raise
        text, code = found
        asked = isinstance(error, KeyboardInterrupt)
        if asked and not one_voice.rank():
            interrupts.below_the_c()
        end(prog, text, code, None if asked else error, asked)


def ending(error, run=None, advice=None):
    """(last line, exit code) of a command that this exception ends: Ctrl-C or a signal, memory that
    ran out, a loader process that died, a loss that is not finite, a file that cannot be read or
    written. None for a fault of ours, which keeps its traceback.

    run     the tracking.run.Run that has ended, if any
    advice  () -> what to do where memory has run out, in words; a run has its own
    """
    if isinstance(error, KeyboardInterrupt):
        text = (str(error) or "interrupted") if run is None else run.farewell(error)
        return text, interrupts.exit_code(error)
    if not isinstance(error, (RuntimeError, MemoryError, ArithmeticError, OSError)):
        return None
    stopped = "" if run is None else f"; the run has stopped{run.way_on()}"
    if isinstance(error, FloatingPointError):
        return (one_line(error) if run is None else run.not_finite(error)), 1
    if isinstance(error, RuntimeError) and _LOADER_DIED.search(str(error)):
        return f"{_loader_died(error)}{stopped}", 1
    if is_out_of_memory(error):
        text = out_of_memory(error, advice if run is None else run.advice)
        if run is not None and run.files.has_checkpoint():
            text += "; a run that goes on keeps these flags, so free some memory first"
        return f"{text}{stopped}", 1
    if isinstance(error, OSError):
        return one_line(f"{_describe(error)}{stopped}", 2000), 1
    if isinstance(error, RuntimeError) and _COMPILER.search(str(error)):
        return f"{NO_COMPILER} ({one_line(error, 120)}){stopped}", 1
    if no_deterministic_form(error):
        return f"{str(error).split()[0]} has no deterministic form; leave --deterministic out", 1
    return None


def _describe(error):
    """An OSError: the file, what is wrong with it, what to do."""
    if error.errno is None or error.filename is None:
        return one_line(error, 2000)
    path = relative = str(error.filename)
    with suppress(ValueError, OSError):  # another drive of Windows; the current folder is gone
        relative = os.path.relpath(path)
    path = path if relative.startswith("..") else relative
    text = f"{path} cannot be written or read ({error.strerror})"
    if errno.errorcode.get(error.errno) in ("ENOSPC", "EDQUOT", "EFBIG", "EIO"):
        text += "; free some room on that disk"
    return text


def _loader_died(error):
    return (
        f"a loader process died, mostly for want of memory, or of shared memory (/dev/shm, which a "
        f"container may have little of); use fewer --workers, or --workers 0 "
        f"({one_line(error, 120)})"
    )


def end(prog, text, code, cause, asked=False):
    """Print the last line of a command that failed, or was `asked` to end, and leave with exit code
    `code`."""
    one_voice.last_line(prog, text, asked)
    raise SystemExit(code) from cause
