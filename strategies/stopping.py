"""When a search ends before its last epoch, and with the cell of which epoch.

Each rule is asked after an epoch with the history: a list of {"epoch", "top1", "genotype",
"eigenvalue"} of the epochs in which alpha moved, the last one at its end. It returns None or
(why, the record of the epoch whose cell is recommended).
"""

import genotypes as gt
from console.terminal import plural

WINDOW, RATIO = 5, 0.75  # of RobustDARTS: epochs that are averaged; what is still no rise


def unchanged(history, n):
    """The kept edges and ops are the same for `n` epochs (DARTS+, arXiv 1909.06035)."""
    last = [record["genotype"] for record in history[-n - 1 :]]
    if len(last) <= n or len(set(last)) > 1:
        return None
    return f"the cell has not changed for {plural(n, 'epoch')} (--stop_unchanged)", history[-1]


def skips(history, most):
    """The normal cell has come to `most` skip connections (DARTS+): the cell of the epoch before.
    A search that begins with so many goes on until it has had fewer."""
    if len(history) < 2:
        return None
    before, now = (_n_skips(record) for record in history[-2:])
    if now < most or before >= most:
        return None
    why = f"the normal cell has {plural(now, 'skip connection')} (--stop_skips {most})"
    return why, history[-2]


def _n_skips(record):
    return gt.count_ops(gt.from_str(record["genotype"]).normal).get("skip_connect", 0)


def eigenvalue(history):
    """The dominant eigenvalue, a mean over five epochs, has risen by a third within five epochs
    (RobustDARTS): the cell of the epoch before these five."""
    values = [record["eigenvalue"] for record in history[-2 * WINDOW :]]
    if len(values) < 2 * WINDOW:
        return None
    earlier, now = (sum(part) / WINDOW for part in (values[:WINDOW], values[WINDOW:]))
    if earlier <= 0 or earlier >= RATIO * now:
        return None
    why = f"the dominant eigenvalue rose from {earlier:.3g} to {now:.3g} (--stop_eigenvalue)"
    return why, history[-WINDOW - 1]
