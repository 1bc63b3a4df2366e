"""Curves: the numbers in the figure are those of metrics.jsonl."""

import json
import os

import pytest
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
                "top1": 1 - share / epoch,
            }  # fmt: skip


def test_the_figure_shows_the_recorded_numbers(here):
    write(here / "r", records(1, 2, 3))
    fig = plot_train_val.figure(plot_train_val.read_metrics("r"), "r")
    loss, accuracy = fig.axes
    for axes, wanted in ((loss, lambda s, e: s / e), (accuracy, lambda s, e: 100 * (1 - s / e))):
        assert axes.get_xlabel() == "epoch"
        lines = {line.get_label(): line for line in axes.get_lines()}
        for label, share in (("training", 0.5), ("held out", 0.7)):
            assert list(lines[label].get_xdata()) == [1, 2, 3]
            assert list(lines[label].get_ydata()) == pytest.approx(
                [wanted(share, epoch) for epoch in (1, 2, 3)]
            )


def test_fractions_of_a_percent_are_not_lost(here):
    one = {"phase": "val", "epoch": 1, "loss": 1.0, "top1": 0.156}
    write(here / "r", [one])
    assert plot_train_val.read_metrics("r")["val"]["top1"] == [0.156]


def test_a_running_or_resumed_run_gives_one_curve(here):
    doubled = [*records(1, 2), *records(2, 3)]
    write(here / "r", doubled, tail='{"phase": "train", "epo')
    curves = plot_train_val.read_metrics("r")
    assert curves["train"]["epoch"] == curves["val"]["epoch"] == [1, 2, 3]


def test_the_command_writes_a_picture_without_a_screen(here, capsys, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    write(here / "r", records(*range(1, 31)))
    plot_train_val.main(["r"])
    assert capsys.readouterr().out.strip() == os.path.join("r", "loss_accuracy.png")
    with Image.open("r/loss_accuracy.png") as image:
        assert image.width > 800
    plot_train_val.main(["r", "--out", "elsewhere.svg"])
    assert os.path.getsize("elsewhere.svg") > 1000


def test_folders_without_records_end_in_one_line(here):
    (here / "empty").mkdir()
    write(here / "broken", [], tail="not json\n[]\n{}\n")
    for folder in ("missing", "empty", "broken"):
        with pytest.raises(SystemExit) as caught:
            plot_train_val.main([folder])
        assert caught.value.code.startswith("plot_train_val.py: ")
        assert "\n" not in caught.value.code
