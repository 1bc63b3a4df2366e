"""All edges that leave one node of the supernet, each with all candidate ops mixed."""

import torch
import torch.nn.functional as F
from torch import nn

from models import ops
from models.widen import CannotWiden, Widened, expand, widen


class MixedNorm(nn.BatchNorm2d):
    """BatchNorm without a learned scale that takes the mixing weights of alpha for its scale.

    x (N, k*C, H, W), mix (k,) -> (N, k*C, H, W). The product mix * BatchNorm(x) costs no
    multiplication and stores no map of its own; the gradient of the scale is alpha's.
    """

    def __init__(self, norm, k):
        super().__init__(norm.num_features, norm.eps, norm.momentum, affine=False)
        self.k = k
        self.register_buffer("zero", torch.zeros(norm.num_features), persistent=False)

    def forward(self, x, mix):
        if self.training:
            self.num_batches_tracked.add_(1)
        scale = mix.repeat_interleave(self.num_features // self.k)
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


class WideOp(nn.Module):
    """One op on all k edges, times their mixing weights.

    x (N, C, H, W), or (N, k*C, H, W) if `wide`, through a ReLU if `relu`; mix (k,)
    -> (N, k*C, H', W'). If `edge_invariant`, (N, C, H', W') and not yet multiplied.
    """

    def __init__(self, widened, k):
        super().__init__()
        self.body = widened.body
        self.norm = None if widened.norm is None else MixedNorm(widened.norm, k)
        self.relu, self.wide = widened.relu, widened.wide
        self.edge_invariant = widened.edge_invariant

    def forward(self, x, mix):
        y = self.body(x)
        if self.edge_invariant:
            return y
        return scaled(y, mix) if self.norm is None else self.norm(y, mix)


class Fan(nn.Module):
    """All edges that leave one node, each with all candidate ops mixed (Eq. 2).

    x (N, C, H, W), mix (k, n_ops), the weight of every op on the k edges
    -> k maps (N, C, ceil(H/stride), ceil(W/stride)), one per edge.
    """

    def __init__(self, C, stride, k, primitives):
        super().__init__()
        self.k = k
        self.primitives = list(primitives)
        self.ops = nn.ModuleDict()  # name: WideOp
        self.looped = {}  # name: why the op runs edge by edge
        for name in primitives:
            if name == "none":
                continue  # adds zeros: it has its part in the softmax and needs no work
            blocks = [ops.of_supernet(name, C, stride) for _ in range(k)]
            try:
                widened = widen(blocks, C)
            except CannotWiden as reason:
                self.looped[name] = str(reason)
                widened = Widened(Loop(blocks), False, False, None, False)
            self.ops[name] = WideOp(widened, k)

    def forward(self, x, mix):
        # No closure: one that calls itself would keep the maps alive until Python looks for
        # reference cycles, and double the peak memory.
        forms = {}  # (relu, wide): that form of x, made once
        for relu in {op.relu for op in self.ops.values()}:
            forms[relu, False] = F.relu(x) if relu else x
            if any(op.wide for op in self.ops.values() if op.relu == relu):
                forms[relu, True] = expand(forms[relu, False], self.k)

        columns = dict(zip(self.primitives, mix.unbind(1), strict=True))  # name: (k,)
        total = None  # (N, k*C, H', W')
        invariant = []  # pairs of a map (N, C, H', W') and its mixing weights (k,)
        for name, op in self.ops.items():
            y = op(forms[op.relu, op.wide], columns[name])
            if op.edge_invariant:
                invariant.append((y, columns[name]))
            else:
                # in place: neither a norm nor a product needs its result for the backward pass
                total = y if total is None else total.add_(y)
        if invariant:
            y = mixed(*zip(*invariant, strict=True))
            total = y if total is None else total.add_(y)
        return total.chunk(self.k, dim=1)  # chunk: its gradient keeps the memory format


def scaled(y, mix):
    """y (N, k*C, H, W), each edge's channels times its weight, mix (k,)."""
    mix = mix.to(y.dtype).view(-1, 1, 1, 1)
    return (y.unflatten(1, (len(mix), -1)) * mix).flatten(1, 2)


def mixed(maps, mix):
    """Weighted sums of maps that are the same on all edges, one sum per edge:
    n maps (N, C, H, W), n times (k,) -> (N, k*C, H, W).

    As a 1x1 convolution from n*C to k*C channels, whose kernel is n*k diagonal blocks: most of its
    products are with zero, but it reads every map once, where products and sums one by one would
    read and write wide maps n times, and several times more in the backward pass.
    """
    mix = torch.stack(mix, dim=1)  # (k, n)
    eye = torch.eye(maps[0].size(1), dtype=mix.dtype, device=mix.device)
    kernel = torch.einsum("kn,cd->kcnd", mix, eye).flatten(2).flatten(0, 1)  # (k*C, n*C)
    return F.conv2d(torch.cat(maps, dim=1), kernel[:, :, None, None].to(maps[0].dtype))
