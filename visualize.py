"""Draw the cells of a genotype.

    python visualize.py GENOTYPE

GENOTYPE is a run folder (searchs/NAME), a JSON file, a published name or the text Genotype(...).
Writes normal and reduce, each as picture and as Graphviz source (.gv). Of a search's run folder the
caption says epoch and accuracy, and an edge is drawn wider where its op has more weight in the mix.
"""

from console import interrupts

if __name__ == "__main__":
    interrupts.end_in_one_line()  # from here on, also while torch is imported

import html
import io
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import graphviz

import genotypes as gt
from console import errors
from console.parser import Parser, out_folder
from console.terminal import command, visible
from records import alphas, fonts, palette, reader
from records.files import CELLS, atomic_write, drawing, write_text

FORMATS = ("png", "svg", "pdf")
PRINT_DPI = 300
WIDE = "DejaVu Sans"  # as wide as Verdana, and wider than what else a viewer may have
FONT = {"fontname": "Helvetica", "fontsize": "20", "fontcolor": palette.INK}


class NoRenderer(OSError):
    """Neither Graphviz' dot nor graphviz-pure is there and works."""


def draw(gene, concat, caption=None, strengths=None, n_ops=None):
    """gene, concat (see genotypes.py) -> graphviz.Digraph, left to right.

    The two input cells, the computed nodes, and the output; the concat list decides which nodes
    reach the output. Nodes are numbered as the paper's figures do, from 0 for the first computed.

    strengths  of every edge, in the shape of `gene` (alphas.strengths): makes edges wide or narrow
    n_ops      how many ops shared an edge; 1 / n_ops is the weight of an op while undecided
    """
    graph = graphviz.Digraph(
        graph_attr={"rankdir": "LR", "dpi": "100", "nodesep": "0.3", "ranksep": "0.3",
                    "bgcolor": "white", "pad": "0.15", **FONT},
        node_attr={"shape": "box", "style": "rounded,filled", "color": palette.INK, "width": "0.6",
                   "height": "0.5", **FONT},
        edge_attr={"color": palette.INK},
    )  # fmt: skip
    for j in (0, 1):
        graph.node(gt.input_name(j), fillcolor=palette.INPUT)
    for j in range(2, len(gene) + 2):
        graph.node(gt.input_name(j), fillcolor=palette.NODE)
    graph.node("c_{k}", fillcolor=palette.OUTPUT)
    for node, edges in enumerate(gene, start=2):
        for i, (op, j) in enumerate(edges):
            # the op is a node of its own: Graphviz leads other edges around nodes, but lets them
            # run across edge labels
            label, color = f"{node - 2}_{i}", palette.color(op)
            width = "1.8"
            if strengths:
                width = f"{alphas.pen_width(strengths[node - 2][i], n_ops):.2f}"
            graph.node(label, graphviz.escape(op), shape="plain", style="", fontsize="18",
                       fontcolor=color, height="0.4")  # fmt: skip
            graph.edge(gt.input_name(j), f"{label}:w", arrowhead="none", color=color,
                       penwidth=width)  # fmt: skip
            graph.edge(f"{label}:e", gt.input_name(node), color=color, penwidth=width)
    for j in concat:
        graph.edge(gt.input_name(j), "c_{k}", style="dashed", color=palette.FAINT)
    graph.attr(label=caption_html(caption, gene), labelloc="b")
    return graph


def caption_html(caption, gene):
    """What stands under a cell, as Graphviz' HTML: the caption, and which color is which family."""
    families = palette.legend(op for edges in gene for op, _ in edges)
    rows = []
    if caption:
        rows.append(f'<TR><TD CELLPADDING="6">{html.escape(caption)}</TD></TR>')
    if len(families) > 1:
        words = "    ".join(f'<FONT COLOR="{color}">{name}</FONT>' for name, color in families)
        rows.append(f'<TR><TD><FONT POINT-SIZE="16">{words}</FONT></TD></TR>')
    return f'<<TABLE BORDER="0" CELLSPACING="0">{"".join(rows)}</TABLE>>' if rows else ""


def find_renderers():
    """Programs that turn Graphviz source into pictures, best first: the system's dot, then the
    command of the graphviz-pure package, on PATH or beside this Python."""
    beside = sysconfig.get_path("scripts")
    found = [
        shutil.which("dot"),
        shutil.which("graphviz-pure") or shutil.which("graphviz-pure", path=beside),
    ]
    return [program for program in found if program]


def render(graph, path, format):
    """Picture of a graphviz.Digraph to `path`. Raises NoRenderer when no program can draw it."""
    picture, reasons = render_bytes(graph.source, format)
    if picture is None and format == "pdf":  # graphviz-pure has none
        graph = graph.copy()
        graph.attr(dpi=str(PRINT_DPI))
        png, _ = render_bytes(graph.source, "png")
        picture = png and pdf_of(png)
    if picture is None:
        raise NoRenderer(
            f"no program to draw {path}; pip install graphviz-pure, or install Graphviz"
            + "".join(f" ({reason})" for reason in reasons)
        )
    with atomic_write(path) as temporary:
        Path(temporary).write_bytes(picture)


def render_bytes(source, format):
    """(the picture of Graphviz source as bytes, or None; why each program has failed)."""
    reasons = []
    if format == "svg":  # whoever shows it takes a font of its own, of which none is wider
        source = source.replace(f"fontname={FONT['fontname']}", f'fontname="{WIDE}"')
    for program in find_renderers():
        text = source if format == "svg" else drawable(source, program)
        try:
            done = subprocess.run(
                [program, f"-T{format}"], input=text.encode(), capture_output=True, check=True
            )
        except (subprocess.CalledProcessError, OSError) as error:
            reasons.append(f"{program} failed: {errors.one_line(error)}")
            continue
        families = f'font-family="{WIDE},Verdana,Helvetica,Arial,sans-serif"'.encode()
        return re.sub(rf'font-family="{WIDE}[^"]*"'.encode(), families, done.stdout), reasons
    return None, reasons


def drawable(source, program):
    """Graphviz source with a question mark for every letter that no font has."""
    if source.isascii():
        return source
    if "graphviz-pure" in os.path.basename(program):  # has fonts of its own: Arimo
        return fonts.plain(source, lambda c: c < "\u0530" or "\u2010" <= c < "\u2045")
    _, missing = fonts.families(source)
    return fonts.plain(source, lambda letter: letter not in missing)


def pdf_of(png):
    """One page that holds a picture of PRINT_DPI, without loss."""
    from matplotlib.figure import Figure  # takes half a second, and only this needs it
    from matplotlib.image import imread

    pixels = imread(io.BytesIO(png), format="png")  # (H, W, 3 or 4)
    H, W = pixels.shape[:2]
    fig = Figure(figsize=(W / PRINT_DPI, H / PRINT_DPI), dpi=PRINT_DPI)
    fig.figimage(pixels)
    page = io.BytesIO()
    fig.savefig(page, format="pdf")
    return page.getvalue()


def plot(
    genotype, normal_path, reduce_path, caption=None, format="png", strengths=None, n_ops=None
):
    """Draw both cells: `normal_path`.png and `reduce_path`.png (or .svg, .pdf); returns both paths.

    Beside each stands its Graphviz source, .gv, which is written first and in any case. `caption`
    is appended to the kind of the cell. `strengths` {"normal": ..., "reduce": ...} and `n_ops` as
    in `draw`. Raises NoRenderer when no program can draw.
    """
    suffix = f" of {caption}" if caption else ""
    graphs = {}
    for path, (cell, name) in zip((normal_path, reduce_path), CELLS.items(), strict=True):
        gene, concat = getattr(genotype, cell), getattr(genotype, f"{cell}_concat")
        widths = strengths and strengths[cell]
        graphs[path] = draw(gene, concat, f"{name}{suffix}", widths, n_ops)
    for path, graph in graphs.items():
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        write_text(f"{path}.gv", graph.source)
    for path, graph in graphs.items():
        render(graph, f"{path}.{format}", format)
    return [f"{path}.{format}" for path in graphs]


def plot_epoch(record, plot_path, dataset, top1=None, format="png"):
    """Draw one line of alphas.jsonl as EPxx-normal and EPxx-reduce into `plot_path`."""
    genotype, epoch = gt.from_str(record["genotype"]), record["epoch"]
    paths = [os.path.join(plot_path, drawing(cell, epoch)) for cell in CELLS]
    caption = caption_of(dataset, epoch, top1)
    strengths = strengths_of(record, genotype)
    return plot(genotype, *paths, caption, format, strengths, len(record["primitives"]))


def drawn_epochs(plot_path, cell):
    """The epochs of which `plot_path` has a drawing of `cell` by `plot_epoch`."""
    files = os.listdir(plot_path) if os.path.isdir(plot_path) else ()
    found = (re.fullmatch(rf"EP(\d+)-{cell}\.png", file) for file in files)  # as files.drawing
    return {int(match[1]) for match in found if match}


def caption_of(dataset, epoch=None, top1=None):
    """What a caption says of a cell: its data set, its epoch, and the supernet's accuracy then."""
    words = [visible(dataset)]
    if epoch is not None:
        words.append(f"epoch {epoch}")
    if top1 is not None:
        words.append(f"supernet accuracy {top1:.2%}")
    return ", ".join(words)


def strengths_of(record, genotype):
    """The mixing weights of both cells' edges from a line of alphas.jsonl, for `plot`."""
    return {cell: alphas.strengths(record, getattr(genotype, cell), cell) for cell in CELLS}


def known_about(source, genotype):
    """What more is known of a genotype that was loaded from `source`: keywords for `plot`.

    A published cell has its name, a JSON file of a search its data set, epoch and accuracy; a run
    folder has the alphas of that epoch as well.
    """
    source = str(source).strip()
    if source in gt.PUBLISHED:
        return {"caption": source}
    metadata = reader.keep_fitting(
        gt.metadata(source), {"epoch": reader.is_count, "top1": reader.is_number}
    )
    if "dataset" not in metadata:
        return {}
    epoch = metadata.get("epoch")
    known = {"caption": caption_of(metadata["dataset"], epoch, metadata.get("top1"))}
    run_path = source if os.path.isdir(source) else os.path.dirname(source)
    try:
        found = reader.read_alphas(run_path)
    except ValueError:
        return known
    for record in found:
        # a file that lies beside other alphas is not theirs
        if record["epoch"] == epoch and record["genotype"] == gt.to_str(genotype):
            known["strengths"] = strengths_of(record, genotype)
            known["n_ops"] = len(record["primitives"])
    return known


@command
def main(argv=None):
    parser = Parser("visualize.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("genotype", metavar="GENOTYPE",
                        help="a run folder (searchs/NAME), a JSON file, a published name "
                             f"({', '.join(gt.PUBLISHED)}) or the text Genotype(...)")  # fmt: skip
    parser.add_argument("--out", type=out_folder, metavar="DIR",
                        help="folder to write to (default: the run folder, or here)")  # fmt: skip
    parser.add_argument("--format", choices=FORMATS, default="png", help="of the pictures")
    args = parser.parse_args(argv)
    with errors.usage_errors("visualize.py"):
        genotype = gt.load(args.genotype)
        known = known_about(args.genotype, genotype)
        is_run = os.path.isdir(args.genotype) and args.genotype not in gt.PUBLISHED
        out = args.out or (args.genotype if is_run else ".")
        paths = [os.path.join(out, drawing(cell)) for cell in CELLS]
        print("\n".join(plot(genotype, *paths, format=args.format, **known)))


if __name__ == "__main__":
    main()
