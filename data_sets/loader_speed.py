"""How many images per second the loader gives, beside those that the network takes."""

import time

from data_sets.loader_processes import Loader


class TimedLoader(Loader):
    """A Loader that measures how long its batches were waited for, in `seconds`."""

    seconds = 0.0

    def __iter__(self):
        batches = super().__iter__()
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.seconds += time.perf_counter() - start
            if batch is None:
                return
            yield batch


def speed(loaders, trained):
    """{"wait_seconds", "loader_images_per_second", "step_images_per_second"} of one epoch.

    loaders  its TimedLoaders, whose seconds start anew
    trained  what train() returned: "seconds" and "images_per_second"

    Images are training images, in a search too, where each comes with one for alpha: what loader
    and step would reach alone; together they make trained["images_per_second"]. With loader
    processes a batch is often there before it is asked for: the loader's figure is then a lower
    bound. On a GPU a step still runs while the next batch is waited for: the step's figure is then
    an upper bound.
    """
    wait = sum(loader.seconds for loader in loaders)
    for loader in loaders:
        loader.seconds = 0.0
    images = trained["images_per_second"] * trained["seconds"]
    return {
        "wait_seconds": wait,
        "loader_images_per_second": images / max(wait, 1e-9),
        "step_images_per_second": images / max(trained["seconds"] - wait, 1e-9),
    }


def describe(speed, workers):
    """`speed` as a line for the log; `workers` is the flag."""
    loader, step = (speed[f"{what}_images_per_second"] for what in ("loader", "step"))
    text = f"loader {loader:,.0f} images per second, network {step:,.0f}"
    if loader < 2 * step:
        now = "chosen by itself" if workers is None else workers
        return f"{text}: the loader costs time; more --workers (now {now}) may help"
    return text
