"""What alpha decided on every edge, from a record of `reader.read_alphas`."""

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


def edges(record, cell):
    """What every edge of a cell has decided, as dicts:

    node, input            the edge: node 0 is the first computed one, the input counts as in a gene
    op, weight             the strongest op besides "none", and its mixing weight
    second, second_weight  the runner-up among these; None without one
    margin                 by how much the first is ahead of the second; None without one
    edge_weight            of the edge among those that enter its node; None where all are alike
    strength               what ranks the edge: weight, times edge_weight where there is one
    kept                   whether the genotype of this record keeps the edge
    """
    names = record["primitives"]
    real = [i for i, op in enumerate(names) if op != "none"]
    gene = getattr(gt.from_str(record["genotype"]), cell)
    kept = {(node, j) for node, chosen in enumerate(gene) for _, j in chosen}
    found = []
    for node, rows in enumerate(record[cell]):
        for j, row in enumerate(rows):
            first, *rest = sorted(real, key=lambda i: -row[i])
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
