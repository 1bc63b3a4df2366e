"""All runs of a folder, and what is known of each, from their files."""

import os
from typing import NamedTuple

import genotypes as gt
from records import comparison, files, reader

KINDS = {files.SEARCHES: "search", files.TRAININGS: "training", files.COMPARISONS: "comparison"}


class Row(NamedTuple):
    """One run. What is not known is "" or None."""

    path: str
    kind: str
    subject: str  # the data
    state: str  # "running", "finished", "broken off"
    epochs: str  # "3 of 12"; of a comparison "16 trainings"
    top1: float  # of the last epoch; of a search that of its cell, of a comparison its best cell
    part: str  # what it was scored on
    params: int  # of the final network
    started: str
    bytes: int  # on the disk


def find():
    """The `Row`s of all runs in the current folder, the newest first."""
    paths = [
        os.path.join(root, name)
        for root in KINDS
        if os.path.isdir(root)
        for name in os.listdir(root)
        if os.path.isfile(os.path.join(root, name, files.CONFIG))
    ]
    return sorted(map(row, paths), key=lambda found: (found.started, found.path), reverse=True)


def row(path):
    """What is known of a run folder."""
    config, summary = reader.read_config(path), reader.read_summary(path)
    kind, scores = KINDS[os.path.dirname(path)], reader.scores(path)
    last = max(scores, default=0)
    try:
        metadata = gt.metadata(path)
    except (OSError, ValueError):
        metadata = {}
    subject, epoch = metadata.get("dataset", ""), metadata.get("epoch")
    shown = epoch if kind == "search" and reader.is_count(epoch) else last
    default = "alpha half" if kind == "search" else "test"
    found = Row(
        path=path,
        kind=kind,
        subject=str(subject or config["flags"].get("dataset", "")),
        state=(reader.state(path) or {"is": ""})["is"],
        epochs=f"{last} of {config['flags'].get('epochs', '?')}",
        top1=scores.get(shown),
        part=summary.get("val_name", default),
        params=summary.get("network", {}).get("params"),
        started=config.get("start_time", ""),
        bytes=size_on_disk(path),
    )
    return found._replace(**_of_comparison(path)) if kind == "comparison" else found


def _of_comparison(path):
    """What is otherwise known of a comparison."""
    records = comparison.trainings(path)
    try:
        best = comparison.winner(comparison.read(path))
    except (ValueError, OSError):  # not begun, or damaged
        best = None
    return {
        "epochs": comparison.plural(len(records), "training"),
        "top1": best and best.last.mean,
        "part": "scored half",
    }


def size_on_disk(path):
    """Bytes of all files below a folder."""
    total = 0
    for parent, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:  # gone by now: a run is going on there
                continue
    return total
