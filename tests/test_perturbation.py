"""Selection by perturbation (DARTS-PT) against a slow reference that takes ops out one by one."""

import copy
import itertools
import os
import re
from pathlib import Path
from types import SimpleNamespace

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import FAST_OPS, FAST_SEARCH, checkpoint_of, ends_in_one_line, log_of
from test_wide import batches, pair
from torch import nn

import genotypes as gt
import gif_maker
import report
import search
import utils
from config import SearchConfig
from records import reader
from records.files import CELLS
from strategies import perturbation

OPS = ["sep_conv_3x3", "max_pool_3x3", "skip_connect", "none"]


# --- against a slow reference -------------------------------------------------------------------


class Without(nn.Module):
    """A per-edge mixed op without one of its ops; without any, zeros."""

    def __init__(self, mixed, kept):
        super().__init__()
        self.mixed, self.kept = mixed, kept

    def forward(self, x, row):
        parts = [row[i] * op(x) for i, op in enumerate(self.mixed.ops) if i in self.kept]
        return sum(parts) if parts else 0 * self.mixed(x, row)


class Alone(nn.Module):
    """One op of a per-edge mixed op, with weight 1."""

    def __init__(self, mixed, i):
        super().__init__()
        self.op, self.mixed = mixed.ops[i], mixed

    def forward(self, x, row):
        return self.op(x)


def replaced(net, cell, node, j, make):
    """A copy of a per-edge supernet with this edge of every such cell replaced."""
    net = copy.deepcopy(net)
    for one in net.net.cells:
        if one.reduction == (cell == "reduce"):
            one.dag[node][j] = make(one.dag[node][j])
    return net


def score_of(net, X, y):
    net.eval()
    with torch.no_grad():
        logits = net(X)
    right = int((logits.argmax(1) == y).sum())
    return {"top1": right / len(y), "loss": F.cross_entropy(logits, y).item()}


def tune(net, X, y, lr=0.1):
    """One step of plain gradient descent."""
    net.train()
    weights = net.weights()
    grads = torch.autograd.grad(net.loss(X, y), weights, allow_unused=True)
    with torch.no_grad():
        for w, g in zip(weights, grads, strict=True):
            if g is not None:
                w -= lr * g


def costliest(without):
    return sorted(without, key=lambda name: (without[name]["top1"], -without[name]["loss"]))


def test_every_decision_is_that_of_a_slow_reference(monkeypatch):
    plain, fast = pair(monkeypatch, C=2, n_nodes=2, primitives=OPS, k=1)
    X, y, val_X, val_y = batches(torch.float64, n=24, size=6)
    decisions = []
    found, left = perturbation.select(
        fast, lambda: score_of(fast, val_X, val_y), lambda: tune(fast, X, y), 3, decisions.append
    )
    n_scores, n_tunes = perturbation.work(2, 3, 1)
    assert sum(len(d.without) for d in decisions) == n_scores - 1  # the last is of the cell alone
    assert len(decisions) == n_tunes + 1

    ops, kept = {}, {}
    for n, (cell, node, j, without, chosen) in enumerate(decisions):
        if n:
            tune(plain, X, y)
        if j is not None:
            wanted = {
                op: score_of(
                    replaced(plain, cell, node, j, lambda m, i=i: Without(m, set(range(4)) - {i})),
                    val_X, val_y,
                )
                for i, op in enumerate(OPS[:3])
            }  # fmt: skip
            best = costliest(wanted)[0]
            ops[cell, node, j] = best
            column = OPS.index(best)
            plain = replaced(plain, cell, node, j, lambda m, i=column: Alone(m, i))
            assert chosen == [best]
        else:
            empty = lambda m: Without(m.mixed, set())  # noqa: E731
            wanted = {
                i: score_of(replaced(plain, cell, node, i, empty), val_X, val_y)
                for i in range(node + 2)
            }
            order = costliest(wanted)
            kept[cell, node] = sorted(order[:1])
            for i in order[1:]:
                plain = replaced(plain, cell, node, i, empty)
            assert chosen == kept[cell, node]
        assert without.keys() == wanted.keys()
        for name, score in without.items():
            assert score["top1"] == wanted[name]["top1"]
            assert score["loss"] == pytest.approx(wanted[name]["loss"], rel=1e-9)
    for cell in ("normal", "reduce"):
        gene = [[(ops[cell, i, j], j) for j in kept[cell, i]] for i in (0, 1)]
        assert getattr(found, cell) == gene
    alone = score_of(plain, val_X, val_y)
    assert left["top1"] == alone["top1"]
    assert left["loss"] == pytest.approx(alone["loss"], rel=1e-9)


def small(**changes):
    torch.manual_seed(0)
    sizes = {"n_nodes": 2, "primitives": OPS, **changes}
    return search.SearchCNNController(3, 4, 5, 3, F.cross_entropy, **sizes)


def decisions_of(net, seed=0, score=None):
    made = []
    scores = score or (lambda: {"top1": 0.5, "loss": 1.0})
    genotype, _ = perturbation.select(net, scores, lambda: None, seed, made.append)
    return genotype, made


def test_each_edge_is_decided_once_in_an_order_of_the_seed():
    net = small()
    orders = {}
    for seed in (0, 0, 1):
        _, made = decisions_of(net, seed)
        edges = [d[:3] for d in made if d.edge is not None]
        assert sorted(edges) == [
            (c, i, j) for c in ("normal", "reduce") for i in (0, 1) for j in range(i + 2)
        ]
        assert orders.setdefault(seed, edges) == edges
        assert [d[:2] for d in made[len(edges) :]] in (
            [("normal", 1), ("reduce", 1)], [("reduce", 1), ("normal", 1)]
        )  # fmt: skip
    assert orders[0] != orders[1]


def test_the_weights_are_tuned_at_a_tenth_of_their_rate(open_run):
    run = open_run()
    run.cfg = SearchConfig(["--w_lr", "0.2", "--select", "perturbation"])
    data = SimpleNamespace(train=[])
    (group,) = perturbation.Tuner(run, data, small()).optim.param_groups
    assert group["lr"] == pytest.approx(0.02)


def test_none_is_no_choice_and_ties_go_to_the_earlier():
    genotype, made = decisions_of(small(primitives=["none", *OPS[:3]]))
    assert all("none" not in d.without for d in made)
    assert gt.ops_of(genotype) == ["sep_conv_3x3"]
    assert [j for _, j in genotype.normal[1]] == [0, 1]


def test_accuracy_goes_before_loss_and_loss_decides_between_equals():
    scores = {"a": (0.5, 1.0), "b": (0.4, 0.1), "c": (0.4, 0.2)}
    without = {name: {"top1": top1, "loss": loss} for name, (top1, loss) in scores.items()}
    assert perturbation.ranked(without) == ["c", "b", "a"]


@pytest.mark.parametrize("fault", [None, KeyboardInterrupt])
def test_the_network_is_left_with_its_alphas_free_and_nothing_overridden(fault):
    net, calls = small(partial_channels=2, auxiliary_skip=True), []

    def score():
        calls.append(dict(net.overrides))
        if fault and len(calls) == 5:
            raise fault
        return {"top1": 0.5, "loss": 1.0}

    before = [a.detach().clone() for a in net.alphas()]
    if fault:
        with pytest.raises(fault):
            decisions_of(net, score=score)
    else:
        decisions_of(net, score=score)
    assert any(calls)
    assert net.overrides == {}
    assert all(a.requires_grad for a in net.alphas())
    assert all(torch.equal(a, b) for a, b in zip(net.alphas(), before, strict=True))


def test_a_row_tells_of_what_is_kept_and_what_is_left_out_next_to_it():
    def decision(edge, kept, **top1):
        names = [int(name) if edge is None else name for name in top1]
        scores = [{"top1": score, "loss": 1 - score} for score in top1.values()]
        return perturbation.Decision(
            "normal", 1, edge, dict(zip(names, scores, strict=True)), kept
        ).row()

    row = decision(0, ["sep"], pool=0.8, sep=0.3, skip=0.6)
    assert row == {
        "cell": "normal", "edge": "c_{k-2} -> 1", "kept": "sep", "top1": 0.3, "loss": 0.7,
        "next": "skip", "next_top1": 0.6, "next_loss": 0.4,
    }  # fmt: skip
    row = decision(None, [0, 2], **{"0": 0.5, "1": 0.7, "2": 0.2})
    assert row == {
        "cell": "normal", "edge": "inputs of node 1", "kept": "c_{k-2} and node 0",
        "top1": 0.5, "loss": 0.5,
        "next": "c_{k-1}", "next_top1": 0.7, "next_loss": pytest.approx(0.3),
    }  # fmt: skip
    assert decision(2, ["sep"], sep=0.3)["next"] == ""


def test_an_edge_that_hangs_on_one_image_is_not_decided():
    def decided(lead, j, node=1, n_ops=2):
        names = ("sep", "skip")[:n_ops]
        without = {name: {"top1": 0.5 + i * lead, "loss": 1.0} for i, name in enumerate(names)}
        return perturbation.Decision("normal", node, j, without, ["sep"])

    def found(*decisions, **words):
        progress = perturbation.Progress(None, len(decisions))
        progress.decisions = decisions
        return progress.how_sure(100, **words)

    inputs = {j: {"top1": 0.1 * j, "loss": 1.0} for j in range(6)}
    node = perturbation.Decision("normal", 1, None, inputs, [0, 1, 2, 3])  # its input 4 is dropped
    whole = [
        *map(decided, (0.0, 0.01, 0.02, 0.3, 0.3), range(5)),
        decided(0.3, 0, 0, n_ops=1),
        node,
    ]
    sure = found(*whole)
    assert (sure["edges"], sure["decided"]) == (4, 2)
    assert found(*whole, cells=["reduce"]) is None
    assert sure["text"] == (
        "2 of 4 edges were chosen by more than one of 100 images; the rest is close to chance"
    )
    assert sure["advice"].startswith("search longer, or compare")
    assert found(decided(0.3, 0))["advice"] == ""
    assert found(decided(0.3, 0, n_ops=1), node) is None


def test_edges_that_differ_are_counted():
    gene = [[("a", 0), ("b", 1)], [("a", 0), ("a", 2)]]
    other = [[("b", 1), ("a", 0)], [("a", 0), ("b", 2)]]
    one = gt.Genotype(gene, [2, 3], gene, [2, 3])
    assert gt.n_different(one, one) == (0, 8)
    assert gt.n_different(one, one._replace(normal=other)) == (1, 8)
    assert gt.n_different(one, one._replace(normal=other, reduce=[gene[0], [("a", 1)]])) == (3, 8)


# --- a search -----------------------------------------------------------------------------------

WHICH = {"normal": "normal", "reduce": "reduction"}
WORDS = [*FAST_SEARCH, "--select", "perturbation", "--tune_epochs", "0.5", "--name", "s"]


def genotypes(run):
    return [gt.load(os.path.join(run, name)) for name in ("genotype.json", "genotype-last.json")]


@pytest.mark.pictures
def test_a_search_ends_with_the_cell_that_removal_has_chosen(here, monkeypatch):
    numbers, evaluate = itertools.count(1), utils.evaluate

    def differently(*args):  # two steps are too few to tell one op from another
        return {**evaluate(*args), "top1": (next(numbers) * 37 % 100) / 1000}

    monkeypatch.setattr(utils, "evaluate", differently)
    run = search.main(WORDS)
    chosen, of_alpha = genotypes(run)
    text, checkpoint = log_of(run), checkpoint_of(run)
    assert gt.to_str(of_alpha) == checkpoint["genotype"]
    n_scores, n_tunes = perturbation.work(2, len(FAST_OPS) - 1, 2)
    assert f"is scored {n_scores} times and tuned {n_tunes} times for 1 step; about " in text
    assert text.count("(accuracy without each: ") == n_tunes + 1
    assert "near chance, so removal has little to cost" in text  # after two steps
    different, edges = gt.n_different(chosen, of_alpha)
    said = f"{different} of {edges} edges differ from those that alpha keeps there"
    assert f"{said} (genotype-last.json) (recommended): {chosen}" in text
    assert gt.metadata(run)["select"] == "perturbation"
    page = (here / run / "report.html").read_text()
    assert "How alpha would have decided" in page
    assert said in page
    left = re.search(r"with the chosen cell alone the supernet has .+ had .+%", text)[0]
    assert left in page
    removals = reader.read_summary(run)["removals"]
    assert len(removals) == n_tunes + 1
    said = re.findall(r"  \d+/\d+ (\w+), (.+?)(?:: | keeps )(.+) \(.*without each: (.+)\);", text)
    assert len(said) == len(removals)
    for cell, where, kept, without in said:  # the costliest first
        row = next(
            r
            for r in removals
            if [r["cell"], r["edge"]] == [cell, where.replace("node", "inputs of node")]
        )
        names, scores = zip(*(word.split() for word in without.split(", ")), strict=True)
        if "inputs" in row["edge"]:  # the page says which number is a node
            names = [f"node {name}" if name.isdigit() else name for name in names]
            kept = " and ".join(
                f"node {name}" if name.isdigit() else name for name in kept.split(" and ")
            )
        n = len(kept.split(" and "))
        assert (
            sorted(names[:n]) == sorted(kept.split(" and ")) == sorted(row["kept"].split(" and "))
        )
        assert [f"{row['top1']:.2%}", f"{row['next_top1']:.2%}"] == [*scores[n - 1 : n + 1]]
        assert row["next"] == names[n]
        assert f'<td class="n">{100 * row["top1"]:.2f} %</td>' in page
    edges = ["c_{k-2} -> 0", "c_{k-1} -> 0", "c_{k-2} -> 1", "c_{k-1} -> 1", "0 -> 1"]
    edges = [(cell, e) for cell in CELLS for e in [*edges, "inputs of node 1"]]
    assert [(row["cell"], row["edge"]) for row in removals] == [(WHICH[c], e) for c, e in edges]
    turns = [(cell, where.replace("node", "inputs of node")) for cell, where, *_ in said]
    kept = {cell: [{j for _, j in edges} for edges in getattr(chosen, cell)] for cell in CELLS}
    for row, (cell, edge) in zip(removals, edges, strict=True):
        assert turns[row["turn"] - 1] == (row["cell"], row["edge"])
        node, found = int(edge[-1]), re.match(r"\S+", edge)[0]
        j = {"c_{k-2}": 0, "c_{k-1}": 1, "0": 2}.get(found)
        assert row["stays"] == (j is None or j in kept[cell][node])
        grey = "" if row["stays"] else ' class="off"'
        assert (
            f'<tr{grey}><td class="n">{row["turn"]}</td><td>{WHICH[cell]}</td>'
            f"<td>{edge.replace('->', '→')}</td>"
        ) in page
    assert not all(row["stays"] for row in removals)
    for name in ("normal.gif", "reduce.gif"):  # no frame has the found cell
        marked = iio.imread(Path(run, name))[-1]
        monkeypatch.setattr(reader, "is_selected", lambda run: False)
        gif_maker.make_gifs(run, out="other")
        monkeypatch.setattr(reader, "is_selected", lambda run: True)
        assert not np.array_equal(iio.imread(Path("other", name))[-1], marked)
    assert report.cells(run, chosen, 1)[0]["drawing"] == report.data_uri(f"{run}/plots/normal.png")


def test_a_search_that_is_stopped_while_it_selects_goes_on_to_the_same_cell(here, monkeypatch):
    words = [*WORDS, "--n_nodes", "1", "--k", "1", "--primitives", "skip_connect,max_pool_3x3"]
    whole = genotypes(search.main(words))
    state = checkpoint_of("searchs/s")
    words += ["--name", "t"]
    describe = perturbation.describe
    calls = []

    def stop(decision):
        calls.append(decision)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return describe(decision)

    with monkeypatch.context() as patch:
        patch.setattr(perturbation, "describe", stop)
        said = ends_in_one_line(search.main, words, code=130)
    assert "--name t --resume" in said
    assert "after epoch 1" in said
    page = Path(report.write("searchs/t")).read_text()  # what there is, alpha has chosen
    assert "The search was to choose by removal" in page
    assert "augment.py" not in page
    assert "The found cell" not in page
    search.main(["--name", "t", "--resume"])
    log = Path("searchs/t/t.log").read_text()
    assert "this search is over after epoch 1; its cell is selected again" in log
    assert genotypes("searchs/t") == whole
    other = checkpoint_of("searchs/t")
    assert all(torch.equal(state["model"][k], other["model"][k]) for k in state["model"])


def test_a_finished_search_can_be_selected_anew_and_back(here):
    words = [*WORDS, "--n_nodes", "1", "--k", "1", "--primitives", "skip_connect,max_pool_3x3"]
    by_removal, of_alpha = genotypes(search.main([*words, "--quiet"]))
    plain = [w for w in words if w not in ("--select", "perturbation", "--tune_epochs", "0.5")]
    by_alpha = genotypes(search.main([*plain, "--name", "t", "--quiet"]))
    assert by_alpha == [of_alpha, of_alpha]
    again = ["--name", "t", "--resume", "--quiet", "--select"]
    assert "how_sure" in reader.read_summary("searchs/t")
    search.main([*again, "perturbation"])
    assert genotypes("searchs/t") == [by_removal, of_alpha]
    assert "images" in reader.read_summary("searchs/t")["how_sure"]["text"]  # not of alpha's cell
    assert reader.is_selected("searchs/t")
    search.main([*again, "alpha"])
    assert genotypes("searchs/t") == by_alpha
    assert not reader.is_selected("searchs/t")


def test_flags_of_selection_that_do_nothing_are_refused(here):
    said = ends_in_one_line(search.main, ["--tune_epochs", "2"])
    assert "--tune_epochs belongs to --select perturbation" in said
    said = ends_in_one_line(search.main, ["--select", "perturbation", "--max_skips", "2"])
    assert "--max_skips limits what is read from alpha" in said
