"""How one batch passes through a network: in parts, and in several processes.

The loss of a batch is a mean over its images. Each part's loss is scaled by what the part weighs in
the whole batch, that of all processes, so that gradients add up to the gradient of the whole.
"""

import torch

from devices.processes import ALONE


class Parts:
    """
    n              parts that a process passes one after the other (gradient accumulation): as many
                   times less memory for maps
    group          the processes, each of which has a share of every batch
    class_weight   (n_classes,) of the loss, by which a part weighs; None: by its images
    """

    def __init__(self, n=1, group=ALONE, class_weight=None):
        self.n, self.group, self.class_weight = n, group, class_weight

    def split(self, X, y):
        """[(weight, X, y)] of the parts. The weights, 0-dim, of all parts in all processes add up
        to 1; None is 1.

        X  (N, ...), y (N,): the share of this process
        """
        if self.n == 1 and self.group.size == 1:
            return [(None, X, y)]
        parts = list(zip(X.tensor_split(self.n), y.tensor_split(self.n), strict=True))
        weights = torch.stack([self._weigh(part) for _, part in parts])
        (total,) = self.group.sum([weights.sum()])
        return [(w, *part) for w, part in zip(weights / total, parts, strict=True)]

    def _weigh(self, y):
        dtype = torch.float32 if y.device.type == "mps" else torch.float64  # which mps lacks
        if self.class_weight is not None:
            return self.class_weight[y].to(dtype).sum()
        return torch.full((), len(y), dtype=dtype, device=y.device)

    def losses(self, compute, X, y):
        """Yield what compute(X, y) gives for each part, with its losses scaled by its weight; see
        `gradient`."""
        for weight, part_X, part_y in self.split(X, y):
            loss, logits, *others = compute(part_X, part_y)
            if weight is not None:
                loss, *others = (value * weight.to(value.dtype) for value in (loss, *others))
            yield loss, logits, *others

    def gradient(self, compute, X, y, inputs):
        """(loss of the whole batch, logits of this process's share, gradient for `inputs`), the
        same loss and gradient in all processes; None for what the loss does not reach.

        compute  (X, y) -> (mean loss, logits (N, n_classes)); it may give further losses behind
        """
        passed, total = [], None
        for loss, *rest in self.losses(compute, X, y):
            grads = torch.autograd.grad(loss, inputs, allow_unused=True)
            total = _added(total, grads)
            passed.append(_detached(loss, *rest))
        (loss, logits), grads = self._together(passed, total)
        return loss, logits, grads

    def backward(self, compute, X, y, weights):
        """Write the gradient of the whole batch into .grad of `weights`, which must be empty or
        zero. Returns what `compute` gives, (loss, logits, ...), losses of the whole batch."""
        passed = []
        for loss, *rest in self.losses(compute, X, y):
            loss.backward()
            passed.append(_detached(loss, *rest))
        passed, grads = self._together(passed, [w.grad for w in weights])
        if self.group.size > 1:
            for w, grad in zip(weights, grads, strict=True):
                if grad is not None:
                    w.grad.copy_(grad)
        return passed

    def _together(self, passed, grads):
        """((loss, logits, ...), gradients): logits joined over the parts, the rest summed over
        parts and processes."""
        loss, logits, *others = zip(*passed, strict=True)
        losses = [sum(values[1:], values[0]) for values in (loss, *others)]
        found = [g for g in grads if g is not None]
        summed = self.group.sum([*losses, *found])
        losses, found = summed[: len(losses)], iter(summed[len(losses) :])
        logits = logits[0] if len(logits) == 1 else torch.cat(logits)
        return (losses[0], logits, *losses[1:]), [None if g is None else next(found) for g in grads]


def _detached(*tensors):
    return [tensor.detach() for tensor in tensors]


def _added(total, grads):
    """Two lists of gradients added, the first None at the start; a gradient None is none."""
    if total is None:
        return grads
    return [
        b if a is None else a if b is None else a + b for a, b in zip(total, grads, strict=True)
    ]


WHOLE = Parts()
