"""Image files: which files are images, one read as a tensor, or all of a part looked at.

Training and prediction use the same rule and the same reader. Any mode of Pillow becomes grey or
RGB of 8 bits. Nothing here knows of classes.
"""

import functools
import importlib.util
import os
import re
import sys
import warnings
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from console.errors import one_line
from data_sets.options import MAX_MEGAPIXELS
from devices import pick

LARGEST = 224  # the short side, where images of several sizes must agree on one
# registered by Pillow, but documents, videos or tables of numbers, most of which it cannot decode
NO_PICTURES = {"EPS", "PDF", "WMF", "MPEG", "BUFR", "GRIB", "HDF5"}
NO_FILE = " (a pipe or a device)"  # behind the kind of what is named as an image and is none
WHITE = 65535  # of 16 bits, where no training image says that they use less
BITS = (8, 10, 12, 14, 16)  # that cameras and scanners use of 16
METADATA = 2**26  # bytes of text in a PNG file, where Pillow gives up a file at 1 MB
_DEEP = re.compile(r"RGB[AX]?;16[BLN]")  # colours of 16 bits, as Pillow says it
_SMALL_END = ("L", "N") if sys.byteorder == "little" else ("L",)
# EXIF orientation: how the stored pixels are turned to stand as the camera was held
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@contextmanager
def no_warnings():
    """Of odd metadata, which plays no part. Not for threads: it changes what all of them do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- which files are images ---------------------------------------------------------------------


@functools.cache
def add_plugins():
    """Let Pillow read HEIC where pillow-heif is installed."""
    if importlib.util.find_spec("pillow_heif"):
        importlib.import_module("pillow_heif").register_heif_opener()


@functools.cache
def suffixes():
    """What the installed Pillow opens as a picture, in small letters with the dot."""
    add_plugins()
    registered = Image.registered_extensions()  # this also fills Image.OPEN
    kinds = set(Image.OPEN) - NO_PICTURES
    return frozenset(suffix for suffix, kind in registered.items() if kind in kinds)


def is_hidden(name):
    """Whether a file or folder is left out without a word: hidden, or a Mac's archive's."""
    return name.startswith(".") or name == "__MACOSX"


def require_utf8(path):
    """Raise ValueError where a path cannot be written as text, as names in old archives."""
    try:
        path.encode()
    except UnicodeEncodeError:
        text = f"{_escaped(path)}: the name of this file or folder is not UTF-8; rename it"
        raise ValueError(text) from None


def _escaped(path):
    return os.fsencode(path).decode(errors="backslashreplace")


def find(folder):
    """The images below `folder`: (paths relative to it, with / and sorted; Counter of the suffixes
    of other files).

    An image is a regular file with one of `suffixes`. What is hidden is left out at every depth.
    Links are followed, but each real folder is visited once, and none that lies above `folder`. A
    link that leads nowhere is listed: reading it says so. Raises ValueError for names that are not
    UTF-8.
    """
    require_utf8(folder)
    found, others = [], Counter()
    top = Path(folder).resolve()
    visited = {_identity(path) for path in (top, *top.parents)}
    waiting = deque([""])  # breadth first: a class folder is never taken for a link to it
    while waiting:
        below = waiting.popleft()
        entries = [e for e in os.scandir(os.path.join(folder, below)) if not is_hidden(e.name)]
        for entry in sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name)):
            path, suffix = f"{below}{entry.name}", os.path.splitext(entry.name)[1].lower()
            exists = not entry.is_symlink() or os.path.exists(entry.path)
            if exists and entry.is_dir():
                require_utf8(entry.path)
                if (identity := _identity(entry.path)) not in visited:
                    visited.add(identity)
                    waiting.append(f"{path}/")
            elif suffix not in suffixes():
                others[_escaped(suffix)] += 1
            elif not exists or entry.is_file():
                require_utf8(entry.path)
                found.append(path)
            else:
                others[f"{suffix}{NO_FILE}"] += 1
    return sorted(found), others


def _identity(folder):
    stat = os.stat(folder)
    return stat.st_dev, stat.st_ino


# --- one image ----------------------------------------------------------------------------------


def is_grey(image):
    """Whether a PIL image has no colours; of one with a palette, by the palette."""
    if image.mode == "P":
        palette = np.array(image.getpalette()).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")


def to_channels(image, C_in, white=WHITE):
    """A PIL image of any mode -> mode L (C_in 1) or RGB (C_in 3).

    16 bits become 8, `white` and what is above it 255; what is transparent becomes white. Raises
    ValueError for float pixels.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floats, whose range is not known; save it with 16 bits")
    if image.mode.startswith("I"):
        pixels = np.asarray(image).astype(np.float64).clip(0, white)
        image = Image.fromarray((pixels * (255 / white)).round().astype(np.uint8))
    elif "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if C_in == 1 else "RGB")


def fit(image, size):
    """Scale a PIL image until it covers `size` (H, W), and cut off what stands over, as much on
    both sides. Nothing is distorted."""
    return ImageOps.fit(image, size[::-1], Image.Resampling.BILINEAR)


class TooLarge(ValueError):
    """An image of more pixels than are allowed."""


def _open(path, max_megapixels):
    """The PIL image of a file, not decoded. Raises TooLarge, or whatever Pillow says."""
    add_plugins()
    Image.MAX_IMAGE_PIXELS = None  # the check below takes its place
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = METADATA
    image = Image.open(path)
    W, H = image.size
    if max_megapixels < W * H / 1e6:
        image.close()
        raise TooLarge(f"{H}x{W} pixels are above --max_megapixels {max_megapixels:g}")
    return image


def _rawmode(tile):
    """How the values of a tile of a PIL image are stored, as "RGB;16B"."""
    args = tile[3]
    return str(args[0] if isinstance(args, tuple) and args else args)


def _mode(image):
    """The mode of a PIL image that is not decoded yet. Of colours of 16 bits Pillow keeps the upper
    8: it ends with ";16" where the lower ones can be had, else with ";8 of 16"."""
    stored = [_rawmode(tile) for tile in image.tile]
    if stored and all(map(_DEEP.fullmatch, stored)):
        return f"{image.mode};16"
    cut = not image.mode.startswith("I") and any(";16" in rawmode for rawmode in stored)
    return f"{image.mode};8 of 16" if cut else image.mode


def has_16_bits(mode):
    """Whether images of this mode are read with the range that the training images use."""
    return mode.startswith("I") or mode.endswith(";16")


def _colours_of_16_bits(upper, path, max_megapixels):
    """The values (H, W, 3 or 4) of a file of mode "RGB;16" or "RGBA;16"; `upper` is its PIL image,
    which has the upper bytes."""
    with _open(path, max_megapixels) as lower:
        tiles = []
        for tile in lower.tile:  # in the other byte order the lower byte is the one that is kept
            stored = _rawmode(tile)
            other = stored[:-1] + ("B" if stored[-1] in _SMALL_END else "L")
            tiles.append(
                (*tile[:3], (other, *tile[3][1:]) if isinstance(tile[3], tuple) else other)
            )
        lower.tile = tiles
        return np.asarray(upper).astype(np.uint16) * 256 + np.asarray(lower)


def _to_8_bits(values, white):
    """Colours of 16 bits as a PIL image; alpha has all 16."""
    top = np.array([white, white, white, WHITE][: values.shape[2]])
    return Image.fromarray((np.minimum(values, top) * (255 / top)).round().astype(np.uint8))


def _orientation(image):
    """The EXIF orientation, 1 to 8."""
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # damaged metadata around pixels that may well be whole
        return 1


def read(path, C_in, size, white=WHITE, max_megapixels=MAX_MEGAPIXELS):
    """An image file as a uint8 tensor (C_in, H, W); `white` as in `to_channels`. Raises TooLarge,
    or whatever Pillow says of a broken one."""
    with _open(path, max_megapixels) as image:
        mode = _mode(image)
        image.load()
        turn = _TURN.get(_orientation(image))
        if mode == f"{image.mode};16":
            image = _to_8_bits(_colours_of_16_bits(image, path, max_megapixels), white)
        upright = image if turn is None else image.transpose(turn)
        return F.pil_to_tensor(fit(to_channels(upright, C_in, white), size))


def is_readable(path, max_megapixels=MAX_MEGAPIXELS):
    """Whether `read` would succeed."""
    try:
        with no_warnings():
            read(path, 3, (1, 1), max_megapixels=max_megapixels)
    except Exception:  # Pillow raises many kinds
        return False
    return True


def _header(path, max_megapixels=MAX_MEGAPIXELS):
    """(H, W, mode, whether it is grey) without decoding."""
    with _open(path, max_megapixels) as image:
        mode, (W, H) = _mode(image), image.size
        if _orientation(image) in (5, 6, 7, 8):  # lies on its side
            H, W = W, H
        return H, W, mode, is_grey(image)


def _brightest(path, max_megapixels):
    """The largest value of an image of 16 bits, 0 of another."""
    with _open(path, max_megapixels) as image:
        if image.mode.startswith("I"):
            return int(np.asarray(image).max())
        if has_16_bits(_mode(image)):
            return int(_colours_of_16_bits(image, path, max_megapixels)[..., :3].max())
        return 0


# --- all images of a part -----------------------------------------------------------------------


def _for_each(function, paths, what):
    """(i, function(path), None) or (i, None, why it failed) for each path, with a bar."""

    def attempt(path):
        try:
            return function(path), None
        except Exception as error:  # Pillow raises many kinds
            text = str(error).replace(repr(path), "").rstrip(": ")
            return None, one_line(text) if text else type(error).__name__

    bar = tqdm(total=len(paths), desc=what, disable=None, leave=False)
    with ThreadPoolExecutor(pick.cores()) as pool, bar:  # Pillow lets other threads run
        for start in range(0, len(paths), 512):  # never all results at once
            with no_warnings():
                results = list(pool.map(attempt, paths[start : start + 512]))
            for i, (result, why) in enumerate(results, start):
                bar.update()
                yield i, result, why


def survey(listed, max_megapixels=MAX_MEGAPIXELS):
    """{"sizes": [[H, W, n], ...], "modes": {mode: n}, "grey": all are grey, "bad": {file: why}},
    from the headers alone."""
    sizes, modes, bad, grey = Counter(), Counter(), {}, True
    headers = _for_each(
        lambda path: _header(path, max_megapixels), listed.paths(), "looking at the images"
    )
    for i, header, why in headers:
        if why is not None:
            bad[listed.files[i]] = why
            continue
        sizes[header[:2]] += 1
        modes[header[2]] += 1
        grey = grey and header[3]
    sizes = [[*size, n] for size, n in sorted(sizes.items())]
    return {"sizes": sizes, "modes": dict(sorted(modes.items())), "grey": grey, "bad": bad}


def common_size(sizes):
    """(H, W) for images of sizes [[H, W, n], ...]: theirs if all agree, else the median height and
    width, made smaller in proportion where the short side is above LARGEST."""
    if len(sizes) == 1:
        return tuple(sizes[0][:2])
    n = [row[2] for row in sizes]
    H, W = (int(np.median(np.repeat([row[k] for row in sizes], n))) for k in (0, 1))
    scale = min(1, LARGEST / min(H, W))
    return round(H * scale), round(W * scale)


def find_white(listed, max_megapixels=MAX_MEGAPIXELS):
    """(the largest value of all images of 16 bits, what is white for them: all ones of as many of
    BITS as they use). Files that cannot be read are left out."""
    found = _for_each(
        lambda path: _brightest(path, max_megapixels), listed.paths(), "looking at the range"
    )
    top = max((value for _, value, why in found if why is None), default=WHITE)
    return top, 2 ** next((bits for bits in BITS if top < 2**bits), 16) - 1


def decode(listed, spec, in_memory, max_megapixels=MAX_MEGAPIXELS):
    """({"mean_std": `mean_and_std`, "bad": {file: why}}, pixels): every image decoded once.

    pixels is uint8 (N, C_in, H, W), zero where a file is bad; None without `in_memory`.
    """
    C_in, size, white = spec.C_in, spec.size, spec.white
    counts, bad = np.zeros((C_in, 256), np.int64), {}
    shape = (len(listed.files), C_in, *size)
    pixels = torch.zeros(shape, dtype=torch.uint8) if in_memory else None
    images = _for_each(
        lambda path: read(path, C_in, size, white, max_megapixels),
        listed.paths(),
        "reading the images",
    )
    for i, image, why in images:
        if why is not None:
            bad[listed.files[i]] = why
            continue
        for c in range(C_in):
            counts[c] += np.bincount(image[c].flatten().numpy(), minlength=256)
        if in_memory:
            pixels[i] = image
    return {"mean_std": mean_and_std(counts), "bad": bad}, pixels


def mean_and_std(counts):
    """Per channel, of values in [0, 1], from how often each of 0..255 occurs: exact."""
    values = np.arange(counts.shape[1]) / 255
    portion = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    mean = portion @ values
    std = np.sqrt(portion @ values**2 - mean**2)
    std = np.where(std > 1e-6, std, 1.0)  # a channel of one value is left as it is
    return tuple(round(float(x), 6) for x in mean), tuple(round(float(x), 6) for x in std)
