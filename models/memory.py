"""How much memory a network needs to be trained, estimated before it is built.

The weights of an op, and the maps that it keeps for the backward pass, are read off one copy of it
on the meta device, which computes shapes alone. Stem and inputs of a cell are a formula. The
supernet runs the ops of a node together and keeps less than they would one by one, so the estimate
is right within a factor of two (tests/test_memory.py), and a run is refused only where half of it
is too much.
"""

import functools
from collections import Counter
from typing import NamedTuple

import torch

import genotypes as gt
from models import ops, stems

# bytes that Python and torch need for the modules of one op, a lower bound
OBJECTS = 10_000
FLOAT = 4  # bytes


class Need(NamedTuple):
    """Bytes."""

    weights: float  # with gradients and momentum
    maps: float  # of one image
    objects: float  # in the memory of the host

    def total(self, batch_size):
        return self.weights + self.maps * batch_size


class Cells(NamedTuple):
    """What the two cells are made of: cells[reduction] is a Counter of (op, stride)."""

    normal: Counter
    reduce: Counter
    widths: tuple  # nodes in the output, [reduction]


def supernet_cells(cfg):
    """The `Cells` of the supernet, by the flags of search.py."""
    n = cfg.n_nodes
    names = [name for name in cfg.primitives if name != "none"]
    names += ["skip_connect"] if cfg.auxiliary_skip else []  # which may make two of them
    from_inputs, from_nodes = 2 * n, n * (n - 1) // 2
    normal, reduce = (
        Counter(
            [(op, stride) for op in names] * from_inputs + [(op, 1) for op in names] * from_nodes
        )
        for stride in (1, 2)
    )
    return Cells(normal, reduce, (n, n))


def genotype_cells(genotype, cfg):
    """The `Cells` of a genotype; `cfg` has no say."""
    normal, reduce = (
        Counter((op, stride if j < 2 else 1) for edges in gene for op, j in edges)
        for gene, stride in ((genotype.normal, 1), (genotype.reduce, 2))
    )
    widths = len(genotype.normal_concat), len(genotype.reduce_concat)
    return Cells(normal, reduce, widths)


def estimate(cfg, cells, C_in, size):
    """The `Need` of the network of a search (cfg.n_nodes) or training.

    cells       a `Cells`
    C_in, size  channels and (H, W) of the images
    """
    search = hasattr(cfg, "n_nodes")
    C = cfg.init_channels
    partial = cfg.partial_channels if search else 1
    weights, maps, (C_pp, C_p), (H, W) = _stem(cfg, C_in, size)
    kept_by, outputs, objects = [], 0, 0
    for i in range(cfg.layers):
        reduction = i in gt.reduction_layers(cfg.layers)
        if reduction:
            C *= 2
        weights += (C_pp + C_p) * C
        kept = (C_pp + C_p + 2 * C) * H * W  # both inputs after ReLU, both after convolution
        part = C // partial  # channels of the ops
        for (name, stride), n in cells[reduction].items():
            weights += n * op_weights(name, part, stride, affine=not search)
            kept += n * op_maps(name, stride, affine=not search) * part * H * W
            objects += n * OBJECTS
        if search:  # the input of the edges after ReLU, which all ops of an edge share
            kept += cfg.n_nodes * (cfg.n_nodes + 3) // 2 * part * H * W
        if partial > 1:  # every node before and after its channels are shuffled
            kept += 2 * cfg.n_nodes * C * H * W
        kept_by.append(kept)
        C_pp, C_p = C_p, cells.widths[reduction] * C
        if reduction:
            H, W = -(-H // 2), -(-W // 2)
        outputs += C_p * H * W
    # checkpointed, a cell keeps its output alone until its turn comes
    checkpointed = getattr(cfg, "checkpoint_cells", False)
    maps += outputs + max(kept_by) if checkpointed else sum(kept_by)
    copies = 4 if search and cfg.order == 2 else 3  # w, gradient, momentum; w' beside w
    bytes_per_value = FLOAT / 2 if cfg.amp == "bf16" else FLOAT
    return Need(copies * FLOAT * weights, bytes_per_value * maps, objects)


def _stem(cfg, C_in, size):
    """(weights, values of maps of one image, channels of the two inputs of the first cell, (H, W)
    of the second)."""
    H, W = size
    C = cfg.init_channels
    image = C_in * H * W
    if stems.pick(cfg.stem, size) == "cifar":
        C_out = cfg.stem_multiplier * C
        return 9 * C_in * C_out, image + 2 * C_out * H * W, (C_out, C_out), (H, W)
    weights = 9 * (C_in * C / 2 + C * C / 2 + C * C)
    return weights, image + C * H * W / 2, (C, C), (-(-H // 8), -(-W // 8))


@functools.cache
def op_weights(name, C, stride, affine):
    """Weights of an op; 0 of one that cannot be built on the meta device."""
    op = _on_meta(lambda: ops.OPS[name](C, stride, affine=affine))
    return 0 if op is None else sum(p.numel() for p in op.parameters())


@functools.cache
def op_maps(name, stride, affine):
    """What an op keeps for the backward pass, in maps of its input; 0 if it cannot be tried. That
    of the supernet (no affine) counts no ReLU of its input, which it shares with others."""
    found = _on_meta(lambda: _kept(ops.OPS[name](16, stride, affine=affine), shares=not affine))
    return 0 if found is None else found


def _kept(op, shares, shape=(2, 16, 8, 8)):
    X = torch.empty(shape, requires_grad=True)
    kept = []  # the tensors themselves: storages that are freed are used again
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda t: t):
        op(X)
    own = {_storage(t) for t in (X, *op.parameters(), *op.buffers())}
    maps = {_storage(t): t for t in reversed(kept) if _storage(t) not in own}
    total = sum(t.untyped_storage().nbytes() for t in maps.values()) / FLOAT / X.numel()
    first = next(iter(reversed(maps.values())), None)
    return total - (shares and first is not None and first.shape == X.shape)


def _on_meta(call):
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return call()
    except Exception:  # a block of a user that knows no such device: check_ops.py has its say later
        return None


def _storage(tensor):
    return tensor.untyped_storage()._cdata
