"""Ops of which all taps but one fall on padding: models/small_maps.py."""

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY_SEARCH, lines, log_of
from torch import nn

import genotypes as gt
import search
from models import ops, small_maps

DILATED = ["dil_conv_3x3", "dil_conv_5x5"]


@pytest.mark.parametrize(
    ("size", "blind"),
    [((2, 2), DILATED), ((3, 3), []), ((1, 2), DILATED), ((4, 4), []), ((1, 1), []), ((2, 3), [])],
)
def test_dilated_convolutions_see_nothing_on_maps_of_two_pixels(size, blind):
    before = torch.get_rng_state()
    assert small_maps.blind_ops(gt.PRESETS["darts"], size) == blind
    assert torch.equal(torch.get_rng_state(), before)


def test_no_other_op_of_the_repository_is_blind():
    assert small_maps.blind_ops(list(ops.OPS), (2, 2)) == DILATED


def test_a_block_of_ones_own_is_measured(monkeypatch):
    def wide(C, stride, affine):
        return nn.Conv2d(C, C, 3, stride, padding=5, dilation=5)

    def pointwise(C, stride, affine):  # sees its own pixel alone on every map
        return nn.Conv2d(C, C, 1, stride)

    monkeypatch.setitem(ops.OPS, "wide", wide)
    monkeypatch.setitem(ops.OPS, "pointwise", pointwise)
    assert small_maps.blind_ops(["wide", "pointwise"], (5, 5)) == ["wide"]
    assert small_maps.blind_ops(["wide", "pointwise"], (6, 6)) == []


def test_the_maps_of_the_cells():
    assert small_maps.cell_maps((8, 8), 4) == [(8, 8), (4, 4), (2, 2), (2, 2)]
    assert small_maps.cell_maps((7, 5), 1) == [(4, 3)]
    assert small_maps.cell_maps((32, 32), 8)[-1] == (8, 8)


def test_auto_leaves_them_out_and_the_run_remembers_the_list(here):
    words = ["--subset", "0.1", "--epochs", "1", "--batch_size", "32", "--order", "1"]
    run = search.main([*TINY_SEARCH, *words, "--primitives", "auto", "--name", "s"])
    wanted = [name for name in gt.PRIMITIVES if name not in DILATED]
    assert json.loads(Path(run, "config.json").read_text())["flags"]["primitives"] == wanted
    assert json.loads(Path(run, "genotype.json").read_text())["primitives"] == wanted
    assert lines(Path(run, "alphas.jsonl"))[0]["primitives"] == wanted
    assert "fall on padding" not in log_of(run)
    search.main(["--name", "s", "--resume"])


def test_a_search_of_small_images_warns_and_says_what_to_paste(here):
    words = ["--subset", "0.1", "--epochs", "1", "--batch_size", "32", "--order", "1"]
    names = "skip_connect,dil_conv_5x5,sep_conv_3x3"
    run = search.main([*TINY_SEARCH, *words, "--primitives", names])
    said = log_of(run)
    assert "dil_conv_5x5: on the maps of cell 3, of 2x2 pixels" in said
    assert "--primitives skip_connect,sep_conv_3x3 leaves them out" in said
