"""Draw the cells of a genotype.

    python visualize.py GENOTYPE --out DIR

GENOTYPE is a run folder (searchs/NAME), a JSON file, a published name or the text Genotype(...).
Writes normal and reduce, each as picture and as Graphviz source (.gv). Of a search's run folder the
caption says epoch and accuracy, and an edge is the wider, the more its op weighs in the mixture.
"""

import argparse
import html
import io
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import graphviz
from graphviz.backend import dot_command

import genotypes as gt
from records import alphas, palette, reader
from records.files import atomic

FORMATS = ("png", "svg", "pdf")
FONT = {"fontname": "Helvetica", "fontsize": "20", "fontcolor": palette.INK}


class NoRenderer(RuntimeError):
    """Neither Graphviz' dot nor graphviz-pure is there and works."""


def draw(gene, concat, caption=None, strengths=None, n_ops=None):
    """gene, concat (see genotypes.py) -> graphviz.Digraph, left to right.

    The two input cells, the computed nodes, and the output; the concat list decides which nodes
    reach the output. Nodes are numbered as the paper's figures do, from 0 for the first computed.

    strengths  the mixing weight of every edge, in the shape of `gene`: makes edges wide or narrow
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
            width = pen_width(strengths and strengths[node - 2][i], n_ops)
            graph.node(label, graphviz.escape(op), shape="plain", style="", fontsize="18",
                       fontcolor=color, height="0.4")  # fmt: skip
            graph.edge(gt.input_name(j), f"{label}:w", arrowhead="none", color=color,
                       penwidth=width)  # fmt: skip
            graph.edge(f"{label}:e", gt.input_name(node), color=color, penwidth=width)
    for j in concat:
        graph.edge(gt.input_name(j), "c_{k}", style="dashed", color=palette.FAINT)
    graph.attr(label=below(caption, gene), labelloc="b")
    return graph


def pen_width(strength, n_ops):
    """Width in points of an edge: 1.4 when undecided (1 / n_ops) or unknown, 7 at a weight of 1."""
    if strength is None:
        return "1.8"
    undecided = 1 / n_ops if n_ops and n_ops > 1 else 0.0
    return f"{1.4 + 5.6 * max(0.0, strength - undecided) / (1 - undecided):.2f}"


def below(caption, gene):
    """What stands under a cell, as Graphviz' HTML: the caption, and which color is which family."""
    families = palette.legend(op for edges in gene for op, _ in edges)
    rows = []
    if caption:
        rows.append(f'<TR><TD CELLPADDING="6">{html.escape(caption)}</TD></TR>')
    if len(families) > 1:
        cells = "".join(
            f'<TD WIDTH="22" HEIGHT="14" FIXEDSIZE="TRUE" BGCOLOR="{color}"></TD>'
            f'<TD ALIGN="LEFT"><FONT POINT-SIZE="16">{name}  </FONT></TD>'
            for name, color in families
        )
        rows.append(f'<TR><TD><TABLE BORDER="0" CELLSPACING="6"><TR>{cells}</TR></TABLE></TD></TR>')
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
    picture, reasons = pipe(graph, format)
    if picture is None and format == "pdf":  # graphviz-pure has none
        png, _ = pipe(dense(graph), "png")
        picture = png and pdf_of(png)
    if picture is None:
        raise NoRenderer(
            f"no program to draw {path}; pip install graphviz-pure, or install Graphviz"
            + "".join(f" ({reason})" for reason in reasons)
        )
    with atomic(path) as temporary:
        Path(temporary).write_bytes(picture)


def pipe(graph, format):
    """(the picture as bytes, or None; why each program that was tried has failed)."""
    reasons = []
    usual = dot_command.DOT_BINARY
    for program in find_renderers():
        dot_command.DOT_BINARY = program  # where the graphviz package looks up its program
        try:
            # quiet: what a program says on its standard error is part of the reason
            return graph.pipe(format=format, quiet=True), reasons
        except (subprocess.CalledProcessError, OSError) as error:
            reasons.append(" ".join(f"{program} failed: {error}".split()))
        finally:
            dot_command.DOT_BINARY = usual
    return None, reasons


PRINT_DPI = 300


def dense(graph):
    """A copy of the graph for paper."""
    graph = graph.copy()
    graph.attr(dpi=str(PRINT_DPI))
    return graph


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
    strengths = strengths or {}
    graphs = {
        normal_path: draw(genotype.normal, genotype.normal_concat, f"normal cell{suffix}",
                          strengths.get("normal"), n_ops),
        reduce_path: draw(genotype.reduce, genotype.reduce_concat, f"reduction cell{suffix}",
                          strengths.get("reduce"), n_ops),
    }  # fmt: skip
    for path, graph in graphs.items():
        Path(f"{path}.gv").write_text(graph.source, encoding="utf-8")
    for path, graph in graphs.items():
        render(graph, f"{path}.{format}", format)
    return [f"{path}.{format}" for path in graphs]


def plot_epoch(record, plot_path, dataset, top1=None, format="png"):
    """Draw one line of alphas.jsonl as EPxx-normal and EPxx-reduce into `plot_path`."""
    genotype = gt.from_str(record["genotype"], ops=gt.AnyOp())
    stem = os.path.join(plot_path, f"EP{record['epoch']:02d}")
    os.makedirs(plot_path, exist_ok=True)
    return plot(
        genotype, f"{stem}-normal", f"{stem}-reduce", caption_of(dataset, record["epoch"], top1),
        format, strengths_of(record, genotype), len(record["primitives"]),
    )  # fmt: skip


def caption_of(dataset, epoch=None, top1=None):
    """What a caption says of a cell: its data set, its epoch, and the supernet's accuracy then."""
    words = [str(dataset)]
    if epoch is not None:
        words.append(f"epoch {epoch}")
    if top1 is not None:
        words.append(f"supernet accuracy {top1:.2%}")
    return ", ".join(words)


def strengths_of(record, genotype):
    """The mixing weights of both cells' edges from a line of alphas.jsonl, for `plot`."""
    return {cell: alphas.strengths(record, getattr(genotype, cell), cell)
            for cell in ("normal", "reduce")}  # fmt: skip


def background(source, genotype):
    """What more is known of a genotype that was loaded from `source`: keywords for `plot`.

    A published cell has its name, a JSON file of a search its data set, epoch and accuracy; a run
    folder has the alphas of that epoch as well.
    """
    source = str(source).strip()
    if source in gt.PUBLISHED:
        return {"caption": source}
    folder = os.path.isdir(source)
    about = reader.read_object(os.path.join(source, "genotype.json") if folder else source)
    if "dataset" not in about:
        return {}
    known = {"caption": caption_of(about["dataset"], about.get("epoch"), about.get("top1"))}
    run_path = source if folder else os.path.dirname(source)
    try:
        found = reader.read_alphas(run_path)
    except ValueError:
        return known
    for record in found:
        # a file that lies beside other alphas is not theirs
        if record["epoch"] == about.get("epoch") and record["genotype"] == gt.to_str(genotype):
            known["strengths"] = strengths_of(record, genotype)
            known["n_ops"] = len(record["primitives"])
    return known


def main(argv=None):
    parser = argparse.ArgumentParser("visualize.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("genotype", metavar="GENOTYPE",
                        help="a run folder (searchs/NAME), a JSON file, a published name "
                             f"({', '.join(gt.PUBLISHED)}) or the text Genotype(...)")  # fmt: skip
    parser.add_argument("--out", default=".", help="folder to write to (default: here)")
    parser.add_argument("--format", choices=FORMATS, default="png", help="default: png")
    args = parser.parse_args(argv)
    try:
        # a drawing builds nothing, so it takes ops it has never heard of
        genotype = gt.load(args.genotype, ops=gt.AnyOp())
        known = background(args.genotype, genotype)
    except (ValueError, OSError) as error:
        parser.exit(2, f"visualize.py: {error}\n")
    try:
        os.makedirs(args.out, exist_ok=True)
        normal, reduce = (os.path.join(args.out, cell) for cell in ("normal", "reduce"))
        for path in plot(genotype, normal, reduce, format=args.format, **known):
            print(path)
    except (NoRenderer, OSError) as error:
        sys.exit(f"visualize.py: {error}")


if __name__ == "__main__":
    main()
