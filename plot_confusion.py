"""Plot the confusion matrix of a training: what was taken for what.

    python plot_confusion.py augments/NAME [--out FILE]

Reads confusion.json, which is there when a training has ended. A row is a class, a column what its
images were taken for. The color is the portion of the row, so the diagonal is the accuracy of each
class.
"""

from console import interrupts

if __name__ == "__main__":
    interrupts.end_in_one_line()  # from here on, also while torch is imported

import os

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from console import errors
from console.parser import Parser, out_file
from console.terminal import command
from records import palette, reader
from records.figure import save
from records.files import CONFUSION, CONFUSION_FIGURE, TRAININGS

NUMBERED, NAMED = 20, 60  # classes up to which cells have numbers, and rows and columns names
LONGEST = 18  # letters of a name


def figure(found, title=None):
    """matplotlib Figure from `reader.read_confusion`."""
    matrix, classes = found["matrix"], [shorten(name) for name in found["classes"]]
    n, longest = len(classes), max(map(len, classes))
    side = min(max(0.42 * n, 2.6), 11.0)
    fig = Figure(figsize=(side + 1.9 + 0.07 * longest, side + 1.1 + 0.05 * longest),
                 layout="constrained")  # fmt: skip
    if title:
        fig.suptitle(title, parse_math=False, fontsize="medium")
    axes = fig.subplots()
    portions = [[count / max(sum(row), 1) for count in row] for row in matrix]
    colors = LinearSegmentedColormap.from_list("portion", ["#ffffff", palette.TRAIN])
    shown = axes.imshow(portions, cmap=colors, vmin=0, vmax=1)
    bar = fig.colorbar(shown, ax=axes, shrink=0.8)
    bar.set_label("portion of the class", fontsize="small")
    if n <= NUMBERED:
        number_cells(axes, matrix, portions)
    if n <= NAMED:
        size = "small" if n <= NUMBERED else "xx-small"
        turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if longest > 3 else {}
        axes.set_xticks(range(n), classes, fontsize=size, parse_math=False, **turned)
        axes.set_yticks(range(n), classes, fontsize=size, parse_math=False)
        axes.tick_params(length=0)
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    return fig


def number_cells(axes, matrix, portions):
    """How many images each cell counts; nothing where there are none."""
    for y, row in enumerate(matrix):
        for p, count in enumerate(row):
            if count:
                axes.text(p, y, str(count), ha="center", va="center", fontsize="x-small",
                          color="white" if portions[y][p] > 0.55 else palette.INK)  # fmt: skip


def shorten(name):
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"


def plot_run(run_path, out=None):
    """Draw the confusion matrix of a training to `out` (default: confusion.png in its folder);
    returns it."""
    reader.require_folder(run_path, TRAININGS)
    found = reader.read_confusion(run_path)
    if found is None:
        there = os.path.join(run_path, CONFUSION)
        raise ValueError(f"{there} is not there or not whole; a training writes it at its end")
    title = f"{os.path.normpath(run_path)}: {found['part']} images after epoch {found['epoch']}"
    return save(figure(found, title), os.path.join(run_path, CONFUSION_FIGURE) if out is None
                else out, dpi=110)  # fmt: skip


@command
def main(argv=None):
    parser = Parser("plot_confusion.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", metavar="augments/NAME", help="run folder of a training")
    parser.add_argument("--out", type=out_file, metavar="FILE",
                        help="picture to write (default: confusion.png in the folder)")  # fmt: skip
    args = parser.parse_args(argv)
    with errors.usage_errors("plot_confusion.py"):
        print(plot_run(args.run, args.out))


if __name__ == "__main__":
    main()
