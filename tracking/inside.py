"""A run inside an epoch, as a checkpoint keeps it."""

from typing import Any, NamedTuple


class Inside(NamedTuple):
    """The training pass of an epoch, after some of its steps."""

    epoch: int
    step: int  # the last that was done, counted from 1
    meter: Any  # the utils.Meter of the pass; of a pass to go on with, its state_dict

    def __str__(self):
        return f"step {self.step} of epoch {self.epoch}"

    def state_dict(self):
        """Raises FloatingPointError where the loss is not finite: nothing to go on from."""
        self.meter.means()
        return {**self._asdict(), "meter": self.meter.state_dict()}


def where(state):
    """What a checkpoint was saved after, in words."""
    if state["inside"] is None:
        return f"epoch {state['epoch']}"
    return str(Inside(**state["inside"]))
