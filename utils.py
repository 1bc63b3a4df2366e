"""Small helpers of both scripts: seed, device, metrics, counts, checkpoints, errors."""

import copy
import functools
import random
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from devices import pick

# --- reproducibility and devices ----------------------------------------------------------------


def seed_everything(seed):
    """Seed Python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002, blocks that users bring may draw from it
    torch.manual_seed(seed)


# --- batches and metrics ------------------------------------------------------------------------


def to_device(batch, device):
    """X and y of a batch on `device`."""
    X, y = batch
    # asynchronous from pinned memory, an ordinary copy from elsewhere. Maps take their layout from
    # the weights: the first convolution turns X into it.
    return X.to(device, non_blocking=True), y.to(device, non_blocking=True)


def endless(loader):
    """The batches of `loader` over and over; each pass is shuffled anew if the loader shuffles."""
    while True:
        yield from loader


def accuracy(logits, y, topk=(1, 5)):
    """Shares of samples whose class is among the k best logits, one 0-dim tensor per k.

    logits (N, n_classes), y (N,). With fewer than k classes, k is the number of classes.
    """
    return [hits / len(y) for hits in _hits(logits, y, topk)]


def _hits(logits, y, topk):
    n_classes = logits.size(1)
    _, ranked = logits.topk(min(max(topk), n_classes), dim=1)  # (N, max k)
    correct = ranked.eq(y.unsqueeze(1))
    return [correct[:, :k].sum() for k in topk]


class Meter:
    """Means of loss, top-1 and top-5 over all samples seen. The sums stay on the device, so adding
    never waits for it; `means` does."""

    def __init__(self, device):
        self.sums = torch.zeros(3, device=device)
        self.n = 0
        self.start = time.time()

    def add(self, loss, logits, y):
        """Add a batch: its mean loss, logits (N, n_classes) and y (N,)."""
        self.sums += torch.stack([loss.detach() * len(y), *_hits(logits.detach(), y, (1, 5))])
        self.n += len(y)

    def means(self):
        """{"loss", "top1", "top5"} as floats. Raises FloatingPointError for a loss that is not
        finite."""
        loss, top1, top5 = (self.sums / max(self.n, 1)).tolist()
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss}; lower the learning rate or clip harder and start again"
            )
        return {"loss": loss, "top1": top1, "top5": top5}

    def result(self):
        """`means` with "seconds" since the meter was made and "images_per_second"."""
        means = self.means()  # first: it waits for the device
        seconds = time.time() - self.start
        return {**means, "seconds": seconds, "images_per_second": self.n / seconds}


def criterion(label_smoothing=0.0, class_weights="none", class_counts=(), device=None):
    """Cross-entropy (logits (N, n_classes), y (N,)) -> mean loss, as --label_smoothing and
    --class_weights ask for it.

    With "balanced", class c weighs N / (n_classes * class_counts[c]), N images in all: the classes
    have the same say, and the mean weight over the images is 1.
    """
    if class_weights == "none" and not label_smoothing:
        return F.cross_entropy
    weight = None
    if class_weights == "balanced":
        counts = torch.tensor(class_counts, dtype=torch.float32).clamp_min(1)
        weight = (counts.sum() / (len(counts) * counts)).to(device)
    return functools.partial(F.cross_entropy, weight=weight, label_smoothing=label_smoothing)


def evaluate(forward, loader, criterion, device, amp="off"):
    """Means of `criterion` and accuracy over `loader`, without gradients; see `Meter.result`.

    forward (N, C_in, H, W) -> logits (N, n_classes). The caller sets the evaluation mode.
    """
    meter = Meter(device)
    with torch.no_grad():
        for batch in loader:
            X, y = to_device(batch, device)
            with pick.autocast(device, amp):
                logits = forward(X)
            logits = logits.float()
            meter.add(criterion(logits, y), logits, y)
    return meter.result()


# --- counts -------------------------------------------------------------------------------------


def count_params(net, auxiliary=True):
    """Number of learned values; with auxiliary=False, without the auxiliary head.

    The same for a network and for a wrapper around it.
    """
    return sum(
        parameter.numel()
        for name, parameter in net.named_parameters()
        if auxiliary or "aux_head" not in name.split(".")
    )


def network_facts(net, spec, cfg):
    """What a run notes of its final network: parameters without the auxiliary head, multiply-adds
    for an image of the data set (a named.DataSpec), and its shape by the flags of augment.py."""
    return {
        "params": count_params(net, auxiliary=False),
        "madds": multiply_adds(net, spec.C_in, spec.size),
        "size": list(spec.size), "layers": cfg.layers, "channels": cfg.init_channels,
    }  # fmt: skip


def param_size(net):
    """Millions of parameters (1e6), without the auxiliary head."""
    return count_params(net, auxiliary=False) / 1e6


def multiply_adds(net, C_in, size):
    """Multiply-adds of convolutions and linear layers for one image of `size` (H, W), evaluation
    mode. `net` is left as it is."""
    twin = copy.deepcopy(net).eval()

    def count(device):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            twin.to(device)(torch.zeros(1, C_in, *size, device=device))
        return counter.get_total_flops() // 2  # torch counts a multiply-add as two

    try:
        # on the meta device: shapes alone, and no device's own way of computing an op is counted
        return count("meta")
    except RuntimeError:  # a block that reads values
        twin = copy.deepcopy(net).eval()
        return count("cpu")


# --- files --------------------------------------------------------------------------------------


# --- what people read ---------------------------------------------------------------------------


# --- errors that people meet --------------------------------------------------------------------
