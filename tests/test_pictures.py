"""Pictures never harm a run: failures are warnings, and time is kept."""

import io
import json
import os
from pathlib import Path

import pytest
import tqdm

import report
from console import terminal
from tracking import picture_schedule, run_folder


class Run:
    """As much of a RunFolder as pictures need."""

    warn = terminal.Terminal.warn

    def __init__(self, path):
        self.path, self.said, self._warned = str(path), [], set()
        self._logger = self

    def file(self, name):
        return os.path.join(self.path, name)

    def note(self, **values):
        self.noted = values

    def info(self, text):
        self.said.append(text)

    warning = info


class Clock:
    """time.perf_counter that only moves when told to."""

    now = 0.0

    def __call__(self):
        return self.now

    def work(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(picture_schedule.time, "perf_counter", clock)
    monkeypatch.setattr(report, "write", lambda path: None)
    return clock


def test_a_failure_of_each_kind_is_said_once_and_the_rest_is_made(here, clock):
    made = []

    def fail(kind):
        raise kind("no\nink")

    run = Run(here)
    drawn = picture_schedule.Pictures(
        run, {"curves": lambda path: fail(KeyError), "GIF": made.append}
    )
    for _ in range(3):
        drawn.after_epoch(1e6, drawing=lambda: fail(OSError))
    drawn.after_epoch(1e6, drawing=lambda: fail(RuntimeError))
    assert made == [str(here)] * 4
    assert run.said == [
        "WARNING: no drawing: no ink", "WARNING: no curves: 'no\\nink'",
        "WARNING: no drawing: no ink",
    ]  # fmt: skip


def test_an_interrupt_is_no_failure_of_a_picture(here, clock):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        picture_schedule.Pictures(Run(here), {}).after_epoch(1.0, drawing=stop)


@pytest.mark.parametrize(("epoch", "limit"), [(4.0, 0.12), (600.0, 0.03)])
def test_costly_pictures_keep_within_their_share(here, clock, epoch, limit):
    """Curves that take a sixth of an epoch are made after some epochs, not after all."""
    made = []

    def curves(path):
        made.append(clock.now)
        clock.work(epoch / 6)

    run = Run(here)
    drawn = picture_schedule.Pictures(run, {"curves": curves})
    for _ in range(50):
        drawn.after_epoch(epoch, drawing=lambda: clock.work(epoch * 0.01))
    assert 3 <= len(made) < 50
    assert drawn.seconds == pytest.approx(50 * epoch * 0.01 + len(made) * epoch / 6)
    # the first time its cost is not known yet
    assert drawn.seconds <= limit * 50 * epoch + epoch / 6
    assert run.noted == {"picture_seconds": round(drawn.seconds, 3)}
    before = len(made)
    drawn.at_end()
    assert len(made) == before + 1
    share = drawn.seconds / (50 * epoch)
    assert f"{share:.1%} of the {50 * epoch:.1f} s of the epochs" in run.said[-1]
    assert f"and {epoch / 6:.1f} s at the end" in run.said[-1]


def test_cheap_pictures_are_made_after_every_epoch(here, clock):
    made = []
    drawn = picture_schedule.Pictures(Run(here), {"curves": made.append})
    for _ in range(10):
        drawn.after_epoch(10.0)
    assert len(made) == 10


def test_a_resumed_run_goes_on_counting(here, clock):
    (here / "summary.json").write_text(json.dumps({"picture_seconds": 7.0}))
    record = {"phase": "train", "epoch": 1, "loss": 1.0, "top1": 0.5, "seconds": 93.0}
    (here / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    drawn = picture_schedule.Pictures(Run(here), {})
    drawn.after_epoch(7.0, drawing=lambda: clock.work(1.0))
    drawn.at_end()
    assert "pictures took 8.0 s, 8.0% of the 100.0 s" in drawn.run.said[-1]


# --- the terminal -------------------------------------------------------------------------------


class Config:
    def __init__(self, **values):
        vars(self).update({"epochs": 30, "print_freq": 50, "quiet": False, **values})


@pytest.fixture
def speaker(here):
    made = []

    def make(**values):
        speaker = terminal.Terminal(Config(**values))
        speaker.open_log("r.log")
        speaker.bar(1, 2)
        made.append(speaker)
        return speaker

    yield make
    for speaker in made:
        speaker.close_bar()
        speaker.close_log()


TRAINED = {"loss": 1.58716, "top1": 0.4517, "seconds": 12.6}
HELD = {"loss": 0.03, "top1": 1.0, "seconds": 0.5}


def test_rows_line_up_below_a_header_that_comes_again(speaker, capsys):
    speaker = speaker()
    for epoch in range(1, 31):
        speaker.row(epoch, TRAINED, HELD, {"epoch": 1, "top1": 1.0}, skips=f"{epoch % 9}/8")
    rows = capsys.readouterr().out.splitlines()
    headers = [i for i, row in enumerate(rows) if "train loss" in row]
    assert headers == [0, 21]
    assert len({len(row) for row in rows}) == 1
    assert len(rows[0]) <= 84
    assert rows[0].split() == [
        "epoch", "train", "loss", "top1", "val", "loss", "top1", "best", "at", "skips", "sec",
        "left",
    ]  # fmt: skip
    assert rows[1].split() == [
        "1/30", "1.5872", "45.17%", "0.0300", "100.00%", "100.00%", "1*", "1/8", "13", "00:00",
    ]  # fmt: skip
    assert "1*" not in rows[2]


def test_quiet_leaves_warnings_and_results_and_the_log_has_all(speaker, capsys):
    speaker = speaker(quiet=True)
    speaker.info("one")
    speaker.detail("two")
    speaker.warn("three")
    speaker.result("four\nfive")
    said = capsys.readouterr()
    assert said.out == "WARNING: three\nfour\nfive\n"
    assert said.err == ""
    log = [line.split(" | ")[-1] for line in Path("r.log").read_text(encoding="utf-8").splitlines()]
    assert log == ["one", "two", "WARNING: three", "four", "five"]


def test_details_are_in_the_log_alone(speaker, capsys):
    speaker().detail("two")
    assert capsys.readouterr().out == ""
    assert Path("r.log").read_text().endswith(" | two\n")


def test_two_bars_on_a_terminal_and_none_elsewhere(here, monkeypatch):
    """The bar of the epoch begins anew with each, that of the run goes on."""
    real = tqdm.tqdm
    monkeypatch.setattr(
        terminal, "tqdm", lambda **words: real(**{**words, "disable": False, "file": sink})
    )
    sink = io.StringIO()
    speaker = terminal.Terminal(Config(epochs=3))
    speaker.bar(2, 4)  # resumed: one epoch is done
    seen = []
    for _ in range(8):
        speaker.advance()
        steps, whole = speaker.bars
        seen.append((steps.desc, steps.n, whole.n))
    speaker.close_bar()
    assert seen == [(f"epoch {e}/3", n, 4 * (e - 1) + n) for e in (2, 3) for n in (1, 2, 3, 4)]
    assert whole.total == 12


def test_summary_keeps_what_stands_there(here):
    class Folder(run_folder.RunFolder):
        def __init__(self):
            self.path = "."

    Folder().note(a=1, b=2)
    Folder().note(b=3)
    assert json.loads((here / "summary.json").read_text()) == {"a": 1, "b": 3}
