"""Checkpoints: what they hold, and how they are written and read."""

import os
import random

import numpy as np
import torch

from console.errors import one_line
from records import files


def rng_state():
    """The state of every random generator, in types that torch.load(weights_only=True) reads."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    state = {
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), *rest],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state):
    """Put every generator back to where `rng_state` saw it."""
    random.setstate(state["python"])
    np.random.set_state(tuple(state["numpy"]))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def save(state, path):
    """Write `state` to `path` in one piece: a reader finds the old file or the new one."""
    with files.atomic_write(path) as temporary:
        torch.save(state, temporary)


def load(path):
    """Read a checkpoint onto the CPU. Raises ValueError if the file is not one of ours."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or one_line(error)}") from None
    except Exception as error:  # whatever torch says of a broken file
        reason = one_line(error, 100).split(". ")[0]
        raise ValueError(f"{path} is no checkpoint ({reason})") from None
    if not isinstance(state, dict) or "model" not in state or "flags" not in state:
        raise ValueError(f"{path} is no checkpoint of search.py or augment.py")
    return state


def load_state(part, state, path):
    """Give `part` the state_dict read from `path`. Raises ValueError if it does not fit."""
    try:
        part.load_state_dict(state)
        if isinstance(part, torch.optim.Optimizer):
            # it has made steps, which a scheduler warns of where it cannot know it
            part._opt_called = True
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} does not fit the network any more; was a block changed? "
            f"({one_line(error, 200)})"
        ) from None


def to_resume(cfg):
    """The checkpoint that --resume goes on from, whose flags `cfg` then has; None without --resume.

    Raises ValueError where there is none.
    """
    if not cfg.resume:
        return None
    folder = os.path.join(cfg.ROOT, cfg.name)
    path = os.path.join(folder, files.CHECKPOINT)
    if not os.path.isdir(folder):
        raise ValueError(f"no run to go on with: {folder} does not exist")
    if not os.path.exists(path):
        raise ValueError(f"nothing to resume in {folder}: no epoch was finished; use --overwrite")
    state = load(path)
    cfg.resume_from(state["flags"])
    return state
