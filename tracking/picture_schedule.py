"""Make the pictures of a running run, without harm to it.

Whatever fails costs a warning, once per kind, and never an epoch. What is costly is made anew only
while all pictures together stay below a share of the time for training; at the end everything is.
"""

import time

import report
from records import files, reader

# Largest share of the time of the epochs that pictures may take, and from how many seconds an epoch
# counts as long. What must be made after every epoch is made in any case: the drawings and the
# page, together a fifth of a second.
SHARE_LONG, SHARE_SHORT, LONG = 0.03, 0.12, 20.0


class Pictures:
    """Keeps count of the time that the pictures of a run take."""

    def __init__(self, run, costly):
        """
        run     the RunFolder
        costly  {kind: maker}: functions of the run's path, such as plot_train_val.plot_run
        """
        self.run = run
        self.costly = costly
        summary = reader.read_summary(run.path)
        self.seconds = summary.get("picture_seconds", 0.0)  # of earlier calls, when resumed
        self.trained = reader.epoch_seconds(run.path)
        self._costs = {}  # of each costly kind, the last time

    def after_epoch(self, seconds, **makers):
        """Make what belongs to an epoch of so many `seconds`: {kind: function without arguments},
        then the costly pictures if there is time for them, then the page."""
        self.trained += seconds
        start = time.perf_counter()
        self._make(makers)
        limit = SHARE_LONG if seconds > LONG else SHARE_SHORT
        for kind in self.costly:
            spent = self.seconds + time.perf_counter() - start
            if spent + self._costs.get(kind, 0.0) <= limit * self.trained:
                self._make_costly(kind)
        self._make_page()
        self.seconds += time.perf_counter() - start
        self._make({"summary": lambda: self.run.note(picture_seconds=round(self.seconds, 3))})

    def at_end(self, **makers):
        """Everything once more, as it is at the end; says what all has cost, the end apart."""
        start = time.perf_counter()
        self._make(makers)
        for kind in self.costly:
            self._make_costly(kind)
        self._make_page()
        self.run.info(
            f"pictures took {self.seconds:.1f} s, "
            f"{self.seconds / max(self.trained, 1e-9):.1%} of the {self.trained:.1f} s of the "
            f"epochs, and {time.perf_counter() - start:.1f} s at the end; look at "
            f"{self.run.file(files.REPORT)}"
        )

    def _make_costly(self, kind):
        start = time.perf_counter()
        self._make({kind: lambda: self.costly[kind](self.run.path)})
        self._costs[kind] = time.perf_counter() - start

    def _make_page(self):
        self._make({"report": lambda: report.write(self.run.path)})

    def _make(self, makers):
        for kind, maker in makers.items():
            try:
                maker()
            except Exception as error:  # whatever it is, the run goes on
                reason = " ".join(str(error).split()) or type(error).__name__
                self.run.warn(f"no {kind}: {reason}", kind=f"{kind} {type(error).__name__}")
