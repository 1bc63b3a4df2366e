"""What both training loops need: seed, means, loss, evaluation, the size of a network."""

import copy
import functools
import random
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from devices.parts import Parts
from devices.step_guard import NotFinite


def seed_everything(seed):
    """Seed Python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002, blocks that users bring may draw from it
    torch.manual_seed(seed)


def endless(loader):
    """The batches of `loader` over and over; each pass is shuffled anew if the loader shuffles."""
    while True:
        yield from loader


# --- loss and metrics ---------------------------------------------------------------------------


def criterion(cfg, class_counts, device):
    """Cross-entropy (logits (N, n_classes), y (N,)) -> mean loss, as --label_smoothing and
    --class_weights ask for it. `class_counts` are the training images of each class.

    With "balanced", class c weighs N / (n_classes * class_counts[c]), N images in all: the classes
    have the same say, and the mean weight over the images is 1.
    """
    if cfg.class_weights == "none" and not cfg.label_smoothing:
        return F.cross_entropy
    weight = None
    if cfg.class_weights == "balanced":
        counts = torch.tensor(class_counts, dtype=torch.float32).clamp_min(1)
        weight = (counts.sum() / (len(counts) * counts)).to(device.torch_device)
    return functools.partial(F.cross_entropy, weight=weight, label_smoothing=cfg.label_smoothing)


def parts(cfg, device, criterion):
    """How each batch of a run is divided: the devices.parts.Parts of --accumulate, the processes of
    a pick.Device and the class weights of `criterion`."""
    class_weight = getattr(criterion, "keywords", {}).get("weight")
    return Parts(cfg.accumulate, device.group, class_weight)


def passes(net, device):
    """compute(X, y) -> (loss, logits) of a supernet, for a devices.parts.Parts: a pass in the
    precision of the pick.Device."""

    def compute(X, y):
        with device.autocast():
            logits = net(X)  # (N, n_classes)
            return net.criterion(logits, y), logits

    return compute


def hits(logits, y, topk=(1, 5)):
    """How many samples have their class among the k best logits, one 0-dim tensor per k.

    logits (N, n_classes), y (N,). With fewer than k classes, k is the number of classes.
    """
    _, ranked = logits.topk(min(max(topk), logits.size(1)), dim=1)  # (N, max k)
    correct = ranked.eq(y.unsqueeze(1))
    return [correct[:, :k].sum() for k in topk]


class Meter:
    """Means of loss, top-1 and top-5 over all samples seen. The sums stay on the device, so adding
    never waits for it; `means` does.

    Each process adds its own samples, and all get the means over those of all: what reads the sums
    has to be called in all of them.

    what   what is measured, for the error: "validation loss"
    guard  a StepGuard of the same steps, whose counts are read with the sums
    """

    def __init__(self, device, what="loss", guard=None):
        # loss, top1, top5, images; batches whose loss was not finite, which are in no mean
        self.sums = torch.zeros(5, device=device.torch_device)
        self.what, self.guard, self.group = what, guard, device.group
        self.start = time.perf_counter()

    def restart(self):
        """Begin anew, in the same memory: a recorded step adds to it."""
        self.sums.zero_()
        self.start = time.perf_counter()

    def add(self, loss, logits, y):
        """Add a batch: its mean loss, logits (N, n_classes) and y (N,)."""
        loss = loss.detach()
        row = torch.stack([loss * len(y), *hits(logits.detach(), y), torch.full_like(loss, len(y))])
        ok = torch.isfinite(loss)
        self.sums[:4] += torch.where(ok, row, 0)
        self.sums[4] += ~ok

    def _all(self):
        """The sums of all processes."""
        return self.group.sum([self.sums])[0]

    def state_dict(self):
        seconds = time.perf_counter() - self.start
        state = {"sums": self._all().clone().cpu(), "seconds": seconds}
        return state if self.guard is None else {**state, "guard": self.guard.state_dict()}

    def load_state_dict(self, state):
        if self.group.is_main:  # which has all
            self.sums.copy_(state["sums"])
        self.start = time.perf_counter() - state["seconds"]
        if self.guard is not None:
            self.guard.load_state_dict(state["guard"])

    def means(self):
        """{"loss", "top1", "top5"} as floats, NaN before the first image. Raises NotFinite, a
        FloatingPointError, for what is not finite, unless the guard skips it."""
        return self._read()[0]

    def _read(self):
        """(means, images)"""
        sums, counts = self._all(), ()
        if self.guard is not None:  # one wait for both
            sums = torch.cat([sums, self.guard.counts.flatten().to(sums.dtype)])
        loss, top1, top5, n, bad, *counts = sums.tolist()
        if counts:
            half = len(counts) // 2
            self.guard.check((counts[:half], [int(step) for step in counts[half:]]))
        if bad and not (counts and self.guard.skip):
            raise NotFinite(f"the {self.what}")
        found = {"loss": loss, "top1": top1, "top5": top5}
        return {name: value / n if n else np.nan for name, value in found.items()}, n

    def result(self):
        """`means` with "seconds" since the meter was made and "images_per_second"; with a guard
        that skips also "left_out", how many updates were. Raises NotFinite if all of w were."""
        means, n = self._read()  # first: it waits for the device
        seconds = time.perf_counter() - self.start
        result = {**means, "seconds": seconds, "images_per_second": n / max(seconds, 1e-9)}
        if self.guard is not None and self.guard.skip:
            result["left_out"] = self.guard.left_out()
        return result


class Answers:
    """What a network answers image by image, in the order of the loader."""

    def __init__(self):
        self._batches = []

    def add(self, logits, y):
        """Add a batch: logits (N, n_classes) and y (N,), which stay on the device."""
        probability, predicted = logits.softmax(dim=1).max(dim=1)
        self._batches.append(torch.stack([y.float(), predicted.float(), probability.float()]))

    def gather(self, group):
        """Put in what the other processes have added, each its share of every batch."""
        if group.size > 1:
            all_shares = group.gather([batch.cpu() for batch in self._batches])
            self._batches = [_whole(shares) for shares in zip(*all_shares, strict=True)]

    def lists(self):
        """(classes, predicted classes, probabilities of these), one entry per image."""
        classes, predicted, probability = torch.cat(self._batches, dim=1).cpu()
        return classes.int().tolist(), predicted.int().tolist(), probability.tolist()


def _whole(shares):
    """A batch (3, N) from the shares of all processes: that of number r has every size-th image
    from r on (data_sets/shares.py)."""
    batch = shares[0].new_empty(len(shares[0]), sum(part.size(1) for part in shares))
    for rank, part in enumerate(shares):
        batch[:, rank :: len(shares)] = part
    return batch


def evaluate(forward, loader, device, answers=None):
    """Plain cross-entropy and accuracy over `loader`, without gradients; see `Meter.result`.

    forward  images (N, C_in, H, W) -> logits (N, n_classes). The caller sets the evaluation mode.
    answers  an Answers that gets every batch
    """
    meter = Meter(device, "validation loss")
    with torch.no_grad():
        for batch in loader:
            X, y = device.put(batch)
            with device.autocast():
                logits = forward(X)
            logits = logits.float()
            meter.add(F.cross_entropy(logits, y), logits, y)
            if answers is not None:
                answers.add(logits, y)
    if answers is not None:
        answers.gather(device.group)
    return meter.result()


SETTLED = 0.02  # what the statistics of a BatchNorm may still have of their first values at the end


def settle_norms(net, n_steps):
    """Give every BatchNorm of `net` so much momentum that its running statistics have forgotten
    their first values, 0 and 1, after `n_steps` steps. With torch's 0.1 that takes 38: a network
    that is trained for fewer would be scored by statistics that are not its own."""
    least = 1 - SETTLED ** (1 / max(n_steps, 1))
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.momentum is not None:
            module.momentum = max(module.momentum, least)


# --- the size of a network ----------------------------------------------------------------------


def count_params(net, auxiliary=True):
    """Number of learned values; with auxiliary=False, without the auxiliary head.

    The same for a network and for a wrapper around it.
    """
    return sum(
        parameter.numel()
        for name, parameter in net.named_parameters()
        if auxiliary or "aux_head" not in name.split(".")
    )


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


def network_size(net, spec, cfg):
    """The size of a final network for the records of a run: parameters without the auxiliary head,
    multiply-adds for an image of `spec`, a DataSpec, and its shape by the flags of augment.py."""
    return {
        "params": count_params(net, auxiliary=False),
        "madds": multiply_adds(net, spec.C_in, spec.size),
        "size": list(spec.size),
        "layers": cfg.layers,
        "channels": cfg.init_channels,
    }


def describe_size(size):
    """A `network_size` in words."""
    H, W = size["size"]
    return (
        f"{size['layers']} cells, {size['channels']} channels: {size['params'] / 1e6:.3f} M params "
        f"({size['params']:,}) without the auxiliary head, {size['madds'] / 1e6:.1f} M "
        f"multiply-adds for an image of {H}x{W}"
    )
