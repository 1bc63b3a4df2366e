"""Trainings in processes of their own, several at once: one that dies ends no other.

Each process opens the data once and then trains what it is handed. Signals are the parent's: the
processes are deaf to them, and end when it ends.
"""

import itertools
import multiprocessing
import signal
import threading
import time
from collections import deque
from multiprocessing import connection, resource_tracker
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

import genotypes as gt
import utils
from comparing import baselines
from comparing.training import Recipe, Training
from console.errors import is_out_of_memory, one_line
from data_sets import loaders
from data_sets.loader_processes import held_back, leave_signals_to_parent
from data_sets.options import DataOptions
from devices import pick
from models import own_ops

WAIT = 0.5  # seconds between two looks at what the run was asked for
TRIAL_STEPS = 4  # that are timed, behind two that are not


class Job(NamedTuple):
    """One training; with epochs 0 a trial, which only takes the time."""

    name: str  # of the candidate
    cell: str  # a genotype as text, or the name of a baseline
    rung: int
    epochs: int
    seed: int
    swapped: bool = False  # it learns from the images that the others are scored on


class Setting(NamedTuple):
    """What all trainings share."""

    options: DataOptions
    recipe: Recipe
    device: str  # cpu, cuda or mps
    cards: tuple[int, ...] = ()  # of CUDA, that the processes share
    amp: str = "off"
    graphs: bool = False
    ops: str | None = None  # the file of the user's own blocks, as `own_ops` remembers it


class Answer(NamedTuple):
    """What a process says of its job. kind and value are

    "warned"  of what it goes on in spite of, in words
    "epoch"   the score of an epoch that is finished
    "done"    all scores;  of a trial, seconds: (to begin, of an epoch)
    "failed"  why, in words
    "ended"   why, in words, where that may be no fault of the cell: it may be tried again
    "broken"  why, in words, where the cell is not to blame: images that cannot be read
    """

    job: Job
    kind: str
    value: Any

    @property
    def is_last(self):
        """Whether the job is over."""
        return self.kind not in ("warned", "epoch")


def to_device(setting, slot):
    """The Device of the process number `slot`, which computes with one thread."""
    torch.set_num_threads(1)
    device = torch.device(setting.device)
    if cards := setting.cards:
        device = torch.device("cuda", cards[slot % len(cards)])
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
    return pick.Device(device, setting.amp, graphs=setting.graphs)


def build(cell, spec, seed):
    """What `Training` trains: a genotype, or a baseline as a network with the weights of `seed`."""
    if cell.startswith("Genotype"):
        return gt.from_str(cell)
    utils.seed_everything(seed)
    return baselines.build(cell, spec)


def perform(job, opened, setting):
    """Do a job and yield its answers. `opened(swapped)` gives the Data and the Device."""
    recipe, is_open = setting.recipe._replace(epochs=max(job.epochs, 1)), False
    warnings = []

    def warned():
        found = [Answer(job, "warned", text) for text in warnings]
        warnings.clear()
        return found

    try:
        data, device = opened(job.swapped)
        is_open = True
        start = time.perf_counter()
        cell = build(job.cell, data.spec, job.seed)
        training = Training(cell, data, recipe, job.seed, device, warnings.append)
        if not job.epochs:
            yield Answer(job, "done", trial(training, start))
            return
        scores = []
        for number in range(1, job.epochs + 1):
            scores.append(training.epoch(number))
            yield from warned()
            yield Answer(job, "epoch", scores[-1])
        yield Answer(job, "done", scores)
    except Exception as error:  # whatever a block of one's own may raise
        yield from warned()
        no_memory = is_out_of_memory(error)
        of_data = not is_open or (isinstance(error, OSError) and not no_memory)
        text = f"{'out of memory: ' if no_memory else ''}{one_line(error, 200)}"
        yield Answer(job, "broken" if of_data else "ended" if no_memory else "failed", text)


def trial(training, start):
    """Seconds that a training takes (to begin, for an epoch), by its first steps."""
    data = training.data
    batches = utils.endless(data.train)
    n_scored = min(2, len(data.val))
    # the first step looks for kernels and takes memory, on a card the second is recorded
    training.steps(itertools.islice(batches, 2))
    training.score(itertools.islice(data.val, n_scored))
    begun = time.perf_counter()
    training.steps(itertools.islice(batches, TRIAL_STEPS))
    trained = time.perf_counter()
    training.score(itertools.islice(data.val, n_scored))
    step, batch = (trained - begun) / TRIAL_STEPS, (time.perf_counter() - trained) / n_scored
    return begun - start, step * len(data.train) + batch * len(data.val)


# --- processes ----------------------------------------------------------------------------------


class Workers:
    """Processes that do jobs, `n` at once. A context manager: at its end none is left."""

    def __init__(self, n, setting):
        self.setting = setting
        self._context = multiprocessing.get_context("spawn")
        self._slots = [None] * n  # (process, connection) of each

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process, pipe in filter(None, self._slots):
            process.kill()  # it has nothing to save
            process.join()
            pipe.close()

    def run(self, jobs, wanted=lambda job: True):
        """Do the jobs that are wanted when their turn has come; yields every `Answer`, and None
        where there was none for a while."""
        waiting, busy = deque(jobs), {}  # {connection: (slot, job)}
        free = list(range(len(self._slots)))
        while waiting or busy:
            while waiting and free:
                job = waiting.popleft()
                if not wanted(job):
                    continue
                slot = free.pop(0)
                pipe = self._pipe(slot)
                pipe.send(job)
                busy[pipe] = slot, job
            ready = connection.wait(list(busy), WAIT) if busy else []
            if not ready:
                yield None
            for pipe in ready:
                slot, job = busy[pipe]
                try:
                    answer = pipe.recv()
                except (EOFError, OSError):
                    answer = Answer(job, "ended", self._died(slot))
                if answer.is_last:
                    del busy[pipe]
                    free.append(slot)
                yield answer

    def _pipe(self, slot):
        """The connection to the process of a slot, which is started where there is none."""
        if self._slots[slot] is None:
            pipe, theirs = self._context.Pipe()
            process = self._context.Process(
                target=work, args=(theirs, slot, self.setting), name=f"training {slot + 1}",
                daemon=not self.setting.options.workers,  # those may have no processes themselves
            )  # fmt: skip
            if hasattr(signal, "pthread_sigmask"):  # its own start lets SIGINT and SIGTERM through
                resource_tracker.ensure_running()
            with held_back():  # a process inherits what is held back: deaf from its first moment on
                process.start()
            theirs.close()
            self._slots[slot] = process, pipe
        return self._slots[slot][1]

    def _died(self, slot):
        """What ended the process of a slot, in words. The next job gets a new one."""
        process, pipe = self._slots[slot]
        self._slots[slot] = None
        process.join()
        pipe.close()
        code = process.exitcode
        if code == -getattr(signal, "SIGKILL", 9):
            return "its process was killed, mostly for want of memory; fewer --jobs need less"
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return f"its process ended {how}"


class Opened:
    """opened(swapped) -> the Data and the Device of the process number `slot`. One Data at a time
    is held: images that were decoded take memory."""

    def __init__(self, setting, slot):
        self.setting, self.slot = setting, slot
        self.held, self.ops = {}, setting.ops

    def __call__(self, swapped):
        if self.ops:
            own_ops.load(self.ops, said=False)
            self.ops = None
        if swapped not in self.held:
            self.held.clear()
            options = self.setting.options._replace(swapped=swapped)
            self.held[swapped] = loaders.search_data(options), to_device(self.setting, self.slot)
        return self.held[swapped]


def work(pipe, slot, setting):
    """The main function of a process: jobs come in, answers go out, until the parent is gone."""
    leave_signals_to_parent(slot)
    # the usual lock of the bars is a semaphore, which Python would say is left behind by a process
    # that is killed
    tqdm.set_lock(threading.RLock())

    opened = Opened(setting, slot)
    try:
        while True:
            for answer in perform(pipe.recv(), opened, setting):
                pipe.send(answer)
    except (EOFError, OSError):  # the parent has ended
        return
