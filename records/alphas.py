"""What alpha decided on every edge, from a record of `reader.read_alphas`."""

import genotypes as gt


def strengths(record, gene, cell):
    """The mixing weight of every kept edge, in the shape of `gene`.

    record  a line of alphas.jsonl;  cell  "normal" or "reduce". None where the two do not fit
    together, as for a gene that was not derived from this alpha.
    """
    column = {op: i for i, op in enumerate(record["primitives"])}
    try:
        return [
            [record[cell][node][j][column[op]] for op, j in edges]
            for node, edges in enumerate(gene)
        ]
    except (IndexError, KeyError):
        return None


def pen_width(strength, n_ops):
    """Width in points of an edge's line: 1.4 if undecided (1 / n_ops), 7 at a weight of 1."""
    undecided = 1 / n_ops if n_ops and n_ops > 1 else 0.0
    return 1.4 + 5.6 * max(0.0, strength - undecided) / (1 - undecided)


def edges(record, cell):
    """What every edge of a cell has decided, as dicts:

    node, input            the edge: node 0 is the first computed one, the input counts as in a gene
    op, weight             the strongest op besides "none", and its mixing weight
    second, second_weight  the runner-up among these; None without one
    margin                 by how much the first is ahead of the second; None without one
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
            }  # fmt: skip
            if rest:
                second = rest[0]
                edge |= {"second": names[second], "second_weight": row[second]}
                edge["margin"] = row[first] - row[second]
            found.append(edge)
    return found
