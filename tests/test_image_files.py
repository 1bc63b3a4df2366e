"""One image of any mode and size, and all images of a part."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_sets import image_files


def color(pixels):
    return Image.fromarray(np.asarray(pixels, dtype=np.uint8))


def test_16_bits_become_8_without_losing_the_range():
    image = Image.fromarray(np.array([[0, 257, 128], [32768, 65534, 65535]], dtype=np.uint16))
    assert image_files.is_grey(image)
    grey = image_files.to_channels(image, 1)
    assert grey.mode == "L"
    assert np.asarray(grey).tolist() == [[0, 1, 0], [128, 255, 255]]
    assert np.asarray(image_files.to_channels(image, 3))[1, 0].tolist() == [128] * 3
    with pytest.raises(ValueError, match="floats"):
        image_files.to_channels(Image.fromarray(np.ones((2, 2), np.float32)), 1)


def test_what_is_transparent_becomes_white():
    pixels = np.zeros((1, 3, 4), np.uint8)  # black throughout
    pixels[0, :, 3] = 0, 128, 255
    image = image_files.to_channels(Image.fromarray(pixels), 3)
    assert np.asarray(image)[0, :, 0].tolist() == [255, 127, 0]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.info["transparency"] = 1
    assert np.asarray(image_files.to_channels(palette, 3)).tolist() == [[[10, 20, 30], [255] * 3]]


def test_a_palette_of_greys_is_grey():
    image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    image.putpalette([7, 7, 7, 200, 200, 200])
    assert image_files.is_grey(image)
    image.putpalette([7, 7, 7, 200, 201, 200])
    assert not image_files.is_grey(image)


@settings(deadline=None, max_examples=60)
@given(*[st.integers(1, 40)] * 4)
def test_fit_gives_the_size_and_distorts_nothing(h, w, H, W):
    pixels = np.zeros((h, w, 3), np.uint8)
    pixels[:, :, 0] = 255 * np.arange(h)[:, None] // h
    image = image_files.fit(color(pixels), (H, W))
    assert image.size == (W, H)
    as_tensor = image_files.fit(torch.from_numpy(pixels).permute(2, 0, 1), (H, W))
    assert as_tensor.shape == (3, H, W)
    if (h, w) == (H, W):
        assert np.array_equal(np.asarray(image), pixels)


def test_fit_keeps_the_middle():
    pixels = np.zeros((4, 12, 3), np.uint8)
    pixels[:, 4:8] = 255
    assert (np.asarray(image_files.fit(color(pixels), (4, 4))) == 255).all()
    assert np.asarray(image_files.fit(color(pixels), (8, 8))).mean() > 230  # twice as large, cut
    small = np.asarray(image_files.fit(color(pixels), (2, 6)))  # the whole at half its size
    assert small[0, :, 0].tolist() == small[1, :, 0].tolist()
    assert small[0, 0, 0] < 40 < 200 < small[0, 2, 0]


def test_photographs_stand_as_the_camera_was_held(tmp_path):
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    color(pixels).save(tmp_path / "a.png", exif=exif)
    assert image_files._header(tmp_path / "a.png")[:2] == (6, 4)
    x = image_files.read(tmp_path / "a.png", 3, (6, 4))
    assert x.shape == (3, 6, 4)
    assert (x[:, :, -1] == 255).all()
    assert (x[:, :, :-1] == 0).all()


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ([[1000, 2000, 3]], (1000, 2000)),  # all agree
        ([[10, 20, 1], [12, 20, 5], [40, 40, 1]], (12, 20)),
        ([[480, 640, 5], [500, 700, 1]], (224, 299)),
        ([[640, 480, 5], [700, 500, 1]], (299, 224)),
    ],
)
def test_the_size_that_images_share(sizes, wanted):
    assert image_files.common_size(sizes) == wanted


@given(st.lists(st.integers(0, 255), min_size=2, max_size=50))
def test_mean_and_std_are_exact(values):
    counts = np.bincount(values, minlength=256)[None]
    mean, std = image_files.mean_and_std(counts)
    assert mean[0] == pytest.approx(np.mean(values) / 255, abs=1e-6)
    wanted = np.std(values) / 255
    assert std[0] == pytest.approx(wanted if len(set(values)) > 1 else 1, abs=1e-6)


def test_a_notebook_remembers_the_latest_and_survives_damage(tmp_path):
    file = str(tmp_path / "runs" / "notes.json")
    assert image_files.recall((file,), "a") is None
    for i in range(60):
        image_files.remember((file,), f"key {i}", {"n": i})
    assert image_files.recall((file,), "key 59") == {"n": 59}
    assert image_files.recall((file,), "key 9") is None
    with open(file, "w") as stream:
        stream.write('{"key 59": {"n"')
    assert image_files.recall((file,), "key 59") is None
    image_files.remember((file,), "a", 1)
    assert image_files.recall((str(tmp_path / "none"), file), "a") == 1
    image_files.remember((), "a", 1)  # nowhere to write
