"""Read what a run has recorded. Everything that draws reads a run through this file.

A run may be going on, broken off or resumed: a line cut off in the middle is passed over, and where
an epoch stands twice, the later line counts.
"""

import json
import os

METRICS, ALPHAS, SUMMARY, CONFIG = "metrics.jsonl", "alphas.jsonl", "summary.json", "config.json"


def read_lines(path):
    """The JSON objects of a .jsonl file; none if there is no such file."""
    found = []
    if os.path.isfile(path):
        with open(path, encoding="utf-8", errors="replace") as stream:
            for line in stream:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if isinstance(record, dict):
                    found.append(record)
    return found


def read_object(path):
    """The JSON object in a file; {} if there is none that can be read."""
    try:
        with open(path, encoding="utf-8") as stream:
            value = json.load(stream)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def read_metrics(run_path):
    """{"train": {epoch: record}, "val": {epoch: record}} of a run folder, epochs in order.

    Raises ValueError if no epoch is recorded.
    """
    path = os.path.join(run_path, METRICS)
    if not os.path.isdir(run_path):
        raise ValueError(f"there is no run folder {run_path}")
    if not os.path.isfile(path):
        raise ValueError(f"{run_path} has no {METRICS}; is it a run folder?")
    phases = {"train": {}, "val": {}}
    for record in read_lines(path):
        values = [record.get(key) for key in ("epoch", "loss", "top1")]
        if record.get("phase") in phases and all(isinstance(v, (int, float)) for v in values):
            phases[record["phase"]][record["epoch"]] = record
    if not any(phases.values()):
        raise ValueError(f"{path} records no finished epoch yet")
    return {phase: dict(sorted(records.items())) for phase, records in phases.items()}


def read_alphas(run_path):
    """The records of alphas.jsonl, one per epoch, in order (search.py says what is in them).

    Raises ValueError if there are none.
    """
    path = os.path.join(run_path, ALPHAS)
    wanted = {"epoch", "primitives", "normal", "reduce", "genotype", "entropy"}
    by_epoch = {r["epoch"]: r for r in read_lines(path) if wanted <= set(r)}
    if not by_epoch:
        raise ValueError(f"{path} holds no epoch; alpha is recorded by a search, epoch by epoch")
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def scores(run_path):
    """{epoch: accuracy on the held-out images} of a run folder; {} where nothing is recorded."""
    try:
        return {epoch: r["top1"] for epoch, r in read_metrics(run_path)["val"].items()}
    except ValueError:
        return {}
