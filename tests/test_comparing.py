"""Trainings alike: the engine, halving, what is said of it."""

import pytest
import torch
from torch import nn

import genotypes as gt
import utils
from comparing.training import CPU, Recipe, train
from data_sets import loaders, named
from data_sets.options import DataOptions
from models import augment_cnn

CELL = gt.random_genotype(3, ["skip_connect", "max_pool_3x3", "sep_conv_3x3"], n_nodes=2)
RECIPE = Recipe(epochs=2, layers=3, init_channels=2)


def halves(**changes):
    """A tenth of the digits in two halves, as a comparison reads them."""
    options = DataOptions(
        dataset="digits", data_path="./data/", in_channels=None, input_size=None, test_portion=0.2,
        bad_images="fail", subset=0.1, augment="auto", hflip=None, cutout_length=0, cache_gb=1.0,
        batch_size=32, workers=0, seed=1, max_megapixels=180.0, val_portion=0.5,
    )  # fmt: skip
    return loaders.search_data(options._replace(**changes))


# --- the engine ---------------------------------------------------------------------------------


def by_hand(cell, data, recipe, seed):
    """The recipe of App. A.2, written once more: the loss and top1 of every epoch."""
    utils.seed_everything(seed)
    net = augment_cnn.build(data.spec, recipe, cell)
    net.to(memory_format=torch.channels_last)
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = 1 - 0.02 ** (1 / (recipe.epochs * len(data.train)))  # of few steps
    optim = torch.optim.SGD(net.parameters(), 0.025, 0.9, weight_decay=3e-4)
    data.train.restart([seed, 0])
    cross_entropy, found = nn.CrossEntropyLoss(), []
    for epoch in range(recipe.epochs):
        cosine = torch.cos(torch.tensor(torch.pi * epoch / recipe.epochs, dtype=torch.float64))
        optim.param_groups[0]["lr"] = 0.025 * (1 + cosine.item()) / 2
        net.train()
        net.drop_path_prob(0.2 * epoch / recipe.epochs)
        for X, y in data.train:
            logits, aux = net(X)
            optim.zero_grad()
            (cross_entropy(logits, y) + 0.4 * cross_entropy(aux, y)).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optim.step()
        net.eval()
        with torch.no_grad():
            rows = [(net(X)[0], y) for X, y in data.val]
        logits, y = (torch.cat(parts) for parts in zip(*rows, strict=True))
        found.append((cross_entropy(logits, y).item(), (logits.argmax(1) == y).float().mean()))
    return found


def test_the_engine_is_the_recipe_of_the_paper():
    data, heard = halves(), []
    scores = train(CELL, data, RECIPE, 5, on_epoch=heard.append)
    assert heard == scores
    assert [score["epoch"] for score in scores] == [1, 2]
    for score, (loss, top1) in zip(scores, by_hand(CELL, data, RECIPE, 5), strict=True):
        assert score["loss"] == pytest.approx(loss, rel=1e-5)
        assert score["top1"] == pytest.approx(top1.item(), abs=1e-6)


def test_a_training_follows_from_its_seed_alone_and_the_split_does_not():
    data = halves()
    pixels = torch.cat([X for X, _ in data.val])
    first = [score["loss"] for score in train(CELL, data, RECIPE, 5)]
    other = [score["loss"] for score in train(CELL, data, RECIPE, 6)]
    again = [score["loss"] for score in train(CELL, data, RECIPE, 5)]
    assert first == again
    assert first != other
    assert torch.equal(pixels, torch.cat([X for X, _ in data.val]))


def test_any_network_can_be_trained():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    before = net[1].weight.clone()
    (score,) = train(net, halves(), RECIPE._replace(epochs=1), 5)
    assert 0 <= score["top1"] <= 1
    assert not torch.equal(before, net[1].weight)


def test_a_loss_that_is_not_finite_ends_the_training():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.constant_(net[1].weight, float("nan"))
    with pytest.raises(FloatingPointError, match="training loss is not finite"):
        train(net, halves(), RECIPE, 5)


def test_a_comparison_never_reads_the_test_split(monkeypatch):
    load = named.load_split

    def guarded(name, path, split):
        assert split, "the test split was opened"
        return load(name, path, split)

    monkeypatch.setattr(named, "load_split", guarded)
    train(CELL, halves(), RECIPE._replace(epochs=1), 5, CPU)
