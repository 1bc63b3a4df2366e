"""The cell of the supernet: every node reads every node before it, every edge carries every op."""

import torch
from torch import nn

from models import ops
from models.fan import Fan


class SearchCell(nn.Module):
    """A cell of the continuous relaxation (sec. 2.1 and 2.2).

    s0 (N, C_pp, H0, W0), s1 (N, C_p, H, W) -> (N, n_nodes * C, H', W'): the concatenation of its
    computed nodes. H' is H in a normal cell and ceil(H/2) in a reduction cell.

    The edges are computed by the node they leave, all edges of a node at once (models/fan.py).
    models/reference.py computes them one by one; both give the same.

    With partial channels (PC-DARTS, arXiv 1907.05737) the ops of an edge get the first C / K
    channels of its input; the others pass beside them, and the channels of the node are shuffled,
    so that its readers work on others. Both are done once per node: the sum over its edges is the
    same before and after.
    """

    def __init__(self, n_nodes, C_pp, C_p, C, reduction_p, reduction, primitives, partial=1):
        """
        n_nodes      computed nodes
        C_pp, C_p    channels of the outputs of the cells k-2 and k-1
        C            channels of every node
        reduction_p  cell k-1 is a reduction cell, so s0 is twice as large as s1
        reduction    this is a reduction cell: edges that leave nodes 0 and 1 have stride 2
        primitives   the ops of every edge
        partial      K of the partial channels; 1: all channels go through the ops
        """
        super().__init__()
        self.reduction = reduction
        self.partial = partial
        self.C_out = n_nodes * C
        self.preproc0, self.preproc1 = ops.cell_inputs(C_pp, C_p, C, reduction_p, affine=False)
        last = n_nodes + 1
        self.targets = [range(max(j + 1, 2), last + 1) for j in range(last)]  # of node j
        self.strides = [2 if reduction and j < 2 else 1 for j in range(last)]
        self.fans = nn.ModuleList(
            Fan(C // partial, stride, len(targets), primitives)
            for stride, targets in zip(self.strides, self.targets, strict=True)
        )

    def forward(self, s0, s1, rows):
        """`rows[i]` (i + 2, n_ops): what the ops of the edges into node i + 2 are multiplied with;
        with partial channels (i + 2, n_ops + 1), the last for the channels beside them."""
        states = [self.preproc0(s0), self.preproc1(s1)] + [0] * len(rows)
        beside = [0] * len(states)  # the sums of the channels that pass beside the ops
        for j, (fan, targets) in enumerate(zip(self.fans, self.targets, strict=True)):
            leaving = torch.stack([rows[i - 2][j] for i in targets])  # (k, n_ops)
            x = states[j]
            if self.partial > 1:
                part = x.size(1) // self.partial
                rest = ops.bypass(x[:, part:], self.strides[j])
                for i, weight in zip(targets, leaving[:, -1], strict=True):
                    beside[i] = beside[i] + weight * rest
                x, leaving = x[:, :part], leaving[:, :-1]
            for i, y in zip(targets, fan(x, leaving), strict=True):
                states[i] = states[i] + y  # node j + 1 is complete when the loop gets to it
            if self.partial > 1 and j >= 1:
                whole = torch.cat([states[j + 1], beside[j + 1]], dim=1)
                states[j + 1] = ops.shuffle(whole, self.partial)
        return torch.cat(states[2:], dim=1)
