"""How fast images come, beside how fast they are used."""

import time


class Timed:
    """A loader that measures how long its batches were waited for."""

    def __init__(self, loader):
        self.loader = loader
        self.seconds = 0.0

    @property
    def dataset(self):
        return self.loader.dataset

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        batches = iter(self.loader)
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.seconds += time.perf_counter() - start
            if batch is None:
                return
            yield batch


def speed(timed, trained):
    """{"wait_seconds", "loader_images_per_second", "step_images_per_second"} of one epoch.

    timed    its Timed loaders, which start anew
    trained  what train() returned: "seconds" and "images_per_second"

    Images are training images, in a search too, where each comes with one for alpha: what loader
    and step would reach alone; together they make trained["images_per_second"]. With loader
    processes a batch is often there before it is asked for: the loader's figure is then a lower
    bound. On a GPU a step still runs while the next batch is waited for: the step's figure is then
    an upper bound.
    """
    wait = sum(loader.seconds for loader in timed)
    for loader in timed:
        loader.seconds = 0.0
    images = trained["images_per_second"] * trained["seconds"]
    return {
        "wait_seconds": wait,
        "loader_images_per_second": images / max(wait, 1e-9),
        "step_images_per_second": images / max(trained["seconds"] - wait, 1e-9),
    }


def in_words(speed, workers):
    """A line for the log; `workers` is the flag."""
    loader, step = (speed[f"{what}_images_per_second"] for what in ("loader", "step"))
    text = f"loader {loader:,.0f} images per second, network {step:,.0f}"
    if loader < 2 * step:
        now = "chosen by itself" if workers is None else workers
        return f"{text}: the loader costs time; more --workers (now {now}) may help"
    return text
