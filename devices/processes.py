"""Several processes that do one search or training together, on torch.distributed.

torchrun starts them and tells each its number by the environment. Tensors on a CUDA card go through
NCCL, all else through gloo. What goes wrong between them raises `Lost`, within --dist_timeout.
"""

import os
import socket
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from console.errors import one_line
from console.terminal import plural


class Lost(ConnectionError):
    """Another process has ended, or does not answer: nothing can be computed together any more."""


class Alone:
    """One process, which is all there is: nothing is sent, nothing is waited for.

    rank, size              its number, counted from 0, and how many there are
    local_rank, local_size  the same on its machine
    bytes                   of tensors that were summed, counted once
    """

    rank, size, local_rank, local_size, bytes = 0, 1, 0, 1, 0

    @property
    def restarts(self):
        """How often torchrun has started them anew."""
        return _whole("TORCHELASTIC_RESTART_COUNT", 0)

    @property
    def is_main(self):
        """Whether it is the first, the one that speaks and writes."""
        return self.rank == 0

    def sum(self, tensors):
        """The sums over all processes of each of a list of tensors, bit for bit the same in all."""
        return tensors

    def most(self, *numbers):
        """The largest over all processes of each of these whole numbers."""
        return numbers

    def gather(self, value):
        """The values of all processes, a list by rank."""
        return [value]

    def from_main(self, make):
        """make() of the first process, for all. A ValueError or SystemExit there is raised in
        all."""
        return make()

    def one_by_one(self, make):
        """make() in each process, in the first of each machine before the others: what it
        downloads or caches is there for them. The first ValueError is raised in all."""
        return make()

    def require_same(self, value, text, error=ValueError):
        """Raise `error`, `text` with the number of a process behind it, where the values of the
        processes differ."""

    def average_buffers(self, net):
        """Give the buffers of `net`, such as running statistics of BatchNorm, the mean over all
        processes, bit for bit the same in all."""

    def use(self, device):
        """From here on tensors lie on this torch.device."""

    def close(self):
        """Leave the group."""


class Processes(Alone):
    """`Alone` with others. All of them must call the same methods in the same order."""

    def __init__(self, rank, size, local_rank, local_size, minutes):
        self.rank, self.size, self.minutes = rank, size, minutes
        self.local_rank, self.local_size = local_rank, local_size
        self._tensors = None  # the group of NCCL; gloo's is the default one

    def sum(self, tensors):
        found = list(tensors)
        for dtype in {tensor.dtype: None for tensor in found}:  # one flat call for each
            which = [i for i, tensor in enumerate(found) if tensor.dtype == dtype]
            flat = torch.cat([found[i].detach().reshape(-1) for i in which])
            with self._heard():
                dist.all_reduce(flat, group=self._tensors)
            self.bytes += flat.numel() * flat.element_size()
            parts = flat.split([found[i].numel() for i in which])
            for i, part in zip(which, parts, strict=True):
                found[i] = part.view(found[i].shape)
        return found

    def most(self, *numbers):
        tensor = torch.tensor(numbers, dtype=torch.int64)
        with self._heard():
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()

    def gather(self, value):
        values = [None] * self.size
        with self._heard():
            dist.all_gather_object(values, value)
        return values

    def from_main(self, make):
        box = [_attempt(make) if self.is_main else None]
        with self._heard():
            dist.broadcast_object_list(box)
        result, error = box[0]
        if error is not None:
            raise error
        return result

    def one_by_one(self, make):
        result = error = None
        for first in (True, False):
            if (self.local_rank == 0) == first:
                result, error = _attempt(make)
            found = [e for e in self.gather(error) if e is not None]
            if found:
                raise found[0]
        return result

    @torch.no_grad()
    def average_buffers(self, net):
        buffers = [buffer for buffer in net.buffers() if buffer.is_floating_point()]
        for buffer, total in zip(buffers, self.sum(buffers), strict=True):
            buffer.copy_(total / self.size)

    def require_same(self, value, text, error=ValueError):
        values = self.gather(value)
        other = next((rank for rank, v in enumerate(values) if v != values[0]), None)
        if other is not None:
            raise error(f"{text} (process {other} of 0 to {self.size - 1} differs from 0)")

    def use(self, device):
        if device.type == "cuda":
            # gloo notices first, and in one line: NCCL would abort the process
            timeout = timedelta(minutes=2 * self.minutes)
            self._tensors = dist.new_group(backend="nccl", timeout=timeout)

    def close(self):
        global _here
        _here = ALONE
        dist.destroy_process_group()

    @contextmanager
    def _heard(self):
        """Raise Lost where the others are not there any more."""
        try:
            yield
        except RuntimeError as error:
            if _timed_out(str(error)):
                text = (
                    f"another of the {self.size} processes has not answered for "
                    f"{plural(self.minutes, 'minute')} (--dist_timeout)"
                )
            else:
                text = f"another of the {self.size} processes has ended"
                if isinstance(error, dist.DistBackendError):  # NCCL, which has many reasons
                    text += f", or NCCL cannot reach it ({one_line(error, 500)})"
            raise Lost(text) from error


def _timed_out(text):
    """Whether an error of torch.distributed says so, in one of its ways."""
    return "imed out" in text or "imeout" in text


def _attempt(make):
    """(make(), None), or (None, the error that is to end all processes)."""
    try:
        return make(), None
    except (ValueError, SystemExit) as error:
        error.__traceback__ = None
        return None, error


ALONE = Alone()
_here = ALONE  # as torch.distributed has one default group


def here():
    """The group that this process has joined."""
    return _here


def start_of_all():
    """Which start of torchrun this is, the same after its restarts; "" without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ""
    words = (os.environ["TORCHELASTIC_RUN_ID"], str(os.getppid()), socket.gethostname())
    return " ".join(words)


def under_torchrun():
    """Whether torchrun has started this process."""
    return "RANK" in os.environ


def refuse_torchrun(what):
    """Raise ValueError where torchrun has started what starts processes itself."""
    if under_torchrun():
        raise ValueError(
            f"{what} starts a process for each of its runs itself; start it without torchrun"
        )


def _whole(name, missing=None):
    """A number from the environment. Raises ValueError for what is none."""
    text = os.environ.get(name)
    if text is None and missing is not None:
        return missing
    try:
        value = int(text)
    except (TypeError, ValueError):
        value = -1
    if value < 0:
        what = "is missing" if text is None else f"is {text!r}, which is no number"
        raise ValueError(
            f"{name} {what} in the environment, and WORLD_SIZE says that there are several "
            f"processes; start them with torchrun, or unset WORLD_SIZE"
        )
    return value


def join(cfg):
    """The group of this process, by the environment that torchrun makes; `Alone` without it.

    cfg  a config.SearchConfig or AugmentConfig. Its flags must be the same in all processes

    Raises ValueError for an environment that does not fit, for others that do not come within
    --dist_timeout, and for flags that differ.
    """
    global _here
    size = _whole("WORLD_SIZE", 1) if under_torchrun() else 1
    if size <= 1:
        return ALONE
    rank, minutes = _whole("RANK"), cfg.dist_timeout
    local = _whole("LOCAL_RANK", 0), _whole("LOCAL_WORLD_SIZE", 1)
    if rank >= size:
        raise ValueError(f"RANK {rank} of WORLD_SIZE {size}: they count from 0 to {size - 1}")
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        wait = timedelta(minutes=minutes)
        store = _store(rank, size, wait)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=wait)
        group = Processes(rank, size, *local, minutes)
    except (RuntimeError, ValueError) as error:
        raise ValueError(_no_group(one_line(error), where, size, minutes)) from error
    _here = group
    said = {name: repr(value) for name, value in cfg.said.items()}
    try:
        _require_same_flags(group.gather(said))
    except ValueError:
        group.close()  # threads of a group that nobody has left may abort the exit of Python
        raise
    return group


def _store(rank, size, wait):
    """Where the processes find each other's addresses. torchrun keeps it over a restart: under the
    same names those of the processes that have ended could be found, and waited for."""
    store, *_ = next(dist.rendezvous("env://", rank, size, timeout=wait))
    store.set_timeout(wait)
    return dist.PrefixStore(f"start {ALONE.restarts}", store)


def _no_group(text, where, size, minutes):
    """Why the processes did not come together."""
    if "EADDRINUSE" in text or "ddress already in use" in text:
        return f"{where} is in use by another program; give torchrun another --master_port"
    if _timed_out(text):
        return (
            f"not all of the {size} processes came to {where} within {plural(minutes, 'minute')}; "
            f"start as many as WORLD_SIZE says, or allow more --dist_timeout"
        )
    return f"the {size} processes do not come together at {where} ({text})"


def _require_same_flags(said):
    """`said` has {flag: value as text} of each process."""
    for rank, flags in enumerate(said):
        for name in sorted(said[0].keys() | flags.keys()):
            first, other = (f.get(name, "not given") for f in (said[0], flags))
            if first != other:
                raise ValueError(
                    f"process {rank} was started with other flags than process 0: --{name} is "
                    f"{other} there and {first} here; start all with the same command"
                )
