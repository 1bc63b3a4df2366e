"""Drawings: the source line by line, the program that renders it, the command."""

import os
from pathlib import Path

import pytest
from PIL import Image

import genotypes as gt
import visualize

GENE = [[("sep_conv_3x3", 0), ("skip_connect", 1)], [("max_pool_3x3", 1), ("dil_conv_5x5", 2)]]
CELLS = gt.Genotype(GENE, [2, 3], GENE, [3])

SOURCE = """\
digraph {
\tgraph [dpi=100 fontname=Helvetica fontsize=20 nodesep=0.3 rankdir=LR ranksep=0.3]
\tnode [color="#444444" fontname=Helvetica fontsize=20 height=0.5 shape=box style="rounded,filled" width=0.6]
\tedge [color="#444444"]
\t"c_{k-2}" [fillcolor=darkseagreen2]
\t"c_{k-1}" [fillcolor=darkseagreen2]
\t0 [fillcolor=lightblue]
\t1 [fillcolor=lightblue]
\t"c_{k}" [fillcolor=palegoldenrod]
\t"0_0" [label=sep_conv_3x3 fontsize=18 height=0.4 shape=plain style=""]
\t"c_{k-2}" -> "0_0":w [arrowhead=none]
\t"0_0":e -> 0
\t"0_1" [label=skip_connect fontsize=18 height=0.4 shape=plain style=""]
\t"c_{k-1}" -> "0_1":w [arrowhead=none]
\t"0_1":e -> 0
\t"1_0" [label=max_pool_3x3 fontsize=18 height=0.4 shape=plain style=""]
\t"c_{k-1}" -> "1_0":w [arrowhead=none]
\t"1_0":e -> 1
\t"1_1" [label=dil_conv_5x5 fontsize=18 height=0.4 shape=plain style=""]
\t0 -> "1_1":w [arrowhead=none]
\t"1_1":e -> 1
\t1 -> "c_{k}" [color="#999999" style=dashed]
}
"""  # noqa: E501


def test_the_source_of_a_drawing_line_by_line():
    # concat [3]: only the second computed node reaches the output
    assert visualize.draw(GENE, [3]).source.splitlines() == SOURCE.splitlines()


def test_the_caption_stands_below():
    assert 'label="\nepoch 3"' in visualize.draw(GENE, [2, 3], "epoch 3").source


def test_a_picture_is_drawn(here):
    paths = visualize.plot(CELLS, "n", "r", "epoch 1")
    assert paths == ["n.png", "r.png"]
    assert sorted(os.listdir(".")) == ["n.gv", "n.png", "r.gv", "r.png"]
    with Image.open(paths[0]) as image:
        assert image.format == "PNG"
        width, height = image.size
        colors = {pixel for _, pixel in image.convert("RGB").getcolors(1 << 24)}
    assert width > height > 100
    # Graphviz' darkseagreen2, lightblue, palegoldenrod: inputs, nodes, output
    assert {(180, 238, 180), (173, 216, 230), (238, 232, 170)} <= colors


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
def test_a_broken_dot_is_passed_over(here, monkeypatch, capsys):
    (here / "dot").write_text("#!/bin/sh\necho broken >&2; exit 3\n")
    (here / "dot").chmod(0o755)
    monkeypatch.setenv("PATH", f"{here}:{os.environ['PATH']}")
    assert visualize.find_renderers()[0] == str(here / "dot")
    visualize.plot(CELLS, "n", "r")
    assert os.path.getsize("n.png") > 1000
    monkeypatch.setattr(visualize, "find_renderers", lambda: [str(here / "dot")])
    with pytest.raises(SystemExit) as caught:
        visualize.main(["DARTS_V2"])
    assert "dot failed" in caught.value.code
    assert "\n" not in caught.value.code


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


def test_the_command_takes_text_with_ops_of_ones_own_and_writes_svg(here):
    text = gt.to_str(gt.DARTS_V1).replace("sep_conv_3x3", "my_block")
    visualize.main([text, "--format", "svg"])
    assert "my_block" in Path("normal.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("words", [[], ["NOPE"], ["Genotype("], ["DARTS_V2", "--format", "gif"]])
def test_bad_input_ends_with_exit_code_2(here, words, capsys):
    with pytest.raises(SystemExit) as caught:
        visualize.main(words)
    assert caught.value.code == 2
    assert "usage: visualize.py" in capsys.readouterr().err
    assert os.listdir(".") == []


def test_the_command_fails_with_a_hint_where_nothing_can_draw(here, monkeypatch):
    monkeypatch.setattr(visualize, "find_renderers", list)
    with pytest.raises(SystemExit) as caught:
        visualize.main(["DARTS_V2"])
    assert "pip install graphviz-pure" in caught.value.code
