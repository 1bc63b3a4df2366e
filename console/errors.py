"""How a command ends, and the shell words of the next one."""

import errno
import os
import shlex
import shutil
import sys
from contextlib import contextmanager

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def one_line(error, limit=300):
    """An exception in one line: its message, or the name of its class where it has none."""
    text = " ".join(line.strip() for line in str(error).splitlines()) or type(error).__name__
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
        yield
    except ValueError as error:
        end(prog, one_line(error, 2000), 2, error)
    except OSError as error:
        end(prog, one_line(error, 2000), 1, error)


@contextmanager
def run_errors(prog, run=None):
    """Around the work: a full disk or GPU, a diverged loss or Ctrl-C ends as one line, exit code 1
    (130 for Ctrl-C). `run` is a tracking.run.Run, whose finished epochs are on disk by then."""
    try:
        yield
    except KeyboardInterrupt:
        print(file=sys.stderr)  # below the ^C of the terminal
        end(prog, f"interrupted{'' if run is None else run.how_to_go_on()}", 130, None)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
            raise
        text = "out of GPU memory; lower --batch_size, --init_channels or --layers"
        end(prog, f"{text}. {one_line(error)}", 1, error)
    except FloatingPointError as error:
        end(prog, one_line(error, 2000), 1, error)
    except OSError as error:
        go_on = "" if run is None else f"; the run has stopped{run.how_to_go_on()}"
        end(prog, one_line(f"{_describe(error)}{go_on}", 2000), 1, error)


def _describe(error):
    """An OSError: the file, what is wrong with it, what to do."""
    if error.errno is None or error.filename is None:
        return str(error)
    path = os.path.relpath(error.filename)
    path = error.filename if path.startswith("..") else path
    text = f"{path} cannot be written or read ({error.strerror})"
    if errno.errorcode.get(error.errno) in ("ENOSPC", "EDQUOT", "EFBIG", "EIO"):
        text += "; free some room on that disk"
    return text


def end(prog, text, code, cause):
    """Print the last line of a command that failed and leave with exit code `code`."""
    print(f"{prog}: {text}", file=sys.stderr)
    raise SystemExit(code) from cause
