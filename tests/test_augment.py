"""augment.py end to end on the bundled digits."""

import json
import math
import os
import re
from pathlib import Path

import pytest
import torch
from conftest import (
    FAST_AUGMENT,
    checkpoint_of,
    ends_in_one_line,
    equal,
    interrupt,
    lines,
    log_of,
    scores,
)
from torchvision.ops import StochasticDepth

import augment
import evaluate
import genotypes as gt
from config import AugmentConfig
from data_sets import loaders, splits
from data_sets.options import DataOptions
from models.augment_cells import AugmentCell
from models.augment_cnn import AugmentCNN

# a cell of one node
SMALL = gt.Genotype(*[[[("sep_conv_3x3", 0), ("skip_connect", 1)]], [2]] * 2)


def test_the_run_folder(finished_augment):
    folder, out = finished_augment
    run = folder / "augments" / "a"
    assert sorted(os.listdir(run)) == [
        "a.log", "best.pt", "checkpoint.pt", "config.json", "confusion.json", "confusion.png",
        "genotype.json", "loss_accuracy.png", "metrics.jsonl", "plots", "previous.pt",
        "report.html", "summary.json", "tb",
    ]  # fmt: skip
    wrong = [f"wrong-{n}.png" for n in range(1, 9)]
    drawn = ["normal.gv", "normal.png", "reduce.gv", "reduce.png"]
    assert sorted(os.listdir(run / "plots")) == [*drawn, *wrong]
    # the log is what the terminal said, and the details
    kept = [line for line in log_of(run).splitlines() if "s per step" not in line]
    assert kept == out.splitlines()
    # its cell can be drawn and trained again from the folder
    assert gt.load(run) == gt.load(folder / "searchs" / "s")
    records = lines(run / "metrics.jsonl")
    assert [(r["phase"], r["epoch"]) for r in records] == [
        ("train", 1), ("val", 1), ("train", 2), ("val", 2),
    ]  # fmt: skip
    assert [r["lr"] for r in records[::2]] == pytest.approx([0.025, 0.0125])


def test_the_final_report(finished_augment):
    folder, out = finished_augment
    top1 = scores(folder / "augments/a")
    assert f"test accuracy of the last epoch (2): {top1[-1]:.2%}" in out
    best = max(top1)
    last_best = max(epoch for epoch, score in enumerate(top1, start=1) if score == best)
    assert re.search(rf"test accuracy of the best epoch \({last_best}\b.*\): {best:.2%}", out)
    net = AugmentCNN(8, 1, 2, 10, 3, True, gt.load(folder / "searchs/s"))
    total = sum(p.numel() for p in net.parameters())
    aux = sum(p.numel() for p in net.aux_head.parameters())
    size = f"3 cells, 2 channels: {(total - aux) / 1e6:.3f} M params ({total - aux:,}) without the"
    assert out.count(size) == 2
    assert re.search(r"[\d.]+ M multiply-adds for an image of 8x8", out)
    assert "seed 1; repository " in out
    network = json.loads((folder / "augments/a/summary.json").read_text())["network"]
    assert (network["params"], network["layers"], network["channels"]) == (total - aux, 3, 2)
    for r in lines(folder / "augments/a/metrics.jsonl")[1::2]:
        assert re.search(rf"^ +{r['epoch']}/2 .* {r['loss']:.4f} +{r['top1']:.2%} ", out, re.M)
    assert "test loss" in out
    assert re.search(r"pictures took [\d.]+ s, .* look at augments/a/report.html", out)
    assert f"torch {torch.__version__}" in out
    assert "classes 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in out
    assert "cutout 4" in out  # half of 8, as the paper's 16 is half of 32


def test_a_saved_network_gives_the_same_logits(finished_augment):
    folder, _ = finished_augment
    state = checkpoint_of(folder / "augments/a", "best.pt")
    nets = []
    for _ in range(2):
        net = AugmentCNN(8, 1, 2, 10, 3, True, gt.from_str(state["genotype"]))
        net.load_state_dict(state["model"])
        nets.append(net.eval())
    X = torch.randn(3, 1, 8, 8)
    assert torch.equal(nets[0](X)[0], nets[1](X)[0])


@pytest.mark.parametrize(
    ("source", "wanted", "name"),
    [
        ("searchs/s", None, "s"),
        ("searchs/s/genotype-last.json", None, "digits"),
        ("PDARTS", gt.PDARTS, "PDARTS"),
        (gt.to_str(gt.DARTS_V1), gt.DARTS_V1, "digits"),
    ],
)
def test_the_genotype_comes_from_folder_file_name_or_text(
    finished_search, here, source, wanted, name
):
    folder, _ = finished_search
    os.symlink(folder / "searchs", "searchs")
    run = augment.main([*FAST_AUGMENT, "--init_channels", "1", "--genotype", source])
    assert run == os.path.join("augments", name)
    assert gt.from_str(checkpoint_of(run)["genotype"]) == (wanted or gt.load(folder / source))


def test_resuming_goes_on_as_if_nothing_had_happened(here):
    Path("g.json").write_text(gt.to_json(SMALL))
    words = [*FAST_AUGMENT, "--epochs", "3", "--genotype", "g.json"]
    straight = checkpoint_of(augment.main([*words, "--name", "straight"]))
    interrupt(augment, [*words, "--name", "cut"], epoch=3)
    os.remove("g.json")  # the run knows its genotype
    cut = checkpoint_of(augment.main(["--name", "cut", "--resume"]))
    for key in set(straight) - {"flags"}:
        assert equal(straight[key], cut[key]), key
    assert [r["epoch"] for r in lines("augments/cut/metrics.jsonl")] == [1, 1, 2, 2, 3, 3]


def test_schedules(here, monkeypatch):
    seen = []
    train = augment.train

    def note(loader, net, optim, *args):
        p = {m.p for m in net.modules() if isinstance(m, StochasticDepth)}
        seen.append((optim.param_groups[0]["lr"], p.pop()))
        assert not p
        return train(loader, net, optim, *args)

    monkeypatch.setattr(augment, "train", note)
    words = [*FAST_AUGMENT, "--genotype", gt.to_str(SMALL), "--drop_path_prob", "0.4"]
    augment.main([*words, "--epochs", "4"])
    assert [lr for lr, _ in seen] == pytest.approx(
        [0.0125 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)]
    )
    assert [p for _, p in seen] == pytest.approx([0, 0.1, 0.2, 0.3])
    augment.main([*words, "--epochs", "1"])
    assert seen[-1] == (0.025, 0)


@pytest.fixture
def train_once(open_run):
    """train_once(words): one pass over 64 random images, without momentum and decay -> what each
    parameter moved by."""

    def train(words):
        torch.manual_seed(0)
        run = open_run(["--genotype", "DARTS_V2", *words], AugmentConfig)
        net = AugmentCNN(8, 1, 2, 10, 3, True, gt.DARTS_V2)
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        optim = torch.optim.SGD(net.parameters(), 1.0)
        loader = [(torch.randn(64, 1, 8, 8), torch.randint(10, (64,)))]
        augment.train(loader, net, optim, torch.nn.functional.cross_entropy, 1, run)
        return {name: (p.detach() - before[name]).norm() for name, p in net.named_parameters()}

    return train


def test_the_auxiliary_loss_trains_the_auxiliary_head_in_proportion(train_once):
    def head(moved):
        return moved["aux_head.linear.weight"].item()

    with_, half = (train_once(["--aux_weight", w, "--grad_clip", "1e9"]) for w in ("0.4", "0.2"))
    assert head(with_) > 1e-3
    assert head(half) == pytest.approx(head(with_) / 2, rel=1e-3)
    assert with_["linear.weight"] == pytest.approx(half["linear.weight"].item(), rel=1e-5)


def test_the_gradient_is_clipped(train_once):
    moved = train_once(["--grad_clip", "0.01"])
    assert torch.stack(list(moved.values())).norm().item() == pytest.approx(0.01, rel=1e-2)


def test_every_flag_reaches_its_place(here, monkeypatch):
    seen, autocast, compiled = {}, [], []

    def spy(owner, name):
        real = getattr(owner, name)

        def call(*args, **kwargs):
            seen[name] = args, kwargs
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    def note(self, X):
        autocast.append(torch.is_autocast_enabled("cpu"))
        return real_forward(self, X)

    real_forward = AugmentCNN.forward
    monkeypatch.setattr(AugmentCNN, "forward", note)
    monkeypatch.setattr(AugmentCell, "compile", lambda self: compiled.append(self))
    spy(torch.optim, "SGD")
    spy(loaders, "augment_data")
    words = (
        "--genotype DARTS_V2 --lr 0.03 --momentum 0.7 --weight_decay 0.002 --cutout_length 3 "
        "--aux_weight 0 --amp bf16 --compile --name a"
    )
    augment.main([*FAST_AUGMENT, *words.split()])
    args, kwargs = seen["SGD"]
    assert args[1:] == (0.03, 0.7)
    assert kwargs == {"weight_decay": 0.002, "fused": False}
    (options,), _ = seen["augment_data"]
    assert options == DataOptions(
        "digits", "./data/", in_channels=None, input_size=None, test_portion=0.2,
        bad_images="fail", subset=0.1, augment="auto", hflip=None, cutout_length=3, cache_gb=2.0,
        batch_size=64, workers=None, seed=1, max_megapixels=180.0, cache_files=options.cache_files,
    )  # fmt: skip
    assert autocast == [False] + [True] * 14  # the multiply-adds; two steps, six test batches
    # twice, the second time image by image
    assert len(compiled) == 3
    # without a weight there is no auxiliary head
    assert not [key for key in checkpoint_of("augments/a", "best.pt")["model"] if "aux" in key]
    evaluate.main(["augments/a"])


def test_training_learns(here):
    words = (
        "--layers 3 --init_channels 4 --batch_size 32 --epochs 3 --lr 0.1 --augment none "
        "--cutout_length 0 --drop_path_prob 0"
    )
    run = augment.main([*words.split(), "--genotype", gt.to_str(SMALL)])
    assert scores(run)[-1] > 0.8


GONE = gt.to_str(gt.DARTS_V2).replace("sep_conv_3x3", "gone", 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--genotype is needed"),
        (["--genotype", "DARTS_V3"], "no genotype 'DARTS_V3'"),
        (["--genotype", "Genotype("], "not a genotype"),
        (["--genotype", GONE], "unknown op 'gone'; known: avg_pool_3x3"),
        (["--genotype", "DARTS_V2", "--dataset", "nope"], "unknown data set"),
        (["--genotype", "DARTS_V2", "--batch_size", "5000"], "--batch_size 5000 is larger"),
        (["--init_from", "augments/none"], "augments/none"),
        (["--name", "x", "--resume"], "no run to go on with: augments/x does not exist"),
    ],
)
def test_what_cannot_run_ends_in_one_line_and_leaves_nothing(here, words, message):
    assert message in ends_in_one_line(augment.main, words)
    assert os.listdir(here) == []


def test_the_test_split_is_never_trained_on():
    cfg = AugmentConfig(["--genotype", "DARTS_V2"])
    data = loaders.augment_data(DataOptions.from_config(cfg))
    trained, scored = (
        {image.numpy().tobytes() for image in splits.source(loader.dataset).pixels}
        for loader in (data.train, data.val)
    )
    assert len(trained) > 1000
    assert len(scored) > 300
    assert not trained & scored
