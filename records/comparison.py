"""What a comparison has found: ranking, noise, and whether the search beat chance.

Everything follows from two files of compares/NAME: summary.json, which says who takes part and
what ranks them, and metrics.jsonl, with a line for each training. The words of the log,
the chart and the page are made from what stands here.
"""

import glob
import json
import math
import os
import statistics
import zlib
from collections import defaultdict
from typing import NamedTuple

from console.terminal import plural
from records import reader
from records.files import COMPARISONS, METRICS, SUMMARY

FOUND, PUBLISHED, GIVEN, RANDOM, BASELINE = "found", "published", "given", "random", "baseline"
KINDS = {
    FOUND: "found by a search",
    PUBLISHED: "published",
    GIVEN: "given",
    RANDOM: "random",
    BASELINE: "torchvision",
}
WHAT = {FOUND: "found by a search", RANDOM: "a random cell", PUBLISHED: "published",
        GIVEN: "given as it is"}  # fmt: skip
# what a ranking goes by, in words
LOSSES, ACCURACY = "losses", "accuracy"
RANK_BY = {
    LOSSES: "both losses, the mean of that of the training and that on the scored images",
    ACCURACY: "accuracy on the scored images",
}
# a cell has learned something from 1/9 of the way between guessing and no mistake on (20 % right of
# ten classes), of many classes from three times a guess on
LEAST_AHEAD, LEAST_TIMES = 1 / 9, 3
ALIKE = 5e-5  # a margin that is printed as 0
# two-sided 95 % quantiles of Student's t, by degrees of freedom; 1.96 in the limit
STUDENT = (
    12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13,
    2.12, 2.11, 2.10, 2.09, 2.09, 2.08, 2.07, 2.07, 2.06, 2.06, 2.06, 2.05, 2.05, 2.05, 2.04,
)  # fmt: skip


class Rung(NamedTuple):
    """The trainings of one candidate in one rung."""

    rung: int  # counted from 1
    epochs: int
    top1: tuple  # of each training, by its seed; on the scored images
    loss: tuple
    train_loss: tuple  # of its last epoch, as it went
    seeds: tuple
    rank_by: str = LOSSES
    guessing: float = 0.0  # the accuracy of naming the same class always; of a damaged summary 0

    @property
    def is_weak(self):
        """Whether hardly anything was learned, so that nothing can be chosen by it."""
        guess = self.guessing
        return self.mean < min(guess + LEAST_AHEAD * (1 - guess), LEAST_TIMES * guess)

    @property
    def scores(self):
        """What the ranking goes by, of each training; more is better."""
        if self.rank_by == ACCURACY:
            return self.top1
        return tuple(-(a + b) / 2 for a, b in zip(self.train_loss, self.loss, strict=True))

    @property
    def score(self):
        return statistics.mean(self.scores)

    @property
    def place(self):
        """What candidates of a rung are sorted by, the best first: who has hardly learned anything
        stands last, then the score decides, then the loss."""
        return self.is_weak, -self.score, self.mean_loss

    @property
    def mean(self):
        return statistics.mean(self.top1)

    @property
    def deviation(self):
        """Between trainings; None where there is one alone."""
        return statistics.stdev(self.top1) if len(self.top1) > 1 else None

    @property
    def mean_loss(self):
        return statistics.mean(self.loss)

    @property
    def mean_train_loss(self):
        return statistics.mean(self.train_loss)


class Row(NamedTuple):
    """A candidate: who it is, and its rungs, the first first. `fault` says why it was left out."""

    name: str
    kind: str
    genotype: str  # as text; "" of a baseline
    params: float  # both None where it could not be built
    madds: float
    fault: str
    rungs: tuple

    @property
    def last(self):
        return self.rungs[-1] if self.rungs else None


class Chance(NamedTuple):
    """Found against random cells in the first rung, where all are trained alike. In accuracy."""

    difference: float
    low: float  # the 95 % interval
    high: float
    n_found: int
    n_random: int
    epochs: int


# --- reading ------------------------------------------------------------------------------------


def checksum(value):
    """Of a value of JSON: tells one that was changed from what was written."""
    return f"{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"


def sealed(record):
    """A record of a training with its checksum, as metrics.jsonl keeps it: --resume believes it."""
    return {**record, "checksum": checksum(record)}


def is_sealed(record):
    rest = {key: value for key, value in record.items() if key != "checksum"}
    return record.get("checksum") == checksum(rest)


def trainings(run_path):
    """The whole lines of metrics.jsonl, by (rung, candidate, seed), in order."""
    wanted = {"rung": reader.is_count, "candidate": reader.is_text, "seed": reader.is_number}
    scored = {"epochs": reader.is_count, "top1": reader.is_weight}
    scored |= {"loss": reader.is_number, "train_loss": reader.is_number}
    return {
        (record["rung"], record["candidate"], record["seed"]): record
        for record in reader.read_lines(os.path.join(run_path, METRICS))
        if is_sealed(record)
        and reader.fits(record, wanted)
        and (reader.fits(record, scored) or reader.fits(record, {"fault": reader.is_text}))
    }


def n_lines(run_path):
    """How many lines metrics.jsonl has, whole or not."""
    with open(os.path.join(run_path, METRICS), "rb") as stream:
        return sum(1 for line in stream if line.strip())


def genotypes(run_path):
    """{candidate: its genotype as text}, in the order of the command line; of a damaged summary
    nothing."""
    found = reader.read_object(os.path.join(run_path, SUMMARY)).get("candidates")
    wanted = {"name": reader.is_text, "genotype": reader.is_text}
    return {c["name"]: c["genotype"] for c in found} if reader.fits(found, [wanted]) else {}


def with_candidate(root, name):
    """{folder: the genotype, as text, that it has there} of the comparisons below `root` in which
    the candidate of this name takes part."""
    folders = sorted(glob.glob(os.path.join(glob.escape(root), "*")))
    known = {folder: genotypes(folder) for folder in folders}
    return {folder: found[name] for folder, found in known.items() if name in found}


def read(run_path):
    """The `ranking` of what can be compared so far (`comparable`). Raises ValueError where there is
    no comparison, or nothing in it yet."""
    reader.require_folder(run_path, COMPARISONS)
    wanted = {
        "name": reader.is_text, "kind": lambda kind: reader.is_text(kind) and kind in KINDS,
        "genotype": reader.is_text, "fault": reader.is_text,
    }  # fmt: skip
    summary = reader.read_summary(run_path)
    candidates, rank_by = summary.get("candidates"), summary.get("rank_by")
    sizes = {"params": reader.is_number, "madds": reader.is_number}  # of all that could be built
    if not reader.fits(candidates, [wanted]) or not all(
        c["fault"] or reader.fits(c, sizes) for c in candidates
    ):
        if not reader.is_comparison(run_path):
            raise ValueError(f"{run_path} is no comparison; report.py draws any run")
        path = os.path.join(run_path, SUMMARY)
        what = "damaged" if os.path.exists(path) else "missing"
        names = ", ".join(dict.fromkeys(name for _, name, _ in trainings(run_path)))
        cells = f"its cells ({names})" if names else "its cells"
        raise ValueError(
            f"{path} is {what}, and it alone says who takes part; start the comparison again: name "
            f"{cells}, with --name {os.path.basename(os.path.abspath(run_path))} --overwrite"
        )
    rungs, guessing = summary.get("rungs"), summary.get("guessing", 0.0)  # None, 0: damaged
    records = comparable(list(trainings(run_path).values()), rungs)
    by = rank_by if rank_by in list(RANK_BY) else LOSSES
    rows = ranking(candidates, records, by, guessing)
    if not any(row.rungs for row in rows):
        raise ValueError(f"{run_path} records no finished training yet")
    return rows


def comparable(records, rungs):
    """Of the records of trainings those that can be compared when so many `rungs` are over: theirs,
    since within the second who is trained first would stand before the others. Before the end of
    the first, those of the seeds that all cells have which were trained: the halves of the images
    change places with the seed, and one may be harder. rungs  None: all are over
    """
    if rungs is None:
        return records
    kept = [record for record in records if record["rung"] <= max(rungs, 1)]
    if rungs >= 1:
        return kept
    failed = {record["candidate"] for record in kept if "fault" in record}
    seeds = defaultdict(set)
    for record in kept:
        if record["candidate"] not in failed:
            seeds[record["candidate"]].add(record["seed"])
    common = set.intersection(*seeds.values()) if seeds else set()
    return [r for r in kept if r["candidate"] in failed or not common or r["seed"] in common]


# --- ranking ------------------------------------------------------------------------------------


def ranking(candidates, records, rank_by=LOSSES, guessing=0.0):
    """The candidates as `Row`s, the best first.

    candidates  {"name", "kind", "genotype", "params", "madds", "fault"} of each
    records     {"rung", "candidate", "seed", "epochs", "top1", "loss", "train_loss"} of each
                finished training, "fault" instead of the scores for one that failed
    rank_by     a key of RANK_BY
    guessing    the accuracy of naming the same class always, where it is known

    Who came further in the halving stands before the others; within a rung `Rung.place` decides.
    Who was left out, for a single training that failed, stands last.
    """
    by_rung, faults = defaultdict(dict), {}
    for record in records:
        if record.get("fault"):
            faults.setdefault(record["candidate"], record["fault"])
        else:
            by_rung[record["candidate"], record["rung"]][record["seed"]] = record
    rows = []
    for c in candidates:
        fault = c["fault"] or faults.get(c["name"], "")
        rungs = [
            Rung(
                rung,
                next(iter(found.values()))["epochs"],
                *(
                    tuple(found[seed][name] for seed in sorted(found))
                    for name in ("top1", "loss", "train_loss", "seed")
                ),
                rank_by,
                guessing,
            )
            for (name, rung), found in sorted(by_rung.items())
            if name == c["name"]
        ]
        size = c.get("params"), c.get("madds")
        rows.append(Row(c["name"], c["kind"], c["genotype"], *size, fault, tuple(rungs)))
    return sorted(rows, key=order)


def order(row):
    """What rows are sorted by."""
    if row.fault or not row.rungs:
        return (1,)
    return (0, -row.last.rung, *row.last.place)


def winner(rows):
    """The row of the cell to train, None without one: a baseline is no cell."""
    return next(iter(ranked_cells(rows)), None)


def ranked_cells(rows):
    """The rows of the cells that have been trained and not left out."""
    return [r for r in rows if r.kind != BASELINE and r.rungs and not r.fault]


def is_weak(rows):
    """Whether the winner, and so every cell of its rung, has hardly learned anything."""
    best = winner(rows)
    return best is not None and best.last.is_weak


def best_baseline(rows):
    """The row of the baseline that came furthest with the highest accuracy; None without one."""
    there = [r for r in rows if r.kind == BASELINE and r.rungs and not r.fault]
    return max(there, key=lambda r: (r.last.rung, r.last.mean), default=None)


# --- noise --------------------------------------------------------------------------------------


def margin(rows, rung):
    """Up to which difference of `Rung.score` two candidates of a rung are within the noise: t * s *
    sqrt(2 / n), s the deviation between the n trainings of a cell, pooled over all candidates of
    the rung, and t Student's 95 % quantile. None where fewer than three candidates were
    trained twice, or two three times. 0 where trainings come out alike, as those of cells that
    have learned nothing do.

    What a training has in common with those of all other cells, the images that it is scored on
    above all, is no noise.
    """
    rungs = [r for row in rows if not row.fault for r in row.rungs if r.rung == rung]
    groups = shared(rungs, "scores")
    n = len(groups[0]) if groups else 0
    freedom = (len(groups) - 1) * (n - 1)
    if freedom < 2:  # by two candidates, trained twice, t is 12.7: that tells nothing
        return None
    squares = sum((x - statistics.fmean(g)) ** 2 for g in centred(groups) for x in g)
    most = student(freedom) * math.sqrt(squares / freedom * 2 / n)
    return most if most >= ALIKE else 0.0


def student(freedom):
    """Student's two-sided 95 % quantile for so many degrees of freedom, 1 or more. Between two of
    the table it is linear in 1 / freedom, behind the table in the first terms of its series."""
    if freedom >= len(STUDENT):
        return 1.96 + 2.4 / freedom
    n = int(freedom)
    part = (1 / n - 1 / freedom) / (1 / n - 1 / (n + 1))
    return STUDENT[n - 1] + part * (STUDENT[n] - STUDENT[n - 1])


def shared(rungs, what):
    """`what`, "top1" or "scores", of the trainings that all cells of a rung have finished, a list
    for each."""
    seeds = set.intersection(*(set(r.seeds) for r in rungs)) if rungs else set()
    return [
        [x for seed, x in zip(r.seeds, getattr(r, what), strict=True) if seed in seeds]
        for r in rungs
    ]


def centred(groups):
    """The scores of cells, as many trainings of each, less the mean of all cells in that one."""
    means = [statistics.fmean(column) for column in zip(*groups, strict=True)]
    return [[x - mean for x, mean in zip(group, means, strict=True)] for group in groups]


def rivals(rows):
    """The rows that came as far as the winner, baselines apart."""
    best = winner(rows)
    return [
        row
        for row in rows
        if row is not best
        and row.kind != BASELINE
        and not row.fault
        and row.last
        and row.last.rung == best.last.rung
    ]


def within_noise(rows):
    """The rows of the winner's rung, baselines apart, that are no further from it than the margin;
    None where the noise is not known."""
    best = winner(rows)
    most = best and margin(rows, best.last.rung)
    if most is None:
        return None
    return [row for row in rivals(rows) if best.last.score - row.last.score <= most]


# --- chance -------------------------------------------------------------------------------------


def interval(found, drawn):
    """(low, high), the 95 % interval of mean(found) - mean(drawn), of two lists of numbers, by
    Student's t. Both sides are supposed to vary alike, since one found cell cannot tell how much
    others would differ from it. Three numbers are the least."""
    freedom = len(found) + len(drawn) - 2
    means = [statistics.fmean(side) for side in (found, drawn)]
    squares = sum((x - m) ** 2 for side, m in zip((found, drawn), means, strict=True) for x in side)
    half = student(freedom) * math.sqrt(squares / freedom * (1 / len(found) + 1 / len(drawn)))
    return means[0] - means[1] - half, means[0] - means[1] + half


def chance(rows):
    """The `Chance`: found minus random cells in the first rung; None without one found and two
    random cells, four in all: of three, t is 12.7, which tells nothing. None, too, where they do
    not differ on either side, as cells that have not learned anything: that shows no noise to
    measure the difference by. None where they were trained too briefly (`is_too_brief`).

    The first rung alone has all cells trained alike; behind it only good ones are left on both
    sides.
    """
    if is_too_brief(rows):
        return None
    first = first_rung(rows)
    n_found, n_random = (len(first[kind]) for kind in (FOUND, RANDOM))
    groups = shared([*first[FOUND], *first[RANDOM]], "top1")
    if not n_found or n_random < 2 or n_found + n_random < 4 or not groups[0]:
        return None
    cells = [statistics.fmean(group) for group in groups]
    found, drawn = cells[:n_found], cells[n_found:]
    if len(set(found)) == len(set(drawn)) == 1:
        return None
    low, high = interval(found, drawn)
    difference = statistics.fmean(found) - statistics.fmean(drawn)
    epochs = next(row.rungs[0].epochs for row in rows if row.kind == RANDOM and row.rungs)
    return Chance(difference, low, high, n_found, n_random, epochs)


def first_rung(rows):
    """{FOUND: [Rung], RANDOM: [Rung]}, what the first rung has of the cells of both kinds."""
    return {
        kind: [row.rungs[0] for row in rows if row.kind == kind and row.rungs and not row.fault
               and row.rungs[0].rung == 1]
        for kind in (FOUND, RANDOM)
    }  # fmt: skip


def hardly_learned(rows):
    """(how many, of how many) cells of `first_rung` had hardly learned anything (`is_weak`)."""
    rungs = [rung for of_kind in first_rung(rows).values() for rung in of_kind]
    return sum(rung.is_weak for rung in rungs), len(rungs)


def is_too_brief(rows):
    """Whether half of the cells of `first_rung` or more had hardly learned anything: their scores
    tell who begins to learn first."""
    n_weak, n = hardly_learned(rows)
    return 2 * n_weak >= n


# --- words --------------------------------------------------------------------------------------


def points(value):
    """A difference of accuracies in points."""
    return f"{100 * value:.2f} points"


def who(metadata):
    """Whose cell a genotype.json holds that a comparison has written, in words; "" of others."""
    name, kind = metadata.get("name"), metadata.get("kind")
    there = reader.is_text(kind) and kind in WHAT and reader.is_text(name)
    return f"{name}, {WHAT[kind]}" if there else ""


def chance_words(rows):
    """Whether the search beat chance, in a sentence or two; "" where no search takes part."""
    if not any(row.kind == FOUND for row in rows):
        return ""
    found = chance(rows)
    if all(first_rung(rows).values()) and is_too_brief(rows):
        n_weak, n = hardly_learned(rows)
        return (
            f"Whether the search beat chance cannot be told: {n_weak} of {plural(n, 'cell')} had "
            f"hardly learned anything in the first rung; that takes more --epochs."
        )
    if found is None:
        return (
            "Whether the search beat chance is not known: that takes a found cell and three random "
            "ones, or two of each, that were trained alike and differ (--random 4)."
        )
    who = f"{plural(found.n_found, 'found cell')} and {plural(found.n_random, 'random cell')}"
    interval = (
        f"95 % interval {100 * found.low:+.2f} to {100 * found.high:+.2f}, {who}, each trained "
        f"for {plural(found.epochs, 'epoch')}"
    )
    size = points(abs(found.difference))
    if found.low > 0:
        text = f"The search beat chance: what it found is {size} better than random cells"
    elif found.high < 0:
        text = f"The search did worse than chance: random cells are {size} better"
    else:
        side = "better" if found.difference >= 0 else "worse"
        text = (
            f"Whether the search beat chance cannot be told: what it found is {size} {side} than "
            f"random cells, and that may be chance"
        )
    return f"{text} ({interval})."


def noise_words(rows):
    """Who is within the noise of the winner, in a sentence."""
    best, close = winner(rows), within_noise(rows)
    if close is None:
        return (
            "How much is noise is not known: that takes three candidates with two trainings in one "
            "rung, or two with three (compare.py --seeds 3)."
        )
    most = margin(rows, best.last.rung)
    if not most:
        return "How much is noise is not known: all trainings of a cell came out alike."
    amount = points(most) if best.last.rank_by == ACCURACY else f"{most:.4f} in {LOSSES}"
    where = f"differences below {amount} are noise there"
    if close:
        names = ", ".join(row.name for row in close)
        return f"Within the noise of {best.name}: {names} ({where})."
    return f"No other cell of its rung is within the noise of {best.name} ({where})."


def place_words(rows, name):
    """Where a cell has come, in a sentence; "" where it is not among `rows`."""
    names = [row.name for row in ranked_cells(rows)]
    if name in names:
        return f"Of {plural(len(names), 'cell')} it is number {names.index(name) + 1}."
    return "It was left out." if name in [row.name for row in rows] else ""


def weak_words(rows, finished=True):
    """That no cell can be chosen, in a sentence or two."""
    best = winner(rows)
    what_next = "Compare again with more --epochs" if finished else "The next rung trains longer"
    return (
        f"No cell can be chosen yet: {best.name}, {WHAT[best.kind]}, is first with "
        f"{best.last.mean:.2%} on the scored images, where naming the same class always has "
        f"{best.last.guessing:.2%}. {what_next}."
    )


def conclusions(rows, finished=True):
    """What follows from the ranking, the sentences about the winner, chance and noise."""
    if is_weak(rows):  # then neither noise nor an interval means anything
        return [weak_words(rows, finished)]
    words = (winner_words, dropped_words, chance_words, noise_words)
    return list(filter(None, (say(rows) for say in words)))


def dropped_words(rows):
    """Who was dropped before it had learned anything, in a sentence; "" where nobody was."""
    last = winner(rows).last.rung
    names = [r.name for r in ranked_cells(rows) if r.last.rung < last and r.last.is_weak]
    if not names:
        return ""
    return (
        f"Dropped while they had hardly learned anything: {', '.join(names)}; more --epochs would "
        f"be fairer."
    )


def winner_words(rows):
    """Which cell to train, in a sentence or two."""
    best, other = winner(rows), best_baseline(rows)
    text = f"Train {best.name}, {WHAT[best.kind]}: {best.last.mean:.2%} on the scored images."
    higher = [row for row in rivals(rows) if row.last.mean > best.last.mean]
    if higher:
        most = max(higher, key=lambda row: row.last.mean)
        has = "has a higher accuracy,"
        if len(higher) > 1:
            has = f"and {len(higher) - 1} more have a higher accuracy, up to"
        text += (
            f" {most.name} {has} {most.last.mean:.2%}, but higher losses, by which they are ranked "
            f"(docs/compare.md says why)."
        )
    if other is None:
        return text
    difference = best.last.mean - other.last.mean
    side = "above" if difference >= 0 else "below"
    more = f"It is {points(abs(difference))} {side} {other.name}"
    if other.params and best.params:
        times = other.params / best.params
        form = ",.0f" if times >= 9.95 else ".1f" if times >= 0.1 else ".1g"
        more += f", which has {times:{form}} times its parameters"
    if other.last.rung != best.last.rung:
        more += f" (of another rung, {plural(other.last.epochs, 'epoch')})"
    return f"{text} {more}."


def ranked_by_losses(rows):
    """Whether losses rank them; False where nothing is ranked yet."""
    best = winner(rows)
    return best is not None and best.last.rank_by == LOSSES


def order_words(rows):
    """What the ranking goes by, in a sentence."""
    more = len({r.epochs for row in rows for r in row.rungs}) > 1
    text = "; those that went on to more epochs stand first" if more else ""
    there = [row for row in rows if row.rungs and not row.fault]
    ahead = {row.last.rung for row in there if not row.last.is_weak}
    weak = [row.name for row in there if row.last.is_weak and row.last.rung in ahead]
    if weak:
        text += "; behind all others of as many epochs, what had hardly learned anything: "
        text += ", ".join(weak)
    return f"Ranked by {RANK_BY[winner(rows).last.rank_by]}{text}."


def table(rows):
    """The ranking as lines of text."""
    best, by_losses = winner(rows), ranked_by_losses(rows)
    head = "", "candidate", "kind", *["both losses"] * by_losses, "top1", "+-", "train loss", "loss"
    cells = [(*head, "epochs", "params", "multiply-adds")]
    for i, row in enumerate(rows, start=1):
        if row.fault or not row.rungs:
            continue
        last = row.last
        spread = "" if last.deviation is None else f"{100 * last.deviation:.2f}"
        losses = f"{last.mean_train_loss:.4f}", f"{last.mean_loss:.4f}"
        scores = f"{last.mean:.2%}", spread, *losses, str(last.epochs)
        size = f"{row.params / 1e6:.3f} M", f"{row.madds / 1e6:.2f} M"
        ranked_by = [f"{-last.score:.4f}"] * by_losses
        cells.append((str(i), row.name, KINDS[row.kind], *ranked_by, *scores, *size))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            text.ljust(width) if i in (1, 2) else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    lines += [f"left out: {row.name} ({row.fault})" for row in rows if row.fault]
    if best is not None:
        lines.append(order_words(rows))
    return "\n".join(lines)
