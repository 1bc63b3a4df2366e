"""Pictures never harm a run: failures are warnings, and time is kept."""

import json
from pathlib import Path

import pytest
from conftest import log_of

import report
from tracking import picture_schedule
from tracking.picture_schedule import Pictures

pytestmark = pytest.mark.pictures


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


def test_a_failure_of_each_kind_is_said_once_and_the_rest_is_made(open_run, clock):
    made = []

    def fail(kind):
        raise kind("no\nink")

    run = open_run()
    drawn = Pictures(run, {"curves": lambda path: fail(KeyError), "GIF": made.append})
    for _ in range(3):
        drawn.after_epoch(1e6, drawing=lambda: fail(OSError))
    drawn.after_epoch(1e6, drawing=lambda: fail(RuntimeError))
    assert made == [run.files.path] * 4
    assert log_of(run.files.path).splitlines() == [
        "WARNING: no drawing: no ink",
        "WARNING: no curves: 'no\\nink'",
        "WARNING: no drawing: no ink",
    ]


def test_an_interrupt_is_no_failure_of_a_picture(open_run, clock):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Pictures(open_run(), {}).after_epoch(1.0, drawing=stop)


@pytest.mark.parametrize(("epoch", "limit"), [(4.0, 0.12), (600.0, 0.03)])
def test_costly_pictures_keep_within_their_share(open_run, clock, epoch, limit):
    """Curves that take a sixth of an epoch are made after some epochs, not after all."""
    made = []

    def curves(path):
        made.append(clock.now)
        clock.work(epoch / 6)

    run = open_run()
    run.files.update_summary(next="what stands there is kept")
    drawn = Pictures(run, {"curves": curves})
    for _ in range(50):
        drawn.after_epoch(epoch, drawing=lambda: clock.work(epoch * 0.01))
    assert 3 <= len(made) < 50
    assert drawn.seconds == pytest.approx(50 * epoch * 0.01 + len(made) * epoch / 6)
    # the first time its cost is not known yet
    assert drawn.seconds <= limit * 50 * epoch + epoch / 6
    summary = json.loads(Path(run.files.path, "summary.json").read_text())
    assert summary["next"] == "what stands there is kept"
    assert summary["picture_seconds"] == round(drawn.seconds, 3)
    before = len(made)
    drawn.at_end()
    assert len(made) == before + 1
    share = drawn.seconds / (50 * epoch)
    said = log_of(run.files.path)
    assert f"{share:.1%} of the {50 * epoch:.1f} s of the epochs" in said
    assert f"and {epoch / 6:.1f} s at the end" in said


def test_cheap_pictures_are_made_after_every_epoch(open_run, clock):
    made = []
    drawn = Pictures(open_run(), {"curves": made.append})
    for _ in range(10):
        drawn.after_epoch(10.0)
    assert len(made) == 10


def test_a_resumed_run_goes_on_counting(open_run, clock):
    run = open_run()
    run.files.update_summary(picture_seconds=7.0)
    record = {"phase": "train", "epoch": 1, "loss": 1.0, "top1": 0.5, "seconds": 93.0}
    run.files.append("metrics.jsonl", record)
    drawn = Pictures(run, {})
    drawn.after_epoch(7.0, drawing=lambda: clock.work(1.0))
    drawn.at_end()
    assert "pictures took 8.0 s, 8.0% of the 100.0 s" in log_of(run.files.path)
