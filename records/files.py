"""The names of the files of a run, and how they are written: in one piece.

Without torch, so that the commands that draw share them with the programs that train.
"""

import json
import os
import uuid
from contextlib import contextmanager

import genotypes as gt

# the folders that hold the runs of search.py and of augment.py
SEARCHES, TRAININGS = "searchs", "augments"

# the files of a run folder; tracking/run_folder.py says what is in them
CONFIG, METRICS, ALPHAS, SUMMARY = "config.json", "metrics.jsonl", "alphas.jsonl", "summary.json"
GENOTYPE, GENOTYPE_LAST, HELD_OUT = gt.FILE, "genotype-last.json", "held-out.txt"
CHECKPOINT, BEST = "checkpoint.pt", "best.pt"
PLOTS, CURVES, ALPHA_FIGURE = "plots", "loss_accuracy.png", "alphas.png"
REPORT, TENSORBOARD = "report.html", "tb"

CELLS = {"normal": "normal cell", "reduce": "reduction cell"}


def drawing(cell, epoch=None):
    """Name, without its ending, of the drawing of a cell ("normal" or "reduce") in PLOTS: of a
    training's cell, or of the cell that a search had found after an epoch."""
    return cell if epoch is None else f"EP{epoch:02d}-{cell}"


@contextmanager
def atomic_write(path):
    """A temporary name beside `path`, which becomes `path` at the end of the block.

    A reader finds the old file or the new one, never half of it. The name is unique, so two
    programs may write one file at once: the later one wins. If the block raises, the temporary
    file is removed.
    """
    # no further dot: torch.save puts the name up to the last one into the file
    temporary = f"{path}.tmp-{uuid.uuid4().hex[:8]}"
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise


def write_text(path, text):
    """Write a text file in one piece, as UTF-8."""
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        stream.write(text)


def write_json(path, value):
    """Write a JSON file in one piece."""
    write_text(path, json.dumps(value, indent=1) + "\n")
