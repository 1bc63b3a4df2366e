"""The cell of the final network: a gene made of modules."""

import torch
from torch import nn
from torchvision.ops import StochasticDepth

from models import ops


class AugmentCell(nn.Module):
    """A discrete cell (sec. 2.4): each node sums its kept edges.

    s0 (N, C_pp, H0, W0), s1 (N, C_p, H, W) -> (N, len(concat) * C, H', W'), H' as in SearchCell.
    """

    def __init__(self, genotype, C_pp, C_p, C, reduction_p, reduction):
        """Arguments as in SearchCell; the genotype gives the gene and the concat list."""
        super().__init__()
        self.preproc0, self.preproc1 = ops.cell_inputs(C_pp, C_p, C, reduction_p, affine=True)
        self.reduction = reduction
        gene = genotype.reduce if reduction else genotype.normal
        self.concat = genotype.reduce_concat if reduction else genotype.normal_concat
        self.C_out = C * len(self.concat)
        self.inputs = [[j for _, j in edges] for edges in gene]
        self.dag = nn.ModuleList()  # dag[i]: the ops of the edges self.inputs[i] -> node i + 2
        for edges in gene:
            self.dag.append(
                nn.ModuleList(edge_op(op, C, 2 if reduction and j < 2 else 1) for op, j in edges)
            )

    def forward(self, s0, s1):
        states = [self.preproc0(s0), self.preproc1(s1)]
        for edges, inputs in zip(self.dag, self.inputs, strict=True):
            states.append(sum(op(states[j]) for op, j in zip(edges, inputs, strict=True)))
        return torch.cat([states[j] for j in self.concat], dim=1)


def edge_op(name, C, stride):
    """The op of one kept edge, with drop path behind it unless it is the identity.

    Drop path (arXiv 1605.07648) zeroes an edge for a sample with probability p and scales it by
    1/(1-p) otherwise. p starts at 0; AugmentCNN.drop_path_prob sets it.
    """
    op = ops.OPS[name](C, stride, affine=True)
    if isinstance(op, nn.Identity):
        return op
    return nn.Sequential(op, StochasticDepth(p=0.0, mode="row"))
