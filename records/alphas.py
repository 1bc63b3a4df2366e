"""What alpha decided on every edge, from a line of alphas.jsonl."""


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
    except (IndexError, KeyError, TypeError):
        return None


def edges(record, cell):
    """What every edge of a cell has decided, as dicts, the kept ones marked.

    {"node", "input", "op", "weight", "second", "second_weight", "margin"}: the strongest op besides
    "none", the runner-up among these, and by how much the first is ahead. node counts from 0 for
    the first computed one; input as in a gene.
    """
    names = record["primitives"]
    real = [i for i, op in enumerate(names) if op != "none"]
    found = []
    for node, rows in enumerate(record[cell]):
        for j, row in enumerate(rows):
            first, *rest = sorted(real, key=lambda i: -row[i])
            second = rest[0] if rest else None
            found.append({
                "node": node, "input": j, "op": names[first], "weight": row[first],
                "second": None if second is None else names[second],
                "second_weight": None if second is None else row[second],
                "margin": None if second is None else row[first] - row[second],
            })  # fmt: skip
    return found
