"""For the tests of data_sets: options as the flags give them, folders of random images."""

import logging

import numpy as np
import pytest
from PIL import Image

from config import SearchConfig
from data_sets.options import DataOptions


def options(**changes):
    """DataOptions of a search without flags, but for `changes`."""
    return DataOptions.from_config(SearchConfig([]))._replace(**changes)


@pytest.fixture(autouse=True)
def keep_findings(caplog):
    """Where this is imported, caplog has what the data package logs."""
    caplog.set_level(logging.INFO, "darts.data")


def write(path, size=(8, 8), mode="RGB", seed=0, **how):
    """A random image of `size` (H, W)."""
    rng = np.random.default_rng([seed, *path.name.encode()])
    pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, size).astype(np.uint16))
    else:
        image = Image.fromarray(pixels).convert(mode)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **how)


def make(root, parts=("train",), classes=("cat", "dog"), n=10, size=(8, 8), mode="RGB"):
    """root/<part>/<class>/00.png ..., the classes unlike each other by their seed."""
    for part in parts:
        for y, name in enumerate(classes):
            for i in range(n):
                write(root / part / name / f"{i:02}.png", size, mode, seed=y)
    return root
