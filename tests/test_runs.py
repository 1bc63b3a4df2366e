"""runs.py: the list of runs, their page, removal."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import filelock
import pytest
from conftest import ends_in_one_line

import genotypes as gt
import runs
from records import index, reader

ROOT = Path(__file__).parent.parent


@pytest.fixture
def two_runs(finished_augment, here):
    """A search and a training in the current folder."""
    for root in ("searchs", "augments"):
        shutil.copytree(finished_augment[0] / root, root)
    return here


def test_the_list_says_what_is_known(two_runs, capsys):
    Path("searchs/no-run").mkdir()
    runs.main([])
    header, *rows, end = capsys.readouterr().out.splitlines()
    assert re.split("  +", header) == list(runs.COLUMNS)
    assert [line.split()[0] for line in rows] == ["augments/a", "searchs/s"]  # newest first
    for line, part in zip(rows, ("test", "alpha half"), strict=True):
        assert re.search(rf"digits +finished +2 of 2 +\d+\.\d\d% +{part} +\d\.\d{{3}} M +20", line)
    assert end.startswith("2 runs, ")
    wanted = sum(p.lstat().st_size for p in Path("searchs/s").rglob("*") if p.is_file())
    assert index.size_on_disk("searchs/s") == wanted


def test_nothing_to_list(here, capsys):
    runs.main([])
    assert capsys.readouterr().out == "no runs here; python search.py --quick makes the first\n"


def test_a_run_that_goes_on_or_was_killed(two_runs):
    summary = Path("searchs/s/summary.json")
    summary.write_text(summary.read_text().replace('"is": "finished"', '"is": "running"'))
    assert index.row("searchs/s").state == "broken off"
    with filelock.FileLock("searchs/s/.lock"):
        assert index.row("searchs/s").state == "running"


def test_the_page_links_to_every_run(two_runs, capsys):
    runs.main(["--html"])
    assert capsys.readouterr().out.splitlines()[-1] == "runs.html"
    page = Path("runs.html").read_text(encoding="utf-8")
    links = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert sorted(links[1:]) == [
        "augments/a/loss_accuracy.png", "augments/a/report.html", "searchs/s/loss_accuracy.png",
        "searchs/s/report.html",
    ]  # fmt: skip
    assert all(Path(link).is_file() for link in links[1:])


@pytest.mark.parametrize(("answer", "gone"), [("y\n", True), ("n\n", False), ("", False)])
def test_removal_asks(two_runs, monkeypatch, capsys, answer, gone):
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    runs.main(["--remove", "searchs/s/"])
    assert "remove searchs/s (" in capsys.readouterr().out
    assert Path("searchs/s").exists() != gone
    assert Path("augments/a").exists()


def test_removal_does_not_ask_with_yes(two_runs, capsys):
    runs.main(["--remove", "searchs/s", "augments/a", "--yes"])
    assert capsys.readouterr().out == "removed searchs/s\nremoved augments/a\n"
    assert list(Path().glob("*/*")) == []


def test_what_compared_a_removed_cell_is_named(two_runs, capsys):
    text, folder = gt.to_str(gt.load("searchs/s")), Path("compares/c")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    candidates = [{"name": "searchs/s", "genotype": text}]
    (folder / "summary.json").write_text(json.dumps({"candidates": candidates}))
    runs.main(["--remove", "searchs/s", "--yes"])
    assert capsys.readouterr().out == (
        "removed searchs/s\ncompares/c compared its cell, and stays\n"
    )


def test_a_search_has_the_accuracy_of_its_cell(two_runs):
    cell = json.loads(Path("searchs/s/genotype.json").read_text())
    cell["epoch"] = 1
    Path("searchs/s/genotype.json").write_text(json.dumps(cell))
    scores = reader.scores("searchs/s")
    assert scores[1] != scores[2]
    assert index.row("searchs/s").top1 == scores[1]


@pytest.mark.parametrize(
    "path", ["searchs", ".", "searchs/..", "missing", "searchs/other", "data/x"]
)
def test_what_is_no_run_is_not_removed(two_runs, path):
    for folder in ("searchs/other", "data/x"):
        Path(folder).mkdir(parents=True)
    assert "is no run" in ends_in_one_line(runs.main, ["--remove", path, "--yes"])


def test_a_run_that_goes_on_is_not_removed(two_runs):
    with filelock.FileLock("searchs/s/.lock"):
        text = ends_in_one_line(runs.main, ["--remove", "searchs/s", "--yes"])
    assert "belongs to a run that is going on" in text
    assert ends_in_one_line(runs.main, ["--yes"]).startswith("runs.py: --yes belongs to --remove")


def test_it_needs_no_torch(here):
    code = "import sys, runs; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
