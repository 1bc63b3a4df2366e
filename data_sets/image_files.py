"""Image files: one read as a tensor of a given size, or all of a part looked at.

Any mode of Pillow becomes grey or RGB of 8 bits. Nothing here knows of classes.
"""

import json
import os
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from devices import pick
from records import files

LARGEST = 224  # the short side, where images of several sizes must agree on one


@contextmanager
def no_warnings():
    """Of odd metadata, which plays no part. Not for threads: it changes what all of them do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- one image ----------------------------------------------------------------------------------


def is_grey(image):
    """Whether a PIL image has no colours; of one with a palette, by the palette."""
    if image.mode == "P":
        palette = np.array(image.getpalette()).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")


def to_channels(image, C_in):
    """A PIL image of any mode -> mode L (C_in 1) or RGB (C_in 3).

    16 bits become 8; what is transparent becomes white. Raises ValueError for float pixels.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floats, whose range is not known; save it with 16 bits")
    if image.mode.startswith("I"):
        pixels = np.asarray(image).astype(np.float64).clip(0, 65535)
        image = Image.fromarray((pixels / 257).round().astype(np.uint8))
    elif "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if C_in == 1 else "RGB")


def fit(image, size):
    """Scale an image (PIL, or a tensor (..., h, w)) until it covers `size` (H, W), and cut off what
    stands over, as much on both sides. Nothing is distorted."""
    H, W = size
    h, w = F.get_size(image)
    if (h, w) == (H, W):
        return image
    scale = max(H / h, W / w)
    image = F.resize(image, [max(H, round(h * scale)), max(W, round(w * scale))], antialias=True)
    return F.center_crop(image, [H, W])


def read(path, C_in, size):
    """An image file as a uint8 tensor (C_in, H, W). Raises whatever Pillow says of a broken one."""
    with Image.open(path) as image:
        image.load()
        image = ImageOps.exif_transpose(image)  # as the camera was held
        return F.pil_to_tensor(fit(to_channels(image, C_in), size))


def is_readable(path):
    """Whether `read` would succeed."""
    try:
        with no_warnings():
            read(path, 3, (1, 1))
    except Exception:  # Pillow raises many kinds
        return False
    return True


def _header(path):
    """(H, W, mode, whether it is grey) without decoding."""
    with Image.open(path) as image:
        W, H = image.size
        if image.getexif().get(0x0112, 1) >= 5:  # orientation: lies on its side
            H, W = W, H
        return H, W, image.mode, is_grey(image)


# --- all images of a part -----------------------------------------------------------------------


def _for_each(function, paths, what):
    """(i, function(path), None) or (i, None, why it failed) for each path, with a bar."""

    def attempt(path):
        try:
            return function(path), None
        except Exception as error:  # Pillow raises many kinds
            return None, str(error).replace(path, "").split("\n")[0] or type(error).__name__

    bar = tqdm(total=len(paths), desc=what, disable=None, leave=False)
    with ThreadPoolExecutor(pick.cores()) as pool, bar:  # Pillow lets other threads run
        for start in range(0, len(paths), 512):  # never all results at once
            with no_warnings():
                results = list(pool.map(attempt, paths[start : start + 512]))
            for i, (result, why) in enumerate(results, start):
                bar.update()
                yield i, result, why


def survey(listed):
    """{"sizes": [[H, W, n], ...], "modes": {mode: n}, "grey": all are grey, "bad": {file: why}},
    from the headers alone."""
    sizes, modes, bad, grey = Counter(), Counter(), {}, True
    for i, header, why in _for_each(_header, listed.paths(), "looking at the images"):
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


def decode(listed, C_in, size, keep):
    """(counts, bad, images): every image decoded once.

    counts  (C_in, 256) int64, how often each value occurs
    bad     {file: why}
    images  uint8 (N, C_in, H, W), or None without `keep`; zero where a file is bad
    """
    counts, bad = np.zeros((C_in, 256), np.int64), {}
    images = torch.zeros(len(listed.files), C_in, *size, dtype=torch.uint8) if keep else None
    pixels = _for_each(lambda p: read(p, C_in, size), listed.paths(), "reading the images")
    for i, image, why in pixels:
        if why is not None:
            bad[listed.files[i]] = why
            continue
        for c in range(C_in):
            counts[c] += np.bincount(image[c].flatten().numpy(), minlength=256)
        if keep:
            images[i] = image
    return counts, bad, images


def mean_and_std(counts):
    """Per channel, of values in [0, 1], from how often each of 0..255 occurs: exact."""
    values = np.arange(counts.shape[1]) / 255
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    mean = share @ values
    std = np.sqrt(share @ values**2 - mean**2)
    std = np.where(std > 1e-6, std, 1.0)  # a channel of one value is left as it is
    return tuple(round(float(x), 6) for x in mean), tuple(round(float(x), 6) for x in std)


# --- what is remembered between runs ------------------------------------------------------------


def recall(notebooks, key):
    """What `remember` wrote under `key`, or None."""
    for file in notebooks:
        if key in (known := _read_json(file)):
            return known[key]
    return None


def remember(notebooks, key, value):
    """Keep `value` (of JSON) for later runs, in the first notebook; it keeps the latest 50."""
    if not notebooks:
        return
    file = notebooks[0]
    known = [item for item in _read_json(file).items() if item[0] != key]
    os.makedirs(os.path.dirname(file) or ".", exist_ok=True)
    with files.atomic_write(file) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        json.dump(dict([*known[-49:], (key, value)]), stream, indent=1)


def _read_json(file):
    try:
        with open(file, encoding="utf-8") as stream:
            return dict(json.load(stream))
    except (OSError, TypeError, ValueError):
        return {}  # no notebook, or no good one: the images are read again
