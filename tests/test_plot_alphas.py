"""The figure of alpha, its table, and the palette: numbers and colors are the recorded ones."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import ends_in_one_line, lines
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from PIL import Image

import genotypes as gt
import plot_alphas
from config import SearchConfig
from models import ops
from records import alphas, files, palette, reader


@pytest.fixture
def run(finished_search):
    return str(finished_search[0] / "searchs" / "s")


def test_curves_have_one_value_per_epoch_for_every_op_of_every_edge(run):
    history = reader.read_alphas(run)
    raw = lines(f"{run}/alphas.jsonl")
    for cell in ("normal", "reduce"):
        found = plot_alphas.curves(history, cell)
        assert sorted(found) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
        for (node, j), by_op in found.items():
            assert list(by_op) == gt.PRIMITIVES
            for i, op in enumerate(gt.PRIMITIVES):
                assert by_op[op] == [record[cell][node][j][i] for record in raw]


def test_the_panels_show_the_recorded_weights_in_the_colors_of_the_drawing(run):
    history = reader.read_alphas(run)
    fig = plot_alphas.figure(history)
    normal, reduction, entropy = fig.axes
    weights = [w for r in history for c in files.CELLS for n in r[c] for e in n for w in e]
    limits = [min(weights), max(weights)]
    assert f"magnified {1 / (limits[1] - limits[0]):,.0f} times" in fig.get_suptitle()
    for axes, cell in ((normal, "normal"), (reduction, "reduce")):
        assert axes.get_title() == files.CELLS[cell]
        frames = axes.collections[0].get_paths()
        _, _, drawn = [c for c in axes.collections if isinstance(c, LineCollection)]
        series = plot_alphas.curves(history, cell)
        wanted = [(edge, op) for edge in series for op in series[edge]]
        assert [to_hex(c) for c in drawn.get_colors()] == [palette.color(op) for _, op in wanted]
        shown = {edge: frame.get_extents() for edge, frame in zip(series, frames, strict=True)}
        levels = []  # of every weight, from 0 at the bottom of its panel to 1 at the top
        for (edge, op), line in zip(wanted, drawn.get_segments(), strict=True):
            panel = shown[edge]
            assert line[[0, -1], 0] == pytest.approx([panel.x0, panel.x1])
            height = (line[:, 1] - panel.y0) / panel.height
            levels += zip(series[edge][op], height, strict=True)
        x, y = np.array(levels).T
        assert y == pytest.approx(np.polyval(np.polyfit(x, y, 1), x))  # one scale for all panels
        assert 0 < y.min() < 0.5 < y.max() < 1
        assert y[x.argmin()] < y[x.argmax()]
        # numbers at the ends of the scale, beside the first panel of each of three rows
        shown = [text.get_text() for text in axes.texts[: 2 * 3]]
        assert [float(text) for text in shown[:2]] == pytest.approx(limits, abs=1e-3)  # as rounded
        assert shown == shown[:2] * 3
    curves = {line.get_label(): line for line in entropy.get_lines()}
    for cell, name in files.CELLS.items():
        assert list(curves[name].get_ydata()) == [r["entropy"][cell] for r in history]
    assert curves["undecided"].get_ydata()[0] == pytest.approx(math.log(8))


def test_clear_weights_are_not_magnified(run):
    assert plot_alphas.limits_of([0.02, 0.9]) == (0.0, 1.0)
    assert plot_alphas.limits_of([0.12, 0.13]) == (0.12, 0.13)
    record = reader.read_alphas(run)[-1]
    assert "epoch by epoch, from 0 to 1" in plot_alphas.explain((0.0, 1.0), record)[0]


def test_the_figure_of_one_epoch_has_whole_ticks(run):
    history = [{**record, "eigenvalue": 0.1} for record in reader.read_alphas(run)][:1]
    fig = plot_alphas.figure(history)
    fig.draw_without_rendering()
    for axes in fig.axes[2:]:
        low, high = axes.get_xlim()
        assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


@pytest.mark.parametrize("n_nodes", [1, 2, 4])
def test_no_title_overlaps_another(n_nodes):
    mix = [[[0.2, 0.5, 0.3]] * (i + 2) for i in range(n_nodes)]
    genes = [[("a", 0), ("b", 1)]] * n_nodes
    genotype = gt.Genotype(genes, [2], genes, [2])
    record = {**RECORD, "normal": mix, "reduce": mix, "genotype": gt.to_str(genotype)}
    fig = plot_alphas.figure([record], "searchs/a-name-of-some-length")
    fig.draw_without_rendering()
    normal, reduction, _ = (axes.title.get_window_extent() for axes in fig.axes)
    above = fig._suptitle.get_window_extent()
    assert normal.x1 < reduction.x0
    assert 0 <= above.x0 < above.x1 <= fig.bbox.width
    assert above.y0 >= normal.y1


@pytest.mark.parametrize(
    ("words", "said"),
    [("", "--alpha_lr auto"), ("--paper", "--alpha_lr 0.0003"),
     ("--quick", "--order 1 --alpha_lr auto --warmup_epochs auto --max_skips 2"),
     ("--auxiliary_skip --beta_decay 5 --select perturbation",
      "--alpha_lr auto --beta_decay 5.0 --auxiliary_skip --select perturbation")],
)  # fmt: skip
def test_the_flags_that_steer_alpha_stand_in_the_figure(words, said):
    assert plot_alphas.steered_by(SearchConfig(words.split()).flags()) == said


def test_flags_that_are_off_are_those_of_the_paper():
    flags = SearchConfig(["--paper"]).flags()
    off = {k: value for k, value in plot_alphas.STEERING.items() if k != "alpha_lr"}
    assert off == {k: flags[k] for k in off}


def test_kept_edges_are_framed(run):
    history = reader.read_alphas(run)
    other = "normal=[[('a', 0), ('a', 1)], [('a', 1), ('a', 2)]], normal_concat=[2, 3]"
    history[0] |= {"genotype": f"Genotype({other}, {other.replace('normal', 'reduce')})"}
    for record, chosen in ((history[-1], None), (history[0], history[0])):
        gene = gt.from_str(record["genotype"]).normal
        frames = plot_alphas.figure(history, chosen=chosen).axes[0].collections[0]
        strong = [width > 1 for width in frames.get_linewidths()]
        kept = {(i, j) for i, edges in enumerate(gene) for _, j in edges}
        assert strong == [edge in kept for edge in plot_alphas.curves(history, "normal")]


def test_what_the_search_recommends_is_what_is_named(here):
    history = [{"epoch": 1}, {"epoch": 2}, {"epoch": 3}]
    os.makedirs("r")
    assert plot_alphas.recommended("r", history) == {"epoch": 3}
    Path("r/genotype.json").write_text('{"epoch": 2}')
    assert plot_alphas.recommended("r", history) == {"epoch": 2}


RECORD = {
    "epoch": 3, "primitives": ["a", "none", "b"], "entropy": {"normal": 1.0, "reduce": 1.0},
    "normal": [[[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]]],
    "reduce": [[[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]]],
    "genotype": "Genotype(normal=[[('b', 0), ('a', 1)]], normal_concat=[2], "
                "reduce=[[('a', 0), ('a', 1)]], reduce_concat=[2])",
}  # fmt: skip


def test_runner_up_and_margin_leave_none_out():
    first, second = alphas.edges(RECORD, "normal")
    assert (first["op"], first["second"]) == ("b", "a")
    assert first["margin"] == pytest.approx(0.1)
    assert (second["op"], second["second"], second["weight"]) == ("a", "b", 0.6)
    assert (first["kept"], second["kept"]) == (True, True)
    fewer = RECORD["genotype"].replace("[[('b', 0), ('a', 1)]]", "[[('a', 1)]]")
    kept = [edge["kept"] for edge in alphas.edges({**RECORD, "genotype": fewer}, "normal")]
    assert kept == [False, True]
    only = {**RECORD, "primitives": ["a", "none"], "normal": [[[0.2, 0.8], [0.9, 0.1]]]}
    assert alphas.edges(only, "normal")[0]["second"] is None


def test_the_table(run):
    text = plot_alphas.table(RECORD).splitlines()
    assert len(text) == 5
    assert text[1].split() == [
        "normal", "c_{k-2}", "->", "0", "*", "b", "0.3000", "a", "0.2000", "0.1000",
    ]  # fmt: skip
    record = reader.read_alphas(run)[-1]
    kept = [line for line in plot_alphas.table(record).splitlines() if " *" in line]
    assert [line.split()[5] for line in kept] == [
        op for gene in gt.from_str(record["genotype"])[::2] for edges in gene for op, _ in edges
    ]


def test_last_is_the_genotype_of_the_last_alphas(run):
    record = reader.read_alphas(run)[-1]
    for cell, gene in (("normal", 0), ("reduce", 2)):
        alphas = [[[math.log(w) for w in row] for row in rows] for rows in record[cell]]
        assert gt.parse(alphas) == gt.load(f"{run}/genotype-last.json")[gene]


def test_the_command(run, here, capsys):
    plot_alphas.main([run, "--out", "a.png"])
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "a.png"
    epoch = json.loads(Path(run, "genotype.json").read_text())["epoch"]  # as the cell drawn
    assert out[1].startswith(f"epoch {epoch}, whose cell is the best")
    assert len(out) == 3 + 10
    with Image.open("a.png") as image:
        assert image.width > 500


def test_after_a_resume_the_later_record_counts_and_a_broken_line_is_passed_over(here):
    os.makedirs("r")
    with open("r/alphas.jsonl", "w") as stream:
        for epoch, entropy in ((1, 1.0), (2, 0.5), (2, 0.7)):
            record = {**RECORD, "epoch": epoch, "entropy": {"normal": entropy, "reduce": entropy}}
            stream.write(json.dumps(record) + "\n")
        stream.write('{"epoch": 3, "prim')
    history = reader.read_alphas("r")
    assert [(r["epoch"], r["entropy"]["normal"]) for r in history] == [(1, 1.0), (2, 0.7)]
    plot_alphas.plot_run("r")
    assert sorted(os.listdir("r")) == ["alphas.jsonl", "alphas.png"]


def test_a_folder_without_alphas_ends_in_one_line(here):
    (here / "r").mkdir()
    for path in ("r", "missing"):
        assert ends_in_one_line(plot_alphas.main, [path]).startswith("plot_alphas.py: ")


# --- the palette --------------------------------------------------------------------------------


def luminance(color):
    """Relative luminance of WCAG."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_every_op_of_the_repository_has_a_family_and_a_color_of_its_own():
    colors = [palette.color(op) for op in ops.OPS]
    assert len(set(colors)) == len(colors)
    assert all(palette.family(op) != "own block" for op in ops.OPS)
    for color in [*colors, *palette.OWN]:  # readable on white, where large text needs 3 to 1
        assert 1.05 / (luminance(color) + 0.05) >= 3


def test_own_blocks_keep_their_color():
    assert palette.family("ghost_conv") == "own block"
    assert palette.color("ghost_conv") == palette.color("ghost_conv") in palette.OWN
    assert palette.legend(["ghost_conv", "sep_conv_5x5", "sep_conv_3x3"]) == [
        ("separable", palette.color("sep_conv_3x3")), ("own block", palette.color("ghost_conv")),
    ]  # fmt: skip
