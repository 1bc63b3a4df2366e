"""Candidate ops that are too wide for the maps of a network: all taps but one fall on padding.

A dilated 5x5 convolution has taps at -4, -2, 0, 2 and 4 pixels. On maps of 2x2 only the one at 0
meets the image, so it is a 1x1 convolution with the parameters of a 5x5.
"""

import torch

import genotypes as gt
from models import stems
from models.ops import OPS

LARGE_MAP = 33  # pixels; wider than the taps of any op
CHANNELS, DRAWS = 8, 4  # max pooling shows a pixel only where that is the maximum


def cell_maps(size, n_layers):
    """(H, W) of the maps that each cell computes, from `size`, of those that the first reads."""
    found = []
    for i in range(n_layers):
        if i in gt.reduction_layers(n_layers):
            size = tuple(-(-side // 2) for side in size)
        found.append(size)
    return found


def blind_ops(primitives, size):
    """Those of `primitives` that see no other pixel than their own on maps of `size` (H, W), but do
    on large ones: measured by gradients, so that own blocks are covered.

    No op is blind on maps of one pixel, where there is nothing else to see. torch's random
    generators are left as they were.
    """
    if max(size) == 1:
        return []
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return [name for name in primitives if name != "none" and _is_blind(name, size)]


def choose(cfg, spec):
    """--primitives auto: take those out of cfg.primitives that are blind on the maps of the last
    cells. `spec` is the DataSpec of the images; from here on the run has this list."""
    shrinks = stems.STEMS[stems.pick(cfg.stem, spec.size)]
    maps = cell_maps(stems.map_size(spec.size, shrinks), cfg.layers)
    blind = blind_ops(cfg.primitives, maps[-1])
    cfg.primitives = [name for name in cfg.primitives if name not in blind]


def _is_blind(name, size):
    op = OPS[name](CHANNELS, 1, affine=True).eval()
    h, w = size
    # nothing is reached from within a map that is not from one of its corners
    seen = [_sees_more(op, size, corner) for corner in ((0, 0), (h - 1, w - 1))]
    middle = (LARGE_MAP // 2,) * 2
    return not any(seen) and _sees_more(op, (LARGE_MAP, LARGE_MAP), middle)


def _sees_more(op, size, pixel):
    """Whether an output pixel depends on another input pixel than its own."""
    y, x = pixel
    for _ in range(DRAWS):
        maps = torch.rand(1, CHANNELS, *size).add_(0.1).requires_grad_()  # past a ReLU
        out = op(maps * 1)[0, :, y, x]
        (grad,) = torch.autograd.grad((out * torch.randn(CHANNELS)).sum(), maps)
        grad[:, :, y, x] = 0
        if grad.any():
            return True
    return False
