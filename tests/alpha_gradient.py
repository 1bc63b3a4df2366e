"""What the tests of the alpha gradient share: small problems, and oracles that share no code with
architect.py."""

import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from models.ops import OPS
from models.search_cnn import SearchCNN, SearchCNNController

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

    def forward(self, X):
        a, w = self.alpha, self.w
        return w**2 - 2 * a * w + a**2 if X == "train" else a * w - 2 * a + 1

    def criterion(self, loss, y):
        return loss


_built = {}  # a copy takes a third of the time of a new one


def supernet(dtype=torch.float64, seed=0, **changes):
    sizes = {"C_in": 3, "C": 4, "n_classes": 5, "n_layers": 3, "n_nodes": 2, **changes}
    key = str((dtype, seed, sizes)), SearchCNN.Cell, *OPS.items()
    if key not in _built:
        torch.manual_seed(seed)
        net = SearchCNNController(criterion=F.cross_entropy, **sizes).to(dtype)
        _built[key] = net, torch.get_rng_state()
    net, state = _built[key]
    torch.set_rng_state(state)
    return copy.deepcopy(net)


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


def exact(net, trn_X, trn_y, val_X, val_y, xi, w_optim, hessian=True, penalty=None):
    """Eq. 7 by double backward on a copy; with hessian=False its first term alone, L_val at a w'
    that does not depend on alpha. `penalty(alphas)` is added to L_val."""
    net = copy.deepcopy(net)
    values = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
    alphas = [values[name] for name, _ in net.named_alphas()]
    names = [name for name, w in net.named_weights() if w.requires_grad]
    buffers = {name: b.clone() for name, b in net.named_buffers()}

    def loss(params, X, y):
        return F.cross_entropy(functional_call(net, (params, buffers), (X,)), y)

    weights = [values[name] for name in names]
    grads = torch.autograd.grad(loss(values, trn_X, trn_y), weights, create_graph=True)
    velocity = [s["momentum_buffer"] for s in w_optim.state.values()] or [0.0] * len(names)
    moved = dict(values)
    for name, w, g, v in zip(names, weights, grads, velocity, strict=True):
        moved[name] = w - xi * (MOMENTUM * v + (g if hessian else g.detach()) + DECAY * w)
    goal = loss(moved, val_X, val_y) + (penalty(alphas) if penalty else 0)
    return torch.autograd.grad(goal, alphas, materialize_grads=True)


def hessian_vector(net, dw, X, y):
    """d2L/(dalpha dw) * dw by double backward."""
    loss = net.loss(X, y)
    grads = torch.autograd.grad(loss, net.weights(), create_graph=True, materialize_grads=True)
    dot = sum((g * d).sum() for g, d in zip(grads, dw, strict=True))
    return torch.autograd.grad(dot, net.alphas())


def gradient_at(net, X, y):
    """dL/dw of the plain w step, which leaves the net as it is."""
    buffers = [b.clone() for b in net.buffers()]
    with torch.random.fork_rng():
        grads = torch.autograd.grad(net.loss(X, y), net.weights(), materialize_grads=True)
    with torch.no_grad():
        for buffer, value in zip(net.buffers(), buffers, strict=True):
            buffer.copy_(value)
    return grads


def state_of(net):
    """A copy of everything a net holds: weights, alphas, buffers."""
    return {name: value.clone() for name, value in net.state_dict().items()}


def relative_error(found, wanted):
    found, wanted = (torch.cat([t.flatten() for t in ts]) for ts in (found, wanted))
    return ((found - wanted).norm() / wanted.norm()).item()


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
