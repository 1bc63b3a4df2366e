"""Plot loss and accuracy of runs against their epochs.

    python plot_train_val.py searchs/NAME [searchs/OTHER ...] [--out FILE]

Reads metrics.jsonl, never the text log, so it works while a run goes on and after it was resumed.
Works for augments/NAME just as well. Several runs are laid over each other.
"""

from console import interrupts

if __name__ == "__main__":
    interrupts.end_in_one_line()  # from here on, also while torch is imported

import os

from matplotlib.figure import Figure

from console import errors
from console.parser import Parser, out_file
from console.terminal import command
from records import palette
from records.figure import epoch_axis, save
from records.files import ALPHAS, CURVES
from records.reader import read_metrics, read_summary

FEW = 20  # epochs; up to so many, each has a marker
SPAN = 0.02  # of an axis of loss or accuracy, at least


def val_name(run_path):
    """What the second curve of a run was measured on."""
    usual = "alpha half" if os.path.exists(os.path.join(run_path, ALPHAS)) else "held out"
    return read_summary(run_path).get("val_name", usual)


def best_epoch(metrics):
    """(epoch, accuracy) of the best validation accuracy, the last of equals; None without any.
    Epochs of a warm-up count where there are no others."""
    found = metrics["val"]
    searched = {epoch: record for epoch, record in found.items() if not record.get("warmup")}
    scores = {epoch: record["top1"] for epoch, record in (searched or found).items()}
    epoch = max(scores, key=lambda epoch: (scores[epoch], epoch), default=None)
    return None if epoch is None else (epoch, scores[epoch])


def figure(runs, title=None):
    """matplotlib Figure from {label: `read_metrics` of a run}: loss, accuracy, learning rate.

    One run: training and validation in two colors. Several: one color each, training dashed. The
    best epoch of each run is ringed.
    """
    single = len(runs) == 1
    fig = Figure(figsize=(10, 5), layout="constrained")
    if title:
        fig.suptitle(title, parse_math=False)
    grid = fig.subplot_mosaic(
        [["loss", "accuracy"], ["rate", "accuracy"]], sharex=True, height_ratios=(5, 1)
    )
    loss, accuracy, rate = (grid[name] for name in ("loss", "accuracy", "rate"))
    for number, (label, metrics) in enumerate(runs.items()):
        if single:
            colors, names = (palette.TRAIN, palette.VAL), ("training", val_name(label))
        else:
            colors = (palette.RUNS[number % len(palette.RUNS)],) * 2
            names = ("_", label)  # "_" is not listed in the legend
        for phase, color, name in zip(("train", "val"), colors, names, strict=True):
            style = {"color": color, "label": name}
            if phase == "train" and not single:
                style["linestyle"] = "--"
            draw_phase(loss, accuracy, metrics[phase], style)
        mark_best(accuracy, metrics, palette.INK if single else colors[1])
        lrs = {epoch: r["lr"] for epoch, r in metrics["train"].items() if "lr" in r}
        color = palette.FAINT if single else colors[1]
        marker = "." if len(lrs) <= FEW else None
        rate.plot(list(lrs), list(lrs.values()), linewidth=1, color=color, marker=marker)
    if not single:  # what is dashed, said once
        loss.plot([], [], "--", color=palette.INK, label="training (dashed)")
    finish(loss, accuracy, rate)
    return fig


def draw_phase(loss, accuracy, records, style):
    """The two curves of one phase of a run, {epoch: record}."""
    epochs = list(records)
    style = {**style, "marker": "o" if len(epochs) <= FEW else None, "markersize": 4}
    loss.plot(epochs, [record["loss"] for record in records.values()], **style)
    accuracy.plot(epochs, [100 * record["top1"] for record in records.values()], **style)


def mark_best(axes, metrics, color):
    """A ring around the best epoch."""
    best = best_epoch(metrics)
    if best is not None:
        epoch, top1 = best
        axes.plot(
            [epoch], [100 * top1], "o", markersize=11, markerfacecolor="none", markeredgewidth=2,
            color=color, label=f"best: {top1:.2%} (epoch {epoch})",
        )  # fmt: skip


def finish(loss, accuracy, rate):
    """Labels, grids and legends."""
    for axes, name in ((loss, "loss"), (accuracy, "accuracy [%]")):
        axes.set_ylabel(name)
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
        axes.ticklabel_format(axis="y", useOffset=False)
        low, high = axes.get_ylim()
        if high - low < SPAN:  # as of one epoch: the digits of its noise would be the ticks
            axes.set_ylim(low - SPAN / 2, high + SPAN / 2)
    for axes in (rate, accuracy):
        epoch_axis(axes)
    loss.tick_params(labelbottom=False)
    rate.set_ylim(bottom=0)
    rate.tick_params(axis="y", labelsize="x-small")
    rate.set_ylabel("learning\nrate", fontsize="small")


def plot_run(run_path, out=None):
    """Draw the curves of a run folder to `out` (default: loss_accuracy.png in it); returns it."""
    return plot_runs([run_path], out)


def plot_runs(run_paths, out=None):
    """Draw the curves of one run or several; returns the path. The default is loss_accuracy.png, in
    the folder of a single run, else here."""
    folder = run_paths[0] if len(run_paths) == 1 else ""
    runs = {os.path.normpath(path): read_metrics(path) for path in run_paths}
    title = next(iter(runs)) if len(runs) == 1 else None
    return save(figure(runs, title), os.path.join(folder, CURVES) if out is None else out)


@command
def main(argv=None):
    parser = Parser("plot_train_val.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("runs", metavar="RUN", nargs="+", help="searchs/NAME or augments/NAME")
    parser.add_argument("--out", type=out_file, metavar="FILE",
                        help="picture to write, its ending names the format "
                        "(default: loss_accuracy.png, in the folder of a single run)")  # fmt: skip
    args = parser.parse_args(argv)
    with errors.usage_errors("plot_train_val.py"):
        print(plot_runs(args.runs, args.out))


if __name__ == "__main__":
    main()
