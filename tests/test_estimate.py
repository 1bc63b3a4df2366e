"""What a run says of its own length, and of the training that it proposes."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import CPU, FAST_SEARCH, log_of

import search
import utils
from config import AugmentConfig
from console.log import Log
from data_sets import named
from tracking import estimate


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(estimate.time, "perf_counter", clock.perf_counter)
    return clock


def test_the_first_steps_are_left_out_of_the_time_of_a_step(clock):
    steps, waits, found = estimate.FirstSteps(), [], []
    for n in range(1, 31):
        clock.now += 5.0 if n <= estimate.FIRST else 0.5
        found.append(steps.step_done(lambda: waits.append(1)))
    assert [n for n, seconds in enumerate(found, start=1) if seconds is not None] == [estimate.LAST]
    assert found[estimate.LAST - 1] == pytest.approx(0.5)
    assert len(waits) == 2  # it waits for the device twice, not with every step
    text = estimate.describe(0.5, 240, False)
    assert text.startswith("about 2 min 0 s for 240 steps of 0.5 s that are left")
    assert "warm-up" not in text
    more = estimate.describe(0.5, 240, True)
    assert more == f"{text}; steps after the warm-up take about twice as long"


@pytest.mark.parametrize(
    ("is_cuda", "times", "seconds", "n"),
    [
        (False, [11.0, 1.0], 11.0, 1),  # one step of many seconds is enough
        (False, [1.8, 0.4, 0.7, 0.1], 0.4, 3),
        (False, [0.4, 0.3, 0.9, 0.2], 0.3, 3),  # the first is no measure, nor is a disturbed one
        (False, [0.1] * 9 + [0.01, 0.05], 0.01, 11),
        (True, [9.0, 7.0, 2.0, 3.0, 0.1], 2.0, 4),  # a card looks for kernels more than once
    ],
)
def test_the_step_is_the_fastest_of_a_few(is_cuda, times, seconds, n, clock):

    class Net(torch.nn.Linear):
        steps = 0

        def forward(self, X):
            clock.now += times[self.steps]
            self.steps += 1
            return super().forward(X.flatten(1)), None

    device = SimpleNamespace(
        is_cuda=is_cuda, torch_device="cpu", put=CPU.put, autocast=CPU.autocast
    )
    cfg = AugmentConfig(["--genotype", "DARTS_V2", "--batch_size", "2"])
    spec = named.spec("digits")
    net = Net(64, 10)
    found = estimate.seconds_per_step(net, spec, cfg, utils.criterion(cfg, (), CPU), device)
    assert found == pytest.approx(seconds)
    assert net.steps == n


def test_the_time_of_a_training_is_its_steps_times_that_of_one(monkeypatch):
    words = "--genotype DARTS_V2 --layers 3 --init_channels 2 --epochs 7 --batch_size 8"
    cfg = AugmentConfig(words.split())
    spec = named.spec("digits")
    criterion = utils.criterion(cfg, (1,) * 10, CPU)
    monkeypatch.setattr(estimate, "seconds_per_step", lambda *args: 2.0)
    found = estimate.of_training(torch.nn.Linear(1, 1), spec, cfg, 83, criterion, CPU)
    assert found["seconds"] == 7 * 10 * 2.0
    assert found["text"] == (
        "training it will take about 2 min 20 s on this machine: 7 epochs of 83 images, 3 cells, "
        "2 channels"
    )


def test_a_search_says_how_long_it_and_its_training_will_take(here):
    words = ["--subset", "0.5", "--batch_size", "16", "--name", "s"]  # 22 steps
    search.main([*FAST_SEARCH, *words])
    log = log_of("searchs/s")
    assert log.count(" s for 9 steps of ") == 1
    found = json.loads(Path("searchs/s/summary.json").read_text())["training"]
    assert found["seconds"] > 0
    assert f"{found['text']}\n" in log
    assert "20 epochs of about 1,438 images, 5 cells, 16 channels" in found["text"]
    assert log.index(found["text"]) < log.index("Train it with")


@pytest.mark.parametrize(("batch", "warms_up"), [("16", True), ("40", False)])  # 22 steps, 9
def test_only_in_the_warm_up_longer_steps_are_said_to_come(here, batch, warms_up):
    more = ["--subset", "0.5", "--epochs", "2", "--warmup_epochs", "1", "--batch_size", batch]
    search.main([*FAST_SEARCH, *more, "--name", "s"])
    (line,) = (line for line in log_of("searchs/s").splitlines() if "that are left" in line)
    assert ("steps after the warm-up take about twice as long" in line) == warms_up


def test_a_finished_search_that_is_resumed_says_so(here):
    search.main([*FAST_SEARCH, "--name", "s"])
    search.main(["--name", "s", "--resume"])
    log = log_of("searchs/s")
    assert "this search is over after epoch 1; here is its result again" in log
    assert "go on with epoch" not in log
    assert "search: 1 epoch of 2 steps" in log


def test_the_time_left_follows_a_changing_pace(here, monkeypatch):
    clock, log = Clock(), Log()
    monkeypatch.setattr("console.log.time.perf_counter", clock.perf_counter)
    log.open_bars(1, 10, 1)
    left = []
    for epoch in range(1, 10):
        clock.now += 100 if epoch < 5 else 10
        left.append(log._time_left(epoch))
    log.close_bars()
    assert left[3] == "10:00"
    assert left[-1] == "00:10"  # the slow ones at the start are forgotten
