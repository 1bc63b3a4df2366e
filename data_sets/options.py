"""The flags that say which images are read and how, as one value."""

from typing import Any, NamedTuple

MAX_MEGAPIXELS = 180.0  # about what Pillow takes for an attack


class DataOptions(NamedTuple):
    """The data flags of a run; config.py explains each. Beside them:

    known_spec        DataSpec of the run that goes on or is scored: nothing is found out anew
    cache_files       JSON files that keep what was found out about a folder; the first is written
    may_shrink_batch  nobody asked for this batch size: take a smaller one where images are few
    pin_memory        whether batches go to a GPU
    share             (r, size): which process this is, and of how many that share each batch
    local_size        how many of them are on this machine
    accumulate        parts in which a process passes its share
    swapped           the two parts of a search change places
    """

    dataset: str
    data_path: str
    in_channels: Any
    input_size: Any
    test_portion: float
    bad_images: str
    subset: float
    augment: str
    hflip: Any
    cutout_length: Any
    cache_gb: float
    max_megapixels: float
    batch_size: int
    workers: Any
    seed: int
    val_portion: Any = None  # a search has it
    deterministic: bool = False
    accumulate: int = 1
    known_spec: Any = None
    cache_files: tuple = ()
    may_shrink_batch: bool = False
    pin_memory: bool = False
    share: tuple = (0, 1)
    local_size: int = 1
    swapped: bool = False

    @classmethod
    def from_config(cls, cfg, **others):
        """From the flags of a run, and values for the others. Raises TypeError if `cfg` lacks a
        flag."""
        names = cls._fields[: cls._fields.index("known_spec")]
        return cls(**{name: getattr(cfg, name) for name in names if hasattr(cfg, name)}, **others)
