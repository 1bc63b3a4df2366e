"""How fast a search step is: the per-edge form of the supernet against the one that search.py uses.

    python scripts/benchmark.py                    the paper's network on digits and CIFAR-10 sizes
    python scripts/benchmark.py --sizes digits --repeats 9
    python scripts/benchmark.py --nproc 1,2        one step shared by so many processes
    python scripts/benchmark.py --switches         what --amp, --cuda_graphs and the like make of it
    python scripts/benchmark.py --partial 4        what --partial_channels 4 makes of it

Both forms do the same work on the same random images, in one process, in turn, so that a machine
whose speed drifts slows both. Reported are medians over the repeats and the ratio of each pair,
with its smallest and largest value. Prints tables and writes JSON.
"""

import argparse
import functools
import math
import os
import socket
import statistics
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from console import interrupts

if __name__ == "__main__":
    interrupts.end_in_one_line()

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

import genotypes as gt
from architect import Architect
from console.parser import Parser, count
from console.terminal import command
from data_sets import named, splits, transforms
from devices import cuda_graph, layout, pick, processes
from devices.parts import Parts
from models import augment_cnn, reference, search_cells, search_cnn
from records import files
from tracking import run_folder

# (images as (channels, side), batch); the network is the paper's: C 16, 8 cells, 4 nodes, 8 ops
SIZES = {
    "digits": ((1, 8), 64),
    "digits-16": ((1, 8), 16),
    "cifar10": ((3, 32), 64),
    "64x64": ((3, 64), 16),
    "cifar10-16": ((3, 32), 16),
    "cifar10-96": ((3, 32), 96),
}
XI = 0.025

# the second-order step of the fast form: choices of `Architect`
PAPER = {"hessian": "difference", "eps": 0.01, "reuse_gradient": False}
GRADIENTS = {
    "the paper's": PAPER,
    "central, gradient reused": {"hessian": "difference", "eps": 0.3, "reuse_gradient": True},
    "one-sided": {"hessian": "forward", "eps": 0.3, "reuse_gradient": False},
    "one-sided, gradient reused": {"hessian": "forward", "eps": 0.3, "reuse_gradient": True},
    "lookahead": {"hessian": "none", "reuse_gradient": False},
    "lookahead, gradient reused": {"hessian": "none", "reuse_gradient": True},
    "exact": {"hessian": "exact", "reuse_gradient": False},
    "exact, gradient reused": {"hessian": "exact", "reuse_gradient": True},
}
DEFAULT = GRADIENTS["one-sided, gradient reused"]

# flags of search.py that change how a step runs and not what it is: choices of `Switched`
SWITCHES = {
    "as it is": {},
    "no-tf32": {"tf32": False},
    "contiguous": {"kind": "contiguous"},
    "channels_last": {"kind": "channels_last"},
    "checkpoint_cells": {"checkpoint": True},
    "amp": {"amp": "bf16"},
    "cuda_graphs": {"graphs": True},
    "cuda_graphs+amp": {"graphs": True, "amp": "bf16"},
    "compile": {"compile": True},
}


class Form:
    """One form of the supernet with all that a search step needs. Its gradient of alpha is the
    paper's, until `choose` says otherwise."""

    def __init__(
        self, cell, device, shape, batch, fast, group=processes.ALONE, amp="off", kind=None, **net
    ):
        self.device, self.where = device, pick.Device(device, amp)
        self.parts = Parts(group=group)
        C_in, side = shape
        usual = search_cnn.SearchCNN.Cell
        search_cnn.SearchCNN.Cell = cell
        try:
            torch.manual_seed(0)
            self.net = search_cnn.SearchCNNController(
                C_in, net.pop("C", 16), 10, net.pop("n_layers", 8), F.cross_entropy, **net
            )
        finally:
            search_cnn.SearchCNN.Cell = usual
        self.net.to(device)
        if kind is None and fast:
            shape = (batch, C_in, side, side)
            kind = layout.pick_layout("auto", self.net, shape, self.where)
        memory_format = layout.LAYOUTS[kind or "contiguous"]
        self.net.to(memory_format=memory_format)
        X = torch.randn(2, batch, C_in, side, side)
        y = torch.randint(10, (2, batch))
        self.trn_X, self.val_X = (x.to(device, memory_format=memory_format) for x in X)
        self.trn_y, self.val_y = y.to(device)
        share = slice(group.rank, None, group.size)
        self.trn_X, self.val_X = (
            x[share].contiguous(memory_format=memory_format) for x in (self.trn_X, self.val_X)
        )
        self.trn_y, self.val_y = self.trn_y[share], self.val_y[share]
        fused = device.type == "cuda"
        self.w_optim = torch.optim.SGD(
            self.net.weights(), XI, momentum=0.9, weight_decay=3e-4, fused=fused
        )
        self.alpha_optim = torch.optim.Adam(
            self.net.alphas(), 3e-4, betas=(0.5, 0.999), fused=fused, capturable=fused
        )
        self.choose(PAPER)

    def choose(self, choices):
        """Compute alpha's gradient as `choices`, keywords of Architect, say."""
        self.architect = Architect(self.net, **choices, parts=self.parts)

    def alpha_step(self, xi):
        data = self.trn_X, self.trn_y, self.val_X, self.val_y
        with self.where.autocast():
            passed = self.architect.unrolled_backward(*data, xi, self.w_optim)
        self.alpha_optim.step()
        return passed

    def w_step(self, passed=None):
        """`passed` is not None where alpha's step has left the gradient of w."""
        if passed is None:
            self.w_optim.zero_grad()
            self.parts.backward(self._compute, self.trn_X, self.trn_y, self.net.weights())
        nn.utils.clip_grad_norm_(self.net.weights(), 5.0)
        self.w_optim.step()

    def _compute(self, X, y):
        with self.where.autocast():
            logits = self.net(X)
            return self.net.criterion(logits, y), logits

    def step(self, order):
        self.w_step(self.alpha_step(XI if order == 2 else 0.0))

    def validate(self):
        self.net.eval()
        with torch.no_grad():
            self.net(self.val_X)
        self.net.train()


def seconds(work, device):
    """Wall-clock seconds of work(), the device's share included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(plain, fast, device, repeats):
    """Run both in turn after one warm-up: medians, and the ratio fast / plain of each pair."""
    plain(), fast()
    pairs = [(seconds(plain, device), seconds(fast, device)) for _ in range(repeats)]
    ratios = [b / a for a, b in pairs]
    return {
        "plain": statistics.median(a for a, _ in pairs),
        "fast": statistics.median(b for _, b in pairs),
        **spread(ratios),
    }


def spread(ratios):
    return {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def peak_memory(work, device):
    """Bytes that work() holds at its peak beyond what is held before."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    # the resident set, looked at every 2 ms: what the operating system really gave
    page, peak, stop = os.sysconf("SC_PAGE_SIZE"), [0], threading.Event()

    def resident():
        with open("/proc/self/statm") as stream:
            return int(stream.read().split()[1]) * page

    def watch():
        while not stop.is_set():
            peak[0] = max(peak[0], resident())
            time.sleep(0.002)

    before = resident()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        stop.set()
        watcher.join()
    return max(peak[0] - before, 0)


def memory_of(cell, device, size, fast=True, checkpoint=False, choices=PAPER, **net):
    """Peak of a second-order step in a process of its own, so that nothing is left from another.
    `size` is one of SIZES."""
    context = torch.multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_memory_process,
        args=(sender, cell, str(device), size, fast, checkpoint, choices, net),
    )
    process.start()
    sender.close()  # so that the end of the process is the end of the pipe
    try:
        return receiver.recv()
    except EOFError:
        sys.exit(f"benchmark.py: the process that measures memory died ({size})")
    finally:
        process.join()


def _memory_process(sender, cell, device, size, fast, checkpoint, choices, net):
    device = torch.device(device)
    form = Form(cell, device, *size, fast, **net)
    form.net.net.checkpoint_cells = checkpoint
    form.choose(choices)
    sender.send(peak_memory(lambda: form.step(2), device))


def gradients(plain, fast, device, repeats):
    """Second-order steps of `fast` in every one of GRADIENTS, and of `plain` if there is one, all
    in turn: medians, and the ratio to the step of `plain` in the same turn."""

    def step(choices):
        fast.choose(choices)
        return seconds(lambda: fast.step(2), device)

    turns = []
    for turn in range(repeats + 1):
        baseline = seconds(lambda: plain.step(2), device) if plain else math.nan
        times = {name: step(choices) for name, choices in GRADIENTS.items()}
        if turn:  # the first warms up
            turns.append((baseline, times))
    fast.choose(PAPER)
    figures = {}
    for name in GRADIENTS:
        ratios = [times[name] / baseline for baseline, times in turns]
        figures[name] = {
            "plain": statistics.median(baseline for baseline, _ in turns),
            "fast": statistics.median(times[name] for _, times in turns),
            **spread(ratios),
        }
    return figures


class Switched:
    """A fast form of `size`, one of SIZES, whose steps run as one of SWITCHES says."""

    def __init__(self, device, size, choices, **net):
        own = {name: choices[name] for name in ("amp", "kind") if name in choices}
        self.form = Form(search_cells.SearchCell, device, *size, fast=True, **own, **net)
        self.form.choose(DEFAULT)
        self.form.net.net.checkpoint_cells = choices.get("checkpoint", False)
        if choices.get("compile"):
            layout.compile_cells(self.form.net.cells)
        self.tf32 = choices.get("tf32", True)
        self.steps = {order: functools.partial(self._step, order) for order in (1, 2)}
        if choices.get("graphs"):
            self.steps = {k: cuda_graph.Graphed(step, print) for k, step in self.steps.items()}

    def _step(self, order, X):
        self.form.step(order)
        return (X,)

    def step(self, order):
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = self.tf32
        self.steps[order](self.form.trn_X)


def switches(name, device, repeats, wanted):
    """Steps of both orders with every one of the `wanted` SWITCHES, all in turn: medians, and the
    ratio to the step without any in the same turn."""
    plain = next(iter(SWITCHES))
    forms = {label: Switched(device, SIZES[name], SWITCHES[label]) for label in [plain, *wanted]}
    table = {}
    for order in (2, 1):
        turns = []
        for turn in range(repeats + 3):
            times = {
                label: seconds(lambda: form.step(order), device)  # noqa: B023
                for label, form in forms.items()
            }
            if turn > 2:  # the first look for kernels, compile and record
                turns.append(times)
        for label in forms:
            ratios = [times[label] / times[plain] for times in turns]
            row = {
                "seconds": statistics.median(times[label] for times in turns), **spread(ratios)
            }  # fmt: skip
            table[f"order {order}, {label}"] = row
            print(
                f"{name}, order {order}, {label:26} {1000 * row['seconds']:9.2f} ms   ratio "
                f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})",
                flush=True,
            )
    return table


def gradient_costs(device, size, repeats=5, **net):
    """Seconds and peak bytes of a second-order step in every one of GRADIENTS."""
    form = Form(search_cells.SearchCell, device, *size, fast=True, **net)
    times = gradients(None, form, device, repeats)
    table = {}
    for name, choices in GRADIENTS.items():
        memory = memory_of(search_cells.SearchCell, device, size, choices=choices, **net)
        table[name] = {"seconds": times[name]["fast"], "memory": memory}
        print(f"  {name:28} {times[name]['fast']:8.3f} s {memory / 2**20:8,.0f} MiB", flush=True)
    return table


def bound(form, device):
    """Seconds of the convolutions of one step alone, each timed as it stands in the fast form: no
    arrangement of the same convolutions can be faster.

    The paper's second-order step passes every convolution five times forward, three times backward
    with the gradient of its weights and twice without (the two alpha-only passes).
    """
    seen = []
    hooks = [
        module.register_forward_hook(lambda m, args, out: seen.append((m, args[0].detach(), out)))
        for module in form.net.modules()
        if isinstance(module, nn.Conv2d)
    ]
    form.net(form.trn_X)
    for hook in hooks:
        hook.remove()
    total = 0.0
    for conv, x, out in seen:
        x = x.clone(memory_format=torch.preserve_format).requires_grad_()
        grad = torch.randn_like(out)
        forward = min(seconds(lambda: conv(x), device) for _ in range(2))  # noqa: B023
        y = conv(x)

        def backward(inputs, y=y, grad=grad):
            torch.autograd.grad(y, inputs, grad, retain_graph=True)

        full = min(seconds(lambda: backward([x, conv.weight]), device) for _ in range(2))  # noqa: B023
        light = min(seconds(lambda: backward([x]), device) for _ in range(2))  # noqa: B023
        total += 5 * forward + 3 * full + 2 * light
    return total


def memories(name, device):
    """Peak bytes of a second-order step of every form and gradient, where they can be seen."""
    if device.type != "cuda" and not os.path.exists("/proc/self/statm"):
        return {}
    wide, memory = search_cells.SearchCell, {}
    jobs = {"plain": (reference.PerEdgeCell, {"fast": False}), "fast": (wide, {})}
    jobs["fast, --checkpoint_cells"] = wide, {"checkpoint": True}
    jobs |= {label: (wide, {"choices": choices}) for label, choices in GRADIENTS.items()}
    for label, (cell, options) in jobs.items():
        memory[label] = memory_of(cell, device, SIZES[name], **options)
        share = memory[label] / memory["plain"]
        print(f"{name}: peak memory {label} {memory[label] / 2**20:,.0f} MiB, {share:.2f} of plain")
    return memory


def measure(name, device, repeats, only_gradients=False):
    """All figures of one size."""
    shape, batch = SIZES[name]
    plain = Form(reference.PerEdgeCell, device, shape, batch, fast=False)
    fast = Form(search_cells.SearchCell, device, shape, batch, fast=True)
    by_gradient = gradients(plain, fast, device, repeats)
    for label, row in by_gradient.items():
        show(f"{name}, {label}", row)
    memory = memories(name, device)
    if only_gradients:
        return {"batch": batch, "gradients": by_gradient, "memory": memory}
    phases = {
        "step, order 2": lambda form: lambda: form.step(2),
        "step, order 1": lambda form: lambda: form.step(1),
        "alpha step": lambda form: lambda: form.alpha_step(XI),
        "w step": lambda form: form.w_step,
        "validation": lambda form: form.validate,
    }
    figures = {}
    for phase, work in phases.items():
        figures[phase] = compare(work(plain), work(fast), device, repeats)
        show(f"{name}, {phase}", figures[phase])
    least = bound(fast, device)
    print(f"{name}: its convolutions alone {least:.2f} s, "
          f"{least / figures['step, order 2']['fast']:.0%} of the fast step")  # fmt: skip
    loader = loader_seconds(shape, batch)
    print(f"{name}: one loader process takes {loader:.3f} s for a batch")
    training = train_seconds(device, shape, repeats)
    show(f"{name}, augment.py's step", training, ("contiguous", "channels last"))
    return {
        "batch": batch, "phases": figures, "gradients": by_gradient, "convolutions": least,
        "loader": loader, "augment": training, "memory": memory,
    }  # fmt: skip


def growth(device):
    """Seconds of a fast second-order step on digits as one thing grows, else the paper's."""
    table = {}
    darts = gt.PRESETS["darts"]
    for label, batch, net in (
        *((f"{n} nodes", 64, {"n_nodes": n}) for n in (2, 3, 4, 5)),
        *((f"{n} ops", 64, {"primitives": darts[-n:]}) for n in (2, 4, 6, 8)),
        *((f"batch {n}", n, {}) for n in (16, 32, 64, 96)),
    ):
        form = Form(search_cells.SearchCell, device, (1, 8), batch, fast=True, **net)
        form.step(2)
        table[label] = min(seconds(lambda: form.step(2), device) for _ in range(3))  # noqa: B023
        print(f"digits, {label}: {table[label]:.2f} s")
    return table


def partial(name, K, device, repeats, **net):
    """Time and peak memory of a second-order step with 1 of K channels in the ops, against all."""
    shape, batch = SIZES[name]
    cell, forms, memory = search_cells.SearchCell, {}, {}
    for k in (1, K):
        forms[k] = Form(cell, device, shape, batch, fast=True, partial_channels=k, **net)
        forms[k].choose(DEFAULT)
        memory[k] = memory_of(cell, device, SIZES[name], choices=DEFAULT, partial_channels=k, **net)
    row = compare(*(functools.partial(form.step, 2) for form in forms.values()), device, repeats)
    show(f"{name}, {K} partial channels", row, ("K 1", f"K {K}"))
    share = memory[K] / memory[1]
    print(f"{name}: peak memory {memory[K] / 2**20:,.0f} MiB, {share:.2f} of that with K 1")
    return {"batch": batch, "step, order 2": row, "memory": memory}


class Noise(Dataset):
    """Random images in memory, as splits.Transformed wants them."""

    def __init__(self, n, shape):
        C_in, side = shape
        self.images = torch.randint(256, (n, C_in, side, side), dtype=torch.uint8)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], 0


def shared_steps(name, counts, device, repeats):
    """Of one size, for each number of processes: seconds of a step with alpha's default gradient,
    and the bytes of gradients that each process puts into sums in it."""
    table = {}
    for n in counts:
        results = torch.multiprocessing.get_context("spawn").SimpleQueue()
        args = (n, _free_port(), results, device.type, name, repeats)
        torch.multiprocessing.spawn(_shared_process, args, n)
        table[n] = found = results.get()
        found["ratio"] = found["seconds"] / table[counts[0]]["seconds"]
        who = f"{n} process{'es' if n > 1 else ''}"
        print(
            f"{name}, batch {SIZES[name][1]}, {who:13} {found['seconds']:8.3f} s a step, "
            f"{found['ratio']:.2f} of the first; {found['bytes'] / 2**20:6.2f} MiB summed",
            flush=True,
        )
    return table


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _shared_process(rank, n, port, results, kind, name, repeats):
    """One of `n` processes; the first puts {"seconds", "bytes"} into `results`."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    os.environ.update(zip(names, map(str, (rank, rank, n, n, port)), strict=True))
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    group = processes.join(argparse.Namespace(dist_timeout=10.0, said={}))
    torch.set_num_threads(max(pick.cores() // n, 1))
    device = torch.device("cuda", rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)  # whose work `seconds` waits for
    group.use(device)
    shape, batch = SIZES[name]
    form = Form(search_cells.SearchCell, device, shape, batch, fast=True, group=group)
    form.choose(GRADIENTS["one-sided, gradient reused"])
    form.step(2)
    before = group.bytes
    times = [seconds(lambda: form.step(2), device) for _ in range(repeats)]
    if group.is_main:
        bytes_of_step = (group.bytes - before) // repeats
        results.put({"seconds": statistics.median(times), "bytes": bytes_of_step})
    group.most(0)  # nobody leaves before all are done


def loader_seconds(shape, batch):
    """Seconds that one process takes to draw, augment and stack a batch of images."""
    C_in, side = shape
    spec = named.DataSpec("noise", C_in, (side, side), ("a",), (0.5,) * C_in, (0.25,) * C_in)
    moves = transforms.transforms(spec, True, 0, "digits" if C_in == 1 else "cifar")
    loader = DataLoader(splits.Transformed(Noise(8 * batch, shape), moves), batch, shuffle=True)
    start = time.perf_counter()
    n = sum(1 for _ in loader)
    return (time.perf_counter() - start) / n


def train_seconds(device, shape, repeats):
    """A training step of DARTS_V2 (C 16, 8 cells, batch 32), contiguous against channels last."""
    C_in, side = shape
    steps = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        net = augment_cnn.AugmentCNN(side, C_in, 16, 10, 8, False, gt.PUBLISHED["DARTS_V2"])
        net.to(device, memory_format=memory_format)
        optim = torch.optim.SGD(net.parameters(), XI, momentum=0.9)
        X, y = torch.randn(32, C_in, side, side), torch.randint(10, (32,))
        X, y = X.to(device, memory_format=memory_format), y.to(device)

        def step(net=net, optim=optim, X=X, y=y):
            optim.zero_grad()
            F.cross_entropy(net(X)[0], y).backward()
            optim.step()

        steps.append(step)
    return compare(*steps, device, repeats)


def counts(text):
    """ "1,2" -> [1, 2]."""
    words = text.split(",")
    if not all(word.isascii() and word.isdecimal() and int(word) for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers of processes, such as 1,2,4")
    return [int(word) for word in words]


def show(label, f, names=("plain", "fast")):
    print(
        f"{label:40} {names[0]} {f['plain']:8.3f} s   {names[1]} {f['fast']:8.3f} s   "
        f"ratio {f['ratio']:.2f} ({f['low']:.2f} to {f['high']:.2f})",
        flush=True,
    )


@command
def main(argv=None):
    parser = Parser("benchmark.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["digits", "cifar10-16"],
                        help="default: digits cifar10-16; all: " + " ".join(SIZES))  # fmt: skip
    parser.add_argument("--repeats", type=count, default=5, help="pairs of runs")
    parser.add_argument(
        "--gradients",
        action="store_true",
        help="only the second-order steps, one for each way to alpha's gradient",
    )
    parser.add_argument("--growth", action="store_true", help="also: nodes, ops and batch size")
    parser.add_argument(
        "--nproc",
        type=counts,
        metavar="1,2",
        help="only this: a step shared by so many processes, at each size",
    )
    parser.add_argument(
        "--switches",
        nargs="*",
        choices=SWITCHES,
        help="only this: steps with these flags of search.py; without a word, with all",
    )
    parser.add_argument(
        "--partial", type=int, metavar="K", help="only this: steps with K partial channels"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"))
    parser.add_argument("--out", default="benchmark.json", help="file of the results")
    args = parser.parse_args(argv)
    if args.partial not in (None, 2, 4, 8):
        parser.error(f"--partial {args.partial}: 2, 4 or 8 of 16 channels")
    where = pick.prepare_device(argparse.Namespace(device=args.device, gpus=None, threads=None))
    device = where.torch_device
    if args.nproc and where.is_cuda and max(args.nproc) > pick.cards():
        parser.error(f"--nproc {max(args.nproc)}: each needs a card, and there are {pick.cards()}")
    print(f"{where.name}, torch {torch.__version__}")
    if args.nproc:
        record = {
            "shared": {name: shared_steps(name, args.nproc, device, args.repeats)
                       for name in args.sizes}
        }  # fmt: skip
    elif args.partial:
        record = {
            "partial": {name: partial(name, args.partial, device, args.repeats)
                        for name in args.sizes}
        }  # fmt: skip
    elif args.switches is not None:
        possible = [label for label in SWITCHES if where.is_cuda or "graphs" not in SWITCHES[label]]
        wanted = args.switches or possible[1:]
        record = {
            "switches": {name: switches(name, device, args.repeats, wanted) for name in args.sizes}
        }
    else:
        record = {
            "sizes": {name: measure(name, device, args.repeats, args.gradients)
                      for name in args.sizes}
        }  # fmt: skip
    if args.growth:
        record["growth"] = growth(device)
    record |= {
        "device": where.name,
        "versions": run_folder.versions(),
        "date": time.strftime("%Y-%m-%d"),
    }
    files.write_json(args.out, record)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
