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
        """Yield (loss, logits) of each part, the loss scaled by its weight; see `gradient`."""
        for weight, part_X, part_y in self.split(X, y):
            loss, logits = compute(part_X, part_y)
            yield (loss if weight is None else loss * weight.to(loss.dtype)), logits

    def gradient(self, compute, X, y, inputs):
        """(loss of the whole batch, logits of this process's share, gradient for `inputs`), the
        same loss and gradient in all processes; None for what the loss does not reach.

        compute  (X, y) -> (mean loss, logits (N, n_classes))
        """
        losses, logits, total = [], [], None
        for loss, out in self.losses(compute, X, y):
            grads = torch.autograd.grad(loss, inputs, allow_unused=True)
            total = _added(total, grads)
            losses.append(loss.detach())
            logits.append(out.detach())
        loss, grads = self._together(losses, total)
        return loss, _joined(logits), grads

    def backward(self, compute, X, y, weights):
        """Write the gradient of the whole batch into .grad of `weights`, which must be empty or
        zero. Returns (loss, logits) as `gradient`."""
        losses, logits = [], []
        for loss, out in self.losses(compute, X, y):
            loss.backward()
            losses.append(loss.detach())
            logits.append(out.detach())
        loss, grads = self._together(losses, [w.grad for w in weights])
        if self.group.size > 1:
            for w, grad in zip(weights, grads, strict=True):
                if grad is not None:
                    w.grad.copy_(grad)
        return loss, _joined(logits)

    def _together(self, losses, grads):
        """(loss, gradients) summed over parts and processes."""
        loss = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        found = [g for g in grads if g is not None]
        loss, *found = self.group.sum([loss, *found])
        found = iter(found)
        return loss, [None if g is None else next(found) for g in grads]


def _added(total, grads):
    """Two lists of gradients added, the first None at the start; a gradient None is none."""
    if total is None:
        return grads
    return [b if a is None else a if b is None else a + b for a, b in zip(total, grads, strict=True)]


def _joined(tensors):
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


WHOLE = Parts()
