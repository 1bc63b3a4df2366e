"""The alpha gradient against exact autograd, and what the architect must leave untouched."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import genotypes as gt
from architect import Architect
from devices import pick
from models import ops, reference, search_cnn
from models.search_cnn import SearchCNNController

XI, MOMENTUM, DECAY = 0.05, 0.9, 3e-4


class Toy(nn.Module):
    """The paper's toy problem (fig. 2): L_train = w^2 - 2aw + a^2, L_val = aw - 2a + 1."""

    def __init__(self, alpha=2.0, w=2.0):
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(alpha, dtype=torch.float64))
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def alphas(self):
        return [self.alpha]

    def weights(self):
        return [self.w]

    def loss(self, X, y):
        a, w = self.alpha, self.w
        return w**2 - 2 * a * w + a**2 if X == "train" else a * w - 2 * a + 1


@pytest.mark.parametrize(("xi", "gradient"), [(0.5, 2.0), (0.0, 0.0)])
def test_the_toy_problem_of_the_paper(xi, gradient):
    toy = Toy()
    sgd = torch.optim.SGD(toy.weights(), 0.1)
    Architect(toy, 0.0, 0.0).unrolled_backward("train", None, "val", None, xi, sgd)
    assert toy.alpha.grad.item() == pytest.approx(gradient, abs=1e-6)
    assert toy.w.item() == 2.0


def test_alpha_of_the_toy_problem_converges_to_the_papers_optimum():
    toy = Toy()
    architect = Architect(toy, 0.0, 0.0)
    w_optim = torch.optim.SGD(toy.weights(), 0.05)
    alpha_optim = torch.optim.SGD(toy.alphas(), 0.05)
    for _ in range(500):
        architect.unrolled_backward("train", None, "val", None, 0.5, w_optim)
        alpha_optim.step()
        w_optim.zero_grad()
        toy.loss("train", None).backward()
        w_optim.step()
    # fig. 2: with xi = 0.5 the iteration ends at (1, 1), the optimum of L_val(w*(alpha), alpha)
    assert toy.alpha.item() == pytest.approx(1, abs=1e-3)
    assert toy.w.item() == pytest.approx(1, abs=1e-3)


def supernet(dtype=torch.float64, seed=0, **changes):
    torch.manual_seed(seed)
    sizes = {"C_in": 3, "C": 4, "n_classes": 5, "n_layers": 3, "n_nodes": 2, **changes}
    return SearchCNNController(criterion=F.cross_entropy, **sizes).to(dtype)


def batches(dtype=torch.float64, n=6, size=8, seed=1):
    torch.manual_seed(seed)
    X = torch.randn(2, n, 3, size, size, dtype=dtype)
    y = torch.randint(5, (2, n))
    return X[0], y[0], X[1], y[1]


def trained_sgd(net, steps=2):
    """SGD with a momentum buffer that is not empty."""
    sgd = torch.optim.SGD(net.weights(), XI, momentum=MOMENTUM, weight_decay=DECAY)
    for _ in range(steps):
        X, y, _, _ = batches(net.alphas()[0].dtype, seed=7)
        sgd.zero_grad()
        net.loss(X, y).backward()
        sgd.step()
    sgd.zero_grad()
    return sgd


def exact(net, trn_X, trn_y, val_X, val_y, xi, w_optim):
    """Eq. 7 by double backward on a copy: an oracle that shares no code with architect.py."""
    net = copy.deepcopy(net)
    values = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
    is_alpha = {name: any(p is a for a in net.alphas()) for name, p in net.named_parameters()}
    alphas = [values[name] for name in values if is_alpha[name]]
    names = [name for name in values if not is_alpha[name]]
    buffers = {name: b.clone() for name, b in net.named_buffers()}

    def loss(params, X, y):
        return F.cross_entropy(functional_call(net, (params, buffers), (X,)), y)

    weights = [values[name] for name in names]
    grads = torch.autograd.grad(loss(values, trn_X, trn_y), weights, create_graph=True)
    velocity = [s["momentum_buffer"] for s in w_optim.state.values()] or [0.0] * len(names)
    moved = dict(values)
    for name, w, g, v in zip(names, weights, grads, velocity, strict=True):
        moved[name] = w - xi * (MOMENTUM * v + g + DECAY * w)
    return torch.autograd.grad(loss(moved, val_X, val_y), alphas)


def relative_error(found, wanted):
    found, wanted = (torch.cat([t.flatten() for t in ts]) for ts in (found, wanted))
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.fixture
def per_edge(monkeypatch):
    """The supernet edge by edge, where every ReLU is a module; the wide form equals it
    (tests/test_wide.py)."""
    monkeypatch.setattr(search_cnn.SearchCNN, "Cell", reference.PerEdgeCell)


def smooth(net):
    """Replace what has kinks. At a kink of ReLU or max pooling the alpha gradient jumps, and a
    difference across the jump is no derivative, however right its formula."""
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.SiLU())
            elif isinstance(child, nn.MaxPool2d):
                setattr(module, name, nn.AvgPool2d(3, child.stride, padding=1))
    return net


@pytest.mark.parametrize("steps", [0, 2], ids=["first step", "with momentum"])
@pytest.mark.parametrize("primitives", [None, gt.PRESETS["efficient"]], ids=["darts", "efficient"])
def test_second_order_gradient_equals_exact_autograd(per_edge, steps, primitives):
    net = smooth(supernet(primitives=primitives))
    sgd = trained_sgd(net, steps)
    data = batches()
    wanted = exact(net, *data, XI, sgd)
    architect = Architect(net, MOMENTUM, DECAY)
    errors = []
    for architect.EPS in (1e-1, 1e-2, 1e-3):  # the paper's is the one in the middle
        architect.unrolled_backward(*data, XI, sgd)
        errors.append(relative_error([a.grad for a in net.alphas()], wanted))
    assert errors[1] < 1e-3
    # a central difference: a tenth of eps leaves about a hundredth of the error
    assert errors[1] < errors[0] / 20
    assert errors[2] < errors[1] / 20
    # and the unrolled term matters here: leaving it out would be noticed
    assert relative_error(exact(net, *data, 0.0, sgd), wanted) > 1e-2


def test_second_order_gradient_of_the_real_classes_away_from_kinks(per_edge):
    # ReLU, max pooling and all eight ops as they are, in a supernet so small (and with a seed so
    # chosen) that no kink lies within the paper's eps
    net = supernet(seed=6, C=1, n_nodes=2)
    sgd = torch.optim.SGD(net.weights(), XI, momentum=MOMENTUM, weight_decay=DECAY)
    for _ in range(2):
        X, y, _, _ = batches(n=3, size=3, seed=13)
        sgd.zero_grad()
        net.loss(X, y).backward()
        sgd.step()
    data = batches(n=3, size=3, seed=106)
    wanted = exact(net, *data, XI, sgd)
    architect = Architect(net, MOMENTUM, DECAY)
    errors = []
    for architect.EPS in (1e-2, 1e-3):  # the paper's, and a tenth of it
        architect.unrolled_backward(*data, XI, sgd)
        errors.append(relative_error([a.grad for a in net.alphas()], wanted))
    assert errors[0] < 1e-3
    assert errors[1] < errors[0] / 20
    assert relative_error(exact(net, *data, 0.0, sgd), wanted) > 0.5


@pytest.mark.parametrize("steps", [0, 2], ids=["first step", "with momentum"])
def test_with_kinks_the_gradient_is_exact_where_eps_reaches_none(steps):
    net = supernet()  # ReLU and max pooling as they are
    sgd = trained_sgd(net, steps)
    data = batches()
    wanted = exact(net, *data, XI, sgd)
    architect = Architect(net, MOMENTUM, DECAY)
    architect.EPS = 1e-7
    architect.unrolled_backward(*data, XI, sgd)
    assert relative_error([a.grad for a in net.alphas()], wanted) < 1e-6


def test_hessian_vector_product_equals_double_backward(per_edge):
    net = smooth(supernet())
    trn_X, trn_y, _, _ = batches()
    torch.manual_seed(3)
    dw = [torch.randn_like(w) for w in net.weights()]
    wanted = hessian_vector(net, dw, trn_X, trn_y)
    architect = Architect(net, MOMENTUM, DECAY)
    for length in (1e-3, 1.0, 1e3):  # eps falls as dw grows, so the step stays the same
        found = architect.compute_hessian([length * d for d in dw], trn_X, trn_y)
        assert relative_error(found, [length * h for h in wanted]) < 1e-2


def test_dropout_draws_the_same_mask_for_both_passes_of_the_difference(per_edge, monkeypatch):
    def dropped(C, stride, affine):
        return nn.Sequential(*ops.OPS["sep_conv_3x3"](C, stride, affine), nn.Dropout(0.3))

    monkeypatch.setitem(ops.OPS, "dropped", dropped)
    net = smooth(supernet(primitives=["dropped", "avg_pool_3x3"]))
    trn_X, trn_y, _, _ = batches()
    torch.manual_seed(3)
    dw = [torch.randn_like(w) for w in net.weights()]
    architect = Architect(net, MOMENTUM, DECAY)
    torch.manual_seed(4)
    wanted = hessian_vector(net, dw, trn_X, trn_y)  # under the mask of seed 4
    after = torch.get_rng_state()
    torch.manual_seed(4)
    found = architect.compute_hessian(dw, trn_X, trn_y)
    assert relative_error(found, wanted) < 1e-2
    assert torch.equal(after, torch.get_rng_state())  # the next step draws anew
    assert relative_error(architect.compute_hessian(dw, trn_X, trn_y), wanted) > 0.1


def test_random_numbers_are_noticed_before_a_graph_is_recorded(monkeypatch):
    def dropped(C, stride, affine):
        return nn.Sequential(*ops.OPS["sep_conv_3x3"](C, stride, affine), nn.Dropout(0.3))

    monkeypatch.setitem(ops.OPS, "dropped", dropped)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    for op, draws in (("dropped", True), ("sep_conv_3x3", False)):
        net = supernet(primitives=[op, "skip_connect"])
        architect = Architect(net, MOMENTUM, DECAY)
        architect.compute_hessian([torch.ones_like(w) for w in net.weights()], *batches()[:2])
        assert architect.draws == draws
        architect.weights = [SimpleNamespace(device=torch.device("cuda"))]
        if draws:
            with pytest.raises(RuntimeError, match="dropout"):
                architect._random_states()
        else:
            assert architect._random_states() == []


def test_the_second_pass_sees_the_virtual_weights_in_bfloat16_too():
    """Autocast remembers the bfloat16 form of weights, and would not notice the virtual step."""
    trn_X, trn_y, val_X, val_y = (t.float() if t.is_floating_point() else t for t in batches())
    nets = [supernet().float() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    xi, cpu = 0.5, torch.device("cpu")
    optims = [torch.optim.SGD(net.weights(), xi) for net in nets]
    seen = []
    nets[0].register_forward_hook(lambda net, args, logits: seen.append(logits.detach()))
    with pick.autocast(cpu, "bf16"):
        Architect(nets[0], 0.0, 0.0).unrolled_backward(
            trn_X, trn_y, val_X, val_y, xi, optims[0]
        )  # fmt: skip
    with pick.autocast(cpu, "bf16"):
        Architect(nets[1], 0.0, 0.0).virtual_step(trn_X, trn_y, xi, optims[1])
    with pick.autocast(cpu, "bf16"):
        wanted = nets[1](val_X)
    assert wanted.dtype == torch.bfloat16
    assert torch.equal(seen[1], wanted)


def hessian_vector(net, dw, X, y):
    """d2L/(dalpha dw) * dw by double backward."""
    loss = net.loss(X, y)
    grads = torch.autograd.grad(loss, net.weights(), create_graph=True, materialize_grads=True)
    dot = sum((g * d).sum() for g, d in zip(grads, dw, strict=True))
    return torch.autograd.grad(dot, net.alphas())


def test_the_difference_is_divided_by_two_eps():
    net = supernet()
    trn_X, trn_y, _, _ = batches()
    torch.manual_seed(3)
    dw = [torch.randn_like(w) for w in net.weights()]
    eps = 0.01 / torch.cat([d.flatten() for d in dw]).norm()

    def dalpha(sign):
        moved = copy.deepcopy(net)
        with torch.no_grad():
            for w, d in zip(moved.weights(), dw, strict=True):
                w += sign * eps * d
        return torch.autograd.grad(moved.loss(trn_X, trn_y), moved.alphas())

    wanted = [(p - n) / (2 * eps) for p, n in zip(dalpha(1), dalpha(-1), strict=True)]
    found = Architect(net, MOMENTUM, DECAY).compute_hessian(dw, trn_X, trn_y)
    assert relative_error(found, wanted) < 1e-6


def test_the_difference_is_taken_in_full_precision():
    net = supernet(torch.float32)
    trn_X, trn_y, _, _ = batches(torch.float32)
    torch.manual_seed(3)
    dw = [torch.randn_like(w) for w in net.weights()]
    architect = Architect(net, MOMENTUM, DECAY)
    wanted = architect.compute_hessian(dw, trn_X, trn_y)
    seen = []
    hook = net.net.register_forward_hook(
        lambda *_: seen.append(
            (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
        )
    )
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with torch.autocast("cpu", torch.bfloat16):
        found = architect.compute_hessian(dw, trn_X, trn_y)
        net.loss(trn_X, trn_y)
    hook.remove()
    assert seen == [(False, False), (False, False), before]
    # in bfloat16 the two passes would round to noise
    for f, w in zip(found, wanted, strict=True):
        assert torch.equal(f, w)


def test_a_zero_direction_gives_zero():
    net = supernet()
    trn_X, trn_y, _, _ = batches()
    zero = [torch.zeros_like(w) for w in net.weights()]
    for h in Architect(net, MOMENTUM, DECAY).compute_hessian(zero, trn_X, trn_y):
        assert torch.equal(h, torch.zeros_like(h))


def test_first_order_is_the_validation_gradient_in_one_forward():
    net = supernet()
    sgd = trained_sgd(net)
    trn_X, trn_y, val_X, val_y = batches()
    wanted = torch.autograd.grad(net.loss(val_X, val_y), net.alphas())
    calls = []
    hook = net.net.register_forward_hook(lambda *_: calls.append(1))
    Architect(net, MOMENTUM, DECAY).unrolled_backward(trn_X, trn_y, val_X, val_y, 0.0, sgd)
    hook.remove()
    assert len(calls) == 1
    for alpha, grad in zip(net.alphas(), wanted, strict=True):
        assert torch.equal(alpha.grad, grad)


def test_second_order_takes_four_forward_passes():
    net = supernet()
    calls = []
    net.net.register_forward_hook(lambda *_: calls.append(1))
    sgd = torch.optim.SGD(net.weights(), XI)
    Architect(net, MOMENTUM, DECAY).unrolled_backward(*batches(), XI, sgd)
    assert len(calls) == 4  # virtual step, validation, w+ and w-


@pytest.mark.parametrize("xi", [0.0, XI])
@pytest.mark.parametrize("training", [True, False])
def test_weights_gradients_and_statistics_are_untouched(xi, training):
    net = supernet(torch.float32).train(training)
    sgd = trained_sgd(net)
    for w in net.weights():
        w.grad = torch.full_like(w, 0.5)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    velocity = [s["momentum_buffer"].clone() for s in sgd.state.values()]
    Architect(net, MOMENTUM, DECAY).unrolled_backward(*batches(torch.float32), xi, sgd)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(torch.equal(w.grad, torch.full_like(w, 0.5)) for w in net.weights())
    for state, v in zip(sgd.state.values(), velocity, strict=True):
        assert torch.equal(state["momentum_buffer"], v)


@pytest.mark.parametrize("failing_call", [1, 2, 3, 4])
def test_weights_are_restored_when_a_pass_fails(failing_call):
    net = supernet(torch.float32)
    sgd = trained_sgd(net)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == failing_call:
            raise RuntimeError("out of memory, say")

    net.net.linear.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        Architect(net, MOMENTUM, DECAY).unrolled_backward(*batches(torch.float32), XI, sgd)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_batchnorm_moves_once_per_search_step():
    net = supernet(torch.float32)
    sgd = torch.optim.SGD(net.weights(), XI)
    trn_X, trn_y, val_X, val_y = batches(torch.float32)
    Architect(net, MOMENTUM, DECAY).unrolled_backward(trn_X, trn_y, val_X, val_y, XI, sgd)
    net.loss(trn_X, trn_y).backward()
    counts = {int(b) for name, b in net.named_buffers() if name.endswith("num_batches_tracked")}
    assert counts == {1}


def test_the_virtual_step_is_a_step_of_sgd():
    net = supernet()
    sgd = trained_sgd(net)
    trn_X, trn_y, _, _ = batches()
    twin = copy.deepcopy(net)
    twin_sgd = torch.optim.SGD(twin.weights(), XI, momentum=MOMENTUM, weight_decay=DECAY)
    twin_sgd.load_state_dict(copy.deepcopy(sgd.state_dict()))  # loading shares buffers
    twin.loss(trn_X, trn_y).backward()
    twin_sgd.step()
    Architect(net, MOMENTUM, DECAY).virtual_step(trn_X, trn_y, XI, sgd)
    for w, wanted in zip(net.weights(), twin.weights(), strict=True):
        torch.testing.assert_close(w, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("xi", [0.0, XI])
def test_alphas_that_the_loss_does_not_reach_get_zeros(n_layers, xi):
    # one or two cells are all reduction cells: the normal cell's alphas are unused
    net = supernet(n_layers=n_layers)
    sgd = torch.optim.SGD(net.weights(), XI)
    Architect(net, MOMENTUM, DECAY).unrolled_backward(*batches(), xi, sgd)
    assert all(not a.grad.any() for a in net.alpha_normal)
    assert all(a.grad.any() for a in net.alpha_reduce)


def test_frozen_weights_take_no_virtual_step():
    net = supernet()
    frozen = net.net.stem[0].weight
    frozen.requires_grad_(False)
    before = frozen.clone()
    sgd = torch.optim.SGD([w for w in net.weights() if w.requires_grad], XI)
    architect = Architect(net, MOMENTUM, DECAY)
    architect.unrolled_backward(*batches(), XI, sgd)
    architect.virtual_step(*batches()[:2], XI, sgd)
    assert torch.equal(frozen, before)


def test_another_criterion_than_classification():
    torch.manual_seed(0)
    net = SearchCNNController(3, 4, 1, 3, nn.MSELoss(), n_nodes=2).double()
    sgd = torch.optim.SGD(net.weights(), XI)
    X = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64)
    y = torch.randn(2, 4, 1, dtype=torch.float64)
    Architect(net, MOMENTUM, DECAY).unrolled_backward(X[0], y[0], X[1], y[1], XI, sgd)
    assert all(a.grad.any() for a in net.alphas())
