"""The final network: the genotype's cells stacked, with an auxiliary head while training."""

import functools

from torch import nn
from torchvision.ops import StochasticDepth

import genotypes as gt
from models import ops, stems
from models.augment_cells import AugmentCell


class AuxiliaryHead(nn.Module):
    """A second classifier at 2/3 of the depth, to train the lower cells better (App. A.2.1).

    (N, C, H, W) -> logits (N, n_classes), for maps of any size. The pooling leaves 2x2 pixels; on
    the paper's 8x8 maps it is the 5x5 window at stride 3 of the official code, and other sizes
    get a window in the same proportion.
    """

    def __init__(self, input_size, C, n_classes):
        super().__init__()
        windows = [self._window(side) for side in input_size]
        if None in windows:  # a side of one pixel: both output pixels read it
            pool = nn.AdaptiveAvgPool2d(2)
        else:
            kernel_size, stride = zip(*windows, strict=True)
            pool = nn.AvgPool2d(kernel_size, stride)
        self.net = nn.Sequential(
            nn.ReLU(),
            pool,  # (N, C, 2, 2)
            nn.Conv2d(C, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),  # (N, 768, 1, 1)
            nn.BatchNorm2d(768),
            nn.ReLU(),
        )
        self.linear = nn.Linear(768, n_classes)

    @staticmethod
    def _window(side):
        """(kernel, stride) that leaves two pixels of `side`: 5/8 of it, so that 8 gives (5, 3)."""
        if side == 1:
            return None
        kernel = min(-(-side * 5 // 8), side - 1)
        return kernel, side - kernel

    def forward(self, x):
        return self.linear(self.net(x).flatten(1))


class AugmentCNN(nn.Module):
    """Stem, `n_layers` discrete cells, global average pooling, classifier (sec. 3.2).

    X (N, C_in, H, W) -> (logits, auxiliary logits), each (N, n_classes). The second is None in
    evaluation mode and without an auxiliary head.
    """

    def __init__(
        self, input_size, C_in, C, n_classes, n_layers, auxiliary, genotype, stem_multiplier=3,
        stem="cifar",
    ):  # fmt: skip
        """
        input_size  side of the images in pixels, or (H, W)
        C_in        channels of the images
        C           channels of the first cells
        auxiliary   build the auxiliary head
        genotype    a genotypes.Genotype
        stem        "cifar" or "imagenet" (models/stems.py)

        Raises ValueError if the genotype names an op that is not in OPS.
        """
        super().__init__()
        gt.require_known(genotype, ops.OPS)
        size = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
        self.aux_pos = 2 * n_layers // 3 if auxiliary else -1

        self.stem = stems.build(stem, C_in, C, stem_multiplier)
        self.cells = stems.stack(self.stem, C, n_layers, functools.partial(AugmentCell, genotype))
        if auxiliary:
            cells = self.cells[: self.aux_pos + 1]
            shrinks = self.stem.shrinks * 2 ** sum(cell.reduction for cell in cells)
            size = tuple(-(-side // shrinks) for side in size)
            self.aux_head = AuxiliaryHead(size, cells[-1].C_out, n_classes)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(self.cells[-1].C_out, n_classes)

    def forward(self, X):
        s0, s1 = self.stem(X)  # (N, stem_multiplier * C, H, W) twice, or as in ImageNetStem
        aux_logits = None
        for i, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1)
            if i == self.aux_pos and self.training:
                aux_logits = self.aux_head(s1)
        out = self.gap(s1).flatten(1)
        return self.linear(out), aux_logits

    def drop_path_prob(self, p):
        """Set the drop path probability of every edge to `p`, 0 <= p < 1."""
        for module in self.modules():
            if isinstance(module, StochasticDepth):
                module.p = p


def training_loss(outputs, y, criterion, aux_weight):
    """(loss of the main classifier, loss to train by, which has `aux_weight` times that of the
    auxiliary head beside it; App. A.2).

    outputs  logits and auxiliary logits (N, n_classes), the latter None without a head;  y (N,)
    """
    logits, aux_logits = outputs
    main = criterion(logits, y)
    if aux_logits is None:
        return main, main
    return main, main + aux_weight * criterion(aux_logits, y)


def build(spec, cfg, genotype):
    """The final network for a data set, a named.DataSpec, with the flags of augment.py."""
    return AugmentCNN(
        spec.size, spec.C_in, cfg.init_channels, len(spec.classes), cfg.layers,
        cfg.aux_weight > 0, genotype, cfg.stem_multiplier, stems.pick(cfg.stem, spec.size),
    )  # fmt: skip
