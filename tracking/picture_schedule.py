"""Make the pictures of a running run, without harm to it.

Whatever fails costs a warning, once per kind, and never an epoch. What is costly is made anew only
while all pictures together stay below a portion of the time for training; at the end everything is.
"""

import time

import report
from console.errors import one_line
from records import files, reader

# Pictures may take 3 % of the time of epochs of more than 20 seconds, 12 % of that of shorter ones.
# The drawings and the page are made after every epoch in any case; they take a fifth of a second.
LONG_EPOCH = 20.0
PORTION_LONG, PORTION_SHORT = 0.03, 0.12


class Pictures:
    """Keeps count of the time that the pictures of a run take."""

    def __init__(self, run, costly):
        """
        run     the tracking.run.Run
        costly  {kind: maker}: functions of the run's path, such as plot_train_val.plot_run
        """
        self.run = run
        self.costly = costly
        summary = reader.read_summary(run.files.path)
        self.seconds = summary.get("picture_seconds", 0.0)  # of earlier calls, when resumed
        self.epoch_seconds = reader.epoch_seconds(run.files.path)
        self._costs = {}  # seconds that each costly kind took the last time

    def after_epoch(self, seconds, drawing=None):
        """After an epoch of so many `seconds`: its `drawing`, a function without arguments, the
        costly pictures if there is time for them, the page."""
        self.epoch_seconds += seconds
        start = time.perf_counter()
        self._make("drawing", drawing)
        portion = PORTION_LONG if seconds > LONG_EPOCH else PORTION_SHORT
        for kind in self.costly:
            spent = self.seconds + time.perf_counter() - start
            if spent + self._costs.get(kind, 0.0) <= portion * self.epoch_seconds:
                self._make_costly(kind)
        self._make("summary", self.run.record_state)
        self._make_page()
        self.seconds += time.perf_counter() - start
        self._make("summary", self._record_seconds)

    def at_end(self, drawing=None):
        """Everything once more, as it is at the end. Logs what all has cost, the end apart."""
        start = time.perf_counter()
        self._make("drawing", drawing)
        for kind in self.costly:
            self._make_costly(kind)
        self._make_page()
        portion = self.seconds / max(self.epoch_seconds, 1e-9)
        self.run.log.info(
            f"pictures took {self.seconds:.1f} s, {portion:.1%} of the {self.epoch_seconds:.1f} s "
            f"of the epochs, and {time.perf_counter() - start:.1f} s at the end; look at "
            f"{self.run.files.file(files.REPORT)}"
        )

    def _record_seconds(self):
        self.run.files.update_summary(picture_seconds=round(self.seconds, 3))

    def _make_costly(self, kind):
        start = time.perf_counter()
        self._make(kind, lambda: self.costly[kind](self.run.files.path))
        self._costs[kind] = time.perf_counter() - start

    def _make_page(self):
        self._make("report", lambda: report.write(self.run.files.path))

    def _make(self, kind, maker):
        if maker is not None and self.run.group.is_main:
            attempt(self.run.log, kind, maker)


def attempt(log, kind, maker):
    """maker(), and a warning where that fails."""
    try:
        maker()
    except Exception as error:  # whatever it is, the run goes on
        log.warn(f"no {kind}: {one_line(error)}", kind=f"{kind} {type(error).__name__}")
