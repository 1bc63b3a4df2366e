"""What a run says: the table, the log file, --quiet, two progress bars."""

import contextlib
import io
import re

import pytest
import torch
import tqdm
from conftest import log_of

import utils
from console import log
from console.log import Log

TRAINED = {"loss": 1.58716, "top1": 0.4517, "seconds": 12.6}
SCORED = {"loss": 0.03, "top1": 1.0, "seconds": 0.5}


@pytest.fixture
def open_log(here):
    """open_log(...) -> a Log(...) that writes r.log, in the first of 30 epochs of two steps."""
    with contextlib.ExitStack() as stack:

        def make(**words):
            said = Log(**words)
            said.open("r.log")
            stack.callback(said.close)
            said.open_bars(1, 30, 2)
            return said

        yield make


def test_rows_line_up_below_a_header_that_comes_again(open_log, capsys):
    said = open_log()
    for epoch in range(1, 31):
        said.row(epoch, TRAINED, SCORED, {"epoch": 1, "top1": 1.0}, skips=f"{epoch % 9}/8")
    rows = capsys.readouterr().out.splitlines()
    headers = [i for i, row in enumerate(rows) if "train loss" in row]
    assert headers == [0, 21]
    assert len({len(row) for row in rows}) == 1
    assert len(rows[0]) <= 84
    assert " ".join(rows[0].split()) == "epoch train loss top1 val loss top1 best at skips sec left"
    row = "1/30 1.5872 45.17% 0.0300 100.00% 100.00% 1* 1/8 13"
    assert " ".join(rows[1].split()[:-1]) == row  # the time left is that of this machine
    assert "1*" not in rows[2]


@pytest.mark.parametrize("val_name", ["val", "test", "held-out"])
def test_headings_stand_over_their_columns(open_log, capsys, val_name):
    open_log().row(1, TRAINED, SCORED, {"epoch": 1, "top1": 1.0}, val_name, skips="1/8")
    header, row = (
        [found.end() for found in re.finditer(r"\S+( loss)?", line)]
        for line in capsys.readouterr().out.splitlines()
    )
    assert header == row


def test_quiet_leaves_warnings_and_results_and_the_file_has_all(open_log, here, capsys):
    said = open_log(quiet=True)
    said.info("one")
    said.detail("two")
    said.warn("three")
    said.result("four\nfive")
    shown = capsys.readouterr()
    assert shown.out == "WARNING: three\nfour\nfive\n"
    assert shown.err == ""
    assert log_of(here) == "one\ntwo\nWARNING: three\nfour\nfive\n"


def test_details_are_in_the_file_alone(open_log, here, capsys):
    open_log().detail("two")
    assert capsys.readouterr().out == ""
    assert log_of(here) == "two\n"


def test_the_first_warning_of_a_kind_is_said_and_no_other(open_log, capsys):
    said = open_log()
    for text in ("one", "two"):
        said.warn(text, kind="ink")
        said.warn("always")
    assert capsys.readouterr().out.count("WARNING: ") == 3


def test_means_come_as_lines_every_print_freq_steps_without_a_terminal(open_run, capsys):
    run = open_run(["--print_freq", "4"])
    run.n_steps, run.top_k = 6, 3
    meter = utils.Meter(run.device)
    meter.add(torch.tensor(1.25), torch.eye(4), torch.tensor([0, 1, 2, 0]))
    for epoch in (1, 2):
        for step in range(1, 7):
            run.step_done(epoch, step, meter)
    assert log_of(run.files.path).splitlines() == [
        f"epoch {epoch} step {step}/6  loss 1.2500  top1 75.00%  top3 100.00%"
        for epoch, step in ((1, 1), (1, 4), (2, 2), (2, 6))
    ]
    assert capsys.readouterr().err == ""  # and no bar


def test_two_bars_on_a_terminal(here, monkeypatch):
    """The bar of the epoch begins anew with each, that of the run goes on."""
    real, sink = tqdm.tqdm, io.StringIO()
    monkeypatch.setattr(
        log, "tqdm", lambda **words: real(**{**words, "disable": False, "file": sink})
    )
    said = Log()
    said.open_bars(2, 3, 4)  # resumed: one of three epochs is done
    steps, whole = said._bars
    seen = []
    for epoch in (2, 2, 2, 2, 3, 3, 3, 3):
        said.advance(epoch)
        seen.append((steps.desc, steps.n, whole.n))
    said.close_bars()
    assert seen == [(f"epoch {e}/3", n, 4 * (e - 1) + n) for e in (2, 3) for n in (1, 2, 3, 4)]
    assert whole.total == 12
