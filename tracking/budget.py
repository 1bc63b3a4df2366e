"""What a run asks of the memory, beside what there is: absurd sizes are refused at once."""

import argparse

from console.terminal import byte_size
from data_sets import named
from devices import memory
from models.memory import estimate

# the flags that memory depends on, by how much they do
FLAGS = ("batch_size", "init_channels", "layers", "n_nodes", "stem_multiplier", "input_size")

JOINTLY = ("batch_size", "init_channels", "layers", "n_nodes")
UNKNOWN = (1, 1)  # the size of images that are not read yet: no less is possible


class Budget:
    """What a run asks of the memory, and what the device has."""

    def __init__(self, cfg):
        self.cfg = cfg
        self.cells_of = self.device = None
        self.C_in = self.size = self.batch_size = self.least_batch = None

    def check(self, device, cells_of, data=None):
        """Raise ValueError for what cannot fit.

        cells_of  cfg -> memory.Cells, as `supernet_cells`
        data      a loaders.Data; None before the images are read: then what the flags say of them
        """
        self.device, self.cells_of = device, cells_of
        if data is not None:
            self.C_in, self.size = data.spec.C_in, data.spec.size
            self.batch_size = self.least_batch = data.batch_size
        else:
            self._from_flags()
        need = self._need(self.cfg)
        places = [
            (
                need.total(self._at_once(self.least_batch)) / 2,
                memory.available(device),
                device.torch_device.type,
            ),
            (need.objects, memory.host(), "this machine"),
        ]
        for least, limit, where in places:
            if limit is not None and least > limit:
                raise ValueError(
                    f"needs {byte_size(least)} of memory at least, and {where} has "
                    f"{byte_size(limit)}: {self._asked()}; {self._smaller(limit)}"
                )

    def _from_flags(self):
        """Size and batch as far as the flags say; the least possible where the images decide."""
        cfg = self.cfg
        known = None if cfg.dataset in named.FOLDERS else named.spec(cfg.dataset)
        self.size = tuple(cfg.input_size or (known.size if known else UNKNOWN))
        self.C_in = cfg.in_channels or (known.C_in if known else 1)
        self.batch_size = cfg.batch_size
        # a batch that nobody asked for shrinks where images are few
        self.least_batch = cfg.batch_size if "batch_size" in cfg.said else 2

    def _need(self, cfg, size=None):
        return estimate(cfg, self.cells_of(cfg), self.C_in, size or self.size)

    def _at_once(self, batch_size):
        """The images of a batch that a process passes at once."""
        return -(-batch_size // (self.device.group.size * self.cfg.accumulate))

    def _values(self):
        """{flag: its value in this run}."""
        values = {name: getattr(self.cfg, name, None) for name in FLAGS}
        side = min(self.size) if self.size != UNKNOWN else None
        values |= {"batch_size": self.batch_size, "input_size": side}
        return {name: value for name, value in values.items() if value is not None}

    def _asked(self):
        return ", ".join(f"--{name} {value}" for name, value in self._values().items())

    def _smaller(self, limit):
        """The flags that lower the need, each with a value at which the estimate fits; where none
        does alone, values for all of them."""
        values, fitting = self._values(), []
        for name, value in values.items():
            while value != (value := _half(name, value)):
                if self._fits(limit, {name: value}):
                    fitting.append(f"--{name} {value}")
                    break
        together = {name: values[name] for name in JOINTLY if name in values}
        before = None
        while not fitting and together != before:
            before, together = together, {n: _half(n, v) for n, v in together.items()}
            if self._fits(limit, together):
                fitting.append(", ".join(f"--{name} {value}" for name, value in together.items()))
        if not fitting:
            return "no smaller network of these images fits"
        return f"by the estimate {' or '.join(fitting)} would fit"

    def _fits(self, limit, values):
        cfg = argparse.Namespace(**{**self.cfg.flags(), **values})
        side = values.get("input_size")
        need = self._need(cfg, (side, side) if side else None)
        batch_size = values.get("batch_size", self.batch_size)
        return need.total(self._at_once(batch_size)) <= limit >= need.objects

    def advice(self):
        """What to lower when the memory has run out, in words."""
        if self.cells_of is None:
            return "close other programs"
        need = self._need(self.cfg)
        limit = memory.available(self.device)
        total = need.total(self._at_once(self.batch_size))
        # what is not known, or taken by others: half of what was tried
        limit = total / 2 if limit is None else min(limit, total / 2)
        parts = ", or pass each batch in --accumulate parts" if self.batch_size >= 4 else ""
        return (
            f"{self._asked()} need about {byte_size(total)}, {byte_size(need.maps)} of it for "
            f"each image of a batch; {self._smaller(limit)}{parts}"
        )


def _half(name, value):
    """Half of a flag's value, not below the least that it takes."""
    return max(value // 2, 2 if name == "batch_size" else 1)
