"""TensorBoard events of a run."""

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter


class Board:
    """Writes scalars, pictures and flags for TensorBoard. Silent before `open`."""

    def __init__(self):
        self._writer = None
        self.drawn = None  # the genotype of the pictures that were written last

    def open(self, path, flags, first_step=0):
        """Start an event file in the folder `path`; a resumed run hides what was written after
        `first_step`."""
        # TensorBoard hides the purge step as well, and the last finished epoch stands at first_step
        self._writer = SummaryWriter(path, purge_step=first_step + 1 if first_step else None)
        if not first_step:
            rows = [f"|{name}|{value}|" for name, value in sorted(flags.items())]
            self._writer.add_text("config", "\n".join(["|flag|value|", "|-|-|", *rows]))

    def close(self):
        if self._writer is not None:
            self._writer.close()

    def scalars(self, group, values, step):
        """{name: number} as the scalars group/name."""
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)

    def histogram(self, tag, values, step):
        """One histogram of numbers."""
        self._writer.add_histogram(tag, np.asarray(values), step)

    def image(self, tag, path, step):
        """A picture file."""
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        self._writer.add_image(tag, pixels, step, dataformats="HWC")

    def hparams(self, flags, **results):
        """The flags and what came out, for TensorBoard's table of runs."""
        known = (bool, int, float, str)
        flags = {k: v if isinstance(v, known) else str(v) for k, v in flags.items()}
        self._writer.add_hparams(flags, results, name="hparams")
