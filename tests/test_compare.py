"""compare.py: halving, what it says and refuses; resuming; bad candidates; several searches."""

import contextlib
import html
import io
import json
import math
import os
import random
import re
import shutil
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import FAST_AUGMENT, FAST_SEARCH, ends_in_one_line, interrupt, lines, log_of, run_in
from data_helpers import make
from fault_helpers import copy_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_damaged_files import KINDS, damage, quick_pictures, run  # noqa: F401
from torch import nn
from tqdm import tqdm

import augment
import compare
import config
import genotypes as gt
import plot_compare
import plot_train_val
import report
import search
from comparing import baselines, halving, several, workers
from comparing.run import Comparison
from comparing.training import CPU, Recipe, Training
from comparing.workers import Answer, Job, Setting, Workers, perform
from data_sets import loaders, named
from data_sets.options import DataOptions
from models import ops
from records import comparison, files, index, reader
from tracking import augment_log, run_folder

SPACE = ["--primitives", "skip_connect,max_pool_3x3,sep_conv_3x3", "--n_nodes", "2"]
LEAST = ["--layers", "2", "--init_channels", "2", "--subset", "0.1", "--batch_size", "16", "--jobs",
         "1"]  # fmt: skip
TINY = [*LEAST, "--epochs", "2", *SPACE]
COMMAND = "compares/c"
NAMED = ["--name", "c", "--quiet"]


class InProcess:
    """Stands in for Workers: the same trainings, one after the other, in this process."""

    def __init__(self, n, setting):
        self.setting = setting
        self.opened = workers.Opened(setting, 0)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def run(self, jobs, wanted=lambda job: True):
        for job in jobs:
            if wanted(job):
                yield from self.perform(job)

    def perform(self, job):
        yield from perform(job, self.opened, self.setting)


def score_of(job):
    """A score that follows from the job, as from a training."""
    rng = random.Random(f"{job.name} {job.epochs} {job.seed}")
    names = ("top1", "loss", "train_top1", "train_loss")
    return {"epoch": job.epochs, "seconds": 1.0, **{name: rng.random() for name in names}}


class Scripted(InProcess):
    """Trains nothing: scores follow from the job. `fails` maps a name to what is wrong with it,
    `ends` a (name, rung) to the kind of its answer and why."""

    fails, ends, done, stop_after = {}, {}, [], math.inf

    def perform(self, job):
        if len(self.done) >= self.stop_after:
            raise KeyboardInterrupt
        self.done.append(job)
        if job.name in self.fails:
            yield Answer(job, "failed", self.fails[job.name])
        elif (job.name, job.rung) in self.ends:
            yield Answer(job, *self.ends[job.name, job.rung])
        elif not job.epochs:
            yield Answer(job, "done", (1.0, 2.0))
        else:
            yield Answer(job, "done", [score_of(job)])


@pytest.fixture
def in_process(here, monkeypatch):
    monkeypatch.setattr(compare, "Workers", InProcess)
    return here


@pytest.fixture
def scripted(here, monkeypatch):
    class Fresh(Scripted):
        fails, ends, done = {}, {}, []

    monkeypatch.setattr(compare, "Workers", Fresh)
    return Fresh


def trained(run=COMMAND):
    """{rung: the names that were trained in it}."""
    found = {}
    for record in lines(Path(run, "metrics.jsonl")):
        found.setdefault(record["rung"], set()).add(record["candidate"])
    return found


# --- halving ------------------------------------------------------------------------------------


@given(
    st.dictionaries(st.text(max_size=3), st.tuples(st.floats(0, 1), st.floats(0, 9)), min_size=1)
)
def test_the_better_half_is_that_of_counting_who_is_better(places):
    kept = halving.better_half(places)
    assert len(kept) == (len(places) + 1) // 2
    assert len(set(kept)) == len(kept)
    assert not any(places[out] < places[name] for out in set(places) - set(kept) for name in kept)


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 300))
def test_the_first_rung_has_half_the_epochs_of_the_last_where_there_are_three_or_more(n, epochs):
    wanted = [epochs // 2, epochs] if n > 2 and epochs > 1 else [epochs]
    assert halving.plan(n, epochs) == wanted


def by_hand(names, epochs, n_seeds, score):
    """Successive halving, slowly: (who takes part in each rung, the winner)."""
    rungs, left = [], list(names)
    for n_epochs in epochs:
        rungs.append(set(left))
        means = {}
        for name in left:
            total = 0.0
            for seed in range(2, 2 + n_seeds):
                total += score(score_of(Job(name, "", 0, n_epochs, seed)))
            means[name] = total / n_seeds
        winner = max(left, key=lambda name: means[name])
        while len(left) > math.ceil(len(rungs[-1]) / 2):
            left.remove(min(left, key=lambda name: means[name]))
    return rungs, winner


@pytest.mark.parametrize(
    ("rank_by", "score"),
    [("accuracy", lambda s: s["top1"]), ("losses", lambda s: -s["loss"] - s["train_loss"])],
)
def test_a_comparison_is_successive_halving(scripted, rank_by, score):
    words = [*TINY, "--random", "7", "--epochs", "9", "--seeds", "3", "--rank_by", rank_by, *NAMED]
    compare.main(words)
    rungs, winner = by_hand([f"random:{i}" for i in range(2, 9)], [4, 9], 3, score)
    assert list(trained().values()) == rungs
    assert len(scripted.done) == 3 * (7 + 4)
    assert f"Ranked by {comparison.RANK_BY[rank_by]}; those that went" in log_of(COMMAND)
    assert {(job.seed, job.swapped) for job in scripted.done} == {(2, False), (3, True), (4, False)}
    found = json.loads(Path(COMMAND, "genotype.json").read_text())
    assert (found["name"], found["kind"]) == (winner, "random")
    assert gt.load(COMMAND) == gt.random_genotype(
        int(winner[7:]), ["skip_connect", "max_pool_3x3", "sep_conv_3x3"], 2, 2
    )
    assert comparison.read(COMMAND)[0].name == winner


@pytest.mark.parametrize("seeds", [1, 2])
def test_there_is_a_page_from_the_first_training_on(scripted, monkeypatch, seeds):
    """And another when there is time, in the first rung, of the seeds that all have; behind that at
    the end of the rung alone."""
    now, seen = [0.0], []

    def draw(run):
        page = Path(report.write_comparison(run.files.path)).read_text()
        waiting = re.search(r"\(not trained yet: (\d+) of 7\)", page)
        assert ("What it says" in page) is (len(scripted.done) >= 7 * seeds)
        ranked = [row.last for row in comparison.read(COMMAND) if row.last]
        assert len({last.seeds for last in ranked if last.rung == 1}) <= 1
        if os.path.exists(f"{COMMAND}/genotype.json"):
            best = json.loads(Path(COMMAND, "genotype.json").read_text())["name"]
            assert best == comparison.read(COMMAND)[0].name
        seen.append((len(scripted.done), int(waiting[1]) if waiting else 0))
        now[0] += 0.3  # which is 3 % of ten seconds

    perform = scripted.perform

    def slow(self, job):
        now[0] += 4.0
        yield from perform(self, job)

    monkeypatch.setattr(workers.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(scripted, "perform", slow)
    monkeypatch.setattr(Comparison, "draw", draw)
    compare.main([*TINY, "--random", "7", "--epochs", "4", "--seeds", str(seeds), *NAMED])
    assert seen[:3] == [(1, 6), (4, 3), (7, 0)]
    # the last one twice, the second time with the time of the training that follows
    last = [(11, 0)] * 2 if seeds == 1 else [(10, 0), (13, 0), (14, 0), *[(22, 0)] * 2]
    assert seen[3:] == last
    found = json.loads(Path(COMMAND, "summary.json").read_text())["training"]["text"]
    assert found.startswith("training it will take about ")
    assert log_of(COMMAND).index(found) < log_of(COMMAND).index("train it with")
    assert f"T{found[1:]}." in Path(report.write_comparison(COMMAND)).read_text()


def test_a_page_in_the_second_rung_is_of_the_first_and_names_the_cell_of_genotype_json(
    scripted, monkeypatch
):
    monkeypatch.setattr(Comparison, "draw", lambda run: report.write_comparison(run.files.path))
    words = [*TINY, "--random", "5", "--epochs", "4", *NAMED]
    for stop in range(11, 16):  # the first rung has ten trainings
        scripted.done.clear()
        scripted.stop_after = stop
        ends_in_one_line(compare.main, [*words, "--overwrite"], code=130)
        best = json.loads(Path(COMMAND, "genotype.json").read_text())["name"]
        assert [row.last.rung for row in comparison.read(COMMAND)] == [1] * 5
        page = html.unescape(Path(COMMAND, "report.html").read_text())
        assert f"Train {best}, a random cell" in page
        assert "It has not finished: the last word may be another" in page
        assert re.search(r"compare\.py .*--name.* c .*--resume", page)
        assert "beat chance" not in page  # no search took part
    found = index.row(COMMAND)
    assert (found.state, found.epochs) == ("broken off", "15 trainings")


def test_a_finished_comparison_that_is_opened_again_says_nothing_false(scripted, monkeypatch):
    """One that was killed is tried again: until it is trained, the ranking is open."""
    monkeypatch.setattr(Comparison, "draw", lambda run: report.write_comparison(run.files.path))
    scripted.ends = {("random:3", 1): ("ended", "killed"), ("random:4", 1): ("failed", "broken")}
    compare.main([*TINY, "--random", "5", "--epochs", "4", *NAMED])
    page = Path(COMMAND, "report.html")
    assert [reader.read_summary(COMMAND)[key] for key in ("finished", "rungs")] == [True, 2]
    for text in ("random:3 is left out: killed", "random:4 is left out: broken"):
        assert text in page.read_text()
    scripted.ends, scripted.stop_after = {}, len(scripted.done) + 1
    ends_in_one_line(compare.main, ["--name", "c", "--resume", "--quiet"], code=130)
    assert [reader.read_summary(COMMAND)[key] for key in ("finished", "rungs")] == [False, 0]
    text = page.read_text()
    assert "What it says" not in text  # nor a command that trains what stands in genotype.json
    assert "random:4 is left out: broken" in text  # of the call before
    scripted.stop_after = math.inf
    compare.main(["--name", "c", "--resume", "--quiet"])
    assert reader.read_summary(COMMAND)["rungs"] == 2
    best = json.loads(Path(COMMAND, "genotype.json").read_text())["name"]
    assert f"Train {best}" in page.read_text()
    # nothing to try again: what is over stays over
    ends_in_one_line(compare.main, ["--name", "c", "--resume", "--seeds", "9"])
    compare.main(["--name", "c", "--resume", "--quiet"])
    assert reader.read_summary(COMMAND)["rungs"] == 2


@pytest.mark.parametrize("stop", [1, 5, 11, 15])
def test_a_comparison_goes_on_behind_what_is_finished(scripted, stop):
    words = [*TINY, "--random", "5", "--epochs", "4"]
    compare.main([*words, "--name", "whole", "--quiet"])
    n = len(scripted.done)
    scripted.done.clear()
    scripted.stop_after = stop
    text = ends_in_one_line(compare.main, [*words, *NAMED], code=130)
    again = f"after {comparison.plural(stop, 'training')} with "
    assert again in text
    assert text.endswith("compare.py --name c --resume")
    with open("compares/c/metrics.jsonl", "a") as stream:
        stream.write('{"rung": 1, "cand')  # killed while it wrote
    scripted.stop_after = math.inf
    shutil.copytree("compares/c", "compares/other")
    compare.main(["--name", "c", "--resume", "--quiet"])
    assert len(scripted.done) == n  # none twice
    assert lines("compares/c/metrics.jsonl") == lines("compares/whole/metrics.jsonl")
    assert gt.load("compares/c") == gt.load("compares/whole")
    text = ends_in_one_line(compare.main, ["--name", "other", "--resume", "--seeds", "9"])
    assert "--seeds was 2 in that run and cannot change now" in text


@pytest.mark.skipif(os.name != "posix", reason="has no such signals")
@pytest.mark.parametrize(
    ("n", "text"),
    [
        (1, "stopped by SIGTERM at once before a training was finished; start again, with"),
        (3, "stopped by SIGTERM after 2 trainings; go on with "),
    ],
)
def test_a_signal_ends_a_comparison_in_one_line(scripted, monkeypatch, n, text):
    perform = scripted.perform

    def signalled(self, job):
        if len(self.done) + 1 == n:
            os.kill(os.getpid(), signal.SIGTERM)
        yield from perform(self, job)

    monkeypatch.setattr(scripted, "perform", signalled)
    assert text in ends_in_one_line(compare.main, [*TINY, "--random", "2", *NAMED], code=143)


# --- what is said -------------------------------------------------------------------------------


def candidates(*names):
    return [
        {"name": name, "kind": kind, "genotype": "", "params": 1e5, "madds": 1e6, "fault": ""}
        for name, kind in names
    ]


def record(name, top1, seed, rung=1, **more):
    return {"rung": rung, "candidate": name, "seed": seed, "epochs": 4 * rung, "top1": top1,
            "loss": 1 - top1, "train_loss": 1 - top1, **more}  # fmt: skip


def rows_of(scores, rank_by="losses"):
    """Rows from {(name, kind): scores}, one rung. Both losses are what accuracy lacks to 1."""
    records = [
        record(name, top1, seed) for (name, _), found in scores.items()
        for seed, top1 in enumerate(found)
    ]  # fmt: skip
    return comparison.ranking(candidates(*scores), records, rank_by)


def test_the_quantiles_of_student_are_those_of_its_density():
    for freedom in (*range(1, 61), 100, 1000, 4.83, 9.5, 29.5):
        t = comparison.student(freedom)
        constant = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2))
        constant /= math.sqrt(freedom * math.pi)
        x = torch.linspace(0, t, 20_001, dtype=torch.float64)
        density = constant * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
        assert torch.trapezoid(density, x).item() == pytest.approx(0.475, abs=5e-4)


def test_the_noise_is_that_between_trainings():
    rows = rows_of({("a", "found"): (0.90, 0.92), ("b", "random"): (0.88, 0.91),
                    ("c", "random"): (0.50, 0.52), ("net", "baseline"): (0.7, 0.7)})  # fmt: skip
    # all had more the second time, 0.0175 in the mean: those images are easier
    squares = [(d - 0.0175) ** 2 / 2 for d in (0.02, 0.03, 0.02, 0.0)]
    assert comparison.margin(rows, 1) == pytest.approx(3.18 * math.sqrt(sum(squares) / 3))
    assert [row.name for row in comparison.within_noise(rows)] == ["b"]
    most = comparison.margin(rows, 1)
    text = f"Within the noise of a: b (differences below {most:.4f} in losses are noise there)."
    assert comparison.noise_words(rows) == text
    scores = {("a", "found"): (0.90, 0.92, 0.9), ("b", "random"): (0.88, 0.91, 0.88)}
    text = comparison.noise_words(rows_of(scores, "accuracy"))
    assert "differences below 1.43 points are noise there" in text  # 4.30 * sqrt(5e-5 / 3 * 2 / 3)
    alike = rows_of({(name, "random"): (0.5, 0.4 + 1e-6 * i) for i, name in enumerate("abc")})
    assert comparison.margin(alike, 1) == 0  # nothing was learned, or next to nothing
    assert "all trainings of a cell came out alike" in comparison.noise_words(alike)
    few = rows_of({key: top1[:2] for key, top1 in scores.items()})
    assert comparison.within_noise(few) is None
    assert "takes three candidates with two trainings" in comparison.noise_words(few)


def test_the_noise_is_that_of_the_rung_and_of_trainings_that_all_have():
    scores = {
        ("a", 1): (0.5, 0.7),
        ("b", 1): (0.6, 0.9),
        ("a", 2): (0.8, 0.9),
        ("b", 2): (0.7, 0.9),
        ("c", 2): (0.6, 0.7),
    }
    records = [
        record(name, top1, seed, rung)
        for (name, rung), found in scores.items() for seed, top1 in enumerate(found)
    ]  # fmt: skip
    cells = candidates(("a", "found"), ("b", "random"), ("c", "random"))
    # the second training brings b 0.1 more than a and c, of losses and accuracy alike
    squares = [(d / 100 - 0.4 / 3) ** 2 / 2 for d in (10, 20, 10)]
    wanted = 4.30 * math.sqrt(sum(squares) / 2)
    assert comparison.margin(comparison.ranking(cells, records), 2) == pytest.approx(wanted)
    records[0]["top1"] = 0.0  # a training of two epochs that did not come off says nothing of these
    assert comparison.margin(comparison.ranking(cells, records), 2) == pytest.approx(wanted)
    # while the second training of b is under way nothing is told by a's
    assert comparison.margin(comparison.ranking(cells, records[:3]), 1) is None


def test_losses_rank_by_their_mean_and_the_noise_is_theirs():
    # a learns what it is shown best, b is best on what it has not seen, c is best together
    losses = {"a": [(0.2, 0.9), (0.3, 0.8)], "b": [(0.8, 0.4), (0.9, 0.5)],
              "c": [(0.4, 0.5), (0.3, 0.4)]}  # fmt: skip
    records = [
        record(name, 0.5, seed, train_loss=train, loss=scored)
        for name, found in losses.items() for seed, (train, scored) in enumerate(found)
    ]  # fmt: skip
    rows = comparison.ranking(candidates(*((name, "random") for name in "abc")), records)
    assert [row.name for row in rows] == ["c", "a", "b"]
    assert [row.last.score for row in rows] == pytest.approx([-0.4, -0.55, -0.65])
    # of each training: a 0.55, 0.55; b 0.6, 0.7; c 0.45, 0.35; their mean is 0.533 both times
    squares = 2 * 0.05**2 + 2 * 0.05**2
    assert comparison.margin(rows, 1) == pytest.approx(4.30 * math.sqrt(squares / 2))
    by_accuracy = comparison.ranking(
        candidates(*((name, "random") for name in "abc")), records, "accuracy"
    )
    assert [row.name for row in by_accuracy] == ["b", "c", "a"]  # equal: the loss decides


@pytest.mark.parametrize("rank_by", ["losses", "accuracy"])
def test_the_chart_shows_what_the_ranking_goes_by_the_best_to_the_right(rank_by):
    # a has the higher accuracy, b the lower losses
    losses = {"a": (0.9, 0.5), "b": (0.8, 0.3), "c": (0.7, 0.8)}
    records = [record(name, top1, 0, train_loss=loss, loss=loss)
               for name, (top1, loss) in losses.items()]  # fmt: skip
    rows = comparison.ranking(candidates(*((n, "random") for n in losses)), records, rank_by)
    axes, first = plot_compare.figure(rows).axes
    best = {"losses": "b", "accuracy": "a"}[rank_by]
    (ring,) = (line for line in first.lines if line.get_markerfacecolor() == "none")
    assert ring.get_ydata() == pytest.approx([{"losses": 80, "accuracy": 90}[rank_by]])
    assert axes.get_yticklabels()[0].get_text().split() == [best, "1"]
    assert axes.get_xlabel().startswith(
        {"losses": "mean of training loss", "accuracy": "acc"}[rank_by]
    )
    dots = {line.get_ydata()[0]: line.get_xdata()[0] for line in axes.lines
            if line.get_marker() == "o"}  # fmt: skip
    shown = dict(enumerate([0.3, 0.5, 0.8] if rank_by == "losses" else [90, 80, 70]))
    assert dots == pytest.approx(shown)
    places = [axes.transData.transform((dots[y], y))[0] for y in range(3)]
    assert places == sorted(places, reverse=True)


def test_a_winner_that_is_not_the_most_accurate_is_explained():
    rows = rows_of({("a", "random"): (0.8,), ("b", "random"): (0.9,), ("c", "random"): (0.7,)})
    assert comparison.winner_words(rows) == "Train b, a random cell: 90.00% on the scored images."
    assert comparison.chance_words(rows) == ""
    first = rows[1]._replace(rungs=(rows[1].last._replace(loss=(0.0,), train_loss=(0.0,)),))
    text = comparison.winner_words(sorted([rows[0], first, rows[2]], key=comparison.order))
    assert text.startswith("Train a, a random cell: 80.00% on the scored images. b has a higher ")
    assert "accuracy, 90.00%, but higher losses" in text
    third = rows[2]._replace(rungs=(rows[2].last._replace(top1=(0.85,)),))
    assert " b and 1 more have a higher accuracy, up to 90" in comparison.winner_words(
        [first, rows[0], third]
    )


def test_cells_that_learned_nothing_are_named_behind_the_ranking():
    names = candidates(*((name, "random") for name in "abc"))
    records = [record(name, top1, 0) for name, top1 in zip("abc", (0.9, 0.2, 0.8), strict=True)]
    records[1] |= {"loss": 0.0, "train_loss": 0.0}  # which alone would be the best
    rows = comparison.ranking(names, records, "losses", 0.5)
    assert [row.name for row in rows] == ["a", "c", "b"]
    assert comparison.order_words(rows).endswith(", what had hardly learned anything: b.")
    alike = comparison.ranking(names, records, "losses", 0.05)
    assert "hardly" not in comparison.order_words(alike)
    # who was dropped with nobody better stands behind the rest anyway, and `dropped_words` names it
    further = [*records[::2], *({**found, "rung": 2} for found in records[::2]), records[1]]
    assert "hardly" not in comparison.order_words(comparison.ranking(names, further, "losses", 0.5))


@pytest.mark.parametrize(
    ("top1", "guessing", "is_weak"),
    [(0.19, 0.1, True), (0.21, 0.1, False), (0.55, 0.5, True), (0.56, 0.5, False), (0.1, 0, False),
     (0.004, 0.001, False), (0.002, 0.001, True)],
)  # fmt: skip
def test_a_winner_that_hardly_learned_is_not_to_be_trained(top1, guessing, is_weak):
    names = candidates(("f", "found"), *((name, "random") for name in "abc"))
    records = [record("f", top1, 0), *(record(name, 0.001, 0) for name in "abc")]
    rows = comparison.ranking(names, records, "losses", guessing)
    assert comparison.is_weak(rows) == is_weak
    said = comparison.conclusions(rows)
    if is_weak:  # nothing about chance and noise
        assert len(said) == 1
        assert said[0].startswith("No cell can be chosen yet: f, found by a search, is first with ")
        assert said[0].endswith("Compare again with more --epochs.")
        assert comparison.conclusions(rows, finished=False)[0].endswith(
            "The next rung trains longer."
        )
    else:
        assert len(said) == 3
        assert said[0].startswith("Train f, ")


def test_who_has_hardly_learned_anything_stands_behind_who_has():
    names = candidates(("a", "random"), ("b", "random"))
    records = [record("a", 0.15, 0, loss=0.0), record("b", 0.3, 0, loss=9.0)]
    rows = comparison.ranking(names, records, "losses", 0.1)
    assert [row.name for row in rows] == ["b", "a"]  # whatever the losses say
    assert not comparison.is_weak(rows)
    run = SimpleNamespace(failed=lambda rung: set(), rows=lambda: rows)
    assert compare.survivors(run, 1, ["a", "b"], []) == (["b"], [])


def test_the_place_of_a_cell_is_that_among_cells():
    rows = rows_of({("net", "baseline"): (0.9,), ("a", "random"): (0.8,), ("f", "found"): (0.7,)})
    assert comparison.place_words(rows, "f") == "Of 2 cells it is number 2."
    assert comparison.place_words(rows, "gone") == ""
    rows[2] = rows[2]._replace(fault="NaN")
    assert comparison.place_words(rows, "f") == "It was left out."


def test_the_most_accurate_baseline_is_named():
    names = candidates(("a", "random"), ("overfitted", "baseline"), ("sound", "baseline"))
    records = [record("a", 0.5, 0), record("overfitted", 0.6, 0, train_loss=0.0, loss=0.1),
               record("sound", 0.7, 0)]  # fmt: skip
    assert "20.00 points below sound" in comparison.winner_words(comparison.ranking(names, records))


def test_chance_is_told_by_the_trainings_that_all_have_finished():
    scores = {("f", "found"): (0.9, 0.1), ("a", "random"): (0.8,), ("b", "random"): (0.7,)}
    assert comparison.chance(rows_of(scores)) is None  # three cells tell nothing
    rows = rows_of({**scores, ("c", "random"): (0.75,)})
    assert comparison.chance(rows).difference == pytest.approx(0.15)


def test_cells_that_have_not_learned_anything_are_not_better_than_chance():
    at_chance = {(f"r{i}", "random"): (0.1, 0.0986) for i in range(3)}
    rows = rows_of({("f", "found"): (0.1014, 0.1), **at_chance})
    assert comparison.chance(rows) is None
    assert "is not known" in comparison.chance_words(rows)
    rows = rows_of({("f", "found"): (0.1014, 0.1), **at_chance, ("r3", "random"): (0.1014, 0.1)})
    assert comparison.chance(rows).low < 0


@pytest.mark.parametrize("n_weak", [1, 2, 3])
def test_chance_is_not_told_where_half_of_the_cells_have_hardly_learned(n_weak):
    """It would tell who begins to learn first."""
    names = candidates(("f", "found"), *((name, "random") for name in "abc"))
    of_random = [0.12] * n_weak + [0.5, 0.6, 0.7][n_weak:]
    scores = dict(zip("abcf", [*of_random, 0.9], strict=True))
    records = [
        record(name, top1 + seed / 100, seed) for name, top1 in scores.items() for seed in (0, 1)
    ]
    rows = comparison.ranking(names, records, "losses", 0.1)
    assert comparison.hardly_learned(rows) == (n_weak, 4)
    told = n_weak < 2
    assert (comparison.chance(rows) is not None) == told
    words = comparison.chance_words(rows)
    assert words.startswith("Whether the search beat chance cannot be told: ") or told
    assert (f"{n_weak} of 4 cells had hardly learned anything in the first rung" in words) != told
    alone = comparison.ranking(names[:1], records, "losses", 0.95)  # first of all chance is missing
    assert "three random ones" in comparison.chance_words(alone)


def test_found_minus_random_and_its_interval():
    found = [[0.90, 0.94], [0.86, 0.90]]  # means 0.92 and 0.88, squares 2 * 0.02 ** 2
    drawn = [[0.80, 0.82], [0.83, 0.85], [0.77, 0.79]]  # 0.81, 0.84, 0.78, squares 2 * 0.03 ** 2
    scores = {(f"f{i}", "found"): c for i, c in enumerate(found)}
    scores |= {(f"r{i}", "random"): c for i, c in enumerate(drawn)}
    got = comparison.chance(rows_of(scores))
    half = 3.18 * math.sqrt((2 * 0.02**2 + 2 * 0.03**2) / 3 * (1 / 2 + 1 / 3))
    assert got.difference == pytest.approx(0.09)
    assert [got.low, got.high] == pytest.approx([0.09 - half, 0.09 + half])
    assert (got.n_found, got.n_random, got.epochs) == (2, 3, 4)


@pytest.mark.parametrize("n", [(1, 2), (1, 4), (1, 12), (3, 4), (3, 12)])
def test_a_search_that_is_like_chance_is_told_from_it_once_in_twenty(n):
    rng, beside = random.Random(0), 0
    for _ in range(4000):
        found, drawn = ([rng.gauss(0, 1) for _ in range(size)] for size in n)
        low, high = comparison.interval(found, drawn)
        beside += not low < 0 < high
    assert 0.04 < beside / 4000 < 0.06  # three standard errors


@pytest.mark.parametrize(
    ("found", "text"),
    [(0.99, "The search beat chance: what it found is 18.50 points better"),
     (0.60, "The search did worse than chance: random cells are 20.50 points better"),
     (0.83, "Whether the search beat chance cannot be told")],
)  # fmt: skip
def test_whether_the_search_beat_chance_in_words(found, text):
    rows = rows_of({("a", "found"): (found, found), ("r1", "random"): (0.79, 0.80),
                    ("r2", "random"): (0.80, 0.81), ("r3", "random"): (0.81, 0.82)})  # fmt: skip
    assert text in comparison.chance_words(rows)
    alone = rows_of({("a", "found"): (found,), ("r1", "random"): (0.75,)})
    assert "is not known" in comparison.chance_words(alone)


def test_who_went_further_stands_before_the_others_and_who_failed_last():
    names = candidates(("a", "found"), ("b", "found"), ("c", "found"), ("net", "baseline"))
    records = [record("a", 0.9, 2), record("b", 0.8, 2), record("c", 0.99, 2), record("net", 1, 2),
               record("a", 0.7, 2, rung=2), record("net", 0.95, 2, rung=2),
               {**record("c", 0, 3), "fault": "it died"}]  # fmt: skip
    rows = comparison.ranking(names, records)
    assert [row.name for row in rows] == ["net", "a", "b", "c"]
    assert comparison.winner(rows).name == "a"  # a baseline is no cell
    assert rows[-1].fault == "it died"
    text = comparison.winner_words(rows)
    assert "Train a, found by a search: 70.00%" in text
    assert "25.00 points below net, which has 1.0 times its parameters" in text
    assert "left out: c (it died)" in comparison.table(rows)


# --- real trainings -----------------------------------------------------------------------------


@pytest.mark.pictures
def test_a_comparison_reads_no_test_image_and_its_winner_goes_on(
    finished_search, in_process, monkeypatch
):
    folder, _ = finished_search
    shutil.copytree(folder / "searchs", "searchs")
    load = named.load_split

    def guarded(name, path, train):
        assert train, "the test split was opened"
        return load(name, path, train)

    words = ["searchs/s/", "--random", "1", "--baseline", "resnet18", "--seeds", "1"]
    monkeypatch.setattr(comparison, "LEAST_AHEAD", 1.0)  # whatever they learn is hardly anything
    monkeypatch.setattr(comparison, "LEAST_TIMES", 100)
    with monkeypatch.context() as patch:
        patch.setattr(named, "load_split", guarded)
        patch.setattr(Comparison, "draw", lambda run: report.draw_comparison(run.files.path))
        out = run_in(Path(), compare.main, [*words, *LEAST, "--epochs", "1", "--name", "c"])
    assert trained() == {1: {"searchs/s", "random:2", "resnet18"}}
    assert "inherited from searchs/s: n_nodes 2" in out
    assert "resnet18 of torchvision, from scratch" in out
    assert "augment.py --genotype compares/c" in out
    summary = json.loads(Path("compares/c/summary.json").read_text())
    assert summary["finished"] is True
    found = index.row("compares/c")
    assert (found.state, found.epochs, found.part) == ("finished", "3 trainings", "scored half")
    assert found.top1 == json.loads(Path("compares/c/genotype.json").read_text())["score"]
    unfinished = {**summary, "finished": False, "state": {**summary["state"], "is": "running"}}
    Path("compares/c/summary.json").write_text(json.dumps(unfinished))
    report.main(["compares/c"])
    page = Path("compares/c/report.html").read_text()
    assert "It has not finished: the last word may be another" in page
    assert re.search(r"broken off</span>\s+after 3 trainings", page)
    assert '<span class="flag">--name</span> c <span class="flag">--resume</span>' in page
    assert "augment.py" not in page
    Path("compares/c/summary.json").write_text(json.dumps(summary))
    report.main(["compares/c"])
    assert len(gt.load("compares/c").normal) == 2  # the search's n_nodes, and no baseline's
    (row,) = [row for row in comparison.read("compares/c") if row.kind == "baseline"]
    assert row.params == 11_172_810  # ResNet-18 for CIFAR, 11,173,962, with one input channel
    assert {path.name for path in Path("compares/c").iterdir()} == {
        "config.json", "c.log", "metrics.jsonl", "summary.json", "genotype.json", "report.html",
        "comparison.png", "plots",
    }  # fmt: skip
    page = Path("compares/c/report.html").read_text()
    assert page.count("data:image/png") == 5  # the chart, two cells of two candidates
    assert "No cell can be chosen yet" in page
    assert "It has not finished" not in page
    assert re.search(r"finished</span>\s+after 3 trainings\.", page)
    assert "To train it all the same:" in page
    assert "to train it all the same:" in out
    assert summary["training"] is None
    before = Path("compares/c/comparison.png").read_bytes()
    report.main(["compares/c"])
    assert Path("compares/c/comparison.png").read_bytes() == before
    with monkeypatch.context() as patch:
        chance = comparison.Chance(0.0056, -0.0361, 0.0472, 1, 12, 4)
        patch.setattr(comparison, "chance", lambda rows: chance)
        patch.setattr(comparison, "is_weak", lambda rows: False)
        page = Path(report.write_comparison("compares/c")).read_text()
    assert "<b>+0.56</b>" in page
    assert "points after 4 epochs; 95 % interval -3.61 to +4.72" in page
    plot_compare.main(["compares/c", "--out", "chart.svg"])
    assert Path("chart.svg").is_file()
    run_in(Path(), augment.main, [*FAST_AUGMENT, "--genotype", "compares/c", "--name", "a"])
    best = comparison.winner(comparison.read("compares/c"))
    who = f"{best.name}, {comparison.WHAT[best.kind]}"
    assert f"the cell is {who}" in log_of("augments/a")
    assert f"Training of {who}, on" in Path(report.write("augments/a")).read_text()
    flags = json.loads(Path("augments/a/config.json").read_text())["flags"]
    assert (flags["dataset"], flags["layers"]) == ("digits", 3)  # its own size, not compare's


class NotANumber(nn.Module):
    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        return x[:, :, :: self.stride, :: self.stride] * float("nan")


def test_a_bad_candidate_is_named_and_left_out(in_process, monkeypatch):
    def broken(C, stride, affine):
        raise RuntimeError("this block\ncannot be built")

    monkeypatch.setitem(ops.OPS, "nan", lambda C, stride, affine: NotANumber(stride))
    monkeypatch.setitem(ops.OPS, "broken", broken)
    texts = []
    for op in ("nan", "broken", "nothere"):
        gene = [[(op, 0), ("skip_connect", 1)]]
        texts.append(gt.to_str(gt.Genotype(gene, [2], gene, [2])))
    words = [*texts, "random:7", *TINY, "--epochs", "1", *NAMED]
    compare.main(words)
    faults = {row.name: row.fault for row in comparison.read(COMMAND)}
    assert faults["random:7"] == ""
    assert faults["Genotype 1"] == "the training loss is not finite"
    assert faults["Genotype 2"] == "cannot be built: this block cannot be built"
    assert "unknown op 'nothere'" in faults["Genotype 3"]
    said = log_of(COMMAND)
    for number in (1, 2, 3):
        assert said.count(f"WARNING: Genotype {number} is left out: ") == 1
    assert json.loads(Path(COMMAND, "genotype.json").read_text())["name"] == "random:7"
    ends_in_one_line(compare.main, [*texts[:2], *TINY, "--quiet"], code=1)


def test_one_that_dies_is_trained_no_more(scripted):
    scripted.fails = {"random:2": "its process ended by SIGSEGV"}
    compare.main([*TINY, "--random", "3", "--seeds", "4", *NAMED])
    assert [job.name for job in scripted.done].count("random:2") == 1
    assert comparison.read(COMMAND)[-1].name == "random:2"


@pytest.mark.parametrize("rung", [1, 2])
def test_one_that_was_killed_is_tried_again_and_one_that_failed_is_not(scripted, rung):
    """Also where it takes the place of another then, and a third has failed in a later rung."""
    words = [*TINY, "--random", "5", "--epochs", "4", "--quiet", "--name"]
    compare.main([*words, "best"])
    first, second, *_ = [row.name for row in comparison.read("compares/best")]
    scripted.ends = {(second, 2): ("failed", "it is not a number")}
    compare.main([*words, "whole"])
    scripted.ends[first, rung] = "ended", "its process was killed"
    compare.main([*words, "c"])
    assert f"{first} is left out: its process was killed; --resume tries it again" in log_of(
        COMMAND
    )
    scripted.done.clear()
    del scripted.ends[first, rung]
    compare.main(["--name", "c", "--resume"])
    again = {job.name for job in scripted.done}
    assert first in again
    assert second not in again
    assert f"{first} was left out (its process was killed) and is tried again" in log_of(COMMAND)
    assert sorted(map(str, lines("compares/c/metrics.jsonl"))) == sorted(
        map(str, lines("compares/whole/metrics.jsonl"))
    )
    assert comparison.read("compares/c") == comparison.read("compares/whole")
    assert gt.load("compares/c") == gt.load("compares/whole")


def test_images_that_would_not_be_read_are_refused(here):
    """The digits are bundled: a path alone would go unheeded."""
    for main, words in ((search.main, []), (augment.main, ["--genotype", "DARTS_V2"]),
                        (compare.main, ["--random", "2"])):  # fmt: skip
        text = ends_in_one_line(main, [*words, "--quick", "--data_path", "pets"])
        assert "none was named; say --dataset FOLDER for images of your own" in text
    assert os.listdir() == []


@pytest.mark.parametrize(("top1", "warned"), [(0.19, True), (0.21, False)])
def test_trainings_too_short_to_learn_anything_are_warned_of(scripted, monkeypatch, top1, warned):
    score = {"epoch": 1, "top1": top1, "loss": 1.0, "train_loss": 1.0, "seconds": 1.0}

    def perform(self, job):
        yield Answer(job, "done", [score])

    monkeypatch.setattr(scripted, "perform", perform)
    compare.main([*TINY, "--random", "2", *NAMED])
    text = (
        f"2 of 2 candidates of the first rung had hardly learned anything ({top1:.2%}, "
        f"naming the same class always has 10.56%): that is too short to choose"
    )
    assert (text in log_of(COMMAND)) == warned
    # and again by who trains its cell all the same
    doubt = augment_log.doubt(COMMAND)
    assert doubt.startswith("No cell can be chosen yet: ") == warned
    assert doubt.endswith("Compare again with more --epochs.") == warned
    summary = json.loads(Path(COMMAND, "summary.json").read_text())
    Path(COMMAND, "summary.json").write_text(json.dumps({**summary, "finished": False}))
    doubt = augment_log.doubt(COMMAND)
    assert doubt.endswith("The next rung trains longer. The comparison is not over.") == warned
    Path(COMMAND, "summary.json").write_text("{")
    assert augment_log.doubt(COMMAND) == ""


@pytest.mark.parametrize("name", config.BASELINES)
@pytest.mark.parametrize(("C_in", "size"), [(1, (8, 8)), (3, (32, 48)), (3, (96, 96))])
def test_baselines_take_images_of_every_size(name, C_in, size):
    spec = named.spec("digits")._replace(C_in=C_in, size=size)
    net = baselines.build(name, spec)
    assert net(torch.randn(2, C_in, *size)).shape == (2, 10)
    maps = []
    net.eval()
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    convs[0].register_forward_hook(lambda module, x, out: maps.append(out.shape[2:]))
    net(torch.zeros(1, C_in, *size))
    halved = tuple(side // 2 for side in size)
    assert maps == [torch.Size(halved if min(size) >= 96 else size)]


def test_baselines_are_all_known():
    assert set(baselines._SMALLER) == set(config.BASELINES)


# --- the budget ---------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 5), st.floats(0.1, 5)), min_size=1, max_size=6),
    st.integers(1, 3), st.integers(1, 3), st.floats(1, 500),
)  # fmt: skip
def test_the_epochs_of_a_budget_fit_and_one_more_does_not(costs, n_seeds, jobs, budget):
    costs = dict(enumerate(costs))
    always = [0] if len(costs) > 1 else []

    def slowly(epochs):
        """All trainings handed out one by one, the costly candidates going on."""
        left = sorted(set(costs) - set(always), key=lambda c: (costs[c][1], costs[c][0]))[::-1]
        total = 0.0
        for n in halving.plan(len(left), epochs):
            clocks = [0.0] * jobs
            for name in [*left, *always]:
                for _ in range(n_seeds):
                    first = clocks.index(min(clocks))
                    clocks[first] += costs[name][0] + n * costs[name][1]
            total += max(clocks)
            left = left[: math.ceil(len(left) / 2)]
        return total

    epochs = halving.fitting_epochs(costs, always, n_seeds, jobs, budget)
    assert epochs == 0 or slowly(epochs) <= budget
    assert slowly(epochs + 1) > budget


def test_a_budget_chooses_the_epochs_and_they_stay(scripted):
    # 4 candidates, 2 trainings of each, 1 s + 2 s per epoch; rungs of 4 and 2 candidates
    scripted.stop_after = 4 + 3
    words = ["--random", "4", *LEAST, *SPACE, *NAMED, "--budget"]
    ends_in_one_line(compare.main, [*words, "60s"], code=130)
    scripted.stop_after = math.inf
    compare.main(["--name", "c", "--resume", "--quiet"])
    assert [job.epochs for job in scripted.done[:4]] == [0] * 4  # timed once, not when resumed
    # 8 (1 + 2 * 1) + 4 (1 + 2 * 3) = 52; with 4 epochs 8 * 5 + 4 * 9 = 76
    assert {r["epochs"] for r in lines("compares/c/metrics.jsonl")} == {1, 3}
    assert json.loads(Path("compares/c/config.json").read_text())["flags"]["epochs"] == 3
    text = ends_in_one_line(compare.main, [*words, "20s", "--name", "d"])
    assert "--budget 20s is too short: one epoch of each takes about 24 s" in text


@pytest.mark.parametrize("rungs", ["x", -1, None, [2], 0.5])
def test_a_damaged_number_of_rungs_costs_no_traceback(scripted, rungs):
    compare.main([*TINY, "--random", "3", "--epochs", "4", *NAMED])
    whole = comparison.read(COMMAND)
    path = Path(COMMAND, "summary.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "rungs": rungs}))
    assert comparison.read(COMMAND) == whole  # as if all were over
    compare.main(["--name", "c", "--resume", "--quiet"])
    assert reader.read_summary(COMMAND)["rungs"] == 2


@pytest.mark.parametrize("size", [{"madds": None}, {"params": "x"}])
def test_a_damaged_size_of_a_network_costs_no_traceback(scripted, size):
    compare.main([*TINY, "--random", "3", *NAMED])
    path = Path(COMMAND, "summary.json")
    summary = json.loads(path.read_text())
    summary["candidates"][1] |= size
    path.write_text(json.dumps(summary))
    for script in (plot_compare, report):
        code, _, err = run(script, [COMMAND])
        assert (code, err.count("\n")) == (2, 1)
        assert "summary.json is damaged" in err


@pytest.mark.parametrize("end", ["failed", "ended"])
def test_a_trial_that_warns_before_it_fails_costs_nothing(scripted, monkeypatch, end):
    perform = scripted.perform

    def warns(self, job):
        if not job.epochs and job.name == "random:2":
            yield Answer(job, "warned", "slow")
            yield Answer(job, end, "no")
            return
        yield from perform(self, job)

    monkeypatch.setattr(scripted, "perform", warns)
    compare.main([*LEAST, *SPACE, "--random", "3", "--budget", "2m", *NAMED])
    assert comparison.winner(comparison.read(COMMAND)) is not None


def test_one_whose_trial_is_killed_counts_as_the_dearest(scripted):
    scripted.ends = {("random:2", 0): ("ended", "its process was killed")}
    compare.main(["--random", "4", *LEAST, *SPACE, *NAMED, "--budget", "60s"])
    assert {r["epochs"] for r in lines("compares/c/metrics.jsonl")} == {1, 3}
    assert "random:2" in trained()[1]
    assert "random:2 could not be timed: its process was killed" in log_of(COMMAND)


def test_a_trial_tells_the_seconds_of_an_epoch(monkeypatch):
    now = [0.0]

    class Data:
        train, val = [1] * 10, [1] * 6

    class Slow:  # 3 s a step, 7 s a batch that is scored, more the first times
        data, first = Data, True

        def steps(self, batches):
            for _ in batches:
                now[0] += 100 if self.first else 3
                self.first = False

        def score(self, batches):
            now[0] += sum(7 for _ in batches)

    monkeypatch.setattr(workers.time, "perf_counter", lambda: now[0])
    # to begin: two steps, of which a card records the second, and two batches
    assert workers.trial(Slow(), 0.0) == (100 + 3 + 2 * 7, 10 * 3 + 6 * 7)


# --- processes ----------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="has no such signals")
def test_a_process_that_dies_costs_its_own_training_alone():
    options = DataOptions.from_config(config.CompareConfig(["PDARTS", *LEAST, "--workers", "0"]))
    recipe = Recipe(epochs=1, layers=2, init_channels=2)
    text = gt.to_str(gt.random_genotype(1, ["skip_connect"], n_nodes=1))
    setting = Setting(options, recipe, "cpu")
    jobs = [Job("a", text, 1, 9999, 1), Job("b", text, 1, 1, 1), Job("b", text, 1, 1, 2)]
    answers = []
    with Workers(1, setting) as pool:
        for answer in pool.run(jobs, lambda job: job.seed == 1):
            if answer is None:
                continue
            answers.append(answer)
            if answer.kind == "epoch" and len(answers) in (1, 2):
                # deaf to what asks the whole program to end, but not to what kills
                process, _ = pool._slots[0]
                number = (signal.SIGINT, signal.SIGKILL)[len(answers) - 1]
                os.kill(process.pid, number)
    done = {answer.job: answer for answer in answers if answer.kind != "epoch"}
    assert list(done) == jobs[:2]
    assert done[jobs[0]].kind == "ended"
    assert "its process was killed" in done[jobs[0]].value
    assert [score["epoch"] for score in done[jobs[1]].value] == [1]
    assert not process.is_alive()


def test_the_bars_of_a_process_that_is_killed_leave_no_semaphore_behind(monkeypatch):
    """Python would say so behind the command to paste, as tqdm's own lock is one."""

    class Gone:
        def recv(self):
            raise EOFError

    before = tqdm.get_lock()
    monkeypatch.setattr(workers, "leave_signals_to_parent", lambda slot: None)
    try:
        workers.work(Gone(), 0, SimpleNamespace(ops=None))
        assert isinstance(tqdm.get_lock(), type(threading.RLock()))
    finally:
        tqdm.set_lock(before)


# --- what is refused ----------------------------------------------------------------------------

GONE = gt.to_str(gt.Genotype(*[[[("gone", 0), ("gone", 1)]], [2]] * 2))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "nothing to compare; name cells, such as searchs/digits"),
        (["DARTS_V2", "DARTS_V2"], "DARTS_V2 takes part twice; name it once"),
        (["random:2", "--random", "1"], "random:2 takes part twice"),
        (["DARTS_V2"], "only DARTS_V2 takes part; name another cell, or take random ones"),
        (["random:x"], "'random:x': a random cell is random:SEED"),
        (["DARTS_V3"], "did you mean DARTS_V"),
        (["searchs/nothere"], "there is no file or folder searchs/nothere"),
        (["PDARTS", "--epochs", "3", "--budget", "3m"], "give one of them"),
        (["PDARTS", "--k", "6"], "--k 6 is above the 5 inputs of the last node"),
        (["--random", "1", "--primitives", "none"], "--primitives holds no op besides none"),
        (["--random", "3", "--primitives", "foo"], "unknown op foo; known: "),
        ([GONE, "--baseline", "resnet18", "mobilenet_v3_small"], "nothing is left to compare"),
        (
            ["PDARTS", GONE],
            "nothing is left to compare without Genotype 1 (normal, node 2: ",
        ),
        (["--name", "nothere", "--resume"], "compares/nothere does not exist"),
        (["--name", "x", "--resume", "--overwrite"], "choose one"),
    ],
)
def test_what_makes_no_sense_is_refused(words, text, here):
    assert text in ends_in_one_line(compare.main, words)


def searched(name, **flags):
    """searchs/NAME as far as a comparison reads it."""
    os.makedirs(f"searchs/{name}")
    cfg = config.SearchConfig([])
    known = {**cfg.marked(cfg.flags(), inherit="images"), **flags}
    text = gt.to_json(gt.random_genotype(1), flags=known, n_nodes=4, k=2, primitives=gt.PRIMITIVES)
    Path(f"searchs/{name}/genotype.json").write_text(text)


def test_a_search_of_another_space_than_that_of_the_random_cells_is_named(scripted):
    searched("a")
    searched("b")
    words = ["searchs/a", "searchs/b", *LEAST, "--epochs", "1", "--overwrite", *NAMED]
    compare.main([*words, "--random", "2"])
    assert "another space" not in log_of(COMMAND)
    path = Path("searchs/b/genotype.json")
    same = {**json.loads(path.read_text()), "primitives": gt.PRIMITIVES[::-1][1:]}  # without none
    path.write_text(json.dumps(same))
    compare.main([*words, "--random", "2"])
    assert "another space" not in log_of(COMMAND)
    path.write_text(json.dumps({**json.loads(path.read_text()), "n_nodes": 3, "k": 1}))
    compare.main([*words, "--random", "2"])
    warned = (
        "WARNING: searched in another space than the random cells are drawn from: searchs/b (--"
    )
    assert f"{warned}n_nodes 3 --k 1);" in log_of(COMMAND)
    compare.main(words)  # without random cells there is nothing to mind
    assert "another space" not in log_of(COMMAND)


def test_cells_of_searches_on_other_data_are_refused_unless_it_is_named(scripted):
    searched("a")
    searched("b", dataset="cifar10")
    searched("c", input_size=[16, 16])
    text = ends_in_one_line(compare.main, ["searchs/a", "searchs/b"])
    assert "searchs/b was searched on other data than searchs/a (--dataset cifar10)" in text
    text = ends_in_one_line(compare.main, ["searchs/c", "searchs/a"])
    assert "searchs/a was searched on other data than searchs/c (--input_size None)" in text
    compare.main(["searchs/b", "searchs/a", "--dataset", "digits", *LEAST, "--epochs", "1", *NAMED])
    assert json.loads(Path(COMMAND, "config.json").read_text())["flags"]["dataset"] == "digits"


def test_every_second_training_learns_from_what_the_others_are_scored_on(in_process, monkeypatch):
    """All images are scored, and no training is scored on what it learned from."""
    seen = []

    class Watched(Training):
        def __init__(self, cell, data, *args):
            seen.append([set(loader.dataset.dataset.indices) for loader in (data.train, data.val)])
            super().__init__(cell, data, *args)

    monkeypatch.setattr(workers, "Training", Watched)
    compare.main(["--random", "2", *TINY, "--epochs", "1", "--seeds", "2", *NAMED])
    assert seen[0] == seen[1]  # two cells, then both with the other seed
    assert seen[2] == seen[3]
    (learned, scored), (other_learned, other_scored) = seen[::2]
    assert learned == other_scored
    assert scored == other_learned
    assert not learned & scored
    assert "which change places with every second training" in log_of(COMMAND)


def test_parts_of_different_size_do_not_change_places(scripted):
    compare.main(["--random", "2", *TINY, "--val_portion", "0.3", "--seeds", "2", *NAMED])
    assert {(job.seed, job.swapped) for job in scripted.done} == {(2, False), (3, False)}
    assert "change places" not in log_of(COMMAND)


def test_the_smaller_half_that_is_trained_on_too_fits_a_batch(scripted, monkeypatch):
    load = loaders.search_data

    def few(options):  # the first half has a batch, the second does not
        data = load(options._replace(batch_size=16))
        return data._replace(batch_size=16 if options.swapped else 64,
                             val=SimpleNamespace(dataset=range(63)))  # fmt: skip

    monkeypatch.setattr(loaders, "search_data", few)
    compare.main(["--random", "2", *TINY, "--seeds", "2", *NAMED])
    assert "batch 16" in log_of(COMMAND)


def test_images_that_cannot_be_read_are_no_fault_of_a_cell(scripted, monkeypatch):
    def perform(self, job):
        if len(self.done) < 2:
            yield from Scripted.perform(self, job)
            return

        def opened(swapped):
            raise error

        yield from workers.perform(job, opened, self.setting)

    words = [*TINY, "--random", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(scripted, "perform", perform)
        for error in (FileNotFoundError("cat/gone.png"), ValueError("no images in cat")):
            scripted.done.clear()
            text = ends_in_one_line(compare.main, [*words, *NAMED, "--overwrite"], code=1)
            assert f"{error}; the run has stopped; go on after 2 trainings with" in text
    compare.main(["--name", "c", "--resume", "--quiet"])
    assert not [record for record in lines(f"{COMMAND}/metrics.jsonl") if "fault" in record]


def test_steps_that_cannot_be_recorded_are_warned_of_once(in_process, capsys):
    """On a CPU none can."""
    compare.main([*TINY, "--random", "2", "--cuda_graphs", *NAMED])
    warnings = re.findall("WARNING: (.*)", capsys.readouterr().out)
    assert [text[:41] for text in warnings].count("the step cannot be recorded as a CUDA gra") == 1
    assert [len(names) for names in trained().values()] == [2]


def test_a_training_that_fails_has_warned_before(monkeypatch):
    data = SimpleNamespace(spec=named.spec("digits"))

    class Fails:
        def __init__(self, cell, data, recipe, seed, device, warn):
            self.warn = warn

        def epoch(self, number):
            self.warn("slow")
            raise TypeError("no")

    monkeypatch.setattr(workers, "Training", Fails)
    monkeypatch.setattr(workers, "build", lambda *args: None)
    setting = Setting(None, Recipe(1, 2, 2), "cpu")
    answers = perform(Job("a", "", 1, 1, 1), lambda swapped: (data, CPU), setting)
    assert [(a.kind, a.is_last) for a in answers] == [("warned", False), ("failed", True)]


@pytest.mark.parametrize(
    ("error", "opening", "training"),
    [(MemoryError("no"), "broken", "ended"), (OSError("gone"), "broken", "broken"),
     (RuntimeError("out of memory"), "broken", "ended"), (TypeError("no"), "broken", "failed")],
)  # fmt: skip
def test_who_is_to_blame(monkeypatch, error, opening, training):
    def fail(*args):
        raise error

    monkeypatch.setattr(workers, "build", fail)
    setting = Setting(None, Recipe(1, 2, 2), "cpu")
    data = SimpleNamespace(spec=named.spec("digits"))
    for opened, kind in ((fail, opening), (lambda swapped: (data, CPU), training)):
        (answer,) = perform(Job("a", "Genotype", 1, 1, 1), opened, setting)
        assert answer.kind == kind


def test_a_comparison_that_ends_early_says_where_the_earlier_one_is(scripted):
    words = [*TINY, "--random", "2", *NAMED]
    compare.main(words)
    scripted.stop_after = 0
    text = ends_in_one_line(compare.main, [*words, "--overwrite"], code=130)
    assert "the earlier comparison of this name is in compares/c.before-overwrite" in text
    text = ends_in_one_line(compare.main, ["--name", "c", "--resume"])
    assert "had the name before is in compares/c.before-overwrite: move it back" in text


@pytest.mark.parametrize("source", ["compares/c", "./compares/c/", "link", "{here}/compares/c",
                                    "compares/c/genotype.json"])  # fmt: skip
def test_a_comparison_is_not_overwritten_by_one_that_starts_from_it(scripted, source):
    compare.main([*TINY, "--random", "2", *NAMED])
    os.symlink("compares/c", "link")
    words = [source.format(here=os.getcwd()), *TINY, *NAMED, "--overwrite"]
    text = ends_in_one_line(compare.main, words)
    assert "--overwrite would remove compares/c, which this comparison starts from" in text


def test_a_name_that_is_taken_and_what_replaces_it(scripted):
    words = [*TINY, "--random", "2", *NAMED]
    compare.main(words)
    assert "go on with --resume" in ends_in_one_line(compare.main, words)
    compare.main([*words, "--overwrite"])
    assert os.listdir("compares") == ["c"]
    compare.main([*TINY, "--random", "2", "--quiet"])
    compare.main([*TINY, "--random", "2", "--quiet"])
    assert sorted(os.listdir("compares")) == ["c", "digits", "digits-2"]


@pytest.mark.usefixtures("quick_pictures")
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_comparison_costs_no_traceback(kind, scripted):
    scripted.stop_after = 3
    ends_in_one_line(compare.main, [*TINY, "--random", "3", *NAMED], code=130)
    scripted.stop_after = math.inf
    Path("whole").mkdir()
    os.rename(COMMAND, "whole/c")
    blamed = set()
    for name in (files.CONFIG, files.METRICS, files.SUMMARY, files.GENOTYPE, "c.log"):
        for script, words in (
            (compare, ["--name", "c", "--resume", "--quiet"]), (plot_compare, [COMMAND]),
            (report, [COMMAND]), (plot_train_val, [COMMAND]),
        ):  # fmt: skip
            copy_of("whole/c", COMMAND)
            if not Path(COMMAND, name).exists():
                continue
            damage(Path(COMMAND, name), kind, random.Random(f"{kind} {name}"))
            code, _, err = run(script, words)
            assert code in (0, 1, 2)
            assert len(err.splitlines()) == (code != 0), err
            if script is plot_train_val:
                records = name == files.METRICS and kind in ("missing", "folder", "fifo")
                assert ("is it a run folder?" if records else "is a comparison, without") in err
            elif name == files.SUMMARY and code and script is not compare:
                how = "missing" if kind == "missing" else "damaged"
                assert f"summary.json is {how}, and it alone says who takes part" in err
                assert "--name c --overwrite" in err
            elif "nobody knows what the comparison was" in err:
                told = {n for n in (files.CONFIG, files.SUMMARY) if f"{COMMAND}/{n}" in err}
                assert name in told
                assert (len(told) == 2) == ("was changed, they do not fit together" in err)
                assert len(told) == 1 or kind not in ("missing", "empty", "binary")
                blamed.add(name)
    # a folder or a pipe of that name cannot be written over either, which is said before
    assert blamed == (set() if kind in ("folder", "fifo") else {files.CONFIG, files.SUMMARY})


def test_other_images_than_at_the_beginning_are_refused(scripted, monkeypatch):
    scripted.stop_after = 2
    ends_in_one_line(compare.main, [*TINY, "--random", "2", *NAMED], code=130)
    state = json.loads(Path(COMMAND, "summary.json").read_text())["state"]
    assert (state["is"], state["command"].split()[-1]) == ("broken off", "--resume")
    load = loaders.search_data

    def fewer(options):
        data = load(options)
        counts = {**data.images["train"]["classes"], "3": 0}
        return data._replace(images={"train": {"classes": counts, "files": ""}})

    monkeypatch.setattr(loaders, "search_data", fewer)
    text = ends_in_one_line(compare.main, ["--name", "c", "--resume"])
    assert "these are not the images that the comparison began with" in text


# --- several searches ---------------------------------------------------------------------------


class Process:
    """Stands in for a process that runs search.py: it is over when it has begun."""

    broken = ()

    def __init__(self, searches, seed, slot):
        words = searches._words(seed, slot)
        self.returncode, searches.stderr[seed] = 0, io.BytesIO()
        if any(name in words for name in self.broken):
            self.returncode, searches.stderr[seed] = 1, io.BytesIO(b"search.py: it broke\n")
        else:
            run_in(Path(), search.main, words)

    def poll(self):
        return self.returncode


def test_several_searches_and_their_comparison(in_process, monkeypatch, capsys):
    monkeypatch.setattr(several.Searches, "_start", lambda self, *args: Process(self, *args))
    monkeypatch.setattr(several, "POLL", 0)
    monkeypatch.setattr(Process, "broken", ("d-seed2",))
    monkeypatch.setattr(compare, "main", lambda words: words)
    words = [*FAST_SEARCH, "--seeds", "3", "--name", "d", "--no-reuse_gradient"]
    found = search.main(words)
    assert found == ["searchs/d-seed1", "searchs/d-seed3", "--random", "4",
                     "--quick", "--seed=1", "--subset=0.1", "--name", "d"]  # fmt: skip
    said = capsys.readouterr().out
    for seed in (1, 3):
        sure = json.loads(Path(f"searchs/d-seed{seed}/summary.json").read_text())["how_sure"]
        assert re.search(rf"d-seed{seed}: 1 epoch, best .*%; {re.escape(sure['text'])}\n", said)
        flags = json.loads(Path(f"searchs/d-seed{seed}/config.json").read_text())["flags"]
        assert (flags["seed"], flags["reuse_gradient"]) == (seed, False)
        assert flags["primitives"] == ["skip_connect", "max_pool_3x3", "sep_conv_3x3", "none"]
    text = ends_in_one_line(search.main, words)
    assert "searchs/d-seed1 exists; choose another --name" in text
    monkeypatch.setattr(Process, "broken", ())
    assert search.main([*words, "--resume"])[:3] == [f"searchs/d-seed{i}" for i in (1, 2, 3)]
    os.makedirs("compares/d")
    Path("compares/d/metrics.jsonl").touch()
    cell = {"name": "searchs/d-seed2", "genotype": gt.to_str(gt.load("searchs/d-seed2"))}
    Path("compares/d/summary.json").write_text(json.dumps({"candidates": [cell]}))
    assert search.main([*words, "--resume"]) == ["--name", "d", "--resume"]
    text = "compares/d was begun without searchs/d-seed1, searchs/d-seed3; remove it"
    assert text in capsys.readouterr().out
    # of three that were begun by another call the last two never ran: they get its flags
    monkeypatch.setattr(Process, "broken", ("f-seed2", "f-seed3"))
    search.main([*words, "--name", "f", "--max_skips", "1"])
    monkeypatch.setattr(Process, "broken", ())
    again = ["--seeds", "3", "--name", "f", "--resume"]
    found = search.main(again)
    wanted = [*(f"searchs/f-seed{i}" for i in (1, 2, 3)), "--random", "12"]
    assert found[:5] == wanted  # twelve, as --quick has it
    assert found[5:] == ["--quick", "--seed=1", "--subset=0.1", "--name", "f"]
    first, *others = (
        json.loads(Path(f"searchs/f-seed{i}/config.json").read_text())["flags"] for i in (1, 2, 3)
    )
    assert [{**flags, "name": first["name"], "seed": 1} for flags in others] == [first, first]
    text = ends_in_one_line(search.main, [*again, "--max_skips", "2"])
    assert "--max_skips was 1 in that run and cannot change now" in text
    text = ends_in_one_line(search.main, ["--seeds", "2", "--name", "none", "--resume"])
    assert "no search none-seed* has begun" in text
    monkeypatch.setattr(Process, "broken", ("e-seed1", "e-seed2"))
    text = ends_in_one_line(search.main, [*FAST_SEARCH, "--seeds", "2", "--name", "e"], code=1)
    assert "no search was finished" in text


def test_one_search_and_its_comparison(scripted, monkeypatch, capsys):
    """--compare N, which --quick sets: the last line trains the best of found and random cells."""
    words = [*FAST_SEARCH, "--compare", "2", "--name", "s"]
    with monkeypatch.context() as patch:
        patch.setattr(compare, "main", lambda words: words)
        said = ["--quick", "--seed=1", "--subset=0.1"]
        assert search.main(words) == ["searchs/s", "--random", "2", *said, "--name", "s"]
        out = capsys.readouterr().out
        assert "Before that it is compared with 2 random cells" in out
        assert "augment.py" not in out  # which cell to train is not known yet
        # the comparison of another search is not touched, one's own is begun anew or gone on with
        os.makedirs("compares/s")
        again = ["--name", "s", "--resume", "--quiet"]
        assert search.main(again)[-1] == "--subset=0.1"
        text = ends_in_one_line(search.main, [*words, "--overwrite"])
        assert "compares/s exists, where --compare records what it finds; choose another" in text
        cell = {"name": "searchs/s", "genotype": gt.to_str(gt.load("searchs/s"))}
        Path("compares/s/summary.json").write_text(json.dumps({"candidates": [cell]}))
        assert search.main(again)[-3:] == ["--name", "s", "--overwrite"]
        Path("compares/s/metrics.jsonl").touch()
        assert search.main(again) == ["--name", "s", "--resume", "--quiet"]
        other = {**cell, "genotype": gt.to_str(gt.PUBLISHED["PDARTS"])}  # found before
        Path("compares/s/summary.json").write_text(json.dumps({"candidates": [other]}))
        assert search.main(again)[-3:] == ["--name", "s", "--overwrite"]
        Path("compares/s/config.json").write_text("{}")
        assert search.main([*again, "--compare", "0"]) == "searchs/s"
        monkeypatch.setenv("RANK", "0")  # as torchrun does, also for one process
        monkeypatch.setenv("WORLD_SIZE", "1")
        assert search.main(again) == "searchs/s"
        assert "compare.py searchs/s --random 2 --quick" in log_of("searchs/s")
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name)
    shutil.rmtree("compares")
    capsys.readouterr()
    monkeypatch.setattr(Comparison, "draw", lambda run: report.write_comparison(run.files.path))
    assert search.main([*words, "--overwrite"]) == "compares/s"
    assert trained("compares/s")[1] == {"searchs/s", "random:1", "random:2"}
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.endswith("augment.py --genotype compares/s --quick")
    rows = comparison.read("compares/s")
    first = f"{comparison.place_words(rows, 'searchs/s')} {comparison.winner_words(rows)}"
    said = f"{first} Whether the search beat chance is not known"
    assert said.startswith("Of 3 cells it is number ")
    # the page of the search names the winner first, unless its own cell is another by now
    for changes in (False, True):
        if changes:
            Path("searchs/s/genotype.json").write_text(gt.to_json(gt.PUBLISHED["PDARTS"]))
            report.write("searchs/s")
        page = Path("searchs/s/report.html").read_text()
        own = page.index("</span> searchs/s")  # of --genotype
        assert ("Next: train the winner of the comparison" in page[:own]) is not changes
        assert ("Next: train the found cell" in page) is changes
        assert ("</span> compares/s" in page[:own]) is not changes
        assert (html.escape(said) in page[:own]) is not changes
        assert ('href="../../compares/s/report.html"' in page) is not changes
    # a comparison in which nothing was learned is to be repeated
    cell = comparison.genotypes("compares/s")["searchs/s"]
    summary = json.loads(Path("compares/s/summary.json").read_text())
    Path("compares/s/summary.json").write_text(json.dumps({**summary, "guessing": 0.999}))
    Path("searchs/s/genotype.json").write_text(gt.to_json(gt.from_str(cell)))
    page = Path(report.write("searchs/s")).read_text()
    assert "Next: repeat the comparison, for longer" in page
    assert "No cell can be chosen yet" in page
    assert "To train the first all the same:" in page
    # a comparison that has broken off says on that page how to go on
    shutil.rmtree("compares")
    scripted.stop_after = len(scripted.done) + 7  # in the second rung
    ends_in_one_line(search.main, [*words, "--overwrite"], code=130)
    page = Path("searchs/s/report.html").read_text()
    assert "Next: the comparison<" in page
    assert "The comparison has not finished. It will say which cell to train." in page
    assert 'compare.py <span class="flag">--name</span> s <span class="flag">--resume<' in page
    found = index.row("compares/s")
    assert (found.state, found.epochs) == ("broken off", "7 trainings")


def test_several_searches_go_on_with_other_images(in_process, monkeypatch):
    """Of three the first has finished, the second is in its second epoch, the third never began."""
    monkeypatch.setattr(several.Searches, "_start", lambda self, *args: Process(self, *args))
    monkeypatch.setattr(several, "POLL", 0)
    monkeypatch.setattr(compare, "main", lambda words: words)
    monkeypatch.setattr(Process, "broken", ("d-seed2", "d-seed3"))
    make(Path("set"), n=8)
    words = ["--dataset", "set", *FAST_SEARCH, "--subset", "1", "--batch_size", "4"]
    words += ["--epochs", "2"]
    search.main([*words, "--name", "d", "--seeds", "3"])
    interrupt(search, [*words, "--name", "d-seed2", "--seed", "2", "--quiet"], epoch=2)
    make(Path("set"), n=10)
    again = ["--name", "d", "--seeds", "3", "--resume"]
    monkeypatch.setattr(Process, "broken", ())
    before = Path("searchs/d-seed1/checkpoint.pt").read_bytes()
    found = search.main([*again, "--new_split"])
    assert found[:3] == [f"searchs/d-seed{seed}" for seed in (1, 2, 3)]
    assert Path("searchs/d-seed1/checkpoint.pt").read_bytes() == before
    for seed in (2, 3):
        assert len(lines(f"searchs/d-seed{seed}/metrics.jsonl")) == 4
    text = ends_in_one_line(search.main, [*again, "--new_split"])
    assert "the searches d have finished, so there is nothing to divide anew; leave" in text


@pytest.mark.skipif(os.name != "posix", reason="has no such signals")
def test_several_searches_that_are_asked_to_end_are_all_asked(here, monkeypatch):
    sent, asked = [], []

    class Forever:
        def poll(self):
            if not sent:
                sent.append(os.kill(os.getpid(), signal.SIGTERM))

        def send_signal(self, number):
            asked.append(number)

        def wait(self):
            assert len(asked) == 2  # all are asked before one is waited for

    monkeypatch.setattr(several.Searches, "_start", lambda self, *args: Forever())
    monkeypatch.setattr(several.pick, "cores", lambda: 2)
    monkeypatch.setattr(several, "POLL", 0)
    words = ["--seed", "7", "--seeds", "3", "--name", "d", "--device", "cpu", "--overwrite"]
    text = ends_in_one_line(search.main, words, code=143)
    assert asked == [signal.SIGTERM] * 2
    assert not Path("searchs").exists()
    # one that did not begin must begin as it was asked for
    assert text.endswith("search.py --name d --seed=7 --seeds=3 --device=cpu --resume")


def test_several_searches_hold_their_name(here, monkeypatch):
    cfg = config.SearchConfig(["--seeds", "2"])
    with several.hold_name(cfg) as first, several.hold_name(cfg) as second:
        assert (first, second) == ("digits", "digits-2")
        words = ["--seeds", "3", "--name", "digits"]
        for flag in ([], ["--resume"], ["--overwrite"]):
            text = ends_in_one_line(search.main, [*words, *flag])
            assert "the searches digits are going on; wait for their end" in text
        # made by another search meanwhile: nothing that was not asked for is replaced
        searches = several.Searches(cfg, first)
        os.makedirs("searchs/digits-seed2")
        os.makedirs("compares/digits")
        assert "--overwrite" not in searches._words(2, 0)
        assert "--quiet --compare 0" in " ".join(
            searches._words(2, 0)
        )  # all are compared at the end
        assert "--overwrite" not in several.compare_words(cfg, "digits", ["searchs/digits-seed2"])
        with contextlib.redirect_stdout(io.StringIO()) as out:  # of one whose summary is lost
            Path("compares/digits/metrics.jsonl").write_text('{"rung": 1, "candidate": "a"}\n')
            words = several.compare_words(cfg, "digits", ["searchs/digits-seed2"])
        assert "--name" not in words
        assert "WARNING: compares/digits is damaged, summary.json does not say" in out.getvalue()
        cfg.gpus = "1,3"  # the comparison keeps to the cards of the searches
        words = several.compare_words(cfg, "digits", ["searchs/digits-seed2"])
        assert config.CompareConfig(words).gpus == "1,3"
    folder = run_folder.RunFolder("searchs", "d-seed3")  # its first process was killed
    folder.take("", False)
    for flag, asked in (("--resume", "nothing to resume"), ("--overwrite", "")):
        text = ends_in_one_line(search.main, ["--seeds", "2", "--name", "d", flag])
        assert asked in text
        assert asked or "searchs/d-seed3 belongs to a run that is going on" in text
    folder.release()


def test_what_was_said_is_said_again():
    said = ["--primitives", "skip_connect,none", "--no-tf32", "--input_size", "8", "9",
            "--w_lr", "0.1", "--cuda_graphs"]  # fmt: skip
    cfg = config.SearchConfig(said)
    again = config.SearchConfig(cfg.words(cfg.said))
    assert again.flags() == cfg.flags()


def test_the_page_of_each_search_names_the_newest_comparison_of_its_cell(
    scripted, undisturbed, monkeypatch
):
    monkeypatch.setattr(Comparison, "draw", lambda run: report.write_comparison(run.files.path))
    for name in "ab":
        copy_of(undisturbed[0], f"searchs/{name}")
    compare.main([*TINY, "searchs/a", "./searchs/b/", "random:1", "--name", "both", "--quiet"])

    def named_by(search):
        page = Path(search, "report.html").read_text()
        return re.findall(r'href="../../compares/(\w+)/report.html"', page)

    assert named_by("searchs/a") == named_by("searchs/b") == ["both"]
    config = json.loads(Path("compares/both/config.json").read_text())
    config["start_time"] = "2020-02-20 20:20:20"
    Path("compares/both/config.json").write_text(json.dumps(config))
    compare.main([*TINY, "searchs/a", "random:2", "--name", "again", "--quiet"])
    report.write("searchs/b")
    assert named_by("searchs/a") == ["again"]
    assert named_by("searchs/b") == ["both"]


def test_a_search_without_records_takes_part_and_gets_no_page(scripted):
    os.makedirs("searchs/bare")
    Path("searchs/bare/genotype.json").write_text(gt.to_json(gt.PUBLISHED["PDARTS"]))
    compare.main([*TINY, "searchs/bare", "random:1", *NAMED])
    assert os.listdir("searchs/bare") == ["genotype.json"]
    assert "report" not in "".join(line for line in log_of(COMMAND).splitlines() if "WARN" in line)
