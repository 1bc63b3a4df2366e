"""Checkpoints: what they keep, how they are written, and what is no checkpoint."""

import os
import random

import numpy as np
import pytest
import torch
from conftest import ends_in_one_line
from torch import nn

import search
from config import SearchConfig
from tracking import checkpoint


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002


def test_the_state_of_every_generator_comes_back():
    state, first = checkpoint.rng_state(), draw()
    assert draw() != first
    checkpoint.set_rng_state(state)
    assert draw() == first


def test_checkpoints_are_read_with_weights_only_and_written_in_one_piece(here, monkeypatch):
    state = {"model": {"w": torch.ones(2)}, "rng": checkpoint.rng_state(), "flags": {"a": None}}
    first = draw()
    checkpoint.save(state, "c.pt")
    read = torch.load("c.pt", weights_only=True)
    assert torch.equal(read["model"]["w"], torch.ones(2))
    checkpoint.set_rng_state(checkpoint.load("c.pt")["rng"])
    assert draw() == first

    def full_disk(state, path):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(state, "c.pt")
    assert os.listdir(".") == ["c.pt"]
    assert torch.load("c.pt", weights_only=True)["flags"] == {"a": None}


def test_a_checkpoint_is_the_same_byte_for_byte_wherever_it_is_written(here):
    """The temporary name is in none."""
    state = {"model": {"w": torch.ones(2)}, "flags": {}}
    checkpoint.save(state, "c.pt")
    first = (here / "c.pt").read_bytes()
    checkpoint.save(state, "c.pt")
    assert (here / "c.pt").read_bytes() == first
    assert b"tmp" not in first


def test_files_that_are_no_checkpoints_are_refused_in_one_line(here):
    (here / "text.pt").write_text("hello")
    (here / "empty.pt").write_bytes(b"")
    (here / "folder.pt").mkdir()
    torch.save([1, 2], "list.pt")
    torch.save({"state_dict": {}}, "other.pt")
    torch.save({"model": nn.Linear(1, 1), "flags": {}}, "code.pt")
    for path, why in (
        ("text.pt", "is no checkpoint"),
        ("empty.pt", "is no checkpoint"),
        ("folder.pt", "Is a directory"),
        ("list.pt", "is no checkpoint of search.py or augment.py"),
        ("other.pt", "is no checkpoint of search.py or augment.py"),
        ("code.pt", "is no checkpoint"),
        ("missing.pt", "No such file or directory"),
    ):
        with pytest.raises(ValueError, match=path) as caught:
            checkpoint.load(path)
        assert why in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_state_that_does_not_fit_is_refused_in_one_line():
    with pytest.raises(ValueError, match="x.pt does not fit the network any more") as caught:
        checkpoint.load_state(nn.Linear(2, 2), nn.Linear(3, 2).state_dict(), "x.pt")
    assert "size mismatch for weight" in str(caught.value)
    assert "\n" not in str(caught.value)
    optim = torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)
    fewer = torch.optim.SGD([nn.Linear(2, 2).weight], 0.1)
    with pytest.raises(ValueError, match="was a block changed"):
        checkpoint.load_state(fewer, optim.state_dict(), "x.pt")


def test_there_is_nothing_to_go_on_from_without_resume():
    assert checkpoint.to_resume(SearchConfig(["--name", "x"])) is None


def test_what_cannot_be_resumed_ends_in_one_line(here):
    words = ["--name", "x", "--resume"]
    text = ends_in_one_line(search.main, words)
    assert "no run to go on with: searchs/x does not exist" in text
    (here / "searchs" / "x").mkdir(parents=True)
    text = ends_in_one_line(search.main, words)
    assert "nothing to resume in searchs/x: no epoch was finished; use --overwrite" in text
    (here / "searchs" / "x" / "checkpoint.pt").write_text("half")
    assert "searchs/x/checkpoint.pt is no checkpoint" in ends_in_one_line(search.main, words)


def test_a_resumed_configuration_has_the_flags_of_the_checkpoint(here):
    saved = SearchConfig(["--name", "x", "--layers", "3"]).flags()
    (here / "searchs" / "x").mkdir(parents=True)
    checkpoint.save({"model": {}, "flags": saved, "epoch": 4}, "searchs/x/checkpoint.pt")
    cfg = SearchConfig(["--name", "x", "--resume", "--workers", "0"])
    assert checkpoint.to_resume(cfg)["epoch"] == 4
    assert (cfg.layers, cfg.workers) == (3, 0)
