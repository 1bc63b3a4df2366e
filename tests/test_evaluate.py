"""evaluate.py scores a trained network from its folder alone."""

import re
import subprocess

import pytest
from conftest import ends_in_one_line, lines, run_in

import evaluate
from models import ops


@pytest.fixture
def trained(finished_augment, monkeypatch):
    """The current folder holds searchs/s and augments/a."""
    monkeypatch.chdir(finished_augment[0])


def test_it_needs_no_flag_and_agrees_with_training(trained, finished_augment):
    folder, _ = finished_augment
    records = {r["epoch"]: r for r in lines("augments/a/metrics.jsonl") if r["phase"] == "val"}
    run, best, last = "augments/a", "augments/a/best.pt", "augments/a/checkpoint.pt"
    for path, scored in ((run, [last, best]), (best, [best]), (last, [last])):
        out = run_in(folder, evaluate.main, [path])
        assert [line.split(",")[0] for line in out.splitlines()] == scored
        for line in out.splitlines():
            epoch = int(re.search(r"epoch (\d+)", line)[1])
            assert "digits test split" in line
            shown = re.findall(r"top1 ([\d.]+)%", line)
            assert shown == [f"{100 * records[epoch]['top1']:.2f}"] * 2
            assert f"loss {records[epoch]['loss']:.4f}" in line
    assert "epoch 2," in run_in(folder, evaluate.main, [last])


def test_its_flags_leave_the_result_alone(trained):
    words = ["--batch_size", "7", "--device", "cpu", "--workers", "0"]
    for plain, other in zip(
        evaluate.main(["augments/a"]), evaluate.main(["augments/a", *words]), strict=True
    ):
        assert (plain["top1"], plain["top5"]) == (other["top1"], other["top5"])
        assert plain["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_the_last_line_of_a_training_is_a_command_that_runs(trained, finished_augment):
    _, out = finished_augment
    command = out.strip().splitlines()[-1]
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "training logged top1" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "the following arguments are required: RUN"),
        ("augments/none", "augments/none"),
        ("searchs/s", "is a supernet"),
        ("augments/a/metrics.jsonl", "metrics.jsonl is no checkpoint"),
        ("augments/a --batch_size 1", "argument --batch_size"),
        *(
            (f"augments/a {words}", f"unrecognized arguments: {words}")
            for words in ("--genotype PDARTS", "--lr 9", "--seed 77", "--quick", "--name zzz")
        ),
    ],
)
def test_what_cannot_be_scored_is_said_in_one_line(trained, words, message):
    assert message in ends_in_one_line(evaluate.main, words.split())


def test_a_checkpoint_that_does_not_fit_any_more_is_named(trained, monkeypatch):
    for name in list(ops.OPS):
        if name != "none":
            monkeypatch.setitem(
                ops.OPS, name, lambda C, stride, affine: ops.SepConv(C, 9, stride, affine)
            )
    text = ends_in_one_line(evaluate.main, ["augments/a"])
    assert "checkpoint.pt does not fit the network any more" in text
