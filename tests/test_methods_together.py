"""Methods of the search that change each other's ground, in one run."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import (
    FAST_SEARCH,
    SMALL_SEARCH,
    checkpoint_of,
    lines,
    log_of,
    without_pictures,
)
from fault_helpers import same_result

import genotypes as gt
import report
import search
from strategies import perturbation

ALL = [
    *FAST_SEARCH, "--epochs", "3", "--init_channels", "4", "--partial_channels", "2",
    "--auxiliary_skip", "--beta_decay", "0.1", "--eigenvalue", "--max_skips", "2",
    "--warmup_epochs", "1", "--name", "s",
]  # fmt: skip


@pytest.fixture(scope="module")
def all_methods(tmp_path_factory):
    """(run folder of a search with all methods, a copy of it from its third epoch)."""
    folder = tmp_path_factory.mktemp("together")
    validate, calls = search.validate, []

    def copy_in_third(*args):
        calls.append(1)
        if len(calls) == 3:
            shutil.copytree("searchs/s", "copy/searchs/s")
        return validate(*args)

    with pytest.MonkeyPatch.context() as patch, without_pictures():
        patch.chdir(folder)
        patch.setattr(search, "validate", copy_in_third)
        search.main(ALL)
    return folder / "searchs/s", folder / "copy"


def test_a_search_with_all_methods_ends_well(all_methods):
    run, _ = all_methods
    records = lines(run / "alphas.jsonl")
    assert [r["epoch"] for r in records] == [1, 2, 3]
    assert [r["skip_factor"] for r in records] == [1, 0.5, 0]
    assert all(isinstance(r["eigenvalue"], float) for r in records)
    scored = [r for r in lines(run / "metrics.jsonl") if r["phase"] == "val"]
    assert [r.get("warmup", False) for r in scored] == [True, False, False]
    start, later, _ = (r["edge_weights"]["normal"] + r["normal"] for r in records)
    assert start != later
    for record in records:
        found = gt.from_str(record["genotype"])
        assert gt.count_ops(found.normal).get("skip_connect", 0) <= 2
        assert record["counts"]["normal"] == gt.count_ops(found.normal)
    text = log_of(run)
    for said in (
        "partial channels: 1 of 2", "auxiliary skip: factor 0.00", "at most 2 skip connections",
        "warm-up: only w learns up to epoch 1", "beta decay: lambda grows from 0 to 0.1",
        "dominant eigenvalue", "(epoch 3, " if gt.load(run) == gt.from_str(records[2]["genotype"])
        else "(epoch 2, ",
    ):  # fmt: skip
        assert said in text
    assert json.loads((run / "genotype.json").read_text())["epoch"] > 1  # behind the warm-up
    page = Path(report.write(str(run))).read_text()
    for said in (
        "dominant eigenvalue", "partial channels: 1 of 2", "auxiliary skip: one more",
        "at most 2 skip connections", "warm-up: only w learns", "beta decay: lambda grows",
    ):  # fmt: skip
        assert said in page


def test_it_goes_on_bit_for_bit(all_methods, monkeypatch):
    run, copy = all_methods
    assert checkpoint_of(copy / "searchs/s")["epoch"] == 2
    monkeypatch.chdir(copy)
    search.main(["--name", "s", "--resume"])
    same_result(run, copy / "searchs/s")


def test_a_search_that_ends_early_selects_in_the_supernet_of_its_last_epoch(here, quick_epochs):
    words = [*SMALL_SEARCH, "--alpha_lr", "1e-9", "--stop_unchanged", "1", "--name", "s"]
    words += ["--select", "perturbation", "--tune_epochs", "0.5"]

    def result():
        names = ("genotype.json", "genotype-last.json", "summary.json")
        found, last, summary = (json.loads((run / name).read_text()) for name in names)
        return found, last, {key: summary[key] for key in ("stopped", "selection")}

    run = Path(search.main(words))
    found, last, summary = result()
    state = checkpoint_of(run)
    stopped = "the cell has not changed for 1 epoch (--stop_unchanged)"
    assert (state["epoch"], state["stopped"], summary["stopped"]) == (2, stopped, stopped)
    assert last["genotype"] == state["genotype"] == state["chosen"]["genotype"]
    assert (found["epoch"], found["top1"], found["select"]) == (2, state["top1"], "perturbation")
    assert "chosen by perturbation in the supernet of epoch 2; " in summary["selection"]
    text = log_of(run)
    n_scores, n_tunes = perturbation.work(2, 2, 2)
    assert text.count("(accuracy without each: ") == n_tunes + 1
    assert f"is scored {n_scores} times and tuned {n_tunes} times" in text
    assert f"ended after epoch 2 of 3: {stopped}" in text
    page = Path(report.write(str(run))).read_text()
    assert "How alpha would have decided" in page
    assert "the cell is selected by perturbation" in page
    assert "ended early: the cell has not changed" in page
    # it has finished; asked to go on it selects again, to the same cell
    search.main(["--name", "s", "--resume"])
    assert result() == (found, last, summary)
    assert checkpoint_of(run)["epoch"] == 2
