"""The candidate ops: one entry of OPS each, and MixedOp, the weighted sum of all of them (Eq. 2).

To add a block, write it as an ordinary nn.Module, give it a line in OPS and name it in PRIMITIVES
(genotypes.py). The contract of an entry `name: lambda C, stride, affine: module`:

* C channels in, C channels out: (N, C, H, W) -> (N, C, ceil(H/stride), ceil(W/stride)), for odd
  sizes as well, stride 1 or 2.
* Every BatchNorm inside takes `affine`. It is False in the supernet, where a learned scale would
  compete with alpha, and True in the final network. Its name is `affine`: it is passed by name.

`python check_ops.py NAME` tries a block and says what is wrong with it.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import Conv2dNormActivation, SqueezeExcitation

import genotypes as gt

OPS = {
    "none": lambda C, stride, affine: Zero(stride),
    "avg_pool_3x3": lambda C, stride, affine: pooling("avg", C, stride, affine),
    "max_pool_3x3": lambda C, stride, affine: pooling("max", C, stride, affine),
    "skip_connect": lambda C, stride, affine: (
        nn.Identity() if stride == 1 else FactorizedReduce(C, C, affine)
    ),
    "sep_conv_3x3": lambda C, stride, affine: SepConv(C, 3, stride, affine),
    "sep_conv_5x5": lambda C, stride, affine: SepConv(C, 5, stride, affine),
    "sep_conv_7x7": lambda C, stride, affine: SepConv(C, 7, stride, affine),
    "dil_conv_3x3": lambda C, stride, affine: DilConv(C, 3, stride, affine),
    "dil_conv_5x5": lambda C, stride, affine: DilConv(C, 5, stride, affine),
    "conv_7x1_1x7": lambda C, stride, affine: FacConv(C, 7, stride, affine),
    "ds_conv_3x3": lambda C, stride, affine: DSConv(C, 3, stride, affine),
    "mb_conv_3x3": lambda C, stride, affine: MBConv(C, 3, stride, affine, expansion=3),
    "mb_conv_5x5": lambda C, stride, affine: MBConv(C, 5, stride, affine, expansion=3),
    "mb_conv_3x3_e6": lambda C, stride, affine: MBConv(C, 3, stride, affine, expansion=6),
    "mb_conv_5x5_e6": lambda C, stride, affine: MBConv(C, 5, stride, affine, expansion=6),
    "fused_mb_conv_3x3": lambda C, stride, affine: FusedMBConv(C, 3, stride, affine, expansion=3),
}


# --- the paper's ops (sec. 3.1.1): ReLU, convolution, BatchNorm ---------------------------------


class Zero(nn.Module):
    """No connection: zeros of the right size, and no gradient to the input.

    (N, C, H, W) -> (N, C, ceil(H/stride), ceil(W/stride)).
    """

    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        # fresh zeros, not 0 * x: infinities must not become NaN
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


class PoolBN(nn.Module):
    """Pooling as the supernet uses it: 3x3 average or maximum, then BatchNorm without scale.

    (N, C, H, W) -> (N, C, ceil(H/stride), ceil(W/stride)).

    The BatchNorm keeps pooled maps on the scale of the convolutional ops they are mixed with; the
    final network pools without it.
    """

    def __init__(self, pool, C):
        super().__init__()
        self.pool = pool
        self.bn = nn.BatchNorm2d(C, affine=False)

    def forward(self, x):
        return self.bn(self.pool(x))


def pooling(kind, C, stride, affine):
    """3x3 pooling: with BatchNorm in the supernet (affine False), bare in the final network."""
    if kind == "avg":
        # padding does not count: a border pixel is the mean of real pixels only
        pool = nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)
    else:
        pool = nn.MaxPool2d(3, stride, padding=1)
    return pool if affine else PoolBN(pool, C)


class StdConv(nn.Sequential):
    """ReLU, convolution, BatchNorm. (N, C_in, H, W) -> (N, C_out, ceil(H/stride), ...)."""

    def __init__(self, C_in, C_out, kernel_size=1, stride=1, affine=True):
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(C_in, C_out, kernel_size, stride, kernel_size // 2, bias=False),
            nn.BatchNorm2d(C_out, affine=affine),
        )


class DilatedConv2d(nn.Conv2d):
    """A 'same' convolution with dilation 2; on a CPU, an undilated one on each phase of the map.

    (N, C, H, W) -> (N, C, ceil(H/stride), ceil(W/stride)). With dilation 2 an even row meets even
    rows only and an odd row odd ones, so the four maps x[::2, ::2], x[::2, 1::2], ... are convolved
    apart, without dilation. That is exact, and several times faster where dilated kernels take a
    slow path, as they do on CPUs. At stride 2 the first of the four is all that is kept.
    """

    def __init__(self, C_in, C_out, kernel_size, stride, groups, bias=False):
        padding = 2 * (kernel_size // 2)
        super().__init__(C_in, C_out, kernel_size, stride, padding, 2, groups, bias)

    def forward(self, x):
        if x.device.type != "cpu":
            return super().forward(x)
        padding = self.kernel_size[0] // 2
        if self.stride == (2, 2):
            x = x[:, :, ::2, ::2]
            return F.conv2d(x, self.weight, self.bias, 1, padding, 1, self.groups)
        N, C, H, W = x.shape
        h, w = -(-H // 2), -(-W // 2)
        if H % 2 or W % 2:
            x = F.pad(x, (0, 2 * w - W, 0, 2 * h - H))
        # channels stay innermost in memory: the depthwise kernels of a CPU want it so
        x = x.permute(0, 2, 3, 1).reshape(N, h, 2, w, 2, C)
        x = x.permute(2, 4, 0, 1, 3, 5).reshape(4 * N, h, w, C).permute(0, 3, 1, 2)
        y = F.conv2d(x, self.weight, self.bias, 1, padding, 1, self.groups)
        C = y.size(1)
        y = y.permute(0, 2, 3, 1).reshape(2, 2, N, h, w, C).permute(2, 3, 0, 4, 1, 5)
        return y.reshape(N, 2 * h, 2 * w, C).permute(0, 3, 1, 2)[:, :, :H, :W]


class DilConv(nn.Sequential):
    """Depthwise separable convolution with dilation: ReLU, depthwise, pointwise, BatchNorm.

    (N, C, H, W) -> (N, C, ceil(H/stride), ceil(W/stride)). With a dilation of 2 a 3x3 kernel sees
    5x5 pixels and a 5x5 kernel 9x9.
    """

    def __init__(self, C, kernel_size, stride, affine):
        super().__init__(
            nn.ReLU(),
            DilatedConv2d(C, C, kernel_size, stride, groups=C),
            nn.Conv2d(C, C, 1, bias=False),
            nn.BatchNorm2d(C, affine=affine),
        )


class SepConv(nn.Sequential):
    """Depthwise separable convolution, applied twice as the paper does (sec. 3.1.1).

    The first carries the stride. (N, C, H, W) -> (N, C, ceil(H/stride), ceil(W/stride)).
    """

    def __init__(self, C, kernel_size, stride, affine):
        def half(stride):
            return [
                nn.ReLU(),
                nn.Conv2d(C, C, kernel_size, stride, kernel_size // 2, groups=C, bias=False),
                nn.Conv2d(C, C, 1, bias=False),
                nn.BatchNorm2d(C, affine=affine),
            ]

        super().__init__(*half(stride), *half(1))


class FacConv(nn.Sequential):
    """A large kernel as two thin ones: ReLU, 7x1 and 1x7 convolution, BatchNorm.

    (N, C, H, W) -> (N, C, ceil(H/stride), ceil(W/stride)). Each direction is padded and strided
    once, by the kernel that runs along it.
    """

    def __init__(self, C, length, stride, affine):
        half = length // 2
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(C, C, (length, 1), (stride, 1), (half, 0), bias=False),
            nn.Conv2d(C, C, (1, length), (1, stride), (0, half), bias=False),
            nn.BatchNorm2d(C, affine=affine),
        )


class EvenPixels(nn.Conv2d):
    """A 1x1 convolution of the even rows and columns. (N, C, H, W) -> (N, C, ceil(H/2), ...).

    On a CPU the pixels are picked first: with few channels on large maps in channels_last, a
    strided 1x1 convolution of PyTorch 2.14 (oneDNN 3.12) writes beyond its output there.
    """

    def __init__(self, C_in, C_out):
        super().__init__(C_in, C_out, 1, stride=2, bias=False)

    def forward(self, x):
        if x.device.type != "cpu":
            return super().forward(x)
        return F.conv2d(x[:, :, ::2, ::2], self.weight, None, 1, 0, 1, self.groups)


class FactorizedReduce(nn.Module):
    """The skip connection at stride 2: two 1x1 convolutions that look at different pixels.

    (N, C_in, H, W) -> (N, C_out, ceil(H/2), ceil(W/2)). The first half of the channels reads the
    even rows and columns, the second half the odd ones, so together they see a diagonal of every
    2x2 block. An odd map has one even row more; the missing odd row counts as zeros.
    """

    def __init__(self, C_in, C_out, affine=True):
        super().__init__()
        self.relu = nn.ReLU()
        self.even = EvenPixels(C_in, C_out // 2)
        self.odd = EvenPixels(C_in, C_out - C_out // 2)
        self.bn = nn.BatchNorm2d(C_out, affine=affine)

    def forward(self, x):
        x = self.relu(x)
        shifted = F.pad(x, (-1, 1, -1, 1))  # one pixel up and left; same size, zeros come in
        return self.bn(torch.cat([self.even(x), self.odd(shifted)], dim=1))


def cell_inputs(C_pp, C_p, C, reduction_p, affine):
    """The modules that bring both inputs of a cell to C channels and to the size of the second.

    C_pp, C_p    channels of the outputs of the cells k-2 and k-1
    reduction_p  cell k-1 is a reduction cell, so the output of k-2 is twice as large
    """
    halve_or_keep = FactorizedReduce if reduction_p else StdConv
    return halve_or_keep(C_pp, C, affine=affine), StdConv(C_p, C, affine=affine)


# --- blocks of MobileNet and EfficientNet -------------------------------------------------------


def conv_bn(C_in, C_out, kernel_size=1, stride=1, groups=1, affine=True, activation=nn.SiLU):
    """Convolution, BatchNorm, activation (or None), as torchvision composes them."""
    return Conv2dNormActivation(
        C_in, C_out, kernel_size, stride, groups=groups, activation_layer=activation,
        norm_layer=partial(nn.BatchNorm2d, affine=affine), inplace=None,
    )  # fmt: skip


class DSConv(nn.Sequential):
    """Depthwise separable block of MobileNetV1 (arXiv 1704.04861, fig. 3): unlike the ops of the
    paper it ends, not begins, with ReLU. (N, C, H, W) -> (N, C, ceil(H/stride), ceil(W/stride)).
    """

    def __init__(self, C, kernel_size, stride, affine):
        super().__init__(
            conv_bn(C, C, kernel_size, stride, groups=C, affine=affine, activation=nn.ReLU),
            conv_bn(C, C, affine=affine, activation=nn.ReLU),
        )


class Residual(nn.Module):
    """x + body(x) where shapes allow, that is at stride 1; body(x) otherwise."""

    def __init__(self, body, stride):
        super().__init__()
        self.body = body
        self.add = stride == 1

    def forward(self, x):
        return x + self.body(x) if self.add else self.body(x)


class MBConv(Residual):
    """MBConv of EfficientNetV1 (arXiv 1905.11946): expansion, depthwise, squeeze-excitation to a
    quarter of C, projection without activation, residual at stride 1.

    (N, C, H, W) -> (N, C, ceil(H/stride), ceil(W/stride)).
    """

    def __init__(self, C, kernel_size, stride, affine, expansion):
        wide = C * expansion
        body = nn.Sequential(
            conv_bn(C, wide, affine=affine),
            conv_bn(wide, wide, kernel_size, stride, groups=wide, affine=affine),
            SqueezeExcitation(wide, max(1, C // 4), activation=nn.SiLU),
            conv_bn(wide, C, affine=affine, activation=None),
        )
        super().__init__(body, stride)


class FusedMBConv(Residual):
    """FusedMBConv of EfficientNetV2 (arXiv 2104.00298): one full convolution takes the place of
    expansion and depthwise; then projection, residual at stride 1.

    (N, C, H, W) -> (N, C, ceil(H/stride), ceil(W/stride)).
    """

    def __init__(self, C, kernel_size, stride, affine, expansion):
        wide = C * expansion
        body = nn.Sequential(
            conv_bn(C, wide, kernel_size, stride, affine=affine),
            conv_bn(wide, C, affine=affine, activation=None),
        )
        super().__init__(body, stride)


# --- the mixed op of the supernet ---------------------------------------------------------------

# The skip connection outside the softmax that DARTS- adds to every edge (arXiv 2009.01027): an op
# of the supernet with a weight of its own, which is no candidate.
AUXILIARY_SKIP = "auxiliary skip"


def of_supernet(name, C, stride):
    """The module of a candidate op, or of AUXILIARY_SKIP, as the supernet has it."""
    return OPS["skip_connect" if name == AUXILIARY_SKIP else name](C, stride, affine=False)


def shuffle(x, groups):
    """x (N, C, H, W) with its channels reordered: channel g * (C / groups) + c comes to
    c * groups + g, so that each part of the result has channels of every group."""
    if x.is_contiguous(memory_format=torch.channels_last):  # and so is the result
        x = x.permute(0, 2, 3, 1).unflatten(3, (groups, -1)).transpose(3, 4)
        return x.flatten(3).permute(0, 3, 1, 2)
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def bypass(x, stride):
    """What channels become that pass an edge beside its ops: pooled by 2 at stride 2.

    (N, C, H, W) -> (N, C, ceil(H/stride), ceil(W/stride)).
    """
    return F.max_pool2d(x, 2, 2, ceil_mode=True) if stride == 2 else x


class MixedOp(nn.Module):
    """All candidate ops of one edge, summed with the mixing weights (sec. 2.2, Eq. 2).

    x (N, C, H, W), mix (n_ops,), the edge's softmax(alpha)
    -> (N, C, ceil(H/stride), ceil(W/stride)).
    """

    def __init__(self, C, stride, primitives):
        super().__init__()
        self.ops = nn.ModuleList(of_supernet(name, C, stride) for name in primitives)

    def forward(self, x, mix):
        return sum(weight * op(x) for weight, op in zip(mix, self.ops, strict=True))


def check_primitives(primitives):
    """Raise ValueError unless `primitives` can be searched: known, distinct, one besides "none"."""
    unknown = [name for name in primitives if name not in OPS]
    if unknown:
        raise ValueError(f"unknown op {', '.join(unknown)}; {gt.known_ops(OPS, unknown[0])}")
    twice = sorted({name for name in primitives if list(primitives).count(name) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} is listed more than once in the primitives")
    if not [name for name in primitives if name != "none"]:
        raise ValueError("the primitives need at least one op besides 'none'")
    return list(primitives)
