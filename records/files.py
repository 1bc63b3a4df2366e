"""The names of the files of a run, and how they are written: in one piece.

Without torch, so that the commands that draw share them with the programs that train.
"""

import errno
import json
import os
import re
import time
import uuid
from contextlib import contextmanager, suppress

import genotypes as gt

# the folders that hold the runs of search.py, augment.py and compare.py
SEARCHES, TRAININGS, COMPARISONS = "searchs", "augments", "compares"

# the files of a run folder; tracking/run_folder.py says what is in them
CONFIG, METRICS, ALPHAS, SUMMARY = "config.json", "metrics.jsonl", "alphas.jsonl", "summary.json"
GENOTYPE, GENOTYPE_LAST, HELD_OUT = gt.FILE, "genotype-last.json", "held-out.txt"
CHECKPOINT, PREVIOUS, BEST = "checkpoint.pt", "previous.pt", "best.pt"
CHECKPOINTS = (CHECKPOINT, PREVIOUS, BEST)  # the order in which --resume tries them
PLOTS, CURVES, ALPHA_FIGURE = "plots", "loss_accuracy.png", "alphas.png"
CONFUSION, CONFUSION_FIGURE = "confusion.json", "confusion.png"
COMPARISON = "comparison.png"
REPORT, TENSORBOARD, LOCK = "report.html", "tb", ".lock"
START = ".start"  # which start of torchrun began the run, so that a restart finds it

# what the run alone writes, and no picture command
OWN = (
    CONFIG, METRICS, ALPHAS, SUMMARY, GENOTYPE, GENOTYPE_LAST, HELD_OUT, CONFUSION, *CHECKPOINTS
)  # fmt: skip

KINDS_OF_CELL = {"normal": "normal", "reduce": "reduction"}
CELLS = {cell: f"{kind} cell" for cell, kind in KINDS_OF_CELL.items()}

PATIENCE = 2.0  # seconds for which a rename that is refused is tried again
TEMPORARY = re.compile(r"(.+)\.tmp-[0-9a-f]{8}")


def drawing(cell, epoch=None):
    """Name, without its ending, of the drawing of a cell ("normal" or "reduce") in PLOTS: of a
    training's cell, or of the cell that a search had found after an epoch."""
    return cell if epoch is None else f"EP{epoch:02d}-{cell}"


# --- writing ------------------------------------------------------------------------------------


@contextmanager
def naming(path, temporary=None):
    """Have an OSError within say that it was `path` that could not be written."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, temporary):
            raise OSError(error.errno, error.strerror, path) from error
        raise


@contextmanager
def atomic_write(path, previous=None):
    """A temporary name beside `path`, which becomes `path` at the end of the block.

    A reader finds the old file or the new one, never half of it, even after a power cut. The name
    is unique, so two programs may write one file at once: the later one wins. If the block raises,
    the temporary file is removed.

    previous  where the old file is kept; None: it is not

    Raises OSError, which names `path`.
    """
    # no further dot: torch.save puts the name up to the last one into the file
    temporary = f"{path}.tmp-{uuid.uuid4().hex[:8]}"
    try:
        with naming(path, temporary):
            yield temporary
            _to_disk(temporary)
            if previous is not None and os.path.exists(path):
                replace(path, previous)
            replace(temporary, path)
            _folder_to_disk(os.path.dirname(path) or ".")
    except BaseException:
        with suppress(OSError):
            os.remove(temporary)
        raise


def _to_disk(path):
    """Wait until the file is on the disk. A rename alone may get there before the content."""
    with open(path, "rb+") as stream:
        os.fsync(stream.fileno())


def _folder_to_disk(folder):
    """The same of the names in a folder."""
    if os.name == "nt":  # which cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(source, target):
    """os.replace. A virus scanner or a sync client that has the file open for a moment has it
    refused on Windows: it is tried again for PATIENCE seconds."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return os.replace(source, target)
        except PermissionError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def write_text(path, text):
    """Write a text file in one piece, as UTF-8."""
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        stream.write(text)


def write_json(path, value):
    """Write a JSON file in one piece."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def require_regular(path):
    """Raise OSError where `path` is there and no file: who opens a FIFO waits for ever, and what is
    written into a device is lost."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "it is no regular file; remove it", path)


def append_line(path, text):
    """Put one line at the end of a file, and on the disk."""
    with naming(path), open(path, "a", encoding="utf-8", opener=_at_once) as stream:
        stream.write(text + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _at_once(path, flags):
    """Open a file; a FIFO that has come into its place meanwhile raises OSError."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)


def remove_temporary(folder, own):
    """Remove the temporary files that killed programs left in a folder and below it: those of the
    files `own`, which nobody else writes now, and those that are more than an hour old."""
    for parent, _, names in os.walk(folder):
        for name in names:
            match, path = TEMPORARY.fullmatch(name), os.path.join(parent, name)
            with suppress(OSError):
                if match and (match[1] in own or time.time() - os.path.getmtime(path) > 3600):
                    os.remove(path)
