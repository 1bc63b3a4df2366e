"""Drawings: the source line by line, the program that renders it, the command."""

import itertools
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from conftest import ends_in_one_line, lines
from PIL import Image, ImageColor

import genotypes as gt
import visualize
from records import alphas, palette

GENE = [[("sep_conv_3x3", 0), ("skip_connect", 1)], [("max_pool_3x3", 1), ("dil_conv_5x5", 2)]]
CELLS = gt.Genotype(GENE, [2, 3], GENE, [3])


def boxes_and_edges(source):
    """What a person sees in Graphviz source: ({box: its fill}, {op's node: (op, its color)},
    [(from, to, color, width or "dashed")]), the op of an edge left out of the way."""
    boxes, ops, ways = {}, {}, []
    for line in source.splitlines():
        attributes = dict(re.findall(r'(\w+)="?([^" \]]+)', line.partition("[")[2]))
        name, arrow, target = line.strip().partition("[")[0].strip().partition(" -> ")
        name, target = (re.sub(r'"|:[we]$', "", word) for word in (name, target))
        if arrow:
            width = attributes.get("penwidth") or attributes["style"]
            ways.append((name, target, attributes["color"], width))
        elif "fillcolor" in attributes:
            boxes[name] = attributes["fillcolor"]
        elif "label" in attributes and name != "label":
            ops[name] = attributes["label"], attributes["fontcolor"]
    return boxes, ops, ways


def test_the_source_shows_boxes_ops_and_edges():
    # concat [3]: only the second computed node reaches the output
    boxes, ops, ways = boxes_and_edges(visualize.draw(GENE, [3]).source)
    assert boxes == {
        "c_{k-2}": palette.INPUT, "c_{k-1}": palette.INPUT,
        "0": palette.NODE, "1": palette.NODE, "c_{k}": palette.OUTPUT,
    }  # fmt: skip
    shown = [("c_{k-2}", "0"), ("c_{k-1}", "0"), ("c_{k-1}", "1"), ("0", "1")]
    wanted = [op for edges in GENE for op, _ in edges]
    assert list(ops.values()) == [(op, palette.color(op)) for op in wanted]
    for (start, end), (node, (op, color)) in zip(shown, ops.items(), strict=True):
        assert ways[:2] == [(start, node, color, "1.8"), (node, end, color, "1.8")], op
        del ways[:2]
    assert ways == [("1", "c_{k}", palette.FAINT, "dashed")]


def test_the_caption_stands_below_and_cannot_break_the_source():
    source = visualize.draw(GENE, [2, 3], "epoch 3 <b> & more").source
    assert ">epoch 3 &lt;b&gt; &amp; more</TD>" in source
    assert "labelloc=b" in source


def test_the_legend_names_the_families_once_and_only_where_there_is_a_choice():
    source = visualize.draw(GENE, [3]).source
    legend = re.findall(r'<FONT COLOR="(#\w+)">(\w+)</FONT>', source)
    assert [name for _, name in legend] == ["skip", "pooling", "separable", "dilated"]
    assert {color for color, _ in legend} <= {
        palette.color(op) for edges in GENE for op, _ in edges
    }
    one = [[("sep_conv_3x3", 0), ("sep_conv_5x5", 1)]]
    assert "FONT" not in visualize.draw(one, [2]).source


def test_an_edge_is_the_wider_the_more_its_op_weighs():
    widths = [alphas.pen_width(w, 8) for w in (0.125, 0.3, 0.6, 1.0)]
    assert widths == sorted(widths)
    assert (widths[0], widths[-1]) == (1.4, 7.0)
    assert alphas.pen_width(0.05, 8) == alphas.pen_width(1 / 8, 8)  # below undecided
    assert alphas.pen_width(1.0, 1) == 7  # a single op
    strengths = [[0.2, 0.4], [0.9, 0.125]]
    source = visualize.draw(GENE, [3], strengths=strengths, n_ops=8).source
    *ways, _ = boxes_and_edges(source)[2]
    wanted = [
        f"{alphas.pen_width(w, 8):.2f}" for weights in strengths for w in weights for _ in range(2)
    ]
    assert [width for *_, width in ways] == wanted  # each edge is drawn in two halves


def test_a_picture_is_drawn(here):
    paths = visualize.plot(CELLS, "n", "r", "epoch 1")
    assert paths == ["n.png", "r.png"]
    assert sorted(os.listdir(".")) == ["n.gv", "n.png", "r.gv", "r.png"]
    with Image.open(paths[0]) as image:
        assert image.format == "PNG"
        width, height = image.size
        colors = {pixel for _, pixel in image.convert("RGB").getcolors(1 << 24)}
    assert width > height > 100
    wanted = (palette.INPUT, palette.NODE, palette.OUTPUT)
    assert {ImageColor.getrgb(color) for color in wanted} <= colors
    assert len(set(wanted)) == 3


@pytest.mark.parametrize("op", ['quote"s', "a -> b", "<b>", "a\\nb", "ümlaut"])
def test_strange_op_names_are_drawn(here, op):
    gene = [[(op, 0), (op, 1)]]
    visualize.plot(gt.Genotype(gene, [2], gene, [2]), "n", "r")
    assert os.path.getsize("n.png") > 1000


def test_the_systems_dot_is_preferred(here, monkeypatch):
    def which(program, path=None):
        return f"/somewhere/{program}" if path is None else None

    monkeypatch.setattr(visualize.shutil, "which", which)
    assert visualize.find_renderers() == ["/somewhere/dot", "/somewhere/graphviz-pure"]


def test_graphviz_pure_is_found_beside_python_without_any_path(here, monkeypatch):
    monkeypatch.setenv("PATH", "")
    (program,) = visualize.find_renderers()
    assert "graphviz-pure" in program
    visualize.plot(CELLS, "n", "r")
    assert os.path.getsize("n.png") > 1000


@pytest.mark.skipif(os.name == "nt", reason="the broken program is a shell script")
def test_a_broken_dot_is_passed_over(here, monkeypatch):
    (here / "dot").write_text("#!/bin/sh\necho broken >&2; exit 3\n")
    (here / "dot").chmod(0o755)
    monkeypatch.setenv("PATH", f"{here}:{os.environ['PATH']}")
    assert visualize.find_renderers()[0] == str(here / "dot")
    visualize.plot(CELLS, "n", "r")
    assert os.path.getsize("n.png") > 1000
    monkeypatch.setattr(visualize, "find_renderers", lambda: [str(here / "dot")])
    assert "dot failed" in ends_in_one_line(visualize.main, ["DARTS_V2"], code=1)


def test_without_a_renderer_the_source_is_kept(here, monkeypatch):
    monkeypatch.setattr(visualize, "find_renderers", list)
    with pytest.raises(visualize.NoRenderer, match="pip install graphviz-pure"):
        visualize.plot(CELLS, "n", "r")
    assert sorted(os.listdir(".")) == ["n.gv", "r.gv"]


# --- the command --------------------------------------------------------------------------------


def test_the_command_draws_both_cells(here, capsys):
    visualize.main(["DARTS_V2", "--out", "out"])
    wanted = [os.path.join("out", f"{cell}.png") for cell in ("normal", "reduce")]
    assert capsys.readouterr().out.split() == wanted
    assert sorted(os.listdir("out")) == ["normal.gv", "normal.png", "reduce.gv", "reduce.png"]


def test_the_cells_of_a_run_are_drawn_into_its_folder(here, capsys):
    Path("searchs/s").mkdir(parents=True)
    Path("searchs/s/genotype.json").write_text(gt.to_json(gt.DARTS_V2))
    visualize.main(["searchs/s"])
    wanted = [os.path.join("searchs/s", f"{cell}.png") for cell in ("normal", "reduce")]
    assert capsys.readouterr().out.split() == wanted


def test_a_published_name_is_no_folder(here, capsys):
    Path("PDARTS").mkdir()
    visualize.main(["PDARTS"])
    assert capsys.readouterr().out.split() == ["./normal.png", "./reduce.png"]


def test_the_command_takes_text_with_ops_of_ones_own_and_writes_svg(here):
    text = gt.to_str(gt.DARTS_V1).replace("sep_conv_3x3", "my_block")
    visualize.main([text, "--format", "svg"])
    assert "my_block" in Path("normal.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "words",
    [[], ["DARTS_V2", "--format", "gif"], ["NOPE"], ["Genotype("], ["DARTS_V3"],
     ["no/such/file.json"], ["."]],
)  # fmt: skip
def test_wrong_words_end_in_one_line(here, words):
    assert ends_in_one_line(visualize.main, [*words, "--out", "out"]).startswith("visualize.py: ")


def test_pdf_comes_out_without_graphviz_too(here):
    visualize.main(["DARTS_V2", "--format", "pdf"])
    for cell in ("normal", "reduce"):
        assert Path(f"{cell}.pdf").read_bytes().startswith(b"%PDF-")
    assert sorted(os.listdir(".")) == ["normal.gv", "normal.pdf", "reduce.gv", "reduce.pdf"]


def test_labels_do_not_touch_each_other(here):
    """In the SVG, where the boxes of texts can be reckoned from their positions."""
    for seed in range(6):
        genotype = gt.random_genotype(seed, gt.PRESETS["all"])
        visualize.plot(genotype, "n", "r", format="svg")
        for file, gene in (("n.svg", genotype.normal), ("r.svg", genotype.reduce)):
            ops = {op for edges in gene for op, _ in edges}
            texts = re.findall(
                r'<text[^>]* x="(.*?)" y="(.*?)"[^>]*>([^<]+)<', Path(file).read_text()
            )
            boxes = [(float(x), float(y), len(text) * 9.5) for x, y, text in texts if text in ops]
            assert len(boxes) == 8
            for (x, y, w), (x2, y2, w2) in itertools.combinations(boxes, 2):  # middles and widths
                assert abs(y - y2) > 16 or abs(x - x2) > (w + w2) / 2


# --- what a run folder adds ---------------------------------------------------------------------


def test_a_run_folder_gives_caption_and_widths(finished_search, here):
    folder, _ = finished_search
    visualize.main([str(folder / "searchs" / "s"), "--out", "."])
    best = json.loads((folder / "searchs" / "s" / "genotype.json").read_text())
    source = Path("normal.gv").read_text()
    assert (
        f"normal cell of digits, epoch {best['epoch']}, supernet accuracy {best['top1']:.2%}<"
    ) in source
    record = lines(folder / "searchs" / "s" / "alphas.jsonl")[best["epoch"] - 1]
    (first, j), second = gt.from_str(record["genotype"]).normal[0]
    weight = record["normal"][0][j][record["primitives"].index(first)]
    assert f"penwidth={alphas.pen_width(weight, 8):.2f}" in source
    # the JSON file alone says as much; a file taken elsewhere has no alphas beside it
    shutil.copy(folder / "searchs" / "s" / "genotype.json", "g.json")
    known = visualize.known_about("g.json", gt.load("g.json"))
    assert known == {"caption": known["caption"]}
    assert visualize.known_about("DARTS_V1", gt.DARTS_V1) == {"caption": "DARTS_V1"}
    assert visualize.known_about(gt.to_str(gt.DARTS_V1), gt.DARTS_V1) == {}


def test_alphas_of_another_cell_give_no_widths(finished_search, here):
    run = finished_search[0] / "searchs" / "s"
    for name in ("alphas.jsonl", "genotype.json"):
        shutil.copy(run / name, name)
    assert "strengths" in visualize.known_about(".", gt.load("."))
    assert "strengths" not in visualize.known_about(".", gt.DARTS_V2)


def test_the_command_fails_with_a_hint_where_nothing_can_draw(here, monkeypatch):
    monkeypatch.setattr(visualize, "find_renderers", list)
    assert "pip install graphviz-pure" in ends_in_one_line(visualize.main, ["DARTS_V2"], code=1)


def test_each_cell_is_drawn_with_its_own_strengths(tmp_path):
    genotype = gt.PUBLISHED["DARTS_V2"]
    strengths = {
        cell: [[weight] * len(edges) for edges in getattr(genotype, cell)]
        for cell, weight in (("normal", 0.9), ("reduce", 0.2))
    }
    paths = [tmp_path / "n", tmp_path / "r"]
    visualize.plot(genotype, *paths, strengths=strengths, n_ops=8)
    widths = [set(re.findall(r"penwidth=([\d.]+)", Path(f"{p}.gv").read_text())) for p in paths]
    assert widths[0].isdisjoint(widths[1])
