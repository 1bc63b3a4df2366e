"""What a search finds: the genotype, the candidate ops, and the way from alpha to a genotype.

Words (sec. 2.1, 2.2 and 2.4 of arXiv 1806.09055):

* node    a feature map inside a cell. Nodes 0 and 1 are the outputs of the two cells before,
          c_{k-2} and c_{k-1}; the cell computes nodes 2, 3, ...
* edge    (op, j): the op reads node j.
* gene    one list of kept edges per computed node, in order: gene[0] belongs to node 2.
* concat  the nodes whose maps are concatenated to the cell's output.

This file knows nothing of torch: a genotype is plain data.
"""

import ast
import difflib
import json
import math
import os
import random
import re
from collections import Counter, namedtuple

FILE = "genotype.json"  # what the genotype is called in a run folder
RUNS = ("searchs", "compares", "augments")  # where run folders are
LONGEST = 100_000  # characters of a genotype as text or JSON; usual ones have about a thousand

# Named lists for --primitives NAME.
PRESETS = {
    # the eight ops of the paper (sec. 3.1.1)
    "darts": [
        "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3",
        "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5", "none",
    ],
    # the blocks of EfficientNet
    "efficient": ["sep_conv_3x3", "mb_conv_3x3", "fused_mb_conv_3x3", "none"],
    # every op that comes with this repository; large and slow, meant for looking around
    "all": [
        "max_pool_3x3", "avg_pool_3x3", "skip_connect",
        "sep_conv_3x3", "sep_conv_5x5", "sep_conv_7x7",
        "dil_conv_3x3", "dil_conv_5x5", "conv_7x1_1x7",
        "ds_conv_3x3", "mb_conv_3x3", "mb_conv_5x5", "mb_conv_3x3_e6", "mb_conv_5x5_e6",
        "fused_mb_conv_3x3", "none",
    ],
}  # fmt: skip

# The candidate ops of every edge, one column of alpha each. To change the search space, put a list
# of your own here: PRIMITIVES = ["skip_connect", "my_block", "none"]. A new block is one line in
# OPS (models/ops.py) and one name here. The order is free; "none" (no connection, sec. 2.2) is
# recognised by its name and may be left out.
PRIMITIVES = PRESETS["darts"]


# --- the genotype -----------------------------------------------------------------------------


class Genotype(namedtuple("Genotype", "normal normal_concat reduce reduce_concat")):
    """Both genes of a network with their concat lists.

    `normal` and `reduce` may be given nested, [[(op, node), (op, node)], ...] with one list per
    node, or flat as the official code prints them, [(op, node), (op, node), ...] with two edges
    per node. Lists, tuples and ranges are taken everywhere. What is stored is always nested lists
    of (str, int) and concat lists of int, so equal cells compare equal however they were written.

    Raises ValueError that names the wrong part. The form is checked, not the names of the ops:
    OPS (models/ops.py) is where these are known, see `require_known`.
    """

    __slots__ = ()

    def __new__(cls, normal, normal_concat, reduce, reduce_concat):
        normal, reduce = _gene(normal, "normal"), _gene(reduce, "reduce")
        return super().__new__(
            cls,
            normal, _concat(normal_concat, "normal_concat", len(normal)),
            reduce, _concat(reduce_concat, "reduce_concat", len(reduce)),
        )  # fmt: skip

    @classmethod
    def _make(cls, fields):
        return cls(*fields)  # so that _replace checks as well


def _is_edge(item):
    return isinstance(item, (list, tuple)) and len(item) > 0 and isinstance(item[0], str)


def _gene(value, field):
    """Check one gene and return it nested: [[(op, node), ...] per node]."""
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"{field}: expected a list with the edges of each node, got {value!r}")
    if all(_is_edge(item) for item in value):  # the flat form: two edges per node
        if len(value) % 2:
            raise ValueError(
                f"{field}: the flat form has two edges per node, got {len(value)} edges"
            )
        value = [value[i : i + 2] for i in range(0, len(value), 2)]
    return [_edges(edges, field, node) for node, edges in enumerate(value, start=2)]


def _edges(edges, field, node):
    """Check the edges that enter `node` and return them as [(op, input node), ...]."""
    where = f"{field}, node {node}"
    if not isinstance(edges, (list, tuple)) or not edges:
        raise ValueError(f"{where}: expected a list of (op, node) edges, got {edges!r}")
    checked = []
    for edge in edges:
        if not isinstance(edge, (list, tuple)) or len(edge) != 2:
            raise ValueError(f"{where}: an edge is (op, node), got {edge!r}")
        op, j = edge
        if not isinstance(op, str):
            raise ValueError(f"{where}: the op of an edge is a name, got {op!r}")
        if op == "none":
            raise ValueError(f"{where}: 'none' is no connection and cannot be kept")
        if not isinstance(j, int) or isinstance(j, bool):
            raise ValueError(f"{where}: the input of {op} is a node number, got {j!r}")
        if not 0 <= j < node:
            raise ValueError(f"{where}: the input of {op} is one of 0..{node - 1}, got {j}")
        checked.append((op, j))
    return checked


def _concat(value, field, n_nodes):
    """Check a concat list against the nodes that the cell computes: 2 .. n_nodes + 1."""
    last = n_nodes + 1
    if not isinstance(value, (list, tuple, range)) or not value:
        raise ValueError(f"{field}: expected a list of nodes from 2 to {last}, got {value!r}")
    for j in value:  # a huge range stops at its first wrong node
        if not isinstance(j, int) or isinstance(j, bool) or not 2 <= j <= last:
            raise ValueError(f"{field}: expected nodes from 2 to {last}, got {j!r}")
    if len(set(value)) != len(value):
        raise ValueError(f"{field}: a node is listed twice in {list(value)}")
    return list(value)


# --- from alpha to a genotype (sec. 2.4) --------------------------------------------------------


def softmax(row):
    """Softmax of a list of floats: the mixing weights of one edge (Eq. 2)."""
    top = max(row)
    exp = [math.exp(a - top) for a in row]
    return [e / sum(exp) for e in exp]


def as_lists(weights):
    """Alpha as nested lists of floats; tensors and arrays are taken as well."""
    return [rows.tolist() if hasattr(rows, "tolist") else list(rows) for rows in weights]


def parse(weights, k=2, primitives=None, max_skips=None, edge_weights=None):
    """Alpha of one cell type -> gene: keep the k strongest edges of each node (sec. 2.4).

    weights       alpha before softmax, one table per node: weights[i] has shape (i + 2, n_ops),
                  the row is the edge's input node, the columns are `primitives`. Tensors, arrays,
                  lists.
    k             edges kept per node; a node with fewer edges keeps them all.
    primitives    names of the columns (default: PRIMITIVES).
    max_skips     skip connections that the gene may keep: while it has more, the weakest of them
                  counts as zero and the gene is derived again (P-DARTS, arXiv 1904.12760). A skip
                  connection stays where its edge has no other op.
    edge_weights  the weight of each edge among those that enter its node (PC-DARTS): for node i
                  i + 2 numbers. None: all alike.

    Every edge stands for its strongest op other than "none", and its strength is that one op's
    softmax weight, times the weight of the edge. "none" takes part in the softmax, so an edge with
    a large "none" is weak, and rows with different offsets compare fairly. On equal strength the
    lower input node and the earlier op win. The kept edges come in the order of their input nodes.
    """
    primitives = list(PRIMITIVES if primitives is None else primitives)
    real = [column for column, name in enumerate(primitives) if name != "none"]
    if not real:
        raise ValueError(f"primitives need an op besides 'none', got {primitives}")
    if k < 1:
        raise ValueError(f"k, the edges kept per node, must be 1 or more, got {k}")
    tables = as_lists(weights)
    for row in (row for rows in tables for row in rows):
        if len(row) != len(primitives):
            raise ValueError(
                f"alpha has {len(row)} columns for {len(primitives)} primitives {primitives}"
            )
    mix = [[softmax(row) for row in rows] for rows in tables]
    if edge_weights is not None:
        mix = [  # times the number of edges, so that nodes compare fairly
            [
                [len(rows) * of_edge * m for m in row]
                for of_edge, row in zip(of_node, rows, strict=True)
            ]
            for of_node, rows in zip(as_lists(edge_weights), mix, strict=True)
        ]
    kept = [_strongest_edges(rows, k, real) for rows in mix]
    while max_skips is not None:
        skips = [
            (strength, i, j, column)
            for i, edges in enumerate(kept)
            for strength, j, column in edges
            if primitives[column] == "skip_connect"
        ]
        strength, i, j, column = min(skips, default=(-1.0, 0, 0, 0))
        if len(skips) <= max_skips or strength < 0:
            break
        mix[i][j][column] = -1.0  # behind whatever rounds to zero
        kept[i] = _strongest_edges(mix[i], k, real)
    return [[(primitives[column], j) for _, j, column in edges] for edges in kept]


def _strongest_edges(rows, k, real):
    """The k strongest edges of a node, (strength, input node, column of the op), in the order of
    their input nodes. `rows` are the mixing weights of its edges, `real` the columns of the ops."""
    best = [max(real, key=row.__getitem__) for row in rows]
    edges = [(rows[j][column], j, column) for j, column in enumerate(best)]
    kept = sorted(edges, key=lambda edge: -edge[0])[:k]  # stable: ties keep their order
    return sorted(kept, key=lambda edge: edge[1])


def mean_entropy(weights):
    """Mean entropy, in nats, of the mixing weights of all edges: ln(n_ops) when undecided, 0 when
    every edge has chosen."""
    edges = [softmax(row) for rows in as_lists(weights) for row in rows]
    return sum(-p * math.log(p) for edge in edges for p in edge if p > 0) / len(edges)


def count_ops(gene):
    """How often each op is kept: {"sep_conv_3x3": 5, "skip_connect": 3}, most frequent first."""
    return dict(Counter(op for edges in gene for op, _ in edges).most_common())


def n_different(genotype, other):
    """(how many edges of a genotype the other has not, how many it has)."""
    genes = [(getattr(genotype, f), getattr(other, f)) for f in ("normal", "reduce")]
    nodes = [pair for gene in genes for pair in zip(*gene, strict=True)]
    different = sum((Counter(edges) - Counter(others)).total() for edges, others in nodes)
    return different, sum(len(edges) for edges, _ in nodes)


def ops_of(genotype):
    """The names of the ops a genotype keeps, each once, in order of appearance."""
    return list(dict.fromkeys([*count_ops(genotype.normal), *count_ops(genotype.reduce)]))


def random_genotype(seed, primitives=None, n_nodes=4, k=2):
    """A genotype drawn uniformly from the search space, the baseline of sec. 3.

    Every node reads k distinct nodes (all of them where fewer exist), every kept edge carries an
    op drawn from `primitives` without "none". One seed always gives one genotype.
    """
    rng = random.Random(seed)
    ops = [name for name in (PRIMITIVES if primitives is None else primitives) if name != "none"]

    def gene():
        inputs = [sorted(rng.sample(range(n), min(k, n))) for n in range(2, n_nodes + 2)]
        return [[(rng.choice(ops), j) for j in nodes] for nodes in inputs]

    concat = range(2, n_nodes + 2)
    return Genotype(gene(), concat, gene(), concat)


# --- reading and writing ------------------------------------------------------------------------


def known_ops(ops, unknown):
    """What to say of an op, `unknown`, that is not in `ops`."""
    near = difflib.get_close_matches(unknown, [op for op in ops if op != "none"], n=1)
    hint = f"; did you mean {near[0]} by {unknown}?" if near else ""
    return f"known: {', '.join(ops)}; --ops FILE adds blocks of your own{hint}"


def require_known(genotype, ops):
    """Return `genotype`; raise ValueError if it names an op that is not in `ops`."""
    for field in ("normal", "reduce"):
        for node, edges in enumerate(getattr(genotype, field), start=2):
            for op, _ in edges:
                if op not in ops:
                    raise ValueError(
                        f"{field}, node {node}: unknown op {op!r}; {known_ops(sorted(ops), op)}"
                    )
    return genotype


def to_str(genotype):
    """The text form, which `from_str` reads back."""
    return repr(genotype)


def from_str(text):
    """Text -> Genotype. The text is read as data and never run.

    Takes the nested form of pt.darts and the flat form of the official code, with fields by name
    or in order; concat lists as list, tuple or range(2, 6). Raises ValueError that names the wrong
    part.
    """
    _check_length(text)
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = getattr(error, "msg", None) or error
        raise ValueError(f"not a genotype: {shorten(text)!r} ({reason})") from None
    if not (isinstance(call, ast.Call) and getattr(call.func, "id", None) == "Genotype"):
        raise ValueError(f"not a genotype: expected Genotype(...), got {shorten(text)!r}")

    fields = {}
    if len(call.args) > len(Genotype._fields):
        raise ValueError(f"Genotype has four fields {Genotype._fields}, got {len(call.args)}")
    given = list(zip(Genotype._fields, call.args, strict=False))
    for name, value in given + [(keyword.arg, keyword.value) for keyword in call.keywords]:
        if name not in Genotype._fields:
            raise ValueError(f"Genotype has no field {name!r}; its fields: {Genotype._fields}")
        if name in fields:
            raise ValueError(f"{name}: given twice")
        fields[name] = _literal(value, name)
    missing = [name for name in Genotype._fields if name not in fields]
    if missing:
        raise ValueError(f"Genotype lacks {', '.join(missing)}")
    return Genotype(**fields)


def _literal(tree, field):
    """A literal, or a call range(...) of whole numbers."""
    try:
        if isinstance(tree, ast.Call) and getattr(tree.func, "id", None) == "range":
            if tree.keywords:
                raise ValueError
            return range(*(ast.literal_eval(arg) for arg in tree.args))
        return ast.literal_eval(tree)
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError):
        pass
    try:
        source = shorten(ast.unparse(tree))
    except RecursionError:
        source = "something nested too deeply"
    raise ValueError(f"{field}: expected a list of literals, got {source}")


def _check_length(text):
    if len(text) > LONGEST:  # such a text takes seconds to read
        raise ValueError(f"not a genotype: {len(text):,} characters; at most {LONGEST:,} are read")


def shorten(text, limit=60):
    """`text` in at most `limit` characters, for messages."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def to_json(genotype, **metadata):
    """Genotype -> JSON text. `metadata` (epoch, score, data set, ...) is kept beside it."""
    record = {**metadata, "genotype": to_str(genotype), **genotype._asdict()}
    return json.dumps(record, indent=1)


def from_json(text):
    """JSON text of `to_json` -> Genotype. Raises ValueError that names the wrong part."""
    _check_length(text)
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"a genotype in JSON is an object, got {shorten(text)!r}")
    missing = [name for name in Genotype._fields if name not in record]
    if missing:
        raise ValueError(f"the JSON object lacks {', '.join(missing)}")
    return Genotype(**{name: record[name] for name in Genotype._fields})


def is_random(source):
    """Whether a source of `load` is "random" or "random:SEED"."""
    return re.fullmatch(r"random(:.*)?", str(source).strip()) is not None


def draw(source, seed=0, space=None):
    """The random cell that "random", drawn with `seed`, or "random:SEED" stands for.

    space  {"primitives", "n_nodes", "k"} to draw from, as a search keeps them beside its genotype;
           what is missing is the default

    Raises ValueError where SEED is none, or no op besides "none" is there.
    """
    said = str(source).strip().partition(":")[2]
    if ":" in source and not re.fullmatch("[0-9]{1,9}", said):
        raise ValueError(f"{shorten(source)}: a random cell is random or random:SEED, as random:1")
    known = ("primitives", "n_nodes", "k")
    found = {name: space[name] for name in known if space and name in space}
    if set(found.get("primitives", PRIMITIVES)) <= {"none"}:
        raise ValueError("there is no op besides none to draw a random cell from")
    return random_genotype(int(said) if said else seed, **found)


def load(source):
    """Find a genotype: a run folder, a file (JSON or text), a published name, the text form, or a
    random cell of PRIMITIVES ("random:SEED").

    Raises ValueError for what cannot be read as a genotype, OSError for what cannot be opened.
    """
    source = str(source).strip()
    if source in PUBLISHED:
        return PUBLISHED[source]
    if source.startswith("Genotype"):
        return from_str(source)
    path = source
    if is_random(source):
        return draw(source)
    if os.path.isdir(path):
        path = os.path.join(source, FILE)
        if not os.path.isfile(path):
            raise ValueError(
                f"{source} holds no {FILE}: no search or comparison, or its first epoch or rung is "
                f"not finished"
            )
    if os.path.isfile(path):
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read().strip()
        except UnicodeDecodeError:
            raise ValueError(f"{path} is no genotype but a binary file") from None
        if not text.startswith(("{", "Genotype")):
            raise ValueError(f"{path} is no genotype: it begins with neither {{ nor Genotype(")
        try:
            return from_json(text) if text.startswith("{") else from_str(text)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    if "/" in source or os.sep in source or source.endswith((".json", ".txt")):
        hint = run_of_that_name(source, *RUNS)
        raise ValueError(f"there is no file or folder {shorten(source)}{hint}")
    near = difflib.get_close_matches(source.upper(), PUBLISHED, n=1)
    runs = run_of_that_name(source, *RUNS)
    hint = runs or (f"; did you mean {near[0]}?" if near else "")
    raise ValueError(
        f"no genotype {shorten(source)!r}: neither a run folder, a file, the text Genotype(...), "
        f"nor a published name ({', '.join(PUBLISHED)}){hint}"
    )


def run_of_that_name(name, *roots):
    """A question for the end of an error: whether the run folder of this name was meant, where
    only NAME was said and ROOT/NAME is there, such as searchs/pets, or one that is written nearly
    so; else ""."""
    paths = [f"{root}/{name}" for root in roots]
    there = [path for path in paths if name and os.path.isdir(path)]
    if not there:
        last = os.path.basename(name.rstrip("/"))
        runs = [(root, run) for root in roots if os.path.isdir(root) for run in os.listdir(root)]
        near = difflib.get_close_matches(last, sorted({run for _, run in runs}), n=1, cutoff=0.7)
        # where it stands below several roots, the nearest path
        alike = [f"{root}/{run}" for root, run in runs if run in near]
        there = difflib.get_close_matches(name, alike, n=1, cutoff=0)
    return f"; did you mean {' or '.join(there)}?" if there else ""


def metadata(source):
    """What a JSON file keeps beside its genotype (see `to_json`), as a dict.

    `source` as in `load`. {} for what has no such file or one that cannot be read; `load` says
    what is wrong with it.
    """
    path = str(source).strip()
    if os.path.isdir(path):
        path = os.path.join(path, FILE)
    if not os.path.isfile(path):  # a FIFO or a device may have no end
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(record, dict):
        return {}
    return {k: v for k, v in record.items() if k not in ("genotype", *Genotype._fields)}


def input_name(j):
    """What the paper calls the input `j` of an edge: c_{k-2}, c_{k-1}, then 0, 1, ..."""
    return ("c_{k-2}", "c_{k-1}")[j] if j < 2 else str(j - 2)


def describe(genotype, n_layers=None):
    """A genotype in words, one line per node; with `n_layers`, also how the cells are stacked."""

    def name(j):
        return input_name(j) if j < 2 else f"node {input_name(j)}"

    def cell(title, gene, concat):
        yield f"{title} cell"
        for i, edges in enumerate(gene):
            yield f"  node {i} = " + " + ".join(f"{op}({name(j)})" for op, j in edges)
        yield f"  output = concat({', '.join(name(j) for j in concat)})"

    lines = [*cell("normal", genotype.normal, genotype.normal_concat)]
    lines += cell("reduction", genotype.reduce, genotype.reduce_concat)
    if n_layers is not None:
        kinds = ["R" if i in reduction_layers(n_layers) else "N" for i in range(n_layers)]
        lines.append(f"stack of {n_layers} cells: {' '.join(kinds)} (N normal, R reduction)")
    return "\n".join(lines)


def reduction_layers(n_layers):
    """The reduction cells stand at 1/3 and 2/3 of the depth (sec. 3.1.1); counted from 0."""
    return {n_layers // 3, 2 * n_layers // 3}


def searched_cells(n_layers):
    """The kinds of cells in a supernet of so many: one or two are both reduction cells."""
    has_normal = n_layers > len(reduction_layers(n_layers))
    return ("normal", "reduce") if has_normal else ("reduce",)


# --- published genotypes ------------------------------------------------------------------------

_CONCAT = range(2, 6)

# DARTS, first order (arXiv 1806.09055)
DARTS_V1 = Genotype(
    normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0),
            ('skip_connect', 0), ('sep_conv_3x3', 1),
            ('skip_connect', 0), ('sep_conv_3x3', 1),
            ('sep_conv_3x3', 0), ('skip_connect', 2)],
    normal_concat=_CONCAT,
    reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1),
            ('skip_connect', 2), ('max_pool_3x3', 0),
            ('max_pool_3x3', 0), ('skip_connect', 2),
            ('skip_connect', 2), ('avg_pool_3x3', 0)],
    reduce_concat=_CONCAT,
)  # fmt: skip

# DARTS, second order (arXiv 1806.09055)
DARTS_V2 = Genotype(
    normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1),
            ('sep_conv_3x3', 0), ('sep_conv_3x3', 1),
            ('sep_conv_3x3', 1), ('skip_connect', 0),
            ('skip_connect', 0), ('dil_conv_3x3', 2)],
    normal_concat=_CONCAT,
    reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1),
            ('skip_connect', 2), ('max_pool_3x3', 1),
            ('max_pool_3x3', 0), ('skip_connect', 2),
            ('skip_connect', 2), ('max_pool_3x3', 1)],
    reduce_concat=_CONCAT,
)  # fmt: skip

# PC-DARTS on CIFAR-10 (arXiv 1907.05737)
PC_DARTS_cifar = Genotype(
    normal=[('sep_conv_3x3', 1), ('skip_connect', 0),
            ('sep_conv_3x3', 0), ('dil_conv_3x3', 1),
            ('sep_conv_5x5', 0), ('sep_conv_3x3', 1),
            ('avg_pool_3x3', 0), ('dil_conv_3x3', 1)],
    normal_concat=_CONCAT,
    reduce=[('sep_conv_5x5', 1), ('max_pool_3x3', 0),
            ('sep_conv_5x5', 1), ('sep_conv_5x5', 2),
            ('sep_conv_3x3', 0), ('sep_conv_3x3', 3),
            ('sep_conv_3x3', 1), ('sep_conv_3x3', 2)],
    reduce_concat=_CONCAT,
)  # fmt: skip

# P-DARTS (arXiv 1904.12760)
PDARTS = Genotype(
    normal=[('skip_connect', 0), ('dil_conv_3x3', 1),
            ('skip_connect', 0), ('sep_conv_3x3', 1),
            ('sep_conv_3x3', 1), ('sep_conv_3x3', 3),
            ('sep_conv_3x3', 0), ('dil_conv_5x5', 4)],
    normal_concat=_CONCAT,
    reduce=[('avg_pool_3x3', 0), ('sep_conv_5x5', 1),
            ('sep_conv_3x3', 0), ('dil_conv_5x5', 2),
            ('max_pool_3x3', 0), ('dil_conv_3x3', 1),
            ('dil_conv_3x3', 1), ('dil_conv_5x5', 3)],
    reduce_concat=_CONCAT,
)  # fmt: skip

PUBLISHED = {
    "DARTS_V1": DARTS_V1,
    "DARTS_V2": DARTS_V2,
    "PC_DARTS_cifar": PC_DARTS_cifar,
    "PDARTS": PDARTS,
}
