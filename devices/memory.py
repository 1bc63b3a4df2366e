"""How much memory there is."""

import os

import torch


def available(device):
    """Bytes of memory of a pick.Device, None where that is unknown: of a CUDA card its own, of a
    CPU or an Apple GPU what this process may use."""
    if device.is_cuda:
        return torch.cuda.mem_get_info(device.torch_device)[1]
    return host()


def host():
    """Bytes that this process may use: the memory of the machine, or less where a container or
    `ulimit -v` says so, and swap. None where nobody says, as on Windows."""
    try:
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
    files = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
    limits = [n for n in map(_number, files) if n]
    limit = min([physical, *limits]) + _swap()
    import resource  # absent where sysconf is

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return limit if soft == resource.RLIM_INFINITY else min(limit, soft)


def _number(path):
    """The number that a file holds, 0 for a word or no file."""
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def _swap():
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return 1024 * int(lines["SwapTotal"].split()[0])
    except (OSError, ValueError, KeyError):
        return 0
