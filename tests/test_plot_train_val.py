"""Curves: the numbers in the figure are those of metrics.jsonl."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ends_in_one_line, lines
from PIL import Image

import plot_train_val


def write(folder, records, tail=""):
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(record) for record in records]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n" + tail)


def records(*epochs):
    for epoch in epochs:
        for phase, share in (("train", 0.5), ("val", 0.7)):
            yield {
                "phase": phase, "epoch": epoch, "step": 11 * epoch, "loss": share / epoch,
                "top1": 1 - share / epoch, "lr": 0.01 / epoch,
            }  # fmt: skip


def curves(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_the_figure_shows_the_recorded_numbers(here):
    write(here / "r", records(1, 2, 3))
    fig = plot_train_val.figure({"r": plot_train_val.read_metrics("r")})
    loss, accuracy, rate = fig.axes
    for axes, wanted in ((loss, lambda s, e: s / e), (accuracy, lambda s, e: 100 * (1 - s / e))):
        for label, share in (("training", 0.5), ("held out", 0.7)):
            line = curves(axes)[label]
            assert list(line.get_xdata()) == [1, 2, 3]
            assert list(line.get_ydata()) == pytest.approx(
                [wanted(share, epoch) for epoch in (1, 2, 3)]
            )
    best = curves(accuracy)["best: 76.67% (epoch 3)"]
    assert (list(best.get_xdata()), list(best.get_ydata())) == ([3], pytest.approx([100 - 70 / 3]))
    assert rate.get_xlabel() == "epoch"
    (line,) = rate.get_lines()
    assert list(line.get_ydata()) == [0.01, 0.005, 0.01 / 3]


def test_several_runs_lie_over_each_other_each_in_its_color(here):
    write(here / "a", records(1, 2, 3))
    write(here / "b", records(1, 2))
    runs = {name: plot_train_val.read_metrics(name) for name in ("a", "b")}
    loss, accuracy, *_ = plot_train_val.figure(runs).axes
    for axes in (loss, accuracy):
        a, b = (curves(axes)[name] for name in ("a", "b"))
        assert len(a.get_xdata()) == 3
        assert len(b.get_xdata()) == 2
        assert a.get_color() != b.get_color()
    names = [text.get_text() for text in loss.get_legend().get_texts()]
    assert names == ["a", "b", "training (dashed)"]
    assert {"best: 76.67% (epoch 3)", "best: 65.00% (epoch 2)"} <= set(curves(accuracy))
    plot_train_val.main(["a", "b"])
    assert sorted(os.listdir(".")) == ["a", "b", "loss_accuracy.png"]


def test_the_last_of_equal_epochs_is_the_best():
    metrics = {"train": {}, "val": {e: {"top1": t} for e, t in ((1, 0.5), (2, 0.9), (3, 0.9))}}
    assert plot_train_val.best_epoch(metrics) == (3, 0.9)
    assert plot_train_val.best_epoch({"train": {}, "val": {}}) is None


def test_fractions_of_a_percent_are_not_lost(here):
    one = {"phase": "val", "epoch": 1, "loss": 1.0, "top1": 0.156}
    write(here / "r", [one])
    metrics = plot_train_val.read_metrics("r")
    assert metrics == {"train": {}, "val": {1: one}}
    _, accuracy, *_ = plot_train_val.figure({"r": metrics}).axes
    assert list(curves(accuracy)["held out"].get_ydata()) == [pytest.approx(15.6)]


def test_a_running_or_resumed_run_gives_one_curve(here):
    again = [{**record, "loss": 9.0} for record in records(2, 3)]
    write(here / "r", [*records(1, 2), *again], tail='{"phase": "train", "epo')
    metrics = plot_train_val.read_metrics("r")
    assert list(metrics["train"]) == list(metrics["val"]) == [1, 2, 3]
    assert [record["loss"] for record in metrics["train"].values()] == [0.5, 9.0, 9.0]


def test_an_epoch_whose_score_is_not_there_yet(here):
    write(here / "r", [*records(1, 2)][:-1])
    metrics = plot_train_val.read_metrics("r")
    assert (list(metrics["train"]), list(metrics["val"])) == ([1, 2], [1])
    plot_train_val.plot_run("r")


def test_the_command_writes_a_picture_without_a_screen(here, capsys, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    write(here / "r", records(*range(1, 31)))
    plot_train_val.main(["r"])
    assert capsys.readouterr().out.strip() == os.path.join("r", "loss_accuracy.png")
    with Image.open("r/loss_accuracy.png") as image:
        assert image.width > 800
    plot_train_val.main(["r", "--out", "elsewhere.svg"])
    assert os.path.getsize("elsewhere.svg") > 1000


@pytest.mark.parametrize("out", ["curves.bmp", "curves"])
def test_an_unknown_kind_of_picture_is_refused(here, out):
    write(here / "r", records(1))
    text = ends_in_one_line(plot_train_val.main, ["r", "--out", out])
    assert "the ending is none of" in text


def test_a_run_of_augment_is_labelled_as_tested(finished_augment):
    path = str(finished_augment[0] / "augments" / "a")
    _, accuracy, *_ = plot_train_val.figure({path: plot_train_val.read_metrics(path)}).axes
    scores = [r["top1"] for r in lines(f"{path}/metrics.jsonl") if r["phase"] == "val"]
    assert list(curves(accuracy)["test"].get_ydata()) == [100 * score for score in scores]


def test_folders_without_records_end_in_one_line(here):
    (here / "empty").mkdir()
    write(here / "broken", [], tail="not json\n[]\n{}\n")
    for folder in ("missing", "empty", "broken"):
        assert folder in ends_in_one_line(plot_train_val.main, [folder])


def one_epoch(**more):
    return {
        "train": {1: {"loss": 0.691801, "top1": 0.5, "lr": 0.025}},
        "val": {1: {"loss": 0.691802, "top1": 0.5, **more}},
    }


def test_the_curves_of_one_epoch_have_whole_ticks_and_a_mark():
    fig = plot_train_val.figure({"r": one_epoch()})
    fig.draw_without_rendering()
    loss, accuracy, *rates = fig.axes
    for axes in fig.axes:
        low, high = axes.get_xlim()
        assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]
        assert axes.yaxis.get_offset_text().get_text() == ""
        assert all(line.get_marker() not in (None, "None", "") for line in axes.get_lines())
    for axes in (loss, accuracy):
        assert np.ptp(axes.get_ylim()) >= plot_train_val.SPAN
    assert all(len(label.get_text()) < 7 for label in loss.get_yticklabels())


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_nowhere", "nonsense"])
def test_the_backend_of_a_notebook_breaks_no_command(finished_search, tmp_path, backend):
    """Every command that is started from a notebook inherits it."""
    script = Path(plot_train_val.__file__)
    run = str(finished_search[0] / "searchs" / "s")
    words = [sys.executable, str(script), run, "--out", str(tmp_path / "x.png")]
    env = {**os.environ, "MPLBACKEND": backend}
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
