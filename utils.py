"""Small helpers of both scripts: seed, device, metrics, counts, checkpoints, errors."""

import copy
import functools
import os
import random
import shlex
import shutil
import sys
import time
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from records.files import atomic

# --- reproducibility and devices ----------------------------------------------------------------


def seed_everything(seed):
    """Seed Python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002, blocks that users bring may draw from it
    torch.manual_seed(seed)


def rng_state():
    """The state of every random generator, in types that torch.load(weights_only=True) reads."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    state = {
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), *rest],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state):
    """Put every generator back to where `rng_state` saw it."""
    random.setstate(state["python"])
    np.random.set_state(tuple(state["numpy"]))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


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
            with autocast(device, amp):
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


def save_checkpoint(state, path):
    """Write `state` to `path` in one piece: a reader finds the old file or the new one."""
    with atomic(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path):
    """Read a checkpoint onto the CPU. Raises ValueError if the file is not one of ours."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # whatever torch says of a broken file
        raise ValueError(f"{path} is no checkpoint ({str(error).splitlines()[0]})") from None
    if not isinstance(state, dict) or "model" not in state or "flags" not in state:
        raise ValueError(f"{path} is no checkpoint of search.py or augment.py")
    return state


def load_state(part, state, path):
    """Give `part` the state read from `path`. Raises ValueError if it does not fit."""
    try:
        part.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path} does not fit the network any more; was a block changed? ({reason[:200]})"
        ) from None


# --- what people read ---------------------------------------------------------------------------


def command(script, *words):
    """The shell command that runs a script of this repository with this Python from here."""
    here = os.path.dirname(os.path.abspath(__file__))
    path = os.path.relpath(os.path.join(here, script))
    # by folder, not by file: the pythons of two virtual environments may be links to one file
    found = os.path.dirname(os.path.abspath(shutil.which("python") or ""))
    same = found == os.path.dirname(os.path.abspath(sys.executable))
    return shlex.join(["python" if same else sys.executable, path, *words])


# --- errors that people meet --------------------------------------------------------------------


@contextmanager
def usage_errors(prog):
    """Around the set-up: what the user can correct ends as one line. Wrong input: exit code 2."""
    try:
        yield
    except ValueError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except OSError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        raise SystemExit(1) from error


@contextmanager
def run_errors(prog, run=None):
    """Around the run: a full disk or GPU, a diverged loss or Ctrl-C ends as one line, exit code 1
    (130 for Ctrl-C). Finished epochs are on disk by then."""
    try:
        yield
    except KeyboardInterrupt:
        if run is not None and run.has_checkpoint():
            again = command(prog, "--name", run.name, "--resume")
            go_on = f"; go on after the last finished epoch with\n{again}"
        else:
            go_on = " before an epoch was finished; start again, with --overwrite to keep the name"
        print(f"\n{prog}: interrupted{go_on}", file=sys.stderr)
        raise SystemExit(130) from None
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        print(
            f"{prog}: out of GPU memory; lower --batch_size, --init_channels or --layers. {reason}",
            file=sys.stderr,
        )
        raise SystemExit(1) from error
    except (FloatingPointError, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        raise SystemExit(1) from error
