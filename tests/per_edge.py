"""The weights of the wide form of the supernet under the names of the per-edge form."""

import torch
from torch import nn


def edge_tensors(fan, e, edge):
    """{name in the MixedOp `edge`: the part of the Fan's tensor that belongs to edge `e`}.

    The parts are views: what is copied into them goes into the Fan. A weight that takes no part in
    the forward pass has none.
    """
    found = {}
    for i, op in enumerate(fan.primitives):
        if op not in fan.ops:
            continue
        block, wide = edge.ops[i], fan.ops[op]
        prefix = f"blocks.{e}." if op in fan.looped else ""
        state = wide.body.state_dict()
        if wide.norm is not None:  # the first norm that the body lacks
            norm_name = next(name for name, module in block.named_modules()
                             if isinstance(module, nn.BatchNorm2d)
                             and f"{name}.running_mean" not in state)  # fmt: skip
            state |= {f"{norm_name}.{key}": t for key, t in wide.norm.state_dict().items()}
        for name, tensor in block.state_dict().items():
            if prefix + name in state:
                part = state[prefix + name]
                same = part.shape == tensor.shape  # one for all edges
                found[f"ops.{i}.{name}"] = part if same else part.chunk(fan.k)[e]
    return found


def net_tensors(fast, plain):
    """{name in the supernet of PerEdgeCells `plain`: the part of the supernet `fast`}."""
    found = {k: v for k, v in fast.state_dict().items() if ".fans." not in k}
    for c, (cell, reference) in enumerate(zip(fast.net.cells, plain.net.cells, strict=True)):
        for j, (fan, targets) in enumerate(zip(cell.fans, cell.targets, strict=True)):
            for e, i in enumerate(targets):
                for name, part in edge_tensors(fan, e, reference.dag[i - 2][j]).items():
                    found[f"net.cells.{c}.dag.{i - 2}.{j}.{name}"] = part
    return found


def load(parts, state):
    """Copy a state_dict of the per-edge form into the `parts` that belong to its names."""
    with torch.no_grad():
        for name, part in parts.items():
            part.copy_(state[name])
