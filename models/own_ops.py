"""Blocks from a file of the user's own (--ops FILE), added to OPS.

The file is Python and defines OPS, as models/ops.py does. Loading it runs it: that happens where
the command line names the file, or where a run remembers it and it still has the same content. A
run remembers "path#hash of the content".
"""

import hashlib
import os
import sys
import types

from console import errors
from models.ops import OPS

_REPOSITORY = frozenset(OPS)  # names that no file may take
_loaded = {}  # hash: names of its blocks
_paths = {}  # name of a block: where it comes from


def use(cfg):
    """Add the blocks of --ops, said or remembered, to OPS; returns their names. `cfg` remembers the
    file from here on. Raises ValueError, in one line."""
    if not cfg.ops:
        return []
    cfg.ops, names = load(cfg.ops, "ops" in cfg.said)
    return names


def load(source, said, needed=()):
    """(what a run remembers, the names of the blocks) of a file that defines OPS.

    source  a path that was `said`, else what a run remembers
    needed  names of the blocks that are needed, for the error
    """
    path, _, digest = (source, "", None) if said else source.rpartition("#")
    path = os.path.abspath(path)
    if os.path.exists(path) and not os.path.isfile(path):  # a FIFO or a device may have no end
        raise ValueError(f"--ops {path} is no regular file; name a Python file that defines OPS")
    try:
        with open(path, "rb") as stream:
            text = stream.read()
    except OSError as error:
        if said:
            raise ValueError(f"--ops {source}: {error.strerror}") from None
        blocks = f" {', '.join(needed)}" if needed else ""
        raise ValueError(
            f"the blocks{blocks} come from {path}, which cannot be read ({error.strerror}); "
            f"--ops FILE says where they are now"
        ) from None
    found = hashlib.sha256(text).hexdigest()[:32]
    if digest not in (None, found):
        raise ValueError(
            f"{path} has changed since this run began, and is not run unasked; if its blocks still "
            f"fit, say --ops {path}"
        )
    if found not in _loaded:
        _loaded[found] = _add(path, text, found)
    return f"{path}#{found}", _loaded[found]


def _add(path, text, digest):
    """Run a file and add its OPS; returns their names."""
    module = types.ModuleType(f"own_ops_{digest}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # where inspect looks for the source of a class
    try:
        exec(compile(text, path, "exec"), vars(module))
    except (Exception, SystemExit) as error:
        text = f"{type(error).__name__}: {errors.one_line(error, 200)}"
        raise ValueError(f"--ops {path} cannot be run: {text}") from error
    own = getattr(module, "OPS", None)
    if not isinstance(own, dict) or not own:
        raise ValueError(
            f"--ops {path} defines no OPS; write OPS = {{'mine': lambda C, stride, affine: ...}}"
        )
    for name in own:
        if not (isinstance(name, str) and name.isidentifier()):
            raise ValueError(f"--ops {path}: {name!r} is no name for a block; write my_block")
        if name in _REPOSITORY:
            raise ValueError(f"--ops {path}: {name} comes with the repository; take another name")
    OPS.update(own)
    _paths.update(dict.fromkeys(own, path))
    return list(own)


def flags_that_load(name):
    """The words that a command needs to know the block `name`: none for the repository's."""
    return ["--ops", _paths[name]] if name in _paths else []
