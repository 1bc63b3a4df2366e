"""Shared by all tests: a tiny search and a tiny training, run once, in folders of their own."""

import contextlib
import io
import json
import os
from pathlib import Path

import pytest
import torch

import augment
import search

torch.set_num_threads(1)  # these networks are too small to share out

# one epoch takes about a second
TINY_SEARCH = ["--layers", "3", "--init_channels", "2", "--n_nodes", "2", "--seed", "1"]
FAST_SEARCH = [*TINY_SEARCH, "--batch_size", "300"]  # two steps an epoch
TINY_AUGMENT = ["--layers", "3", "--init_channels", "2", "--seed", "1"]

FAST_AUGMENT = [*TINY_AUGMENT, "--batch_size", "700", "--epochs", "1"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_in(folder, main, words):
    """main(words) with `folder` as the current one; returns what it printed."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            main(words)
    finally:
        os.chdir(before)
    return out.getvalue()


@pytest.fixture(scope="session")
def finished_search(tmp_path_factory):
    """(folder that holds searchs/s, what the terminal said) of a search of two epochs."""
    folder = tmp_path_factory.mktemp("search")
    out = run_in(folder, search.main, [*TINY_SEARCH, "--epochs", "2", "--name", "s"])
    return folder, out


@pytest.fixture(scope="session")
def finished_augment(finished_search):
    """(folder that holds augments/a, what the terminal said) of a training of two epochs."""
    folder, _ = finished_search
    words = [*TINY_AUGMENT, "--epochs", "2", "--name", "a", "--genotype", "searchs/s"]
    return folder, run_in(folder, augment.main, words)


def lines(path):
    """The records of a .jsonl file."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def equal(a, b):
    """Whether two checkpoints, or parts of them, are the same bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b
