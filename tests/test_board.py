"""TensorBoard's events: what is written, and that no run waits for them or ends because of them."""

import errno
import os
from pathlib import Path

import pytest
from conftest import SMALL_SEARCH, checkpoint_of, log_of
from PIL import Image
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

import search
from tracking.board import Board


def events_of(folder):
    """The events of all files in a folder, as protocol buffers."""
    found = []
    for path in sorted(Path(folder).glob("events.*")):
        raw = path.read_bytes()
        while raw:  # length (8 bytes), checksum (4), event, checksum (4)
            n = int.from_bytes(raw[:8], "little")
            found.append(Event.FromString(raw[12 : 12 + n]))
            raw = raw[16 + n :]
    return found


def write_all(board):
    Image.new("RGB", (4, 3), "red").save("red.png")
    board.scalars("val", {"loss": 0.5, "top1": 0.25}, 7)
    board.histogram("alpha", [0.1, 0.2, 0.7], 7)
    board.image("cell/normal", "red.png", 7)
    board.hparams({"epochs": 3, "primitives": ["none"], "name": None}, best_top1=0.25)


def test_what_is_written(here):
    board = Board()
    write_all(board)  # not open: silent
    board.open("tb", {"epochs": 3})
    write_all(board)
    board.close()
    values = {v.tag: (e.step, v) for e in events_of("tb") for v in e.summary.value}
    assert values["val/loss"][0] == 7
    assert values["val/top1"][1].simple_value == 0.25
    assert values["alpha"][1].histo.num == 3
    assert (values["cell/normal"][1].image.height, values["cell/normal"][1].image.width) == (3, 4)
    assert b"|epochs|3|" in values["config/text_summary"][1].tensor.string_val[0]
    tags = [v.tag for e in events_of("tb/hparams") for v in e.summary.value]
    assert tags == [f"_hparams_/{kind}" for kind in (
        "experiment", "session_start_info", "session_end_info")] + ["best_top1"]  # fmt: skip


def test_a_run_that_goes_on_within_the_same_second_keeps_the_events_before(here):
    for first_step in (0, 4):
        board = Board()
        board.open("tb", {}, first_step)
        board.scalars("val", {"top1": 0.5}, first_step + 1)
        board.close()
    assert len(os.listdir("tb")) == 2
    events = events_of("tb")
    assert [e.step for e in events if e.HasField("session_log")] == [5]
    assert sorted(e.step for e in events if e.summary.value and e.step) == [1, 5]


class Full:
    """Makes writes of events fail, from the n-th on."""

    def __init__(self, monkeypatch, n, kind):
        self.left = n
        for name in ("write", "flush", "close"):
            monkeypatch.setattr(RecordWriter, name, self.failing(getattr(RecordWriter, name), kind))

    def failing(self, function, kind):
        def call(*args):
            self.left -= 1
            if self.left < 0:
                if function.__name__ == "close":  # the descriptor is closed all the same
                    function(*args)
                raise kind(errno.ENOSPC, "No space left on device")
            return function(*args)

        return call


@pytest.mark.parametrize("kind", [OSError, ValueError])
@pytest.mark.parametrize("n", range(14))
def test_the_first_event_that_fails_is_the_last_and_costs_one_warning(here, monkeypatch, n, kind):
    full, said, board = Full(monkeypatch, n, kind), [], Board()
    board.open("tb", {"epochs": 3}, warn=said.append)
    for _ in range(30):  # more than any queue holds
        write_all(board)
    board.close()
    board.close()
    assert full.left < 0
    assert len(said) == 1
    assert said[0].startswith("no more events for TensorBoard in tb")
    assert said[0].count("No space left on device") == 1


def test_a_folder_that_cannot_be_made_costs_one_warning(here):
    (here / "tb").touch()
    said, board = [], Board()
    board.open("tb", {}, warn=said.append)
    write_all(board)
    board.close()
    assert len(said) == 1


def test_a_run_goes_on_without_its_events(here, quick_epochs, monkeypatch):
    Full(monkeypatch, 9, OSError)
    search.main([*SMALL_SEARCH, "--name", "s"])
    assert log_of("searchs/s").count("no more events for TensorBoard in searchs/s/tb") == 1
    assert checkpoint_of("searchs/s")["epoch"] == 3
