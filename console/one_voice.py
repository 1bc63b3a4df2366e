"""Of several processes that do one run together, one speaks.

Most errors are the same in all of them. The first says its line; the others wait for torchrun,
which ends them then, and speak only where that does not happen: their error was their own.
"""

import os
import signal
import time
from contextlib import suppress

from console.terminal import complain

# seconds that a process other than the first waits to be ended. Were it gone first, torchrun would
# end the first one, which may still be writing, or importing torch on a busy machine
PATIENCE = 5.0
OF_TORCHRUN = 20.0  # which will end it, when the first has failed


def rank():
    """The number of this process, as torchrun gives it; 0 for one process."""
    text = os.environ.get("RANK", "0") if "WORLD_SIZE" in os.environ else "0"
    return int(text) if text.isdecimal() else 0


def last_line(prog, text, asked=False):
    """The last line of a command that failed, or that was asked to end."""
    if number := rank():
        with suppress(ValueError):  # another thread than the main one
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        failed = "TORCHELASTIC_RUN_ID" in os.environ and not asked
        time.sleep(OF_TORCHRUN if failed else PATIENCE)
        if asked:  # all were
            return
        text = f"process {number}: {text}"
    complain(f"{prog}: {text}")
