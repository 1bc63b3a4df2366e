"""Genotypes: from alpha, as text, as JSON, by name."""

import contextlib
import json
import math
import os
import random

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import genotypes as gt

FLAT_V2 = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), "
    "('sep_conv_3x3', 1), ('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), "
    "('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5], reduce=[('max_pool_3x3', 0), "
    "('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"
)


# --- parse --------------------------------------------------------------------------------------


def slow_parse(weights, k, primitives):
    """Sec. 2.4 word by word: try every subset of k edges, take the one of largest strengths."""
    gene = []
    for rows in weights:
        edges = []
        for j, row in enumerate(rows):
            p = [math.exp(a - max(row)) for a in row]  # numpy rounds otherwise, and breaks ties
            p = [e / sum(p) for e in p]
            real = [(p[o], -o) for o, name in enumerate(primitives) if name != "none"]
            strength, o = max(real)
            edges.append((j, primitives[-o], strength))
        while len(edges) > k:
            weakest = min(edges, key=lambda e: (e[2], -e[0]))
            edges.remove(weakest)
        gene.append([(op, j) for j, op, _ in edges])
    return gene


@st.composite
def alphas(draw):
    primitives = draw(st.permutations(gt.PRIMITIVES))[: draw(st.integers(2, 8))]
    values = st.floats(-20, 20, allow_nan=False, width=32)
    n_nodes = draw(st.integers(1, 4))
    row = st.lists(values, min_size=len(primitives), max_size=len(primitives))
    tables = [draw(st.lists(row, min_size=n, max_size=n)) for n in range(2, n_nodes + 2)]
    return tables, draw(st.integers(1, 4)), primitives


@given(alphas())
def test_parse_equals_a_slow_reference(case):
    weights, k, primitives = case
    assert gt.parse(weights, k, primitives) == slow_parse(weights, k, primitives)


@given(alphas())
def test_a_constant_added_to_a_row_changes_nothing(case):
    weights, k, primitives = case
    # whole numbers add without rounding, so ties stay ties
    weights = [[[round(a) for a in row] for row in rows] for rows in weights]
    shifted = [[[a + 7 * (j + 1) for a in row] for j, row in enumerate(rows)] for rows in weights]
    assert gt.parse(shifted, k, primitives) == gt.parse(weights, k, primitives)


@given(alphas(), st.randoms(use_true_random=False))
def test_the_place_of_none_and_of_every_other_op_is_free(case, rng):
    weights, k, primitives = case
    # all different, so that no tie is decided by the order of the columns
    ranks = iter(rng.sample(range(1000), sum(len(row) for rows in weights for row in rows)))
    weights = [[[next(ranks) / 100 for _ in row] for row in rows] for rows in weights]
    for rows in weights:  # nor by the rounding of a softmax
        real = [c for c, name in enumerate(primitives) if name != "none"]
        strengths = sorted(max(gt.softmax(row)[c] for c in real) for row in rows)
        assume(all(b - a > 1e-9 for a, b in zip(strengths, strengths[1:], strict=False)))
    order = rng.sample(range(len(primitives)), len(primitives))
    moved = [[[row[c] for c in order] for row in rows] for rows in weights]
    assert gt.parse(moved, k, [primitives[c] for c in order]) == gt.parse(weights, k, primitives)


@given(alphas())
def test_a_gene_keeps_k_edges_or_all_and_more_with_a_larger_k(case):
    weights, k, primitives = case
    gene, larger = gt.parse(weights, k, primitives), gt.parse(weights, k + 1, primitives)
    for rows, edges, more in zip(weights, gene, larger, strict=True):
        inputs = [j for _, j in edges]
        assert len(edges) == min(k, len(rows))
        assert inputs == sorted(set(inputs))
        assert set(edges) <= set(more)
        assert all(op in primitives and op != "none" for op, _ in edges)
    concat = range(2, len(gene) + 2)
    genotype = gt.Genotype(gene, concat, gene, concat)
    assert gt.from_str(gt.to_str(genotype)) == genotype


def test_edges_are_ranked_by_softmax_and_not_by_raw_alpha():
    rows = torch.tensor(
        [
            [5, 0, 0, 0, 0, 0, 0, 0],
            [10, 10, 10, 11, 10, 10, 10, 10],
            [10, 15, 10, 10, 10, 10, 10, 10],
        ]
    )
    assert gt.parse([rows], k=2) == [[("max_pool_3x3", 0), ("avg_pool_3x3", 2)]]


def log(*probabilities):
    return [math.log(p) for p in probabilities]


def test_an_edge_is_as_strong_as_its_strongest_op_and_not_as_their_sum():
    names = ["none", "sep_conv_3x3", "max_pool_3x3"]
    rows = [log(0.4, 0.5, 0.1), log(0.3, 0.35, 0.35)]
    assert gt.parse([rows], k=1, primitives=names) == [[("sep_conv_3x3", 0)]]


def test_none_is_never_kept_but_weakens_its_edge():
    names = ["sep_conv_3x3", "none", "max_pool_3x3"]
    rows = [log(0.15, 0.8, 0.05), log(0.3, 0.6, 0.1), log(0.2, 0.7, 0.1)]
    assert gt.parse([rows], k=2, primitives=names) == [[("sep_conv_3x3", 1), ("sep_conv_3x3", 2)]]


def test_ties_go_to_the_lower_node_and_the_earlier_op():
    zeros = [[0.0] * 8] * 4
    assert gt.parse([zeros], k=2) == [[("max_pool_3x3", 0), ("max_pool_3x3", 1)]]


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list])
def test_parse_takes_tensors_arrays_and_lists(kind):
    rows = [[0.0, 1.0], [1.0, 0.0]]
    weights = kind(rows)
    if kind is torch.tensor:
        weights.requires_grad_()
    gene = gt.parse([weights], primitives=["none", "skip_connect"])
    assert gene == [[("skip_connect", 0), ("skip_connect", 1)]]


def test_parse_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match="8 columns for 2 primitives"):
        gt.parse([[[0.0] * 8] * 2], primitives=["none", "skip_connect"])
    with pytest.raises(ValueError, match="besides 'none'"):
        gt.parse([[[0.0]] * 2], primitives=["none"])
    with pytest.raises(ValueError, match="k, the edges"):
        gt.parse([[[0.0] * 8] * 2], k=0)


def test_mean_entropy():
    assert gt.mean_entropy([[[0.0] * 4] * 2]) == pytest.approx(math.log(4))
    assert gt.mean_entropy([[[1000.0, 0.0, 0.0]] * 2]) == pytest.approx(0)
    assert gt.mean_entropy([[log(0.5, 0.5), log(0.25, 0.75)]]) == pytest.approx(
        (math.log(2) - 0.25 * math.log(0.25) - 0.75 * math.log(0.75)) / 2
    )


# --- text and JSON ------------------------------------------------------------------------------


OPS = [op for op in gt.PRESETS["all"] if op != "none"] + ["my_block"]


@st.composite
def genotype_values(draw):
    def gene(n_nodes):
        edges = [st.tuples(st.sampled_from(OPS), st.integers(0, n - 1))
                 for n in range(2, n_nodes + 2)]  # fmt: skip
        return [draw(st.lists(edge, min_size=1, max_size=3)) for edge in edges]

    def concat(n_nodes):
        nodes = st.integers(2, n_nodes + 1)
        return draw(st.lists(nodes, min_size=1, max_size=n_nodes, unique=True))

    a, b = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    return gt.Genotype(gene(a), concat(a), gene(b), concat(b))


@given(genotype_values())
def test_text_and_json_round_trip(genotype):
    assert gt.from_str(gt.to_str(genotype)) == genotype
    assert gt.from_json(gt.to_json(genotype, epoch=3, top1=0.5)) == genotype
    assert json.loads(gt.to_json(genotype, epoch=3))["epoch"] == 3


@given(genotype_values())
def test_lists_and_tuples_are_the_same(genotype):
    def tuples(value):
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    positional = ", ".join(repr(tuples(value)) for value in genotype)
    assert gt.from_str(f"Genotype({positional})") == genotype


def test_all_forms_of_a_published_genotype_are_equal():
    flat = gt.from_str(FLAT_V2)
    assert flat == gt.DARTS_V2
    assert flat.normal[3] == [("skip_connect", 0), ("dil_conv_3x3", 2)]
    for concat in ("range(2, 6)", "(2, 3, 4, 5)", "range(2, 6, 1)", "[2,3,\n4,5]"):
        assert gt.from_str(FLAT_V2.replace("[2, 3, 4, 5]", concat)) == flat
    assert gt.from_str(f"  {flat}\n") == flat


GOOD = "Genotype(normal=[[('skip_connect', 0), ('skip_connect', 1)]], normal_concat=[2], reduce=[[('skip_connect', 0)]], reduce_concat=[2])"  # noqa: E501


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("'skip_connect', 0", "'none', 0", "'none' is no connection"),
        ("'skip_connect', 0", "'skip_connect', 2", "one of 0..1, got 2"),
        ("'skip_connect', 0", "'skip_connect', -1", "one of 0..1, got -1"),
        ("'skip_connect', 0", "'skip_connect', 0.0", "is a node number, got 0.0"),
        ("'skip_connect', 0", "'skip_connect', True", "is a node number, got True"),
        ("'skip_connect', 0", "'skip_connect', 0, 1", r"an edge is \(op, node\)"),
        ("'skip_connect', 0", "3, 0", "normal, node 2: "),
        ("normal_concat=[2]", "normal_concat=[3]", "normal_concat: expected nodes from 2 to 2"),
        ("normal_concat=[2]", "normal_concat=[]", "normal_concat: expected a list"),
        ("normal_concat=[2]", "normal_concat=[2, 2]", "listed twice"),
        ("normal_concat=[2]", "normal_concat=range(2, 10**15)", "normal_concat: "),
        ("normal_concat=[2]", "normal_concat=range(2, 1000000000000)", "got 3"),
        ("normal_concat=[2]", "normal_concat=range(2, 99999999999999999999)", "got 3"),
        ("normal_concat=[2]", f"normal_concat={'-' * 1500}1", "normal_concat: |not a genotype"),
        ("normal_concat=[2]", f"normal_concat=range({'-' * 600}1)", "normal_concat: |not a gen"),
        ("normal_concat=[2]", f"normal_concat=x{'.a' * 350}", "normal_concat: |not a genotype"),
        ("normal_concat=[2]", "normal_concat=range('a')", "normal_concat: expected a list"),
        ("normal_concat=[2]", "normal_concat=2", "normal_concat: expected a list"),
        (", reduce_concat=[2]", "", "Genotype lacks reduce_concat"),
        ("reduce_concat", "reduce_cat", "no field 'reduce_cat'"),
        ("normal=[[('skip_connect', 0), ('skip_connect', 1)]]", "normal=[]", "normal: expected"),
        ("normal=[[('skip_connect', 0), ('skip_connect', 1)]]", "normal=[[]]", "node 2: expected"),
        ("normal=[[('skip_connect', 0), ('skip_connect', 1)]]", "normal=[('skip_connect', 0)]",
         "two edges per node, got 1"),
        ("normal=[[('skip_connect', 0), ('skip_connect', 1)]]", "normal=open('x')", "literals"),
        ("Genotype(", "Cell(", "expected Genotype"),
        ("Genotype(", "Genotype(*[1], ", "literals"),
        ("Genotype(", "Genotype(**{}, ", "no field None"),
        ("Genotype(", "Genotype([], ", "normal: given twice"),
        (")", "", "not a genotype"),
        (GOOD, "", "not a genotype"),
        (GOOD, "DARTS_V1", "expected Genotype"),
        (GOOD, "Genotype(", "not a genotype"),
        (GOOD, "Genotype()", "lacks normal"),
        (GOOD, "Genotype(1, 2, 3, 4, 5)", "four fields"),
        (GOOD, "\0", "not a genotype"),
        (GOOD, "(" * 5000, "not a genotype"),
        (GOOD, "(" * 10**7, "10,000,000 characters; at most 100,000 are read"),
    ],
)  # fmt: skip
def test_wrong_text_is_refused_with_the_wrong_part(old, new, message):
    assert gt.from_str(GOOD)
    assert old in GOOD
    with pytest.raises(ValueError, match=message):
        gt.from_str(GOOD.replace(old, new, 1))


def test_replace_checks_like_the_constructor():
    assert gt.DARTS_V2._replace(normal_concat=range(2, 6)) == gt.DARTS_V2
    with pytest.raises(ValueError, match="normal_concat"):
        gt.DARTS_V2._replace(normal_concat=[9])


def test_text_is_never_run(here):
    for text in ("__import__('os').mkdir('ran')", "Genotype(normal=__import__('os').mkdir('ran'))"):
        with pytest.raises(ValueError, match=r"literals|expected Genotype"):
            gt.from_str(text)
    assert not os.path.exists("ran")


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(ValueError):
        assert isinstance(gt.from_str(text), gt.Genotype)


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 12), st.text("()[]'\",=012ab_ ", max_size=4))
def test_damaged_text_is_read_or_refused(at, length, patch):
    text = GOOD[:at] + patch + GOOD[at + length :]
    try:
        genotype = gt.from_str(text)
    except ValueError:
        return
    assert gt.from_str(gt.to_str(genotype)) == genotype


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(gt.Genotype._fields), json_values))
def test_any_json_is_read_or_refused(record):
    with contextlib.suppress(ValueError):
        assert isinstance(gt.from_json(json.dumps(record)), gt.Genotype)


def test_json_that_is_none():
    for text, message in (("{", "not JSON"), ("[]", "is an object"), ("{}", "lacks normal")):
        with pytest.raises(ValueError, match=message):
            gt.from_json(text)


def test_ops_are_checked_where_they_are_needed():
    genotype = gt.from_str(GOOD.replace("'skip_connect', 1", "'my_block', 1"))
    assert gt.require_known(genotype, ["my_block", "skip_connect"]) is genotype
    message = (
        "normal, node 2: unknown op 'my_block'; known: max_pool_3x3, skip_connect; --ops FILE adds"
    )
    with pytest.raises(ValueError, match=message):
        gt.require_known(genotype, ["skip_connect", "max_pool_3x3"])
    swapped = gt.Genotype(genotype.reduce, [2], genotype.normal, [2])
    with pytest.raises(ValueError, match="reduce, node 2: unknown op 'my_block'"):
        gt.require_known(swapped, ["skip_connect"])


def test_a_genotype_of_many_nodes_is_short_enough():
    genotype = gt.random_genotype(0, n_nodes=20, k=20)
    assert len(gt.to_json(genotype)) < gt.LONGEST
    assert gt.from_json(gt.to_json(genotype)) == genotype


# --- load ---------------------------------------------------------------------------------------


def test_load_takes_folder_file_name_and_text(here):
    genotype = gt.PDARTS
    (here / "run").mkdir()
    (here / "run" / "genotype.json").write_text(gt.to_json(genotype))
    (here / "g.json").write_text(gt.to_json(genotype))
    (here / "g.txt").write_text(gt.to_str(genotype) + "\n")
    for source in ("run", "run/", "g.json", "g.txt", "PDARTS", gt.to_str(genotype), here / "run"):
        assert gt.load(source) == genotype


def test_load_says_what_is_wrong(here):
    (here / "empty").mkdir()
    (here / "bad.json").write_text("{}")
    for root in ("searchs", "augments"):
        (here / root / "pets").mkdir(parents=True)
    (here / "long.json").write_text('{"a":' + "0" * 10**6 + "}")
    (here / "page.md").write_text("# A page\n\nof text")
    (here / "binary").write_bytes(b"\xff\xfe\x00")
    for source, message in (
        ("DARTS_V3", "did you mean DARTS_V2|did you mean DARTS_V1"),
        ("searchs/none", "no file or folder searchs/none$"),
        ("search/pets", r"no file or folder search/pets; did you mean searchs/pets\?"),
        ("augments/pet", r"did you mean augments/pets\?"),
        ("pets", "did you mean searchs/pets or augments/pets?"),
        ("empty", "holds no genotype.json"),
        ("bad.json", "bad.json: the JSON object lacks"),
        ("binary", "binary is no genotype but a binary file"),
        ("page.md", "^page.md is no genotype: it begins with neither { nor Genotype\\($"),
        ("long.json", "long.json: not a genotype: 1,000,006 characters"),
        ("", "neither a run folder"),
    ):
        with pytest.raises(ValueError, match=message):
            gt.load(source)


# --- the rest -----------------------------------------------------------------------------------


def test_random_genotypes_are_reproducible_and_valid():
    seen = set()
    for seed in range(50):
        genotype = gt.random_genotype(seed)
        assert genotype == gt.random_genotype(seed)
        assert gt.from_str(gt.to_str(genotype)) == genotype
        for gene in (genotype.normal, genotype.reduce):
            assert len(gene) == 4
            for edges in gene:
                nodes = [j for _, j in edges]
                assert len(nodes) == 2
                assert len(set(nodes)) == 2
                assert all(op != "none" for op, _ in edges)
        seen.add(gt.to_str(genotype))
    assert len(seen) == 50
    ops = {op for s in range(50) for edges in gt.random_genotype(s).normal for op, _ in edges}
    assert ops == set(gt.PRIMITIVES) - {"none"}


def test_a_genotype_in_words():
    assert gt.describe(gt.DARTS_V2, n_layers=8) == (
        "normal cell\n"
        "  node 0 = sep_conv_3x3(c_{k-2}) + sep_conv_3x3(c_{k-1})\n"
        "  node 1 = sep_conv_3x3(c_{k-2}) + sep_conv_3x3(c_{k-1})\n"
        "  node 2 = sep_conv_3x3(c_{k-1}) + skip_connect(c_{k-2})\n"
        "  node 3 = skip_connect(c_{k-2}) + dil_conv_3x3(node 0)\n"
        "  output = concat(node 0, node 1, node 2, node 3)\n"
        "reduction cell\n"
        "  node 0 = max_pool_3x3(c_{k-2}) + max_pool_3x3(c_{k-1})\n"
        "  node 1 = skip_connect(node 0) + max_pool_3x3(c_{k-1})\n"
        "  node 2 = max_pool_3x3(c_{k-2}) + skip_connect(node 0)\n"
        "  node 3 = skip_connect(node 0) + max_pool_3x3(c_{k-1})\n"
        "  output = concat(node 0, node 1, node 2, node 3)\n"
        "stack of 8 cells: N N R N N R N N (N normal, R reduction)"
    )


def test_count_ops():
    assert gt.count_ops(gt.DARTS_V2.normal) == {
        "sep_conv_3x3": 5, "skip_connect": 2, "dil_conv_3x3": 1,
    }  # fmt: skip


def test_presets_and_primitives():
    assert gt.PRESETS["darts"] == gt.PRIMITIVES
    assert len(gt.PRIMITIVES) == 8
    assert gt.PRESETS["efficient"] == [
        "sep_conv_3x3", "mb_conv_3x3", "fused_mb_conv_3x3", "none",
    ]  # fmt: skip


# --- at most so many skip connections ------------------------------------------------------------

LIMITED = ["skip_connect", "sep_conv_3x3", "max_pool_3x3", "none"]


def slow_gene(alphas, k, max_skips):
    """P-DARTS' rule, op by op: the weakest kept one is forbidden until few are left."""
    forbidden = set()
    while True:
        gene, skips = [], []
        for node, rows in enumerate(alphas):
            edges = []
            for j, row in enumerate(rows):
                total = sum(math.exp(a) for a in row)
                edges.append(max(
                    (math.exp(a) / total, -column, j) for column, a in enumerate(row)
                    if LIMITED[column] != "none" and not (column == 0 and (node, j) in forbidden)
                ))  # fmt: skip
            kept = sorted(edges, key=lambda e: (-e[0], e[2]))[:k]
            gene.append(sorted((j, LIMITED[-column]) for _, column, j in kept))
            skips += [(weight, node, j) for weight, column, j in kept if column == 0]
        if len(skips) <= max_skips:
            return [[(op, j) for j, op in edges] for edges in gene]
        forbidden.add(min(skips)[1:])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(0, 5), st.integers(1, 3), st.floats(0, 3))
def test_the_limit_of_skips_is_that_of_a_slow_search(seed, max_skips, k, liking):
    rng = random.Random(seed)
    alphas = [
        [[rng.gauss(liking * (op == "skip_connect"), 1) for op in LIMITED] for _ in range(n)]
        for n in range(2, 6)
    ]
    found = gt.parse(alphas, k, LIMITED, max_skips)
    assert found == slow_gene(alphas, k, max_skips)
    assert gt.count_ops(found).get("skip_connect", 0) <= max_skips
    free = gt.parse(alphas, k, LIMITED)
    assert gt.parse(alphas, k, LIMITED, 100) == free
    if gt.count_ops(free).get("skip_connect", 0) <= max_skips:
        assert found == free


def test_a_skip_connection_stays_where_there_is_no_other_op():
    gene = gt.parse([[[1.0, 0.0]] * 2], 2, ["skip_connect", "none"], max_skips=0)
    assert gene == [[("skip_connect", 0), ("skip_connect", 1)]]
