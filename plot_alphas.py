"""Plot how alpha decides: the mixing weight of every op on every edge, epoch by epoch.

    python plot_alphas.py searchs/NAME [--out FILE]

Reads alphas.jsonl. One small panel per edge, from its row to its column; the colors of the ops are
those of the drawings. Under each panel stands the strongest op and how far it is ahead of the
runner-up; with partial channels (PC-DARTS) also the weight of the edge, and the strength that ranks
it. Edges that the genotype keeps are framed. Below: the mean entropy of alpha, and where it was
recorded the dominant eigenvalue of the Hessian in alpha. Above: the main flags that steered it.
"""

from console import interrupts

if __name__ == "__main__":
    interrupts.end_in_one_line()  # from here on, also while torch is imported

import math
import os
import textwrap

from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

import genotypes as gt
from console import errors
from console.parser import Parser, out_file
from console.terminal import command
from records import alphas, palette, reader
from records.figure import epoch_axis, save
from records.files import ALPHA_FIGURE, CELLS, KINDS_OF_CELL

WIDE, HIGH = 0.92, 0.66  # of a panel within its square of one by one
NARROWEST = 7.4  # inches of the figure, for cells of few nodes
LINE = 100  # characters that fit its width
WHOLE = 0.5  # from this range of weights on, panels show 0 to 1


def curves(history, cell):
    """{(node, input): {op: [weight per epoch]}} of a cell, from `reader.read_alphas`."""
    found = {}
    for record in history:
        for node, rows in enumerate(record[cell]):
            for j, row in enumerate(rows):
                series = found.setdefault((node, j), {op: [] for op in record["primitives"]})
                for op, weight in zip(record["primitives"], row, strict=True):
                    series[op].append(weight)
    return found


def recommended(run_path, history):
    """The record of the epoch whose cell the search recommends (genotype.json); else the last."""
    epoch = gt.metadata(run_path).get("epoch")
    return next((record for record in history if record["epoch"] == epoch), history[-1])


def figure(history, title=None, chosen=None, by_alpha=True):
    """matplotlib Figure from `reader.read_alphas`: all edges of both cells, and the entropy. What
    is kept, and how clearly, is said of the record `chosen` (default: the last); the search has
    another cell unless it was found `by_alpha`."""
    chosen = chosen or history[-1]
    n_nodes = len(chosen["normal"])
    n_rows = n_nodes + 1  # inputs that an edge can come from
    values = {r["epoch"]: r["eigenvalue"] for r in history if reader.is_number(r.get("eigenvalue"))}
    below = [1.7, 1.5] if values else [1.7]  # heights of what stands below the panels
    height = (1.6 if "edge_weights" in chosen else 1.1) * n_rows  # with two lines more, or without
    size = (max(3.1 * n_nodes, NARROWEST), height + 1.9 + sum(below))
    fig = Figure(figsize=size, layout="constrained")
    grid = fig.add_gridspec(1 + len(below), 2, height_ratios=(height, *below))
    tables = [rows for record in history for cell in CELLS for rows in record[cell]]
    weights = [weight for rows in tables for row in rows for weight in row]
    limits = limits_of(weights)
    said = [title] if title else []
    said += explain(limits, chosen, by_alpha)
    fig.suptitle("\n".join(said), parse_math=False, fontsize="medium")
    for i, (cell, name) in enumerate(CELLS.items()):
        axes = fig.add_subplot(grid[0, i])
        panels(axes, history, cell, chosen, limits)
        axes.set_title(name, fontsize="medium")
    entropy(fig.add_subplot(grid[1, :]), history, chosen["epoch"])
    if values:
        eigenvalue(fig.add_subplot(grid[2, :]), values, chosen["epoch"])
    handles = [Line2D([], [], color=palette.color(op), linewidth=3, label=op)
               for op in chosen["primitives"]]  # fmt: skip
    columns = min(8 if n_nodes > 2 else 4, len(handles))
    fig.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize="small",
               frameon=False)  # fmt: skip
    return fig


def limits_of(weights):
    """What the panels show: 0 to 1, or where all weights lie within less than half of that, the
    part in which they do."""
    low, high = min(weights), max(weights)
    return (low, high) if high - low < WHOLE else (0.0, 1.0)


# flags that steer alpha or read it; each with the value that leaves Algorithm 1 as it is
STEERING = {
    "order": 2, "alpha_lr": None, "warmup_epochs": 0, "beta_decay": 0, "partial_channels": 1,
    "auxiliary_skip": False, "max_skips": None, "stop_unchanged": None, "stop_skips": None,
    "stop_eigenvalue": False, "select": "alpha",
}  # fmt: skip


def steered_by(flags):
    """The flags of a search that stand in its figure, as they are written on the command line."""
    said = {k: flags[k] for k, off in STEERING.items() if k in flags and flags[k] != off}
    words = " ".join(f"--{k}" if v is True else f"--{k} {v}" for k, v in said.items())
    return textwrap.fill(words, LINE, break_on_hyphens=False)


def explain(limits, chosen, by_alpha=True):
    """What the panels show, in three sentences, a long one of which has two lines."""
    low, high = limits
    scale = "from 0 to 1"
    if limits != (0.0, 1.0):
        times = 1 / max(high - low, 1e-9)
        scale = (
            f"magnified {times:,.0f} times: from {number(low, limits)} to {number(high, limits)}"
        )
    undecided = 1 / len(chosen["primitives"])
    kept = "kept" if by_alpha else "what alpha keeps (removal chose the found cell)"
    said = [
        f"a line: the mixing weight of an op, epoch by epoch, {scale}",
        f"dotted: undecided ({undecided:.3f}); "
        f"framed: {kept} at epoch {chosen['epoch']}, the upright line",
        "below: the strongest op besides none, and how far it is ahead of the next",
    ]
    return [textwrap.fill(line, LINE) for line in said]


def number(weight, limits):
    """A weight with as many digits as the scale has room for."""
    low, high = limits
    return f"{weight:.{min(max(2, 1 - math.floor(math.log10(max(high - low, 1e-9)))), 6)}f}"


def panels(axes, history, cell, chosen, limits):
    """One panel per edge of a cell, all in one Axes: thirty real ones would take seconds to draw.

    The panel of the edge from input j to node i has its lower left corner at (i, -j), and shows
    weights between the two `limits`. The dotted line is an undecided edge, the upright one the
    epoch of the record `chosen`, whose edges are named below their panels.
    """
    low, high = limits

    def level(weight, j):
        return HIGH * (0.06 + 0.88 * (weight - low) / max(high - low, 1e-9)) - j

    edges = alphas.edges(chosen, cell)
    corners = [(edge["node"], edge["input"]) for edge in edges]
    axes.add_collection(PatchCollection(
        [Rectangle((i, -j), WIDE, HIGH) for i, j in corners], facecolor="white",
        edgecolor=[palette.INK if edge["kept"] else "#d5d5d5" for edge in edges],
        linewidth=[1.8 if edge["kept"] else 0.8 for edge in edges],
    ))  # fmt: skip
    undecided = 1 / len(chosen["primitives"])
    at = WIDE * history.index(chosen) / max(len(history) - 1, 1)
    faint = {"colors": palette.FAINT, "linewidths": 0.7}
    levels = [[(i, level(undecided, j)), (i + WIDE, level(undecided, j))] for i, j in corners]
    axes.add_collection(LineCollection(levels, linestyles="dotted", **faint))
    uprights = [[(i + at, -j), (i + at, HIGH - j)] for i, j in corners]
    axes.add_collection(LineCollection(uprights, **faint))
    lines, colors = [], []
    for (i, j), ops in curves(history, cell).items():
        for op, weights in ops.items():
            if len(weights) == 1:  # one epoch is a level, not a point nobody sees
                weights = weights * 2
            step = WIDE / (len(weights) - 1)
            lines.append([(i + step * t, level(w, j)) for t, w in enumerate(weights)])
            colors.append(palette.color(op))
    axes.add_collection(LineCollection(lines, colors=colors, linewidths=1.4))
    for j in range(len(chosen[cell]) + 1):  # numbers at the first panel of each row
        left = max(j - 1, 0) - 0.03
        for weight in limits:
            axes.annotate(number(weight, limits), (left, level(weight, j)), ha="right",
                          va="center", fontsize=6, color=palette.INK)  # fmt: skip
    name_edges(axes, edges)
    name_panels(axes, len(chosen[cell]))


def name_edges(axes, edges):
    """Below each panel: the strongest op, and how far it is ahead of the runner-up."""
    for edge in edges:
        where = (edge["node"] + WIDE / 2, -edge["input"] - 0.04)
        axes.annotate(
            edge["op"], where, ha="center", va="top", fontsize=8, color=palette.color(edge["op"]),
            fontweight="bold" if edge["kept"] else "normal",
        )  # fmt: skip
        if edge["second"] is not None:
            axes.annotate(
                f"{edge['margin']:+.4f} to {edge['second']}", where, xytext=(0, -9),
                textcoords="offset points", ha="center", va="top", fontsize=6, color=palette.INK,
            )  # fmt: skip
        if edge["edge_weight"] is not None:
            axes.annotate(
                f"edge {edge['edge_weight']:.3f}\nstrength {edge['strength']:.4f}", where,
                xytext=(0, -16), textcoords="offset points", ha="center", va="top", fontsize=6,
                color=palette.INK,
            )  # fmt: skip


def name_panels(axes, n_nodes):
    """Around the panels: to which node a column leads, and from which input a row comes."""
    axes.set_xlim(-0.13 - 0.04 * n_nodes, n_nodes)  # with room for numbers
    axes.set_ylim(-n_nodes - 0.4, HIGH + 0.05)
    axes.set_xticks([i + WIDE / 2 for i in range(n_nodes)], [f"to {i}" for i in range(n_nodes)])
    names = [f"from ${gt.input_name(j)}$" for j in range(n_nodes + 1)]
    axes.set_yticks([HIGH / 2 - j for j in range(n_nodes + 1)], names)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def entropy(axes, history, chosen):
    """Mean entropy of the mixing weights of both cells against the epochs; a line at `chosen`."""
    epochs = [record["epoch"] for record in history]
    marker = "o" if len(epochs) <= 20 else None
    for (cell, name), style in zip(CELLS.items(), ("-", "--"), strict=True):
        axes.plot(epochs, [record["entropy"][cell] for record in history], style, marker=marker,
                  markersize=3, color=palette.INK, label=name)  # fmt: skip
    undecided = math.log(len(history[-1]["primitives"]))
    axes.axvline(chosen, color=palette.FAINT, linewidth=0.8)
    axes.axhline(undecided, color=palette.FAINT, linewidth=0.8, label="undecided")
    axes.ticklabel_format(axis="y", useOffset=False)
    low, high = axes.get_ylim()
    magnified = "\n(magnified)" if high - low < WHOLE * undecided else ""
    axes.set_ylabel(f"mean entropy\nof alpha [nats]{magnified}", fontsize="small")
    epoch_axis(axes)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def eigenvalue(axes, values, chosen):
    """{epoch: dominant eigenvalue of the Hessian of L_val in alpha}; a line at `chosen`."""
    axes.plot(list(values), list(values.values()), marker="o", markersize=3, color=palette.INK)
    axes.axvline(chosen, color=palette.FAINT, linewidth=0.8)
    axes.set_ylabel("dominant\neigenvalue", fontsize="small")
    epoch_axis(axes)
    axes.grid(alpha=0.3)


def table(record):
    """The edges of both cells as text, one line each: what is ahead of what, and by how much."""
    lines = [f"  {'cell':<9} {'edge':<12} {'kept':<4}  {'strongest op':<18} {'weight':>6}   "
             f"{'runner-up':<18} {'weight':>6}  {'margin':>6}"]  # fmt: skip
    if "edge_weights" in record:
        lines[0] += f"  {'edge weight':>11}  {'strength':>8}"
    for cell in CELLS:
        for e in alphas.edges(record, cell):
            edge = f"{gt.input_name(e['input'])} -> {e['node']}"
            mark = "*" if e["kept"] else ""
            line = (
                f"  {KINDS_OF_CELL[cell]:<9} {edge:<12} {mark:<4}  {e['op']:<18} {e['weight']:6.4f}"
            )
            if e["second"] is not None:
                line += f"   {e['second']:<18} {e['second_weight']:6.4f}  {e['margin']:6.4f}"
            if e["edge_weight"] is not None:
                line = (
                    f"{line:<{len(lines[0]) - 21}}  {e['edge_weight']:11.4f}  {e['strength']:8.4f}"
                )
            lines.append(line)
    return "\n".join(lines)


def plot_run(run_path, out=None):
    """Draw the alphas of a search to `out` (default: alphas.png in its folder); returns it."""
    history = reader.read_alphas(run_path)
    title = [os.path.normpath(run_path), steered_by(reader.read_config(run_path)["flags"])]
    stopped = reader.read_summary(run_path).get("stopped")
    title += [f"ended early: {stopped}"] if stopped else []
    chosen, by_alpha = recommended(run_path, history), not reader.is_selected(run_path)
    fig = figure(history, "\n".join(filter(None, title)), chosen, by_alpha)
    return save(fig, os.path.join(run_path, ALPHA_FIGURE) if out is None else out, dpi=110)


@command
def main(argv=None):
    parser = Parser("plot_alphas.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", metavar="searchs/NAME", help="run folder of a search")
    parser.add_argument("--out", type=out_file, metavar="FILE",
                        help="picture to write (default: alphas.png in the folder)")  # fmt: skip
    args = parser.parse_args(argv)
    with errors.usage_errors("plot_alphas.py"):
        print(plot_run(args.run, args.out))
        record = recommended(args.run, reader.read_alphas(args.run))
        what = "whose cell is the best by the alpha half"
        if reader.is_selected(args.run):
            what = "what alpha keeps; removal chose the found cell"
        print(f"epoch {record['epoch']}, {what}:")
        print(table(record))


if __name__ == "__main__":
    main()
