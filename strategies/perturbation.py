"""Selection by perturbation (DARTS-PT, arXiv 2108.04392): the ops that the supernet misses most.

Alpha says how much of each op is mixed in, which need not be how much the network depends on it.
Here that is measured. Edge by edge in random order, each op is removed alone and the supernet
scored on the alpha half; the op whose removal costs most accuracy (then most loss) is kept, alone
and with weight 1, and the weights are tuned before the next edge. At last, node by node in random
order, each edge is removed alone, and the k whose removal costs most are kept. "none" is never
chosen.
"""

import random
import time
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import genotypes as gt
import utils
from console.terminal import plural
from devices.step_guard import StepGuard
from records import alphas
from records.files import CELLS, KINDS_OF_CELL

TUNE_LR = 0.1  # learning rate of the tuning, in units of --w_lr: where a cosine is near its end


class Decision(NamedTuple):
    """What was measured and decided about one edge, or about the edges of one node."""

    cell: str  # a key of CELLS
    node: int  # 0 is the first computed one
    edge: Any  # the input node; None: which edges the node keeps
    without: dict  # {op, or input node: {"top1", "loss"} of the supernet without it}
    kept: list  # the op, or the input nodes

    def ranked(self):
        """The ops, or input nodes, from the one whose removal costs most."""
        return ranked(self.without)

    def row(self):
        """For the page: what was kept, with the scores without it, and what was left out next to
        it ("" where there was nothing else), with those without it. Of several inputs that are kept
        the least costly."""
        order, n = self.ranked(), len(self.kept)
        name = _input_in_words if self.edge is None else str
        last, other = self.without[order[n - 1]], self.without[order[n]] if order[n:] else None
        return {
            "cell": self.in_words(),
            "edge": f"inputs of node {self.node}" if self.edge is None else self.arrow(),
            "kept": " and ".join(map(name, self.kept)),
            "top1": last["top1"],
            "loss": last["loss"],
            "next": name(order[n]) if other else "",
            "next_top1": other["top1"] if other else 0.0,
            "next_loss": other["loss"] if other else 0.0,
        }

    def in_words(self):
        """Which cell: "normal" or "reduction"."""
        return KINDS_OF_CELL[self.cell]

    def lead(self):
        """By how much accuracy the first removal costs more than the second."""
        first, second = (self.without[name]["top1"] for name in self.ranked()[:2])
        return second - first

    def arrow(self):
        return f"{gt.input_name(self.edge)} -> {self.node}"


def _input_in_words(j):
    return gt.input_name(j) if j < 2 else f"node {gt.input_name(j)}"


def ranked(without):
    """The keys of `without`, {name: {"top1", "loss"} without it}, the costliest removal first; on
    equal scores the earlier one."""
    return sorted(without, key=lambda name: (without[name]["top1"], -without[name]["loss"]))


def work(n_nodes, n_ops, k):
    """(how often the supernet is scored, how often it is tuned) for `n_ops` ops besides "none";
    the last score is that of the cell alone."""
    n_inputs = range(2, n_nodes + 2)
    nodes = [n for n in n_inputs if n > k]
    n_scores = 2 * (n_ops * sum(n_inputs) + sum(nodes)) + 1
    return n_scores, 2 * (sum(n_inputs) + len(nodes)) - 1


def select(net, score, tune, seed, decided=lambda decision: None):
    """The genotype of a SearchCNNController that removal decides, and {"top1", "loss"} of what is
    then left of it, that cell alone.

    score    () -> {"top1", "loss"} of `net` as it is then, on the alpha half
    tune     () -> None: trains its weights a little; called between two decisions
    seed     of the order of the edges and nodes
    decided  is told each Decision

    The weights stay as they were tuned; alpha never moves. Nothing is left overridden.
    """
    rng = random.Random(seed)
    n_inputs = range(2, net.n_nodes + 2)
    nodes = [(cell, node) for cell in CELLS for node in range(net.n_nodes)]
    edges = [(cell, node, j) for cell, node in nodes for j in range(n_inputs[node])]
    rng.shuffle(edges)
    rng.shuffle(nodes)
    ops, inputs = {}, {}  # {edge: op}, {(cell, node): kept input nodes}
    steps = edges + [(*node, None) for node in nodes]
    with _alpha_at_rest(net):
        for n, (cell, node, j) in enumerate(steps):
            if j is None and n_inputs[node] <= net.k:  # nothing to choose
                inputs[cell, node] = list(range(n_inputs[node]))
                continue
            if n:
                tune()
            if j is None:
                decision = _choose_edges(net, cell, node, score)
                inputs[cell, node] = decision.kept
            else:
                decision = _choose_op(net, cell, node, j, score)
                (ops[cell, node, j],) = decision.kept
            decided(decision)
        alone = _numbers(score())
    normal, reduce = (
        [[(ops[cell, i, j], j) for j in inputs[cell, i]] for i in range(net.n_nodes)]
        for cell in CELLS
    )
    concat = range(2, net.n_nodes + 2)
    return gt.Genotype(normal, concat, reduce, concat), alone


def _choose_op(net, cell, node, j, score):
    """Decide the op of an edge, and leave it alone on the edge with weight 1."""
    row = net.mixing()[cell][node][j]
    without = {}
    for column, op in enumerate(net.primitives):
        if op != "none":
            fewer = row.clone()
            fewer[column] = 0
            net.overrides[cell, node, j] = fewer
            without[op] = _numbers(score())
    best = ranked(without)[0]
    alone = torch.tensor(net.primitives.index(best), device=row.device)
    net.overrides[cell, node, j] = F.one_hot(alone, len(row)).to(row.dtype)
    return Decision(cell, node, j, without, [best])


def _choose_edges(net, cell, node, score):
    """Decide which k edges a node keeps, and take the others away."""
    without = {}
    for j in range(node + 2):
        row, net.overrides[cell, node, j] = net.overrides[cell, node, j], None
        without[j] = _numbers(score())
        net.overrides[cell, node, j] = row
    order = ranked(without)
    for j in order[net.k :]:
        net.overrides[cell, node, j] = None
    return Decision(cell, node, None, without, sorted(order[: net.k]))


def _numbers(score):
    return {"top1": score["top1"], "loss": score["loss"]}


@contextmanager
def _alpha_at_rest(net):
    """No gradient of alpha is computed, and no edge is overridden before and after."""
    net.overrides = {}
    for alpha in net.alphas():
        alpha.requires_grad_(False)
    try:
        yield
    finally:
        net.overrides = {}
        for alpha in net.alphas():
            alpha.requires_grad_(True)


# --- in a search --------------------------------------------------------------------------------


class Tuner:
    """Trains the weights of the supernet on the training half, at a constant learning rate.

    Called, it makes --tune_epochs of steps, one at least, unless that is 0.
    """

    def __init__(self, run, data, net):
        cfg = run.cfg
        self.run, self.net = run, net
        self.parts = utils.parts(cfg, run.device, net.criterion)
        self.steps = max(1, round(cfg.tune_epochs * run.n_steps)) if cfg.tune_epochs else 0
        self.batches = utils.endless(data.train)
        self.optim = torch.optim.SGD(
            net.weights(),
            TUNE_LR * cfg.w_lr * cfg.lr_factor,
            cfg.w_momentum,
            weight_decay=cfg.w_weight_decay,
        )
        self.guard = StepGuard(run.device, net, cfg.on_nan)

    def __call__(self):
        device, net = self.run.device, self.net
        meter = utils.Meter(device, "training loss", self.guard)
        compute = utils.passes(net, device)
        net.train()
        for _ in range(self.steps):
            X, y = device.put(next(self.batches))
            self.guard.begin()
            self.optim.zero_grad()
            loss, logits = self.parts.backward(compute, X, y, net.weights())
            norm = nn.utils.clip_grad_norm_(net.weights(), self.run.cfg.w_grad_clip)
            self.guard.update(self.optim, loss, w=norm)
            meter.add(loss, logits, y)
            self.run.stop_if_asked()
        self.run.group.average_buffers(net)
        meter.means()  # raises if a step was not finite, unless --on_nan skips it


class Progress:
    """Says each decision, and how long the rest takes.

    decisions  all so far
    """

    def __init__(self, log, total):
        self.log, self.total, self.decisions = log, total, []
        self.start = time.perf_counter()

    def __call__(self, decision):
        self.decisions.append(decision)
        done = len(self.decisions)
        seconds = (time.perf_counter() - self.start) / done * (self.total - done)
        self.log.info(
            f"  {done}/{self.total} {describe(decision)}; {tqdm.format_interval(seconds)} left"
        )

    def rows(self):
        """`Decision.row` of all, in the order of the cell, with the "turn" in which it was decided,
        and whether it "stays": an edge may be decided, and then not be kept by its node."""

        def place(turn):
            cell, node, edge, *_ = self.decisions[turn]
            return list(CELLS).index(cell), node, edge is None, edge or 0

        return [
            {**d.row(), "turn": turn + 1, "stays": self._stays(d)}
            for turn in sorted(range(len(self.decisions)), key=place)
            for d in [self.decisions[turn]]
        ]

    def how_sure(self, n_images, cells=("normal", "reduce")):
        """As `records.alphas.how_sure`, of an alpha half of so many images; None where nothing was
        chosen. A kept edge is decided if without its op at least two images less are right than
        without the runner-up."""
        edges = [d for d in self.decisions if d.edge is not None and d.cell in cells]
        chosen = [d for d in edges if len(d.without) > 1]
        leads = [d.lead() for d in chosen if self._stays(d)]
        if not leads:
            return None
        sure = sum(round(lead * n_images) > 1 for lead in leads)
        text = f"{sure} of {len(leads)} edges were chosen by more than one of {n_images:,} images"
        return alphas.so_sure(sure, len(leads), text)

    def _stays(self, decision):
        """Whether what was decided is in the cell: of an edge, whether its node has kept it."""
        kept = [d.kept for d in self.decisions if d.edge is None and d[:2] == decision[:2]]
        return decision.edge is None or not kept or decision.edge in kept[0]


def describe(decision):
    """A Decision in one line."""
    _, node, edge, without, kept = decision
    cell = decision.in_words()
    scores = ", ".join(
        f"{gt.input_name(name) if edge is None else name} {without[name]['top1']:.2%}"
        for name in decision.ranked()
    )
    if edge is None:
        kept = " and ".join(gt.input_name(j) for j in kept)
        return f"{cell}, node {node} keeps {kept} (accuracy without each: {scores})"
    return f"{cell}, {decision.arrow()}: {kept[0]} (accuracy without each: {scores})"


def after_search(run, data, net):
    """Select the cell of a finished search, with a line for every decision; returns the Genotype,
    the decisions as rows of a table, `Progress.how_sure`, and how much of the supernet is left
    with that cell alone, in words.

    The weights in `net` change, nothing on disk does: a run that is stopped here goes on from its
    last checkpoint and selects again, in the same order.
    """
    cfg, log = run.cfg, run.log
    net.fade_skip(cfg.epochs, cfg.epochs)  # the auxiliary skip is no part of what is selected from
    tuner = Tuner(run, data, net)

    def score():
        net.eval()
        return utils.evaluate(net, run.stoppable(data.val), run.device)

    n_ops = len(set(net.primitives) - {"none"})
    n_scores, n_tunes = work(net.n_nodes, n_ops, net.k)
    whole = score()  # also the measure of the time that all will take
    images = tuner.steps * data.batch_size / max(len(data.val.dataset), 1)
    seconds = whole["seconds"] * (n_scores + 3 * images * n_tunes)  # forward and backward: 3 times
    log.info(
        f"selection by perturbation: the supernet, {whole['top1']:.2%} on the alpha half, is "
        f"scored {n_scores} times and tuned {n_tunes} times for {plural(tuner.steps, 'step')}; "
        f"about {tqdm.format_interval(seconds)}. Ctrl-C loses no epoch: --resume selects again"
    )
    if whole["top1"] < 2 / len(data.spec.classes):
        log.warn(
            f"{whole['top1']:.2%} is near chance, so removal has little to cost and the selection "
            f"means little; search longer first"
        )
    progress = Progress(log, n_tunes + 1)
    genotype, alone = select(net, score, tuner, cfg.seed, progress)
    left = (
        f"with the chosen cell alone the supernet has {alone['top1']:.2%} on the alpha half; with "
        f"all ops, before the tuning, it had {whole['top1']:.2%}; all this took "
        f"{tqdm.format_interval(time.perf_counter() - progress.start)}"
    )
    log.info(left)
    sure = progress.how_sure(len(data.val.dataset), gt.searched_cells(cfg.layers))
    return genotype, progress.rows(), sure, left
