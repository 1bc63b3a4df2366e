"""What is not a number: it changes no weight, and the run stops, or leaves the step out."""

import functools
import math
import random
from collections.abc import Iterator

import pytest
import torch
from conftest import (
    CPU,
    FAST_AUGMENT,
    FAST_SEARCH,
    checkpoint_of,
    ends_in_one_line,
    equal,
    lines,
    log_of,
)
from torch import nn

import architect
import augment
import search
import utils
from devices.step_guard import ALPHA, LOSS, NotFinite, StepGuard, W

# two steps an epoch, two epochs; nothing is read between the steps
TWO = ["--epochs", "2", "--print_freq", "1000", "--name", "x"]
SEARCH = [*FAST_SEARCH, "--primitives", "skip_connect,sep_conv_3x3", *TWO]
AUGMENT = [*FAST_AUGMENT, "--genotype", "DARTS_V2", *TWO]
BAD = (math.nan, math.inf, -math.inf)


@pytest.fixture
def spoil(monkeypatch):
    """spoil(owner, name, calls, change): the numbered calls of owner.name, counted from 1, return
    change(result); returns the list of all results."""

    def patch(owner, name, calls, change):
        real, results = getattr(owner, name), []

        @functools.wraps(real)
        def spoiled(*args, **kwargs):
            args = [list(a) if isinstance(a, Iterator) else a for a in args]
            results.append(real(*args, **kwargs))
            return change(results[-1], *args) if len(results) in calls else results[-1]

        monkeypatch.setattr(owner, name, spoiled)
        return results

    return patch


def spoil_weights(value, norm, weights, limit):
    """What clip_grad_norm_ finds and leaves where one gradient is `value`."""
    next(w for w in weights if w.grad is not None).grad[0] = value
    return nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])


def spoil_alpha(value, result, self, *batch):
    self.alphas[0].grad[0, 0] = value
    return result


SEEDED = random.Random(12)
FAULTS = {
    # where it is injected, what is said of it
    "w": (nn.utils, "clip_grad_norm_", spoil_weights, W),
    "alpha": (architect.Architect, "unrolled_backward", spoil_alpha, ALPHA),
}
FORMS = [
    ["--order", "1"],
    *(["--hessian", form] for form in architect.HESSIANS),
    ["--no-reuse_gradient"],
    ["--amp", "bf16"],
]


def moved(before, after, *names):
    """Whether each of these parts of two checkpoints differs."""
    return [not equal(before[name], after[name]) for name in names]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_search_stops_in_one_line_and_keeps_its_checkpoint(here, spoil, fault):
    owner, name, change, what = FAULTS[fault]
    step, value = SEEDED.randint(1, 2), SEEDED.choice(BAD)
    spoil(owner, name, {2 + step}, functools.partial(change, value))
    text = ends_in_one_line(search.main, SEARCH, code=1)
    assert f"{what} is not finite (epoch 2, step {step} of 2; learning rate now --w_lr" in text
    assert "--alpha_lr 0.03" in text
    assert "lower --" in text
    assert "the checkpoint of epoch 1 is kept" in text
    assert text.endswith("--name x --resume --on_nan skip")
    state = checkpoint_of("searchs/x")
    assert state["epoch"] == 1
    assert all(t.isfinite().all() for t in state["model"].values())
    assert log_of("searchs/x").splitlines()[-1] == text.removeprefix("search.py: ")


def test_what_was_saved_inside_an_epoch_is_named(here, spoil):
    spoil(nn.utils, "clip_grad_norm_", {2}, functools.partial(spoil_weights, math.nan))
    text = ends_in_one_line(search.main, [*SEARCH, "--checkpoint_minutes", "1e-9"], code=1)
    assert "(epoch 1, step 2 of 2; " in text
    assert "the checkpoint of step 1 of epoch 1 is kept, go on from there without" in text


def test_the_run_goes_on_from_there_without_such_steps(here, spoil):
    value = SEEDED.choice(BAD)
    # the first step of the second epoch, and again when the run goes on
    spoil(nn.utils, "clip_grad_norm_", {3, 5}, functools.partial(spoil_weights, value))
    ends_in_one_line(search.main, SEARCH, code=1)
    search.main(["--name", "x", "--resume", "--on_nan", "skip"])
    assert checkpoint_of("searchs/x")["epoch"] == 2
    warning = f"WARNING: epoch 2: left out, since not finite: {W} in 1 step (the first is "
    assert warning in log_of("searchs/x")


@pytest.mark.parametrize("form", FORMS, ids=" ".join)
def test_a_step_that_is_left_out_changes_nothing(here, spoil, form):
    """The last step of a search is spoiled in w and in alpha: all is as after the step before."""
    states = []

    class Spy(StepGuard):
        def begin(self):
            super().begin()
            states.append(state_of(self))

    def state_of(guard):
        tensors = [*guard.net.parameters(), *guard.net.buffers()]
        for optim in guard.optims:
            tensors += [v for s in optim.state.values() for v in s.values()]
        return [t.clone() for t in tensors if isinstance(t, torch.Tensor)]

    real = search.build_optimizers

    def build(cfg, net, *args):
        Spy.net, Spy.optims = net, real(cfg, net, *args)
        return Spy.optims

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "StepGuard", Spy)
        patch.setattr(search, "build_optimizers", build)
        for owner, name, change, _ in FAULTS.values():
            spoil(owner, name, {2}, functools.partial(change, SEEDED.choice(BAD)))
        search.main([*SEARCH, *form, "--epochs", "1", "--on_nan", "skip"])
    after = state_of(Spy)
    assert len(states) == 2
    assert all(map(torch.equal, states[-1], after))
    assert not all(map(torch.equal, states[-2], states[-1]))
    trained, _ = lines("searchs/x/metrics.jsonl")
    assert trained["left_out"] == 2
    for what in (W, ALPHA):
        assert f"{what} in 1 step (the first is 2)" in log_of("searchs/x")


def test_a_search_without_faults_is_the_same_whatever_on_nan_says(here):
    kept = []
    for on_nan in ("stop", "skip"):
        search.main([*SEARCH, "--epochs", "1", "--on_nan", on_nan, "--name", on_nan])
        kept.append(checkpoint_of(f"searchs/{on_nan}"))
    a, b = kept
    assert moved(a, b, "model", "w_optim", "alpha_optim", "rng") == [False] * 4


@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_a_training_stops_or_leaves_out(here, spoil, fault):
    calls = {2, 5}
    if fault == "loss":  # the main loss of the second step, then of another
        spoil(augment.utils, "criterion", {1, 2}, lambda f, *_: Spoiled(f, {3, 5}))
        what = LOSS
    else:
        spoil(nn.utils, "clip_grad_norm_", calls, functools.partial(spoil_weights, math.nan))
        what = W
    text = ends_in_one_line(augment.main, AUGMENT, code=1)
    assert f"{what} is not finite (epoch 1, step 2 of 2; learning rate now --lr 0.025)" in text
    assert text.endswith(
        "lower --lr or --grad_clip 5.0, or leave such steps out with --on_nan skip; nothing was "
        "saved; start again, with --overwrite to keep the name"
    )
    assert not list(here.glob("augments/x/*.pt"))
    augment.main([*AUGMENT, "--name", "y", "--on_nan", "skip"])
    records = [r for r in lines("augments/y/metrics.jsonl") if r["phase"] == "train"]
    assert sum(r["left_out"] for r in records) >= 1
    assert all(math.isfinite(r["loss"]) for r in records)
    assert all(t.isfinite().all() for t in checkpoint_of("augments/y")["model"].values())


class Spoiled:
    """A loss that is NaN at the numbered calls."""

    def __init__(self, real, calls):
        self.real, self.calls, self.n = real, calls, 0

    def __call__(self, logits, y):
        self.n += 1
        loss = self.real(logits, y)
        return loss * math.nan if self.n in self.calls else loss


@pytest.mark.parametrize("script", [search, augment])
def test_a_validation_loss_is_named_as_such(here, monkeypatch, script):
    real, calls = script.validate, []

    def spoiled(loader, net, device):
        calls.append(1)
        with torch.no_grad():
            if len(calls) == 2:
                net.get_parameter("net.linear.bias" if script is search else "linear.bias").fill_(
                    math.nan
                )
        return real(loader, net, device)

    monkeypatch.setattr(script, "validate", spoiled)
    words = {search: SEARCH, augment: AUGMENT}[script]
    text = ends_in_one_line(script.main, [*words, "--on_nan", "skip"], code=1)
    assert "the validation loss is not finite (epoch 2; learning rate now --" in text
    assert text.endswith("the checkpoint of epoch 1 is kept")


def test_a_run_in_which_every_step_is_left_out_stops(here, spoil):
    spoil(nn.utils, "clip_grad_norm_", (1, 2), functools.partial(spoil_weights, math.nan))
    text = ends_in_one_line(search.main, [*SEARCH, "--on_nan", "skip"], code=1)
    assert f"{W} of every step is not finite (epoch 1; " in text


def test_a_learning_rate_that_explodes_is_stopped_by_itself(here):
    """No injection: weights of 1e30 overflow by themselves."""
    words = [*AUGMENT, "--lr", "1e30", "--print_freq", "1", "--aux_weight", "0"]
    text = ends_in_one_line(augment.main, words, code=1)
    assert "is not finite (epoch 1" in text
    assert "lower --lr" in text


# --- the guard alone ----------------------------------------------------------------------------


def one_layer():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_weights_and_momentum_stay_in_both_kinds_of_optimizer(kind, fused):
    """Fused kernels decide on the device, as on a CUDA card. The bad step is the first, then one
    within; the other steps are as without it."""
    more = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    X = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(1))

    def run(bad, batches):
        net = one_layer()
        optim = kind(net.parameters(), 0.1, weight_decay=0.1, fused=fused, **more)
        guard = StepGuard(CPU, net, "skip")
        for i, batch in enumerate(batches):
            guard.begin()
            optim.zero_grad()
            loss = net(batch * (math.nan if i in bad else 1)).square().sum()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            guard.update(optim, loss, w=norm)
        return net.state_dict(), guard.left_out()

    spoiled, count = run({0, 3}, X)
    sound, _ = run(set(), X[[1, 2, 4, 5]])
    assert count == 2
    for name, value in sound.items():
        torch.testing.assert_close(spoiled[name], value, rtol=0, atol=0, msg=name)


def test_the_first_fault_is_named():
    net = one_layer()
    optim = torch.optim.SGD(net.parameters(), 0.1)
    good, bad = torch.tensor(1.0), torch.tensor(math.inf)
    guard = StepGuard(CPU, net, "stop")
    meter = utils.Meter(CPU, guard=guard)
    for alpha, loss, w in ((good, good, good), (bad, good, good), (good, bad, bad)):
        guard.begin()
        guard.update(optim, alpha=alpha)
        guard.update(optim, loss, w=w)
        meter.add(loss, torch.eye(2), torch.tensor([0, 1]))
    with pytest.raises(NotFinite) as caught:
        meter.means()
    assert (caught.value.what, caught.value.step) == (ALPHA, 2)
    assert guard.counts.tolist() == [[1, 1, 1], [3, 3, 2]]
    assert guard.describe() == (
        "the training loss in 1 step (the first is 3), the gradient of the weights in 1 step (the "
        "first is 3), the gradient of alpha in 1 step (the first is 2)"
    )


def test_a_batch_without_a_loss_is_in_no_mean():
    guard = StepGuard(CPU, one_layer(), "skip")
    meter = utils.Meter(CPU, guard=guard)
    y = torch.tensor([0, 1])
    meter.add(torch.tensor(math.nan), torch.eye(2), y)
    assert math.isnan(meter.means()["loss"])
    meter.add(torch.tensor(0.5), torch.eye(2), y)
    assert meter.means() == {"loss": 0.5, "top1": 1.0, "top5": 1.0}


def test_a_step_reads_nothing_from_the_device(monkeypatch):
    """On the meta device reading a value is an error: so no step waits, with fused kernels."""
    meta = CPU._replace(torch_device=torch.device("meta"))
    net = one_layer().to("meta")
    optim = torch.optim.SGD(net.parameters(), 0.1)
    optim.defaults["fused"] = True
    monkeypatch.setattr(optim, "step", lambda: None)
    guard = StepGuard(meta, net, "skip")
    meter = utils.Meter(meta, guard=guard)
    for _ in range(2):
        guard.begin()
        loss = net(torch.zeros(4, 3, device="meta")).sum()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        guard.update(optim, loss, w=norm)
        meter.add(loss, torch.zeros(4, 2, device="meta"), torch.zeros(4, dtype=int, device="meta"))
    with pytest.raises((RuntimeError, NotImplementedError)):
        meter.means()
