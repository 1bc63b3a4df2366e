"""The alpha gradient of every form against exact autograd in float64."""

import copy
from types import SimpleNamespace

import pytest
import torch
from alpha_gradient import (
    XI,
    batches,
    exact,
    hessian_vector,
    relative_error,
    smooth,
    supernet,
    trained_sgd,
)
from torch import nn
from torch.autograd.functional import hessian as hessian_matrix

import genotypes as gt
from architect import HESSIANS, Architect
from models import ops, reference, search_cnn

DIFFERENCES = ("difference", "forward")


def architect_of(net, **choices):
    return Architect(net, **choices)


def gradient(net, data, sgd, **choices):
    """What unrolled_backward writes into alpha.grad."""
    architect_of(net, **choices).unrolled_backward(*data, XI, sgd)
    return [a.grad for a in net.alphas()]


def product(net, dw, X, y, **choices):
    """The matrix-vector product alone."""
    architect = architect_of(net, **choices)
    return architect.compute_hessian(dw, architect.training_pass(X, y), X, y)


def direction(net):
    torch.manual_seed(3)
    return [torch.randn_like(w) for w in net.weights()]


@pytest.fixture
def per_edge(monkeypatch):
    """The supernet edge by edge, where every ReLU is a module; the wide form equals it
    (tests/test_wide.py)."""
    monkeypatch.setattr(search_cnn.SearchCNN, "Cell", reference.PerEdgeCell)


# --- smooth ops: every form agrees ----------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 2], ids=["first step", "with momentum"])
@pytest.mark.parametrize("primitives", [None, gt.PRESETS["efficient"]], ids=["darts", "efficient"])
@pytest.mark.parametrize(("hessian", "falls"), [("difference", 20), ("forward", 5)])
def test_a_difference_nears_exact_autograd_as_eps_falls(
    per_edge, hessian, falls, primitives, steps
):
    net = smooth(supernet(primitives=primitives))
    sgd = trained_sgd(net, steps)
    data = batches()
    wanted = exact(net, *data, XI, sgd)
    errors = [
        relative_error(gradient(net, data, sgd, hessian=hessian, eps=eps), wanted)
        for eps in (1e-1, 1e-2, 1e-3)
    ]
    # a tenth of eps leaves a hundredth of the error of a central difference, a tenth of a
    # one-sided one
    assert errors[1] < errors[0] / falls
    assert errors[2] < errors[1] / falls
    assert errors[1] < (1e-3 if hessian == "difference" else 1e-1)
    # and the unrolled term matters here: leaving it out would be noticed
    assert relative_error(exact(net, *data, XI, sgd, hessian=False), wanted) > 1e-2


@pytest.mark.parametrize("hessian", ["difference", "forward", "exact"])
def test_the_product_equals_the_whole_matrix_times_the_vector(hessian):
    """On a network of 14 weights and 3 alphas, whose second derivatives are written out."""
    torch.manual_seed(0)
    X, y = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, dtype=torch.float64)

    def predict(w, alpha, X):
        mix = alpha.softmax(0)
        first, second = w[:8].view(4, 2), w[8:12]
        z = X @ first.T
        return (mix[0] * z.tanh() + mix[1] * z.sin() + mix[2] * z) @ second + w[12] * w[13]

    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(14, dtype=torch.float64))
            self.alpha = nn.Parameter(torch.randn(3, dtype=torch.float64))
            self.criterion = nn.MSELoss()

        def weights(self):
            return [self.w]

        def alphas(self):
            return [self.alpha]

        def forward(self, X):
            return predict(self.w, self.alpha, X)

    net = Tiny()
    dw = [torch.randn(14, dtype=torch.float64)]
    both = torch.cat([net.w, net.alpha]).detach()
    matrix = hessian_matrix(lambda p: nn.MSELoss()(predict(p[:14], p[14:], X), y), both)
    wanted = [matrix[14:, :14] @ dw[0]]
    found = product(net, dw, X, y, hessian=hessian, eps=1e-5)
    tolerance = {"difference": 1e-9, "forward": 1e-4, "exact": 1e-13}[hessian]
    assert relative_error(found, wanted) < tolerance


@pytest.mark.parametrize("hessian", DIFFERENCES)
def test_eps_is_divided_by_the_length_of_the_vector(per_edge, hessian):
    net = smooth(supernet())
    trn_X, trn_y, _, _ = batches()
    dw = direction(net)
    wanted = hessian_vector(net, dw, trn_X, trn_y)
    for length in (1e-3, 1.0, 1e3):  # eps falls as dw grows, so the step stays the same
        long = [length * d for d in dw]
        found = product(net, long, trn_X, trn_y, hessian=hessian, eps=1e-3)
        assert relative_error(found, [length * h for h in wanted]) < 1e-2


# --- ReLU and max pooling as they are -------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 2], ids=["first step", "with momentum"])
@pytest.mark.parametrize("hessian", HESSIANS)
@pytest.mark.parametrize("cell", [None, reference.PerEdgeCell], ids=["wide", "per edge"])
def test_with_kinks_the_gradient_is_exact_where_eps_reaches_none(monkeypatch, cell, hessian, steps):
    if cell:
        monkeypatch.setattr(search_cnn.SearchCNN, "Cell", cell)
    net = supernet()
    sgd = trained_sgd(net, steps)
    data = batches()
    wanted = exact(net, *data, XI, sgd, hessian=hessian != "none")
    tolerance = 1e-6 if hessian in DIFFERENCES else 1e-10
    assert relative_error(gradient(net, data, sgd, hessian=hessian, eps=1e-7), wanted) < tolerance


def test_second_order_gradient_of_the_real_classes_away_from_kinks(per_edge):
    # ReLU, max pooling and all eight ops as they are, in a supernet so small (and with a seed so
    # chosen) that no kink lies within the paper's eps, 0.01
    net = supernet(seed=6, C=1, n_nodes=2)
    sgd = trained_sgd(net, 0)
    for _ in range(2):
        X, y, _, _ = batches(n=3, size=3, seed=13)
        sgd.zero_grad()
        net.loss(X, y).backward()
        sgd.step()
    data = batches(n=3, size=3, seed=106)
    wanted = exact(net, *data, XI, sgd)
    errors = [relative_error(gradient(net, data, sgd, eps=eps), wanted) for eps in (1e-2, 1e-3)]
    assert errors[0] < 1e-3
    assert errors[1] < errors[0] / 20
    assert relative_error(exact(net, *data, 0.0, sgd), wanted) > 0.5


@pytest.mark.parametrize("hessian", ["difference", "forward", "none"])
def test_cells_that_are_computed_again(hessian):
    net = supernet()
    sgd = trained_sgd(net)
    data = batches()
    wanted = gradient(net, data, sgd, hessian=hessian)
    net.net.checkpoint_cells = True
    assert relative_error(gradient(net, data, sgd, hessian=hessian), wanted) < 1e-12


@pytest.mark.parametrize("hessian", DIFFERENCES)
def test_a_difference_against_a_slow_one(hessian):
    net = supernet()
    trn_X, trn_y, _, _ = batches()
    dw = direction(net)
    eps = 0.03 / torch.cat([d.flatten() for d in dw]).norm()

    def dalpha(sign):
        moved = copy.deepcopy(net)
        with torch.no_grad():
            for w, d in zip(moved.weights(), dw, strict=True):
                w += sign * eps * d
        return torch.autograd.grad(moved.loss(trn_X, trn_y), moved.alphas())

    low = -1 if hessian == "difference" else 0
    pairs = zip(dalpha(1), dalpha(low), strict=True)
    wanted = [(p - n) / ((1 - low) * eps) for p, n in pairs]
    found = product(net, dw, trn_X, trn_y, hessian=hessian, eps=0.03)
    assert relative_error(found, wanted) < 1e-6


@pytest.mark.parametrize("hessian", ["difference", "forward", "exact"])
def test_a_zero_direction_gives_zero(hessian):
    net = supernet()
    zero = [torch.zeros_like(w) for w in net.weights()]
    for h in product(net, zero, *batches()[:2], hessian=hessian):
        assert torch.equal(h, torch.zeros_like(h))


@pytest.mark.parametrize("hessian", DIFFERENCES)
def test_a_difference_is_taken_in_full_precision(hessian):
    net = supernet(torch.float32)
    trn_X, trn_y, _, _ = batches(torch.float32)
    dw = direction(net)
    wanted = product(net, dw, trn_X, trn_y, hessian=hessian)
    seen = []
    hook = net.net.register_forward_hook(
        lambda *_: seen.append(
            (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
        )
    )
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with torch.autocast("cpu", torch.bfloat16):
        found = product(net, dw, trn_X, trn_y, hessian=hessian)
        net.loss(trn_X, trn_y)
    hook.remove()
    # the training pass is one side of the one-sided difference
    training = [before] if hessian == "difference" else []
    assert seen == [*training, (False, False), (False, False), before]
    # in bfloat16 the two passes would round to noise
    for f, w in zip(found, wanted, strict=True):
        assert torch.equal(f, w)


# --- random numbers -------------------------------------------------------------------------------


@pytest.fixture
def dropped(monkeypatch):
    """An op with dropout, under the name "dropped"."""

    def build(C, stride, affine):
        return nn.Sequential(*ops.OPS["sep_conv_3x3"](C, stride, affine), nn.Dropout(0.3))

    monkeypatch.setitem(ops.OPS, "dropped", build)


@pytest.mark.parametrize("hessian", HESSIANS)
def test_every_pass_over_the_training_batch_draws_the_same_mask(per_edge, dropped, hessian):
    net = smooth(supernet(primitives=["dropped", "avg_pool_3x3"]))
    sgd = trained_sgd(net)
    data = batches()
    torch.manual_seed(4)
    # one mask for the training batch, then one for the validation batch
    wanted = exact(net, *data, XI, sgd, hessian=hessian != "none")
    after = torch.get_rng_state()
    torch.manual_seed(4)
    found = gradient(net, data, sgd, hessian=hessian, eps=1e-4)
    assert relative_error(found, wanted) < 1e-3
    assert torch.equal(after, torch.get_rng_state())  # the next step draws anew
    assert relative_error(gradient(net, data, sgd, hessian=hessian), wanted) > 0.1


def test_random_numbers_are_noticed_before_a_graph_is_recorded(monkeypatch, dropped):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    for op, draws in (("dropped", True), ("sep_conv_3x3", False)):
        net = supernet(primitives=[op, "skip_connect"])
        architect = architect_of(net)
        architect.unrolled_backward(*batches(), XI, trained_sgd(net, 0))
        assert architect.draws == draws
        architect.weights = [SimpleNamespace(device=torch.device("cuda"))]
        if draws:
            with pytest.raises(RuntimeError, match="dropout"):
                architect._random_states()
        else:
            assert architect._random_states() == []
