"""Ctrl-C, and the signals that ask a program to end.

A script calls `end_in_one_line` before its imports: from then on Ctrl-C ends it in one line, also
while torch is imported, and so does a missing package. A run looks at `StopSignals` after each
step.
"""

import _thread
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Stopped(KeyboardInterrupt):
    """A run was asked to end, by a signal other than Ctrl-C's."""

    def __init__(self, number, where="at once", saved=False):
        """
        number  of the signal
        where   it stopped, in words
        saved   whether all that was done until there has been saved
        """
        super().__init__(f"stopped by {signal.Signals(number).name} {where}")
        self.number, self.saved = number, saved


def exit_code(error):
    """Of a program that ends with this KeyboardInterrupt: 128 + the number of its signal. SIGUSR1
    counts as SIGTERM, since clusters ask for the same by either."""
    number = getattr(error, "number", signal.SIGINT)
    return 128 + (signal.SIGTERM if number == getattr(signal, "SIGUSR1", None) else number)


# seconds within which torchrun sends its processes once more what it was sent itself, and they with
# it: a terminal and Slurm signal a whole group
ECHO = 5.0


def _is_echo(asked):
    """Whether a signal may be the echo of the one that came at the time `asked`."""
    return "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - asked < ECHO


class StopSignals:
    """While entered, SIGTERM, SIGUSR1 (clusters: soon your time is up) and SIGHUP (the terminal was
    closed) do not kill the program. Until `wait` is called the first one raises Stopped, and others
    are passed over while that is cleaned up. From then on the first one is remembered in `number`,
    and a second one, if it is no echo of torchrun, raises Stopped.

    What the program was started to ignore stays ignored, as SIGHUP is under nohup. Does nothing in
    another thread than the main one, where Python allows no handlers.
    """

    NAMES = ("SIGTERM", "SIGUSR1", "SIGHUP")  # Windows has the first alone

    def __init__(self):
        self.number = None  # of the signal that came
        self._asked = 0.0  # when
        self._waits = False
        self._before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for name in self.NAMES:
                number = getattr(signal, name, None)
                if number and signal.getsignal(number) not in (signal.SIG_IGN, None):
                    before = signal.signal(number, self._on_signal)
                    self._before.setdefault(number, before)
        return self

    def __exit__(self, *error):
        while self._before:
            signal.signal(*self._before.popitem())

    def wait(self):
        """From here on the program looks at `number` now and then."""
        self._waits = True

    def _on_signal(self, number, frame):
        first, self.number = self.number is None, self.number or number
        if first:
            self._asked = time.monotonic()
        if first and not self._waits:
            raise Stopped(number, "before the run began")
        if self._waits and not first and not _is_echo(self._asked):
            raise Stopped(number)


# --- Ctrl-C in a script -------------------------------------------------------------------------

_catchers = 0  # contexts around what runs now that end in one line after a KeyboardInterrupt


@contextmanager
def caught():
    """Around what a KeyboardInterrupt may be raised in: somebody catches it and cleans up."""
    global _catchers
    _catchers += 1
    try:
        yield
    finally:
        _catchers -= 1


def end_in_one_line():
    """From here on Ctrl-C ends this program in one line with exit code 130, wherever it is, and a
    second one at once. A Python that is too old and a package that is not installed end it in one
    line, too. For the first lines of a script, before its imports.

    The plotting backend of a notebook, which its commands inherit, is forgotten: this Python may
    lack it, and every picture goes into a file."""
    if sys.version_info < (3, 10):  # noqa: UP036
        version = ".".join(map(str, sys.version_info[:3]))
        program = os.path.basename(sys.argv[0])
        sys.exit(f"{program}: needs Python 3.10 or newer; this is {version}, {sys.executable}")
    os.environ.pop("MPLBACKEND", None)
    sys.excepthook = _excepthook
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else: ignored, by a shell
        signal.signal(signal.SIGINT, _on_ctrl_c)
        sys.unraisablehook = _unraisablehook


def _excepthook(kind, error, traceback):
    """What Python does with an exception that nobody has caught, but for a missing package."""
    name = (error.name or "").partition(".")[0] if kind is ModuleNotFoundError else ""
    own = any(os.path.exists(os.path.join(ROOT, name + end)) for end in ("", ".py"))
    if own:  # or no missing package at all
        sys.__excepthook__(kind, error, traceback)
        return
    needed = os.path.join(ROOT, "requirements.txt")
    needed = f'"{needed}"' if " " in needed else needed
    print(
        f"{os.path.basename(sys.argv[0])}: the package {name} is not installed for this Python, "
        f"{sys.executable}; install all with: python -m pip install -r {needed}",
        file=sys.stderr,
    )


def _on_ctrl_c(number, frame):
    # the second one, while the program is ending; of torchrun, which ends it later, the echo
    echoed = "TORCHELASTIC_RUN_ID" in os.environ
    signal.signal(signal.SIGINT, signal.SIG_IGN if echoed else signal.SIG_DFL)
    if _catchers:
        raise KeyboardInterrupt
    # nothing to clean up. Not an exception: some raised while torch is imported abort the process
    below_the_c()
    print(f"{os.path.basename(sys.argv[0])}: interrupted", file=sys.stderr, flush=True)
    os._exit(128 + number)


def _unraisablehook(caught):
    """Python drops an exception that is raised in the callback of a weak reference. Ctrl-C must not
    get lost there: once more, a moment later."""
    if caught.exc_type is Stopped:  # its signal is remembered
        return
    if caught.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(caught)
        return
    signal.signal(signal.SIGINT, _on_ctrl_c)
    with suppress(RuntimeError):  # no more threads: the program is at its end anyway
        threading.Timer(0.01, _thread.interrupt_main).start()


def below_the_c():
    """Go to a new line where the terminal has written ^C into this one."""
    if sys.stderr.isatty():
        print(file=sys.stderr)
