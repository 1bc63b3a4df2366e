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

from devices import pick
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
            with pick.autocast(device, amp):
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
