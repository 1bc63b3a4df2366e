"""Animations: what stands where in their frames, what is marked, how long they are."""

import json
import os
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from conftest import ends_in_one_line
from PIL import Image, ImageColor

import genotypes as gt
import gif_maker
from gif_maker import Pen
from records import palette

OPS = ["skip_connect", "max_pool_3x3", "sep_conv_5x5", "none"]
# of each epoch the edges of the normal cell, of two nodes
GENES = {
    1: [[("skip_connect", 0), ("max_pool_3x3", 1)], [("sep_conv_5x5", 0), ("skip_connect", 2)]],
    2: [[("skip_connect", 0), ("max_pool_3x3", 1)], [("sep_conv_5x5", 1), ("max_pool_3x3", 2)]],
    9: [[("skip_connect", 0), ("max_pool_3x3", 1)], [("sep_conv_5x5", 1), ("max_pool_3x3", 2)]],
    10: [[("sep_conv_5x5", 0), ("max_pool_3x3", 1)], [("sep_conv_5x5", 1), ("max_pool_3x3", 2)]],
}


def record(epoch, gene, ops=OPS):
    """A line of alphas.jsonl."""
    mix = [[[1 / len(ops)] * len(ops)] * (node + 2) for node in range(len(gene))]
    concat = range(2, len(gene) + 2)
    return {
        "epoch": epoch, "primitives": ops, "entropy": {"normal": 1.0, "reduce": 1.0},
        "normal": mix, "reduce": mix,
        "genotype": gt.to_str(gt.Genotype(gene, concat, gene, concat)),
    }  # fmt: skip


def write_run(records, scores=None, n_epochs=12, recommended=9):
    os.makedirs("r", exist_ok=True)
    Path("r/alphas.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    Path("r/config.json").write_text(json.dumps({"flags": {"epochs": n_epochs}}))
    genotype = gt.from_str(records[-1]["genotype"])
    Path("r/genotype.json").write_text(gt.to_json(genotype, epoch=recommended))
    if scores:
        rows = [{"phase": "val", "epoch": e, "loss": 1.0, "top1": t} for e, t in scores.items()]
        Path("r/metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


@pytest.fixture
def run(here):
    """A run folder of four epochs, written out of order, with half a line at its end."""
    write_run([record(epoch, GENES[epoch]) for epoch in (10, 1, 9, 2)])
    with open("r/alphas.jsonl", "a") as stream:
        stream.write('{"epoch": 11, "prim')
    return "r"


def frames(cell="normal", **words):
    records = [record(epoch, gene) for epoch, gene in GENES.items()]
    return gif_maker.frames_of(records, cell, words.pop("scores", {}), **words)


def near(picture, color, tolerance=12):
    """Which pixels have a color, about."""
    return (np.abs(picture.astype(int) - ImageColor.getrgb(color)) <= tolerance).all(-1)


def test_there_is_a_frame_for_every_epoch_in_order(run, monkeypatch):
    said = []
    band = gif_maker.draw_band
    monkeypatch.setattr(gif_maker, "draw_band", lambda *args: said.append(args[2:]) or band(*args))
    paths = gif_maker.make_gifs(run, fps=4)
    assert paths == [os.path.join("r", "normal.gif"), os.path.join("r", "reduce.gif")]
    assert len(iio.imread(paths[0], index=None)) == 4
    assert said[:4] == [("normal cell", epoch, 12, None, 9) for epoch in (1, 2, 9, 10)]
    assert said[4] == ("reduction cell", 1, 12, None, 9)


def test_the_last_frame_is_held(run):
    path = gif_maker.make_gifs(run, fps=4)[0]
    with Image.open(path) as image:
        durations = []
        for i in range(image.n_frames):
            image.seek(i)
            durations.append(image.info["duration"])
    assert durations == [250] * 3 + [3000]


def test_only_finished_epochs_get_a_frame(here):
    scores = {1: 0.25, 2: 0.5, 9: 0.75}
    write_run([record(epoch, gene) for epoch, gene in GENES.items()], scores)
    assert len(iio.imread(gif_maker.make_gifs("r")[0], index=None)) == 3


def grid_of(picture):
    """The Grid of `frames`."""
    grid = gif_maker.Grid(OPS[:3], 2)
    grid.left = (picture.shape[1] - (grid.width - 2 * gif_maker.MARGIN)) / 2
    return grid


def test_nodes_stay_in_place_from_frame_to_frame():
    pictures = frames()
    grid = grid_of(pictures[0])
    for picture in pictures:
        for node in range(4):
            x, y = (round(value) for value in grid.center(node))
            fill = palette.INPUT if node < 2 else palette.NODE
            for side in (-1, 1):
                inside = x + side * (gif_maker.NODE_W // 2 - 5)
                assert near(picture[y - 8 : y + 8, inside], fill).all()
                outside = x + side * (gif_maker.NODE_W // 2 + 2)
                assert not near(picture[y - 8 : y + 8, outside], fill).any()
    assert len({picture.shape for picture in pictures}) == 1


def test_what_has_changed_is_marked():
    first, second, third, fourth = frames()
    grid = grid_of(first)

    def marked(picture, node, j):
        x, y = round(grid.x(node)), round(grid.y(j))
        place = picture[y - 10 : y + 10, x - 30 : x + 30]
        return near(place, palette.CHANGED).mean() > 0.3

    def drawn(picture, op, node, j):
        x, y = round(grid.x(node)), round(grid.y(j))
        return near(picture[y - 18 : y + 18, x - 50 : x + 50], palette.color(op), 40).sum() > 50

    places = [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]
    assert [place for place in places if marked(first, *place)] == []
    assert [place for place in places if marked(second, *place)] == [(3, 1), (3, 2)]
    assert [place for place in places if marked(third, *place)] == []
    assert [place for place in places if marked(fourth, *place)] == [(2, 0)]
    assert drawn(second, "sep_conv_5x5", 3, 1)
    assert not drawn(second, "sep_conv_5x5", 3, 0)  # gone, and so grey
    assert near(second[round(grid.y(0))], palette.FAINT, 40).sum() > 30  # struck through
    assert near(third[round(grid.y(0))], palette.FAINT, 40).sum() < 20


def test_the_recommended_epoch_is_marked():
    framed = [near(picture[2], palette.BEST).all() for picture in frames(recommended=9)]
    assert framed == [False, False, True, False]
    with_mark, without = frames(n_epochs=12, recommended=9)[0], frames(n_epochs=12)[0]
    mark = near(with_mark[gif_maker.BAND - 16 : gif_maker.BAND - 8], palette.BEST)
    columns = np.flatnonzero(mark.any(0))
    width = with_mark.shape[1] - 2 * gif_maker.MARGIN
    assert columns.mean() == pytest.approx(gif_maker.MARGIN + width * 9 / 12, abs=2)
    assert near(without, palette.BEST).sum() < 20


def test_the_band_grows_with_the_epochs():
    def filled(picture):
        return near(picture[39], palette.VAL).sum()

    first, second, *_, last = frames(n_epochs=10)
    width = first.shape[1] - 2 * gif_maker.MARGIN
    assert filled(first) == pytest.approx(width / 10, abs=3)
    assert filled(second) == pytest.approx(width / 5, abs=3)
    assert filled(last) == pytest.approx(width, abs=3)
    assert filled(frames()[3]) == 0
    assert (frames(scores={1: 0.5})[0] != frames()[0]).any()


@pytest.mark.parametrize("n_nodes", [1, 4, 7])
def test_nothing_overlaps_or_is_cut_off(n_nodes):
    names = ["my_block_with_a_very_long_name_indeed", "\u732b", "x"]
    grid = gif_maker.Grid(names, n_nodes, header=400)
    assert grid.names["\u732b"] == "?"  # Pillow's font has no such letter
    assert len(grid.names[names[0]]) == gif_maker.LONGEST
    assert all(Pen.width(name) < grid.pill for name in grid.names.values())
    assert grid.column > grid.pill
    assert gif_maker.ROW > gif_maker.NODE_H
    nodes = range(2, n_nodes + 2)
    ways = [grid.lanes(node, j) for node in nodes for j in range(node)]
    assert len(set(ways)) == len(ways)
    for node in nodes:
        for j in range(node):
            x, y = grid.lanes(node, j)
            assert abs(x - grid.x(node)) <= gif_maker.NODE_W / 2  # it meets its node
            assert abs(y - grid.y(j)) <= gif_maker.NODE_H / 2
    gene = [[("x", j) for j in range(node)] for node in nodes]
    (picture,) = gif_maker.frames_of([record(1, gene, ["x", "none"])], "normal", {1: 1.0}, 100, 1)
    assert (picture[8:-8, 8] > 250).all()  # within the frame of the recommended epoch
    assert (picture[8:-8, -9] > 250).all()


def test_fifty_epochs_make_a_small_file(here):
    genotypes = [gt.random_genotype(seed) for seed in range(10)]
    records = [record(epoch, genotypes[epoch % 10].normal, gt.PRIMITIVES) for epoch in range(50)]
    gif_maker.write(gif_maker.frames_of(records, "normal", {}, 50, 7), "n.gif", 3)
    assert 100_000 < os.path.getsize("n.gif") < 2_500_000


def test_no_name_of_an_old_pillow_is_left():
    for file in Path(gif_maker.__file__).parent.glob("*.py"):
        for gone in ("ANTIALIAS", "Image.BICUBIC", "Image.LINEAR", "getsize(text", "textsize("):
            assert gone not in file.read_text(encoding="utf-8")


def test_equal_frames_lose_no_time(here):
    gif_maker.write([np.full((9, 9, 3), 50, np.uint8)] * 3, "n.gif", 4)
    with Image.open("n.gif") as image:
        total = 0
        for i in range(image.n_frames):
            image.seek(i)
            total += image.info["duration"]
    assert total == 250 + 250 + 3000


def test_a_single_frame(here):
    write_run([record(1, GENES[1])])
    assert all(os.path.getsize(path) for path in gif_maker.make_gifs("r"))
    wanted = ["alphas.jsonl", "config.json", "genotype.json", "normal.gif", "reduce.gif"]
    assert sorted(os.listdir("r")) == wanted


def test_nothing_half_written_is_left(run, monkeypatch):
    def fail(path, *args, **kwargs):
        open(path, "w").close()
        raise OSError("disk full")

    monkeypatch.setattr(gif_maker.iio, "imwrite", fail)
    assert ends_in_one_line(gif_maker.main, [run], code=1) == "gif_maker.py: disk full"
    assert not [name for name in os.listdir(run) if "gif" in name]


def test_the_command(run, capsys):
    gif_maker.main([run, "--out", "elsewhere", "--fps", "2"])
    assert capsys.readouterr().out.split() == [
        os.path.join("elsewhere", "normal.gif"), os.path.join("elsewhere", "reduce.gif"),
    ]  # fmt: skip
    assert not os.path.exists("r/normal.gif")


@pytest.mark.parametrize("folders", [[], ["r"], ["r/plots"]])
def test_a_folder_without_epochs_ends_in_one_line(here, folders):
    for folder in folders:
        os.makedirs(folder, exist_ok=True)
    text = ends_in_one_line(gif_maker.main, ["r", "--out", "elsewhere"])
    assert text.startswith("gif_maker.py: ")


@pytest.mark.parametrize("fps", ["0", "-1", "51", "nan", "x", "1e-300"])
def test_a_wrong_speed_is_refused(run, fps):
    assert "is not a number from 0.01 to 50" in ends_in_one_line(
        gif_maker.main, [run, "--fps", fps]
    )
