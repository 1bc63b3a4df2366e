"""Choose the device and set it up."""

import os

import torch


def pick_device(device="auto", gpus=None):
    """torch.device for --device auto|cuda|mps|cpu and --gpus N (the CUDA card, counted from 0).

    Raises ValueError when the machine lacks what was asked for.
    """
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus is not None and device in ("cpu", "mps"):
        raise ValueError(f"--gpus {gpus} picks a CUDA card and contradicts --device {device}")
    if gpus is not None or device == "cuda":
        if not cards:
            raise ValueError("torch sees no CUDA GPU here; use --device cpu, without --gpus")
        return torch.device("cuda", _pick_card(gpus, cards))
    if device == "mps" and not torch.backends.mps.is_available():
        raise ValueError("torch sees no MPS device (Apple GPU) here; use --device cpu")
    if device == "auto":
        if cards:
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    return torch.device(device)


def _pick_card(gpus, cards):
    """Index of the one card that --gpus names: a number, or "all" where there is just one."""
    if gpus is None or (gpus == "all" and cards == 1):
        return 0
    if gpus == "all" or "," in gpus:
        raise ValueError(f"--gpus {gpus}: a run uses one GPU; pick one of 0..{cards - 1}")
    if not gpus.isdigit() or int(gpus) >= cards:
        raise ValueError(f"--gpus {gpus}: no such card; this machine has 0..{cards - 1}")
    return int(gpus)


def prepare_device(device, threads=None, tf32=True):
    """Make `device` current, let cuDNN look for its fastest kernels, allow TF32 or forbid it, set
    the CPU threads."""
    if threads is not None:
        torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cuda.matmul.allow_tf32 = tf32


def cores():
    """CPU cores that this process may use; a container may own fewer than there are."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def autocast(device, amp):
    """The context of --amp: "bf16" computes in bfloat16 what tolerates it, "off" nothing.

    Without autocast's cache of weights: it does not notice that the virtual step changes them.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=amp == "bf16", cache_enabled=False)


def device_name(device):
    """A name for people: the card's, or the kind of device with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"
