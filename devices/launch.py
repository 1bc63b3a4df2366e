"""--gpus 0,1,2,3 or all: the same program once for each card, as torchrun would start it."""

import contextlib
import logging
import os
import signal
import sys
import tempfile

from console.errors import ROOT
from console.terminal import complain
from devices import pick, processes
from records import files, reader

# names the file, in the environment, in which the first process leaves what is to follow
HANDED_OVER = "DARTS_HANDED_OVER"
# that torch handles from then on, as long as this process lives
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
_SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]


def wanted(cfg):
    """How many processes the flags ask for, or those of the run to resume; 1 where torchrun or this
    module has started them, or where there are no such cards, which is said later."""
    gpus = cfg.gpus
    if gpus is None and cfg.resume and cfg.device not in ("cpu", "mps"):
        gpus = reader.read_config(os.path.join(cfg.ROOT, cfg.name))["flags"].get("gpus")
    if not isinstance(gpus, str) or processes.under_torchrun():
        return 1
    try:
        return max(len(pick.named_cards(gpus, pick.cards())), 1)
    except ValueError:
        return 1


def start(prog, argv, n):
    """Run the script `prog` of this repository with the command line `argv` (None: this one's) in
    `n` processes on this machine, and wait for them. Returns what the first of them hands over, or
    None. Ends the program with their exit code where they fail: the first of them has said why."""
    from torch.distributed.elastic.multiprocessing.api import SignalException  # takes a second
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    words = sys.argv[1:] if argv is None else argv
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=n,
        run_id=f"{prog}-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        with _waiting(n) as path:
            elastic_launch(config, sys.executable)(os.path.join(ROOT, prog), *words)
            return reader.read_object(path).get("words")
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        code = first.exitcode
        if code < 0:  # it could say nothing itself
            complain(f"{prog}: process {rank} of {n} was ended by {signal.Signals(-code).name}")
        raise SystemExit(code if code > 0 else 1) from None
    except SignalException as error:  # it has ended the others in the same way
        raise SystemExit(128 + error.sigval) from None


@contextlib.contextmanager
def _waiting(n):
    """What `n` processes that are started inside find in their environment; the path of the file of
    `HANDED_OVER`. What comes behind finds all as it was."""
    with tempfile.TemporaryDirectory() as folder:
        own = {HANDED_OVER: os.path.join(folder, "next.json")}
        if "OMP_NUM_THREADS" not in os.environ:
            own["OMP_NUM_THREADS"] = str(max(pick.cores() // n, 1))  # as torchrun does
        os.environ.update(own)
        logging.disable(logging.ERROR)  # torch's report of every process that failed
        handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        try:
            yield own[HANDED_OVER]
        finally:
            logging.disable(logging.NOTSET)
            for name in own:
                del os.environ[name]
            for number, handler in handlers.items():
                # one that is not Python's, or another thread than the main one
                with contextlib.suppress(TypeError, ValueError):
                    signal.signal(number, handler)


def takes_over():
    """Whether something of this program waits for this process, and does what is to follow."""
    return HANDED_OVER in os.environ


def hand_over(words):
    """Leave a command line to the program that waits for this process."""
    files.write_json(os.environ[HANDED_OVER], {"words": words})
