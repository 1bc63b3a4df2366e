"""The loader's images per second beside the step's."""

import time

import pytest

from data_sets import loader_speed


def test_waiting_is_measured_and_starts_anew_each_epoch(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    class Images:
        def __len__(self):
            return 6

        def __getitem__(self, index):
            clock[0] += 0.25
            return index

    images = Images()
    timed = loader_speed.TimedLoader(images, batch_size=2)
    assert (len(timed), timed.dataset) == (3, images)
    for _ in range(2):
        for batch in timed:
            assert len(batch) == 2
            clock[0] += 1  # a step
        speed = loader_speed.speed([timed], {"seconds": 4.5, "images_per_second": 20 / 4.5})
        assert speed == {
            "wait_seconds": 1.5,
            "loader_images_per_second": pytest.approx(20 / 1.5),
            "step_images_per_second": pytest.approx(20 / 3),
        }


def test_a_slow_loader_is_said():
    fast = {"loader_images_per_second": 1000.4, "step_images_per_second": 100.0}
    assert loader_speed.describe(fast, None) == "loader 1,000 images per second, network 100"
    slow = {**fast, "step_images_per_second": 900.0}
    assert "more --workers (now chosen by itself) may help" in loader_speed.describe(slow, None)
    assert "more --workers (now 1) may help" in loader_speed.describe(slow, 1)
