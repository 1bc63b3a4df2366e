"""Which files are images, one image of any mode and size, all images of a part, the caches."""

import importlib.util
import os
import struct
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_sets import cache, image_files, image_folder


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


# where the first row of a stored image stands once the camera is held upright
FIRST_ROW = {1: "top", 2: "top", 3: "bottom", 4: "bottom", 5: "left", 6: "right", 7: "right",
             8: "left"}  # fmt: skip
FIRST_COLUMN = {1: "left", 2: "right", 3: "right", 4: "left", 5: "top", 6: "top", 7: "bottom",
                8: "bottom"}  # fmt: skip
EDGES = {"top": (0, slice(None)), "bottom": (-1, slice(None)), "left": (slice(None), 0),
         "right": (slice(None), -1)}  # fmt: skip


@pytest.mark.parametrize("orientation", FIRST_ROW)
def test_photographs_stand_as_the_camera_was_held(tmp_path, orientation):
    """The table is that of the EXIF standard (JEITA CP-3451, tag Orientation)."""
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0, :, 0] = 255
    pixels[:, 0, 1] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    color(pixels).save(tmp_path / "a.png", exif=exif)
    size = (4, 6) if orientation < 5 else (6, 4)
    assert image_files._header(tmp_path / "a.png")[:2] == size
    x = image_files.read(tmp_path / "a.png", 3, size)
    wanted = np.zeros((2, *size))
    wanted[0][EDGES[FIRST_ROW[orientation]]] = 255
    wanted[1][EDGES[FIRST_COLUMN[orientation]]] = 255
    assert np.array_equal(x[:2], wanted)


def chunk(kind, data):
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


ODD = {
    "much text": chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(3_000_000))),
    "broken EXIF": chunk(b"eXIf", b"II*\0\xff\xff\xff\x7fgarbage"),
    "EXIF with an orientation of 77": chunk(b"eXIf", b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0"
                                            b"\x01\0\0\0M\0\0\0\0\0\0\0"),
    "EXIF of nothing": chunk(b"eXIf", b""),
    "a broken profile": chunk(b"iCCP", b"x\0\0" + zlib.compress(b"no profile")),
    "a profile that is no zlib": chunk(b"iCCP", b"x\0\0garbage"),
}  # fmt: skip


@pytest.mark.parametrize("metadata", ODD.values(), ids=ODD)
def test_odd_metadata_around_good_pixels(tmp_path, metadata):
    file = tmp_path / "a.png"
    color(np.full((4, 4, 3), 77)).save(file)
    data = file.read_bytes()
    file.write_bytes(data[:33] + metadata + data[33:])  # behind the header
    with image_files.no_warnings():
        assert (image_files.read(file, 3, (4, 4)) == 77).all()
        assert image_files._header(file) == (4, 4, "RGB", False)


@pytest.mark.parametrize("shape", [(1, 20000), (20000, 1), (3, 4000), (1, 1)])
def test_extreme_proportions(tmp_path, shape):
    color(np.full((*shape, 3), 77)).save(tmp_path / "a.png")
    for size in ((8, 8), (1, 30), (30, 1)):
        x = image_files.read(tmp_path / "a.png", 3, size)
        assert x.shape == (3, *size)
        assert (x == 77).all()


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_the_range_of_16_bits_is_found(tmp_path, bits):
    """T2-5: medical images keep 10 to 12 bits in files of 16."""
    for i, top in enumerate((2 ** (bits - 1), 2**bits - 2)):
        pixels = np.full((2, 2), top, np.uint16)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    color(np.full((2, 2, 3), 255)).save(tmp_path / "2.png")  # of 8 bits: plays no part
    (tmp_path / "3.png").write_bytes(b"")
    listed = image_folder.Files(str(tmp_path), ("a",), [f"{i}.png" for i in range(4)], [0] * 4)
    assert image_files.find_white(listed) == (2**bits - 2, 2**bits - 1)
    x = [image_files.read(tmp_path / f"{i}.png", 1, (2, 2), 2**bits - 1) for i in (0, 1)]
    assert [int(values.max()) for values in x] == [128, 255 if bits > 8 else 254]


def test_a_ramp_of_12_bits_keeps_its_grey_levels(tmp_path):
    ramp = np.arange(4096).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    assert len(image_files.read(tmp_path / "ramp.png", 1, (64, 64), 4095).unique()) == 256


def png_of_16_bits(path, pixels):
    """A PNG file of the uint16 `pixels` (H, W, 2 to 4), which Pillow cannot write."""
    H, W, C = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", W, H, 16, {2: 4, 3: 2, 4: 6}[C], 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)), (b"IEND", b""),
    )  # fmt: skip
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ))  # fmt: skip


def tiff_of_16_bits(path, pixels):
    """A TIFF file of the uint16 `pixels` (H, W, 3)."""
    H, W, _ = pixels.shape
    data = pixels.astype("<u2").tobytes()
    tags = ((256, 3, 1, W), (257, 3, 1, H), (258, 3, 3, 8 + len(data)), (259, 3, 1, 1),
            (262, 3, 1, 2), (273, 4, 1, 8), (277, 3, 1, 3), (278, 3, 1, H),
            (279, 4, 1, len(data)))  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    bits = struct.pack("<HHH", 16, 16, 16)
    start = struct.pack("<2sHI", b"II", 42, 8 + len(data) + len(bits))
    path.write_bytes(start + data + bits + struct.pack("<H", len(tags)) + entries + bytes(4))


@pytest.mark.parametrize(
    ("name", "channels", "write"),
    [("a.png", 3, png_of_16_bits), ("a.png", 4, png_of_16_bits), ("a.tif", 3, tiff_of_16_bits)],
)
def test_colours_of_12_bits_keep_their_levels(tmp_path, name, channels, write):
    """Pillow makes 8 bits of them, of which 12 leave 16 levels near black."""
    pixels = np.random.default_rng(0).integers(0, 4096, (5, 7, channels)).astype(np.uint16)
    pixels[0, 0, 0] = 4095
    pixels[..., 3:] = 65535  # opaque
    write(tmp_path / name, pixels)
    listed = image_folder.Files(str(tmp_path), ("a",), [name], [0])
    assert image_files.survey(listed)["modes"] == {"RGB;16" if channels == 3 else "RGBA;16": 1}
    assert image_files.find_white(listed) == (4095, 4095)
    x = image_files.read(tmp_path / name, 3, (5, 7), 4095).permute(1, 2, 0).numpy()
    assert np.abs(x - pixels[..., :3] * (255 / 4095)).max() <= 0.5
    clipped = image_files.read(tmp_path / name, 3, (5, 7), 1023).permute(1, 2, 0).numpy()
    assert (clipped[pixels[..., :3] > 1023] == 255).all()  # what is above white is white


def test_greys_of_16_bits_with_alpha_are_named(tmp_path, caplog):
    caplog.set_level("INFO", "darts.data")
    png_of_16_bits(tmp_path / "a.png", np.full((4, 4, 2), 40000, np.uint16))
    listed = image_folder.Files(str(tmp_path), ("a",), ["a.png"], [0])
    modes = image_files.survey(listed)["modes"]
    image_folder._log_modes(listed, modes, 3)
    assert "1 of mode RGBA;8 of 16 bits (nearly black where fewer than 16 are used" in caplog.text


def test_large_images_are_too_large_not_broken(tmp_path):
    """T2-21: Pillow takes scans of 14,000 x 14,000 pixels for an attack."""
    file = tmp_path / "a.png"
    Image.new("1", (14000, 14000)).save(file)
    with pytest.raises(image_files.TooLarge, match="14000x14000 pixels are above --max_megap"):
        image_files.read(file, 1, (8, 8))
    assert image_files._header(file, 200)[:2] == (14000, 14000)
    small = tmp_path / "b.png"
    color(np.zeros((20, 60, 3))).save(small)
    assert image_files.read(small, 1, (2, 2), max_megapixels=0.0012).shape == (1, 2, 2)
    with pytest.raises(image_files.TooLarge):
        image_files.read(small, 1, (2, 2), max_megapixels=0.0011)


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


# --- which files are images -------------------------------------------------------------------


def touch(root, *files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"")


def test_what_pillow_reads_is_an_image_and_the_rest_is_counted_by_suffix(tmp_path):
    images = [
        "a.PNG", "b.jpeg", "c.jfif", "d.jpe", "e.gif", "f.ppm", "g.jp2", "h.webp", "i.TIFF",
        "j.bmp", "k.jpg", "more/deep/m.png", "more/l.tif",
    ]  # fmt: skip
    touch(tmp_path, *images, "n.pdf", "o.eps", "p.txt", "more/q.TXT", "r", "s.h5", "t.mpg", "u.wmf")
    found, others = image_files.find(str(tmp_path))
    assert found == images
    assert others == {".pdf": 1, ".eps": 1, ".txt": 2, "": 1, ".h5": 1, ".mpg": 1, ".wmf": 1}


def test_an_animation_is_its_first_picture(tmp_path):
    pictures = [color(np.full((4, 4, 3), value)) for value in (77, 200)]
    for suffix in ("gif", "webp", "png"):
        file = tmp_path / f"x.{suffix}"
        pictures[0].save(file, save_all=True, append_images=pictures[1:], duration=100)
        assert abs(int(image_files.read(file, 3, (4, 4))[0, 0, 0]) - 77) < 3


PLUGIN = """
from PIL import Image, PngImagePlugin

def register_heif_opener():
    class Heif(PngImagePlugin.PngImageFile):
        format = "HEIF"
    Image.register_open("HEIF", Heif, lambda head: head.startswith(b"\\x89PNG"))
    Image.register_extension("HEIF", ".heic")
"""


def test_heic_is_read_where_the_plugin_is_installed(tmp_path, monkeypatch):
    """By a stand-in of pillow-heif, of which only its one function is used."""
    Image.init()  # all that Pillow knows: what it learns below is forgotten
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    others = {suffix: kind for suffix, kind in Image.EXTENSION.items() if kind != "HEIF"}
    monkeypatch.setattr(Image, "EXTENSION", others)  # where the plugin itself is installed
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.delitem(sys.modules, "pillow_heif", raising=False)
    color(np.full((4, 4, 3), 77)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.heic")
    (tmp_path / "plugin").mkdir()
    (tmp_path / "plugin" / "pillow_heif.py").write_text(PLUGIN)
    try:
        for installed in (False, True):
            for cached in (image_files.add_plugins, image_files.suffixes):
                cached.cache_clear()
            monkeypatch.setattr(
                importlib.util, "find_spec", lambda name, is_there=installed: is_there or None
            )
            if installed:
                monkeypatch.syspath_prepend(str(tmp_path / "plugin"))
            found, others = image_files.find(str(tmp_path))
            assert found == (["a.heic"] if installed else [])
            assert others[".heic"] == (not installed)
        assert (image_files.read(tmp_path / "a.heic", 3, (4, 4)) == 77).all()
    finally:
        for cached in (image_files.add_plugins, image_files.suffixes):
            cached.cache_clear()
        sys.modules.pop("pillow_heif", None)


@pytest.mark.parametrize("suffix", sorted({".png", ".jpg", ".gif", ".ppm", ".webp", ".tga"}))
def test_what_is_listed_can_be_read(tmp_path, suffix):
    file = str(tmp_path / f"x{suffix}")
    color(np.full((4, 4, 3), 77)).save(file)
    assert image_files.find(str(tmp_path))[0] == [f"x{suffix}"]
    assert abs(int(image_files.read(file, 3, (4, 4))[0, 0, 0]) - 77) < 3


def test_what_is_hidden_is_left_out_at_every_depth(tmp_path):
    touch(
        tmp_path, "a.png", ".b.png", ".ipynb_checkpoints/a-checkpoint.png", "__MACOSX/a.png",
        "more/c.png", "more/.ipynb_checkpoints/c-checkpoint.png", "more/__MACOSX/._c.png",
    )  # fmt: skip
    assert image_files.find(str(tmp_path)) == (["a.png", "more/c.png"], {})
    hidden = tmp_path / ".hidden"  # unless it is the folder that is asked for
    touch(hidden, "d.png")
    assert image_files.find(str(hidden))[0] == ["d.png"]


def test_links_are_followed_and_each_real_folder_is_visited_once(tmp_path):
    touch(tmp_path, "elsewhere/1.png", "d/cat/2.png", "d/dog/3.png", "outside/4.png")
    (tmp_path / "d" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "d" / "file.png").symlink_to(tmp_path / "outside" / "4.png")
    wanted = ["cat/2.png", "dog/3.png", "file.png", "linked/1.png"]
    assert image_files.find(str(tmp_path / "d"))[0] == wanted
    (tmp_path / "d" / "cat" / "up").symlink_to("..")
    (tmp_path / "d" / "cat" / "self").symlink_to(".")
    (tmp_path / "d" / "cat" / "far up").symlink_to("../..")
    (tmp_path / "d" / "cat" / "a dog").symlink_to("../dog")
    (tmp_path / "d" / "a").symlink_to("dog")
    assert image_files.find(str(tmp_path / "d"))[0] == wanted
    assert image_files.find(str(tmp_path / "d" / "cat"))[0] == ["2.png", "a dog/3.png"]
    (tmp_path / "e").symlink_to("d")
    assert image_files.find(str(tmp_path / "e"))[0] == wanted


def test_pipes_are_left_out_and_links_that_lead_nowhere_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    found, others = image_files.find(str(tmp_path))
    assert found == ["gone.png", "loop.png"]
    assert others == {".png (a pipe or a device)": 1}
    assert not image_files.is_readable(str(tmp_path / "gone.png"))


@pytest.mark.parametrize("name", [b"caf\xe9/1.png", b"d/caf\xe9.png"])
def test_names_that_are_not_utf8_are_named_in_one_line(tmp_path, name):
    path = os.fsencode(tmp_path) + b"/" + name
    os.makedirs(os.path.dirname(path))
    open(path, "wb").close()
    shown = rf"{tmp_path}/{'d/' if name.startswith(b'd') else ''}caf\xe9"
    for root in (str(tmp_path), os.fsdecode(os.path.dirname(path))):
        with pytest.raises(ValueError, match="is not UTF-8; rename it") as caught:
            image_files.find(root)
        assert str(caught.value).startswith(shown)
        str(caught.value).encode()


def test_a_suffix_that_is_not_utf8_is_only_counted(tmp_path):
    open(os.fsencode(tmp_path) + b"/x.\xe9", "wb").close()
    assert image_files.find(str(tmp_path)) == ([], {r".\xe9": 1})


# --- caches -----------------------------------------------------------------------------------


def test_a_cache_keeps_the_latest_and_survives_damage(tmp_path):
    file = str(tmp_path / "runs" / "cache.json")
    assert cache.cached((file,), "a") is None
    for i in range(60):
        cache.store((file,), f"key {i}", {"n": i})
    assert cache.cached((file,), "key 59") == {"n": 59}
    assert cache.cached((file,), "key 10") == {"n": 10}
    assert cache.cached((file,), "key 9") is None
    with open(file, "w") as stream:
        stream.write('{"key 59": {"n"')
    assert cache.cached((file,), "key 59") is None
    cache.store((file,), "a", 1)
    assert cache.cached((str(tmp_path / "none"), file), "a") == 1
    cache.store((), "a", 1)  # nowhere to write


def test_two_processes_may_write_a_cache_at_once(tmp_path, monkeypatch):
    file, replace = str(tmp_path / "cache.json"), os.replace

    def interrupted(*paths):  # another process writes in the middle
        monkeypatch.setattr(os, "replace", replace)
        cache.store((file,), "other", 2)
        replace(*paths)

    monkeypatch.setattr(os, "replace", interrupted)
    cache.store((file,), "own", 1)
    assert cache.cached((file,), "own") == 1
    assert os.listdir(tmp_path) == ["cache.json"]


def test_the_budget_is_shared():
    budget = cache.CacheBudget(2.0)
    assert [budget.take(gb) for gb in (1.5, 1.0, 0.5, 0.1)] == [True, False, True, False]
