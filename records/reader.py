"""Read what a run has recorded. Everything that draws reads a run through this file.

A run may be going on, broken off or resumed, and its files may be damaged: lines and values that
are not what they should be are passed over, and where an epoch stands twice, the later line counts.
"""

import json
import os
from collections import Counter

import filelock

import genotypes as gt
from records import files
from records.files import ALPHAS, CELLS, CONFIG, CONFUSION, LOCK, METRICS, SUMMARY

# --- what a value should be ---------------------------------------------------------------------


def is_number(value):
    """A number that can be drawn and printed: no bool, NaN, infinity or absurdity."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30


def is_count(value):
    return is_number(value) and isinstance(value, int) and 0 < value < 10**9


def is_weight(value):
    return is_number(value) and 0 <= value <= 1


def is_bool(value):
    return isinstance(value, bool)


def is_text(value):
    return isinstance(value, str)


def is_object(value):
    return isinstance(value, dict)


def fits(value, wanted):
    """Whether a JSON value is what is wanted: a test, [what each item is], or {key: what it is}."""
    if isinstance(wanted, dict):
        return isinstance(value, dict) and all(
            key in value and fits(value[key], inner) for key, inner in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(value, list) and all(fits(item, wanted[0]) for item in value)
    return wanted(value)


def keep_fitting(record, wanted):
    """`record` without the values of `wanted`, {key: what it is}, that are something else."""
    return {k: v for k, v in record.items() if k not in wanted or fits(v, wanted[k])}


# --- files --------------------------------------------------------------------------------------


def read_lines(path):
    """The JSON objects of a .jsonl file; none if there is no such file."""
    found = []
    if os.path.isfile(path):
        with open(path, encoding="utf-8", errors="replace") as stream:
            for line in stream:
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(record, dict):
                    found.append(record)
    return found


def read_object(path):
    """The JSON object in a file; {} if there is none that can be read."""
    if not os.path.isfile(path):  # a FIFO or a device may have no end
        return {}
    try:
        with open(path, encoding="utf-8") as stream:
            value = json.load(stream)
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def is_held(run_path):
    """Whether a run is going on in the folder: a process holds its lock."""
    path = os.path.join(run_path, LOCK)
    if not os.path.exists(path):
        return False
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except (filelock.Timeout, OSError):
        return True
    lock.release()
    return False


def state(run_path):
    """How a run stands: {"is", "text", "command"}, as tracking.run.Run.record_state has written it;
    one that has ended without a word, as by SIGKILL, is "broken off". None where nothing is known.
    """
    found = read_summary(run_path).get("state")
    if found is None:
        return {"is": "running", "text": "", "command": ""} if is_held(run_path) else None
    if found["is"] == "running" and not is_held(run_path):
        return {**found, "is": "broken off", "text": "its process is gone"}
    return found


# --- the records of a run -----------------------------------------------------------------------

A_COMPARISON = "is a comparison, without epochs; plot_compare.py draws it"


def require_folder(run_path, *roots):
    """Raise ValueError where there is no such folder; a run of that name below `roots`, such as
    "searchs", is named."""
    if not os.path.isdir(run_path):
        hint = gt.run_of_that_name(run_path, *roots)
        raise ValueError(f"there is no run folder {run_path}{hint}")


def read_config(run_path):
    """What config.json knows: {"flags": {...}, "versions": {...}} and, where they are recorded,
    "device" and "start_time"."""
    record = read_object(os.path.join(run_path, CONFIG))
    wanted = {"flags": is_object, "versions": is_object, "device": is_text, "start_time": is_text}
    record = {"flags": {}, "versions": {}, **keep_fitting(record, wanted)}
    return {**record, "flags": keep_fitting(record["flags"], {"epochs": is_count})}


def read_summary(run_path):
    """What summary.json knows of "picture_seconds", "network", "next", "val_name", "gradient",
    "strategies", "how_sure", "stopped", "selection", "removals" (of --select perturbation),
    "verdict", "more", "warnings", "state", "training" (the time of one), "finished",
    "rungs", "guessing" (of a comparison)."""
    network = {
        "params": is_number, "madds": is_number, "size": [is_count], "layers": is_count,
        "channels": is_count,
    }  # fmt: skip
    texts = dict.fromkeys(("next", "val_name", "gradient", "stopped", "selection"), is_text)
    return keep_fitting(
        read_object(os.path.join(run_path, SUMMARY)),
        {
            "picture_seconds": is_number,
            "network": network,
            "strategies": [is_text],
            "how_sure": {
                "edges": is_count,
                "decided": is_number,
                "text": is_text,
                "advice": is_text,
            },
            "verdict": {
                "accuracy": is_weight,
                "chance": is_weight,
                "better": is_bool,
                "text": is_text,
            },
            "more": [{"what": is_text, "command": is_text}],
            "warnings": [is_text],
            "removals": lambda value: isinstance(value, list),
            "guessing": is_weight,
            "finished": is_bool,
            "rungs": lambda value: value == 0 or is_count(value),
            "training": {"seconds": is_number, "text": is_text},
            "state": {"is": is_text, "text": is_text, "command": is_text},
            **texts,
        },
    )


def is_selected(run_path):
    """Whether the cell of a search was chosen by other means than alpha (--select)."""
    return "select" in gt.metadata(run_path)


def is_removal(value):
    """Whether a value of "removals" is whole: a row of strategies.perturbation."""
    wanted = dict.fromkeys(("cell", "edge", "kept", "next"), is_text)
    wanted |= {"turn": is_count, "stays": is_bool}
    for name in ("", "next_"):
        wanted |= {f"{name}top1": is_weight, f"{name}loss": is_number}
    return fits(value, wanted)


def is_comparison(run_path):
    """Whether a folder is that of a comparison, be it damaged."""
    return "candidates" in read_object(os.path.join(run_path, SUMMARY)) or any(
        {"rung", "candidate"} <= record.keys()
        for record in read_lines(os.path.join(run_path, METRICS))
    )


def read_confusion(run_path):
    """What confusion.json holds: {"part", "epoch", "classes", "matrix", "wrong"}; None without a
    whole one. matrix[y][p] are the images of class y that were taken for class p."""
    found = read_object(os.path.join(run_path, CONFUSION))
    wrong = {
        "image": is_text, "class": is_text, "taken_for": is_text, "probability": is_weight,
        "picture": is_text,
    }  # fmt: skip
    counts = [[lambda n: n == 0 or is_count(n)]]
    wanted = {"part": is_text, "epoch": is_count, "classes": [is_text], "matrix": counts}
    if not fits(found, {**wanted, "wrong": [wrong]}) or not found["classes"]:
        return None
    n = len(found["classes"])
    square = [len(row) for row in found["matrix"]] == [n] * n
    return found if square and any(map(sum, found["matrix"])) else None


def read_metrics(run_path):
    """{"train": {epoch: record}, "val": {epoch: record}} of a run folder, epochs in order.

    Raises ValueError if no epoch is recorded.
    """
    path = os.path.join(run_path, METRICS)
    require_folder(run_path, files.SEARCHES, files.TRAININGS)
    if not os.path.isfile(path):
        raise ValueError(f"{run_path} has no {METRICS}; is it a run folder?")
    phases = {"train": {}, "val": {}}
    wanted = {"phase": is_text, "epoch": is_count, "loss": is_number, "top1": is_number}
    optional = {"seconds": is_number, "images_per_second": is_number, "lr": is_number}
    for record in read_lines(path):
        if fits(record, wanted) and record["phase"] in phases:
            phases[record["phase"]][record["epoch"]] = keep_fitting(record, optional)
    if not any(phases.values()):
        if is_comparison(run_path):
            raise ValueError(f"{run_path} {A_COMPARISON}")
        raise ValueError(f"{path} records no finished epoch yet")
    return {phase: dict(sorted(records.items())) for phase, records in phases.items()}


def read_alphas(run_path):
    """The records of alphas.jsonl, one per epoch, in order (search_log.py says what is in them).

    All have the same ops and the same number of nodes. Raises ValueError if there are none.
    """
    require_folder(run_path, files.SEARCHES)
    path = os.path.join(run_path, ALPHAS)
    records = [record for record in read_lines(path) if _is_alpha_record(record)]
    if not records and is_comparison(run_path):
        raise ValueError(f"{run_path} {A_COMPARISON}")
    if not records:
        raise ValueError(f"{path} holds no epoch; alpha is recorded by a search, epoch by epoch")
    spaces = [(tuple(record["primitives"]), len(record["normal"])) for record in records]
    ((usual, _),) = Counter(spaces).most_common(1)  # a damaged name of an op gives another space
    by_epoch = {r["epoch"]: r for r, space in zip(records, spaces, strict=True) if space == usual}
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def _is_alpha_record(record):
    """Whether a line of alphas.jsonl is whole: types, sizes, and the cells of its genotype."""
    tables = {cell: [[[is_weight]]] for cell in CELLS}
    wanted = {"epoch": is_count, "primitives": [is_text], "genotype": is_text, **tables}
    if not fits(record, {**wanted, "entropy": dict.fromkeys(CELLS, is_number)}):
        return False
    of_edges = {"edge_weights": {cell: [[is_weight]] for cell in CELLS}}  # PC-DARTS
    if "edge_weights" in record and not fits(record, of_edges):
        return False
    names, n_nodes = record["primitives"], len(record["normal"])
    if not n_nodes or not set(names) - {"none"} or len(set(names)) < len(names):
        return False
    sizes = [[len(names)] * n_inputs for n_inputs in range(2, n_nodes + 2)]
    if any([[len(row) for row in rows] for rows in record[cell]] != sizes for cell in CELLS):
        return False
    for cell, tables in record.get("edge_weights", {}).items():
        if [len(table) for table in tables] != list(range(2, n_nodes + 2)) or cell not in CELLS:
            return False
    try:
        genotype = gt.from_str(record["genotype"])
    except ValueError:
        return False
    return all(len(getattr(genotype, cell)) == n_nodes for cell in CELLS)


def scores(run_path):
    """{epoch: accuracy on the validation images} of a run folder; {} without any."""
    try:
        return {epoch: r["top1"] for epoch, r in read_metrics(run_path)["val"].items()}
    except ValueError:
        return {}


def epoch_seconds(run_path):
    """Seconds that the recorded epochs of a run took, training and validation; 0 without any."""
    try:
        metrics = read_metrics(run_path)
    except ValueError:
        return 0.0
    return sum(r.get("seconds", 0.0) for phase in metrics.values() for r in phase.values())
