"""How the network lies in memory, and compiled cells."""

import copy
import time

import torch
from tqdm import tqdm

from console import errors

LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def place(net, device, data, cfg):
    """Put `net` on its device, in the memory layout of --layout, its cells compiled if --compile
    says so. Returns the layout, a key of LAYOUTS, of several processes that of the first. `device`
    is a pick.Device, `data` a loaders.Data.
    """
    net.to(device.torch_device)
    at_once = max(data.batch_size // (device.group.size * cfg.accumulate), 1)
    shape = (at_once, data.spec.C_in, *data.spec.size)
    # a choice by time, which may fall out otherwise in each of several processes: norms of
    # gradients in another layout are summed in another order, and weights would drift apart
    layout = device.group.from_main(lambda: pick_layout(cfg.layout, net, shape, device, cfg.quiet))
    net.to(memory_format=LAYOUTS[layout])
    if cfg.compile:
        require_compiler(device)
        compile_cells(net.cells)
    return layout


def require_compiler(device):
    """Raise ValueError where a CPU lacks the compiler that --compile needs. On a GPU the first step
    finds that out."""
    if device.torch_device.type != "cpu":
        return
    from torch._inductor.cpp_builder import get_cpp_compiler  # here, since it takes a second

    try:
        get_cpp_compiler()
    except Exception as error:
        raise ValueError(f"{errors.NO_COMPILER} ({errors.one_line(error, 120)})") from error


def default_layout(device):
    """The layout without a trial: channels last on a CPU, where it halves the time of a search step
    (scripts/benchmark.py), else torch's own order."""
    return "channels_last" if device.torch_device.type == "cpu" else "contiguous"


def pick_layout(choice, net, shape, device, quiet=False):
    """The key of LAYOUTS for --layout auto|channels_last|contiguous.

    auto: on a CUDA card whichever is faster in a few passes of `net` over images of `shape`
    (N, C_in, H, W) tried here, since cards, sizes and precisions differ; elsewhere, and with
    --deterministic, `default_layout`. `net`, on its device, and the random generators stay as they
    are.
    """
    if choice != "auto":
        return choice
    if not device.is_cuda or torch.are_deterministic_algorithms_enabled():
        return default_layout(device)
    return quickest_layout(net, torch.zeros(shape, device=device.torch_device), device, quiet)


def quickest_layout(net, X, device, quiet=False, repeats=3):
    """The key of LAYOUTS in which a forward and backward pass of `net` for X takes least time.
    Works on a copy."""

    def seconds(twin, batch):
        start = time.perf_counter()
        with device.autocast():
            out = twin(batch)
        logits = out[0] if isinstance(out, tuple) else out
        logits.sum().backward()
        if X.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    times = {}
    with torch.random.fork_rng([X.device] if X.is_cuda else []):
        # a large network takes long here, before the run has said anything
        off = quiet or None  # None: where there is no terminal
        for name, layout in tqdm(LAYOUTS.items(), "memory layouts", disable=off, leave=False):
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
