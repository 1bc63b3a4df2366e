"""What alpha decided on every edge, from records of `reader.read_alphas`, and how surely."""

import math
import statistics

import genotypes as gt


def strengths(record, gene, cell):
    """The strength of every kept edge, in the shape of `gene`: the mixing weight of its op. With
    edge weights, times that of the edge and the number of inputs of its node, so that an undecided
    edge weight changes nothing.

    record  a line of alphas.jsonl;  cell  "normal" or "reduce". None where the two do not fit
    together, as for a gene that was not derived from this alpha.
    """
    column = {op: i for i, op in enumerate(record["primitives"])}

    def strength(node, op, j):
        mix, of_edge = record[cell][node][j][column[op]], edge_weight(record, cell, node, j)
        return mix if of_edge is None else mix * of_edge * (node + 2)

    try:
        return [[strength(node, op, j) for op, j in edges] for node, edges in enumerate(gene)]
    except (IndexError, KeyError):
        return None


def edge_weight(record, cell, node, j):
    """The weight of an edge among those that enter its node (PC-DARTS); None without any."""
    return record["edge_weights"][cell][node][j] if "edge_weights" in record else None


def pen_width(strength, n_ops):
    """Width in points of an edge's line: 1.4 if undecided (1 / n_ops), 7 at a weight of 1."""
    undecided = 1 / n_ops if n_ops and n_ops > 1 else 0.0
    return 1.4 + 5.6 * max(0.0, min(strength, 1.0) - undecided) / (1 - undecided)


def edges(record, cell):
    """What every edge of a cell has decided, as dicts:

    node, input            the edge: node 0 is the first computed one, the input counts as in a gene
    op, weight             the strongest op besides "none", of a kept edge the op that is kept, and
                           its mixing weight
    second, second_weight  the strongest of the others; None without one
    margin                 by how much the first is ahead of the second; None without one. Below 0
                           where the first was kept for another reason, as by --max_skips
    edge_weight            of the edge among those that enter its node; None where all are alike
    strength               what ranks the edge: weight, times edge_weight where there is one
    kept                   whether the genotype of this record keeps the edge
    """
    names = record["primitives"]
    real = [i for i, op in enumerate(names) if op != "none"]
    gene = getattr(gt.from_str(record["genotype"]), cell)
    kept = {(node, j): op for node, chosen in enumerate(gene) for op, j in chosen}
    found = []
    for node, rows in enumerate(record[cell]):
        for j, row in enumerate(rows):
            op = kept.get((node, j))
            first, *rest = sorted(real, key=lambda i: (names[i] != op, -row[i]))
            edge = {
                "node": node, "input": j, "op": names[first], "weight": row[first],
                "second": None, "second_weight": None, "margin": None, "kept": (node, j) in kept,
                "edge_weight": edge_weight(record, cell, node, j), "strength": row[first],
            }  # fmt: skip
            if edge["edge_weight"] is not None:
                edge["strength"] *= edge["edge_weight"]
            if rest:
                second = rest[0]
                edge |= {"second": names[second], "second_weight": row[second]}
                edge["margin"] = row[first] - row[second]
            found.append(edge)
    return found


# --- how sure -------------------------------------------------------------------------------------

FEWEST = 3  # epochs that noise is measured on; fewer decide nothing
AHEAD = 2.0  # a lead counts from so many standard deviations on
ABOVE_CHANCE = 1.5  # a mixing weight counts from so many times that of an undecided edge on
SEARCH_LONGER = "search longer, or compare with other cells"
LEAST_TRAVEL = 0.25  # of eight ops; below, alpha cannot bring an op to ABOVE_CHANCE


def fewest_steps(alpha_lr):
    """Steps of alpha below which a search decides no edge, whatever the data say."""
    return math.ceil(LEAST_TRAVEL / alpha_lr)


def strong_skips(record, sure=None):
    """How many edges of the normal cell keep a skip connection that is well above chance; with
    `sure`, from `decided`, only of edges that are."""
    border = ABOVE_CHANCE / len(record["primitives"])
    return sum(
        op == "skip_connect"
        and weight >= border
        and (sure is None or sure.get(("normal", *edge), False))
        for edge, (op, weight, *_) in leads(record, "normal").items()
    )


def fewer_skips(skips):
    """The --max_skips that would help a normal cell of so many: 2, as P-DARTS has, or fewer."""
    return min(2, skips - 1)


def leads(record, cell):
    """{(node, input): (op, its mixing weight, lead over the runner-up, lead of the edge)} of the
    kept edges. The lead of the edge is that over the strongest edge of its node that was dropped;
    a lead is None where there is nothing to be ahead of."""
    found = edges(record, cell)
    dropped = {}
    for edge in found:
        if not edge["kept"]:
            dropped[edge["node"]] = max(dropped.get(edge["node"], 0.0), edge["strength"])
    return {
        (edge["node"], edge["input"]): (
            edge["op"],
            edge["weight"],
            edge["margin"],
            edge["strength"] - dropped[edge["node"]] if edge["node"] in dropped else None,
        )
        for edge in found
        if edge["kept"]
    }


def decided(history, epoch):
    """{(cell, node, input): whether the edge is decided} of the edges that are kept at `epoch`.

    history  `reader.read_alphas`;  epoch  one of it

    The last quarter of the epochs up to `epoch`, three at least, tells the noise. An edge is
    decided if in all of them it was kept with the same op; if at `epoch` the op is ahead of the
    runner-up, and the edge of the first one dropped, by more than two standard deviations of that
    lead; and if the op has 1.5 times the mixing weight of chance. Fewer epochs decide nothing.
    """
    until = [record for record in history if record["epoch"] <= epoch]
    window = until[-max(FEWEST, len(until) // 4) :]
    chance = 1 / len(window[-1]["primitives"])
    found = {}
    for cell in ("normal", "reduce"):
        past = [leads(record, cell) for record in window]
        for edge, (op, weight, *_) in past[-1].items():
            same = len(window) >= FEWEST and all(edge in r and r[edge][0] == op for r in past)
            clear = same and all(_is_clear([record[edge][i] for record in past]) for i in (2, 3))
            found[(cell, *edge)] = clear and weight >= ABOVE_CHANCE * chance
    return found


def _is_clear(lead):
    """Whether the last value of a lead is beyond the noise of all; where there is none, it is."""
    if None in lead:
        return lead[-1] is None
    return lead[-1] > max(AHEAD * statistics.stdev(lead), 0.0)


def how_sure(history, epoch, cells=("normal", "reduce")):
    """{"edges", "decided", "text", "advice"}: how many of the kept edges of these cells are decided
    at `epoch`, and what to do about it, "" where nothing is to be done."""
    found = {edge: sure for edge, sure in decided(history, epoch).items() if edge[0] in cells}
    kept, sure = len(found), sum(found.values())
    text = f"{sure} of {kept} edges are decided by more than the noise of the last epochs"
    skips = strong_skips([record for record in history if record["epoch"] <= epoch][-1], found)
    in_normal = sum(cell == "normal" for cell, *_ in found)
    if 2 * skips >= in_normal > 0:
        text += (
            f"; {skips} of {in_normal} in the normal cell are decided skip connections, which "
            f"train poorly"
        )
        advice = (
            f"search with --max_skips {fewer_skips(skips)} or for fewer epochs, or compare with "
            f"other cells"
        )
        return {"edges": kept, "decided": sure, "text": text, "advice": advice}
    return so_sure(sure, kept, text)


def so_sure(sure, kept, text):
    """The record of `how_sure`, where nothing but chance is to be said of the other edges."""
    advice = ""
    if sure < kept:
        text += f"; {'the rest is' if sure else 'all are'} close to chance"
        advice = SEARCH_LONGER
    return {"edges": kept, "decided": sure, "text": text, "advice": advice}
