"""How good the gradient of alpha is: every form of it against the exact one in float64.

    python scripts/gradient_quality.py                      the bundled digits
    python scripts/gradient_quality.py --images cifar10/train --channels 16 --layers 8 --batch 16

A search runs, and at several moments of it the gradient of alpha is computed for the same batches
in every form: how far is it from the exact gradient (double backward in float64), and how far is
its second-order term from the exact term? Images are used as they are, without augmentation.

Prints tables and writes JSON after every moment. The same command goes on where it was broken off:
the search is run again, what is measured is not.
"""

import argparse
import copy
import hashlib
import json
import os
import platform
import statistics
import sys
import tarfile
import tempfile
import time
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from console import interrupts

if __name__ == "__main__":
    interrupts.end_in_one_line()

import benchmark
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.datasets import ImageFolder

from architect import Architect
from console.parser import Parser, count, positive, seed
from console.terminal import command
from models.search_cnn import SearchCNNController
from records import files

MOMENTUM, DECAY, W_LR, CLIP = 0.9, 3e-4, 0.025, 5.0
# moments of a search, in parts of its steps
MOMENTS = {"start": 0.02, "tenth": 0.1, "half": 0.5, "end": 0.98}
ALPHA_LRS = (3e-4, 3e-3, 3e-2)  # the paper's, and larger ones for short searches
FIGURES = ("cosine", "error", "term_error")


class Form(NamedTuple):
    """A way to get the gradient of alpha."""

    hessian: str
    eps: float = 0.0

    def __str__(self):
        return f"{self.hessian} {self.eps:g}" if self.eps else self.hessian


ORACLE = (Form("none"), Form("exact"))


def load_images(path):
    """(images (N, C_in, H, W) float32 with mean 0 and deviation 1, labels (N,)) of the bundled
    digits or of `path`, a folder of class folders or a .tar.* that holds one (its train/, if any).
    All images have the size of the first."""
    if path is None:
        digits = np.load(os.path.join(os.path.dirname(__file__), "..", "data", "digits.npz"))
        X, y = torch.tensor(digits["images"])[:, None], torch.tensor(digits["labels"])
    else:
        with tempfile.TemporaryDirectory() as folder:
            if not os.path.isdir(path):
                with tarfile.open(path) as archive:
                    archive.extractall(folder, filter="data")
                path = folder
                while len(inside := os.listdir(path)) == 1 or "train" in inside:
                    path = os.path.join(path, "train" if "train" in inside else inside[0])
            images = ImageFolder(path)
            size = images[0][0].size
            X = torch.stack([torch.tensor(np.asarray(x.resize(size))) for x, _ in images])
            X, y = X.movedim(-1, 1), torch.tensor(images.targets)
    X = X.float()
    return (X - X.mean()) / X.std(), y.long()


class Search:
    """Algorithm 1 with the paper's settings, except for its length and batch."""

    def __init__(self, images, labels, sizes, device, seed):
        C, n_layers, self.batch = sizes
        torch.manual_seed(seed)
        order = torch.randperm(len(labels))
        self.halves = order.chunk(2)  # of w, of alpha
        self.images, self.labels, self.device = images, labels, device
        n_classes = int(labels.max()) + 1
        self.net = SearchCNNController(images.size(1), C, n_classes, n_layers, F.cross_entropy)
        layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
        self.net.to(device, memory_format=layout)
        self.w_optim, self.alpha_optim = optimizers(self.net)
        self.architect = Architect(self.net)
        self.done = 0

    def pair(self, generator=None):
        """A batch of each half: trn_X, trn_y, val_X, val_y."""
        picked = [
            half[torch.randint(len(half), (self.batch,), generator=generator)]
            for half in self.halves
        ]
        return [t[i].to(self.device) for i in picked for t in (self.images, self.labels)]

    def advance(self, step, n_steps):
        """Search on until `step`; the learning rate falls as in a search of `n_steps`."""
        while self.done < step:
            xi = set_lr(self.w_optim, self.done / n_steps)
            trn_X, trn_y, val_X, val_y = self.pair()
            self.architect.unrolled_backward(trn_X, trn_y, val_X, val_y, xi, self.w_optim)
            self.alpha_optim.step()
            self.w_optim.zero_grad()
            self.net.loss(trn_X, trn_y).backward()
            nn.utils.clip_grad_norm_(self.net.weights(), CLIP)
            self.w_optim.step()
            self.done += 1
            if self.done % 10 == 0 or self.done == step:
                print(f"\r  step {self.done} of {n_steps}", end="", flush=True)
        print()
        return set_lr(self.w_optim, self.done / n_steps)

    def twin(self, dtype):
        """A copy of network and SGD in `dtype`."""
        net = copy.deepcopy(self.net).to(dtype)
        w_optim, alpha_optim = optimizers(net)
        w_optim.load_state_dict(copy.deepcopy(self.w_optim.state_dict()))
        alpha_optim.load_state_dict(copy.deepcopy(self.alpha_optim.state_dict()))
        return net, w_optim, alpha_optim


def optimizers(net):
    w_optim = torch.optim.SGD(net.weights(), W_LR, momentum=MOMENTUM, weight_decay=DECAY)
    return w_optim, torch.optim.Adam(net.alphas(), 3e-4, betas=(0.5, 0.999), weight_decay=1e-3)


def set_lr(w_optim, progress):
    """Cosine from W_LR to 0; `progress` from 0 to 1."""
    lr = W_LR * (1 + np.cos(np.pi * progress)) / 2
    for group in w_optim.param_groups:
        group["lr"] = lr
    return lr


@contextmanager
def computing_in(precision, device):
    """float32 and float64: nothing else is allowed; tf32 and bf16: allowed, as in a search."""
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = precision == "tf32"
    bf16 = torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
    try:
        with bf16 if precision == "bf16" else nullcontext():
            yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


def flat(tensors):
    return torch.cat([t.detach().double().flatten() for t in tensors])


def gradient(net, batch, tensors):
    """Of the loss; 0 for what takes no part: two cells are both reduction cells."""
    return torch.autograd.grad(net.loss(*batch), tensors, materialize_grads=True)


def gradients(net, w_optim, pair, xi, forms):
    """{form: gradient of alpha, (n,) float64} and dL_val/dw at w'. The forms share what they have
    in common."""
    trn_X, trn_y, val_X, val_y = pair
    found, shared = {}, {}
    for form in forms:
        # the one-sided difference wants another training pass than the rest
        start = "forward" if form.hessian == "forward" else "difference"
        if start not in shared:
            architect = Architect(net, start)
            first = architect.training_pass(trn_X, trn_y)
            shared[start] = first, *architect.lookahead(first, val_X, val_y, xi, w_optim)
        first, dalpha, dw = shared[start]
        found[form] = flat(dalpha)
        if form.hessian != "none":
            architect = Architect(net, form.hessian, form.eps)
            term = architect.compute_hessian(dw, first, trn_X, trn_y)
            found[form] = found[form] - xi * flat(term)
    return found, shared["difference"][2]


def figures(found, exact, lookahead):
    """Cosine to the exact gradient, relative error of the gradient and of the second-order term,
    which is what the exact gradient has and the lookahead lacks."""
    error = (found - exact).norm()
    return {
        "cosine": F.cosine_similarity(found, exact, dim=0).item(),
        "error": (error / exact.norm()).item(),
        "term_error": (error / (lookahead - exact).norm()).item(),
    }


def reuse_figures(net, w_optim, alpha_optim, pair, exact):
    """What reusing dL_train/dw changes, per learning rate of alpha: the relative norm of the
    difference in the gradient of w and in the whole step of w (clipped, momentum and decay added),
    and in the gradient of L_val for alpha behind that step."""
    weights, alphas = net.weights(), net.alphas()
    kept = [p.detach().clone() for p in (*weights, *alphas)]
    states = [copy.deepcopy(optim.state_dict()) for optim in (w_optim, alpha_optim)]

    def restore(tensors, optim, state):
        with torch.no_grad():
            torch._foreach_copy_(tensors, kept[: len(tensors)])
        optim.load_state_dict(copy.deepcopy(state))

    def step_of_w(grads):
        for w, grad in zip(weights, grads, strict=True):
            w.grad = grad.clone()
        nn.utils.clip_grad_norm_(weights, CLIP)
        w_optim.step()
        move = flat(weights) - flat(kept[: len(weights)])
        dalpha = flat(gradient(net, pair[2:], alphas))
        restore(weights, w_optim, states[0])
        return move, dalpha

    reused = gradient(net, pair[:2], weights)
    parts = exact.to(alphas[0].dtype).split([a.numel() for a in alphas])
    table = {}
    for alpha_lr in ALPHA_LRS:
        for alpha, part in zip(alphas, parts, strict=True):
            alpha.grad = part.view_as(alpha).clone()
        alpha_optim.param_groups[0]["lr"] = alpha_lr
        alpha_optim.step()
        plain = gradient(net, pair[:2], weights)
        moves, dalphas = zip(step_of_w(plain), step_of_w(reused), strict=True)
        table[f"{alpha_lr:g}"] = {
            name: ((b - a).norm() / a.norm()).item()
            for name, a, b in (
                ("gradient of w", flat(plain), flat(reused)),
                ("step of w", *moves),
                ("next gradient of alpha", *dalphas),
            )
        }
        restore([*weights, *alphas], alpha_optim, states[1])
    return table


def measure(search, xi, args):
    """All figures of one moment, a list over batches for each."""
    differences = [Form("difference", eps) for eps in args.eps]
    one_sided = [Form("forward", eps) for eps in args.forward_eps]
    twins = {dtype: search.twin(dtype) for dtype in (torch.float32, torch.float64)}
    norms = {"w": flat(search.net.weights()).norm().item(), "dw": [], "term": []}
    table, reuse = {}, {}
    generator = torch.Generator().manual_seed(1)
    for i in range(args.batches):
        pair = search.pair(generator)
        wide = [t.double() if t.is_floating_point() else t for t in pair]
        with computing_in("float64", search.device):
            found, dw = gradients(*twins[torch.float64][:2], wide, xi, ORACLE)
        lookahead, exact = found.values()
        norms["dw"].append(flat(dw).norm().item())
        norms["term"].append(((exact - lookahead).norm() / exact.norm()).item())
        for precision in args.precisions:
            forms = [Form("none"), *differences]
            if precision == "float32":
                forms = [*ORACLE, *differences, *one_sided]
            batch = wide if precision == "float64" else pair
            twin = twins[batch[0].dtype]
            with computing_in(precision, search.device):
                found, _ = gradients(*twin[:2], batch, xi, forms)
            for form, gradient in found.items():
                row = table.setdefault(precision, {}).setdefault(str(form), {})
                for name, value in figures(gradient, exact, lookahead).items():
                    row.setdefault(name, []).append(float(f"{value:.4g}"))
        for alpha_lr, row in reuse_figures(*twins[torch.float32], pair, exact).items():
            for name, value in row.items():
                values = reuse.setdefault(alpha_lr, {}).setdefault(name, [])
                values.append(float(f"{value:.3g}"))
        print(f"\r  batch {i + 1} of {args.batches}", end="", flush=True)
    print()
    return {"step": search.done, "xi": xi, "norms": norms, "forms": table, "reuse": reuse}


def show(moment):
    """The tables of one moment: median and worst over the batches."""
    norms = moment["norms"]
    dw, term = (statistics.median(norms[name]) for name in ("dw", "term"))
    print(
        f"  xi {moment['xi']:.4f}, ||w|| {norms['w']:.3g}, ||dw|| {dw:.3g}; "
        f"the second-order term is {term:.2%} of the gradient"
    )
    print(
        f"  {'precision':10}{'form':18}{'cosine':>9}{'worst':>8}{'error':>9}{'worst':>8}"
        f"{'of the term':>13}{'worst':>8}"
    )
    for precision, rows in moment["forms"].items():
        for form, row in rows.items():
            cosine, error, term = (row[name] for name in FIGURES)
            print(
                f"  {precision:10}{form:18}{statistics.median(cosine):9.4f}{min(cosine):8.4f}"
                f"{statistics.median(error):9.4f}{max(error):8.4f}"
                f"{statistics.median(term):13.3f}{max(term):8.2f}"
            )
    for alpha_lr, row in moment["reuse"].items():
        parts = (f"{name} {statistics.median(v):.2e} ({max(v):.1e})" for name, v in row.items())
        print(f"  reused gradient, alpha_lr {alpha_lr}: " + ", ".join(parts))
    print(flush=True)


def parse(argv):
    parser = Parser("gradient_quality.py", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--images", help="folder of class folders of images, or a .tar.* of one (digits if unset)")
    add(
        "--channels",
        type=count,
        nargs="+",
        default=[8],
        help="channels of the first cells (default: 8)",
    )
    add("--layers", type=count, nargs="+", default=[4], help="cells (default: 4)")
    add(
        "--batch",
        type=count,
        nargs="+",
        default=[32],
        help="images (default: 32); all combinations run",
    )
    add("--steps", type=count, default=400, help="steps of the search")
    add(
        "--moments",
        nargs="+",
        choices=MOMENTS,
        default=list(MOMENTS),
        help="where to measure (default: all)",
    )
    add("--batches", type=count, default=16, help="pairs of batches at each moment")
    add("--eps", type=positive, nargs="*", default=[0.01, 0.03, 0.1, 0.3, 1.0],
        help="numerators of eps, central difference (default: 0.01 to 1)")  # fmt: skip
    add(
        "--forward_eps",
        type=positive,
        nargs="*",
        default=[0.1, 0.3],
        help="one-sided difference (default: 0.1 0.3)",
    )
    add("--precisions", nargs="+", choices=("float32", "float64", "tf32", "bf16"),
        default=["float32"],
        help="of the forms (default: float32); the exact gradient is in float64")  # fmt: skip
    add("--costs", action=argparse.BooleanOptionalAction, default=True,
        help="also seconds and memory of a search step in every form")  # fmt: skip
    add("--repeats", type=count, default=5, help="steps of every form for --costs")
    add("--seed", type=seed, default=0, help="of weights and batches")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    add("--out", default="gradient_quality.json", help="file of the results")
    args = parser.parse_args(argv)
    if args.images and not os.path.exists(args.images):
        parser.error(f"--images {args.images}: no such file or folder")
    if "tf32" in args.precisions and args.device == "cpu":
        parser.error("--precisions tf32: a CPU has no TF32; leave it out or use --device cuda")
    return args


def device_name(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


@command
def main(argv=None):
    args = parse(argv)
    device = torch.device(args.device)
    kept = ("steps", "batches", "eps", "forward_eps", "precisions", "seed", "device")
    settings = {key: getattr(args, key) for key in kept}
    images, labels = load_images(args.images)
    settings["images"] = args.images and os.path.basename(args.images.rstrip("/"))
    settings["digest"] = hashlib.sha256(images.numpy().tobytes()).hexdigest()[:16]
    where = {"device": device_name(device), "date": time.strftime("%Y-%m-%d")}
    record = {"settings": settings, "runs": {}}
    if os.path.exists(args.out):
        with open(args.out, encoding="utf-8") as stream:
            earlier = json.load(stream)
        if earlier["settings"] == settings:
            record = earlier
    record["versions"] = {"python": platform.python_version(), "torch": torch.__version__}
    sizes = [(C, n, batch) for C in args.channels for n in args.layers for batch in args.batch]
    for size in sizes:
        name = "C {}, {} cells, batch {}".format(*size)
        run = record["runs"].setdefault(name, {"moments": {}})
        print(f"{name}, images {tuple(images.shape[1:])}, {', '.join(where.values())}")
        search = Search(images, labels, size, device, args.seed)
        for moment in sorted(args.moments, key=MOMENTS.get):
            if moment not in run["moments"]:
                xi = search.advance(max(1, int(MOMENTS[moment] * args.steps)), args.steps)
                run["moments"][moment] = {**measure(search, xi, args), **where}
                files.write_json(args.out, record)
            print(f"  {moment}: step {run['moments'][moment]['step']} of {args.steps}")
            show(run["moments"][moment])
        if args.costs and "costs" not in run:
            C, n_layers, batch = size
            shape = images.size(1), images.size(-1)
            run["costs"] = benchmark.gradient_costs(
                device, (shape, batch), args.repeats, C=C, n_layers=n_layers
            )
            files.write_json(args.out, record)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
