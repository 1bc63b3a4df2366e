"""--deterministic: two runs are equal bit for bit, and what cannot be so is named."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import (
    CPU,
    FAST_AUGMENT,
    FAST_SEARCH,
    checkpoint_of,
    ends_in_one_line,
    equal,
    interrupt,
    lines,
)
from torch import nn

import augment
import search
from config import PredictConfig, SearchConfig
from console import errors
from devices import layout, pick
from models import ops

WORKERS = ["--deterministic", "--workers", "2"]


@pytest.fixture(autouse=True)
def _any_algorithm_afterwards(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    yield
    pick.set_deterministic(False)


def records(run):
    """The metrics of a run without what a clock says."""
    keys = ("phase", "epoch", "lr", "loss", "top1", "top5")
    return [{key: r[key] for key in keys} for r in lines(Path(run, "metrics.jsonl"))]


def same(a, b):
    states = [checkpoint_of(run) for run in (a, b)]
    parts = [{k: s[k] for k in s if k not in ("flags",)} for s in states]
    return equal(*parts) and records(a) == records(b)


@pytest.mark.parametrize("script", [search, augment])
def test_two_runs_with_loader_processes_are_equal_bit_for_bit(here, script):
    """A third, stopped in its second epoch and resumed, is equal as well."""
    words = {search: FAST_SEARCH, augment: [*FAST_AUGMENT, "--genotype", "DARTS_V2"]}[script]
    words = [*words, *WORKERS, "--epochs", "2"]
    a, b = (script.main([*words, "--name", name]) for name in "ab")
    assert torch.are_deterministic_algorithms_enabled()
    assert same(a, b)
    other = script.main([*words, "--epochs", "1", "--seed", "5", "--name", "other"])
    assert records(other)[0] != records(a)[0]
    interrupt(script, [*words, "--name", "c"], epoch=2)
    assert same(a, script.main(["--name", "c", "--resume"]))


@pytest.mark.card
@pytest.mark.parametrize("script", [search, augment])
def test_two_runs_on_a_card_are_equal_bit_for_bit(here, script):
    words = {search: FAST_SEARCH, augment: [*FAST_AUGMENT, "--genotype", "DARTS_V2"]}[script]
    words = [*words, "--deterministic", "--device", "cuda", "--epochs", "2"]
    a, b = (script.main([*words, "--name", name]) for name in "ab")
    assert same(a, b)


def test_a_run_without_the_flag_takes_any_algorithm(here):
    pick.prepare_device(SearchConfig(["--deterministic"]))
    assert torch.are_deterministic_algorithms_enabled()
    pick.prepare_device(PredictConfig(["x", "--from", "y"]))
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(("words", "free"), [([], True), (["--deterministic"], False)])
def test_on_a_card_nothing_is_picked_by_time(monkeypatch, words, free):
    cudnn = SimpleNamespace()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.backends, "cudnn", cudnn)
    monkeypatch.setattr(torch.backends, "cuda", SimpleNamespace(matmul=SimpleNamespace()))
    monkeypatch.setattr(layout, "quickest_layout", lambda *args: "quickest")
    monkeypatch.setattr(torch, "zeros", lambda *args, **kwargs: None)
    device = pick.prepare_device(SearchConfig(words))
    assert cudnn.benchmark is free
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ("" if free else ":4096:8")
    picked = layout.pick_layout("auto", None, (1,), device)
    assert picked == ("quickest" if free else "contiguous")


class Unordered(nn.Module):
    """Writes with put_, which torch has in no deterministic form."""

    def __init__(self, bn):
        super().__init__()
        self.bn = bn

    def forward(self, x):
        index = torch.arange(x.numel(), device=x.device).view(x.shape)
        return self.bn(torch.zeros_like(x).put_(index, x))


def unordered(C, stride, affine):
    body = Unordered(nn.BatchNorm2d(C, affine=affine))
    return body if stride == 1 else nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), body)


def test_a_block_without_a_deterministic_form_is_named(here, monkeypatch):
    monkeypatch.setitem(ops.OPS, "mine", unordered)
    words = [*FAST_SEARCH, "--primitives", "skip_connect,mine"]
    text = ends_in_one_line(search.main, [*words, "--deterministic"])
    assert text == (
        "search.py: the block mine has no deterministic form on cpu (put_); leave it out, or leave "
        "out --deterministic"
    )
    search.main(words)  # without the flag it runs


def test_all_own_ops_have_a_deterministic_form():
    pick.set_deterministic(True)
    search.check_ops.require_deterministic(ops.OPS, 4, CPU.torch_device)


def test_an_op_outside_of_the_blocks_ends_in_one_line_too(capsys):
    pick.set_deterministic(True)
    with pytest.raises(SystemExit) as caught, errors.run_errors("search.py"):
        torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))
    assert caught.value.code == 1
    text = "search.py: put_ has no deterministic form; leave --deterministic out\n"
    assert capsys.readouterr().err == text
