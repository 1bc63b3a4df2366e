"""scripts/search_study.py: a small study, what is computed anew, and its statistics."""

import bisect
import concurrent.futures
import functools
import importlib
import itertools
import json
import math
import re
import statistics
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ends_in_one_line
from PIL import Image

import genotypes as gt
from config import CompareConfig, SearchConfig

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


class InThisProcess(concurrent.futures.Executor):
    """In place of a pool of processes."""

    def __init__(self, *args):
        pass

    def submit(self, function, *args):
        future = concurrent.futures.Future()
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", InThisProcess)
    module = importlib.import_module("search_study")
    yield module
    module.recipe_and_data.cache_clear()


# --- a study ------------------------------------------------------------------------------------


def write_images(study, folder):
    """Two classes of 20 images that differ in brightness, half of them to train."""
    rng, targets = np.random.default_rng(0), [0, 1] * 20
    pixels = [rng.integers(100 * y, 100 * y + 100, (8, 8), dtype=np.uint8) for y in targets]
    study.write_folder(folder, list(map(Image.fromarray, pixels)), targets, portion=0.5)


def test_images_are_shared_out_by_class(study, here):
    write_images(study, "images")
    for part, y in itertools.product(("train", "test"), "01"):
        assert len(list(Path("images", part, y).iterdir())) == 10


def parts():
    return {path: path.stat().st_mtime_ns for path in Path("out/parts").rglob("*.json")}


def test_a_small_study_and_again_without_anything_to_compute(study, here, capsys, monkeypatch):
    write_images(study, "images")
    words = [
        "--data", "images", "--variants", "first", "--searches", "1", "--random", "2",
        "--no-published", "--trainings", "1", "--epochs", "1", "--out", "out", "--search_flags",
        "--epochs 2 --warmup_epochs 1 --layers 3 --init_channels 2 --batch_size 8 --n_nodes 1 "
        "--k 1 --primitives skip_connect,max_pool_3x3",
    ]  # fmt: skip
    study.main(words)
    assert sorted(path.name for path in parts()) == [
        "search-first-0.json", "train-first-0-0.json", "train-random-0-0.json",
        "train-random-1-0.json",
    ]  # fmt: skip
    searched = json.loads(Path("out/parts/images/search-first-0.json").read_text())
    assert gt.to_str(gt.load("out/searchs/images-first-0")) == searched["genotype"]
    assert len(searched["epochs"]) == 2
    found = json.loads(Path("out/study.json").read_text())["results"]["images"]
    for kind, cells in (("first", 1), ("random", 2)):
        trained = [
            json.loads(Path(f"out/parts/images/train-{kind}-{seed}-0.json").read_text())
            for seed in range(cells)
        ]
        assert found[kind]["cells"] == cells
        for score in ("top1", "loss"):
            assert found[kind][f"{score}_of_cells"] == [t[score] for t in trained]
            assert found[kind][score] == statistics.mean(t[score] for t in trained)
        assert all(len(t["train_losses"]) == 1 and 0 <= t["top1"] <= 1 for t in trained)
    assert found["first"]["search_seconds"] == searched["seconds"] > 0
    said = capsys.readouterr().out
    assert "images: accuracy in %" in said
    assert "trainings of one cell differ" not in said  # each was trained once
    assert Path("out/study.png").read_bytes().startswith(b"\x89PNG")

    study.main([*words, "--trainings", "0"])  # nothing but searches, which are done
    assert capsys.readouterr().out.startswith("the searches are done; their cells are in ")
    before, (first, last) = parts(), ("train-random-0-0.json", "train-random-1-0.json")
    with monkeypatch.context() as patch:
        patch.setattr(study, "one_part", None)
        study.main(words)
    assert parts() == before
    assert said.endswith(capsys.readouterr().out)
    # what is missing, and that alone, is done; the same again, since all follows from the seeds
    path = Path("out/parts/images", first)
    trained = json.loads(path.read_text())
    path.unlink()
    study.main(words)
    again = json.loads(path.read_text())
    assert {**again, "seconds": 0} == {**trained, "seconds": 0}
    assert parts()[Path("out/parts/images", last)] == before[Path("out/parts/images", last)]


def test_cross_validation_scores_every_image_once(study, here, monkeypatch, capsys):
    monkeypatch.setattr(study, "MADE", {"digits": functools.partial(write_images, study)})
    monkeypatch.setattr(study, "search_cell", lambda data, *_: [{
        "genotype": gt.to_str(gt.PUBLISHED["PDARTS" if "swapped" in data else "DARTS_V2"]),
        "seconds": 3.0 if "swapped" in data else 1.0,
    }])  # fmt: skip
    asked = []

    def trained(flags, epochs, genotypes, seed, *_):
        folder = Path(flags[flags.index("--dataset") + 1])
        assert epochs == 30
        asked.append((folder.name, genotypes[0], seed))
        names = {path.name for path in (folder / "test").rglob("*.png")}
        asked[-1] += (names, {path.name for path in (folder / "train").rglob("*.png")})
        return [{"top1": 0.5 + 0.1 * seed + 0.2 * ("swapped" in folder.name), "loss": 1.0}]

    monkeypatch.setattr(study, "train_cells", trained)
    words = ["--data", "digits", "--variants", "first", "--searches", "1", "--random", "2",
             "--no-published", "--out", "out", "--cross_validate"]  # fmt: skip
    study.main(words)
    tested = {name: tests for name, _, _, tests, _ in asked}
    assert tested["digits"] | tested["digits-swapped"] == {f"{i:04d}.png" for i in range(40)}
    assert not tested["digits"] & tested["digits-swapped"]
    assert all(not tests & trains for *_, tests, trains in asked)
    found = {(name, cell, seed) for name, cell, seed, *_ in asked} - {
        (name, gt.to_str(gt.draw("random", i, vars(SearchConfig([])))), seed)
        for name in tested for i in (0, 1) for seed in (0, 1)
    }  # fmt: skip
    assert found == {
        (name, gt.to_str(gt.PUBLISHED[cell]), seed)
        for name, cell in (("digits", "DARTS_V2"), ("digits-swapped", "PDARTS")) for seed in (0, 1)
    }  # fmt: skip
    results = json.loads(Path("out/study.json").read_text())["results"]
    assert list(results) == ["digits", "digits-swapped", "digits, cross-validated"]
    row = results["digits, cross-validated"]["first"]
    assert row["top1"] == pytest.approx(0.65)  # 0.5 and 0.6 on one side, 0.7 and 0.8 on the other
    assert row["top1_deviation_of_trainings"] == pytest.approx(0.1 / 2**0.5)
    assert (row["cells"], row["search_seconds"]) == (1, 2.0)
    said = capsys.readouterr().out
    assert "digits-swapped: accuracy in %" in said
    assert "digits, cross-validated: accuracy in %" in said
    assert said.count("each value is a mean of both sides") == 1

    with pytest.raises(SystemExit):
        study.main([*words, "--compare", "first", "--random", "12", "--replay", "4"])
    assert "--replay takes no --cross_validate" in capsys.readouterr().err
    for other in ("fashion@14", "images"):
        with pytest.raises(SystemExit):
            study.main(["--data", "digits", other, "--cross_validate"])
        assert "--cross_validate takes --data digits alone" in capsys.readouterr().err


def test_a_cell_left_out_on_one_side_is_not_cross_validated(study):
    def side(data, **tops):
        scored = {(kind, 0): [{"top1": top, "loss": 1.0}] for kind, top in tops.items()}
        return SimpleNamespace(data=data, scored=scored, searches={})

    rows = study.cross_validated(side("d", first=0.4, second=0.5), side("e", second=0.6))
    assert {kind: row["top1"] for kind, row in rows.items()} == {"second": pytest.approx(0.55)}


def test_comparisons_are_replayed_from_trainings_on_both_halves(study, here, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        study.main(["--data", "images", "--replay", "1"])
    assert "--replay takes --compare and 12 --random cells at least" in capsys.readouterr().err
    monkeypatch.setattr(study, "N_RANDOM", 2)
    monkeypatch.setattr(gt, "PUBLISHED", {"PDARTS": gt.PUBLISHED["PDARTS"]})
    write_images(study, "images")
    study.main([
        "--data", "images", "--variants", "first", "--searches", "1", "--random", "3",
        "--trainings", "1", "--epochs", "1", "--out", "out", "--search_flags",
        "--epochs 1 --warmup_epochs 0 --layers 3 --init_channels 2 --batch_size 8 --n_nodes 1 "
        "--k 1 --primitives skip_connect,max_pool_3x3", "--compare", "first", "--replay", "1", "2",
        "--replay_flags", "--batch_size 4",
    ])  # fmt: skip
    halves = {path.name: json.loads(path.read_text()) for path in parts() if "half" in path.name}
    assert sorted(halves) == [
        f"half-{epochs}-{cell}-{fold}.json"
        for epochs in (1, 2)
        for cell in ("first-0", "published-PDARTS", "random-0", "random-1", "random-2")
        for fold in (0, 1)
    ]  # fmt: skip
    assert all(len(t["train_losses"]) == int(name[5]) for name, t in halves.items())
    found = json.loads(Path("out/study.json").read_text())["results"]["images"]
    assert found["compare's winner"]["cells"] == 1
    assert len(found["compare's winner"]["top1_of_cells"]) == 200
    assert found["winner, published too"]["cells"] == 1


def test_the_halves_change_places(study, here):
    write_images(study, "images")
    _, flags = study.data_flags("images", ".")
    halves = []
    for fold in (0, 1):
        _, data, _, scored = study.recipe_and_data((*flags, "--batch_size", "2"), 1, "cpu", fold)
        images = torch.cat([X for X, _ in scored])  # as they are, in order
        assert len(images) == 10
        halves.append({tuple(image.flatten().tolist()) for image in images})
        assert len(data.train.dataset) == 10
    assert not halves[0] & halves[1]


def test_a_replay_halves_by_the_mean_of_both_trainings(study, monkeypatch):
    def both(a, b):
        # scores of a and b, by the mean of the two losses, the one of training in its last epoch
        return [
            {"top1": 0.0, "loss": 2 - 2 * a, "train_losses": [9.0, 0.0]},
            {"top1": 0.0, "loss": 0.0, "train_losses": [0.0, 2 - 2 * b]},
        ]

    def trained(top1):
        return [{"top1": top1, "loss": 1.0}]

    # one long training alone would take random 0, both of them random 1; it leads after one epoch
    halves = {
        ("first", 0): {1: both(0.1, 0.1), 2: both(0.9, 0.9)},
        ("random", 0): {1: both(0.5, 0.5), 2: both(0.8, 0.1)},
        ("random", 1): {1: both(0.6, 0.6), 2: both(0.5, 0.6)},
        ("random", 2): {1: both(0.0, 0.0), 2: both(1.0, 1.0)},
    }
    cells = {key: trained(0.2 * n) for n, key in enumerate(halves)}
    row = study.replayed(cells, halves)
    assert set(row["top1_of_cells"]) == {0.4}
    assert row["above"] == 0.0  # the random ones have 0.4 in the mean
    assert study.replayed({**cells, ("random", 0): trained(0)}, halves)["above"] == 1.0

    # a published cell that would win, in place of a random one
    halves["published", "P"] = {1: both(0.9, 0.9), 2: both(1.1, 1.1)}
    cells["published", "P"] = trained(0.7)
    assert study.replayed(cells, halves)["top1_of_cells"] == row["top1_of_cells"]
    row = study.replayed(cells, halves, also="published")
    assert set(row["top1_of_cells"]) == {0.7}
    assert row["cells"] == 1
    # alone with it a found cell is not beaten by a random one
    monkeypatch.setattr(study, "N_RANDOM", 1)
    halves["published", "P"] = {1: both(0.0, 0.0), 2: both(0.0, 0.0)}
    row = study.replayed(cells, halves, also="published")
    assert set(row["top1_of_cells"]) == {0.0}


def test_a_comparison_of_the_study_is_that_of_quick(study, here, monkeypatch):
    heard = []
    monkeypatch.setattr(study.compare, "main", lambda words: heard.append(words) or "PDARTS")
    (found,) = study.compare_cells("d", ["first", "beta"], 2, ["--jobs", "3"])
    assert found["genotype"] == gt.to_str(gt.PUBLISHED["PDARTS"])
    cfg = CompareConfig(heard[0])
    assert cfg.candidates == ["searchs/d-first-2", "searchs/d-beta-2"]
    assert (cfg.quick, cfg.random, cfg.seed, cfg.jobs, cfg.epochs) == (True, 12, 1200, 3, 8)


def test_what_fails_is_named_and_the_others_are_done(study, here):
    def divide(n):
        return [{"result": 6 / n}]

    jobs = [([f"{n}.json"], divide, (n,)) for n in (2, 0, 3)]
    with pytest.raises(SystemExit, match="1 of 3 parts failed\n0.json: division by zero"):
        study.in_processes(jobs, 1, "title")
    assert [Path(f"{n}.json").exists() for n in (2, 0, 3)] == [True, False, True]
    assert study.in_processes(jobs[::2], 1, "title") == {
        "2.json": {"result": 3}, "3.json": {"result": 2}
    }  # fmt: skip


def test_cells_that_are_trained_together_are_as_if_alone(study, here):
    write_images(study, "images")
    _, flags = study.data_flags("images", ".")
    space = {"primitives": ["skip_connect", "sep_conv_3x3"], "n_nodes": 1, "k": 1}
    cells = [gt.to_str(gt.draw("random", seed, space)) for seed in (0, 3)]
    assert cells[0] != cells[1]
    together = study.train_cells(flags, 2, cells, 7)
    alone = [study.train_cells(flags, 2, [cell], 7)[0] for cell in cells]
    assert [{**found, "seconds": 0} for found in together] == [
        {**found, "seconds": 0} for found in alone
    ]
    assert together[0]["train_losses"] != together[1]["train_losses"]


@pytest.mark.parametrize("where", ["training", "scoring"])
def test_a_training_that_does_not_stay_finite_costs_no_other(study, here, monkeypatch, where):
    class Diverges(study.training.Training):
        def __init__(self, cell, *args):
            super().__init__(cell, *args)
            self.is_bad = gt.to_str(cell) == cells[1]

        def step(self, X, y):
            diverges = self.is_bad and self.scheduler.last_epoch == 1  # in its second epoch
            super().step(X * float("nan") if diverges and where == "training" else X, y)

        def score(self, batches):
            if self.is_bad and where == "scoring":
                batches = [(X * float("nan"), y) for X, y in batches]
            return super().score(batches)

    write_images(study, "images")
    _, flags = study.data_flags("images", ".")
    space = {"primitives": ["skip_connect", "sep_conv_3x3"], "n_nodes": 1, "k": 1}
    cells = [gt.to_str(gt.draw("random", seed, space)) for seed in (0, 3)]
    (alone,) = study.train_cells(flags, 3, cells[:1], 7)
    monkeypatch.setattr(study.training, "Training", Diverges)
    good, bad = study.train_cells(flags, 3, cells, 7)
    assert {**good, "seconds": 0} == {**alone, "seconds": 0}
    assert "not finite" in bad["fault"]
    assert len(bad["train_losses"]) == (1 if where == "training" else 2)


def test_a_cell_that_did_not_stay_finite_is_left_out(study, here, capsys):
    (here / "parts").mkdir()
    one = study.Study("d", [], SimpleNamespace(device="cpu"))
    good, bad = {"top1": 0.5, "loss": 1.0}, {"fault": "loss is not finite"}
    cells = {("random", 0): [good, good], ("random", 1): [good, bad], ("first", 0): [good, good]}
    halves = {("random", 0): {4: [good, good]}, ("first", 0): {4: [bad, good]}}
    one.leave_out(cells, halves)
    assert (list(cells), list(halves)) == ([("random", 0)], [("random", 0)])
    assert capsys.readouterr().out == (
        "d: random 1 is left out: loss is not finite\nd: first 0 is left out: loss is not finite\n"
    )
    assert one.left_out == {"random-1": "loss is not finite", "first-0": "loss is not finite"}
    found = study.summary(cells, {("first", 0): {"seconds": 1.0}})
    assert list(found) == ["random"]
    assert "accuracy in %" in study.table("d", {})


def test_every_variant_is_made_of_flags_that_there_are(study):
    for variant, words in study.VARIANTS.items():
        cfg = SearchConfig(words.split())
        channels = 16 if variant == "quarter" else 8  # of which a quarter goes through the ops
        assert (cfg.layers, cfg.init_channels, cfg.batch_size) == (4, channels, 32)


def test_a_data_set_that_there_is_not_is_one_line(study, here):
    told = ends_in_one_line(study.main, ["--data", "nothere"])
    assert told == (
        "search_study.py: --data nothere is none of digits, mnist, fashion and no folder"
    )
    for side in ("0", "", "x"):
        told = ends_in_one_line(study.main, ["--data", f"digits@{side}"])
        assert f"{side!r} is not a side in pixels, such as digits@16" in told
    told = ends_in_one_line(study.main, ["--search_flags", "--epoch 3"])
    assert told.startswith("search.py: unrecognized arguments: --epoch 3; did you mean --epochs?")
    told = ends_in_one_line(study.main, ["--compare_flags", "--randm 3"])
    assert told.startswith("compare.py: unrecognized arguments: --randm; did you mean --random?")


def test_a_study_that_is_interrupted_says_how_to_go_on(study, here, monkeypatch):
    def interrupted(job):
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "one_part", interrupted)
    write_images(study, "images")
    told = ends_in_one_line(study.main, ["--data", "images"], code=130)
    assert told == "search_study.py: interrupted; the same command goes on"


def test_what_is_on_record_is_told_again(study, here, capsys):
    measured = SCRIPTS.parent / "docs" / "measurements"
    paths = [str(measured / f"search-{name}.json") for name in ("fashion-14", "digits")]
    study.main(["--records", *paths, "--out", "again"])
    said = capsys.readouterr().out
    assert "Fashion-MNIST at 14x14: accuracy in %" in said
    assert "digits, cross-validated: accuracy in %" in said
    rows = [" ".join(line.split()) for line in said.splitlines()]
    assert "| perturbation | 5 | 83.84 +- 0.47 | 0.451 | -0.75 to +0.39 | 0.38 | 625 s |" in rows
    assert said.splitlines()[-1] == f"written: {here / 'again' / 'study.png'}"
    for words, message in (
        ([paths[0], "no.json"], "no.json is not the record of a study"),
        ([*paths, paths[0]], f"{paths[0]} has again what one before it has: Fashion-MNIST"),
    ):
        assert message in ends_in_one_line(study.main, ["--records", *words])


def test_the_tables_of_the_docs_are_those_on_record(study):
    docs = SCRIPTS.parent / "docs"
    page = (docs / "results.md").read_text()
    tables = re.findall(r"(?:^\|.*\n)+", page, re.M)
    shown = [table for table in tables if "found - random" in table]
    recorded = [
        "".join(re.findall(r"^\|.*\n", study.table(name, rows), re.M))
        for path in (docs / "measurements").glob("search-*.json")
        for name, rows in json.loads(path.read_text())["results"].items()
    ]
    assert sorted(shown) == sorted(recorded)
    assert len(shown) == 6


def test_the_figure_shows_how_far_above_random_cells(study, here, monkeypatch):
    drawn = []
    monkeypatch.setattr(study.figure, "save", lambda fig, out: drawn.append(fig))
    cells = {("random", i): [{"top1": top1, "loss": 1}] for i, top1 in enumerate((0.4, 0.5, 0.6))}
    cells |= {("first", i): [{"top1": top1, "loss": 1}] for i, top1 in enumerate((0.6, 0.8))}
    cells |= {("beta", i): [{"top1": top1, "loss": 1}] for i, top1 in enumerate((0.95, 0.96))}
    rows = study.summary(cells, {})
    study.draw({"b": {"random": rows["random"]}, **dict.fromkeys("acde", rows)}, "x.png")
    b, a, *_ = panels = drawn[0].axes
    assert [axes.get_visible() for axes in panels] == [True] * 5 + [False]
    dots, mean, bounds = (line for line in a.lines if set(line.get_ydata()) == {1})
    assert list(dots.get_xdata()) == pytest.approx([10, 30])
    assert list(mean.get_xdata()) == pytest.approx([20])
    assert [label.get_text() for label in b.get_yticklabels()] == ["random", "first", "beta"]
    assert list(bounds.get_xdata()) == pytest.approx([100 * x for x in rows["first"]["top1_welch"]])
    *_, bold = (line for line in a.lines if set(line.get_ydata()) == {2})
    low, high = rows["first"]["top1_welch"]
    assert low < 0 < high
    assert rows["beta"]["top1_welch"][0] > 0  # told from random cells
    assert bold.get_linewidth() > 2 * bounds.get_linewidth()
    assert not [line for line in b.lines if set(line.get_ydata()) == {1}]  # none there


def test_a_study_without_random_cells_is_drawn_too(study, here):
    searches = {("first", 0): {"seconds": 1.0}}
    rows = study.summary({("first", 0): [{"top1": 0.5, "loss": 1.0}]}, searches)
    assert "top1_interval" not in rows["first"]
    assert Path(study.draw({"images": rows}, "study.png")).stat().st_size > 0


# --- its statistics -----------------------------------------------------------------------------


def resampled(values):
    """The mean of every list of as many values drawn with replacement; all are equally likely."""
    return [statistics.mean(drawn) for drawn in itertools.product(values, repeat=len(values))]


@pytest.mark.parametrize(
    ("found", "random"),
    [([0.9, 0.8, 0.95], [0.7, 0.9, 0.85, 0.6]), ([1.0], [0.0, 1.0, 3.0, 4.0]), ([2.0, 3.0], [2.0])],
)
def test_the_interval_has_the_quantiles_of_all_resamples(study, found, random):
    drawn = resampled(found)
    if len(found) == 1:  # another one would differ from it as random cells do
        drawn = [found[0] + value - statistics.mean(random) for value in random]
    differences = sorted(a - b for a in drawn for b in resampled(random))
    n = len(differences)
    for bound, q in zip(study.interval(found, random), (0.025, 0.975), strict=True):
        below = bisect.bisect_left(differences, bound - 1e-9) / n
        up_to = bisect.bisect_right(differences, bound + 1e-9) / n
        assert below - 0.02 <= q <= up_to + 0.02  # 5,000 draws: a standard error of 0.007


def test_an_interval_moves_with_the_scores(study):
    low, high = study.interval([0.5, 0.7], [0.4, 0.6, 0.3])
    moved = study.interval([1.5, 1.7], [0.4, 0.6, 0.3])
    assert moved == pytest.approx((low + 1, high + 1))
    assert study.interval([0.5], [0.5, 0.5]) == (0, 0)


def test_an_interval_by_welch_by_hand(study):
    found, random = [0.9, 0.7, 0.8], [0.6, 0.4, 0.5, 0.5, 0.7]  # variances 0.01 and 0.013
    a, b = 0.01 / 3, 0.013 / 5
    freedom = (a + b) ** 2 / (a**2 / 2 + b**2 / 4)
    assert 4 < freedom < 5  # t is 2.78 for 4, 2.57 for 5
    half = 2.78 * math.sqrt(a + b)
    low, high = study.welch(found, random)
    assert low + high == pytest.approx(2 * 0.26)
    assert 2.57 / 2.78 * half < high - 0.26 < half
    assert study.welch([0.5, 0.5], [0.25, 0.25]) == (0.25, 0.25)


def test_cells_that_are_like_random_ones_are_told_from_them_once_in_twenty(study):
    rng, beside = np.random.default_rng(1), 0
    for _ in range(4000):
        low, high = study.welch(rng.normal(size=5).tolist(), rng.normal(size=10).tolist())
        beside += not low < 0 < high
    assert 0.04 < beside / 4000 < 0.06  # three standard errors


def test_the_rank_is_the_mean_over_all_orders_of_equals(study):
    for *random, value in itertools.product(range(3), repeat=5):
        ordered = sorted(random)
        first, last = bisect.bisect_left(ordered, value), bisect.bisect_right(ordered, value)
        wanted = statistics.mean(place + 0.5 for place in range(first, last + 1)) / 5
        assert study.rank(value, random) == pytest.approx(wanted)


def test_means_of_equally_many_right_images_are_ties(study):
    one, other = (0.98772 + 0.98996) / 2, (0.98884 + 0.98884) / 2
    assert one != other
    assert study.rank(one, [other]) == 0.5


def test_ranks_of_random_cells_among_their_likes_are_one_half(study):
    values = [0.3, 0.1, 0.1, 0.8, 0.5]
    ranks = [study.rank(v, values[:i] + values[i + 1 :]) for i, v in enumerate(values)]
    assert statistics.mean(ranks) == pytest.approx(0.5)


def test_a_summary_by_hand(study):
    def trained(*pairs):
        return [{"top1": top1, "loss": loss} for top1, loss in pairs]

    cells = {
        ("random", 0): trained((0.5, 1.0), (0.7, 0.8)),
        ("random", 1): trained((0.8, 0.5), (0.8, 0.7)),
        ("first", 0): trained((0.9, 0.9), (0.6, 0.5)),
        ("first", 1): trained((0.9, 0.2), (0.9, 0.2)),
    }
    searches = {("first", 0): {"seconds": 2.0}, ("first", 1): {"seconds": 4.0}}
    rows = study.summary(cells, searches)
    random, first = rows["random"], rows["first"]
    assert random["top1_of_cells"] == pytest.approx([0.6, 0.8])
    assert first["top1_of_cells"] == pytest.approx([0.75, 0.9])
    assert first["top1"] == pytest.approx(0.825)
    assert first["top1_deviation"] == pytest.approx(0.15 / math.sqrt(2))
    # the variances within a cell are 0.02, 0, 0.045 and 0
    assert first["top1_deviation_of_trainings"] == pytest.approx(math.sqrt(0.065 / 4))
    # each time one cell is better than one of the two random ones, the other better than both
    assert first["top1_rank"] == pytest.approx((1.5 / 3 + 2.5 / 3) / 2)
    assert first["loss_rank"] == pytest.approx((1.5 / 3 + 2.5 / 3) / 2)  # a low loss is good
    for score in ("top1", "loss"):
        lists = (row[f"{score}_of_cells"] for row in (first, random))
        assert first[f"{score}_interval"] == study.interval(*lists)
    assert "top1_rank" not in random
    assert first["search_seconds"] == 3
    said = study.table("images", rows)
    assert "trainings of one cell differ by 12.75 (deviation)" in said
    assert "70.00 +- 14.14" in said
    del cells["first", 1]  # of one cell Welch's t says nothing
    rows = study.summary(cells, {})
    low, high = (f"{100 * bound:+.2f}" for bound in rows["first"]["top1_interval"])
    assert f"| {low} to {high} " in study.table("images", rows)
