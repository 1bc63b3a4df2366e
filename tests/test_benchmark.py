"""scripts/benchmark.py: that its steps are those of search.py, and what a small run of it gives."""

import importlib
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
SIZE = (1, 8), 4


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("benchmark")


def small(benchmark):
    cell, cpu = benchmark.search_cells.SearchCell, torch.device("cpu")
    return benchmark.Form(cell, cpu, *SIZE, fast=True, C=2, n_layers=3, n_nodes=2)


def test_every_gradient_is_timed_in_turn(benchmark):
    cpu = torch.device("cpu")
    figures = benchmark.gradients(small(benchmark), small(benchmark), cpu, repeats=1)
    assert set(figures) == set(benchmark.GRADIENTS)
    assert all(row["low"] == row["ratio"] == row["high"] > 0 for row in figures.values())


def test_a_reused_gradient_saves_a_pass_and_still_moves_the_weights(benchmark):
    passes = {}
    for name, choices in benchmark.GRADIENTS.items():
        form, calls = small(benchmark), []
        form.choose(choices)
        form.net.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        before = [w.clone() for w in form.net.weights()]
        form.step(2)
        passes[name] = len(calls)
        assert any(not torch.equal(w, b) for w, b in zip(form.net.weights(), before, strict=True))
    assert passes == {
        "the paper's": 5, "central, gradient reused": 4, "one-sided": 4,
        "one-sided, gradient reused": 3, "lookahead": 3, "lookahead, gradient reused": 2,
        "exact": 4, "exact, gradient reused": 3,
    }  # fmt: skip
