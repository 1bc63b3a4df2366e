"""search.py end to end on the bundled digits: what it leaves, what it says, what it survives."""

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import (
    CPU,
    FAST_AUGMENT,
    FAST_OPS,
    FAST_SEARCH,
    SHORT_SEARCH,
    checkpoint_of,
    ends_in_one_line,
    equal,
    interrupt,
    lines,
    log_of,
    run_in,
    scores,
)
from torch import nn

import augment
import genotypes as gt
import report
import search
import utils
import visualize
from config import AugmentConfig, SearchConfig
from console import errors
from data_sets import loaders, named
from data_sets.options import DataOptions
from devices import layout, pick
from models import augment_cnn, ops, search_cnn
from models.search_cells import SearchCell
from models.search_cnn import SearchCNNController
from tracking import board, common_log, search_log

ROOT = Path(__file__).parent.parent


@pytest.fixture
def fast_search(here):
    """A search of one epoch of two steps, without pictures: searchs/s."""
    search.main([*FAST_SEARCH, "--name", "s"])
    return Path("searchs/s")


# --- what a finished search leaves --------------------------------------------------------------


def test_the_run_folder(finished_search):
    folder, out = finished_search
    run = folder / "searchs" / "s"
    assert sorted(os.listdir(run)) == [
        "alphas.jsonl", "alphas.png", "best.pt", "checkpoint.pt", "config.json",
        "genotype-last.json", "genotype.json", "loss_accuracy.png", "metrics.jsonl", "normal.gif",
        "plots", "previous.pt", "reduce.gif", "report.html", "s.log", "summary.json", "tb",
    ]  # fmt: skip
    assert sorted(os.listdir(run / "plots")) == [
        f"EP0{epoch}-{cell}.{kind}"
        for epoch in (1, 2) for cell in ("normal", "reduce") for kind in ("gv", "png")
    ]  # fmt: skip
    # the log is what the terminal said, with the time of day, and the details
    said = log_of(run).splitlines()
    detail = r".*mean entropy|.*s per st|its edges, |  (cell|normal|reduction) "
    kept = [line for line in said if not re.match(detail, line)]
    assert kept == out.splitlines()
    assert len(said) == len(kept) + 5 + 12  # and the table of ten edges


def test_metrics(finished_search):
    records = lines(finished_search[0] / "searchs" / "s" / "metrics.jsonl")
    assert [(r["phase"], r["epoch"], r["step"]) for r in records] == [
        ("train", 1, 5), ("val", 1, 5), ("train", 2, 10), ("val", 2, 10),
    ]  # fmt: skip
    for record in records:
        assert 0 <= record["top1"] <= record["top5"] <= 1
        assert record["loss"] > 0
        assert record["seconds"] > 0
        assert record["images_per_second"] > 0
    # cosine from 0.025 to 0 over two epochs; the first epoch has the starting rate
    assert [r["lr"] for r in records] == pytest.approx([0.025, 0.025, 0.0125, 0.0125])


def test_alphas_counts_and_genotypes_agree(finished_search):
    run = finished_search[0] / "searchs" / "s"
    records = lines(run / "alphas.jsonl")
    assert [r["epoch"] for r in records] == [1, 2]
    for record in records:
        genotype = gt.from_str(record["genotype"])
        for cell, gene in (("normal", genotype.normal), ("reduce", genotype.reduce)):
            rows = [row for node in record[cell] for row in node]
            assert [len(node) for node in record[cell]] == [2, 3]
            assert all(sum(row) == pytest.approx(1) and min(row) > 0 for row in rows)
            entropy = sum(-p * math.log(p) for row in rows for p in row) / len(rows)
            assert record["entropy"][cell] == pytest.approx(entropy)
            ops_of_text = [op for edges in gene for op, _ in edges]
            assert record["counts"][cell] == {op: ops_of_text.count(op) for op in ops_of_text}
    assert gt.load(run / "genotype-last.json") == gt.from_str(records[-1]["genotype"])
    best = json.loads((run / "genotype.json").read_text())
    assert gt.load(run) == gt.from_str(records[best["epoch"] - 1]["genotype"])
    top1 = scores(run)
    assert best["top1"] == max(top1)
    assert best["epoch"] == len(top1) - top1[::-1].index(max(top1))  # of equals the last
    assert (best["primitives"], best["n_nodes"], best["k"]) == (gt.PRIMITIVES, 2, 2)
    assert (best["dataset"], best["size"]) == ("digits", [8, 8])


def test_the_checkpoint_holds_everything_and_loads_with_weights_only(finished_search):
    state = checkpoint_of(finished_search[0] / "searchs/s")
    assert set(state) == {
        "model", "w_optim", "alpha_optim", "scheduler", "rng", "epoch", "best", "top1",
        "genotype", "flags", "data", "images", "train_loader", "alpha_loader", "inside",
        "strategies", "stopped", "chosen", "rng_others",
    }  # fmt: skip
    assert state["epoch"] == 2
    flags = state["flags"]
    assert flags["primitives"] == gt.PRIMITIVES
    net = SearchCNNController(
        1, flags["init_channels"], 10, flags["layers"], nn.CrossEntropyLoss(), flags["n_nodes"]
    )
    net.load_state_dict(state["model"])
    assert gt.to_str(net.genotype()) == state["genotype"]
    options = DataOptions.from_config(SearchConfig(["--subset", "0.5", "--seed", "1"]))
    scored = search.validate(loaders.search_data(options).val, net, CPU)
    assert scored["top1"] == state["top1"]
    # every step moves the statistics of BatchNorm once
    counts = {int(v) for k, v in state["model"].items() if k.endswith("num_batches_tracked")}
    assert counts == {10}


def test_config_json(finished_search):
    record = json.loads((finished_search[0] / "searchs" / "s" / "config.json").read_text())
    assert record["flags"]["seed"] == 1
    assert record["flags"]["alpha_lr"] == "auto"
    assert record["versions"]["torch"] == torch.__version__
    assert set(record) == {"flags", "versions", "device", "start_time"}


def test_what_the_log_says(finished_search):
    folder, out = finished_search
    log = log_of(folder / "searchs/s")
    assert "digits: 360 images for w, 359 for alpha, batch 64, w_lr 0.025" in out
    assert "second order (one-sided difference, eps 0.3, gradient of w reused)" in out
    assert log.count("mean entropy of alpha") == 4
    assert re.search(r"\d s per step, \d+ images per second", log)
    top1 = scores(folder / "searchs/s")
    half = "on the alpha half"
    best = 2 - top1[::-1].index(max(top1))  # of equals the later
    if best == 2:
        assert (
            f"last and best genotype (epoch 2, supernet top1 {top1[1]:.2%} {half}; re"
            in out.replace(", the last of 2 that are equal", "")
        )
    else:
        assert f"last genotype (epoch 2, supernet top1 {top1[1]:.2%} {half}): Genotype(" in out
        assert f"best genotype (epoch 1, supernet top1 {top1[0]:.2%} {half}; recomm" in out
    assert "10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in out
    assert out.count("; recommended)") == 1
    assert "is the accuracy of the supernet, not of the found cell" in out
    assert "node 0 = " in out
    # the row of each epoch, with the numbers of the records
    records = {(r["phase"], r["epoch"]): r for r in lines(folder / "searchs/s/metrics.jsonl")}
    for alphas in lines(folder / "searchs/s/alphas.jsonl"):
        epoch = alphas["epoch"]
        trained, val = records["train", epoch], records["val", epoch]
        skips = sum(op == "skip_connect" for edges in gt.from_str(alphas["genotype"]).normal
                    for op, _ in edges)  # fmt: skip
        assert re.search(
            rf"^ +{epoch}/2 +{trained['loss']:.4f} +{trained['top1']:.2%} +{val['loss']:.4f} +"
            rf"{val['top1']:.2%} +{max(top1[:epoch]):.2%} +\d+\*? +{skips}/4 +\d+ +[\d:]+$",
            out, re.M,
        )  # fmt: skip
    every_edge = re.findall(r"^  (?:normal|reduction) .* -> .*\d$", log, re.M)
    assert len(every_edge) == 10
    assert re.search(r"pictures took [\d.]+ s, [\d.]+% of the [\d.]+ s of the epochs", out)
    command = out.strip().splitlines()[-1]
    assert shlex.split(command)[2:] == ["--genotype", "searchs/s"]


def test_tensorboard_has_the_scalars(finished_search):
    tb = finished_search[0] / "searchs" / "s" / "tb"
    (events,) = (path for path in tb.iterdir() if path.is_file())
    raw = events.read_bytes()
    for tag in (
        "loss/train", "accuracy/train", "top5/train", "rate/lr", "loss/val",
        "accuracy/val", "top5/val",
        "mix/normal/0-2/sep_conv_3x3", "mix/reduce/2-3/none", "mix/entropy/normal", "config",
        "cell/normal", "cell/reduce", "alpha_normal", "alpha_reduce",
    ):  # fmt: skip
        assert tag.encode() in raw
    pictures = raw.count(b"\x89PNG")
    genotypes = [r["genotype"] for r in lines(tb.parent / "alphas.jsonl")]
    assert pictures == 2 * (1 + (genotypes[0] != genotypes[1]))  # a cell that changed, once
    (hparams,) = (tb / "hparams").iterdir()
    assert b"best_top1" in hparams.read_bytes()
    assert b"alpha_lr" in hparams.read_bytes()


def test_the_end_names_the_size_of_the_network_that_its_command_trains(finished_search, here):
    folder, out = finished_search
    words = shlex.split(out.strip().splitlines()[-1])[2:]
    cfg = AugmentConfig(words)
    spec = named.spec("digits")
    net = augment_cnn.build(spec, cfg, gt.load(folder / "searchs/s"))
    params = sum(p.numel() for name, p in net.named_parameters() if "aux_head" not in name)
    madds = utils.multiply_adds(net, spec.C_in, spec.size)
    assert f"{params / 1e6:.3f} M params ({params:,}) without the auxiliary head, " in out
    assert f"auxiliary head, {madds / 1e6:.1f} M multiply-adds for an image of 8x8" in out
    network = json.loads((folder / "searchs/s/summary.json").read_text())["network"]
    assert network == {
        "params": params, "madds": madds, "size": [8, 8], "layers": 20, "channels": 36,
    }  # fmt: skip
    assert "--max_madds" not in out


def test_a_quiet_search_says_its_result_and_its_size_if_that_is_over_the_limit(here, capsys):
    search.main([*FAST_SEARCH, "--name", "s", "--quiet", "--max_madds", "0.001"])
    said = capsys.readouterr()
    assert said.err == ""
    warned, said = ([row for row in said.out.splitlines() if row.startswith("WARNING: ") == is_so]
                    for is_so in (True, False))  # fmt: skip
    assert "multiply-adds are more than --max_madds 0.001; train" in "".join(warned)
    first, verdict, sure, *rest = said
    assert first.startswith("last and best genotype (epoch 1")
    assert verdict.startswith("verdict on the supernet: 6.94% of 72 images are right, where guess")
    assert sure.startswith("0 of 8 edges are decided")
    assert len(rest) == 2
    assert shlex.split(rest[-1])[2:] == ["--genotype", "searchs/s", "--quick"]
    assert " 1/1 " in log_of("searchs/s")
    # a finished search reports again, and a limit may change
    search.main(["--name", "s", "--resume", "--max_madds", "1000"])
    out = capsys.readouterr().out
    assert rest[-2] in out
    assert "--max_madds" not in out
    assert " 1/1 " not in out


def test_the_last_line_of_a_search_is_a_command_that_runs(finished_search):
    folder, out = finished_search
    beside = shutil.copytree(folder, f"{folder}-pasted")  # others look at what is in the folder
    command = out.strip().splitlines()[-1]
    small = shlex.join([*FAST_AUGMENT, "--name", "pasted"])
    done = subprocess.run(
        f"{command} {small}", shell=True, cwd=beside, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "test accuracy of the last epoch (1)" in done.stdout
    assert Path(beside, "augments", "pasted", "best.pt").exists()


def test_the_printed_command_carries_what_augment_needs(open_run):
    words = ["--device", "cpu", "--workers", "2", "--quick"]
    command = search_log.augment_command(open_run(words))
    cfg = AugmentConfig(shlex.split(command)[2:])
    assert cfg.genotype == "searchs/digits"  # which knows the data
    assert (cfg.device, cfg.workers, cfg.quick) == ("cpu", 2, True)


# --- as a process -------------------------------------------------------------------------------


def test_a_real_process_with_loader_workers_is_silent_on_stderr(here):
    done = subprocess.run(
        [sys.executable, ROOT / "search.py", *FAST_SEARCH, "--workers", "2"],
        capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert " 1/1 " in done.stdout
    assert os.listdir("searchs") == ["digits"]


# --- reproducibility ----------------------------------------------------------------------------


def alphas_of(state):
    return [value for key, value in state["model"].items() if key.startswith("alpha_")]


@pytest.mark.pictures
def test_one_seed_one_search_and_resuming_goes_on_as_if_nothing_had_happened(here):
    words = [*FAST_SEARCH, "--epochs", "2"]
    search.main([*words, "--name", "straight"])

    # the same again, cut off in the middle of the second epoch
    assert "search.py --name cut --resume" in interrupt(search, [*words, "--name", "cut"], epoch=2)
    assert checkpoint_of("searchs/cut")["epoch"] == 1
    last = log_of("searchs/cut").splitlines()[-1]
    assert last.startswith("interrupted; go on after epoch 1 with")
    with open("searchs/cut/metrics.jsonl", "a") as stream:
        stream.write('{"phase": "tr')  # a line cut off, too
    for undrawn in Path("searchs/cut/plots").glob("EP01*"):  # cut off before it was drawn
        undrawn.unlink()
    search.main(["--name", "cut", "--resume"])

    straight, cut = checkpoint_of("searchs/straight"), checkpoint_of("searchs/cut")
    for key in set(straight) - {"flags"}:
        assert equal(straight[key], cut[key]), key
    for kind in ("genotype.json", "genotype-last.json", "alphas.jsonl"):
        assert Path("searchs/straight", kind).read_text() == Path("searchs/cut", kind).read_text()
    records = lines("searchs/cut/metrics.jsonl")
    assert [(r["phase"], r["epoch"]) for r in records] == [
        (phase, epoch) for epoch in (1, 2) for phase in ("train", "val")
    ]

    # and its pictures have the whole history, even of an epoch that was not drawn
    sources = sorted(path.name for path in Path("searchs/straight/plots").glob("*.gv"))
    assert len(sources) == 4
    for name in [f"plots/{source}" for source in sources] + ["normal.gif", "reduce.gif"]:
        assert Path("searchs/cut", name).read_bytes() == Path("searchs/straight", name).read_bytes()


def test_a_checkpoint_that_does_not_fit_any_more_is_named(fast_search, monkeypatch):
    monkeypatch.setitem(
        ops.OPS, "sep_conv_3x3", lambda C, stride, affine: ops.SepConv(C, 7, stride, affine)
    )
    text = ends_in_one_line(search.main, ["--name", "s", "--resume"])
    assert "checkpoint.pt does not fit the network any more" in text


def test_tensorboard_keeps_the_last_finished_epoch_when_resumed(fast_search, monkeypatch):
    purges, add = [], board.EventFile.add

    def note(self, step=0, **content):
        if "session_log" in content:
            purges.append(step)
        add(self, step, **content)

    monkeypatch.setattr(board.EventFile, "add", note)
    search.main(["--name", "s", "--resume"])
    assert purges == [3]  # two steps are finished; the reader hides the step of the purge as well


def test_last_and_best_are_named_apart_where_they_differ(here, monkeypatch, capsys):
    top1 = iter([0.9, 0.4])
    phase = {"loss": 1.0, "top5": 1.0, "seconds": 1.0, "images_per_second": 1.0}
    monkeypatch.setattr(search, "validate", lambda *args: {**phase, "top1": next(top1)})
    search.main([*FAST_SEARCH, "--epochs", "2", "--name", "s"])
    out = capsys.readouterr().out
    assert "last genotype (epoch 2, supernet top1 40.00% on the alpha half): Genotype(" in out
    assert "best genotype (epoch 1, supernet top1 90.00% on the alpha half; recommended)" in out
    assert json.loads(Path("searchs/s/genotype.json").read_text())["epoch"] == 1
    assert json.loads(Path("searchs/s/genotype-last.json").read_text())["epoch"] == 2
    assert checkpoint_of("searchs/s", "best.pt")["epoch"] == 1


# --- the rules of a step ------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    """What search.py hands to the parts it is made of: {part: (args, kwargs) of each call}."""
    seen = {}

    def spy(owner, name):
        real = getattr(owner, name)

        def call(*args, **kwargs):
            seen.setdefault(name, []).append((args, kwargs))
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    spy(torch.optim, "SGD")
    spy(torch.optim, "Adam")
    spy(search, "Architect")
    spy(nn.utils, "clip_grad_norm_")
    spy(loaders, "search_data")
    return seen


@pytest.mark.parametrize("reuse", [False, True])
def test_every_flag_reaches_its_place(here, calls, reuse):
    words = (
        "--w_lr 0.03 --w_momentum 0.7 --w_weight_decay 0.002 --w_grad_clip 0.5 --alpha_lr 0.004 "
        "--alpha_weight_decay 0.05 --val_portion 0.4 --cutout_length 3 --seed 11 "
        f"--hessian forward --eps 0.2 {'--reuse_gradient' if reuse else '--no-reuse_gradient'}"
    )
    search.main([*FAST_SEARCH, *words.split()])
    ((weights, lr, momentum), kwargs), = calls["SGD"]  # fmt: skip
    assert (lr, momentum, kwargs) == (0.03, 0.7, {"weight_decay": 0.002, "fused": False})
    ((alphas, lr), kwargs), = calls["Adam"]  # fmt: skip
    on_cards = {"fused": False, "capturable": False}
    assert (lr, kwargs) == (0.004, {"betas": (0.5, 0.999), "weight_decay": 0.05, **on_cards})
    ((net, *choices), _), = calls["Architect"]  # fmt: skip
    assert choices == ["forward", 0.2, reuse]
    assert list(map(id, weights)) == list(map(id, net.weights()))
    assert list(map(id, alphas)) == list(map(id, net.alphas()))
    # clipping touches w only, whatever its gradient comes from
    assert len(calls["clip_grad_norm_"]) == 2
    for (clipped, norm), _ in calls["clip_grad_norm_"]:
        assert list(map(id, clipped)) == list(map(id, net.weights()))
        assert norm == 0.5
    ((options,), _), = calls["search_data"]  # fmt: skip
    assert options == DataOptions(
        "digits", "./data/", in_channels=None, input_size=None, test_portion=0.2,
        bad_images="fail", subset=0.1, augment="auto", hflip=None, cutout_length=3, cache_gb=2.0,
        batch_size=32, workers=None, seed=11, val_portion=0.4, max_megapixels=180.0,
        cache_files=options.cache_files,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "wanted", "n_compiled"),
    [
        ("", (False, None), 0),
        ("--amp bf16 --checkpoint_cells --compile", (True, torch.bfloat16), 3),
    ],
)
def test_the_flags_of_speed_and_memory_reach_their_places(
    here, monkeypatch, words, wanted, n_compiled
):
    seen, compiled = [], []

    def note(self, X, *args):
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        seen.append((self.checkpoint_cells, dtype))
        return real(self, X, *args)

    real = search_cnn.SearchCNN.forward
    monkeypatch.setattr(search_cnn.SearchCNN, "forward", note)
    monkeypatch.setattr(SearchCell, "compile", lambda self: compiled.append(self))
    monkeypatch.setattr(layout, "require_compiler", lambda device: None)
    search.main([*FAST_SEARCH, "--order", "1", *words.split()])
    assert set(seen) == {wanted}
    assert len(compiled) == n_compiled


def test_the_device_is_prepared_as_asked(here, monkeypatch):
    seen = []
    monkeypatch.setattr(pick, "prepare_device", lambda cfg: seen.append(cfg) or CPU)
    search.main([*FAST_SEARCH, "--threads", "2", "--no-tf32"])
    ((threads, tf32),) = [(cfg.threads, cfg.tf32) for cfg in seen]
    assert (threads, tf32) == (2, False)
    assert "searchs/digits on cpu (1 thread)" in log_of("searchs/digits")


def test_a_small_share_for_alpha_does_not_shorten_the_pass(here):
    # 128 images for w, 14 for alpha
    run = search.main([*FAST_SEARCH, "--val_portion", "0.1", "--batch_size", "20"])
    state = checkpoint_of(run)["model"]
    counts = {int(v) for k, v in state.items() if k.endswith("num_batches_tracked")}
    assert counts == {6}


@pytest.mark.parametrize("reuse", [False, True])
def test_the_weight_step_is_plain_sgd_on_the_training_batch(here, monkeypatch, reuse):
    grads = []
    real = torch.optim.SGD.step

    def step(self, *args):
        grads.append([p.grad.clone() for group in self.param_groups for p in group["params"]])
        return real(self, *args)

    wanted = []

    class Spy(search.Architect):
        def unrolled_backward(self, trn_X, trn_y, *args):
            self.batch = trn_X, trn_y
            if reuse:  # at the alpha before its step
                note()
            return super().unrolled_backward(trn_X, trn_y, *args)

    spies = []
    adam = torch.optim.Adam.step

    def after_alpha(self, *args):
        result = adam(self, *args)
        if not reuse:
            note()
        return result

    def note():
        net, (X, y) = spies[0].net, spies[0].batch
        buffers = [b.clone() for b in net.buffers()]
        wanted.append(torch.autograd.grad(net.loss(X, y), net.weights(), materialize_grads=True,
                                          allow_unused=True))  # fmt: skip
        for b, value in zip(net.buffers(), buffers, strict=True):
            b.copy_(value)

    def make(*args, **words):
        spies.append(Spy(*args, **words))
        return spies[0]

    monkeypatch.setattr(search, "Architect", make)
    monkeypatch.setattr(torch.optim.SGD, "step", step)
    monkeypatch.setattr(torch.optim.Adam, "step", after_alpha)
    words = ["--reuse_gradient" if reuse else "--no-reuse_gradient", "--w_grad_clip", "1e9"]
    search.main([*FAST_SEARCH, *words])
    assert len(grads) == len(wanted) == 2
    for found, right in zip(grads, wanted, strict=True):
        for a, b in zip(found, right, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_a_search_opens_no_test_split(here, monkeypatch):
    real = named.load_split

    def guarded(name, data_path, train):
        assert train, "the test split was opened"
        return real(name, data_path, train)

    monkeypatch.setattr(named, "load_split", guarded)
    search.main(FAST_SEARCH)


def test_a_block_of_ones_own_in_two_edits(here, monkeypatch):
    class Block(nn.Module):
        def __init__(self, C, stride):
            super().__init__()
            self.conv = nn.Conv2d(C, C, 3, stride, padding=1)

        def forward(self, x):
            return torch.relu(self.conv(x))

    monkeypatch.setitem(ops.OPS, "my_block", lambda C, stride, affine: Block(C, stride))
    monkeypatch.setattr(gt, "PRIMITIVES", ["my_block", "none"])
    search.main([*SHORT_SEARCH, "--name", "s"])
    augment.main([*FAST_AUGMENT, "--genotype", "searchs/s"])
    assert gt.load("searchs/s").normal[0] == [("my_block", 0), ("my_block", 1)]


# --- what it survives, and how it fails ---------------------------------------------------------


@pytest.mark.pictures
def test_pictures_that_fail_cost_one_warning_each_and_no_epoch(here, monkeypatch, capsys):
    saved = []

    def fail(*args, **kwargs):
        raise ZeroDivisionError("no ink")

    def fail_to_draw(*args, **kwargs):
        saved.append(checkpoint_of("searchs/s")["epoch"])  # the checkpoint is there already
        raise RuntimeError("no ink")

    monkeypatch.setattr(visualize, "plot", fail_to_draw)
    monkeypatch.setattr(report, "write", fail)
    for kind in search_log.PICTURES:
        monkeypatch.setitem(search_log.PICTURES, kind, fail)
    search.main([*FAST_SEARCH, "--epochs", "2", "--name", "s"])
    assert saved == [1, 2, 2]  # and what is missing once more, at the end
    out = capsys.readouterr().out
    for kind in ("drawing", "curves", "alphas", "GIF", "report"):
        assert out.count(f"WARNING: no {kind}: no ink") == 1
    assert out.count("no ink") == 5
    assert "recommended" in out
    left = os.listdir("searchs/s")
    assert not {"report.html", "alphas.png", "normal.gif"} & set(left)
    assert not [name for name in left if ".tmp" in name]


@pytest.mark.pictures
def test_without_a_renderer_the_sources_are_kept_and_one_warning_given(here, monkeypatch, capsys):
    monkeypatch.setattr(visualize, "find_renderers", list)
    search.main([*FAST_SEARCH, "--epochs", "2", "--name", "s"])
    assert sorted(os.listdir("searchs/s/plots")) == [
        "EP01-normal.gv", "EP01-reduce.gv", "EP02-normal.gv", "EP02-reduce.gv",
    ]  # fmt: skip
    out = capsys.readouterr().out
    assert out.count("no program to draw") == out.count("WARNING: no ") == 1


@pytest.mark.parametrize(("skips", "warned"), [(3, False), (4, True), (8, True)])
def test_a_cell_half_of_skips_is_warned_of(open_run, skips, warned):
    run = open_run()
    run.last = run.best = {"epoch": 2, "top1": 0.5}
    phase = {"loss": 1.0, "top1": 0.5, "seconds": 1.0, "images_per_second": 64.0}
    ops = ["skip_connect"] * skips + ["sep_conv_3x3"] * (8 - skips)
    gene = [[(ops[2 * node], 0), (ops[2 * node + 1], 1)] for node in range(4)]
    tables = [[[0.1] * 4 for _ in range(node + 2)] for node in range(4)]
    for node, edges in enumerate(gene):
        for op, j in edges:
            tables[node][j][FAST_OPS.index(op)] = 0.7
    record = {
        "primitives": FAST_OPS,
        "genotype": gt.to_str(gt.Genotype(gene, range(2, 6), gene, range(2, 6))),
        "normal": tables,
        "reduce": tables,
        "entropy": {"normal": 1.0, "reduce": 1.0},
        "counts": {
            "normal": {"skip_connect": skips, "sep_conv_3x3": 8 - skips},
            "reduce": {"skip_connect": 8},
        },
    }
    search_log.log_epoch(run, phase, phase, record)
    said = log_of(run.files.path)
    assert re.search(rf" {skips}/8 ", said)
    text = f"{skips} of 8 edges of the normal cell are skip connections"
    assert (text in said) == warned


@pytest.mark.parametrize(
    ("words", "warned"),
    [
        ("", False),
        ("--batch_size 128", True),
        ("--batch_size 128 --w_lr 0.05", False),
        ("--batch_size 128 --quick", False),
        ("--batch_size 128 --scale_lr", False),
    ],
)
def test_a_batch_of_another_size_is_warned_of_unless_the_rate_follows(open_run, words, warned):
    run = open_run(words.split())
    common_log.warn_of_learning_rate(run, run.load_data(loaders.search_data), "w_lr")
    said = log_of(run.files.path)
    assert ("the linear rule suggests --w_lr 0.05" in said) == warned
    made = "batch 128 instead of 64, so w_lr 0.025 -> 0.05, w_lr_min 0.0 -> 0"
    assert (f"--scale_lr: {made}\n" in said) == ("--scale_lr" in words)


def test_a_run_of_the_same_name_is_not_touched_but_may_be_overwritten_or_moved(fast_search):
    words = [*FAST_SEARCH, "--name", "s"]
    assert "searchs/s exists; choose another --name" in ends_in_one_line(search.main, words)
    before = alphas_of(checkpoint_of("searchs/s"))
    search.main([*words, "--overwrite", "--seed", "9"])
    assert not equal(alphas_of(checkpoint_of("searchs/s")), before)  # another seed
    shutil.move("searchs/s", "searchs/t")
    search.main(["--name", "t", "--resume"])
    assert checkpoint_of("searchs/t")["flags"]["seed"] == 9


def test_without_a_name_the_next_free_one_is_taken(open_run):
    paths = [open_run().files.path for _ in range(3)]
    assert paths == [os.path.join("searchs", name) for name in ("digits", "digits-2", "digits-3")]


def test_a_folder_that_is_no_run_is_never_overwritten(here):
    (here / "searchs" / "thesis").mkdir(parents=True)
    (here / "searchs" / "thesis" / "thesis.tex").write_text("precious")
    text = ends_in_one_line(search.main, [*FAST_SEARCH, "--name", "thesis", "--overwrite"])
    assert "is no run folder" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--primitives sep_conv_3x4,none", "did you mean sep_conv_3x3 by sep_conv_3x4?"),
        ("--primitives sepconv,none", "unknown op sepconv; known: none, avg_pool_3x3"),
        ("--dataset cifar11", "unknown data set 'cifar11': there is no such folder"),
        ("--dataset cifar-10", "did you mean 'cifar10'?"),
        ("--dataset Fashion-MNIST", "did you mean 'fashionmnist'?"),
        ("--batch_size 1000", "--batch_size 1000 is larger than"),
        ("--gpus 7", "GPU"),
        ("--name x --resume", "no run to go on with: searchs/x does not exist"),
    ],
)
def test_what_cannot_run_ends_in_one_line_and_leaves_nothing(here, words, message):
    assert message in ends_in_one_line(search.main, [*FAST_SEARCH, *words.split()])
    assert os.listdir(here) == []


def test_an_unknown_op_is_refused_before_anything_is_downloaded(here, monkeypatch):
    monkeypatch.setattr(named, "load_split", None)
    text = ends_in_one_line(search.main, ["--primitives", "sepconv", "--dataset", "cifar10"])
    assert "unknown op sepconv" in text
    assert "--ops FILE adds blocks of your own" in text


@pytest.mark.pictures
def test_a_search_of_one_epoch_has_all_pictures_and_no_warning(here, capsys):
    search.main([*FAST_SEARCH, "--name", "s"])
    # of alpha's way, and of a supernet that guesses
    assert capsys.readouterr().out.count("WARNING") == 2
    assert {"normal.gif", "reduce.gif", "loss_accuracy.png"} <= set(os.listdir("searchs/s"))


def test_a_search_stopped_in_its_first_epoch_cannot_be_resumed(here):
    assert "--resume" not in interrupt(search, [*FAST_SEARCH, "--name", "s"])
    text = ends_in_one_line(search.main, ["--name", "s", "--resume"])
    assert "nothing was saved in searchs/s to go on from; start again with --overwrite" in text


def test_a_diverged_search_stops_with_a_hint(here):
    words = ["--epochs", "3", "--w_lr", "1e30", "--w_grad_clip", "1e30"]
    text = ends_in_one_line(search.main, [*FAST_SEARCH, *words], code=1)
    assert "lower --w_lr" in text


def test_a_gpu_too_small_names_the_flags_to_lower(here, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(search.Architect, "unrolled_backward", full)
    assert "--batch_size 32, " in ends_in_one_line(search.main, FAST_SEARCH, code=1)


def test_learning_rates_follow_the_closed_form_and_the_order_sets_xi(here, monkeypatch):
    xis = []

    def note(self, trn_X, trn_y, val_X, val_y, xi, w_optim):
        xis.append((xi, w_optim.param_groups[0]["lr"]))
        for alpha in self.alphas:
            alpha.grad = torch.zeros_like(alpha)

    monkeypatch.setattr(search.Architect, "unrolled_backward", note)
    search.main([*FAST_SEARCH, "--epochs", "4", "--name", "s", "--w_lr_min", "0.005"])
    wanted = [0.005 + 0.5 * 0.02 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)]
    assert [xi for xi, _ in xis[::2]] == pytest.approx(wanted)
    assert all(xi == lr for xi, lr in xis)
    records = [r for r in lines("searchs/s/metrics.jsonl") if r["phase"] == "train"]
    assert [r["lr"] for r in records] == pytest.approx(wanted)
    # one epoch is trained at the full rate, not at zero; first order has no virtual step
    xis.clear()
    search.main([*FAST_SEARCH, "--order", "1"])
    assert xis == [(0.0, 0.025)] * 2


def test_the_last_line_is_written_by_errors_command(finished_search):
    folder, out = finished_search
    line = run_in(
        folder, lambda words: print(errors.command("augment.py", *words)),
        ["--genotype", "searchs/s"],
    )  # fmt: skip
    assert out.strip().splitlines()[-1] == line.strip()
