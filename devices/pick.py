"""Choose the device, set it up, and bring batches to it."""

import os
from typing import NamedTuple

import torch

from console.terminal import plural
from devices import processes


class Device(NamedTuple):
    """Where a network runs, in which precision, with whom and how: what always travels together."""

    torch_device: torch.device
    amp: str = "off"  # "bf16": autocast to bfloat16
    group: processes.Alone = processes.ALONE  # the processes that share each batch
    graphs: bool = False  # --cuda_graphs: record steps (devices/cuda_graph.py)

    @property
    def is_cuda(self):
        return self.torch_device.type == "cuda"

    @property
    def name(self):
        """A name for people: the card's, or the kind of device with its threads."""
        name = f"{self.torch_device.type} ({plural(torch.get_num_threads(), 'thread')})"
        if self.is_cuda:
            name = torch.cuda.get_device_name(self.torch_device)
        return f"{self.group.size} processes, {name} each" if self.group.size > 1 else name

    def put(self, batch):
        """X and y of a batch on this device."""
        X, y = batch
        # asynchronous from pinned memory, an ordinary copy from elsewhere. Maps take their layout
        # from the weights: the first convolution turns X into it.
        device = self.torch_device
        return X.to(device, non_blocking=True), y.to(device, non_blocking=True)

    def autocast(self):
        """The context of --amp: "bf16" computes in bfloat16 what tolerates it, "off" nothing.

        Without autocast's cache of weights: it does not notice that the virtual step changes them.
        """
        return torch.autocast(
            self.torch_device.type, torch.bfloat16, enabled=self.amp == "bf16", cache_enabled=False
        )


def prepare_device(cfg):
    """The Device of --device, --gpus and --amp, set up: made current, CPU threads set, cuDNN free
    to look for its fastest kernels unless --deterministic, TF32 allowed or forbidden.

    Raises ValueError when the machine lacks what was asked for.
    """
    group = processes.here()
    device = pick_device(cfg.device, cfg.gpus, group)
    if group.size > 1 and cfg.cuda_graphs:
        raise ValueError("--cuda_graphs is for one process; leave it out")
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    deterministic = getattr(cfg, "deterministic", False)
    set_deterministic(deterministic)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = not deterministic  # it picks by time, so by chance
        torch.backends.cudnn.allow_tf32 = getattr(cfg, "tf32", True)
        torch.backends.cuda.matmul.allow_tf32 = getattr(cfg, "tf32", True)
    group.use(device)
    return Device(device, getattr(cfg, "amp", "off"), group, getattr(cfg, "cuda_graphs", False))


def set_deterministic(on):
    """Only algorithms whose result is the same every time, or any; an op that has none raises
    RuntimeError then."""
    if on:  # cuBLAS reads it once, at its first use
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    if torch.are_deterministic_algorithms_enabled() != on:
        torch.use_deterministic_algorithms(on)


def pick_device(device="auto", gpus=None, group=processes.ALONE):
    """torch.device for --device auto|cuda|mps|cpu and --gpus, the CUDA cards, counted from 0. Each
    process of `group` on this machine gets a card of its own.

    Raises ValueError when the machine lacks what was asked for.
    """
    n_cards = cards()
    if gpus is not None and device in ("cpu", "mps"):
        raise ValueError(f"--gpus {gpus} picks a CUDA card and contradicts --device {device}")
    if gpus is not None or device == "cuda":
        if not n_cards:
            said = "--device cuda" if gpus is None else f"--gpus {gpus}"
            raise ValueError(
                f"{said}: torch sees no CUDA GPU here; take --device cpu, without --gpus"
            )
        return torch.device("cuda", _pick_card(gpus, n_cards, group))
    if device == "mps" and not torch.backends.mps.is_available():
        raise ValueError("torch sees no MPS device (Apple GPU) here; use --device cpu")
    if device == "auto":
        if n_cards:
            return torch.device("cuda", _pick_card(None, n_cards, group))
        alone = group.size == 1  # an Apple GPU is one, and torch.distributed does not know it
        device = "mps" if alone and torch.backends.mps.is_available() else "cpu"
    if device == "mps" and group.size > 1:
        raise ValueError("--device mps is for one process; use --device cpu")
    return torch.device(device)


def _pick_card(gpus, n_cards, group):
    """Index of the card that this process gets."""
    named = named_cards(gpus, n_cards)
    if group.size == 1:
        if gpus is not None and len(named) > 1:
            raise ValueError(f"--gpus {gpus}: this needs one GPU; pick one of 0..{n_cards - 1}")
        return named[0]
    if group.local_size > len(named):
        raise ValueError(
            f"{group.local_size} processes on this machine need a CUDA card each, and there are "
            f"{len(named)}{'' if gpus is None else f' in --gpus {gpus}'}; start fewer, or take "
            f"--device cpu"
        )
    return named[group.local_rank]


def spread_cards(device="auto", gpus=None):
    """The CUDA cards over which --gpus spreads processes that compute by themselves; none where
    they run on another device. Raises ValueError as `pick_device` does."""
    named = named_cards(gpus, cards()) if cards() else []
    one = str(named[0]) if gpus and named else gpus
    return named if pick_device(device, one).type == "cuda" else []


def named_cards(gpus, n_cards):
    """The cards that --gpus names, of `n_cards`: numbers, "all", or None, which is all, too."""
    if gpus in (None, "all"):
        return list(range(n_cards))
    words = gpus.split(",")
    for word in words:
        if not (word.isascii() and word.isdecimal()) or int(word) >= n_cards:
            raise ValueError(f"--gpus {gpus}: no such card; this machine has 0..{n_cards - 1}")
    if len(set(map(int, words))) < len(words):
        raise ValueError(f"--gpus {gpus} names a card twice")
    return [int(word) for word in words]


def cards():
    """CUDA cards that this process sees."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def cores():
    """CPU cores that this process may use; a container may own fewer than there are."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
