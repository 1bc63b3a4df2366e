"""What differs from Algorithm 1: when alpha moves, how far, and what its loss gets beside L_val."""

import argparse
import html
import json
from pathlib import Path

import pytest
import torch
from alpha_gradient import XI, batches, exact, relative_error, supernet, trained_sgd
from conftest import FAST_SEARCH, checkpoint_of, equal, interrupt, lines, log_of

import genotypes as gt
import report
import search
from architect import Architect
from config import SearchConfig
from records import reader
from strategies.steering import Strategies, auto_alpha_lr


def strategies_of(words, n_steps=10):
    return Strategies(SearchConfig(words.split()), n_steps)


# --- how far alpha can move ----------------------------------------------------------------------


def test_alpha_can_move_as_far_as_in_the_paper():
    assert auto_alpha_lr(19_500) == pytest.approx(3e-4)  # the paper's own number of steps
    assert auto_alpha_lr(1950) == pytest.approx(3e-3)
    # the bounds
    assert auto_alpha_lr(100_000) == 3e-4
    assert auto_alpha_lr(1) == auto_alpha_lr(0) == 0.03
    for n in (300, 1000, 10_000):
        assert n * auto_alpha_lr(n) == pytest.approx(5.85)


def test_the_steps_of_a_warm_up_are_not_alphas():
    words = "--alpha_lr auto --epochs 50"
    assert strategies_of(words, 20).alpha_lr == pytest.approx(5.85 / 1000)
    assert strategies_of(f"{words} --warmup_epochs 25", 20).alpha_lr == pytest.approx(5.85 / 500)
    assert strategies_of("--alpha_lr 0.1").alpha_lr == 0.1


def test_the_rate_reaches_adam_log_and_page(here, monkeypatch):
    rates, adam = [], torch.optim.Adam.__init__
    monkeypatch.setattr(
        torch.optim.Adam, "__init__",
        lambda self, params, lr, **words: rates.append(lr) or adam(self, params, lr, **words),
    )  # fmt: skip
    search.main([*FAST_SEARCH, "--name", "s", "--alpha_lr", "auto"])
    assert rates == [0.03]
    assert json.loads(Path("searchs/s/config.json").read_text())["flags"]["alpha_lr"] == "auto"
    ops, line, limit = reader.read_summary("searchs/s")["strategies"]  # --quick limits skips
    assert ops.startswith("the ops are PRIMITIVES without avg_pool_3x3")
    assert "at most 2 skip connections" in limit
    assert line.startswith("--alpha_lr auto is 0.03 here")
    assert line in log_of("searchs/s")
    page = html.unescape(Path(report.write("searchs/s")).read_text())
    assert line.removeprefix("--alpha_lr") in page
    assert "can move 1.0% as far as in the paper's 19,500 steps" in line  # 2 steps of 0.03
    search.main(["--name", "s", "--resume", "--alpha_lr", "auto"])


@pytest.mark.parametrize("words", ["--primitives auto", ""])
def test_the_ops_that_are_left_out_are_said(words):
    found = strategies_of(words)
    assert not any("PRIMITIVES" in line for line in found.describe())  # all take part
    found.cfg.primitives = gt.PRIMITIVES[:-2]  # as small_maps.choose sets it, or a run that goes on
    line = f"the ops are PRIMITIVES without {', '.join(gt.PRIMITIVES[-2:])}"
    auto = ", too wide for the maps of the last cells" if words else ""
    assert found.describe()[0] == line + auto
    found.cfg.primitives = ["sep_conv_3x3", "mine"]
    assert "PRIMITIVES" not in found.describe()[0]


# --- warm-up -------------------------------------------------------------------------------------

WARM_UP = [*FAST_SEARCH, "--epochs", "3", "--warmup_epochs", "1", "--alpha_lr", "0.1"]


def test_alpha_rests_while_w_warms_up_and_no_pass_is_made_for_it(here, monkeypatch):
    epochs, real = [], Architect.unrolled_backward

    def note(self, *args):
        epochs.append([a.detach().clone() for a in self.alphas])
        return real(self, *args)

    monkeypatch.setattr(Architect, "unrolled_backward", note)
    assert "epoch 2" in interrupt(search, [*WARM_UP, "--name", "s"], epoch=3)
    assert len(epochs) == 4  # two steps in each of two epochs
    first, second, _ = lines("searchs/s/alphas.jsonl") + [None]
    assert first["normal"][0][0] == pytest.approx(torch.softmax(epochs[0][0][0], 0).tolist())
    assert first["normal"] != second["normal"]
    warm = [r for r in lines("searchs/s/metrics.jsonl") if r.get("warmup")]
    assert [(r["phase"], r["epoch"]) for r in warm] == [("val", 1)]
    state = checkpoint_of("searchs/s", "previous.pt")
    assert state["alpha_optim"]["state"] == {}
    assert state["w_optim"]["state"]


def test_resuming_within_and_behind_a_warm_up_changes_nothing(here):
    search.main([*WARM_UP, "--name", "straight"])
    interrupt(search, [*WARM_UP, "--name", "cut"], epoch=2)
    search.main(["--name", "cut", "--resume"])
    straight, cut = checkpoint_of("searchs/straight"), checkpoint_of("searchs/cut")
    for key in set(straight) - {"flags"}:
        assert equal(straight[key], cut[key]), key


def test_the_cell_of_a_warm_up_is_recommended_only_while_there_is_no_other(here, monkeypatch):
    top1 = iter([0.9, 0.3, 0.4])
    phase = {"loss": 1.0, "top5": 1.0, "seconds": 1.0, "images_per_second": 1.0}
    monkeypatch.setattr(search, "validate", lambda *args: {**phase, "top1": next(top1)})
    found = []
    real = search.search_log.record_genotypes
    monkeypatch.setattr(
        search.search_log, "record_genotypes",
        lambda run, spec: real(run, spec) or found.append(run.best["epoch"]),
    )  # fmt: skip
    run = search.main([*WARM_UP, "--name", "s"])
    assert found == [1, 2, 3]
    assert json.loads(Path(run, "genotype.json").read_text())["epoch"] == 3
    assert report.collect(run)["best"] == {"epoch": 3, "top1": 0.4}
    assert checkpoint_of(run, "best.pt")["epoch"] == 3


def test_a_warm_up_must_end(capsys):
    with pytest.raises(SystemExit):
        SearchConfig(["--epochs", "4", "--warmup_epochs", "4"])
    assert "--warmup_epochs 4 of --epochs 4 leave alpha none" in capsys.readouterr().err


# --- beta decay ----------------------------------------------------------------------------------


def test_lambda_grows_from_zero_while_alpha_moves():
    strategies = strategies_of("--beta_decay 8 --epochs 6 --warmup_epochs 1")
    found = []
    for epoch in range(1, 7):
        strategies.before_epoch(epoch)
        found.append((strategies.alpha_moves, strategies.decay))
    assert found == [(False, 0), (True, 0), (True, 2), (True, 4), (True, 6), (True, 8)]
    only = strategies_of("--beta_decay 8 --epochs 1")
    only.before_epoch(1)
    assert only.decay == 8  # or the flag would do nothing
    assert strategies_of("").penalty is None


@pytest.mark.parametrize("xi", [0.0, XI])
@pytest.mark.parametrize("reuse", [False, True])
def test_the_gradient_of_beta_decay_is_lambda_times_mix(xi, reuse):
    """Against double backward through L_val plus the penalty, written down anew."""
    net = supernet()
    with torch.no_grad():
        for alpha in net.alphas():
            alpha.normal_()
    sgd, data = trained_sgd(net), batches()

    def gradient(penalty):
        choices = {"hessian": "exact", "reuse_gradient": reuse, "penalty": penalty}
        Architect(net, **choices).unrolled_backward(*data, xi, sgd)
        return [a.grad.clone() for a in net.alphas()]

    strategies = strategies_of("--beta_decay 3 --epochs 1")
    strategies.before_epoch(1)
    found, plain = gradient(strategies.penalty), gradient(None)
    wanted = exact(net, *data, xi, sgd, penalty=lambda alphas: 3 * sum(
        row.exp().sum().log() for alpha in alphas for row in alpha))  # fmt: skip
    assert relative_error(found, wanted) < 1e-9
    difference = [f - p for f, p in zip(found, plain, strict=True)]
    assert relative_error(difference, [3 * torch.softmax(a, 1) for a in net.alphas()]) < 1e-9


def test_alpha_lr_says_what_is_allowed():
    from config import alpha_lr

    assert (alpha_lr("auto"), alpha_lr("0.01")) == ("auto", 0.01)
    with pytest.raises(argparse.ArgumentTypeError, match="or auto"):
        alpha_lr("automatic")


@pytest.mark.parametrize(("epochs", "warm"), [(1, 0), (2, 1), (3, 1), (18, 5), (50, 13)])
def test_an_automatic_warm_up_is_a_quarter_and_leaves_alpha_an_epoch(epochs, warm):
    for words in ("--warmup_epochs auto", "--quick"):
        strategies = strategies_of(f"{words} --epochs {epochs}", 20)
        assert (strategies.cfg.warmup, strategies.alpha_steps) == (warm, 20 * (epochs - warm))
