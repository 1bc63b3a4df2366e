"""TensorBoard events of a run."""

import contextlib
import os
import socket
import time
import uuid

import numpy as np
from PIL import Image
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

from console.errors import one_line

FLUSH_SECONDS = 20.0  # after which events can be seen in TensorBoard


class EventFile:
    """One file of events in `folder`, written at once.

    tensorboardX' own SummaryWriter writes in a thread, behind a short queue. Where that thread has
    ended, as on a full disk, the next event waits for ever.
    """

    def __init__(self, folder):
        os.makedirs(folder, exist_ok=True)
        unique = uuid.uuid4().hex[:8]  # a run that goes on within the same second
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{unique}"
        self._records = RecordWriter(os.path.join(folder, name))
        self._flushed = time.perf_counter()
        try:
            self.add(file_version="brain.Event:2")
        except BaseException:
            self._records.close()
            raise

    def add(self, step=0, **content):
        """One event, as the fields of its protocol buffer."""
        event = Event(wall_time=time.time(), step=step, **content)
        self._records.write(event.SerializeToString())
        if time.perf_counter() - self._flushed > FLUSH_SECONDS:
            self._records.flush()
            self._flushed = time.perf_counter()

    def close(self):
        self._records.close()


class Board:
    """Writes scalars, pictures and flags for TensorBoard. Silent before `open`.

    The first event that cannot be written costs one warning and is the last: no run waits for its
    events, and none ends because of them.
    """

    def __init__(self):
        self._path = self._events = self._warn = None
        self.drawn = None  # the genotype of the pictures that were written last

    def open(self, path, flags, first_step=0, warn=print):
        """Start an event file in the folder `path`; a resumed run hides what was written after
        `first_step`. `warn` is called, once, with a line of text if events cannot be written."""
        self._path, self._warn = path, warn
        with self._or_drop():
            self._events = EventFile(path)
            if first_step:
                # TensorBoard hides this step as well, and the last finished epoch is at first_step
                start = SessionLog(status=SessionLog.START)
                self._events.add(first_step + 1, session_log=start)
            else:
                rows = [f"|{name}|{value}|" for name, value in sorted(flags.items())]
                text = "\n".join(["|flag|value|", "|-|-|", *rows])
                self._events.add(summary=summary.text("config", text))

    @contextlib.contextmanager
    def _or_drop(self):
        try:
            yield
        except Exception as error:  # whatever it is, the run goes on
            events, self._events = self._events, None
            with contextlib.suppress(OSError, ValueError):
                if events is not None:
                    events.close()
            self._warn(f"no more events for TensorBoard in {self._path}: {one_line(error)}")

    def close(self):
        if self._events is not None:
            with self._or_drop():
                self._events.close()
        self._events = None

    def _add(self, step, make, *args, **kwargs):
        if self._events is not None:
            with self._or_drop():
                self._events.add(step, summary=make(*args, **kwargs))

    def scalars(self, group, values, step):
        """{name: number} as the scalars group/name."""
        for name, value in values.items():
            self._add(step, summary.scalar, f"{group}/{name}", value)

    def histogram(self, tag, values, step):
        """One histogram of numbers."""
        values = np.asarray(values)
        bins = np.histogram_bin_edges(values, 30)
        self._add(step, summary.histogram, tag, values, bins)

    def image(self, tag, path, step):
        """A picture file."""
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        self._add(step, summary.image, tag, pixels, dataformats="HWC")

    def hparams(self, flags, **results):
        """The flags and what came out, for TensorBoard's table of runs."""
        if self._events is None:
            return
        known = (bool, int, float, str)
        flags = {k: v if isinstance(v, known) else str(v) for k, v in flags.items()}
        with self._or_drop():  # in a folder of its own, as TensorBoard wants it
            events = EventFile(os.path.join(self._path, "hparams"))
            with contextlib.closing(events):
                for part in summary.hparams(flags, results):
                    events.add(summary=part)
                for name, value in results.items():
                    events.add(summary=summary.scalar(name, value))
