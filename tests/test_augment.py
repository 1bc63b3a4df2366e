"""augment.py end to end on the bundled digits."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import FAST_AUGMENT, TINY_AUGMENT, equal, lines, run_in
from torchvision.ops import StochasticDepth

import augment
import genotypes as gt
from data_sets import loaders, named
from models import ops
from models.augment_cells import AugmentCell
from models.augment_cnn import AugmentCNN

ROOT = Path(__file__).parent.parent


def test_the_run_folder(finished_augment):
    folder, out = finished_augment
    run = folder / "augments" / "a"
    assert sorted(os.listdir(run)) == [
        "a.log", "best.pt", "checkpoint.pt", "config.json", "genotype.json", "loss_accuracy.png",
        "metrics.jsonl", "normal.gv", "normal.png", "reduce.gv", "reduce.png", "report.html",
        "summary.json", "tb",
    ]  # fmt: skip
    log = (run / "a.log").read_text()
    assert re.sub(r"^\d\d/\d\d \d\d:\d\d:\d\d \| ", "", log, flags=re.M) == out
    # its cell can be drawn and trained again from the folder
    assert gt.load(run) == gt.load(folder / "searchs" / "s")
    records = lines(run / "metrics.jsonl")
    assert [(r["phase"], r["epoch"]) for r in records] == [
        ("train", 1), ("val", 1), ("train", 2), ("val", 2),
    ]  # fmt: skip
    assert [r["lr"] for r in records[::2]] == pytest.approx([0.025, 0.0125])


def test_the_final_report(finished_augment):
    folder, out = finished_augment
    held = [r["top1"] for r in lines(folder / "augments/a/metrics.jsonl") if r["phase"] == "val"]
    assert f"test accuracy of the last epoch (2): {held[-1]:.2%}" in out
    best = max(held)
    assert f"test accuracy of the best epoch ({1 + held.index(best)}): {best:.2%}" in out
    net = AugmentCNN(8, 1, 2, 10, 3, True, gt.load(folder / "searchs/s"))
    total = sum(p.numel() for p in net.parameters())
    aux = sum(p.numel() for p in net.aux_head.parameters())
    assert f"{(total - aux) / 1e6:.3f} M params ({total - aux:,}; with" in out
    assert f"auxiliary head {total:,})" in out
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


def test_evaluate_needs_no_other_flag_and_agrees_with_training(finished_augment):
    folder, _ = finished_augment
    records = {
        r["epoch"]: r for r in lines(folder / "augments/a/metrics.jsonl") if r["phase"] == "val"
    }
    a, best, last = "augments/a", "augments/a/best.pt", "augments/a/checkpoint.pt"
    for path, files in ((a, [last, best]), (best, [best]), (last, [last])):
        out = run_in(folder, augment.main, ["--evaluate", path])
        assert [line.split(",")[0] for line in out.splitlines()] == files
        for line in out.splitlines():
            epoch = int(re.search(r"epoch (\d+)", line)[1])
            shown = re.findall(r"top1 ([\d.]+)%", line)
            assert shown == [f"{100 * records[epoch]['top1']:.2f}"] * 2
            assert f"loss {records[epoch]['loss']:.4f}" in line
    assert "epoch 2," in run_in(folder, augment.main, ["--evaluate", last])
    assert not (folder / "augments" / "digits").exists()


def test_evaluate_as_a_process(finished_augment):
    folder, _ = finished_augment
    done = subprocess.run(
        [sys.executable, ROOT / "augment.py", "--evaluate", "augments/a"],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "training logged top1" in done.stdout


def test_a_saved_network_gives_the_same_logits(finished_augment):
    folder, _ = finished_augment
    state = torch.load(folder / "augments/a/best.pt", weights_only=True)
    assert not any(key.startswith("module.") for key in state["model"])
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
    finished_search, tmp_path, source, wanted, name
):
    folder, _ = finished_search
    os.symlink(folder / "searchs", tmp_path / "searchs")
    words = ["--layers", "2", "--init_channels", "1", "--epochs", "1", "--genotype", source]
    run_in(tmp_path, augment.main, words)
    state = torch.load(tmp_path / "augments" / name / "checkpoint.pt", weights_only=True)
    assert gt.from_str(state["genotype"]) == (wanted or gt.load(folder / source))


def test_resuming_goes_on_as_if_nothing_had_happened(here, monkeypatch):
    Path("g.json").write_text(gt.to_json(gt.DARTS_V2))
    words = [*TINY_AUGMENT, "--epochs", "3", "--genotype", "g.json"]
    augment.main([*words, "--name", "straight"])
    validate, calls = augment.validate, []

    def cut_off(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return validate(*args)

    monkeypatch.setattr(augment, "validate", cut_off)
    with pytest.raises(SystemExit) as caught:
        augment.main([*words, "--name", "cut"])
    assert caught.value.code == 130
    monkeypatch.setattr(augment, "validate", validate)
    os.remove("g.json")  # the run knows its genotype
    augment.main(["--name", "cut", "--resume"])
    states = [
        torch.load(f"augments/{name}/checkpoint.pt", weights_only=True)
        for name in ("straight", "cut")
    ]
    for key in set(states[0]) - {"flags"}:
        assert equal(states[0][key], states[1][key]), key
    epochs = [r["epoch"] for r in lines("augments/cut/metrics.jsonl")]
    assert epochs == [1, 1, 2, 2, 3, 3]


def test_schedules(here, monkeypatch):
    seen = []
    train = augment.train

    def note(loader, net, optim, *args):
        p = {m.p for m in net.modules() if isinstance(m, StochasticDepth)}
        seen.append((optim.param_groups[0]["lr"], p.pop()))
        assert not p
        return train(loader, net, optim, *args)

    monkeypatch.setattr(augment, "train", note)
    words = [*TINY_AUGMENT, "--genotype", "DARTS_V2", "--drop_path_prob", "0.4"]
    augment.main([*words, "--epochs", "4"])
    assert [lr for lr, _ in seen] == pytest.approx(
        [0.0125 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)]
    )
    assert [p for _, p in seen] == pytest.approx([0, 0.1, 0.2, 0.3])
    augment.main([*words, "--epochs", "1"])
    assert seen[-1] == (0.025, 0)


class Silent:
    """Stands for a RunFolder that records nothing."""

    def step(self, *args):
        pass

    advance = due = step


def train_once(words):
    """One pass over 64 random images, without momentum and decay: what each parameter moved by."""
    torch.manual_seed(0)
    cfg = augment.AugmentConfig(["--genotype", "DARTS_V2", *words])
    net = AugmentCNN(8, 1, 2, 10, 3, True, gt.DARTS_V2)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optim = torch.optim.SGD(net.parameters(), 1.0)
    loader = [(torch.randn(64, 1, 8, 8), torch.randint(10, (64,)))]
    augment.train(loader, net, optim, 1, cfg, Silent(), torch.device("cpu"))
    return {name: (p.detach() - before[name]).norm() for name, p in net.named_parameters()}


def test_the_auxiliary_loss_trains_the_auxiliary_head_in_proportion():
    def head(moved):
        return moved["aux_head.linear.weight"].item()

    with_, half = (train_once(["--aux_weight", w, "--grad_clip", "1e9"]) for w in ("0.4", "0.2"))
    assert head(with_) > 1e-3
    assert head(half) == pytest.approx(head(with_) / 2, rel=1e-3)
    assert with_["linear.weight"] == pytest.approx(half["linear.weight"].item(), rel=1e-5)


def test_the_gradient_is_clipped():
    moved = train_once(["--grad_clip", "0.01"])
    assert torch.stack(list(moved.values())).norm().item() == pytest.approx(0.01, rel=1e-2)


def test_every_flag_reaches_its_place(here, monkeypatch):
    seen = {}

    def spy(owner, name):
        real = getattr(owner, name)

        def call(*args, **kwargs):
            seen[name] = args, kwargs
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    spy(torch.optim, "SGD")
    spy(loaders, "augment_data")
    words = "--genotype DARTS_V2 --lr 0.03 --momentum 0.7 --weight_decay 0.002 --cutout_length 3"
    augment.main([*FAST_AUGMENT, *words.split()])
    args, kwargs = seen["SGD"]
    assert (args[1], kwargs) == (
        0.03, {"momentum": 0.7, "weight_decay": 0.002, "fused": False}
    )  # fmt: skip
    args, kwargs = seen["augment_data"]
    assert args == ("digits", "./data/", 700, None)
    options = kwargs.pop("options")
    assert kwargs == {"pin_memory": False, "cutout_length": 3, "seed": 1, "lower": False}
    assert options == named.Options(notebooks=options.notebooks)


def test_the_flags_of_speed_reach_their_places(here, monkeypatch):
    seen, compiled = [], []
    real = AugmentCNN.forward

    def note(self, X):
        seen.append(torch.is_autocast_enabled("cpu"))
        return real(self, X)

    monkeypatch.setattr(AugmentCNN, "forward", note)
    monkeypatch.setattr(AugmentCell, "compile", lambda self: compiled.append(self))
    words = [*FAST_AUGMENT, "--genotype", "DARTS_V2", "--name", "a"]
    augment.main([*words, "--amp", "bf16", "--compile"])
    assert seen.count(False) <= 2  # counting the multiply-adds, at the start and at the end
    assert seen.count(True) == 3  # two steps and the test split
    assert len(compiled) == 3


def test_a_network_without_auxiliary_head(here):
    augment.main([*FAST_AUGMENT, "--genotype", "DARTS_V2", "--name", "a", "--aux_weight", "0"])
    state = torch.load("augments/a/best.pt", weights_only=True)
    assert not [key for key in state["model"] if "aux" in key]
    augment.main(["--evaluate", "augments/a"])


@pytest.mark.parametrize("flag", ["--genotype PDARTS", "--lr 9", "--seed 77", "--quick",
                                  "--overwrite", "--name zzz"])  # fmt: skip
def test_evaluate_refuses_flags_that_would_have_no_effect(finished_augment, flag, capsys):
    with pytest.raises(SystemExit) as caught:
        run_in(finished_augment[0], augment.main, ["--evaluate", "augments/a", *flag.split()])
    assert caught.value.code == 2
    assert f"does not take {flag.split()[0]}" in capsys.readouterr().err


def test_evaluate_takes_flags_that_leave_the_result_alone(finished_augment):
    folder, _ = finished_augment
    outs = [
        run_in(folder, augment.main, ["--evaluate", "augments/a", *words])
        for words in ([], ["--batch_size", "7"], ["--device", "cpu", "--workers", "0"])
    ]
    assert len({re.sub(r"loss [\d.]+", "", out) for out in outs}) == 1


def test_evaluate_names_a_checkpoint_that_does_not_fit_any_more(
    finished_augment, monkeypatch, capsys
):
    for name in list(ops.OPS):
        if name != "none":
            monkeypatch.setitem(
                ops.OPS, name, lambda C, stride, affine: ops.SepConv(C, 9, stride, affine)
            )
    with pytest.raises(SystemExit) as caught:
        run_in(finished_augment[0], augment.main, ["--evaluate", "augments/a"])
    assert caught.value.code == 2
    text = capsys.readouterr().err
    assert "checkpoint.pt does not fit the network any more" in text
    assert text.count("\n") == 1


def test_training_learns(here):
    words = "--genotype DARTS_V2 --layers 3 --init_channels 4 --batch_size 32 --epochs 6 --name a"
    augment.main([*words.split(), "--drop_path_prob", "0", "--cutout_length", "0", "--lr", "0.05"])
    held = [r["top1"] for r in lines("augments/a/metrics.jsonl") if r["phase"] == "val"]
    assert held[-1] > 0.8


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("", 2, "--genotype is needed"),
        ("--genotype DARTS_V3", 2, "no genotype 'DARTS_V3'"),
        ("--genotype Genotype(", 2, "not a genotype"),
        ("--genotype DARTS_V2 --dataset nope", 2, "unknown data set"),
        ("--genotype DARTS_V2 --batch_size 5000", 2, "--batch_size 5000 is larger"),
        ("--evaluate augments/none", 2, "augments/none"),
        ("--name x --resume", 2, "no run to go on with"),
    ],
)
def test_what_cannot_run_ends_in_one_line_and_leaves_nothing(here, words, code, message, capsys):
    with pytest.raises(SystemExit) as caught:
        augment.main(words.split())
    assert caught.value.code == code
    text = capsys.readouterr().err
    assert message in text
    assert text.count("\n") == 1
    assert os.listdir(here) == []


def test_a_supernet_is_not_evaluated_as_a_final_network(finished_search, capsys, monkeypatch):
    monkeypatch.chdir(finished_search[0])
    with pytest.raises(SystemExit) as caught:
        augment.main(["--evaluate", "searchs/s"])
    assert caught.value.code == 2
    assert "is a supernet" in capsys.readouterr().err


def test_a_genotype_with_an_op_that_is_gone(here, capsys):
    text = gt.to_str(gt.DARTS_V2).replace("sep_conv_3x3", "gone", 1)
    with pytest.raises(SystemExit) as caught:
        augment.main(["--genotype", text])
    assert caught.value.code == 2
    assert "unknown op 'gone'; known: avg_pool_3x3" in capsys.readouterr().err


def test_the_test_split_is_never_trained_on():
    data = loaders.augment_data("digits", "", 96)
    trained = {x.numpy().tobytes() for x in data.train.dataset.raw.images}
    held = {x.numpy().tobytes() for x in data.held.dataset.raw.images}
    assert not trained & held
