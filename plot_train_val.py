"""Plot loss and accuracy of a run against its epochs.

    python plot_train_val.py searchs/NAME [--out FILE]

Reads metrics.jsonl, never the text log, so it works while the run goes on. Works for augments/NAME
just as well.
"""

import argparse
import json
import os
import sys

from matplotlib.figure import Figure

COLORS = {"train": "#4477aa", "val": "#cc6633"}


def read_metrics(run_path):
    """{"train": {"epoch": [...], "loss": [...], "top1": [...]}, "val": ...} of a run folder.

    Raises ValueError if no epoch is recorded. A line cut off by a crash is passed over; should an
    epoch stand there twice, the later line counts.
    """
    path = os.path.join(run_path, "metrics.jsonl")
    if not os.path.isfile(path):
        raise ValueError(f"{run_path} has no metrics.jsonl; is it a run folder?")
    epochs = {"train": {}, "val": {}}
    with open(path, encoding="utf-8") as stream:
        for line in stream:
            try:
                record = json.loads(line)
                epochs[record["phase"]][record["epoch"]] = (record["loss"], record["top1"])
            except (ValueError, KeyError, TypeError):
                continue
    if not any(epochs.values()):
        raise ValueError(f"{path} records no finished epoch yet")
    curves = {}
    for phase, values in epochs.items():
        order = sorted(values)
        curves[phase] = {
            "epoch": order,
            "loss": [values[epoch][0] for epoch in order],
            "top1": [values[epoch][1] for epoch in order],
        }
    return curves


def figure(curves, title):
    """matplotlib Figure with two panels, loss and top-1 accuracy, from `read_metrics`."""
    fig = Figure(figsize=(10, 4), layout="constrained")
    fig.suptitle(title)
    panels = fig.subplots(1, 2)
    for axes, key, label in zip(panels, ("loss", "top1"), ("loss", "accuracy [%]"), strict=True):
        for phase, curve in curves.items():
            values = [100 * v for v in curve[key]] if key == "top1" else curve[key]
            few = len(values) < 20  # a point each shows single epochs
            axes.plot(
                curve["epoch"], values, color=COLORS[phase], marker="o" if few else None,
                label={"train": "training", "val": "held out"}[phase],
            )  # fmt: skip
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[0].legend()
    return fig


def plot_run(run_path, out=None):
    """Draw the curves of a run folder to `out` (default: loss_accuracy.png in it); returns it."""
    out = os.path.join(run_path, "loss_accuracy.png") if out is None else out
    fig = figure(read_metrics(run_path), os.path.normpath(run_path))
    stem, extension = os.path.splitext(out)
    temporary = f"{stem}.tmp{extension}"
    fig.savefig(temporary, dpi=120)
    os.replace(temporary, out)
    return out


def main(argv=None):
    parser = argparse.ArgumentParser("plot_train_val.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", metavar="RUN", help="searchs/NAME or augments/NAME")
    parser.add_argument("--out", help="picture to write (default: loss_accuracy.png in the folder)")
    args = parser.parse_args(argv)
    try:
        print(plot_run(args.run, args.out))
    except (ValueError, OSError) as error:
        sys.exit(f"plot_train_val.py: {error}")


if __name__ == "__main__":
    main()
