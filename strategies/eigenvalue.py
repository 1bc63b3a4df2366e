"""The dominant eigenvalue of the Hessian of L_val in alpha (RobustDARTS, arXiv 1909.09656).

Where it grows, a small change of alpha, such as reading a genotype from it, changes the loss a lot.
"""

import numpy as np
import torch
from torch.utils.data import default_collate

from data_sets import shares
from devices.parts import WHOLE

STEPS, TOLERANCE = 50, 1e-3  # of the power iteration: at most, and the relative change that ends it


def fixed_batch(loader, seed):
    """The same batch of a loader's images at every call, drawn by `seed` from all of them: in the
    order of a folder the first would hold one class alone. In several processes, their shares."""
    images, batches = loader.dataset, loader.batch_sampler
    n = min(batches.batch_size, len(images))
    chosen = np.random.default_rng(seed).permutation(len(images))[:n].tolist()
    return default_collate([images[i] for i in shares.take(chosen, batches.share)])


def dominant_eigenvalue(net, X, y, parts=WHOLE):
    """The eigenvalue of largest magnitude of d2L/dalpha2 at (w, alpha) on one batch, as a float.

    net    as architect.Architect takes it;  X (N, C_in, H, W), y (N,)
    parts  a devices.parts.Parts: X, y are the share of this process; all get the eigenvalue of the
           whole batch. The graph of every part is kept

    Power iteration with exact Hessian-vector products, by double backward. The pass has the
    BatchNorm of training, as that of alpha's step. Statistics, gradients and random generators are
    afterwards what they were.
    """
    alphas = list(net.alphas())
    training, buffers = net.training, [b.clone() for b in net.buffers()]
    with torch.random.fork_rng(devices=[X.device] if X.is_cuda else []):
        try:
            net.train()
            grads = []
            for loss, _ in parts.losses(lambda X, y: (net.criterion(net(X), y), None), X, y):
                found = torch.autograd.grad(loss, alphas, create_graph=True, materialize_grads=True)
                grads.append(torch.cat([g.flatten() for g in found]))
            return _power_iteration(sum(grads), alphas, parts.group)
        finally:
            net.train(training)
            with torch.no_grad():
                for buffer, saved in zip(net.buffers(), buffers, strict=True):
                    buffer.copy_(saved)


def _power_iteration(grad, alphas, group):
    """Of the derivative of the vector `grad` (n,), which has a graph, in the alphas; its sum over
    the processes of `group`."""
    start = torch.randn(grad.numel(), generator=torch.Generator().manual_seed(0))
    v = start.to(grad)
    v, value = v / v.norm(), 0.0
    for _ in range(STEPS):
        parts = torch.autograd.grad(grad, alphas, v, retain_graph=True, materialize_grads=True)
        (product,) = group.sum([torch.cat([p.flatten() for p in parts])])
        before, value = value, torch.dot(v, product).item()
        norm = product.norm()
        if not norm or abs(value - before) <= TOLERANCE * abs(value):
            break
        v = product / norm
    return value
