"""The supernet of the search, and the controller that owns its alphas."""

from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import genotypes as gt
from models import stems
from models.ops import check_primitives
from models.search_cells import SearchCell


class SearchCNN(nn.Module):
    """Stem, `n_layers` cells, global average pooling, classifier (sec. 3.1.1).

    X (N, C_in, H, W) and softmax(alpha) of both cell types -> logits (N, n_classes).
    Reduction cells stand at 1/3 and 2/3 of the depth; each doubles the channels.
    """

    Cell = SearchCell  # reference.PerEdgeCell, which computes the same edge by edge, fits as well

    def __init__(self, stem, C, n_classes, n_layers, n_nodes, primitives):
        """`stem` is one of models/stems.py, `C` the channels of the first cells."""
        super().__init__()
        # True: keep only the inputs of each cell and compute it again for the backward pass
        self.checkpoint_cells = False
        self.stem = stem

        def make_cell(*args):
            return self.Cell(n_nodes, *args, primitives)

        self.cells = stems.stack(stem, C, n_layers, make_cell)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(self.cells[-1].C_out, n_classes)

    def forward(self, X, mix_normal, mix_reduce):
        s0, s1 = self.stem(X)  # (N, stem_multiplier * C, H, W) twice, or as in ImageNetStem
        for cell in self.cells:
            mix = mix_reduce if cell.reduction else mix_normal
            if self.checkpoint_cells and torch.is_grad_enabled():
                out = checkpoint(
                    cell, s0, s1, mix, use_reentrant=False,
                    context_fn=lambda cell=cell: (nullcontext(), statistics_kept(cell)),
                )  # fmt: skip
            else:
                out = cell(s0, s1, mix)
            s0, s1 = s1, out
        out = self.gap(s1).flatten(1)  # (N, n_nodes * C_last)
        return self.linear(out)


@contextmanager
def statistics_kept(cell):
    """The second computation of a checkpointed cell must not move BatchNorm statistics again."""
    buffers = list(cell.buffers())
    saved = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            pairs = list(zip(buffers, saved, strict=True))
            for dtype in {buffer.dtype for buffer in buffers}:  # one call for all of a dtype
                torch._foreach_copy_(*zip(*(p for p in pairs if p[0].dtype == dtype), strict=True))


class SearchCNNController(nn.Module):
    """The supernet together with its alphas and its loss: all that `Architect` needs.

    All normal cells share one set of alphas, all reduction cells another, whatever the depth:
    what is searched is a cell, and a cell is stacked (sec. 2.1).
    """

    def __init__(
        self, C_in, C, n_classes, n_layers, criterion, n_nodes=4, stem_multiplier=3,
        primitives=None, k=2, stem="cifar",
    ):  # fmt: skip
        """
        C_in             channels of the images
        C                channels of the first cells
        criterion        (logits, y) -> scalar loss
        stem_multiplier  the stem has stem_multiplier * C channels
        primitives       candidate ops, names in OPS (default: genotypes.PRIMITIVES)
        k                edges that a node of the genotype keeps
        stem             "cifar" or "imagenet" (models/stems.py)

        Raises ValueError for primitives that are unknown or repeated.
        """
        super().__init__()
        self.primitives = check_primitives(gt.PRIMITIVES if primitives is None else primitives)
        self.n_nodes = n_nodes
        self.k = k
        self.criterion = criterion

        def new_alpha():  # one row per edge, nearly equal: 1e-3 * N(0, 1)
            rows = range(2, n_nodes + 2)
            return nn.ParameterList(1e-3 * torch.randn(n, len(self.primitives)) for n in rows)

        self.alpha_normal = new_alpha()
        self.alpha_reduce = new_alpha()
        self.net = SearchCNN(
            stems.build(stem, C_in, C, stem_multiplier), C, n_classes, n_layers, n_nodes,
            self.primitives,
        )  # fmt: skip

    @property
    def cells(self):
        return self.net.cells

    def forward(self, X):
        """(N, C_in, H, W) -> logits (N, n_classes)."""
        mix_normal = [F.softmax(alpha, dim=-1) for alpha in self.alpha_normal]
        mix_reduce = [F.softmax(alpha, dim=-1) for alpha in self.alpha_reduce]
        return self.net(X, mix_normal, mix_reduce)

    def loss(self, X, y):
        """Scalar loss of the batch X (N, C_in, H, W), y (N,)."""
        return self.criterion(self(X), y)

    def named_alphas(self):
        """(name, parameter) of the architecture parameters."""
        return [item for item in self.named_parameters() if item[0].startswith("alpha_")]

    def alphas(self):
        """The architecture parameters: n_nodes tables of the normal cell, then of the reduction."""
        return [alpha for _, alpha in self.named_alphas()]

    def named_weights(self):
        """(name, parameter) of everything that is learned besides alpha."""
        return [item for item in self.named_parameters() if not item[0].startswith("alpha_")]

    def weights(self):
        """Everything that is learned besides alpha: the w of the paper."""
        return [weight for _, weight in self.named_weights()]

    def looped_ops(self):
        """{op: why} of the ops that could not be widened (models/fan.py)."""
        return {
            op: why
            for cell in self.net.cells
            for fan in cell.fans
            for op, why in fan.looped.items()
        }

    def genotype(self, max_skips=None):
        """The discrete architecture that alpha stands for now (sec. 2.4), with at most `max_skips`
        skip connections in the normal cell."""
        concat = range(2, self.n_nodes + 2)
        return gt.Genotype(
            normal=gt.parse(self.alpha_normal, self.k, self.primitives, max_skips),
            normal_concat=concat,
            reduce=gt.parse(self.alpha_reduce, k=self.k, primitives=self.primitives),
            reduce_concat=concat,
        )
