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
    """

    def __init__(self, n_nodes, C_pp, C_p, C, reduction_p, reduction, primitives):
        """
        n_nodes      computed nodes
        C_pp, C_p    channels of the outputs of the cells k-2 and k-1
        C            channels of every node
        reduction_p  cell k-1 is a reduction cell, so s0 is twice as large as s1
        reduction    this is a reduction cell: edges that leave nodes 0 and 1 have stride 2
        """
        super().__init__()
        self.reduction = reduction
        self.C_out = n_nodes * C
        self.preproc0, self.preproc1 = ops.cell_inputs(C_pp, C_p, C, reduction_p, affine=False)
        last = n_nodes + 1
        self.targets = [range(max(j + 1, 2), last + 1) for j in range(last)]  # of node j
        self.fans = nn.ModuleList(
            Fan(C, 2 if reduction and j < 2 else 1, len(targets), primitives)
            for j, targets in enumerate(self.targets)
        )

    def forward(self, s0, s1, mix):
        """`mix[i]` (i + 2, n_ops): softmax(alpha) of the edges into node i + 2."""
        states = [self.preproc0(s0), self.preproc1(s1)] + [0] * len(mix)
        for j, (fan, targets) in enumerate(zip(self.fans, self.targets, strict=True)):
            rows = torch.stack([mix[i - 2][j] for i in targets])  # (k, n_ops)
            for i, y in zip(targets, fan(states[j], rows), strict=True):
                states[i] = states[i] + y  # node j + 1 is complete when the loop gets to it
        return torch.cat(states[2:], dim=1)
