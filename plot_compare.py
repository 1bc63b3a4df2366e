"""Plot a comparison: who came how far, and found against random cells.

    python plot_compare.py compares/NAME [--out FILE]

Reads metrics.jsonl and summary.json. While the comparison goes on it shows the rungs that are over,
and within the first what has been trained.
"""

from console import interrupts

if __name__ == "__main__":
    interrupts.end_in_one_line()  # from here on, also while torch is imported

import os

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import genotypes as gt
from console import errors
from console.parser import Parser, out_file
from console.terminal import command, visible
from records import comparison, palette
from records.comparison import FOUND, KINDS, RANDOM
from records.figure import save
from records.files import COMPARISON

LONGEST = 26  # characters of a name beside its row


def figure(rows, title=None):
    """matplotlib Figure from the rows of `comparison.read`: left a line for each candidate, the
    best on top, with what the ranking goes by in every rung it took part in; right the accuracy in
    the first rung, where all are trained alike, against multiply-adds."""
    shown = [row for row in rows if row.rungs and not row.fault]
    fig = Figure(figsize=(11, 2.3 + 0.4 * max(len(shown), 5)), layout="constrained")
    if title:
        fig.suptitle(title, parse_math=False)
    ranking, first = fig.subplots(1, 2, width_ratios=(3, 2))
    draw_ranking(ranking, shown)
    draw_first_rung(first, shown)
    fig.legend(handles=kinds_of(shown), loc="outside lower center", ncols=5, frameon=False)
    return fig


def label(row, rank):
    return f"{gt.shorten(visible(row.name), LONGEST)}  {rank}"


def size_of(rung, n_rungs):
    """Of the marker of a rung, in points: later ones are larger."""
    return 9 - 2 * (n_rungs - rung)


def draw_ranking(axes, rows):
    """A line for each candidate: its trainings as ticks, those of the last rung longer, the mean of
    each rung as a dot, the better the further to the right."""
    is_loss = rows[0].last.rank_by == comparison.LOSSES
    scale = -1 if is_loss else 100
    n_rungs = max(row.last.rung for row in rows)
    best, most = comparison.winner(rows), None
    if best is not None:
        most = comparison.margin(rows, best.last.rung)
    if most:
        low, high = (scale * (best.last.score + side) for side in (-most, most))
        axes.axvspan(low, high, color=palette.OUTPUT, alpha=0.5, linewidth=0)
    for y, row in enumerate(rows):
        color = palette.CANDIDATES[row.kind]
        means = [scale * rung.score for rung in row.rungs]
        axes.plot(means, [y] * len(means), color=color, linewidth=1.2, alpha=0.6, zorder=2)
        for rung, mean in zip(row.rungs, means, strict=True):
            trained = [scale * score for score in rung.scores]
            is_last = rung.rung == n_rungs  # ticks of both rungs may be mixed
            axes.plot(
                trained, [y] * len(trained), "|", color=color, markersize=13 if is_last else 7,
                alpha=0.9 if is_last else 0.6,
            )  # fmt: skip
            filling = color if is_last else "white"
            axes.plot(
                [mean], [y], "o", markersize=size_of(rung.rung, n_rungs), color=color,
                markerfacecolor=filling, markeredgewidth=1.5, zorder=3,
            )  # fmt: skip
    axes.set_yticks(range(len(rows)), [label(row, i) for i, row in enumerate(rows, start=1)])
    for text, row in zip(axes.get_yticklabels(), rows, strict=True):
        text.set_parse_math(False)
        text.set_color(palette.CANDIDATES[row.kind])
        text.set_fontweight("bold" if row is best else "normal")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    left, right = axes.get_xlim()
    if is_loss:
        axes.set_xlim(right, max(left, 0))
        axes.set_xlabel("mean of training loss and loss on the scored images, less is better")
    else:
        axes.set_xlim(max(left, -1), min(right, 101))  # the band may reach beyond what there is
        axes.set_xlabel("accuracy on the scored images [%]")
    *first, (_, n) = sorted({(r.rung, r.epochs) for row in rows for r in row.rungs})
    hollow = "".join(f" (hollow: {n})" for _, n in first)
    band = "; yellow: not told from the best" if most else ""
    axes.set_title(f"Ranking after {comparison.plural(n, 'epoch')}{hollow}; ticks: trainings{band}",
                   fontsize="small", loc="left")  # fmt: skip
    axes.grid(axis="x", alpha=0.3)


def draw_first_rung(axes, rows):
    """Accuracy of the first rung against multiply-adds; the means of found and random cells. The
    best of the ranking has a ring."""
    best = comparison.winner(rows)
    rows = [row for row in rows if row.rungs[0].rung == 1]
    for kind in (FOUND, RANDOM):
        means = [100 * row.rungs[0].mean for row in rows if row.kind == kind]
        if means:
            axes.axhline(sum(means) / len(means), color=palette.CANDIDATES[kind], linewidth=1.2,
                         linestyle="--", alpha=0.8)  # fmt: skip
    for row in rows:
        rung, color = row.rungs[0], palette.CANDIDATES[row.kind]
        low, high = 100 * min(rung.top1), 100 * max(rung.top1)
        x = row.madds / 1e6
        axes.plot([x, x], [low, high], color=color, linewidth=1.2, alpha=0.6)
        axes.plot([x], [100 * rung.mean], "o", color=color, markersize=7)
        if row is best:
            axes.plot([x], [100 * rung.mean], "o", color=palette.INK, markersize=12,
                      markerfacecolor="none")  # fmt: skip
    axes.set_xlabel("multiply-adds of an image [million]")
    axes.set_ylabel("accuracy [%]")
    if rows and max(row.madds for row in rows) > 10 * min(row.madds for row in rows):
        axes.set_xscale("log")
    epochs = f", {comparison.plural(rows[0].rungs[0].epochs, 'epoch')}" if rows else ""
    axes.set_title(f"First rung{epochs}; ring: first in the end; dashed: means", fontsize="small",
                   loc="left")  # fmt: skip
    axes.grid(alpha=0.3)


def kinds_of(rows):
    """A handle of the legend for each kind that takes part."""
    there = {row.kind for row in rows}
    return [
        Line2D([], [], marker="o", linestyle="", color=palette.CANDIDATES[kind], label=text)
        for kind, text in KINDS.items()
        if kind in there
    ]


def plot_run(run_path, out=None):
    """Draw a comparison to `out` (default: comparison.png in its folder); returns it."""
    rows = comparison.read(run_path)
    title = os.path.basename(os.path.abspath(run_path))
    return save(figure(rows, title), os.path.join(run_path, COMPARISON) if out is None else out)


@command
def main(argv=None):
    parser = Parser("plot_compare.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", metavar="RUN", help="compares/NAME")
    parser.add_argument("--out", type=out_file, metavar="FILE",
                        help="picture to write, its ending names the format "
                        "(default: comparison.png in that folder)")  # fmt: skip
    args = parser.parse_args(argv)
    with errors.usage_errors("plot_compare.py"):
        print(plot_run(args.run, args.out))


if __name__ == "__main__":
    main()
