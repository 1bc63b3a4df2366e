"""A run that goes on finds the images that it began with, or says what is another."""

import os
import shutil
from pathlib import Path

import pytest
from conftest import (
    FAST_OPS,
    TINY_AUGMENT,
    TINY_SEARCH,
    checkpoint_of,
    ends_in_one_line,
    interrupt,
    log_of,
)
from data_helpers import make, options, write

import augment
import search
from data_sets import cache, loaders, splits

SEARCH = [
    *TINY_SEARCH, "--dataset", "pets", "--name", "s", "--epochs", "1", "--batch_size", "4",
    "--primitives", ",".join(FAST_OPS), "--workers", "0", "--quick", "--compare", "0",
]  # fmt: skip
RESUME = ["--name", "s", "--resume"]


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch):
    """A refused run may remember what it has found out about images; here it changes no file."""
    monkeypatch.setattr(cache, "store", lambda *args: None)


def images_of(folder):
    return loaders.search_data(
        options(dataset="folder", data_path=str(folder), batch_size=2, test_portion=0.2)
    ).images


def test_what_is_remembered_of_images(here):
    make(here / "pets")
    first = images_of("pets")
    assert first["train"]["classes"] == {"cat": 8, "dog": 8}
    shutil.copytree("pets", "moved")
    os.utime("moved/train/cat/00.png", (0, 0))
    assert images_of("moved") == first  # moved, or unpacked again
    data = loaders.augment_data(options(dataset="digits", batch_size=8, val_portion=None))
    assert set(data.images) == {"train", "test"}
    assert data.images["test"]["files"] == ""
    assert sum(data.images["test"]["classes"].values()) == 360


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: write(root / "train/cat/new.png"), "train had 16 images and has 17 (cat"),
        (lambda root: (root / "train/dog/03.png").unlink(), "train had 16 images and has 15 (dog"),
        (lambda root: make(root, n=22), "train had 16 images and has 36 (cat 8 -> 18, dog 8 ->"),
        (
            lambda root: shutil.move(root / "train/cat/03.png", root / "train/cat/0x.png"),
            "train had 16 images and has 16 (as many of each class, but other files)",
        ),
        (
            lambda root: write(root / "train/cat/03.png", size=(9, 8)),
            "train had 16 images and has 16 (as many of each class, but other files)",
        ),
        (lambda root: shutil.rmtree(root / "train/dog"), "has one class only"),
    ],
)
def test_differences_in_words(here, change, words):
    root = make(here / "pets")
    before = images_of(root)
    change(root)
    try:
        (text,) = splits.differences(before, images_of(root))
    except ValueError as error:
        text = str(error)
    assert words in text
    assert splits.differences(before, before) == []


def test_a_run_whose_images_have_changed_goes_on_only_if_that_is_said(here):
    root = make(here / "pets")
    interrupt(search, [*SEARCH, "--epochs", "2"], epoch=2)
    before = (here / "searchs/s/checkpoint.pt").read_bytes()
    for i in range(10, 16):
        write(root / "train" / "cat" / f"{i}.png")
    text = ends_in_one_line(search.main, RESUME)
    assert "these are not the images that the run began with: train had 16 images and has" in text
    assert "go on with --new_split, which divides them anew" in text
    assert (here / "searchs/s/checkpoint.pt").read_bytes() == before
    search.main([*RESUME, "--new_split"])
    assert "WARNING: these are not the images that the run began with" in log_of("searchs/s")
    (root / "train/cat/15.png").unlink()  # and now there is no epoch left to train
    text = ends_in_one_line(search.main, RESUME)
    assert text.endswith("and it has finished; put them back, or start a new run")
    text = ends_in_one_line(search.main, [*RESUME, "--new_split"])
    assert "searchs/s has finished, so there is nothing to divide anew; leave --new_split" in text
    text = ends_in_one_line(search.main, [*SEARCH, "--name", "t", "--new_split"])
    assert "--new_split belongs to --resume" in text


def test_a_training_compares_the_images_that_it_is_scored_on(here):
    root = make(here / "pets", parts=("train", "val"))
    words = [*TINY_AUGMENT, "--dataset", "pets", "--genotype", "DARTS_V1", "--batch_size", "4"]
    augment.main([*words, "--name", "s", "--epochs", "1", "--workers", "0", "--quick"])
    assert set(checkpoint_of("augments/s")["images"]) == {"train", "val"}
    Path(root, "val/cat/03.png").unlink()
    text = ends_in_one_line(augment.main, RESUME)
    assert "val had 20 images and has 19 (cat 10 -> 9)" in text
    shutil.rmtree(root / "val")
    text = ends_in_one_line(augment.main, RESUME)
    assert "held-out had 0 images" in text  # and these were trained on before
    assert "train had 20 images and has 16" in text


def test_named_data_sets_are_the_same_always(here):
    words = [*TINY_SEARCH, "--subset", "0.1", "--batch_size", "32", "--name", "s"]
    search.main([*words, "--epochs", "1", "--primitives", ",".join(FAST_OPS)])
    search.main(RESUME)
    assert "not the images" not in log_of("searchs/s")
