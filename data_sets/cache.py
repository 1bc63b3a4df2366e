"""What need not be computed twice: decoded images in memory, what was found out in JSON files."""

import json
import os

from records.files import atomic_write

ENTRIES = 50  # that a cache file keeps


class CacheBudget:
    """The memory that decoded images may take, shared by all parts of a run."""

    def __init__(self, gb):
        self.left_gb = gb

    def take(self, gb):
        """Whether `gb` more fit; if so, they are taken."""
        if gb > self.left_gb:
            return False
        self.left_gb -= gb
        return True


def cached(cache_files, key):
    """What `store` kept under `key`, or None."""
    for file in cache_files:
        if key in (entries := _read(file)):
            return entries[key]
    return None


def store(cache_files, key, value):
    """Keep `value` (of JSON) for later runs in the first file, which holds the latest ENTRIES."""
    if not cache_files:
        return
    file = cache_files[0]
    entries = [item for item in _read(file).items() if item[0] != key]
    os.makedirs(os.path.dirname(file) or ".", exist_ok=True)
    with atomic_write(file) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        json.dump(dict([*entries[1 - ENTRIES :], (key, value)]), stream, indent=1)


def _read(file):
    if not os.path.isfile(file):  # a FIFO or a device may have no end
        return {}
    try:
        with open(file, encoding="utf-8") as stream:
            return dict(json.load(stream))
    except (OSError, TypeError, ValueError):
        return {}  # no cache, or a damaged one: the images are read again
