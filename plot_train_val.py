"""Plot loss and accuracy of runs against their epochs.

    python plot_train_val.py searchs/NAME [searchs/OTHER ...] [--out FILE]

Reads metrics.jsonl, never the text log, so it works while a run goes on and after it was resumed.
Works for augments/NAME just as well. Several runs are laid over each other.
"""

import argparse
import os
import sys

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from records import palette
from records.figure import save
from records.reader import SUMMARY, read_metrics, read_object

FEW = 20  # epochs; up to so many, each has a marker
HELD_OUT = {"searchs": "held out (alpha's half)", "augments": "test"}  # where nothing is noted


def held_out(run_path):
    """What the second curve of a run was measured on."""
    noted = read_object(os.path.join(run_path, SUMMARY)).get("held_name")
    return noted or HELD_OUT.get(
        os.path.basename(os.path.dirname(os.path.abspath(run_path))), "held out"
    )


def best_epoch(metrics):
    """(epoch, accuracy) of the best held-out accuracy, the first of equals; None without any."""
    scores = {epoch: record["top1"] for epoch, record in metrics["val"].items()}
    epoch = max(scores, key=scores.get, default=None)
    return None if epoch is None else (epoch, scores[epoch])


def figure(runs, title=None):
    """matplotlib Figure from {label: `read_metrics` of a run}: loss, accuracy, learning rate.

    One run: training and held-out curves in two colors. Several: one color each, training dashed.
    The best held-out epoch of each run is ringed.
    """
    single = len(runs) == 1
    fig = Figure(figsize=(10, 5), layout="constrained")
    if title:
        fig.suptitle(title)
    (loss, accuracy), (rate, rate_too) = fig.subplots(2, 2, sharex=True, height_ratios=(5, 1))
    for number, (label, metrics) in enumerate(runs.items()):
        hue = palette.RUNS[number % len(palette.RUNS)]
        for phase, color, name in (
            ("train", palette.TRAIN if single else hue, "training"),
            ("val", palette.HELD if single else hue, held_out(label) if single else label),
        ):
            epochs = list(metrics[phase])
            style = {
                "color": color, "label": name if single or phase == "val" else "_",
                "marker": "o" if len(epochs) <= FEW else None, "markersize": 4,
                "linestyle": "--" if phase == "train" and not single else "-",
            }  # fmt: skip
            series = metrics[phase].values()
            loss.plot(epochs, [record["loss"] for record in series], **style)
            accuracy.plot(epochs, [100 * record["top1"] for record in series], **style)
        best = best_epoch(metrics)
        if best is not None:
            epoch, top1 = best
            accuracy.plot(
                [epoch], [100 * top1], "o", markersize=11, markerfacecolor="none",
                markeredgewidth=2, color=palette.INK if single else hue,
                label=f"best: {top1:.2%} (epoch {epoch})",
            )  # fmt: skip
        rates = {epoch: r["lr"] for epoch, r in metrics["train"].items() if "lr" in r}
        for axes in (rate, rate_too):
            axes.plot(list(rates), list(rates.values()), linewidth=1,
                      color=palette.FAINT if single else hue)  # fmt: skip
    if not single:  # what is dashed, said once
        loss.plot([], [], "--", color=palette.INK, label="training (dashed)")
    for axes, name in ((loss, "loss"), (accuracy, "accuracy [%]")):
        axes.set_ylabel(name)
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    for axes in (rate, rate_too):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
        axes.tick_params(axis="y", labelsize="x-small")
    rate.set_ylabel("learning\nrate", fontsize="small")
    return fig


def plot_run(run_path, out=None):
    """Draw the curves of a run folder to `out` (default: loss_accuracy.png in it); returns it."""
    return plot_runs([run_path], out)


def plot_runs(run_paths, out=None):
    """Draw the curves of one run or several; returns the path. One default is loss_accuracy.png in
    the run's folder, for several it is here."""
    folder = run_paths[0] if len(run_paths) == 1 else ""
    runs = {os.path.normpath(path): read_metrics(path) for path in run_paths}
    title = next(iter(runs)) if len(runs) == 1 else None
    return save(figure(runs, title), out or os.path.join(folder, "loss_accuracy.png"))


def main(argv=None):
    parser = argparse.ArgumentParser("plot_train_val.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("runs", metavar="RUN", nargs="+", help="searchs/NAME or augments/NAME")
    parser.add_argument("--out", help="picture to write, its ending names the format "
                        "(default: loss_accuracy.png, in the folder of a single run)")  # fmt: skip
    args = parser.parse_args(argv)
    known = Figure().canvas.get_supported_filetypes()
    if args.out and os.path.splitext(args.out)[1].lstrip(".").lower() not in known:
        parser.exit(2, f"plot_train_val.py: --out {args.out}: the ending is none of "
                       f"{', '.join(sorted(known))}\n")  # fmt: skip
    try:
        print(plot_runs(args.runs, args.out))
    except (ValueError, OSError) as error:
        sys.exit(f"plot_train_val.py: {error}")


if __name__ == "__main__":
    main()
