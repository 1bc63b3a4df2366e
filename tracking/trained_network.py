"""A trained network, from its checkpoint alone."""

import argparse
import os
from typing import NamedTuple

import torch
from torch import nn

import genotypes as gt
from config import AugmentConfig
from console import errors
from data_sets.named import DataSpec
from models import augment_cnn, ops, own_ops
from records import files, reader
from tracking import checkpoint


class TrainedNetwork(NamedTuple):
    """What `load` finds in a checkpoint of augment.py. `net` is on the CPU, in evaluation mode.

    Of a training that was saved inside an epoch, `epoch` is that one, `step` the last that was
    done, and `top1` None: it was not scored there.
    """

    path: str
    net: nn.Module
    spec: DataSpec
    genotype: gt.Genotype
    flags: dict
    epoch: int
    step: int  # 0: the epoch is finished
    top1: float

    @property
    def where(self):
        """When in its training this network was saved, in words."""
        return f"step {self.step} of epoch {self.epoch}" if self.step else f"epoch {self.epoch}"

    @property
    def logged(self):
        """Its score in its training, in words."""
        return "no score there" if self.top1 is None else f"top1 {self.top1:.2%}"


def checkpoint_path(run):
    """The file of a RUN: of a run folder its last epoch, since the best was picked on the test
    split; any other path is the file itself."""
    return os.path.join(run, files.CHECKPOINT) if os.path.isdir(run) else run


def read(path):
    """A checkpoint of augment.py as a dict. Raises ValueError for anything else."""
    try:
        state = checkpoint.load(path)
    except ValueError as error:
        raise ValueError(_missing(path) or f"{error}{_others(path)}") from None
    if checkpoint.kind_of(state) != "augment.py":
        raise ValueError(
            f"{path} is the supernet of a search, not a trained network; train the cell it found"
            f"{_next(os.path.dirname(path))}"
        )
    return state


def _missing(path):
    """That there is no such file, with what may have been meant; "" for another reason why it
    cannot be read."""
    try:
        os.stat(path)
        return ""
    except FileNotFoundError:
        folder, name = os.path.split(path)
    except OSError:
        return ""
    if name == files.CHECKPOINT and reader.is_comparison(folder):
        return f"{folder} is a comparison; train its winner{_next(folder)}"
    if name == files.CHECKPOINT and os.path.isfile(os.path.join(folder, files.CONFIG)):
        return f"{folder} has no {name}: no epoch of it has finished"
    return f"there is no file or folder {path}{gt.run_of_that_name(path, files.TRAININGS)}"


def _next(folder):
    """The command that trains what a search or a comparison has found, for the end of an error."""
    usual = errors.command("augment.py", "--genotype", folder)
    return f": {reader.read_summary(folder).get('next', usual)}"


def _others(path):
    """What to do about a checkpoint that cannot be read: the others of its folder."""
    folder, own = os.path.split(path)
    names = (files.CHECKPOINT, files.BEST, files.PREVIOUS)
    paths = [os.path.join(folder, name) for name in names if name != own]
    there = " or ".join(filter(os.path.isfile, paths))
    if own not in names or not there:
        return ""
    return f"; name {there} instead, or have it written again by augment.py --resume"


def load(path, own_blocks=None):
    """The network of a checkpoint of augment.py, from the file alone -> `TrainedNetwork`.

    own_blocks  the file of --ops, if it was said; else the checkpoint's is taken
    """
    state = read(path)
    spec, flags = DataSpec.from_dict(state["data"]), _flags(state, path)
    genotype = gt.from_str(state["genotype"])
    remembered = flags.get("ops")
    if own_blocks or remembered:
        needed = [name for name in gt.ops_of(genotype) if name not in ops.OPS]
        own_ops.load(own_blocks or remembered, bool(own_blocks), needed)
    gt.require_known(genotype, ops.OPS)
    net = augment_cnn.build(spec, argparse.Namespace(**flags), genotype)
    checkpoint.load_state(net, state["model"], path)
    epoch, step, top1 = state["epoch"], 0, state["top1"]
    if state["inside"] is not None:
        epoch, step, top1 = state["inside"]["epoch"], state["inside"]["step"], None
    return TrainedNetwork(path, net.eval(), spec, genotype, flags, epoch, step, top1)


def _flags(state, path):
    """The flags of a training; what it did not know yet has its default, as on --resume. Raises
    Damaged for values that are none."""
    cfg, flags = AugmentConfig(["--genotype", state["genotype"]]), state["flags"]
    if fault := cfg.unsayable(flags):
        raise checkpoint.Damaged(f"{path} is no whole checkpoint: it says {fault}")
    return {**{name: cfg.default(name) for name in cfg.flags()}, **flags}


def init_from(net, run):
    """Copy into `net` what the checkpoint of a RUN holds under the same name in the same shape;
    returns what was copied and what not, in words. Raises ValueError if that is nothing."""
    path = checkpoint_path(run)
    saved, own = read(path)["model"], net.state_dict()
    fits = {name: v for name, v in saved.items() if name in own and v.shape == own[name].shape}
    if not fits:
        raise ValueError(f"--init_from {path}: no tensor agrees in name and shape; other network?")
    net.load_state_dict(fits, strict=False)
    rest = [name for name in own if name not in fits]
    named = ", ".join(rest[:4]) + (f" and {len(rest) - 4} more" if len(rest) > 4 else "")
    kept = f"; not, and so new: {named}" if rest else ""
    return f"copied {len(fits)} of {len(own)} tensors from {path}{kept}"


class DeployedNetwork(nn.Module):
    """The network as others use it, normalisation inside, auxiliary head and drop path off.

    Images (N, C_in, H, W), float32 in [0, 1] -> logits (N, n_classes).
    """

    def __init__(self, trained):
        super().__init__()
        shape = (1, trained.spec.C_in, 1, 1)
        self.register_buffer("mean", torch.tensor(trained.spec.mean).view(shape))
        self.register_buffer("std", torch.tensor(trained.spec.std).view(shape))
        self.net = trained.net
        self.eval()

    def forward(self, images):
        return self.net((images - self.mean) / self.std)[0]
