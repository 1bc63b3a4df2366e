"""A call of the architect: the virtual step, what stays untouched, what is reused."""

import copy

import pytest
import torch
from alpha_gradient import (
    DECAY,
    MOMENTUM,
    XI,
    Toy,
    batches,
    exact,
    gradient_at,
    relative_error,
    state_of,
    supernet,
    trained_sgd,
)
from torch import nn

from architect import HESSIANS, Architect
from devices import pick
from models.search_cnn import SearchCNNController

every_hessian = pytest.mark.parametrize("hessian", HESSIANS)


def architect_of(net, **choices):
    return Architect(net, **choices)


@pytest.mark.parametrize(
    ("hessian", "xi", "gradient"),
    [*((h, 0.5, 2.0) for h in HESSIANS if h != "none"), ("none", 0.5, 0.0), ("exact", 0.0, 0.0)],
)
def test_the_toy_problem_of_the_paper(hessian, xi, gradient):
    toy = Toy()
    sgd = torch.optim.SGD(toy.weights(), 0.1)
    architect = Architect(toy, hessian=hessian)
    architect.unrolled_backward("train", None, "val", None, xi, sgd)
    assert toy.alpha.grad.item() == pytest.approx(gradient, abs=1e-6)
    assert toy.w.item() == 2.0


def test_alpha_of_the_toy_problem_converges_to_the_papers_optimum():
    toy = Toy()
    architect = Architect(toy)
    w_optim = torch.optim.SGD(toy.weights(), 0.05)
    alpha_optim = torch.optim.SGD(toy.alphas(), 0.05)
    for _ in range(500):
        architect.unrolled_backward("train", None, "val", None, 0.5, w_optim)
        alpha_optim.step()
        w_optim.zero_grad()
        toy("train").backward()
        w_optim.step()
    # fig. 2: with xi = 0.5 the iteration ends at (1, 1), the optimum of L_val(w*(alpha), alpha)
    assert toy.alpha.item() == pytest.approx(1, abs=1e-3)
    assert toy.w.item() == pytest.approx(1, abs=1e-3)


def test_an_unknown_hessian_is_refused():
    with pytest.raises(ValueError, match="'central' is none of difference, forward, exact, none"):
        architect_of(supernet(), hessian="central")


def test_first_order_is_the_validation_gradient_in_one_forward():
    net = supernet()
    sgd = trained_sgd(net)
    trn_X, trn_y, val_X, val_y = batches()
    wanted = torch.autograd.grad(net.loss(val_X, val_y), net.alphas())
    calls = []
    hook = net.net.register_forward_hook(lambda *_: calls.append(1))
    architect = architect_of(net, reuse_gradient=True)
    # there is no virtual step whose gradient could be reused
    assert architect.unrolled_backward(trn_X, trn_y, val_X, val_y, 0.0, sgd) is None
    hook.remove()
    assert len(calls) == 1
    for alpha, grad in zip(net.alphas(), wanted, strict=True):
        assert torch.equal(alpha.grad, grad)


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize(
    ("hessian", "passes"), [("difference", 4), ("forward", 3), ("exact", 3), ("none", 2)]
)
def test_second_order_takes_no_more_passes_than_it_needs(hessian, passes, reuse):
    net = supernet()
    calls = []
    net.net.register_forward_hook(lambda *_: calls.append(1))
    sgd = trained_sgd(net, 0)
    architect_of(net, hessian=hessian, reuse_gradient=reuse).unrolled_backward(*batches(), XI, sgd)
    assert len(calls) == passes  # virtual step, validation, and those of the product


@every_hessian
@pytest.mark.parametrize("xi", [0.0, XI])
@pytest.mark.parametrize("training", [True, False])
def test_weights_gradients_and_statistics_are_untouched(hessian, xi, training):
    net = supernet(torch.float32).train(training)
    sgd = trained_sgd(net)
    for w in net.weights():
        w.grad = torch.full_like(w, 0.5)
    before = state_of(net)
    velocity = [s["momentum_buffer"].clone() for s in sgd.state.values()]
    data = batches(torch.float32)
    assert architect_of(net, hessian=hessian).unrolled_backward(*data, xi, sgd) is None
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(torch.equal(w.grad, torch.full_like(w, 0.5)) for w in net.weights())
    for state, v in zip(sgd.state.values(), velocity, strict=True):
        assert torch.equal(state["momentum_buffer"], v)


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize(
    ("hessian", "failing_call"),
    [*(("difference", n) for n in (1, 2, 3, 4)), ("forward", 3), ("exact", 3), ("none", 2)],
)
def test_everything_is_restored_when_a_pass_fails(hessian, failing_call, reuse):
    net = supernet(torch.float32)
    sgd = trained_sgd(net)
    for w in net.weights():
        w.grad = torch.full_like(w, 0.5)
    before = state_of(net)
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == failing_call:
            raise RuntimeError("out of memory, say")

    net.net.linear.register_forward_hook(fail)
    architect = architect_of(net, hessian=hessian, reuse_gradient=reuse)
    with pytest.raises(RuntimeError, match="out of memory"):
        architect.unrolled_backward(*batches(torch.float32), XI, sgd)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(torch.equal(w.grad, torch.full_like(w, 0.5)) for w in net.weights())


@every_hessian
@pytest.mark.parametrize("reuse", [False, True])
def test_batchnorm_moves_once_per_search_step(hessian, reuse):
    net, twin = supernet(torch.float32), supernet(torch.float32)
    sgd = trained_sgd(net, 0)
    trn_X, trn_y, val_X, val_y = batches(torch.float32)
    architect = architect_of(net, hessian=hessian, reuse_gradient=reuse)
    passed = architect.unrolled_backward(trn_X, trn_y, val_X, val_y, XI, sgd)
    if passed is None:
        net.loss(trn_X, trn_y).backward()
    twin.loss(trn_X, trn_y)
    for (name, found), wanted in zip(net.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(found, wanted), name


@pytest.mark.parametrize(("momentum", "decay"), [(MOMENTUM, DECAY), (0.5, 0.01), (0.0, 0.0)])
def test_the_virtual_step_is_a_step_of_sgd(momentum, decay):
    net = supernet()
    sgd = trained_sgd(net)
    sgd.param_groups[0].update(momentum=momentum, weight_decay=decay)
    trn_X, trn_y, _, _ = batches()
    twin = copy.deepcopy(net)
    twin_sgd = torch.optim.SGD(twin.weights(), XI)
    twin_sgd.load_state_dict(copy.deepcopy(sgd.state_dict()))  # loading shares buffers
    twin.loss(trn_X, trn_y).backward()
    twin_sgd.step()
    architect = architect_of(net)
    architect.virtual_step(architect.training_pass(trn_X, trn_y).dw, XI, sgd)
    for w, wanted in zip(net.weights(), twin.weights(), strict=True):
        torch.testing.assert_close(w, wanted, rtol=1e-12, atol=1e-14)


@every_hessian
@pytest.mark.parametrize("n_layers", [1, 2])
def test_alphas_that_the_loss_does_not_reach_get_zeros(n_layers, hessian):
    # one or two cells are all reduction cells: the normal cell's alphas are unused
    net = supernet(n_layers=n_layers)
    sgd = trained_sgd(net, 0)
    for xi in (0.0, XI):
        architect_of(net, hessian=hessian).unrolled_backward(*batches(), xi, sgd)
        assert all(not a.grad.any() for a in net.alpha_normal)
        assert all(a.grad.any() for a in net.alpha_reduce)


@every_hessian
def test_frozen_weights_take_no_virtual_step(hessian):
    net = supernet()
    frozen = net.net.stem[0].weight
    frozen.requires_grad_(False)
    before = frozen.clone()
    moving = [w for w in net.weights() if w.requires_grad]
    sgd = torch.optim.SGD(moving, XI, momentum=MOMENTUM, weight_decay=DECAY)
    architect = architect_of(net, hessian=hessian, eps=1e-6, reuse_gradient=True)
    wanted = exact(net, *batches(), XI, sgd, hessian=hessian != "none")
    architect.unrolled_backward(*batches(), XI, sgd)
    assert relative_error([a.grad for a in net.alphas()], wanted) < 1e-6
    architect.virtual_step(architect.training_pass(*batches()[:2]).dw, XI, sgd)
    assert torch.equal(frozen, before)
    assert frozen.grad is None


@every_hessian
def test_weights_that_the_loss_does_not_reach(hessian):
    net = supernet()
    net.net.unused = nn.Linear(2, 2).double()
    sgd = trained_sgd(net, 0)
    architect = architect_of(net, hessian=hessian, reuse_gradient=True)
    architect.unrolled_backward(*batches(), XI, sgd)
    assert net.net.unused.weight.grad is None  # which SGD passes over, as after backward()
    assert all(a.grad.any() for a in net.alphas())


def test_another_criterion_than_classification():
    torch.manual_seed(0)
    net = SearchCNNController(3, 4, 1, 3, nn.MSELoss(), n_nodes=2).double()
    sgd = trained_sgd(net, 0)
    X = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64)
    y = torch.randn(2, 4, 1, dtype=torch.float64)
    architect_of(net).unrolled_backward(X[0], y[0], X[1], y[1], XI, sgd)
    assert all(a.grad.any() for a in net.alphas())


def test_the_second_pass_sees_the_virtual_weights_in_bfloat16_too():
    """Autocast remembers the bfloat16 form of weights, and would not notice the virtual step."""
    trn_X, trn_y, val_X, val_y = (t.float() if t.is_floating_point() else t for t in batches())
    nets = [supernet().float() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    xi, cpu = 0.5, pick.Device(torch.device("cpu"), "bf16")
    optims = [torch.optim.SGD(net.weights(), xi) for net in nets]
    seen = []
    nets[0].register_forward_hook(lambda net, args, logits: seen.append(logits.detach()))
    with cpu.autocast():
        Architect(nets[0]).unrolled_backward(
            trn_X, trn_y, val_X, val_y, xi, optims[0]
        )  # fmt: skip
    with cpu.autocast():
        twin = Architect(nets[1])
        twin.virtual_step(twin.training_pass(trn_X, trn_y).dw, xi, optims[1])
    with cpu.autocast():
        wanted = nets[1](val_X)
    assert wanted.dtype == torch.bfloat16
    assert torch.equal(seen[1], wanted)


# --- reuse_gradient ------------------------------------------------------------------------------


@every_hessian
def test_the_reused_gradient_is_that_of_the_plain_step_where_alpha_stands_still(hessian):
    net = supernet()
    sgd = trained_sgd(net)
    data = batches()
    wanted, logits = gradient_at(net, *data[:2]), net(data[0]).detach()
    architect_of(net, hessian=hessian).unrolled_backward(*data, XI, sgd)
    without = [a.grad for a in net.alphas()]
    architect = architect_of(net, hessian=hessian, reuse_gradient=True)
    loss, found = architect.unrolled_backward(*data, XI, sgd)
    for w, grad in zip(net.weights(), wanted, strict=True):
        assert torch.equal(w.grad, grad)
    assert torch.equal(found, logits)
    assert torch.equal(loss, net.criterion(logits, data[1]))
    assert not loss.requires_grad
    assert not found.requires_grad
    for alpha, grad in zip(net.alphas(), without, strict=True):
        assert torch.equal(alpha.grad, grad)


def test_the_reused_gradient_lags_behind_by_alphas_step():
    """By -H * (step of alpha), H = d2L_train/(dw dalpha), to first order in the step."""
    net = supernet()
    sgd = trained_sgd(net)
    trn_X, trn_y, val_X, val_y = batches()
    torch.manual_seed(5)
    step = [1e-7 * torch.randn_like(a) for a in net.alphas()]
    architect = architect_of(net, reuse_gradient=True)
    architect.unrolled_backward(trn_X, trn_y, val_X, val_y, XI, sgd)
    reused = [w.grad.clone() for w in net.weights()]

    dalpha = torch.autograd.grad(net.loss(trn_X, trn_y), net.alphas(), create_graph=True)
    lag = torch.autograd.grad(dalpha, net.weights(), step)
    with torch.no_grad():
        torch._foreach_add_(net.alphas(), step)
    plain = gradient_at(net, trn_X, trn_y)
    found = [p - r for p, r in zip(plain, reused, strict=True)]
    assert relative_error(found, lag) < 1e-4


def test_the_reused_gradient_under_autocast_is_that_of_backward():
    net, twin = supernet(torch.float32), supernet(torch.float32)
    trn_X, trn_y, val_X, val_y = batches(torch.float32)
    sgd, cpu = trained_sgd(net, 0), pick.Device(torch.device("cpu"), "bf16")
    with cpu.autocast():
        architect = architect_of(net, reuse_gradient=True)
        _, logits = architect.unrolled_backward(trn_X, trn_y, val_X, val_y, XI, sgd)
        loss = twin.loss(trn_X, trn_y)
    loss.backward()
    assert logits.dtype == torch.bfloat16
    for w, wanted in zip(net.weights(), twin.weights(), strict=True):
        assert torch.equal(w.grad, wanted.grad)


def test_reused_gradients_share_no_memory():
    class Sum(nn.Module):  # autograd gives one and the same gradient to both weights
        def __init__(self):
            super().__init__()
            self.alpha, self.a, self.b = (nn.Parameter(torch.ones(3)) for _ in range(3))

        def alphas(self):
            return [self.alpha]

        def weights(self):
            return [self.a, self.b]

        def forward(self, X):
            return ((self.a + self.b) * self.alpha).sum()

        def criterion(self, logits, y):
            return logits**2

    net = Sum()
    sgd = trained_sgd(net, 0)
    architect = Architect(net, reuse_gradient=True)
    architect.unrolled_backward(None, None, None, None, XI, sgd)
    assert torch.equal(net.a.grad, torch.full((3,), 12.0))
    net.a.grad.mul_(2)
    assert torch.equal(net.b.grad, torch.full((3,), 12.0))


def test_an_sgd_that_the_virtual_step_does_not_know_is_refused():
    net = supernet()
    sgd = torch.optim.SGD(net.weights(), XI, momentum=MOMENTUM, nesterov=True)
    before = state_of(net)
    with pytest.raises(ValueError, match="momentum and weight decay alone"):
        architect_of(net).unrolled_backward(*batches(), XI, sgd)
    assert all(torch.equal(value, before[name]) for name, value in state_of(net).items())


def test_a_network_whose_weights_are_all_frozen_is_refused():
    net = supernet()
    for weight in net.weights():
        weight.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen"):
        architect_of(net)
