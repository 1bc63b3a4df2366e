"""How many edges alpha has decided by more than noise: records/alphas.py."""

import json
import random
import statistics
from pathlib import Path

import pytest
from conftest import FAST_SEARCH, log_of

import genotypes as gt
import report
import search
from records import alphas, reader
from tracking import search_log

OPS = ["sep", "pool", "skip", "none"]
CLEAR = [[1.0, 0, 0, 0], [0.9, 0, 0, 0]]  # alpha of the edges into node 2: both are kept
NODE_3 = [[1.2, 0, 0, 0], [1.0, 0, 0, 0], [-1.0, 0, 0, 0]]  # the third edge is dropped


def record(epoch, normal, reduce=(CLEAR, NODE_3)):
    found = {"epoch": epoch, "primitives": OPS, "entropy": {"normal": 1.0, "reduce": 1.0}}
    genes = []
    for cell, tables in (("normal", normal), ("reduce", reduce)):
        found[cell] = [[gt.softmax(row) for row in rows] for rows in tables]
        genes.append(gt.parse(tables, 2, OPS))
    return {**found, "genotype": gt.to_str(gt.Genotype(genes[0], [2, 3], genes[1], [2, 3]))}


def history(n, noise, normal=(CLEAR, NODE_3), seed=0):
    rng = random.Random(seed)
    return [
        record(epoch, [[[a + rng.gauss(0, noise) for a in row] for row in rows] for rows in normal])
        for epoch in range(1, n + 1)
    ]


@pytest.mark.parametrize(("factor", "clear"), [(1.5, False), (1.95, False), (2.05, True)])
def test_a_lead_counts_from_two_standard_deviations_on(factor, clear):
    """Leads a, b, c with c = factor * their deviation, which is 1 for 0, 1, 2 whatever is added."""
    leads = [factor - 2, factor - 1, factor]
    assert statistics.stdev(leads) == pytest.approx(1.0)
    assert alphas._is_clear(leads) == clear


def test_clear_edges_are_decided_and_three_epochs_are_needed():
    found = alphas.how_sure(history(4, 0.01), 4)
    assert (found["edges"], found["decided"]) == (8, 8)
    assert found["text"] == "8 of 8 edges are decided by more than the noise of the last epochs"
    assert alphas.how_sure(history(4, 0.01), 3)["decided"] == 8
    early = alphas.how_sure(history(4, 0.01), 2)
    assert (early["edges"], early["decided"]) == (8, 0)
    assert "0 of 8 edges are decided" in early["text"]
    assert early["text"].endswith("; all are close to chance")
    assert early["advice"] == "search longer, or compare with other cells"
    assert alphas.how_sure(history(4, 0.01), 4)["advice"] == ""


def test_noise_decides_nothing():
    """Alphas that wander about zero: hardly an edge is called decided."""
    nothing = ([[0.0] * 4] * 2, [[0.0] * 4] * 3)
    counts = []
    for seed in range(40):
        runs = history(16, 0.5, nothing, seed)
        found = alphas.decided(runs, 16)
        counts += [sure for (cell, *_), sure in found.items() if cell == "normal"]
    assert len(counts) == 160
    assert sum(counts) <= 2


@pytest.mark.parametrize(
    ("normal", "undecided"),
    [
        # steady but tiny: below 1.5 times chance
        (([[0.1, 0, 0, 0], [1.0, 0, 0, 0]], NODE_3), {(0, 0)}),
        # the runner-up is as strong as the op
        (([[1.0, 1.0, 0, 0], [1.0, 0, 0, 0]], NODE_3), {(0, 0)}),
        # one of two kept edges is no stronger than the dropped one
        ((CLEAR, [[2.0, 0, 0, 0], [1.0, 0, 0, 0], [1.0, 0, 0, 0]]), {(1, 1), (1, 2)}),
        # so large a "none" leaves an op no weight
        (([[1.0, 0, 0, 3.0], [1.0, 0, 0, 0]], NODE_3), {(0, 0)}),
    ],
)
def test_each_condition_leaves_an_edge_undecided(normal, undecided):
    found = alphas.decided(history(12, 0.02, normal), 12)
    wrong = {(node, j) for (_, node, j), sure in found.items() if not sure}
    assert wrong
    assert wrong <= undecided


def test_an_op_that_has_changed_within_the_last_quarter_is_undecided():
    other = ([[0, 1.0, 0, 0], [0.9, 0, 0, 0]], NODE_3)
    runs = history(12, 0.01)
    changed = [*runs[:9], record(10, other), *runs[10:]]
    found = alphas.decided(changed, 12)
    assert [edge for edge, sure in found.items() if not sure] == [("normal", 0, 0)]
    before = [*runs[:8], record(9, other), *runs[9:]]  # the last three of twelve count
    assert all(alphas.decided(before, 12).values())


def test_two_deviations_are_the_border():
    lead = [0.3, 0.5, 0.4, 0.45]
    spread = statistics.stdev(lead)
    assert alphas._is_clear(lead)
    assert not alphas._is_clear([*lead[:3], 2 * spread - 0.3])
    assert not alphas._is_clear([-0.3, -0.3, -0.3])  # steadily behind
    assert alphas._is_clear([None] * 3)
    assert not alphas._is_clear([None, 0.2, 0.2])


def test_the_limit_of_skips_shows_as_a_negative_margin():
    kept = record(1, (CLEAR, NODE_3))
    gene = [[("pool", 0), ("sep", 1)], gt.from_str(kept["genotype"]).normal[1]]
    kept["genotype"] = gt.to_str(gt.from_str(kept["genotype"])._replace(normal=gene))
    edge = alphas.edges(kept, "normal")[0]
    assert (edge["op"], edge["second"], edge["kept"]) == ("pool", "sep", True)
    assert edge["margin"] < 0
    assert not alphas.decided([{**kept, "epoch": e} for e in (1, 2, 3)], 3)["normal", 0, 0]


def test_only_cells_that_are_searched_count():
    runs = history(4, 0.01)
    both, one = alphas.how_sure(runs, 4), alphas.how_sure(runs, 4, cells=["reduce"])
    assert (both["edges"], both["decided"]) == (8, 8)
    assert (one["edges"], one["decided"]) == (4, 4)


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("better", [True, False])
def test_what_a_supernet_that_guesses_has_decided_means_nothing(open_run, better, layers):
    run = open_run(["--layers", str(layers)])
    run.best = {"epoch": 4, "top1": 0.5}
    text = "".join(json.dumps(record) + "\n" for record in history(4, 0.01))
    Path(run.files.path, "alphas.jsonl").write_text(text)
    search_log.log_how_sure(run, better)
    found = reader.read_summary(run.files.path)["how_sure"]
    edges = 8 if layers > 2 else 4  # with two layers the normal cell is not searched
    assert (found["edges"], found["decided"]) == (edges, edges)
    assert ("no better than guessing, so this means nothing" in found["text"]) != better
    assert found["text"] in log_of(run.files.path)


def test_log_summary_and_page_say_the_same(here):
    run = search.main([*FAST_SEARCH, "--name", "s"])
    verdict = json.loads(Path(run, "summary.json").read_text())["how_sure"]
    assert verdict == alphas.how_sure(reader.read_alphas(run), 1)
    assert (verdict["edges"], verdict["decided"]) == (8, 0)
    words = f"{verdict['text']}: {verdict['advice']}"
    assert words in log_of(run)
    page = Path(report.write(run)).read_text()
    assert words in page
    assert "<th>decided</th>" in page
    # two steps: alpha cannot get anywhere, which is said at the start
    assert "alpha can move by 0.06 at most (2 steps of 0.03; in the paper by 5.85)" in log_of(run)
