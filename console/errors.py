"""How a command ends, and the shell words of the next one."""

import os
import re
import shlex
import shutil
import sys
from contextlib import contextmanager

from console import interrupts

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# what torch says of an exception in a loader process, of one that is gone, of memory they share
_FROM_LOADER = re.compile(r"Caught \w+ in DataLoader worker process \d+\.")
_LOADER_DIED = re.compile(r"DataLoader worker \(pid|shared memory|/torch_\d+")


def one_line(error, limit=300):
    """An exception in one line: its message, or the name of its class where it has none."""
    lines = [line.strip() for line in str(error).splitlines()]
    if lines and _FROM_LOADER.match(lines[0]):  # torch puts the whole traceback there
        lines = [lines[-1].removeprefix(f"{type(error).__name__}: ")]
    text = " ".join(lines) or type(error).__name__
    return text if len(text) <= limit else f"{text[:limit]}..."


def command(script, *words):
    """The shell command that runs a script of this repository with this Python from here."""
    path = os.path.relpath(os.path.join(ROOT, script))
    # by folder, not by file: the pythons of two virtual environments may be links to one file
    found = os.path.dirname(os.path.abspath(shutil.which("python") or ""))
    same = found == os.path.dirname(os.path.abspath(sys.executable))
    return shlex.join(["python" if same else sys.executable, path, *words])


@contextmanager
def usage_errors(prog):
    """Around what the user can correct: wrong input ends as one line with exit code 2, a file that
    cannot be read or written with 1."""
    try:
        with interrupts.caught():
            yield
    except ValueError as error:
        end(prog, one_line(error, 2000), 2, error)
    except OSError as error:
        end(prog, one_line(error, 2000), 1, error)
    except KeyboardInterrupt:
        end_interrupted(prog, "interrupted", 130)


@contextmanager
def run_errors(prog, run=None):
    """Around the work: a full disk or GPU, a diverged loss, a loader process that died, Ctrl-C or a
    signal ends as one line, exit code 1 (128 + the number of the signal). `run` is a
    tracking.run.Run, which has saved what it could by then."""
    try:
        with interrupts.caught():
            yield
    except KeyboardInterrupt as error:
        text = (str(error) or "interrupted") if run is None else run.farewell(error)
        end_interrupted(prog, text, interrupts.exit_code(error))
    except RuntimeError as error:
        if _LOADER_DIED.search(str(error)):
            end(prog, _loader_died(error, run), 1, error)
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
            raise
        text = "out of GPU memory; lower --batch_size, --init_channels or --layers"
        end(prog, f"{text}. {one_line(error)}", 1, error)
    except (FloatingPointError, OSError) as error:
        end(prog, one_line(error, 2000), 1, error)


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
    print(f"{prog}: {text}", file=sys.stderr)
    raise SystemExit(code) from cause
