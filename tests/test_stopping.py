"""A search that ends early: the rules, the eigenvalue they read, and what such a run leaves."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from alpha_gradient import batches, supernet
from conftest import SMALL_SEARCH, checkpoint_of, lines, log_of
from torch import nn

import genotypes as gt
import plot_alphas
import report
import search
from config import SearchConfig
from data_sets import loaders
from data_sets.options import DataOptions
from records import reader
from strategies import steering, stopping
from strategies.eigenvalue import dominant_eigenvalue, fixed_batch
from strategies.steering import Strategies

# --- the eigenvalue ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_the_dominant_eigenvalue_is_that_of_the_full_hessian(seed):
    net = supernet(seed=seed, primitives=["sep_conv_3x3", "avg_pool_3x3", "none"])
    X, y, _, _ = batches(seed=seed)
    names = [name for name, _ in net.named_alphas()]
    sizes = [alpha.shape for alpha in net.alphas()]

    def loss(flat):
        parts = flat.split([size.numel() for size in sizes])
        changed = {n: p.view(s) for n, p, s in zip(names, parts, sizes, strict=True)}
        return net.criterion(torch.func.functional_call(net, changed, (X,)), y)

    before = {name: value.clone() for name, value in net.state_dict().items()}
    drawn = torch.get_rng_state()
    found = dominant_eigenvalue(net.eval(), X, y)
    assert not net.training
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(alpha.grad is None for alpha in net.alphas())
    net.train()
    flat = torch.cat([alpha.detach().flatten() for alpha in net.alphas()])
    values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))
    wanted = values[values.abs().argmax()].item()
    assert found == pytest.approx(wanted, rel=0.02)


class Quadratic(nn.Module):
    """Loss alpha' diag(d) alpha / 2, whose Hessian in alpha is diag(d)."""

    def __init__(self, d):
        super().__init__()
        self.alpha, self.d = nn.Parameter(torch.ones(len(d))), torch.tensor(d)

    def alphas(self):
        return [self.alpha]

    def forward(self, X):
        return self.alpha

    def criterion(self, alpha, y):
        return (self.d * alpha**2).sum() / 2


@pytest.mark.parametrize("d", [[1.0, 5.0, -2.0], [1.0, 2.0, -5.0], [0.0, 0.0]])
def test_its_sign_is_kept(d):
    wanted = max(d, key=abs)
    assert dominant_eigenvalue(Quadratic(d), torch.zeros(1), None) == pytest.approx(
        wanted, rel=1e-2
    )


def test_its_batch_is_fixed_and_of_all_classes():
    options = DataOptions.from_config(SearchConfig(["--workers", "0"]))
    val = loaders.search_data(options).val
    (X, y), (again, _) = fixed_batch(val, 2), fixed_batch(val, 2)
    assert X.shape == (64, 1, 8, 8)
    assert torch.equal(X, again)
    assert len(set(y.tolist())) == 10
    assert not torch.equal(X, fixed_batch(val, 3)[0])


# --- the rules -----------------------------------------------------------------------------------


def history(cells, values=None):
    """One record per epoch: how many skip connections its normal cell has, and its eigenvalue."""

    def gene(n):
        ops = ["skip_connect"] * n + ["sep_conv_3x3"] * (4 - n)
        return gt.to_str(gt.Genotype([(op, i % 2) for i, op in enumerate(ops)], [2, 3],
                                     [("none_of_them", 0)] * 4, [2, 3]))  # fmt: skip

    values = values or [1.0] * len(cells)
    return [
        {"epoch": epoch, "top1": 0.5, "genotype": gene(n), "eigenvalue": value}
        for epoch, (n, value) in enumerate(zip(cells, values, strict=True), start=1)
    ]


@pytest.mark.parametrize(("epoch", "stops"), [(4, True), (5, False)])
def test_the_last_epoch_is_no_early_stop(epoch, stops):
    strategies = Strategies(SearchConfig(["--epochs", "5", "--stop_unchanged", "1"]), n_steps=2)
    strategies.history = history([1] * (epoch - 1))
    stopped = []
    run = SimpleNamespace(last=history([1] * epoch)[-1], stop=lambda *why: stopped.append(why))
    strategies.after_epoch(run, {})
    assert bool(stopped) == stops


@pytest.mark.parametrize(
    ("cells", "n", "stops"),
    [([1, 1, 1], 2, True), ([1, 1], 2, False), ([0, 1, 1], 2, False), ([0, 1, 1, 1], 2, True),
     ([1, 0, 1], 1, False), ([0, 0], 1, True)],
)  # fmt: skip
def test_a_cell_that_does_not_change(cells, n, stops):
    found = stopping.unchanged(history(cells), n)
    assert (found is not None) == stops
    if stops:
        assert found[1]["epoch"] == len(cells)


@pytest.mark.parametrize(
    ("cells", "stops"),
    [([1, 2], True), ([0, 1, 4], True), ([2, 2], False), ([2], False), ([2, 1], False),
     ([2, 1, 2], True), ([0, 1], False)],
)  # fmt: skip
def test_a_cell_that_comes_to_two_skips_gives_way_to_the_one_before(cells, stops):
    found = stopping.skips(history(cells), 2)
    assert (found is not None) == stops
    if stops:
        assert found[1]["epoch"] == len(cells) - 1


@pytest.mark.parametrize(
    ("values", "stops"),
    [([3.0] * 5 + [4.1] * 5, True), ([3.0] * 5 + [3.9] * 5, False), ([3.0] * 5 + [9.0] * 4, False),
     ([9.0] * 3 + [3.0] * 5 + [4.1] * 5, True), ([-3.0] * 5 + [9.0] * 5, False),
     ([3.0] * 9 + [9.0], True)],
)  # fmt: skip
def test_an_eigenvalue_that_rises_by_a_third(values, stops):
    found = stopping.eigenvalue(history([0] * len(values), values))
    assert (found is not None) == stops
    if stops:
        assert found[1]["epoch"] == len(values) - 5


# --- a run ---------------------------------------------------------------------------------------


def test_a_stopped_search_ends_as_a_finished_one(here, quick_epochs, monkeypatch):
    def rule(past, n):
        return ("it is enough", past[-2]) if len(past) == n + 1 else None

    monkeypatch.setattr(stopping, "unchanged", rule)
    words = [*SMALL_SEARCH, "--name", "s", "--stop_unchanged", "1", "--eigenvalue"]
    run = search.main(words)
    records = lines(Path(run, "alphas.jsonl"))
    assert [r["epoch"] for r in records] == [1, 2]
    assert all(isinstance(r["eigenvalue"], float) for r in records)
    state = checkpoint_of(run)
    assert (state["epoch"], state["stopped"], state["chosen"]["epoch"]) == (2, "it is enough", 1)
    found = json.loads(Path(run, "genotype.json").read_text())
    assert (found["epoch"], found["genotype"]) == (1, records[0]["genotype"])
    assert json.loads(Path(run, "genotype-last.json").read_text())["epoch"] == 2
    assert "ended after epoch 2 of 3: it is enough" in log_of(run)
    assert "chosen genotype (epoch 1, " in log_of(run)
    page = Path(report.write(run)).read_text()
    assert "ended early: it is enough" in page
    assert "The found cell" in page
    figure = plot_alphas.figure(reader.read_alphas(run))
    assert "dominant\neigenvalue" in [axes.get_ylabel() for axes in figure.axes]
    # it is finished, and says so again
    before = checkpoint_of(run)["best"], Path(run, "genotype.json").read_text()
    search.main(["--name", "s", "--resume"])
    assert (checkpoint_of(run)["best"], Path(run, "genotype.json").read_text()) == before
    assert len(lines(Path(run, "alphas.jsonl"))) == 2
    assert "this search has ended after epoch 2: it is enough" in log_of(run)


def test_a_search_ends_when_its_eigenvalue_has_risen(here, quick_epochs, monkeypatch):
    values = iter([1.0] * 5 + [1.4] * 9)
    monkeypatch.setattr(steering, "dominant_eigenvalue", lambda *args: next(values))
    run = search.main([*SMALL_SEARCH, "--epochs", "12", "--stop_eigenvalue"])
    records = lines(Path(run, "alphas.jsonl"))
    assert [r["eigenvalue"] for r in records] == [1.0] * 5 + [1.4] * 5
    why = "the dominant eigenvalue rose from 1 to 1.4 (--stop_eigenvalue)"
    assert f"ended after epoch 10 of 12: {why}" in log_of(run)
    assert json.loads(Path(run, "genotype.json").read_text())["epoch"] == 5
    monkeypatch.setattr(plot_alphas, "save", lambda fig, out, dpi: fig)
    title = plot_alphas.plot_run(run).get_suptitle()
    assert "--stop_eigenvalue" in title.splitlines()[1]
    assert title.splitlines()[2] == f"ended early: {why}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--stop_eigenvalue --compile", "--stop_eigenvalue goes backward twice"),
        ("--eigenvalue --checkpoint_cells", "--eigenvalue goes backward twice"),
        ("--stop_skips 2 --primitives sep_conv_3x3,none", "--stop_skips counts skip_connect"),
        ("--stop_skips 3 --max_skips 2", "the normal cell keeps 2 skip connections at most"),
        ("--stop_skips 4 --n_nodes 2 --k 1", "the normal cell keeps 2 skip connections at most"),
        ("--stop_skips 2 --epochs 2", "asks after 2 epochs in which alpha moves at the earliest"),
        ("--stop_unchanged 3 --epochs 5 --warmup_epochs 1", "and this search has 4"),
        ("--stop_eigenvalue --epochs 10", "--stop_eigenvalue asks after 10 epochs"),
    ],
)
def test_rules_that_cannot_be_asked_are_refused(words, message, capsys):
    with pytest.raises(SystemExit):
        SearchConfig(words.split())
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    ["--stop_skips 2 --max_skips 2", "--stop_skips 2 --epochs 3",
     "--stop_unchanged 2 --epochs 5 --warmup_epochs 1", "--stop_eigenvalue --epochs 11"],
)  # fmt: skip
def test_rules_that_can_just_end_a_search_are_not(words):
    SearchConfig(words.split())
