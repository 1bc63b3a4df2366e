"""One page about a run, and all its pictures once more.

    python report.py searchs/NAME        also augments/NAME

Makes every picture of the run folder anew from its records, and report.html: one file that needs
neither a network nor a script, on a laptop or a phone. search.py and augment.py write the page
after every epoch.
"""

import argparse
import base64
import functools
import os
import sys
import time

import jinja2
from PIL import Image

import genotypes as gt
import gif_maker
import plot_alphas
import plot_train_val
import visualize
from records import alphas, palette, reader
from records.files import atomic

REPORT = "report.html"
CELLS = {"normal": "Normal cell", "reduce": "Reduction cell"}
TYPES = {".png": "image/png", ".gif": "image/gif", ".svg": "image/svg+xml"}


def data_uri(path):
    """A picture file as text that a page can hold; None if there is no such file."""
    try:
        with open(path, "rb") as stream:
            content = base64.b64encode(stream.read()).decode("ascii")
    except OSError:
        return None
    return f"data:{TYPES[os.path.splitext(path)[1]]};base64,{content}"


def phone_width(path):
    """Pixels that a drawing needs to be read on a phone; wider than the phone, it is moved with the
    finger. 0 if there is no such file."""
    try:
        with Image.open(path) as image:
            return round(0.42 * image.width)
    except OSError:
        return 0


def seconds_of(run_path):
    """Seconds that the recorded epochs of a run took, training and scoring; 0 without any."""
    try:
        metrics = reader.read_metrics(run_path)
    except ValueError:
        return 0.0
    return sum(r.get("seconds", 0.0) for phase in metrics.values() for r in phase.values())


def share(picture_seconds, epoch_seconds):
    """Time for pictures as a share of the time of the epochs."""
    return picture_seconds / epoch_seconds if epoch_seconds else 0.0


def duration(seconds):
    """Seconds in words: 43 s, 12 min 5 s, 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def collect(run_path):
    """Everything the page shows, read from the files of a run folder, as a dict for the template.

    Raises ValueError if no epoch is recorded.
    """
    metrics = reader.read_metrics(run_path)
    config = reader.read_object(os.path.join(run_path, reader.CONFIG))
    flags = config.get("flags", {})
    about = reader.read_object(os.path.join(run_path, "genotype.json"))
    summary = reader.read_object(os.path.join(run_path, reader.SUMMARY))
    search = "alpha_lr" in flags
    best = plot_train_val.best_epoch(metrics)
    last = max(metrics["val"] or metrics["train"])
    epoch_seconds = seconds_of(run_path)
    try:
        genotype = gt.from_json(gt.to_json(gt.Genotype(*(about[f] for f in gt.Genotype._fields))),
                                ops=gt.AnyOp())  # fmt: skip
    except (KeyError, ValueError):
        genotype = None
    return {
        "name": os.path.basename(os.path.abspath(run_path)),
        "kind": "search" if search else "training",
        "dataset": about.get("dataset") or flags.get("dataset", "unknown data"),
        "size": about.get("size"),
        "held_name": "held-out" if search else summary.get("held_name", "test"),
        "epoch": last,
        "epochs": flags.get("epochs", last),
        "best": best and {"epoch": best[0], "top1": best[1]},
        "last": {phase: found.get(last, {}) for phase, found in metrics.items()},
        "rows": rows(metrics),
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "started": config.get("start_time"),
        "device": config.get("device"),
        "versions": config.get("versions", {}),
        "flags": {
            k: ", ".join(map(str, v)) if isinstance(v, list) else v for k, v in flags.items()
        },  # fmt: skip
        "seconds": duration(epoch_seconds),
        "pace": pace(metrics),
        "picture_seconds": duration(summary.get("picture_seconds", 0.0)),
        "picture_share": share(summary.get("picture_seconds", 0.0), epoch_seconds),
        "network": summary.get("network"),
        "next": summary.get("next"),
        "genotype": genotype and gt.to_str(genotype),
        "words": genotype and gt.describe(genotype, (summary.get("network") or {}).get("layers")),
        "cells": cells(run_path, genotype, best) if genotype else [],
        "edges": edges(run_path, about.get("epoch"), genotype),
        "curves": data_uri(os.path.join(run_path, "loss_accuracy.png")),
        "alphas": data_uri(os.path.join(run_path, "alphas.png")),
    }


def rows(metrics):
    """The epochs as rows of a table: (epoch, training record, held-out record or {})."""
    return [(e, r, metrics["val"].get(e, {})) for e, r in metrics["train"].items()]


def pace(metrics):
    """Training images per second, the mean over all epochs; None where it is not recorded."""
    speeds = [r["images_per_second"] for r in metrics["train"].values() if "images_per_second" in r]
    return sum(speeds) / len(speeds) if speeds else None


def cells(run_path, genotype, best):
    """Both cells: title, drawing and animation (data: URIs or None) with the widths they need on a
    phone, op counts with colors."""
    found = []
    for cell, title in CELLS.items():
        files = [os.path.join(run_path, f"{cell}.png")]
        if best:
            files.insert(0, os.path.join(run_path, "plots", f"EP{best[0]:02d}-{cell}.png"))
        drawing = next(filter(os.path.isfile, files), files[-1])
        gif = os.path.join(run_path, f"{cell}.gif")
        counts = gt.count_ops(getattr(genotype, cell))
        found.append({
            "title": title,
            "drawing": data_uri(drawing), "drawing_width": phone_width(drawing),
            "gif": data_uri(gif), "gif_width": phone_width(gif),
            "counts": [(op, n, palette.color(op)) for op, n in counts.items()],
        })  # fmt: skip
    return found


def edges(run_path, epoch, genotype):
    """What each edge has decided at `epoch`, for both cells; [] where no alphas are recorded."""
    try:
        record = {r["epoch"]: r for r in reader.read_alphas(run_path)}[epoch]
    except (ValueError, KeyError):
        return []
    found = []
    for cell, title in CELLS.items():
        kept = {(i, j) for i, chosen in enumerate(getattr(genotype, cell)) for _, j in chosen}
        for edge in alphas.edges(record, cell):
            found.append({
                **edge, "cell": title.split()[0].lower(),
                "kept": (edge["node"], edge["input"]) in kept,
                "from": gt.input_name(edge["input"]), "color": palette.color(edge["op"]),
            })  # fmt: skip
    return found


@functools.cache
def template():
    """The page's template, compiled once."""
    here = os.path.dirname(os.path.abspath(__file__))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(os.path.join(here, "records")), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("report.html.j2")


def write(run_path):
    """Write report.html into a run folder, in one piece; returns its path."""
    page = template().render(collect(run_path))
    path = os.path.join(run_path, REPORT)
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        stream.write(page + "\n")
    return path


def draw_epochs(run_path, only_missing=False):
    """Draw the recorded epochs of a search into its plots/ again, from alphas.jsonl."""
    scores = reader.scores(run_path)
    about = reader.read_object(os.path.join(run_path, "genotype.json"))
    plot_path = os.path.join(run_path, "plots")
    have = {cell: dict(gif_maker.frames_of(plot_path, cell)) for cell in CELLS}
    for record in reader.read_alphas(run_path):
        epoch = record["epoch"]
        if not (only_missing and all(epoch in found for found in have.values())):
            dataset = about.get("dataset", "unknown data")
            visualize.plot_epoch(record, plot_path, dataset, scores.get(epoch))


def main(argv=None):
    parser = argparse.ArgumentParser("report.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", metavar="RUN", help="searchs/NAME or augments/NAME")
    args = parser.parse_args(argv)
    try:
        reader.read_metrics(args.run)  # before anything is drawn
        plot_train_val.plot_run(args.run)
        if os.path.exists(os.path.join(args.run, reader.ALPHAS)):
            plot_alphas.plot_run(args.run)
            try:
                draw_epochs(args.run)
                gif_maker.make_gifs(args.run)
            except visualize.NoRenderer as error:  # the rest can be looked at all the same
                print(f"report.py: {error}", file=sys.stderr)
        print(write(args.run))
    except (ValueError, OSError) as error:
        sys.exit(f"report.py: {error}")


if __name__ == "__main__":
    main()
