"""The memory layout of maps, and compiled cells."""

import copy
import time

import torch

from devices.pick import autocast


def memory_format(device):
    """The layout of maps that is taken on `device` without a trial: channels last on a CPU, where
    it halves the time of a search step (scripts/benchmark.py), else torch's own order."""
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def pick_layout(choice, net, batch_size, C_in, size, amp="off"):
    """The memory layout of maps, a key of LAYOUTS, for --layout auto|channels_last|contiguous.

    auto: on a CUDA card whichever is faster in a few passes of `net` tried here, since cards, sizes
    and precisions differ; elsewhere that of `memory_format`. `net`, on its device, and the random
    generators stay as they are.
    """
    device = next(net.parameters()).device
    if choice != "auto":
        return choice
    if device.type != "cuda":
        return next(name for name, kind in LAYOUTS.items() if kind == memory_format(device))
    return quickest_layout(net, torch.zeros(batch_size, C_in, *size, device=device), amp)


def quickest_layout(net, X, amp="off", repeats=3):
    """The key of LAYOUTS in which a forward and backward pass of `net` for X takes least time.
    Works on a copy."""

    def seconds(twin, batch):
        start = time.perf_counter()
        with autocast(X.device, amp):
            out = twin(batch)
        logits = out[0] if isinstance(out, tuple) else out
        logits.sum().backward()
        if X.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    times = {}
    with torch.random.fork_rng([X.device] if X.is_cuda else []):
        for name, layout in LAYOUTS.items():
            twin, batch = copy.deepcopy(net).to(memory_format=layout), X.to(memory_format=layout)
            seconds(twin, batch)  # the first pass looks for kernels
            times[name] = min(seconds(twin, batch) for _ in range(repeats))
            del twin
    return min(times, key=times.get)


def compile_cells(cells):
    """torch.compile every cell by itself: the whole net would take far longer and gain little."""
    # cells share their code, and torch counts its variants together: each cell has a few (training
    # and evaluation, with and without autocast), and beyond the limit the rest would run as it is
    for limit in ("recompile_limit", "cache_size_limit"):  # its names in new and in old versions
        if hasattr(torch._dynamo.config, limit):
            value = max(getattr(torch._dynamo.config, limit), 8 * len(cells))
            setattr(torch._dynamo.config, limit, value)
    for cell in cells:
        cell.compile()
