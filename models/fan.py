"""All edges that leave one node of the supernet, each with all candidate ops mixed."""

import torch
import torch.nn.functional as F
from torch import nn

from models import ops
from models.widen import CannotWiden, Widened, expand, widen


class MixedNorm(nn.BatchNorm2d):
    """BatchNorm without a learned scale that takes the mixing weights of alpha for its scale.

    x (N, k*C, H, W), weights (k,) -> (N, k*C, H, W). The product weight * BatchNorm(x) costs no
    multiplication and stores no map of its own; the gradient of the scale is alpha's.
    """

    def __init__(self, norm, k):
        super().__init__(norm.num_features, norm.eps, norm.momentum, affine=False)
        self.k = k
        self.register_buffer("zero", torch.zeros(norm.num_features), persistent=False)

    def forward(self, x, weights):
        if self.training:
            self.num_batches_tracked.add_(1)
        scale = weights.repeat_interleave(self.num_features // self.k)
        return F.batch_norm(
            x, self.running_mean, self.running_var, scale, self.zero,
            self.training, self.momentum, self.eps,
        )  # fmt: skip


class Loop(nn.Module):
    """k blocks that could not be widened: run one by one, output concatenated."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x):
        return torch.cat([block(x) for block in self.blocks], dim=1)


class Fan(nn.Module):
    """All edges that leave one node, each with all candidate ops mixed (Eq. 2).

    x (N, C, H, W), weights (k, n_ops), the rows of softmax(alpha) of the k edges
    -> k maps (N, C, ceil(H/stride), ceil(W/stride)), one per edge.
    """

    def __init__(self, C, stride, k, primitives):
        super().__init__()
        self.k = k
        self.primitives = list(primitives)
        self.bodies = nn.ModuleDict()  # op: its k blocks as one
        self.norms = nn.ModuleDict()  # op: the norm that ended its blocks
        self.plans = {}  # op: Widened, without the modules
        self.looped = {}  # op: why it runs edge by edge
        for name in primitives:
            if name == "none":
                continue  # adds zeros: it has its share in the softmax and needs no work
            blocks = [ops.OPS[name](C, stride, affine=False) for _ in range(k)]
            try:
                plan = widen(blocks, C)
            except CannotWiden as reason:
                self.looped[name] = str(reason)
                plan = Widened(Loop(blocks), False, False, None, None, False, set())
            self.bodies[name] = plan.body
            if plan.norm is not None:
                self.norms[name] = MixedNorm(plan.norm, k)
            self.plans[name] = plan._replace(body=None, norm=None)

    def forward(self, x, weights):
        # (relu, wide): that form of x, made once. No closure: one that calls itself would keep the
        # maps alive until Python looks for reference cycles, and double the peak memory.
        sources = {(False, False): x}
        for relu, wide in sorted({(plan.relu, plan.wide) for plan in self.plans.values()}):
            if relu and (True, False) not in sources:
                sources[True, False] = F.relu(x)
            if wide:
                sources[relu, True] = expand(sources[relu, False], self.k)

        columns = dict(zip(self.primitives, weights.unbind(1), strict=True))  # op: (k,)
        total = None  # (N, k*C, H', W')
        shared = []  # pairs of a map (N, C, H', W') and its weights (k,)
        for name, body in self.bodies.items():
            plan, weight = self.plans[name], columns[name]
            y = body(sources[plan.relu, plan.wide])
            if plan.shared:
                shared.append((y, weight))
                continue
            y = self.norms[name](y, weight) if name in self.norms else scaled(y, weight)
            # in place: neither a norm nor a product needs its result for the backward pass
            total = y if total is None else total.add_(y)
        if shared:
            y = mixed(*zip(*shared, strict=True))
            total = y if total is None else total.add_(y)
        return total.chunk(self.k, dim=1)  # chunk: its gradient keeps the memory format

    # --- weights edge by edge -------------------------------------------------------------------

    def edge_state(self, e):
        """Weights and statistics of edge `e` under the names they have in a MixedOp."""
        return dict(self._edge_tensors(e))

    def load_edge_state(self, e, state):
        """Take over weights and statistics of edge `e`, in the form of `edge_state`."""
        with torch.no_grad():
            for name, tensor in self._edge_tensors(e):
                tensor.copy_(state[name])

    def _edge_tensors(self, e):
        """(name in a MixedOp, the part of the tensor that belongs to edge `e`)."""
        for op, body in self.bodies.items():
            prefix, plan = f"ops.{self.primitives.index(op)}.", self.plans[op]
            if op in self.looped:
                for name, tensor in body.blocks[e].state_dict().items():
                    yield prefix + name, tensor
                continue
            for name, tensor in body.state_dict().items():
                same = name.rpartition(".")[0] in plan.same or not tensor.dim()
                yield prefix + name, tensor if same else tensor.chunk(self.k)[e]
            if op in self.norms:
                for name, tensor in self.norms[op].state_dict().items():
                    part = tensor.chunk(self.k)[e] if tensor.dim() else tensor
                    yield f"{prefix}{plan.norm_name}.{name}", part


def scaled(y, weights):
    """y (N, k*C, H, W), each edge's channels times its weight, weights (k,)."""
    weights = weights.to(y.dtype).view(-1, 1, 1, 1)
    return (y.unflatten(1, (len(weights), -1)) * weights).flatten(1, 2)


def mixed(maps, weights):
    """Weighted sums of shared maps, one per edge: n maps (N, C, H, W), n weights (k,) ->
    (N, k*C, H, W).

    As a 1x1 convolution from n*C to k*C channels, whose kernel is n*k diagonal blocks: most of its
    products are with zero, but it reads every map once, where products and sums one by one would
    read and write wide maps n times, and several times more in the backward pass.
    """
    weights = torch.stack(weights, dim=1)  # (k, n)
    k, n = weights.shape
    eye = torch.eye(maps[0].size(1), dtype=weights.dtype, device=weights.device)
    kernel = torch.einsum("kn,cd->kcnd", weights, eye).flatten(2).flatten(0, 1)  # (k*C, n*C)
    return F.conv2d(torch.cat(maps, dim=1), kernel[:, :, None, None].to(maps[0].dtype))
