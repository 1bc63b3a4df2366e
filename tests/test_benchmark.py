"""scripts/benchmark.py: that its steps are those of search.py, and what a small run of it gives."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

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


def test_steps_are_timed_with_flags_of_search(benchmark, tmp_path, monkeypatch, capsys):
    class Small(benchmark.Switched):
        def __init__(self, *args):
            super().__init__(*args, C=2, n_layers=3, n_nodes=2)
            made.append(self.form)

    made = []
    monkeypatch.setattr(benchmark, "Switched", Small)
    monkeypatch.setitem(benchmark.SIZES, "digits", SIZE)
    out = tmp_path / "b.json"
    words = ["--device", "cpu", "--sizes", "digits", "--repeats", "1", "--out", str(out)]
    benchmark.main([*words, "--switches", "amp", "checkpoint_cells", "contiguous"])
    plain, amp, checkpointed, contiguous = made
    assert [form.where.amp for form in made] == ["off", "bf16", "off", "off"]
    assert [form.net.net.checkpoint_cells for form in made] == [False, False, True, False]
    for form, channels_last in ((plain, True), (contiguous, False)):
        assert form.trn_X.is_contiguous(memory_format=torch.channels_last) is (
            channels_last or SIZE[0][0] == 1  # one channel lies both ways
        )
    table = json.loads(out.read_text())["switches"]["digits"]
    assert len(table) == 2 * 4
    assert table["order 2, as it is"]["ratio"] == 1.0
    assert all(row["seconds"] > 0 for row in table.values())
    assert "ratio 1.00 (1.00 to 1.00)" in capsys.readouterr().out


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


def test_partial_channels_are_timed_against_all(benchmark, monkeypatch, capsys):
    built, form = [], benchmark.Form

    def noted(*args, **words):
        built.append(words["partial_channels"])
        return form(*args, **words)

    monkeypatch.setattr(benchmark, "Form", noted)
    monkeypatch.setattr(
        benchmark, "memory_of", lambda *a, partial_channels, **_: 8 - partial_channels
    )
    monkeypatch.setitem(benchmark.SIZES, "digits", SIZE)
    found = benchmark.partial("digits", 4, torch.device("cpu"), 1, C=8, n_layers=3, n_nodes=1)
    assert built == [1, 4]
    assert found["memory"] == {1: 7, 4: 4}
    assert found["step, order 2"]["ratio"] > 0
    assert "0.57 of that with K 1" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        benchmark.main(["--partial", "3"])
    assert "--partial 3: 2, 4 or 8 of 16 channels" in capsys.readouterr().err


def test_a_step_is_shared_by_processes(benchmark, tmp_path, monkeypatch, capsys):
    steps = {1: {"seconds": 2.0, "bytes": 0}, 2: {"seconds": 1.5, "bytes": 3 << 20}}
    monkeypatch.setattr(
        benchmark.torch.multiprocessing, "spawn", lambda work, args, n: args[2].put(steps[n])
    )
    out = tmp_path / "out.json"
    benchmark.main(["--nproc", "1,2", "--sizes", "digits", "--device", "cpu", "--out", str(out)])
    said = capsys.readouterr().out
    assert (
        "digits, batch 64, 2 processes      1.500 s a step, 0.75 of the first;   3.00 MiB" in said
    )
    assert json.loads(out.read_text())["shared"]["digits"]["2"]["ratio"] == 0.75


def test_a_process_of_a_shared_step_counts_what_it_sums(benchmark, monkeypatch):
    found = []
    monkeypatch.setitem(benchmark.SIZES, "tiny", SIZE)
    for name in (
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "MASTER_PORT",
        "MASTER_ADDR",
    ):
        monkeypatch.setenv(name, "")
    results = SimpleNamespace(put=found.append)
    monkeypatch.setattr(benchmark.torch, "set_num_threads", lambda n: None)
    benchmark._shared_process(0, 1, 1, results, "cpu", "tiny", 1)
    assert found[0]["seconds"] > 0
    assert found[0]["bytes"] == 0  # one process sends nothing


def test_a_step_is_shared_by_no_more_processes_than_cards(benchmark, monkeypatch, capsys):
    device = SimpleNamespace(torch_device=torch.device("cuda"), is_cuda=True)
    monkeypatch.setattr(benchmark.pick, "prepare_device", lambda cfg: device)
    monkeypatch.setattr(benchmark.pick, "cards", lambda: 1)
    with pytest.raises(SystemExit):
        benchmark.main(["--nproc", "1,2"])
    assert "--nproc 2: each needs a card, and there are 1" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "1,x", ",", "-1"])
def test_numbers_of_processes_that_are_none(benchmark, value, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--nproc=" + value])
    assert "is not numbers of processes, such as 1,2,4" in capsys.readouterr().err
