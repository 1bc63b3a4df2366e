"""The candidate ops: sizes, gradients, BatchNorm flags, and blocks against torchvision's own."""

import itertools
from functools import partial

import pytest
import torch
from torch import nn
from torchvision.models.efficientnet import (
    FusedMBConv,
    FusedMBConvConfig,
    MBConv,
    MBConvConfig,
)

import genotypes as gt
from models import ops


def norms(module):
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


def params(module):
    return sum(p.numel() for p in module.parameters())


SIZES = ((1, 1), (2, 2), (7, 7), (8, 8), (9, 6), (15, 15), (28, 28), (33, 32))


@pytest.mark.parametrize("name", ops.OPS)
def test_every_op_keeps_or_halves_the_map(name):
    torch.manual_seed(0)
    for C, stride, affine in itertools.product((3, 4), (1, 2), (True, False)):
        op = ops.OPS[name](C, stride, affine)
        assert all(norm.affine == affine for norm in norms(op))
        for H, W in SIZES:
            x = torch.randn(2, C, H, W, requires_grad=True)
            y = op(x)
            assert y.shape == (2, C, -(-H // stride), -(-W // stride))
            assert y.isfinite().all()
            if name != "none":
                (grad,) = torch.autograd.grad(y.square().sum(), x)
                assert grad.isfinite().all()


@pytest.mark.parametrize("name", [n for n in ops.OPS if params(ops.OPS[n](4, 2, True))])
def test_all_parameters_of_an_op_get_a_gradient(name):
    torch.manual_seed(0)
    op = ops.OPS[name](4, 2, True)
    op(torch.randn(2, 4, 9, 9)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in op.parameters())


def test_none_gives_zeros_and_no_nan():
    x = torch.tensor([[[[float("inf"), float("nan")], [1.0, 2.0]]]])
    assert torch.equal(ops.OPS["none"](1, 1, False)(x), torch.zeros(1, 1, 2, 2))
    assert torch.equal(ops.OPS["none"](1, 2, False)(x), torch.zeros(1, 1, 1, 1))


@pytest.mark.parametrize("name", ["max_pool_3x3", "avg_pool_3x3"])
def test_pooling_ends_in_a_norm_in_the_supernet_only(name):
    searching, final = (ops.OPS[name](4, 1, affine) for affine in (False, True))
    assert [norm.affine for norm in norms(searching)] == [False]
    assert norms(final) == []
    x = torch.randn(8, 4, 6, 6) * 5 + 3
    y = searching(x)
    assert y.mean((0, 2, 3)).abs().max() < 1e-5
    assert (y.std((0, 2, 3)) - 1).abs().max() < 1e-2


def test_average_pooling_leaves_padding_out_of_the_mean():
    ones = torch.ones(1, 1, 4, 4)
    assert torch.equal(ops.OPS["avg_pool_3x3"](1, 1, True)(ones), ones)


def test_ops_with_convolutions_end_in_a_norm_without_scale():
    for name in ("sep_conv_3x3", "dil_conv_5x5", "conv_7x1_1x7"):
        assert isinstance(ops.OPS[name](4, 1, False)[-1], (nn.BatchNorm2d, ops.DilConv))


def test_skip_connect_is_the_identity_at_stride_1():
    x = torch.randn(1, 3, 5, 5)
    op = ops.OPS["skip_connect"](3, 1, False)
    assert op(x) is x
    assert params(op) == 0


@pytest.mark.parametrize("size", [6, 7])
def test_factorized_reduce_reads_even_and_odd_pixels(size):
    op = ops.FactorizedReduce(1, 2, affine=False).eval()  # an untrained norm only rounds
    with torch.no_grad():
        op.even.weight.fill_(1)
        op.odd.weight.fill_(1)
    x = torch.arange(1.0, size * size + 1).view(1, 1, size, size)
    even, odd = op(x)[0].detach()
    torch.testing.assert_close(even, x[0, 0, ::2, ::2], rtol=1e-4, atol=1e-4)
    wanted = torch.zeros_like(even)
    shifted = x[0, 0, 1::2, 1::2]
    wanted[: shifted.size(0), : shifted.size(1)] = shifted
    torch.testing.assert_close(odd, wanted, rtol=1e-4, atol=1e-4)


def footprint(op, size=15):
    """Which pixels of the input the central pixel of the output depends on, as (rows, columns)."""
    x = torch.rand(1, 2, size, size, dtype=torch.float64, requires_grad=True)
    op = op.double().eval()
    with torch.no_grad():
        for p in op.parameters():  # all positive: no ReLU closes and nothing cancels
            p.fill_(0.5)
    op(x)[0, :, size // 2, size // 2].sum().backward()
    rows, columns = x.grad[0].abs().sum(0).nonzero(as_tuple=True)
    return (
        (rows.max() - rows.min() + 1).item(),
        (columns.max() - columns.min() + 1).item(),
    )


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("sep_conv_3x3", 5), ("sep_conv_5x5", 9), ("sep_conv_7x7", 13), ("dil_conv_3x3", 5),
        ("dil_conv_5x5", 9), ("conv_7x1_1x7", 7), ("ds_conv_3x3", 3), ("fused_mb_conv_3x3", 3),
    ],
)  # fmt: skip
def test_receptive_fields(name, side):
    torch.manual_seed(0)
    assert footprint(ops.OPS[name](2, 1, True)) == (side, side)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # depthwise k*k*C, pointwise C*C, BatchNorm 2*C
        ("sep_conv_3x3", 2 * (9 * 8 + 64 + 16)),
        ("sep_conv_5x5", 2 * (25 * 8 + 64 + 16)),
        ("sep_conv_7x7", 2 * (49 * 8 + 64 + 16)),
        ("dil_conv_3x3", 9 * 8 + 64 + 16),
        ("dil_conv_5x5", 25 * 8 + 64 + 16),
        ("conv_7x1_1x7", 7 * 64 + 7 * 64 + 16),
        ("ds_conv_3x3", 9 * 8 + 16 + 64 + 16),
        ("none", 0),
        ("max_pool_3x3", 0),
    ],
)
def test_parameter_counts(name, count):
    assert params(ops.OPS[name](8, 1, True)) == count


def transplant(ours, theirs):
    """Copy torchvision's weights into our block, in order."""
    mine, other = ours.state_dict(), theirs.state_dict()
    assert [v.shape for v in mine.values()] == [v.shape for v in other.values()]
    ours.load_state_dict(dict(zip(mine, other.values(), strict=True)))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("name", "kernel", "expansion"),
    [("mb_conv_3x3", 3, 3), ("mb_conv_5x5", 5, 3), ("mb_conv_3x3_e6", 3, 6),
     ("mb_conv_5x5_e6", 5, 6)],
)  # fmt: skip
def test_mbconv_is_that_of_torchvisions_efficientnet(name, kernel, expansion, stride):
    torch.manual_seed(0)
    config = MBConvConfig(expansion, kernel, stride, 8, 8, 1)
    theirs = MBConv(config, 0.0, partial(nn.BatchNorm2d))
    ours = ops.OPS[name](8, stride, True)
    transplant(ours, theirs)
    x = torch.randn(2, 8, 9, 9)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("stride", [1, 2])
def test_fused_mbconv_is_that_of_torchvisions_efficientnet(stride):
    torch.manual_seed(0)
    config = FusedMBConvConfig(3, 3, stride, 8, 8, 1)
    theirs = FusedMBConv(config, 0.0, partial(nn.BatchNorm2d))
    ours = ops.OPS["fused_mb_conv_3x3"](8, stride, True)
    first = next(m for m in ours.modules() if isinstance(m, nn.Conv2d))
    assert first.groups == 1
    transplant(ours, theirs)
    x = torch.randn(2, 8, 9, 9)
    torch.testing.assert_close(ours(x), theirs(x))


def test_mixed_op_is_the_weighted_sum():
    torch.manual_seed(0)
    mixed = ops.MixedOp(4, 2, gt.PRESETS["all"]).double()
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    weights = torch.softmax(torch.randn(len(gt.PRESETS["all"]), dtype=torch.float64), 0)
    wanted = torch.zeros(2, 4, 4, 4, dtype=torch.float64)
    for i, op in enumerate(mixed.ops):
        wanted += weights[i] * op(x)
    torch.testing.assert_close(mixed(x, weights), wanted, rtol=1e-12, atol=1e-12)


def test_the_lists_of_names_fit_together():
    assert set(gt.PRESETS["all"]) == set(ops.OPS)
    for names in (gt.PRIMITIVES, *gt.PRESETS.values()):
        assert ops.check_primitives(names) == names


@pytest.mark.parametrize(
    ("primitives", "message"),
    [
        (["skip_connect", "nope"], "unknown op nope; known: none, avg_pool"),
        (["none"], "besides 'none'"),
        ([], "besides 'none'"),
        (["skip_connect", "skip_connect"], "skip_connect is listed more than once"),
    ],
)
def test_primitives_that_cannot_be_searched(primitives, message):
    with pytest.raises(ValueError, match=message):
        ops.check_primitives(primitives)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(7, 8), (8, 8), (56, 67)])
def test_picking_even_pixels_is_the_strided_convolution(size, layout):
    pick = ops.EvenPixels(8, 4).double().to(memory_format=layout)
    x = torch.randn(2, 8, *size, dtype=torch.float64, requires_grad=True)
    wanted = torch.einsum("nchw,oc->nohw", x[:, :, ::2, ::2], pick.weight[:, :, 0, 0])
    found = pick(x.contiguous(memory_format=layout))
    torch.testing.assert_close(found, wanted)
    grad = torch.randn_like(wanted)
    for a, b in zip(
        torch.autograd.grad(found, (x, pick.weight), grad),
        torch.autograd.grad(wanted, (x, pick.weight), grad),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
