"""The cell of the supernet written edge by edge, as the paper defines it.

Nothing uses it for a search: `models/search_cells.py` computes the same faster. It is the oracle of
the tests and the baseline of the benchmark, and the shortest way to read what a cell means.
"""

import torch
from torch import nn

from models import ops


class PartialOp(ops.MixedOp):
    """An edge with partial channels (PC-DARTS, arXiv 1907.05737): the first C / K channels go
    through the mixed ops, the others beside them; then the channels are shuffled.

    x (N, C, H, W), row (n_ops + 1,): what the ops are multiplied with, and what the channels
    beside them are -> (N, C, ceil(H/stride), ceil(W/stride)).
    """

    def __init__(self, C, stride, primitives, K):
        super().__init__(C // K, stride, primitives)
        self.K, self.part = K, C // K
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True) if stride == 2 else nn.Identity()

    def forward(self, x, row):
        mixed = super().forward(x[:, : self.part], row[:-1])
        y = torch.cat([mixed, row[-1] * self.pool(x[:, self.part :])], dim=1)
        # channel g * part + c -> c * K + g
        return torch.stack(y.chunk(self.K, dim=1), dim=2).flatten(1, 2)


class PerEdgeCell(nn.Module):
    """A cell of the continuous relaxation (sec. 2.1 and 2.2).

    s0 (N, C_pp, H0, W0), s1 (N, C_p, H, W) -> (N, n_nodes * C, H', W'): the concatenation of its
    computed nodes. H' is H in a normal cell and ceil(H/2) in a reduction cell.
    """

    def __init__(self, n_nodes, C_pp, C_p, C, reduction_p, reduction, primitives, partial=1):
        """Arguments as in search_cells.SearchCell."""
        super().__init__()
        self.reduction = reduction
        self.C_out = n_nodes * C
        if reduction_p:
            self.preproc0 = ops.FactorizedReduce(C_pp, C, affine=False)
        else:
            self.preproc0 = ops.StdConv(C_pp, C, affine=False)
        self.preproc1 = ops.StdConv(C_p, C, affine=False)

        self.dag = nn.ModuleList()  # dag[i][j]: the edge from node j to node i + 2
        for i in range(n_nodes):
            strides = [2 if reduction and j < 2 else 1 for j in range(i + 2)]
            if partial == 1:
                edges = [ops.MixedOp(C, s, primitives) for s in strides]
            else:
                edges = [PartialOp(C, s, primitives, partial) for s in strides]
            self.dag.append(nn.ModuleList(edges))

    def forward(self, s0, s1, rows):
        """`rows` as in search_cells.SearchCell."""
        states = [self.preproc0(s0), self.preproc1(s1)]
        for edges, table in zip(self.dag, rows, strict=True):
            inputs = zip(edges, states, table, strict=True)
            states.append(sum(edge(state, row) for edge, state, row in inputs))
        return torch.cat(states[2:], dim=1)
