"""Seed, means, loss, evaluation and size: what both training loops need."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import FAST_AUGMENT, FAST_SEARCH
from torch import nn

import augment
import search
import utils
from config import AugmentConfig
from data_sets.named import DataSpec
from devices.pick import Device
from tracking import checkpoint

CPU = Device(torch.device("cpu"))


def training(*words):
    return AugmentConfig(["--genotype", "PDARTS", *words])


# --- metrics ------------------------------------------------------------------------------------


def portions(logits, y, topk=(1, 5)):
    """Top-k accuracies by sorting, sample by sample."""
    ranked = [sorted(range(len(row)), key=lambda c, row=row: -row[c]) for row in logits.tolist()]
    return [sum(int(c) in r[:k] for r, c in zip(ranked, y, strict=True)) / len(y) for k in topk]


def test_hits_count_the_best_k():
    logits = torch.tensor([[3.0, 2, 1, 0], [0.0, 1, 2, 3], [0.0, 3, 2, 1]])
    y = torch.tensor([0, 2, 0])
    assert [a.item() for a in utils.hits(logits, y, (1, 2))] == [1, 2]


@pytest.mark.parametrize("n_classes", [1, 2, 3, 4, 10])
def test_top5_of_few_classes_is_top_of_all(n_classes):
    torch.manual_seed(0)
    logits, y = torch.randn(6, n_classes), torch.randint(n_classes, (6,))
    found = [a.item() / 6 for a in utils.hits(logits, y)]
    assert found == pytest.approx(portions(logits, y))
    if n_classes <= 5:
        assert found[1] == 1


def test_meter_is_a_mean_over_samples_and_not_over_batches():
    torch.manual_seed(0)
    logits, y = torch.randn(10, 6), torch.randint(6, (10,))
    meter = utils.Meter(CPU)
    for part in (slice(0, 7), slice(7, 10)):
        meter.add(F.cross_entropy(logits[part], y[part]), logits[part], y[part])
    result = meter.result()
    assert result["loss"] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-6)
    assert [result["top1"], result["top5"]] == pytest.approx(portions(logits, y))
    assert result["seconds"] > 0
    assert result["images_per_second"] == pytest.approx(10 / result["seconds"])


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_noticed(loss):
    meter = utils.Meter(CPU)
    meter.add(torch.tensor(loss), torch.randn(2, 3), torch.tensor([0, 1]))
    with pytest.raises(FloatingPointError, match="the loss is not finite"):
        meter.means()


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_evaluation_is_the_plain_loss_over_all_images_without_gradients(amp):
    torch.manual_seed(0)
    net = nn.Linear(4, 3)
    batches = [(torch.randn(n, 4), torch.randint(3, (n,))) for n in (5, 2)]
    kinds = []

    def forward(X):
        logits = net(X)
        kinds.append((logits.dtype, logits.requires_grad))
        return logits

    result = utils.evaluate(forward, batches, Device(torch.device("cpu"), amp))
    assert kinds == [(torch.bfloat16 if amp == "bf16" else torch.float32, False)] * 2
    X, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    wanted = F.cross_entropy(net(X), y).item()
    assert result["loss"] == pytest.approx(wanted, rel=1e-2 if amp == "bf16" else 1e-6)
    assert result["top5"] == 1


def test_endless_starts_again():
    batches = utils.endless([1, 2, 3])
    assert [next(batches) for _ in range(7)] == [1, 2, 3, 1, 2, 3, 1]


def test_a_seed_sets_all_generators():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

    utils.seed_everything(3)
    first = draw()
    utils.seed_everything(3)
    assert draw() == first
    utils.seed_everything(4)
    assert not set(draw()) & set(first)
    assert checkpoint.rng_state().keys() >= {"python", "numpy", "torch"}


# --- the loss of training -----------------------------------------------------------------------


def test_the_loss_is_plain_cross_entropy_unless_asked_otherwise():
    assert utils.criterion(training(), (3, 5), CPU) is F.cross_entropy


def test_balanced_classes_have_the_same_say_and_labels_are_smoothed():
    torch.manual_seed(0)
    counts = (2, 6, 12)
    y = torch.tensor([c for c, n in enumerate(counts) for _ in range(n)])
    logits = torch.randn(20, 3, dtype=torch.float64)
    log_p = F.log_softmax(logits, dim=1)
    words = ("--class_weights", "balanced", "--label_smoothing", "0.1")

    # over all images, every class counts a third
    of_classes = [-log_p[y == c, c].mean().item() for c in range(3)]
    balanced = utils.criterion(training(*words[:2]), counts, CPU)
    loss = balanced(logits.float(), y)
    assert loss.item() == pytest.approx(sum(of_classes) / 3, rel=1e-5)

    smooth = utils.criterion(training(*words[2:]), counts, CPU)
    targets = 0.9 * F.one_hot(y, 3) + 0.1 / 3
    wanted = -(targets * log_p).sum(dim=1).mean().item()
    assert smooth(logits.float(), y).item() == pytest.approx(wanted, rel=1e-5)

    # weights of (N / (n_classes * n_c)): their mean over the images is 1
    both = utils.criterion(training(*words), counts, CPU)
    assert both.keywords["weight"].tolist() == pytest.approx([20 / 3 / n for n in counts])
    assert both.keywords["label_smoothing"] == 0.1


def test_a_class_without_images_does_not_spoil_the_weights():
    balanced = utils.criterion(training("--class_weights", "balanced"), (0, 4), CPU)
    assert torch.isfinite(balanced(torch.zeros(2, 2), torch.tensor([1, 1])))


# --- the size of a network ----------------------------------------------------------------------


class Small(nn.Module):
    """3x3 convolution of 3 channels to 4, a linear layer, and a head that is not counted."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.linear = nn.Linear(4, 2)
        self.aux_head = nn.Linear(4, 2)

    def forward(self, X):
        return self.linear(self.conv(X).mean(dim=(2, 3)))


class ReadsValues(Small):
    """Takes a decision that depends on values: it does not run on the meta device."""

    def forward(self, X):
        return super().forward(X) * (1.0 if X.sum().item() > 1 else 2.0)


@pytest.mark.parametrize("kind", [Small, ReadsValues])
def test_the_size_of_a_network_is_counted_and_said(kind):
    net = kind().train()
    spec = DataSpec("x", 3, (5, 6), ("a", "b"), (0.0,) * 3, (1.0,) * 3)
    size = utils.network_size(net, spec, training("--layers", "7", "--init_channels", "9"))
    params, madds = 3 * 4 * 9 + 4 * 2 + 2, 3 * 4 * 9 * 5 * 6 + 4 * 2
    assert size == {"params": params, "madds": madds, "size": [5, 6], "layers": 7, "channels": 9}
    assert net.training
    assert next(net.parameters()).device.type == "cpu"
    assert utils.describe_size({**size, "params": 1234567, "madds": 12345678}) == (
        "7 cells, 9 channels: 1.235 M params (1,234,567) without the auxiliary head, 12.3 M "
        "multiply-adds for an image of 5x6"
    )
    assert utils.count_params(net) == params + 10
    assert utils.count_params(nn.Sequential(net), auxiliary=False) == params


@pytest.mark.parametrize("n_steps", [1, 8, 36, 37, 38, 1000])
def test_the_statistics_of_a_batchnorm_settle_in_the_steps_that_there_are(n_steps):
    """Of few steps, too, hardly anything is left of the 0 and 1 that they begin with."""
    net = nn.Sequential(nn.BatchNorm2d(1), nn.BatchNorm2d(1, momentum=None))
    utils.settle_norms(net, n_steps)
    X = torch.randn(64, 1, 4, 4) * 3 + 10
    with torch.no_grad():
        for _ in range(n_steps):
            net(X)
    norm = net[0]
    assert norm.running_mean.item() == pytest.approx(X.mean().item(), rel=0.021)
    assert norm.running_var.item() == pytest.approx(X.var().item(), rel=0.021)
    assert (norm.momentum == 0.1) == (n_steps > 37)
    assert norm.momentum >= 0.1
    assert net[1].momentum is None  # it takes the mean of all


@pytest.mark.parametrize(
    ("main", "words"),
    [(search.main, FAST_SEARCH), (augment.main, [*FAST_AUGMENT, "--genotype", "DARTS_V2"])],
)
def test_a_run_settles_its_norms_for_all_of_its_steps(here, monkeypatch, main, words):
    heard, settle = [], utils.settle_norms
    monkeypatch.setattr(utils, "settle_norms", lambda net, n: heard.append(n) or settle(net, n))
    main([*words, "--epochs", "2", "--name", "a"])
    assert heard == [4]  # two epochs of two steps
    main(["--name", "a", "--resume"])
    assert heard == [4, 4]
