"""Loader processes that leave signals to the process they work for.

Ctrl-C, a closed terminal and most clusters send a signal to all processes of a program at once. The
run has to finish its step then, for which it may need another batch.
"""

import os
import signal
import threading
from contextlib import contextmanager

from torch.utils.data import DataLoader

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
_SIGNALS = {getattr(signal, name) for name in _NAMES if hasattr(signal, name)}


class Loader(DataLoader):
    """A DataLoader whose processes are deaf to signals that are not from this process.

    others  Loaders that are not read at the same time: their processes end when this one begins, so
            that there are never more than --workers
    """

    def __init__(self, dataset, **words):
        super().__init__(dataset, worker_init_fn=leave_signals_to_parent, **words)
        self.others = ()

    def __iter__(self):
        for loader in self.others:
            loader.close()
        # a process inherits what is held back: it is deaf from its first moment on
        with held_back():
            return super().__iter__()

    def close(self):
        """End the processes now. Left to the garbage collector, which may take their queues first,
        each is waited for, for five seconds."""
        if self._iterator is not None:
            self._iterator._shutdown_workers()
            self._iterator = None


@contextmanager
def held_back():
    """Signals that arrive meanwhile act at the end."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_parent(worker_id):
    """Ignore, in a loader process, all that asks to end, but for SIGTERM from the parent: so torch
    ends processes that hang."""
    for number in _SIGNALS - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux: it says whose signal it is. SIGTERM is held back
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    elif hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _end_with_parent(parent):
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
