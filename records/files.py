"""Write a file in one piece: a reader finds the old file or the new one."""

import os
from contextlib import contextmanager


@contextmanager
def atomic(path):
    """A temporary name beside `path`; renamed to it at the end, removed if an error passes."""
    temporary = f"{path}.tmp"
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise
