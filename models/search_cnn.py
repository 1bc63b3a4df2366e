"""The supernet of the search, and the controller that owns its alphas."""

from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import genotypes as gt
from models import stems
from models.ops import AUXILIARY_SKIP, check_primitives
from models.search_cells import SearchCell

ARCHITECTURE = ("alpha_", "beta_")  # how the names of the architecture parameters begin


class SearchCNN(nn.Module):
    """Stem, `n_layers` cells, global average pooling, classifier (sec. 3.1.1).

    X (N, C_in, H, W) and what the ops are multiplied with in both cell types (see the cell)
    -> logits (N, n_classes).
    Reduction cells stand at 1/3 and 2/3 of the depth; each doubles the channels.
    """

    Cell = SearchCell  # reference.PerEdgeCell, which computes the same edge by edge, fits as well

    def __init__(self, stem, C, n_classes, n_layers, n_nodes, primitives, partial=1):
        """`stem` is one of models/stems.py, `C` the channels of the first cells, `partial` as in
        the cell."""
        super().__init__()
        # True: keep only the inputs of each cell and compute it again for the backward pass
        self.checkpoint_cells = False
        self.stem = stem

        def make_cell(*args):
            return self.Cell(n_nodes, *args, primitives, partial)

        self.cells = stems.stack(stem, C, n_layers, make_cell)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(self.cells[-1].C_out, n_classes)

    def forward(self, X, rows_normal, rows_reduce):
        s0, s1 = self.stem(X)  # (N, stem_multiplier * C, H, W) twice, or as in ImageNetStem
        for cell in self.cells:
            rows = rows_reduce if cell.reduction else rows_normal
            if self.checkpoint_cells and torch.is_grad_enabled():
                out = checkpoint(
                    cell, s0, s1, rows, use_reentrant=False,
                    context_fn=lambda cell=cell: (nullcontext(), statistics_kept(cell)),
                )  # fmt: skip
            else:
                out = cell(s0, s1, rows)
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
        primitives=None, k=2, stem="cifar", partial_channels=1, auxiliary_skip=False,
    ):  # fmt: skip
        """
        C_in              channels of the images
        C                 channels of the first cells
        criterion         (logits, y) -> scalar loss
        stem_multiplier   the stem has stem_multiplier * C channels
        primitives        candidate ops, names in OPS (default: genotypes.PRIMITIVES)
        k                 edges that a node of the genotype keeps
        stem              "cifar" or "imagenet" (models/stems.py)
        partial_channels  K: one channel of K goes through the ops (PC-DARTS), and every edge gets
                          a weight; must divide C
        auxiliary_skip    every edge gets a skip connection outside the softmax (DARTS-), times
                          `skip_factor`

        Raises ValueError for primitives that are unknown or repeated, and for a K that does not
        divide C.
        """
        super().__init__()
        self.primitives = check_primitives(gt.PRIMITIVES if primitives is None else primitives)
        self.n_nodes = n_nodes
        self.k = k
        self.criterion = criterion
        self.partial_channels = partial_channels
        self.overrides = {}  # {(cell, node, input): row (n_ops,), or None: no such edge}
        if C % partial_channels:
            raise ValueError(f"{partial_channels} partial channels do not divide {C} channels")

        def new(*columns):  # nearly equal: 1e-3 * N(0, 1)
            rows = range(2, n_nodes + 2)
            return nn.ParameterList(1e-3 * torch.randn(n, *columns) for n in rows)

        self.alpha_normal = new(len(self.primitives))  # one row per edge
        self.alpha_reduce = new(len(self.primitives))
        if partial_channels > 1:
            self.beta_normal = new()  # one number per edge
            self.beta_reduce = new()
        names = self.primitives
        if auxiliary_skip:
            names = [*names, AUXILIARY_SKIP]
            self.register_buffer("skip_factor", torch.ones(()), persistent=False)
        self.net = SearchCNN(
            stems.build(stem, C_in, C, stem_multiplier), C, n_classes, n_layers, n_nodes,
            names, partial_channels,
        )  # fmt: skip

    @property
    def cells(self):
        return self.net.cells

    def forward(self, X):
        """(N, C_in, H, W) -> logits (N, n_classes)."""
        rows = self._rows(self.mixing())
        return self.net(X, rows["normal"], rows["reduce"])

    def mixing(self):
        """The mixing weights {"normal", "reduce"}: one table per node, the row of each edge.

        `overrides` replaces the row of an edge; None there makes it zeros.
        """
        tables = {"normal": self.alpha_normal, "reduce": self.alpha_reduce}
        mix = {cell: [F.softmax(a, dim=-1) for a in alphas] for cell, alphas in tables.items()}
        for (cell, node, j), row in self.overrides.items():
            rows = list(mix[cell][node])
            rows[j] = torch.zeros_like(rows[j]) if row is None else row
            mix[cell][node] = torch.stack(rows)
        return mix

    def edge_weights(self):
        """softmax(beta) over the edges that enter a node, {"normal", "reduce"}: (i + 2,) for each
        node; {} without partial channels."""
        if self.partial_channels == 1:
            return {}
        tables = {"normal": self.beta_normal, "reduce": self.beta_reduce}
        return {cell: [F.softmax(b, dim=-1) for b in betas] for cell, betas in tables.items()}

    def _rows(self, mix):
        """What the cells multiply with: the mixing weights; behind them the factor of the auxiliary
        skip, and 1 for the channels beside the ops; all times the weight of the edge."""
        edge_weights = self.edge_weights()
        behind = [self.skip_factor] if hasattr(self, "skip_factor") else []
        if edge_weights:
            behind.append(torch.ones_like(self.beta_normal[0][0]))
        if not behind:
            return mix
        rows = {}
        for cell, tables in mix.items():
            rows[cell] = []
            for node, table in enumerate(tables):
                table = torch.cat([table, torch.stack(behind).expand(len(table), -1)], dim=1)
                if edge_weights:
                    table = table * edge_weights[cell][node][:, None]
                gone = [self.overrides.get((cell, node, j), 0) is None for j in range(len(table))]
                if any(gone):
                    table = table.masked_fill(torch.tensor(gone).to(table.device)[:, None], 0)
                rows[cell].append(table)
        return rows

    def fade_skip(self, epoch, n_epochs):
        """Set the factor of the auxiliary skip for an epoch, counted from 1: it falls linearly from
        1 in the first to 0 in the last. In place, where a CUDA graph reads it."""
        if hasattr(self, "skip_factor"):
            self.skip_factor.fill_((n_epochs - epoch) / max(n_epochs - 1, 1))

    def loss(self, X, y):
        """Scalar loss of the batch X (N, C_in, H, W), y (N,)."""
        return self.criterion(self(X), y)

    def named_alphas(self):
        """(name, parameter) of the architecture parameters."""
        return [item for item in self.named_parameters() if item[0].startswith(ARCHITECTURE)]

    def alphas(self):
        """The architecture parameters: n_nodes tables of the normal cell, then of the reduction;
        with partial channels also the betas of their edges, in the same order."""
        return [alpha for _, alpha in self.named_alphas()]

    def named_weights(self):
        """(name, parameter) of everything that is learned besides alpha."""
        return [item for item in self.named_parameters() if not item[0].startswith(ARCHITECTURE)]

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
        edge_weights = self.edge_weights()
        normal, reduce = (
            gt.parse(alphas, self.k, self.primitives, limit, edge_weights.get(cell))
            for cell, alphas, limit in (
                ("normal", self.alpha_normal, max_skips),
                ("reduce", self.alpha_reduce, None),
            )
        )
        return gt.Genotype(normal, concat, reduce, concat)
