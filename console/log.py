"""What a run says while it goes on: lines, a table with one row per epoch, two progress bars.

Lines go to the terminal (standard output) and, with date and time, into the log file; details of an
epoch go into the file alone. The bars go to standard error, and only where that is a terminal: in a
file there are lines instead, and none is torn.
"""

import contextlib
import logging
import os
import sys
import time

from tqdm import tqdm

from console import terminal

RECENT = 3  # epochs whose speed tells the time left
HEADER_EVERY = 20  # rows of the table between two headers
RESULT = logging.WARNING + 1  # the level of what --quiet does not silence


class Log:
    """The voice of a run. Nothing is said before `open` and after `close`."""

    def __init__(self, quiet=False, print_freq=50):
        """
        quiet       only warnings and results
        print_freq  steps between two lines without a terminal
        """
        self.quiet = quiet
        self.print_freq = print_freq
        self._logger = None
        self._warned = set()
        self.warnings = []  # all that were said
        self._rows = 0
        self._bars = ()  # of the epoch, and of the whole run
        self._n_epochs = 0
        self._ends = [0.0]  # of the last epochs of this call, and its start
        self._shown = 0.0

    # --- lines ----------------------------------------------------------------------------------

    def open(self, path):
        """Begin to write to the file `path`, and to the terminal."""
        self._logger = logging.getLogger(f"darts.run.{os.path.abspath(path)}")
        self._logger.setLevel(logging.DEBUG)
        self._logger.propagate = False
        to_file = _FileHandler(path, encoding="utf-8")
        to_file.setFormatter(_Formatter("%(asctime)s | %(message)s", "%m/%d %H:%M:%S"))
        to_terminal = _TerminalHandler(logging.WARNING if self.quiet else logging.INFO)
        to_terminal.setFormatter(_Formatter())
        for handler in (to_file, to_terminal):
            self._logger.addHandler(handler)

    def close(self):
        self.close_bars()
        for handler in list(self._logger.handlers if self._logger else ()):
            with contextlib.suppress(OSError):  # a full disk, which has been told of
                handler.close()
            self._logger.removeHandler(handler)

    def info(self, text):
        """Something to read, of one line or several. Silent with --quiet."""
        self._say(logging.INFO, text)

    def result(self, text):
        """What came out: said even with --quiet."""
        self._say(RESULT, text)

    def detail(self, text):
        """Into the file alone."""
        self._logger.debug(text)

    def warn(self, text, kind=None):
        """A line nobody overlooks; with `kind`, only the first of its kind."""
        if kind is None or kind not in self._warned:
            self._warned.add(kind)
            self.warnings.append(text)
            self._say(logging.WARNING, f"WARNING: {text}")

    def _say(self, level, text):
        self._logger.log(level, text)
        self._look_after_terminal()

    def _look_after_terminal(self):
        """Say once, in the file, that the terminal or what else takes the output is gone; lines
        take the place of its bars."""
        for stream, name in ((sys.stdout, "standard output"), (sys.stderr, "standard error")):
            error = terminal.lost(stream)
            if error is not None and not stream.told:
                stream.told = True
                self.detail(
                    f"WARNING: {name} is gone ({terminal.reason(error)}): the run goes on, and "
                    f"this file has all that it says"
                )
                for bar in self._bars:
                    bar.disable = True

    # --- the table ------------------------------------------------------------------------------

    def row(self, epoch, train, val, best, val_name="val", **columns):
        """One epoch as one line of the table, below a header every now and then.

        train, val  {"loss", "top1", "seconds"} of both phases;  best {"epoch", "top1"}
        columns     more to show, {name: text}, before the seconds and the time left
        """
        cells = [
            ("epoch", f"{epoch}/{self._n_epochs}", 8),
            ("train loss", f"{train['loss']:.4f}", 10),
            ("top1", f"{train['top1']:.2%}", 7),
            (f"{val_name} loss", f"{val['loss']:.4f}", 9),
            ("top1", f"{val['top1']:.2%}", 7),
            ("best", f"{best['top1']:.2%}", 7),
            ("at", str(best["epoch"]) + ("*" if best["epoch"] == epoch else " "), 4),
            *((name, text, 5) for name, text in columns.items()),
            ("sec", f"{train['seconds'] + val['seconds']:.0f}", 5),
            ("left", self._time_left(epoch), 7),
        ]
        widths = [max(width, len(name)) for name, _, width in cells]
        if self._rows % HEADER_EVERY == 0:
            self.info(_columns([name for name, _, _ in cells], widths))
        self._rows += 1
        self.info(_columns([text for _, text, _ in cells], widths))

    def _time_left(self, epoch):
        """What the epochs after this one will take, at the mean speed of the last three."""
        self._ends = [*self._ends[-RECENT:], time.perf_counter()]
        seconds = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        return tqdm.format_interval(seconds * (self._n_epochs - epoch))

    # --- bars -----------------------------------------------------------------------------------

    def open_bars(self, first_epoch, n_epochs, n_steps, done=0):
        """Open two bars: of the epoch's training steps, `done` of which were done before, and below
        it of those of the whole run, whose time left is the expected end. Without a terminal there
        are none, and `step` writes lines instead."""
        self._n_epochs = n_epochs
        self._ends = [time.perf_counter()]
        common = {"dynamic_ncols": True, "file": sys.stderr, "leave": False}
        common["disable"] = True if self.quiet else None
        form = "{desc:>12} {percentage:3.0f}%|{bar:16}| {n}/{total} {elapsed}, {remaining} left"
        total, before = n_epochs * n_steps, (first_epoch - 1) * n_steps + done
        self._bars = (
            tqdm(
                total=n_steps, initial=done, position=0, desc=f"epoch {first_epoch}/{n_epochs}",
                bar_format=form + "{postfix}", **common,
            ),
            tqdm(
                total=total, initial=before, position=1, desc="whole run", smoothing=0.05,
                bar_format=form, **common,
            ),
        )  # fmt: skip

    def close_bars(self):
        """Take the bars away; what is said from here on stands alone."""
        for bar in reversed(self._bars):  # the upper one last: it leaves the cursor at the margin
            bar.close()
        self._bars = ()

    def advance(self, epoch):
        """Move the bars on by one training step."""
        steps, whole = self._bars
        if steps.n == steps.total or not steps.n:  # another epoch
            steps.reset()
            steps.set_description_str(f"epoch {epoch}/{self._n_epochs}", refresh=False)
        steps.update()
        whole.update()

    def due(self, global_step):
        """Whether to show this step: every --print_freq steps, and in the bar once a second."""
        every = global_step == 1 or global_step % self.print_freq == 0
        return every or (not self._bars[0].disable and time.perf_counter() - self._shown > 1)

    def step(self, epoch, step, n_steps, means, top_k):
        """Show running means {"loss", "top1", "top5"} of the epoch: in the bar, or as a line.
        `top_k` is what "top5" means with fewer than five classes."""
        if self._bars[0].disable:
            self.info(
                f"epoch {epoch} step {step}/{n_steps}  loss {means['loss']:.4f}  "
                f"top1 {means['top1']:.2%}  top{top_k} {means['top5']:.2%}"
            )
        self._look_after_terminal()
        self._shown = time.perf_counter()
        self._bars[0].set_postfix_str(f"loss {means['loss']:.3f} top1 {means['top1']:.1%}")


class SilentLog(Log):
    """The log of a process that does not speak: another one does."""

    def _nothing(self, *args, **words):
        pass

    open = close = detail = _say = row = open_bars = close_bars = advance = step = _nothing

    def due(self, global_step):
        return False


def _columns(texts, widths):
    return " ".join(f"{text:>{width}}" for text, width in zip(texts, widths, strict=True))


class _Formatter(logging.Formatter):
    """Shows control characters that stand in a message, all but its line breaks."""

    def format(self, record):
        return terminal.visible(super().format(record), keep="\n")


class _FileHandler(logging.FileHandler):
    """To the log file; a full disk ends the run, as it does for all other files."""

    def handleError(self, record):  # noqa: N802, its name in logging
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, os.path.relpath(self.baseFilename))
        super().handleError(record)


class _TerminalHandler(logging.Handler):
    """To standard output, above the progress bars."""

    def emit(self, record):
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()
