"""The wide form of the supernet against the per-edge form it must equal."""

import copy
import gc
import itertools

import per_edge
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import genotypes as gt
from architect import Architect
from models import ops, reference
from models.fan import Fan
from models.search_cnn import SearchCNN, SearchCNNController


def randomise(module):
    """No weight, scale or statistic at a value that would hide a mix-up."""
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(std=0.5)
        for name, b in module.named_buffers():
            if name.endswith("running_mean"):
                b.normal_()
            elif name.endswith("running_var"):
                b.uniform_(0.5, 2)


def fan_and_edges(name, C, stride, k):
    """A Fan of one op and the k MixedOps it stands for, with equal weights, in float64."""
    fan = Fan(C, stride, k, [name]).double()
    edges = [ops.MixedOp(C, stride, [name]).double() for _ in range(k)]
    for e, edge in enumerate(edges):
        randomise(edge)
        parts = per_edge.edge_tensors(fan, e, edge)
        # what has no weights sees the same input on all edges, so it has one statistic
        invariant = fan.ops[name].edge_invariant
        per_edge.load(parts, (edges[0] if invariant else edge).state_dict())
        edge.load_state_dict(parts)
    return fan, edges


def close(found, wanted, rtol=1e-9):
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=1e-10)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", [n for n in ops.OPS if n != "none"])
def test_every_op_gives_the_same_wide_and_edge_by_edge(name, stride, training):
    torch.manual_seed(0)
    for k, C, H, W in ((1, 4, 8, 8), (3, 3, 7, 6), (4, 4, 8, 9)):
        fan, edges = fan_and_edges(name, C, stride, k)
        fan.train(training)
        x = torch.randn(3, C, H, W, dtype=torch.float64, requires_grad=True)
        rows = torch.rand(k, 1, dtype=torch.float64, requires_grad=True)
        found = fan(x, rows)
        wanted = [e.train(training)(x, row) for e, row in zip(edges, rows, strict=True)]
        grads = [torch.randn_like(y) for y in wanted]
        close(list(found), wanted)
        for e, edge in enumerate(edges):  # statistics too
            for key, value in edge.state_dict().items():
                close(per_edge.edge_tensors(fan, e, edge)[key], value)
        a = torch.autograd.grad(found, [x, rows, *fan.parameters()], grads)
        b = torch.autograd.grad(wanted, [x, rows], grads, retain_graph=True)
        close(a[0], b[0])
        close(a[1], b[1])
        # gradients of the weights, read back edge by edge
        with torch.no_grad():
            for p, g in zip(fan.parameters(), a[2:], strict=True):
                p.copy_(g)
        for e, edge in enumerate(edges):
            names = [n for n, _ in edge.named_parameters()]
            if names:
                own = torch.autograd.grad(wanted[e], edge.parameters(), grads[e], retain_graph=True)
                for n, g in zip(names, own, strict=True):
                    close(per_edge.edge_tensors(fan, e, edge)[n], g)


def test_all_ops_of_this_repository_are_widened():
    for stride in (1, 2):
        assert Fan(4, stride, 3, gt.PRESETS["all"]).looped == {}


class Sliced(nn.Module):
    def __init__(self, C, stride):
        super().__init__()
        self.conv = nn.Conv2d(C, C + 1, 3, stride, 1)

    def forward(self, x):
        return self.conv(x)[:, :-1]


class Twice(nn.Module):
    def __init__(self, C, stride):
        super().__init__()
        self.conv = nn.Conv2d(C, C, 3, 1, 1)
        self.pool = nn.MaxPool2d(stride, stride, ceil_mode=True)

    def forward(self, x):
        return self.pool(self.conv(self.conv(x)))


class Branching(nn.Module):
    def __init__(self, C, stride):
        super().__init__()
        self.conv = nn.Conv2d(C, C, 3, stride, 1)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else self.conv(-x)


class Dropping(nn.Sequential):
    def __init__(self, C, stride):
        super().__init__(nn.Conv2d(C, C, 3, stride, 1), nn.Dropout(0.5))


class Reflecting(nn.Sequential):
    def __init__(self, C, stride):
        super().__init__(nn.Conv2d(C, C, 3, stride, 1, padding_mode="reflect"))


class Spatial(nn.Module):
    """Spatial attention: one map that weighs all channels of its edge."""

    def __init__(self, C, stride):
        super().__init__()
        self.conv = nn.Conv2d(C, C, 3, stride, 1)
        self.weigh = nn.Conv2d(C, 1, 1)

    def forward(self, x):
        x = self.conv(x)
        return x * torch.sigmoid(self.weigh(x))


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (Spatial, "gives another result"), (Sliced, "indexes a tensor"),
        (Twice, "runs its module conv twice"),
        (Branching, "cannot be traced"), (Dropping, "holds a Dropout"),
        (Reflecting, "pads with reflect"),
    ],
)  # fmt: skip
def test_a_block_that_cannot_be_widened_runs_edge_by_edge_and_says_why(block, reason, monkeypatch):
    monkeypatch.setitem(ops.OPS, "mine", lambda C, stride, affine: block(C, stride))
    torch.manual_seed(0)
    fan, edges = fan_and_edges("mine", 4, 2, 3)
    assert reason in fan.looped["mine"]
    x, rows = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.rand(3, 1, dtype=torch.float64)
    fan.eval()
    close(list(fan(x, rows)), [e.eval()(x, r) for e, r in zip(edges, rows, strict=True)])


class Many(nn.Module):
    """Biases, a frozen weight, an in-place activation, functions, a scalar factor, a cat."""

    def __init__(self, C, stride):
        super().__init__()
        self.a = nn.Conv2d(C, C, 1)
        self.b = nn.Conv2d(3 * C, C, 3, stride, 1, groups=C)
        self.b.weight.requires_grad_(False)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        y = torch.sigmoid(self.a(x))
        y = torch.cat([F.silu(y) * 2, F.relu(x), x + y], dim=1)
        return 0.5 * self.act(self.b(y))


def test_a_block_of_many_parts_is_widened(monkeypatch):
    monkeypatch.setitem(ops.OPS, "mine", lambda C, stride, affine: Many(C, stride))
    torch.manual_seed(0)
    fan, edges = fan_and_edges("mine", 4, 2, 3)
    assert fan.looped == {}
    x, rows = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.rand(3, 1, dtype=torch.float64)
    close(list(fan(x, rows)), [e(x, r) for e, r in zip(edges, rows, strict=True)])
    assert sum(not p.requires_grad for p in fan.parameters()) == 1


# --- cells and whole steps ----------------------------------------------------------------------


def pair(monkeypatch, dtype=torch.float64, **changes):
    """(per-edge supernet, wide supernet) with equal weights and alphas."""
    sizes = {"C_in": 3, "C": 4, "n_classes": 5, "n_layers": 3, "n_nodes": 3, **changes}
    torch.manual_seed(0)
    fast = SearchCNNController(criterion=F.cross_entropy, **sizes).to(dtype)
    with monkeypatch.context() as patched:
        patched.setattr(SearchCNN, "Cell", reference.PerEdgeCell)
        plain = SearchCNNController(criterion=F.cross_entropy, **sizes).to(dtype)
    with torch.no_grad():
        for alpha in plain.alphas():
            alpha.normal_()
    per_edge.load(per_edge.net_tensors(fast, plain), plain.state_dict())
    return plain, fast


def batches(dtype, n=6, size=8, seed=1):
    torch.manual_seed(seed)
    X, y = torch.randn(2, n, 3, size, size, dtype=dtype), torch.randint(5, (2, n))
    return X[0], y[0], X[1], y[1]


def test_both_forms_have_the_same_weights_and_statistics(monkeypatch):
    plain, fast = pair(monkeypatch)
    a, b = plain.state_dict(), per_edge.net_tensors(fast, plain)
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key
    sizes = [sum(p.numel() for p in net.parameters()) for net in (plain, fast)]
    assert sizes[0] == sizes[1]


def sgd(net):
    return torch.optim.SGD(net.weights(), 0.05, momentum=0.9, weight_decay=3e-4)


def search_step(net, w_optim, data, xi):
    Architect(net).unrolled_backward(*data, xi, w_optim)
    gradient = [a.grad.clone() for a in net.alphas()]
    w_optim.zero_grad()
    net.loss(data[0], data[1]).backward()
    w_optim.step()
    return gradient


PARTIAL = {"C": 4, "partial_channels": 2}


@pytest.mark.parametrize(
    ("primitives", "n_nodes", "xi", "changes"),
    [*itertools.product([gt.PRIMITIVES], [2, 3, 5], [0.05], [{}]), (gt.PRIMITIVES, 3, 0.0, {}),
     (gt.PRIMITIVES[:-1], 3, 0.05, {}), (gt.PRESETS["efficient"], 3, 0.05, {}),
     (gt.PRESETS["efficient"], 3, 0.0, {}), (gt.PRIMITIVES, 2, 0.05, PARTIAL),
     (gt.PRIMITIVES[:-1], 3, 0.05, {"C": 8, "partial_channels": 4}),
     (gt.PRIMITIVES, 2, 0.05, {"auxiliary_skip": True}),
     (gt.PRIMITIVES[3:], 2, 0.05, {**PARTIAL, "auxiliary_skip": True})],
)  # fmt: skip
def test_a_search_step_equals_that_of_the_per_edge_form(
    monkeypatch, primitives, n_nodes, xi, changes
):
    plain, fast = pair(monkeypatch, n_nodes=n_nodes, primitives=primitives, **{"C": 2, **changes})
    optims = sgd(plain), sgd(fast)
    for step in range(2):
        for net in (plain, fast):
            net.fade_skip(step + 2, 5)  # neither 1 nor 0
        # maps of an odd size where channels pass beside the ops
        data = batches(torch.float64, size=7 if "partial_channels" in changes else 8, seed=step)
        close(fast(data[0]), plain(data[0]))
        gradients = [
            search_step(net, w_optim, data, xi)
            for net, w_optim in zip((plain, fast), optims, strict=True)
        ]
        close(gradients[1], gradients[0], rtol=1e-9)
        a, b = plain.state_dict(), per_edge.net_tensors(fast, plain)
        for key in a:
            close(b[key], a[key], rtol=1e-9)
        assert plain.genotype() == fast.genotype()


def test_float32_stays_close_over_five_steps(monkeypatch):
    nets = pair(monkeypatch, torch.float32)
    for net in nets:
        w_optim = torch.optim.SGD(net.weights(), 0.0025, momentum=0.9, weight_decay=3e-4)
        alpha_optim = torch.optim.SGD(net.alphas(), 0.05)
        for step in range(5):
            search_step(net, w_optim, batches(torch.float32, 16, 8, seed=step), 0.0025)
            alpha_optim.step()
    plain, fast = nets[0].state_dict(), per_edge.net_tensors(nets[1], nets[0])
    for names in ([n for n in plain if "alpha_" in n], [n for n in plain if "weight" in n]):
        a, b = (torch.cat([state[n].flatten() for n in names]) for state in (plain, fast))
        assert ((a - b).norm() / a.norm()).item() < 1e-4


# --- memory, precision, compile -----------------------------------------------------------------


def small(dtype=torch.float64, n_nodes=2, k=2):
    torch.manual_seed(0)
    return SearchCNNController(3, 4, 5, 3, F.cross_entropy, n_nodes=n_nodes, k=k).to(dtype)


def test_checkpointed_cells_give_the_same_gradients_and_statistics():
    nets = small(), small()
    nets[1].net.checkpoint_cells = True
    data = batches(torch.float64)
    calls = []
    nets[1].net.cells[0].register_forward_pre_hook(lambda *_: calls.append(1))
    gradients = [search_step(net, sgd(net), data, 0.05) for net in nets]
    assert len(calls) == 10  # five passes, each computed twice
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    a, b = (net.state_dict() for net in nets)
    assert all(torch.equal(a[key], b[key]) for key in a)
    with torch.no_grad():
        assert torch.equal(nets[0](data[0]), nets[1](data[0]))


def test_checkpointed_cells_keep_less_for_the_backward_pass():
    def kept(net):
        sizes = []

        def pack(tensor):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            net.loss(*batches(torch.float64)[:2])
        return sum(sizes)

    net = small()
    full = kept(net)
    net.net.checkpoint_cells = True
    assert kept(net) < full / 5


def test_the_wide_form_keeps_less_for_the_backward_pass(monkeypatch):
    def kept(net):
        storages = {}

        def pack(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = net.loss(*batches(torch.float32, 8, 16)[:2])
        return sum(storages.values()), loss

    plain, fast = pair(monkeypatch, torch.float32, n_nodes=4)
    (many, _), (few, _) = kept(plain), kept(fast)
    assert few < 0.7 * many


def test_bfloat16_runs_and_stays_near():
    net = small(torch.float32)
    trn_X, trn_y, val_X, val_y = batches(torch.float32, 32, 16)
    wanted = net.loss(val_X, val_y).item()
    sgd_ = sgd(net)
    with torch.autocast("cpu", torch.bfloat16):
        assert net.loss(val_X, val_y).item() == pytest.approx(wanted, rel=0.05)
        Architect(net).unrolled_backward(trn_X, trn_y, val_X, val_y, 0.05, sgd_)
    assert all(a.grad.dtype == torch.float32 and a.grad.isfinite().all() for a in net.alphas())


@pytest.mark.filterwarnings("ignore")  # of torch._dynamo itself
def test_compiled_cells_give_the_same_step():
    nets = small(n_nodes=1, k=1), small(n_nodes=1, k=1)
    for cell in nets[1].net.cells[:2]:  # a normal one and one that halves the map
        cell.compile(backend="aot_eager")  # all of compilation but the generation of code
    data = batches(torch.float64)
    gradients = [search_step(net, sgd(net), data, 0.05) for net in nets]
    close(gradients[1], gradients[0], rtol=1e-9)


def test_channels_last_gives_the_same_step():
    nets = small(), small().to(memory_format=torch.channels_last)
    data = batches(torch.float64)
    last = [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in data]
    gradients = [
        search_step(net, sgd(net), d, 0.05) for net, d in zip(nets, (data, last), strict=True)
    ]
    close(gradients[1], gradients[0], rtol=1e-6)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_step_leaves_no_maps_to_the_garbage_collector(checkpoint):
    """Maps in reference cycles live until Python looks for them, and can double the peak memory."""
    net = small(torch.float32)
    net.net.checkpoint_cells = checkpoint
    w_optim, data = sgd(net), batches(torch.float32)
    search_step(net, w_optim, data, 0.05)
    gc.collect()
    gc.disable()
    try:
        search_step(net, w_optim, data, 0.05)
        before = {id(x) for x in gc.get_objects() if type(x) is torch.Tensor}
        gc.collect()
        after = {id(x) for x in gc.get_objects() if type(x) is torch.Tensor}
        assert before == after
    finally:
        gc.enable()


def test_a_copy_and_a_saved_state_work():
    net = SearchCNNController(3, 4, 5, 3, F.cross_entropy, n_nodes=2)
    twin = copy.deepcopy(net)
    twin.load_state_dict(net.state_dict())
    X = torch.randn(2, 3, 8, 8)
    assert torch.equal(net(X), twin(X))


def test_a_norm_keeps_its_settings_when_the_mixing_weight_is_folded_in(monkeypatch):
    def block(C, stride, affine):
        norm = nn.BatchNorm2d(C, eps=0.1, momentum=0.5, affine=affine)
        return nn.Sequential(nn.Conv2d(C, C, 3, stride, 1, bias=False), norm)

    monkeypatch.setitem(ops.OPS, "own", block)
    fan, edges = fan_and_edges("own", 3, 1, 2)
    assert fan.ops["own"].norm is not None
    x, weights = torch.randn(4, 3, 6, 6, dtype=torch.float64), torch.rand(2, 1, dtype=torch.float64)
    for e, y in enumerate(fan(x, weights)):
        close(y, edges[e](x, weights[e]))
        close(per_edge.edge_tensors(fan, e, edges[e]), dict(edges[e].state_dict()))
