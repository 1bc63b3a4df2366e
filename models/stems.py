"""What stands before the first cell, for small images and for large ones, and the cells upon it."""

from torch import nn

import genotypes as gt

# From this many pixels on the shorter side, --stem auto takes the ImageNet form: with maps of the
# full size even a small supernet needs gigabytes.
LARGE = 96


class CifarStem(nn.Sequential):
    """A 3x3 convolution and BatchNorm: (N, C_in, H, W) -> twice the same (N, C_out, H, W)."""

    shrinks = 1  # sides of the second map, compared with the image
    reduction_p = False  # the two maps have the same size

    def __init__(self, C_in, C_out):
        super().__init__(
            nn.Conv2d(C_in, C_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(C_out),
        )
        self.C_out = C_out

    def forward(self, X):
        s = super().forward(X)
        return s, s


class ImageNetStem(nn.Module):
    """Three convolutions of stride 2, as in the official ImageNet network.

    (N, C_in, H, W) -> (N, C_out, H/4, W/4) and (N, C_out, H/8, W/8), rounded up at each halving.
    """

    shrinks = 8
    reduction_p = True  # the first map is twice as large as the second

    def __init__(self, C_in, C_out):
        super().__init__()
        half = (C_out + 1) // 2
        self.stem0 = nn.Sequential(
            nn.Conv2d(C_in, half, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, C_out, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(C_out),
        )
        self.stem1 = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(C_out, C_out, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(C_out),
        )
        self.C_out = C_out

    def forward(self, X):
        s0 = self.stem0(X)
        return s0, self.stem1(s0)


def pick(stem, size):
    """What --stem means for images of `size` (H, W): "cifar" or "imagenet"."""
    if stem == "auto":
        return "imagenet" if min(size) >= LARGE else "cifar"
    return stem


def describe(cfg, size):
    """The stem in words, by the flags of a run and the `size` (H, W) of its images."""
    stem = pick(cfg.stem, size)
    ignored = stem == "imagenet" and cfg.stem_multiplier != cfg.default("stem_multiplier")
    return f"{stem} stem{' (which ignores --stem_multiplier)' if ignored else ''}"


def build(stem, C_in, C, stem_multiplier):
    """The stem of a network whose first cells have C channels.

    stem             "cifar" or "imagenet"
    stem_multiplier  the CIFAR form has stem_multiplier * C channels, the ImageNet form C
    """
    if stem == "imagenet":
        return ImageNetStem(C_in, C)
    if stem == "cifar":
        return CifarStem(C_in, stem_multiplier * C)
    raise ValueError(f"unknown stem {stem!r}; known: cifar, imagenet")


STEMS = {"cifar": CifarStem, "imagenet": ImageNetStem}


def map_size(size, stem):
    """Size (H, W) of the map that the first cell reads, for images of `size`. `stem` is one, or its
    class."""
    return tuple(-(-side // stem.shrinks) for side in size)


def stack(stem, C, n_layers, make_cell):
    """The cells of a network upon its stem; reduction cells double the channels (sec. 3.1.1).

    C          channels of the first cells
    make_cell  (C_pp, C_p, C, reduction_p, reduction) -> cell with C_out; arguments as in SearchCell
    """
    cells = nn.ModuleList()
    C_pp, C_p, reduction_p = stem.C_out, stem.C_out, stem.reduction_p
    for i in range(n_layers):
        reduction = i in gt.reduction_layers(n_layers)
        if reduction:
            C *= 2
        cells.append(make_cell(C_pp, C_p, C, reduction_p, reduction))
        C_pp, C_p, reduction_p = C_p, cells[-1].C_out, reduction
    return cells
