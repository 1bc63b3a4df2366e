"""Turn the record of a search into one animation per cell.

    python gif_maker.py searchs/NAME [--fps 3] [--out DIR]

Writes normal.gif and reduce.gif: one frame per finished epoch, in order; the last one stays longer.
Everything has its place in all frames: nodes stand on a diagonal, and an edge from one to another
has its op in the row of the first and the column of the second. Edges that an epoch has changed are
marked, and so is the epoch that the search recommends.
"""

from console import interrupts

if __name__ == "__main__":
    interrupts.end_in_one_line()  # from here on, also while torch is imported

import functools
import math
import os

import imageio.v3 as iio
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

import genotypes as gt
from console import errors
from console.parser import Parser, number, out_folder
from console.terminal import command, visible
from records import alphas, palette, reader
from records.files import CELLS, atomic_write
from records.fonts import plain

LAST_FRAME = 3000  # milliseconds that the last frame stays
FINE = 2  # frames are drawn so many times as large, and then scaled down

BAND, FOOT, MARGIN = 52, 34, 14  # pixels: above the cell, below it, around
ROW, NODE_W, NODE_H, PILL_H = 54, 72, 34, 28
LANE = 5  # between lines that run side by side
REST = "#e4e4e4"  # of the line that grows
LONGEST = 24  # letters of an op's name


@functools.cache
def _font(size):
    return ImageFont.load_default(size=size * FINE)  # comes with Pillow, whatever the system has


class Pen:
    """Draws on a white picture of (width, height) pixels."""

    def __init__(self, width, height):
        self.image = Image.new("RGB", (width * FINE, height * FINE), "white")
        self._draw = ImageDraw.Draw(self.image)

    def line(self, points, color, width=2.0, dash=0):
        """Straight lines through points that lie above or beside each other; `dash` pixels each."""
        for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
            length = abs(x1 - x0) + abs(y1 - y0)
            for start in np.arange(0, length, 2 * dash) if dash else (0,):
                a, b = start / max(length, 1), min(1, (start + (dash or length)) / max(length, 1))
                ends = [(x0 + (x1 - x0) * t, y0 + (y1 - y0) * t) for t in (a, b)]
                self._draw.line(self._fine(ends), color, round(width * FINE))

    def arrow(self, x, y, color):
        """The head of an arrow that points down to (x, y)."""
        self._draw.polygon(self._fine([(x - 4, y - 8), (x + 4, y - 8), (x, y)]), color)

    def box(self, left, top, right, bottom, fill, outline=None, width=1, radius=7):
        corners = [side * FINE for side in (left, top, right, bottom)]
        self._draw.rounded_rectangle(corners, radius * FINE, fill, outline, width * FINE)

    def text(self, x, y, text, color=palette.INK, size=15, anchor="mm"):
        self._draw.text((x * FINE, y * FINE), text, color, _font(size), anchor)

    @staticmethod
    def width(text, size=15):
        return _font(size).getlength(text) / FINE

    @staticmethod
    def _fine(points):
        return [(x * FINE, y * FINE) for x, y in points]

    def array(self, colors):
        """(height, width, 3) uint8, in the colors of a picture of `color_table`."""
        W, H = self.image.size
        image = self.image.resize((W // FINE, H // FINE), Image.Resampling.LANCZOS)
        # no dithering: it is seen on flat areas, and does not compress
        return np.asarray(image.quantize(palette=colors, dither=Image.Dither.NONE).convert("RGB"))


def color_table(ops):
    """A picture whose palette has the colors of all frames, and what lies between them and the
    ground they stand on. A palette of its own would let a frame lose those of small areas."""
    usual = (palette.INK, palette.FAINT, palette.INPUT, palette.NODE, palette.OUTPUT, palette.VAL,
             palette.BEST, REST)  # fmt: skip
    colors = np.array([ImageColor.getrgb(c) for c in (*usual, *map(palette.color, ops))])
    table = [np.array([[255] * 3, ImageColor.getrgb(palette.CHANGED)]), colors]
    for share in (0.5, 0.75, 0.25):
        table += [colors + share * (ground - colors) for ground in table[0]]
    table = np.concatenate(table).round().astype(np.uint8)[:256]
    picture = Image.new("P", (1, 1))
    picture.putpalette(table.tobytes())
    return picture


class Grid:
    """Where everything of a cell stands, the same in all frames of a search.

    names    the ops that occur
    n_nodes  computed nodes
    """

    def __init__(self, names, n_nodes, header=0):
        self.names = {name: shown(name) for name in names}
        self.n_nodes = n_nodes
        widest = max(map(Pen.width, self.names.values()))
        self.pill = max(widest + 18, NODE_W, LANE * (n_nodes + 3))
        self.column = self.pill + 26
        cell = NODE_W + n_nodes * self.column + NODE_W / 2 + 34
        self.width = math.ceil(max(cell, header)) + 2 * MARGIN
        self.left = (self.width - cell) / 2
        self.height = BAND + (n_nodes + 2) * ROW + FOOT

    def center(self, node):
        """(x, y) of a node: both inputs on the left, the others down the diagonal."""
        return self.x(node), self.y(node)

    def x(self, node):
        if node < 2:
            return self.left + NODE_W / 2
        return self.left + NODE_W + (node - 1.5) * self.column

    def y(self, node):
        return BAND + (node + 0.5) * ROW

    def lanes(self, node, j):
        """(x, y) of the lines of the edge from `j` to `node`, which lie beside those of others."""
        x = self.x(node) + (j - node / 2 + 0.5) * min(LANE * 2, self.pill / (node + 1))
        return x, self.y(j) + (node - self.n_nodes / 2 - 1.5) * min(LANE, NODE_H / self.n_nodes)


def shown(name):
    """The name of an op as it stands in a frame, in letters that Pillow's own font has."""
    name = plain(visible(name), lambda letter: letter < "\u0100")
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 3]}..."


def edges_of(gene):
    """{(node, input): op} of a gene, without `none` and twin edges."""
    return {(node, j): op for node, edges in enumerate(gene, start=2) for op, j in edges}


def draw_cell(pen, grid, gene, concat, widths, before):
    """One cell. `widths` {(node, input): points}; `before` are the edges of the frame before."""
    edges = edges_of(gene)
    x_out, top, bottom = grid.width - grid.left - NODE_W / 2, grid.y(2), grid.y(grid.n_nodes + 1)
    for node in concat:
        pen.line([grid.center(node), (x_out, grid.y(node))], palette.FAINT, 1.5, dash=5)
    for (node, j), op in edges.items():
        x, y = grid.lanes(node, j)
        width = widths.get((node, j), 1.8)
        color, end = palette.color(op), grid.y(node) - NODE_H / 2
        pen.line([(grid.x(j), y), (x, y)], color, width)
        pen.line([(x, y), (x, end - 6)], color, width)
        pen.arrow(x, end, color)
    for node, j in {**before, **edges}:
        draw_op(pen, grid, (node, j), edges.get((node, j)), before.get((node, j)))
    for node in range(grid.n_nodes + 2):
        (x, y), fill = grid.center(node), palette.INPUT if node < 2 else palette.NODE
        half_w, half_h = NODE_W / 2, NODE_H / 2
        pen.box(x - half_w, y - half_h, x + half_w, y + half_h, fill, palette.INK)
        pen.text(x, y, gt.input_name(node))
    half = NODE_H / 2
    pen.box(x_out - 4, top - half, x_out + NODE_W / 2, bottom + half, palette.OUTPUT, palette.INK)
    pen.text(x_out + NODE_W / 4 - 2, (top + bottom) / 2, "c_{k}")


def draw_op(pen, grid, edge, op, before):
    """What stands where an edge has its op: the op, marked if new, or the one that is gone."""
    node, j = edge
    x, y = grid.x(node), grid.y(j)
    half, new = grid.pill / 2, op != before and op is not None
    if op is None:
        name = grid.names[before]
        reach = Pen.width(name) / 2
        pen.box(x - reach - 4, y - 9, x + reach + 4, y + 9, "white")
        pen.text(x, y, name, palette.FAINT)
        pen.line([(x - reach, y), (x + reach, y)], palette.FAINT, 1.5)
        return
    fill = palette.CHANGED if new else "white"
    pen.box(x - half, y - PILL_H / 2, x + half, y + PILL_H / 2, fill, palette.color(op), 1 + new)
    pen.text(x, y, grid.names[op], palette.color(op))


def draw_band(pen, width, title, epoch, n_epochs, top1, recommended):
    """Above the cell: its kind, the epoch, the accuracy (0 to 1), and a line that grows, with a
    mark at the recommended epoch."""
    text = f"{title}, epoch {epoch}" + (f" of {n_epochs}" if n_epochs else "")
    pen.text(MARGIN, 18, text, size=18, anchor="lm")
    if top1 is not None:
        pen.text(width - MARGIN, 18, f"supernet {top1:.2%}", size=18, anchor="rm")
    if n_epochs:
        left, right = MARGIN, width - MARGIN
        at = [left + (right - left) * min(1.0, e / n_epochs) for e in (epoch, recommended or 0)]
        pen.box(left, 38, right, 41, REST, radius=0)
        pen.box(left, 38, at[0], 41, palette.VAL, radius=0)
        if recommended:
            pen.box(at[1] - 4, 34, at[1] + 4, 45, palette.BEST, radius=2)


def draw_foot(pen, width, y, changed, recommended, epoch):
    """Below the cell: what is marked."""
    if changed is None:
        text = "the first epoch"
    else:
        text = f"{changed} edge{'' if changed == 1 else 's'} changed"
    pen.box(MARGIN, y - 7, MARGIN + 14, y + 7, palette.CHANGED, palette.INK, radius=2)
    pen.text(MARGIN + 22, y, text, size=14, anchor="lm")
    if recommended:
        now = recommended == epoch
        text = "the recommended epoch" if now else f"recommended: epoch {recommended}"
        pen.text(width - MARGIN, y, text, palette.BEST if now else palette.FAINT, 14, "rm")
        x = width - MARGIN - Pen.width(text, 14) - 12
        pen.box(x - 4, y - 6, x + 4, y + 5, palette.BEST, radius=2)


def frames_of(records, cell, scores, n_epochs=None, recommended=None, whose=""):
    """The frames of one cell, (height, width, 3) uint8 each, of equal size.

    records      lines of alphas.jsonl, one per epoch
    scores       {epoch: accuracy}, of those that have one
    n_epochs     epochs that the search was to have
    recommended  the epoch whose cell the search recommends
    whose        "alpha's " where the search has another cell
    """
    genes = [getattr(gt.from_str(record["genotype"]), cell) for record in records]
    names = dict.fromkeys(op for gene in genes for op in edges_of(gene).values())
    name = f"{whose}{CELLS[cell]}"
    longest = f"{name}, epoch 000 of {n_epochs}"
    header = Pen.width(f"{longest}   supernet 100.00%", 18)
    grid, colors = Grid(names, len(genes[0]), header), color_table(names)
    frames, before = [], None
    for record, gene in zip(records, genes, strict=True):
        pen, epoch, edges = Pen(grid.width, grid.height), record["epoch"], edges_of(gene)
        if epoch == recommended:
            pen.box(0, 0, grid.width - 0.5, grid.height - 0.5, "white", palette.BEST, 4, radius=0)
        draw_band(pen, grid.width, name, epoch, n_epochs, scores.get(epoch), recommended)
        concat = getattr(gt.from_str(record["genotype"]), f"{cell}_concat")
        draw_cell(pen, grid, gene, concat, pen_widths(record, gene, cell), before or edges)
        changed = None
        if before is not None:
            changed = sum(edge_op not in before.items() for edge_op in edges.items())
        draw_foot(pen, grid.width, grid.height - FOOT / 2, changed, recommended, epoch)
        frames.append(pen.array(colors))
        before = edges
    return frames


def pen_widths(record, gene, cell):
    """{(node, input): width of its line}, by the mixing weight of its op."""
    strengths = alphas.strengths(record, gene, cell)
    if strengths is None:
        return {}
    widths = [[alphas.pen_width(s, len(record["primitives"])) for s in row] for row in strengths]
    return {
        (node, j): width
        for node, (edges, row) in enumerate(zip(gene, widths, strict=True), start=2)
        for (_, j), width in zip(edges, row, strict=True)
    }


def make_gifs(run_path, out=None, fps=3):
    """Write both animations of a search to the folder `out` (default: its own); returns the paths.

    Only finished epochs get a frame, if the run has recorded which are. Raises ValueError where no
    epoch is recorded.
    """
    out = run_path if out is None else out
    records, scores = reader.read_alphas(run_path), reader.scores(run_path)
    records = [record for record in records if record["epoch"] in scores] or records
    n_epochs = reader.read_config(run_path)["flags"].get("epochs")
    known = reader.keep_fitting(gt.metadata(run_path), {"epoch": reader.is_count})
    recommended, whose = known.get("epoch"), ""
    if reader.is_selected(run_path):  # no frame has that cell
        recommended, whose = None, "alpha's "
    paths = {cell: os.path.join(out, f"{cell}.gif") for cell in CELLS}
    for cell, path in paths.items():
        write(frames_of(records, cell, scores, n_epochs, recommended, whose), path, fps)
    return list(paths.values())


def write(frames, path, fps):
    """Write an animation in one piece."""
    durations = [1000 / fps] * (len(frames) - 1) + [LAST_FRAME]  # milliseconds
    if len(frames) == 1:  # Pillow takes a list for an animation only
        durations = LAST_FRAME
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with atomic_write(path) as temporary:
        iio.imwrite(
            temporary, frames, extension=".gif", plugin="pillow", duration=durations, loop=0
        )


def frames_per_second(text):
    # a GIF counts hundredths of a second: from 2 to 65,535 of them a frame
    return number(text, float, "a number from 0.01 to 50", lambda x: 0.01 <= x <= 50)


@command
def main(argv=None):
    parser = Parser("gif_maker.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", metavar="searchs/NAME", help="run folder of a search")
    parser.add_argument("--fps", type=frames_per_second, default=3.0, help="epochs per second")
    parser.add_argument(
        "--out", type=out_folder, help="folder to write to (default: the run folder)"
    )
    args = parser.parse_args(argv)
    with errors.usage_errors("gif_maker.py"):
        print("\n".join(make_gifs(args.run, args.out, args.fps)))


if __name__ == "__main__":
    main()
