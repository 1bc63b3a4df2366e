"""What a run says while it goes on: lines, a table with one row per epoch, two progress bars.

Lines go to the terminal (standard output) and, with date and time, into the log; details of an
epoch go into the log alone. The bars go to standard error, and only where that is a terminal: in a
file there are lines instead, and none is torn.
"""

import logging
import os
import sys
import time

from tqdm import tqdm

HEADER_EVERY = 20  # rows of the table between two headers


class Terminal:
    """The talking half of a run folder. With --quiet: warnings and the last lines only."""

    def __init__(self, cfg):
        self.cfg = cfg
        self.bars = ()  # of the epoch, and of the whole run
        self._rows = 0
        self.top_k = 5  # what "top5" is with fewer than five classes
        self._warned = set()
        self._logger = None

    # --- lines ----------------------------------------------------------------------------------

    def open_log(self, path):
        """Begin to write the log, and to the terminal."""
        self._logger = logging.getLogger(os.path.abspath(path))
        self._logger.setLevel(logging.DEBUG)
        self._logger.propagate = False
        to_file = logging.FileHandler(path, encoding="utf-8")
        to_file.setFormatter(logging.Formatter("%(asctime)s | %(message)s", "%m/%d %H:%M:%S"))
        to_terminal = _TerminalHandler(logging.WARNING if self.cfg.quiet else logging.INFO)
        for handler in (to_file, to_terminal):
            self._logger.addHandler(handler)

    def close_log(self):
        """The end: nothing is said from here on."""
        for handler in list(self._logger.handlers):
            handler.close()
            self._logger.removeHandler(handler)

    def info(self, text):
        """Something to read, of one line or several. Silent with --quiet."""
        self._logger.info(text)

    def result(self, text):
        """What came out: said even with --quiet."""
        self._logger.log(RESULT, text)

    def detail(self, text):
        """Into the log alone."""
        self._logger.debug(text)

    def warn(self, text, kind=None):
        """A line nobody overlooks; with `kind`, only the first of its kind."""
        if kind is None or kind not in self._warned:
            self._warned.add(kind)
            self._logger.warning(f"WARNING: {text}")

    # --- the table ------------------------------------------------------------------------------

    def row(self, epoch, trained, held, best, held_name="val", **columns):
        """One epoch as one line of the table, below a header every now and then.

        trained, held  {"loss", "top1", "seconds"} of both phases;  best {"epoch", "top1"}
        columns        more to show, {name: text}, before the seconds and the time left
        """
        cells = {
            "epoch": (f"{epoch}/{self.cfg.epochs}", 8),
            "train loss": (f"{trained['loss']:.4f}", 10),
            "top1": (f"{trained['top1']:.2%}", 7),
            f"{held_name} loss": (f"{held['loss']:.4f}", 9),
            "top1 ": (f"{held['top1']:.2%}", 7),
            "best": (f"{best['top1']:.2%}", 7),
            "at": (str(best["epoch"]) + ("*" if best["epoch"] == epoch else " "), 4),
            **{name: (text, max(5, len(name))) for name, text in columns.items()},
            "sec": (f"{trained['seconds'] + held['seconds']:.0f}", 5),
            "left": (self.time_left(epoch), 7),
        }
        if self._rows % HEADER_EVERY == 0:
            self.info(" ".join(f"{name.strip():>{width}}" for name, (_, width) in cells.items()))
        self._rows += 1
        self.info(" ".join(f"{text:>{width}}" for text, width in cells.values()))

    def time_left(self, epoch):
        """What the epochs after this one will take, at the mean pace of this call."""
        seconds = (time.time() - self._began) / (epoch - self._first_epoch + 1)
        return tqdm.format_interval(seconds * (self.cfg.epochs - epoch))

    # --- bars -----------------------------------------------------------------------------------

    def bar(self, first_epoch, n_steps):
        """Open two bars: of the epoch's training steps, and below it of those of the whole run,
        whose time left is the expected end. Without a terminal there are none, and `step` writes
        lines instead."""
        self._began, self._first_epoch, self._shown = time.time(), first_epoch, 0.0
        common = {"dynamic_ncols": True, "file": sys.stderr, "leave": False,
                  "disable": True if self.cfg.quiet else None}  # fmt: skip
        self.bars = (
            tqdm(total=n_steps, position=0, **common,
                 bar_format="{desc:>12} {percentage:3.0f}%|{bar:16}| {n}/{total} {elapsed}, "
                            "{remaining} left{postfix}"),
            tqdm(total=self.cfg.epochs * n_steps, initial=(first_epoch - 1) * n_steps, position=1,
                 desc="whole run", smoothing=0.05, **common,
                 bar_format="{desc:>12} {percentage:3.0f}%|{bar:16}| {n}/{total} {elapsed}, "
                            "{remaining} left"),
        )  # fmt: skip

    def close_bar(self):
        """Take the bars away; what is said from here on stands alone."""
        for bar in reversed(self.bars):  # the upper one last: it leaves the cursor at the margin
            bar.close()
        self.bars = ()

    def advance(self):
        """One training step is done."""
        steps, whole = self.bars
        if steps.n == steps.total or not steps.n:  # another epoch
            epoch = whole.n // steps.total + 1
            steps.reset()
            steps.set_description_str(f"epoch {epoch}/{self.cfg.epochs}", refresh=False)
        steps.update()
        whole.update()

    def due(self, global_step):
        """Whether to show this step: every --print_freq steps, and in the bar once a second."""
        every = global_step == 1 or global_step % self.cfg.print_freq == 0
        return every or (not self.bars[0].disable and time.time() - self._shown > 1)

    def step(self, epoch, step, n_steps, global_step, means):
        """Show running means {"loss", "top1", "top5"} of the epoch: in the bar, or as a line."""
        if global_step % self.cfg.print_freq == 0:
            for key, value in means.items():
                self.scalar(f"running/{key}", value, global_step)
        if self.bars[0].disable:
            self.info(
                f"epoch {epoch} step {step}/{n_steps}  loss {means['loss']:.4f}  "
                f"top1 {means['top1']:.2%}  top{self.top_k} {means['top5']:.2%}"
            )
        self._shown = time.time()
        self.bars[0].set_postfix_str(f"loss {means['loss']:.3f} top1 {means['top1']:.1%}")


RESULT = logging.WARNING + 1  # what --quiet does not silence


class _TerminalHandler(logging.Handler):
    """To standard output, above the progress bars."""

    def emit(self, record):
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()
