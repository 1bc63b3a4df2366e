"""Draw the cells of a genotype.

    python visualize.py GENOTYPE --out DIR

GENOTYPE is a run folder (searchs/NAME), a JSON file, a published name or the text Genotype(...).
Writes normal and reduce, each as picture and as Graphviz source (.gv).
"""

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import graphviz
from graphviz.backend import dot_command

import genotypes as gt

FORMATS = ("png", "svg")
GREY = "#444444"
FONT = {"fontname": "Helvetica", "fontsize": "20"}


class NoRenderer(RuntimeError):
    """Neither Graphviz' dot nor graphviz-pure is there and works."""


def draw(gene, concat, caption=None):
    """gene, concat (see genotypes.py) -> graphviz.Digraph, left to right.

    The two input cells, the computed nodes, and the output; the concat list decides which nodes
    reach the output. Nodes are numbered as the paper's figures do, from 0 for the first computed.
    """

    def name(j):
        return ("c_{k-2}", "c_{k-1}")[j] if j < 2 else str(j - 2)

    graph = graphviz.Digraph(
        graph_attr={"rankdir": "LR", "dpi": "100", "nodesep": "0.3", "ranksep": "0.3", **FONT},
        node_attr={"shape": "box", "style": "rounded,filled", "color": GREY, "width": "0.6",
                   "height": "0.5", **FONT},
        edge_attr={"color": GREY},
    )  # fmt: skip
    for j in (0, 1):
        graph.node(name(j), fillcolor="darkseagreen2")
    for j in range(2, len(gene) + 2):
        graph.node(name(j), fillcolor="lightblue")
    graph.node("c_{k}", fillcolor="palegoldenrod")
    for node, edges in enumerate(gene, start=2):
        for i, (op, j) in enumerate(edges):
            # the op is a node of its own: Graphviz leads other edges around nodes, but lets them
            # run across edge labels
            label = f"{node - 2}_{i}"
            graph.node(label, op, shape="plain", style="", fontsize="18", height="0.4")
            graph.edge(name(j), f"{label}:w", arrowhead="none")
            graph.edge(f"{label}:e", name(node))
    for j in concat:
        graph.edge(name(j), "c_{k}", style="dashed", color="#999999")
    if caption:
        graph.attr(label=f"\n{caption}", labelloc="b")
    return graph


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
    reasons = []
    usual = dot_command.DOT_BINARY
    for program in find_renderers():
        dot_command.DOT_BINARY = program  # where the graphviz package looks up its program
        try:
            picture = graph.pipe(format=format)
        except (subprocess.CalledProcessError, OSError) as error:
            reasons.append(" ".join(f"{program} failed: {error}".split()))
            continue
        finally:
            dot_command.DOT_BINARY = usual
        Path(f"{path}.tmp").write_bytes(picture)
        os.replace(f"{path}.tmp", path)
        return
    raise NoRenderer(
        f"no program to draw {path}; pip install graphviz-pure, or install Graphviz"
        + "".join(f" ({reason})" for reason in reasons)
    )


def plot(genotype, normal_path, reduce_path, caption=None, format="png"):
    """Draw both cells: `normal_path`.png and `reduce_path`.png (or .svg); returns the two paths.

    Beside each stands its Graphviz source, .gv, which is written first and in any case. `caption`
    is appended to the kind of the cell. Raises NoRenderer when no program can draw.
    """
    suffix = f", {caption}" if caption else ""
    graphs = {
        normal_path: draw(genotype.normal, genotype.normal_concat, f"normal cell{suffix}"),
        reduce_path: draw(genotype.reduce, genotype.reduce_concat, f"reduction cell{suffix}"),
    }
    for path, graph in graphs.items():
        Path(f"{path}.gv").write_text(graph.source, encoding="utf-8")
    for path, graph in graphs.items():
        render(graph, f"{path}.{format}", format)
    return [f"{path}.{format}" for path in graphs]


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
    except (ValueError, OSError) as error:
        parser.error(str(error))
    try:
        os.makedirs(args.out, exist_ok=True)
        normal, reduce = (os.path.join(args.out, cell) for cell in ("normal", "reduce"))
        for path in plot(genotype, normal, reduce, format=args.format):
            print(path)
    except (NoRenderer, OSError) as error:
        sys.exit(f"visualize.py: {error}")


if __name__ == "__main__":
    main()
