"""Checkpoints: what they hold, and how they are written and read."""

import errno
import hashlib
import math
import os
import random
import zipfile

import numpy as np
import torch

import genotypes as gt
from console.errors import one_line
from records import files
from records.reader import fits, is_count, is_number, is_object, is_text, is_weight


class Damaged(ValueError):
    """A file that is cut, changed, or no checkpoint of ours."""


# --- the random generators ----------------------------------------------------------------------


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


def set_rng_state(state, path="the checkpoint"):
    """Put every generator back to where `rng_state` saw it. Raises Damaged for what is no state."""
    try:
        random.setstate(state["python"])
        np.random.set_state(tuple(state["numpy"]))  # noqa: NPY002
        torch.set_rng_state(state["torch"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])
    except Exception as error:  # each generator has its own
        text = f"{path} is damaged: its random generators ({one_line(error, 100)})"
        raise Damaged(text) from None


def digest(net):
    """A hash of all parameters of a network, the same for the same bits."""
    found = hashlib.sha256()
    for parameter in net.parameters():
        found.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


# --- what a checkpoint holds --------------------------------------------------------------------


def _is_genotype(value):
    if not is_text(value):
        return False
    try:
        gt.from_str(value)
    except ValueError:
        return False
    return True


def _is_counts(value):
    return is_object(value) and all(is_text(k) and is_number(n) for k, n in value.items())


def _is_images(value):
    return is_object(value) and all(
        fits(part, {"classes": _is_counts, "files": is_text}) for part in value.values()
    )


def _is_epoch(value):
    return value == 0 or is_count(value)


def _progress_of(value):
    """What the last or the best epoch that is finished must hold; before the first, no score."""
    scored = not is_object(value) or value.get("epoch") != 0
    return {
        "epoch": _is_epoch,
        "top1": is_weight if scored else lambda top1: top1 in (None, -1.0),
        "genotype": _is_genotype if scored else lambda text: text is None or _is_genotype(text),
    }


def _is_progress(value):
    return fits(value, _progress_of(value))


def _is_searched(value):
    """An epoch as the strategies of a search remember it."""
    return _is_progress(value) and fits(value, {"eigenvalue": is_number})


def _is_inside(value):
    """An epoch that is under way (tracking/inside.py), or none."""
    inside = {"epoch": is_count, "step": is_count, "meter": is_object}
    return value is None or fits(value, inside)


_DATA = {
    "name": is_text,
    "C_in": is_count,
    "size": lambda size: fits(size, [is_count]) and len(size) == 2,
    "classes": [is_text],
    "mean": [is_number],
    "std": [is_number],
}
_COMMON = {
    "model": is_object,
    "scheduler": is_object,
    "rng": is_object,  # of the first process
    "rng_others": [is_object],  # of the others, by rank
    "flags": is_object,
    "data": _DATA,
    "images": _is_images,
    "best": _is_progress,
    "inside": _is_inside,
    "stopped": lambda why: why is None or is_text(why),
    "chosen": lambda value: value is None or _is_progress(value),
    "train_loader": is_object,
}
# the rest, by the program that writes it
KINDS = {
    "search.py": {
        "w_optim": is_object,
        "alpha_optim": is_object,
        "alpha_loader": is_object,
        "strategies": {"history": [_is_searched]},
    },
    "augment.py": {"optim": is_object},
}


def kind_of(state):
    """The program that wrote a checkpoint; None for what is none of ours."""
    if not is_object(state):
        return None
    return "search.py" if "w_optim" in state else "augment.py" if "optim" in state else None


def _check(state, path):
    """Raise Damaged where something is missing, or is of another type than we write."""
    kind = kind_of(state)
    if kind is None:
        raise Damaged(f"{path} is no checkpoint of search.py or augment.py")
    whole = f"{path} is no whole checkpoint of {kind}"
    for key, wanted in {**_COMMON, **KINDS[kind], **_progress_of(state)}.items():
        if key not in state:
            raise Damaged(f"{whole}: {key} is missing")
        if not fits(state[key], wanted):
            raise Damaged(f"{whole}: {key} is not what it should be")


# --- files --------------------------------------------------------------------------------------


def save(state, path, previous=None):
    """Write `state` to `path` in one piece: a reader finds the old file or the new one. The old one
    becomes `previous`. Raises OSError where there is no room."""
    with files.atomic_write(path, previous) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # what torch makes of a write that fails, without the reason
            with open(temporary, "ab") as file:  # which the system says if it is asked again
                file.write(bytes(2**16))
            raise OSError(errno.EIO, "not all of it could be written") from error


def load(path):
    """Read a checkpoint onto the CPU. Raises Damaged for a file that is cut, changed or not one of
    ours, and ValueError where there is none."""
    if os.path.exists(path) and not os.path.isfile(path):  # a FIFO or a device may have no end
        raise ValueError(f"{path} is no checkpoint: it is no regular file")
    try:
        _check_sums(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        if os.path.isfile(path) and error.errno is None:  # not the disk, but what was read
            raise Damaged(f"{path} is damaged or no checkpoint") from None
        raise ValueError(f"{path}: {error.strerror or one_line(error)}") from None
    except Damaged:
        raise
    except Exception:  # torch's own words advise to trust the file, and to run what is in it
        raise Damaged(f"{path} is damaged or no checkpoint") from None
    _check(state, path)
    return state


def _check_sums(path):
    """The checksums in the file, which torch writes and does not compare."""
    with zipfile.ZipFile(path) as archive:
        if archive.testzip() is not None:
            raise Damaged(f"{path} is damaged: a checksum is wrong")


def load_state(part, state, path):
    """Give `part` the state_dict read from `path`. Raises Damaged for values of other types than
    `part` has, ValueError where it does not fit."""
    optimizer = isinstance(part, torch.optim.Optimizer)
    try:
        sound = _is_like(state, part.state_dict())
        sound = sound and (not optimizer or _fits_optimizer(state, part))
    except (AttributeError, IndexError, KeyError, TypeError):  # no state of anything
        sound = False
    if not sound:
        what = type(part).__name__
        raise Damaged(f"{path} is no whole checkpoint: a value of {what} is not what it should be")
    try:
        part.load_state_dict(state)
        if optimizer:
            # it has made steps, which a scheduler warns of where it cannot know it
            part._opt_called = True
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} does not fit the network any more; was a block changed? "
            f"({one_line(error, 200)})"
        ) from None


def _fits_optimizer(saved, optimizer):
    """Whether the momentum in a state_dict is that of the parameters of `optimizer`, which has none
    yet to compare it with."""
    shapes = [p.shape for group in optimizer.param_groups for p in group["params"]]
    names = {tuple(sorted(state)) for state in saved["state"].values()}
    return len(names) <= 1 and all(
        value is None or (isinstance(value, torch.Tensor) and value.shape in ((), shapes[i]))
        for i, state in saved["state"].items()
        for value in state.values()
    )


# what a state_dict must have; of other values a version of torch may know more than another
NEEDED = {"params", "lr", "last_epoch", "T_max", "base_lrs", "pass", "done"}


def _is_like(saved, own):
    """Whether what is needed is there, and values that both have are of the same types."""
    if isinstance(own, torch.Tensor):
        return isinstance(saved, torch.Tensor)
    if isinstance(own, dict):
        if not isinstance(saved, dict) or not own.keys() & NEEDED <= saved.keys():
            return False
        return all(_is_like(saved[key], value) for key, value in own.items() if key in saved)
    if isinstance(own, (list, tuple)):
        return isinstance(saved, (list, tuple)) and all(map(_is_like, saved, own))
    if isinstance(own, bool) or own is None or isinstance(own, str):
        return isinstance(saved, type(own))
    if isinstance(own, int):  # all are counted
        return type(saved) is int and saved >= 0
    if isinstance(own, float):
        return isinstance(saved, (int, float)) and math.isfinite(saved)
    return True
