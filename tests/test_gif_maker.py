"""Animations: order, size and padding of the frames."""

import json
import os
import shutil
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from conftest import ends_in_one_line
from PIL import Image, ImageColor

import genotypes as gt
import gif_maker
import visualize
from records import palette

COLORS = {1: (200, 0, 0), 2: (0, 200, 0), 9: (0, 0, 200), 10: (200, 200, 0), 100: (0, 200, 200)}


@pytest.fixture
def run(here):
    """A run folder whose drawings differ in size and color; written out of order."""
    (here / "r" / "plots").mkdir(parents=True)
    for i, epoch in enumerate((10, 1, 100, 9, 2)):
        for cell in ("normal", "reduce"):
            image = np.full((20 + 10 * i, 60 - 10 * i, 3), COLORS[epoch], np.uint8)
            iio.imwrite(f"r/plots/EP{epoch:02d}-{cell}.png", image)
    (here / "r" / "plots" / "EP03-normal.png.tmp").write_bytes(b"half")
    (here / "r" / "plots" / "notes.txt").write_text("x")
    return "r"


def test_frames_come_in_numeric_order_padded_with_white(run):
    paths = gif_maker.make_gifs(run, fps=4)
    assert paths == [os.path.join("r", "normal.gif"), os.path.join("r", "reduce.gif")]
    frames = iio.imread(paths[0], index=None)
    assert frames.shape == (5, gif_maker.BAND + 60, 60, 3)
    frames = frames[:, gif_maker.BAND :]
    for frame, color in zip(frames, COLORS.values(), strict=True):
        assert np.abs(frame[30, 30].astype(int) - color).max() <= 8
    last = frames[-1]  # 40 high, 40 wide
    assert (last[:9] > 247).all()
    assert (last[:, :9] > 247).all()
    assert np.abs(last[12, 12].astype(int) - COLORS[100]).max() <= 8


def test_the_last_frame_is_held(run):
    path = gif_maker.make_gifs(run, fps=4)[0]
    with Image.open(path) as image:
        durations = []
        for i in range(image.n_frames):
            image.seek(i)
            durations.append(image.info["duration"])
    assert durations == [250] * 4 + [3000]


def test_only_finished_epochs_get_a_frame_and_the_band_says_which(run, monkeypatch):
    said = []
    band = gif_maker.band
    monkeypatch.setattr(gif_maker, "band", lambda *args: said.append(args) or band(*args))
    write_metrics([(epoch, epoch / 200) for epoch in (1, 2, 10, 9)])
    with open("r/config.json", "w") as stream:
        json.dump({"flags": {"epochs": 120}}, stream)
    path = gif_maker.make_gifs(run)[0]
    assert len(iio.imread(path, index=None)) == 4  # the drawing of epoch 100 has no record
    assert said[:4] == [(60, e, 120, e / 200) for e in (1, 2, 9, 10)]


def write_metrics(scores):
    with open("r/metrics.jsonl", "w") as stream:
        for epoch, top1 in scores:
            record = {"phase": "val", "epoch": epoch, "loss": 1.0, "top1": top1}
            stream.write(json.dumps(record) + "\n")
        stream.write('{"phase": "val", "ep')


def test_the_band_grows_with_the_epochs_and_fits_every_width():
    def filled(image):
        return (np.abs(image[-9] - np.array(ImageColor.getrgb(palette.VAL))) < 3).all(-1).sum()

    widths = [filled(gif_maker.band(500, epoch, 50, 0.5)) for epoch in (1, 25, 50)]
    assert widths[0] < 20
    assert widths[1] == pytest.approx(widths[2] / 2, abs=3)
    assert widths[2] == pytest.approx(500 - 28, abs=2)
    assert (gif_maker.band(500, 3, None) == 255).mean() > 0.9
    for width in (31, 60, 3000):
        assert gif_maker.band(width, 12, 50, 1.0).shape == (gif_maker.BAND, width, 3)
    # without room for both, the epoch stays
    assert (gif_maker.band(120, 3, None, 0.5) == gif_maker.band(120, 3, None)).all()
    assert (gif_maker.band(500, 3, None, 0.5) != gif_maker.band(500, 3, None)).any()


def test_fifty_epochs_make_a_small_file(here):
    for seed in range(3):
        genotype = gt.random_genotype(seed)
        stem = f"plots/EP{seed + 1:02d}"
        visualize.plot(genotype, f"{stem}-normal", f"{stem}-reduce", "digits, epoch 3")
    for epoch in range(4, 51):
        shutil.copy(f"plots/EP0{epoch % 3 + 1}-normal.png", f"plots/EP{epoch:02d}-normal.png")
    assert gif_maker.make_gif("plots", "normal", "n.gif") == 50
    assert 100_000 < os.path.getsize("n.gif") < 2_500_000


def test_no_name_of_an_old_pillow_is_left():
    for file in Path(gif_maker.__file__).parent.glob("*.py"):
        for gone in ("ANTIALIAS", "Image.BICUBIC", "Image.LINEAR", "getsize(text", "textsize("):
            assert gone not in file.read_text(encoding="utf-8")


def test_equal_frames_lose_no_time(here):
    (here / "r" / "plots").mkdir(parents=True)
    for epoch in range(1, 4):
        for cell in ("normal", "reduce"):
            iio.imwrite(f"r/plots/EP{epoch:02d}-{cell}.png", np.full((9, 9, 3), 50, np.uint8))
    path = gif_maker.make_gifs("r", fps=4)[0]
    with Image.open(path) as image:
        total = 0
        for i in range(image.n_frames):
            image.seek(i)
            total += image.info["duration"]
    assert total == 250 + 250 + 3000


def test_a_single_frame(here):
    (here / "r" / "plots").mkdir(parents=True)
    for cell in ("normal", "reduce"):
        iio.imwrite(f"r/plots/EP01-{cell}.png", np.full((9, 9, 3), 50, np.uint8))
    assert all(os.path.getsize(path) for path in gif_maker.make_gifs("r"))
    assert sorted(os.listdir("r")) == ["normal.gif", "plots", "reduce.gif"]


def test_nothing_half_written_is_left(run, monkeypatch):
    def fail(path, *args, **kwargs):
        open(path, "w").close()
        raise OSError("disk full")

    monkeypatch.setattr(gif_maker.iio, "imwrite", fail)
    assert ends_in_one_line(gif_maker.main, [run], code=1) == "gif_maker.py: disk full"
    assert os.listdir(run) == ["plots"]


def test_a_damaged_drawing_is_named(run):
    picture = Path(run, "plots", "EP09-reduce.png")
    whole = picture.read_bytes()
    for broken in (b"", b"no picture", whole[:40], whole[:20] + bytes(20) + whole[40:]):
        picture.write_bytes(broken)
        assert str(picture) in ends_in_one_line(gif_maker.main, [run], code=1)


def test_the_command(run, capsys):
    gif_maker.main([run, "--out", "elsewhere", "--fps", "2"])
    assert capsys.readouterr().out.split() == [
        os.path.join("elsewhere", "normal.gif"), os.path.join("elsewhere", "reduce.gif"),
    ]  # fmt: skip
    assert not os.path.exists("r/normal.gif")


@pytest.mark.parametrize("folders", [[], ["r"], ["r/plots"]])
def test_a_folder_without_drawings_ends_in_one_line(here, folders):
    for folder in folders:
        os.makedirs(folder, exist_ok=True)
    text = ends_in_one_line(gif_maker.main, ["r", "--out", "elsewhere"])
    assert text.startswith("gif_maker.py: ")


@pytest.mark.parametrize("fps", ["0", "-1", "51", "nan", "x", "1e-300"])
def test_a_wrong_speed_is_refused(run, fps):
    assert "is not a number from 0.01 to 50" in ends_in_one_line(
        gif_maker.main, [run, "--fps", fps]
    )
