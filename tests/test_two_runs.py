"""Runs that want one folder: taken in one step, held by one process, given back as it was."""

import contextlib
import errno
import io
import logging
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import (
    FAST_OPS,
    SMALL_SEARCH,
    TINY_SEARCH,
    checkpoint_of,
    ends_in_one_line,
    equal,
    interrupt,
    lines,
    log_of,
)
from data_helpers import make
from fault_helpers import copy_of

import report
import search
from console.log import Log
from data_sets import cache, loader_processes
from records import files
from tracking import checkpoint, run_folder
from tracking.run_folder import RunFolder

ROOT = Path(search.__file__).parent


def held(name, default="digits", overwrite=False):
    folder = RunFolder("searchs", name)
    folder.take(default, overwrite)
    return folder


# --- one process ----------------------------------------------------------------------------------


def test_names_are_taken_at_once_and_given_back(here):
    first, second = held(None), held(None)
    assert (first.name, second.name) == ("digits", "digits-2")
    second.give_back()
    assert sorted(os.listdir("searchs")) == ["digits"]
    assert held(None).name == "digits-2"
    with pytest.raises(ValueError, match="searchs/digits exists; choose another --name"):
        held("digits")


def test_many_threads_take_as_many_names(here):
    folders, together = [], threading.Barrier(8)

    def take():
        together.wait()
        folders.append(held(None))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = {"digits", *(f"digits-{n}" for n in range(2, 9))}
    assert {folder.name for folder in folders} == set(os.listdir("searchs")) == names


@pytest.mark.parametrize("word", ["--resume", "--overwrite"])
def test_a_run_that_goes_on_is_neither_resumed_nor_overwritten(here, undisturbed, word):
    copy_of(undisturbed[0], "searchs/s")
    running = RunFolder("searchs", "s")
    running.resume()
    words = ["--name", "s", word] if word == "--resume" else [*SMALL_SEARCH, "--name", "s", word]
    text = ends_in_one_line(search.main, words)
    assert "searchs/s belongs to a run that is going on; wait for its end" in text
    report.main(["searchs/s"])  # only looks
    running.release()
    with contextlib.redirect_stdout(io.StringIO()):
        RunFolder("searchs", "s").resume()


def test_what_fails_in_its_set_up_leaves_nothing_and_takes_nothing(here, undisturbed):
    make(here / "set")
    (here / "set" / "train" / "cat" / "00.png").write_bytes(b"no image")
    words = [*TINY_SEARCH, "--dataset", "set", "--batch_size", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "store", lambda *args: None)  # which may stay
        assert "1 of 16 image files" in ends_in_one_line(search.main, words)
        assert not os.path.exists("searchs")
        copy_of(undisturbed[0], "searchs/s")
        before = (here / "searchs/s/checkpoint.pt").read_bytes()
        ends_in_one_line(search.main, [*words, "--name", "s", "--overwrite"])
        assert os.listdir("searchs") == ["s"]
        assert (here / "searchs/s/checkpoint.pt").read_bytes() == before


def test_a_folder_that_cannot_be_begun_is_given_back(here, undisturbed, monkeypatch, capsys):
    """The disk is full when config.json is written."""
    copy_of(undisturbed[0], "searchs/s")
    monkeypatch.setattr(RunFolder, "write_config", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        search.main([*SMALL_SEARCH, "--name", "s", "--overwrite"])
    assert os.listdir("searchs") == ["s"]
    assert checkpoint_of("searchs/s")["epoch"] == 3


def test_the_overwritten_run_stays_until_an_epoch_is_finished(here, undisturbed, quick_epochs):
    copy_of(undisturbed[0], "searchs/s")
    words = [*SMALL_SEARCH, "--name", "s", "--overwrite", "--seed", "5"]
    text = interrupt(search, words)
    assert "the earlier run of this name is in searchs/s.before-overwrite" in text
    assert sorted(os.listdir("searchs")) == ["s", "s.before-overwrite"]
    assert checkpoint_of("searchs/s.before-overwrite")["epoch"] == 3
    assert "is in searchs/s.before-overwrite until the first epoch" in log_of("searchs/s")

    # it is a run like any other: it can be resumed, or moved back
    shutil.rmtree("searchs/s")
    shutil.move("searchs/s.before-overwrite", "searchs/s")
    interrupt(search, words, epoch=2)
    assert os.listdir("searchs") == ["s"]
    assert checkpoint_of("searchs/s")["flags"]["seed"] == 5


def test_a_killed_overwrite_names_the_run_that_it_moved_aside(here, undisturbed, quick_epochs):
    aside = "searchs/s.before-overwrite"
    os.makedirs("searchs/s")
    assert "before-overwrite" not in ends_in_one_line(search.main, ["--name", "s", "--resume"])
    copy_of(undisturbed[0], aside)
    text = ends_in_one_line(search.main, ["--name", "s", "--resume"])
    assert f"the run that had the name before is in {aside}: move it back" in text
    copy_of(undisturbed[0], f"{aside}-10")
    os.makedirs(f"{aside}-2")
    assert f"is in {aside}-10: " in ends_in_one_line(search.main, ["--name", "s", "--resume"])

    search.main([*SMALL_SEARCH, "--name", "s", "--overwrite"])
    assert checkpoint_of("searchs/s")["epoch"] == checkpoint_of(aside)["epoch"] == 3
    for left in (aside, f"{aside}-2", f"{aside}-10"):
        assert f"WARNING: {left} is left of an --overwrite that was broken off" in log_of(
            "searchs/s"
        )


def test_a_run_that_cannot_begin_closes_what_is_open(here, undisturbed, quick_epochs, monkeypatch):
    """A warning that does not fit on the disk."""
    copy_of(undisturbed[0], "searchs/s")
    os.remove("searchs/s/metrics.jsonl")  # which is warned of

    def full(self, text, kind=None):
        raise OSError(errno.ENOSPC, "No space left on device", "searchs/s/s.log")

    closed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Log, "warn", full)
        patch.setattr(loader_processes.Loader, "close", lambda loader: closed.append(loader))
        text = ends_in_one_line(search.main, ["--name", "s", "--resume"], code=1)
    assert "searchs/s/s.log cannot be written or read (No space left on device)" in text
    assert len(closed) >= 2
    assert logging.getLogger(f"darts.run.{os.path.abspath('searchs/s/s.log')}").handlers == []
    assert not os.path.exists("searchs/s/.lock")
    search.main(["--name", "s", "--resume"])  # nobody holds it


def test_a_folder_that_was_barely_made_may_be_overwritten(here, quick_epochs):
    """Killed before config.json was written."""
    os.makedirs("searchs/s")
    text = ends_in_one_line(search.main, ["--name", "s", "--resume"])
    assert "nothing was saved in searchs/s to go on from; start again with --overwrite" in text
    for name in (".lock", "config.json.tmp-0123abcd"):
        Path("searchs/s", name).touch()
    search.main([*SMALL_SEARCH, "--name", "s", "--overwrite"])
    assert checkpoint_of("searchs/s")["epoch"] == 3
    assert os.listdir("searchs") == ["s"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no such files")
@pytest.mark.parametrize("name", ["s.log", "metrics.jsonl", "config.json", ".lock"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/null", path)])
def test_what_is_no_file_in_a_run_is_named(here, undisturbed, name, make):
    path = Path(copy_of(undisturbed[0], "searchs/s"), name)
    path.unlink(missing_ok=True)
    make(path)
    text = ends_in_one_line(search.main, ["--name", "s", "--resume"], code=1)
    wanted = f"{path} cannot be written or read (it is no regular file; remove it)"
    assert text == f"search.py: {wanted}"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no such files")
def test_a_fifo_that_comes_into_the_place_of_a_file_ends_the_run(here, undisturbed, quick_epochs):
    copy_of(undisturbed[1], "searchs/s")
    os.mkfifo("searchs/.images.json")  # which is passed over
    append = RunFolder.append

    def then_append(self, name, record):
        os.unlink(self.file(name))
        os.mkfifo(self.file(name))
        append(self, name, record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "append", then_append)
        text = ends_in_one_line(search.main, ["--name", "s", "--resume", "--quiet"], code=1)
    assert "searchs/s/metrics.jsonl cannot be written or read" in text
    assert cache.cached(("searchs/.images.json",), "x") is None


def test_left_over_temporary_files_are_removed(here, undisturbed, quick_epochs):
    run = copy_of(undisturbed[0], "searchs/s")
    for name in ("checkpoint.pt.tmp-0123abcd", "report.html.tmp-0123abcd", "x.tmp-note"):
        Path(run, name).touch()
    os.utime(run + "/report.html.tmp-0123abcd")  # of a report.py that is at work
    search.main(["--name", "s", "--resume"])
    assert sorted(name for name in os.listdir(run) if "tmp" in name) == [
        "report.html.tmp-0123abcd", "x.tmp-note",
    ]  # fmt: skip
    os.utime(run + "/report.html.tmp-0123abcd", (0, 0))
    search.main(["--name", "s", "--resume"])
    assert [name for name in os.listdir(run) if "tmp" in name] == ["x.tmp-note"]


def test_many_threads_write_one_file(here):
    """As processes that remember images do, and report.py beside a run."""
    failed = []

    def write(n):
        try:
            for i in range(30):
                cache.store(("searchs/.images.json",), f"{n}-{i}", i)
                files.write_text("searchs/report.html", "x" * 1000)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert sorted(os.listdir("searchs")) == [".images.json", "report.html"]


# --- several processes ----------------------------------------------------------------------------


def start(*words):
    """search.py in a process of its own."""
    common = ["--device", "cpu", "--threads", "1", "--primitives", ",".join(FAST_OPS)]
    common += ["--subset", "0.1", "--batch_size", "32", "--print_freq", "1"]
    script = str(ROOT / "search.py")
    return subprocess.Popen(
        [sys.executable, script, *TINY_SEARCH, *common, *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_real_processes_share_no_folder_and_die_without_harm(here):
    """Two searches start at once without a name. Both are killed at a seeded moment. One is
    resumed, and its result is that of a run that was never killed."""
    both = [start("--seed", str(seed), "--epochs", "3") for seed in (1, 2)]
    moment, rng = [], random.Random(4)
    for process in both:
        for line in process.stdout:
            moment.append(line)
            if line.startswith("epoch 2"):
                break
        time.sleep(0.1 * rng.random())
        process.kill()
        process.communicate()
        assert process.returncode == -9, moment
    assert sorted(os.listdir("searchs")) == ["digits", "digits-2"]
    seeds = {checkpoint_of(f"searchs/{name}")["flags"]["seed"] for name in os.listdir("searchs")}
    assert seeds == {1, 2}

    search.main(["--resume", "--name", "digits"])
    records = lines("searchs/digits/metrics.jsonl")
    assert [(r["phase"], r["epoch"]) for r in records] == [
        (phase, epoch) for epoch in (1, 2, 3) for phase in ("train", "val")
    ]
    flags = checkpoint_of("searchs/digits")["flags"]
    straight = [*TINY_SEARCH, "--subset", "0.1", "--batch_size", "32", "--epochs", "3"]
    straight += ["--primitives", ",".join(FAST_OPS), "--seed", str(flags["seed"])]
    search.main([*straight, "--name", "straight", "--device", "cpu"])
    for name in ("checkpoint.pt", "best.pt", "previous.pt"):
        states = [checkpoint_of(f"searchs/{run}", name) for run in ("digits", "straight")]
        for state in states:
            state.pop("flags")
        assert equal(*states), name


def test_a_lock_dies_with_its_process(here):
    os.makedirs("searchs/s")
    code = (
        f"import sys, time; sys.path.insert(0, {str(ROOT)!r})\n"
        "import filelock\nlock = filelock.FileLock('searchs/s/.lock'); lock.acquire(timeout=0)\n"
        "print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    folder = RunFolder("searchs", "s")
    with pytest.raises(ValueError, match="belongs to a run that is going on"):
        folder.hold()
    process.kill()
    process.communicate()
    folder.hold()
    folder.release()
    assert os.listdir("searchs/s") == []


def test_a_root_that_another_process_holds_for_too_long_is_named(here, monkeypatch):
    os.makedirs("searchs")
    lock = run_folder._Lock("searchs", 0)
    monkeypatch.setattr(run_folder, "ROOT_SECONDS", 0)
    with pytest.raises(ValueError, match="searchs is locked by another process"):
        held(None)
    lock.release()


def test_a_save_inside_the_first_epoch_keeps_the_earlier_run(here, monkeypatch):
    monkeypatch.setattr(checkpoint, "save", lambda *args, **words: None)
    folder = RunFolder("searchs", "s")
    folder.earlier = "searchs/s.before-overwrite"
    os.makedirs(folder.earlier)
    folder.save({"inside": {"epoch": 1, "step": 3}}, is_best=False)
    assert os.path.isdir("searchs/s.before-overwrite")
    folder.save({"inside": None}, is_best=True)
    assert not os.path.exists("searchs/s.before-overwrite")
