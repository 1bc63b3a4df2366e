"""How a command ends, and the shell words of the next one."""

import os
import shlex
import shutil
import sys
from contextlib import contextmanager

import torch


def command(script, *words):
    """The shell command that runs a script of this repository with this Python from here."""
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.path.relpath(os.path.join(here, script))
    # by folder, not by file: the pythons of two virtual environments may be links to one file
    found = os.path.dirname(os.path.abspath(shutil.which("python") or ""))
    same = found == os.path.dirname(os.path.abspath(sys.executable))
    return shlex.join(["python" if same else sys.executable, path, *words])


@contextmanager
def usage_errors(prog):
    """Around the set-up: what the user can correct ends as one line. Wrong input: exit code 2."""
    try:
        yield
    except ValueError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except OSError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        raise SystemExit(1) from error


@contextmanager
def run_errors(prog, run=None):
    """Around the run: a full disk or GPU, a diverged loss or Ctrl-C ends as one line, exit code 1
    (130 for Ctrl-C). Finished epochs are on disk by then."""
    try:
        yield
    except KeyboardInterrupt:
        if run is not None and run.has_checkpoint():
            again = command(prog, "--name", run.name, "--resume")
            go_on = f"; go on after the last finished epoch with\n{again}"
        else:
            go_on = " before an epoch was finished; start again, with --overwrite to keep the name"
        print(f"\n{prog}: interrupted{go_on}", file=sys.stderr)
        raise SystemExit(130) from None
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        print(
            f"{prog}: out of GPU memory; lower --batch_size, --init_channels or --layers. {reason}",
            file=sys.stderr,
        )
        raise SystemExit(1) from error
    except (FloatingPointError, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        raise SystemExit(1) from error
