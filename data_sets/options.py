"""The flags that say which images are read and how, as one value."""

from typing import Any, NamedTuple

MAX_MEGAPIXELS = 180.0  # about what Pillow takes for an attack


class DataOptions(NamedTuple):
    """The data flags of a run; config.py explains each. Beside them:

    known_spec        DataSpec of the run that goes on or is scored: nothing is found out anew
    cache_files       JSON files that keep what was found out about a folder; the first is written
    may_shrink_batch  nobody asked for this batch size: take a smaller one where images are few
    pin_memory        whether batches go to a GPU
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
    known_spec: Any = None
    cache_files: tuple = ()
    may_shrink_batch: bool = False
    pin_memory: bool = False

    @classmethod
    def from_config(
        cls, cfg, known_spec=None, cache_files=(), may_shrink_batch=False, pin_memory=False
    ):
        """From the flags of a run. Raises TypeError if `cfg` lacks one."""
        flags = {name: getattr(cfg, name) for name in cls._fields[:-4] if hasattr(cfg, name)}
        return cls(
            **flags,
            known_spec=known_spec,
            cache_files=tuple(cache_files),
            may_shrink_batch=may_shrink_batch,
            pin_memory=pin_memory,
        )
