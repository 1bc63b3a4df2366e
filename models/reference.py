"""The cell of the supernet written edge by edge, as the paper defines it.

Nothing uses it for a search: `models/search_cells.py` computes the same faster. It is the oracle of
the tests and the baseline of the benchmark, and the shortest way to read what a cell means.
"""

import torch
from torch import nn

from models import ops


class PerEdgeCell(nn.Module):
    """A cell of the continuous relaxation (sec. 2.1 and 2.2).

    s0 (N, C_pp, H0, W0), s1 (N, C_p, H, W) -> (N, n_nodes * C, H', W'): the concatenation of its
    computed nodes. H' is H in a normal cell and ceil(H/2) in a reduction cell.
    """

    def __init__(self, n_nodes, C_pp, C_p, C, reduction_p, reduction, primitives):
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
            self.dag.append(nn.ModuleList(ops.MixedOp(C, s, primitives) for s in strides))

    def forward(self, s0, s1, mix):
        """`mix[i]` (i + 2, n_ops): softmax(alpha) of the edges into node i + 2."""
        states = [self.preproc0(s0), self.preproc1(s1)]
        for edges, rows in zip(self.dag, mix, strict=True):
            inputs = zip(edges, states, rows, strict=True)
            states.append(sum(edge(state, row) for edge, state, row in inputs))
        return torch.cat(states[2:], dim=1)
