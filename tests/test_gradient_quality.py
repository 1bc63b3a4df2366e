"""scripts/gradient_quality.py in its smallest form: what it finds, writes and skips."""

import copy
import importlib
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
SIZES = ["--channels", "2", "--layers", "3", "--batch", "4", "--steps", "4", "--batches", "1"]
WHAT = ["--moments", "start", "half", "--no-costs", "--precisions", "float32", "float64"]
SMALL = [*SIZES, *WHAT, "--eps", "0.01", "1e-7", "--forward_eps", "1e-7", "--out", "q.json"]


@pytest.fixture
def quality(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("gradient_quality")


def test_the_table_and_that_it_goes_on_where_it_was_broken_off(here, quality, capsys, monkeypatch):
    quality.main(SMALL)
    out = capsys.readouterr().out
    record = json.loads((here / "q.json").read_text())
    assert set(record) == {"settings", "runs", "versions"}
    (run,) = record["runs"].values()
    assert [moment["step"] for moment in run["moments"].values()] == [1, 2]
    for moment in run["moments"].values():
        single, double = moment["forms"]["float32"], moment["forms"]["float64"]
        for row in (*single.values(), *double.values()):
            assert {name: len(values) for name, values in row.items()} == {
                "cosine": 1, "error": 1, "term_error": 1
            }  # fmt: skip
        # the lookahead lacks the whole term, the exact form nothing
        assert double["none"]["term_error"] == [1]
        assert max(single["exact"]["error"]) < 1e-3
        # an eps that reaches no kink is exact in float64, and drowns in rounding in float32
        assert max(double["difference 1e-07"]["term_error"]) < 1e-3
        assert min(single["difference 1e-07"]["term_error"]) > 0.1
        assert set(moment["reuse"]) == {"0.0003", "0.003", "0.03"}
        # the further alpha moves, the more a gradient of before its step is off
        lag = [row["gradient of w"] for row in moment["reuse"].values()]
        assert all(a < b < c < 1 for a, b, c in zip(*lag, strict=True))
    assert "difference 0.01" in out
    assert "written: q.json" in out

    part = copy.deepcopy(record)
    (run,) = part["runs"].values()
    del run["moments"]["half"]
    (here / "q.json").write_text(json.dumps(part))
    measured, measure = [], quality.measure

    def note(search, *args):
        measured.append(search.done)
        return measure(search, *args)

    monkeypatch.setattr(quality, "measure", note)
    quality.main(SMALL)
    assert measured == [2]
    assert json.loads((here / "q.json").read_text()) == record  # the search is the same


def test_two_cells_are_both_reduction_cells_and_the_others_alpha_has_no_gradient(here, quality):
    words = [*SMALL, "--layers", "2", "--moments", "start", "--precisions", "float64"]
    quality.main(words)
    (run,) = json.loads((here / "q.json").read_text())["runs"].values()
    moment = run["moments"]["start"]
    assert max(moment["forms"]["float64"]["difference 1e-07"]["error"]) < 1e-3
    assert all(0 < v < 1 for row in moment["reuse"].values() for vs in row.values() for v in vs)


def test_images_of_a_folder_and_of_an_archive(here, quality):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        folder = here / "pets" / "train" / name
        folder.mkdir(parents=True)
        for i in range(3):
            image = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(image).save(folder / f"{i}.png")
    X, y = quality.load_images(str(here / "pets" / "train"))
    assert X.shape == (6, 3, 8, 8)
    assert X.mean().abs() < 1e-6
    assert y.tolist() == [0, 0, 0, 1, 1, 1]
    with tarfile.open(here / "pets.tar.xz", "w:xz") as archive:
        archive.add(here / "pets", "pets")
    again, _ = quality.load_images(str(here / "pets.tar.xz"))
    assert torch.equal(again, X)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--images nowhere", "--images nowhere: no such file or folder"),
        ("--batches 0", "--batches: '0' is not a whole number of 1 or more"),
        ("--precisions tf32 --device cpu", "a CPU has no TF32"),
    ],
)
def test_what_is_refused(quality, capsys, words, message):
    with pytest.raises(SystemExit):
        quality.main(words.split())
    assert message in capsys.readouterr().err
