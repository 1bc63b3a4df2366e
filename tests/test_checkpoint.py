"""Checkpoints: what they keep, how they are written, and what is no checkpoint."""

import contextlib
import errno
import io
import itertools
import json
import math
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL_SEARCH, checkpoint_of, ends_in_one_line, equal, log_of
from fault_helpers import copy_of, in_a_fork, same_result
from PIL import Image
from torch import nn

import augment
import evaluate
import export
import genotypes as gt
import predict
import search
from config import SearchConfig
from data_sets import named, shuffled
from records import files
from tracking import checkpoint, resume
from tracking.run_folder import RunFolder

FINE = [("inside", None), ("stopped", None), ("chosen", None), ("stopped", "x")]
EMPTY_IS_FINE = {  # in the file; each part looks at its own state
    "model", "w_optim", "alpha_optim", "optim", "scheduler", "rng", "flags", "images",
    "train_loader", "alpha_loader",
}  # fmt: skip


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002


def test_the_state_of_every_generator_comes_back():
    state, first = checkpoint.rng_state(), draw()
    assert draw() != first
    checkpoint.set_rng_state(state)
    assert draw() == first


def whole(**changes):
    """A checkpoint of a search, as small as can be; a change to None leaves a key out."""
    progress = {"epoch": 2, "top1": 0.5, "genotype": gt.to_str(gt.DARTS_V1)}
    state = {
        "model": {"w": torch.arange(600.0)}, "w_optim": {}, "alpha_optim": {}, "scheduler": {},
        "train_loader": {}, "alpha_loader": {}, "rng": checkpoint.rng_state(),
        "rng_others": [], "flags": {"a": None}, "images": {}, "best": progress,
        "strategies": {"history": []},
        "data": named.spec("digits").to_dict(), **progress, **changes,
    }  # fmt: skip
    return {
        "inside": None,
        "stopped": None,
        "chosen": None,
        **{key: value for key, value in state.items() if value is not None},
    }


def test_checkpoints_are_read_with_weights_only_and_written_in_one_piece(here, monkeypatch):
    state = whole()
    first = draw()
    checkpoint.save(state, "c.pt")
    read = torch.load("c.pt", weights_only=True)
    assert equal(read, state)
    checkpoint.set_rng_state(checkpoint.load("c.pt")["rng"])
    assert draw() == first

    def full_disk(state, path):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(state, "c.pt")
    assert os.listdir(".") == ["c.pt"]
    assert equal(torch.load("c.pt", weights_only=True), state)


def test_a_checkpoint_is_the_same_byte_for_byte_wherever_it_is_written(here):
    """The temporary name is in none."""
    state = whole()
    checkpoint.save(state, "c.pt")
    first = (here / "c.pt").read_bytes()
    checkpoint.save(state, "c.pt", previous="b.pt")
    assert (here / "c.pt").read_bytes() == (here / "b.pt").read_bytes() == first
    assert b"tmp" not in first


def test_the_file_is_on_the_disk_before_the_rename_and_the_folder_after_it(here, monkeypatch):
    order, fsync, replace = [], os.fsync, os.replace

    def what_is(descriptor):
        return os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(os, "fsync", lambda fd: (order.append(what_is(fd)), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("rename"), replace(a, b)))
    checkpoint.save(whole(), "c.pt")
    assert [name.split("-")[0] for name in order] == ["c.pt.tmp", "rename", here.name.split("-")[0]]


def test_a_rename_that_is_refused_for_a_moment_is_tried_again(here, monkeypatch):
    """As on Windows, where a virus scanner or a sync client has the file open."""
    replace, refused = os.replace, []

    def refuse(source, target):
        if len(refused) < 3:
            refused.append(target)
            raise PermissionError(errno.EACCES, "Permission denied", source, None, target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    checkpoint.save(whole(), "c.pt")
    assert refused == ["c.pt"] * 3
    assert checkpoint.load("c.pt")["epoch"] == 2
    refused.clear()
    monkeypatch.setattr(files, "PATIENCE", -1.0)  # no more patience
    with pytest.raises(PermissionError, match="c.pt"):
        checkpoint.save(whole(), "c.pt")
    assert os.listdir() == ["c.pt"]


# --- damage -------------------------------------------------------------------------------------


def test_files_that_are_no_checkpoints_are_refused_in_one_line(here):
    (here / "text.pt").write_text("hello")
    (here / "empty.pt").write_bytes(b"")
    (here / "folder.pt").mkdir()
    torch.save([1, 2], "list.pt")
    torch.save({"state_dict": {}}, "other.pt")
    torch.save({"model": nn.Linear(1, 1), "flags": {}}, "code.pt")
    for path, why in (
        ("text.pt", "is damaged or no checkpoint"),
        ("empty.pt", "is damaged or no checkpoint"),
        ("folder.pt", "it is no regular file"),
        ("list.pt", "is no checkpoint of search.py or augment.py"),
        ("other.pt", "is no checkpoint of search.py or augment.py"),
        ("code.pt", "is damaged or no checkpoint"),
        ("missing.pt", "No such file or directory"),
    ):
        with pytest.raises(ValueError, match=path) as caught:
            checkpoint.load(path)
        assert why in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "weights_only" not in str(caught.value)  # torch advises to switch it off


def test_no_cut_and_no_flipped_bit_is_taken_for_another_content(here):
    state = whole()
    checkpoint.save(state, "c.pt")
    sound, right = (here / "c.pt").read_bytes(), 0
    rng = random.Random(0)
    for _ in range(150):
        raw = bytearray(sound)
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        if rng.random() < 0.3:
            del raw[rng.randrange(len(raw)) :]
        (here / "c.pt").write_bytes(raw)
        try:
            read = checkpoint.load("c.pt")
        except ValueError as error:
            right += str(error).startswith("c.pt") and "\n" not in str(error)
        else:
            assert equal(read, state)  # a bit that means nothing
            right += 1
    assert right == 150


def test_what_is_missing_or_of_another_type_is_refused_and_named(here):
    wrong = [None, [1], "x", {}, -1, math.nan, torch.ones(1)]
    for key in whole():
        for value in wrong:
            state = whole(**{key: value})
            torch.save(state, "c.pt")
            if (key, value) in FINE or value == {} and key in EMPTY_IS_FINE:
                assert checkpoint.load("c.pt")
                continue
            with pytest.raises(checkpoint.Damaged, match="c.pt is no") as caught:
                checkpoint.load("c.pt")
            if key not in ("w_optim", "alpha_optim"):
                assert f": {key} is " in str(caught.value)


@pytest.mark.parametrize(
    "change",
    ["lr", "w", "T_max", "state", "momentum", "shape", "some momentum", "other weight", "schedule",
     "pass"],
)  # fmt: skip
def test_a_state_with_values_of_other_types_is_refused(change):
    net = nn.Linear(2, 2)
    optim = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optim, 4)
    loader = shuffled.ShuffledLoader([1, 2], 1, [0])
    sound = [{"momentum_buffer": torch.zeros(2, 2)}, {"momentum_buffer": torch.zeros(2)}]

    def with_momentum(state):
        return optim, {**optim.state_dict(), "state": {0: sound[0], 1: sound[1], **state}}

    checkpoint.load_state(*with_momentum({}), "x.pt")
    part, state = {
        "momentum": with_momentum({1: {"momentum_buffer": True}}),
        "shape": with_momentum({1: sound[0]}),
        "some momentum": with_momentum({1: {}}),
        "other weight": with_momentum({2: sound[0]}),
        "schedule": (scheduler, {"a": 1}),
        "pass": (loader, {"pass": -1, "done": 0}),
        "lr": (optim, {**optim.state_dict(), "param_groups": [{"lr": "0.1", "params": [0, 1]}]}),
        "w": (net, {**net.state_dict(), "weight": [1.0]}),
        "T_max": (scheduler, {**scheduler.state_dict(), "T_max": None}),
        "state": (optim, {**optim.state_dict(), "state": [1]}),
    }[change]
    with pytest.raises(checkpoint.Damaged, match="x.pt is no whole checkpoint"):
        checkpoint.load_state(part, state, "x.pt")


@pytest.mark.parametrize("name", ["python", "numpy", "torch"])
def test_states_of_generators_that_are_none_are_refused(name):
    state, first = checkpoint.rng_state(), draw()
    with pytest.raises(checkpoint.Damaged, match="x.pt is damaged: its random generators"):
        checkpoint.set_rng_state({**state, name: [1]}, "x.pt")
    checkpoint.set_rng_state(state)
    assert draw() == first


def test_a_state_that_does_not_fit_is_refused_in_one_line():
    with pytest.raises(ValueError, match="x.pt does not fit the network any more") as caught:
        checkpoint.load_state(nn.Linear(2, 2), nn.Linear(3, 2).state_dict(), "x.pt")
    assert "size mismatch for weight" in str(caught.value)
    assert "\n" not in str(caught.value)
    optim = torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)
    fewer = torch.optim.SGD([nn.Linear(2, 2).weight], 0.1)
    with pytest.raises(ValueError, match="was a block changed"):
        checkpoint.load_state(fewer, optim.state_dict(), "x.pt")


# --- going on -----------------------------------------------------------------------------------


def test_there_is_nothing_to_go_on_from_without_resume():
    assert resume.to_resume(SearchConfig(["--name", "x"]), RunFolder("searchs", "x")) is None


def test_what_cannot_be_resumed_ends_in_one_line(here):
    words = ["--name", "x", "--resume"]
    text = ends_in_one_line(search.main, words)
    assert "no run to go on with: searchs/x does not exist" in text
    (here / "searchs" / "x-seed2").mkdir(parents=True)
    text = ends_in_one_line(search.main, words)
    assert "searchs/x does not exist, but searchs/x-seed2 does; say --seeds as before" in text
    (here / "augments" / "x-seed2").mkdir(parents=True)  # --seeds belongs to searches
    assert ends_in_one_line(augment.main, words).endswith("augments/x does not exist")
    (here / "searchs" / "x").mkdir(parents=True)
    text = ends_in_one_line(search.main, words)
    assert "nothing was saved in searchs/x to go on from; start again" in text
    (here / "searchs" / "x" / "checkpoint.pt").write_text("half")
    text = ends_in_one_line(search.main, words)
    assert "searchs/x/checkpoint.pt is damaged or no checkpoint; no checkpoint is whole" in text


def test_a_resumed_configuration_has_the_flags_of_the_checkpoint(here):
    saved = SearchConfig(["--name", "x", "--layers", "3"]).flags()
    (here / "searchs" / "x").mkdir(parents=True)
    checkpoint.save(whole(flags=saved, epoch=4), "searchs/x/checkpoint.pt")
    cfg = SearchConfig(["--name", "x", "--resume", "--workers", "0"])
    folder = RunFolder("searchs", "x")
    assert resume.to_resume(cfg, folder)["epoch"] == 4
    folder.release()
    assert (cfg.layers, cfg.workers) == (3, 0)


def test_a_run_of_the_other_program_is_not_resumed(here):
    (here / "augments" / "x").mkdir(parents=True)
    checkpoint.save(whole(), "augments/x/checkpoint.pt")
    text = ends_in_one_line(augment.main, ["--name", "x", "--resume"])
    assert "augments/x is a run of search.py; go on with it by search.py --resume" in text


def damage(path):
    """Flip a bit here and there."""
    raw = bytearray(Path(path).read_bytes())
    for i in range(10, len(raw), 100):
        raw[i] ^= 1
    Path(path).write_bytes(raw)


def test_of_two_checkpoints_the_older_is_used_where_the_newer_is_damaged(
    here, undisturbed, quick_epochs
):
    copy_of(undisturbed[0], "searchs/s")
    damage("searchs/s/checkpoint.pt")
    for name in ("best.pt", "genotype.json", "config.json"):
        damage(f"searchs/s/{name}")
    search.main(["--name", "s", "--resume"])
    text = "searchs/s/checkpoint.pt is damaged"
    assert [line for line in log_of("searchs/s").splitlines() if text in line] == [
        f"WARNING: {text} or no checkpoint; going on from previous.pt, after epoch 2"
    ]
    same_result("searchs/s", undisturbed[0])
    flags = json.loads(Path("searchs/s/config.json").read_text())["flags"]
    assert flags == checkpoint_of("searchs/s")["flags"]


def test_where_both_are_damaged_the_best_is_used(here, undisturbed, quick_epochs):
    copy_of(undisturbed[0], "searchs/s")
    for name in ("checkpoint.pt", "previous.pt"):
        damage(f"searchs/s/{name}")
    search.main(["--name", "s", "--resume"])
    assert "going on from best.pt, after epoch 2" in log_of("searchs/s")
    same_result("searchs/s", undisturbed[0])


@pytest.mark.parametrize("name", ["checkpoint.pt", "best.pt"])
def test_any_checkpoint_that_is_left_is_gone_on_from(here, undisturbed, quick_epochs, name):
    run = copy_of(undisturbed[0], "searchs/s")
    for other in {"checkpoint.pt", "previous.pt", "best.pt"} - {name}:
        os.remove(f"{run}/{other}")
    search.main(["--name", "s", "--resume"])
    assert checkpoint_of(run)["epoch"] == 3


def test_a_state_inside_an_epoch_is_named_as_such(here, undisturbed, quick_epochs):
    run = copy_of(undisturbed[0], "searchs/s")
    state = checkpoint_of(run, "previous.pt")  # of epoch 2, with another step
    state["inside"] = {"epoch": 3, "step": 1, "meter": {}}
    checkpoint.save(state, f"{run}/previous.pt")
    damage(f"{run}/checkpoint.pt")
    folder = RunFolder("searchs", "s")
    assert equal(resume._newest(folder), state)
    assert folder.findings[0].endswith("; going on from previous.pt, after step 1 of epoch 3")


@pytest.mark.parametrize(
    ("system", "said"), [(errno.EDQUOT, os.strerror(errno.EDQUOT)), (None, "not all of it could")]
)
def test_what_torch_cannot_write_has_the_reason_of_the_system(here, monkeypatch, system, said):
    def broken(state, path):
        raise RuntimeError("[enforce fail] basic_ios::clear: iostream error")

    def refuse(path, mode="r", **words):
        if "a" in mode and system:
            raise OSError(system, os.strerror(system), path)
        return real(path, mode, **words)

    real = open
    monkeypatch.setattr(torch, "save", broken)
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(OSError, match=said) as caught:
        checkpoint.save(whole(), "c.pt")
    assert (caught.value.filename, caught.value.errno) == ("c.pt", system or errno.EIO)
    assert "basic_ios" not in str(caught.value)
    assert os.listdir() == []


def test_what_is_derived_is_never_believed(here, undisturbed, quick_epochs):
    """best.pt of another epoch, a genotype ahead of the checkpoint, an edited config.json."""
    run = copy_of(undisturbed[0], "searchs/s")
    shutil.copy(run + "/checkpoint.pt", run + "/best.pt")  # epoch 3
    Path(run, "best.pt.tmp-12345678").write_text("left by a kill")
    Path(run, "genotype.json").write_text(gt.to_json(gt.DARTS_V1, epoch=9, top1=0.99))
    config = json.loads(Path(run, "config.json").read_text())
    config["flags"] |= {"seed": 3, "epochs": 40, "order": 7}
    Path(run, "config.json").write_text(json.dumps(config))
    search.main(["--name", "s", "--resume"])
    same_result(run, undisturbed[0])
    assert json.loads(Path(run, "config.json").read_text())["flags"]["seed"] == 1
    config = Path(run, "config.json").read_bytes()
    search.main(["--name", "s", "--resume"])  # which is no flag of the run itself
    assert Path(run, "config.json").read_bytes() == config


def test_a_best_checkpoint_that_is_lost_is_said_to_be(here, undisturbed, quick_epochs):
    run = copy_of(undisturbed[0], "searchs/s")
    damage(run + "/best.pt")
    damage(run + "/previous.pt")
    search.main(["--name", "s", "--resume"])
    assert "the weights of epoch 2, the best, are lost" in log_of(run)
    assert not os.path.exists(run + "/best.pt")


def test_missing_records_are_named_and_cost_no_result(here, undisturbed, quick_epochs, capsys):
    run = copy_of(undisturbed[0], "searchs/s")
    records = Path(run, "metrics.jsonl").read_bytes().splitlines(keepends=True)
    odd = [b'{"epoch": [1]}\n', b'{"epoch": "2"}\n', b"\xff\xfe\n", b'{"epoch"']
    Path(run, "metrics.jsonl").write_bytes(b"".join([*records[2:], *odd]))
    os.remove(run + "/alphas.jsonl")
    search.main(["--name", "s", "--resume"])
    log = log_of(run)
    assert "metrics.jsonl has no record of epoch 1;" in log
    assert "alphas.jsonl has no record of epoch 1, 2, 3;" in log
    assert "Train it with" in capsys.readouterr().out


def test_the_networks_commands_name_a_damaged_file_and_the_whole_one(finished_augment, here):
    shutil.copytree(finished_augment[0] / "augments", "augments")
    damage("augments/a/checkpoint.pt")
    for main, words in (
        (evaluate.main, ["augments/a"]),
        (predict.main, [".", "--from", "augments/a"]),
        (export.main, ["augments/a"]),
    ):
        Image.new("L", (8, 8)).save("x.png")
        text = ends_in_one_line(main, words)
        assert (
            "augments/a/checkpoint.pt is damaged or no checkpoint; name augments/a/best.pt" in text
        )
        assert "augment.py --resume" in text


# --- killed -------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a process of its own")
@pytest.mark.parametrize("first", [True, False])
def test_killed_at_any_write_a_run_goes_on_to_the_same_result(
    here, undisturbed, quick_epochs, first
):
    """In the middle of every write and before every rename and removal: `first` of the set-up and
    the first epoch, else of a resumed run and its two epochs."""
    straight, in_second = undisturbed
    new = [*SMALL_SEARCH, "--name", "s"]
    words = new if first else ["--name", "s", "--resume", "--quiet"]
    kills = 0
    for n in itertools.count(1):
        if first:
            shutil.rmtree("searchs", ignore_errors=True)
        else:
            copy_of(in_second, "searchs/s")
        if in_a_fork(lambda n=n: search.main(words), kill_at=n) == 0:
            break
        kills += 1
        if first and os.path.exists("searchs/s/previous.pt"):
            break  # the second epoch, as in the other half of this test
        with contextlib.redirect_stdout(io.StringIO()):
            if RunFolder("searchs", "s").has_checkpoint():
                search.main(["--name", "s", "--resume"])
            else:
                search.main([*new, "--overwrite"])
        same_result("searchs/s", straight)
        assert os.listdir("searchs") == ["s"]
    assert kills > 15
