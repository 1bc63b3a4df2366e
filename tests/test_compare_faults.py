"""Faults in the midst of a comparison, and of several searches: what goes on afterwards has the
result of the undisturbed."""

import io
import itertools
import math
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from conftest import SMALL_SEARCH, ends_in_one_line, lines, log_of
from fault_helpers import copy_of, every_write, in_a_fork, same_result
from test_compare import COMMAND, NAMED, TINY, Scripted, scripted  # noqa: F401
from test_damaged_files import damage, run
from test_disk import fail_at

import compare
import search
from comparing import run as run_of_compare
from comparing import several
from records import comparison, files

WORDS = [*TINY, "--random", "4", "--epochs", "2"]
AGAIN = ["--name", "c", "--resume", "--quiet"]
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="has no fork")


def result(folder):
    """All that a comparison has found, but for times."""
    return (
        sorted(map(str, lines(f"{folder}/metrics.jsonl"))),
        Path(folder, "genotype.json").read_text(),
        comparison.read(folder),
    )


@pytest.fixture
def whole(scripted, monkeypatch):  # noqa: F811
    """The result of WORDS undisturbed, in compares/whole."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    # after every training, not by the clock: the number of operations is the same each time
    monkeypatch.setattr(run_of_compare, "SHOW_PORTION", math.inf)
    compare.main([*WORDS, "--name", "whole", "--quiet"])
    return result("compares/whole")


def begin():
    shutil.rmtree(COMMAND, ignore_errors=True)
    compare.main([*WORDS, *NAMED])


def go_on():
    """Resume compares/c, or begin it anew where that is what it says; returns what it said."""
    code, _, err = run(compare, AGAIN)
    if code:
        assert (code, err.count("\n")) == (2, 1), err
        assert "no training was finished; start it again" in err or "does not exist" in err
        compare.main([*WORDS, *NAMED, "--overwrite"])
    return err


def operations():
    """How many operations on files a comparison makes."""
    made = []
    with every_write(lambda *operation: made.append(operation)):
        begin()
    return len(made)


@posix
def test_killed_at_a_file_it_goes_on_to_the_same_result(whole):
    for n in sorted(random.Random(1).sample(range(1, operations()), 5)):
        assert in_a_fork(begin, n) == 77
        go_on()
        assert result(COMMAND) == whole, n
        assert sorted(os.listdir("compares")) == ["c", "whole"]


@posix
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_stopped_at_a_file_it_goes_on_to_the_same_result(whole, name):
    for n in sorted(random.Random(name).sample(range(1, operations()), 3)):
        numbers = itertools.count(1)

        def act(what, path, n=n, numbers=numbers):
            if next(numbers) == n:
                os.kill(os.getpid(), getattr(signal, name))

        shutil.rmtree(COMMAND, ignore_errors=True)
        with every_write(act):
            code, _, err = run(compare, [*WORDS, *NAMED])
        assert (code, err.count("\n")) in (((130 if name == "SIGINT" else 143), 1), (0, 0)), err
        if os.path.exists(COMMAND):
            if code:
                assert log_of(COMMAND).splitlines()[-1] == err.strip()[len("compare.py: ") :]
                assert ("go on" in err) == bool(comparison.trainings(COMMAND))
            go_on()
            assert result(COMMAND) == whole, n


@pytest.mark.parametrize("stays_full", [False, True])
def test_a_full_disk_at_any_file_is_one_line_and_it_goes_on_from_it(whole, stays_full):
    named, n = set(), operations()
    for at in [*range(1, 6), *random.Random(3).sample(range(6, n), 3), n]:
        shutil.rmtree(COMMAND)
        act, failed = fail_at(at, stays_full)
        with every_write(act):
            code, _, err = run(compare, [*WORDS, *NAMED])
        name = files.TEMPORARY.sub(r"\1", os.path.relpath(failed[0]))
        named.add(os.path.basename(name))
        assert (code, err.count("\n")) == (1, 1), err
        assert err.startswith(f"compare.py: {name} cannot be written or read (No space left")
        assert "free some room on that disk" in err
        assert ("--resume" in err) != ("start again" in err)
        if os.path.exists(COMMAND):
            go_on()
        else:
            begin()
        assert result(COMMAND) == whole, at
    assert named >= {"config.json", "summary.json", "c.log", "metrics.jsonl"}


def test_a_folder_that_is_deleted_meanwhile(whole, scripted, monkeypatch):  # noqa: F811
    perform = Scripted.perform
    scripted.done.clear()

    def then_delete(self, job):
        if len(self.done) == 3:
            shutil.rmtree(COMMAND)
        yield from perform(self, job)

    monkeypatch.setattr(scripted, "perform", then_delete)
    text = ends_in_one_line(compare.main, [*WORDS, *NAMED], code=1)
    assert f"{COMMAND}/.lock cannot be written or read (it was removed; the folder may be" in text
    assert text.endswith("the run has stopped, and nothing of it is left; start again")
    assert not os.path.exists(COMMAND)


@posix
@pytest.mark.parametrize("word", ["", "--overwrite", "--resume"])
def test_two_at_once(whole, word):
    """One of them has the folder, and the other one says so."""
    shutil.copytree("compares/whole", COMMAND)
    if word == "--resume":
        Path(COMMAND, "metrics.jsonl").write_text(
            "".join(Path(COMMAND, "metrics.jsonl").read_text().splitlines(keepends=True)[:3])
        )
    elif not word:
        shutil.rmtree(COMMAND)
    words = AGAIN if word == "--resume" else [*WORDS, *NAMED, *([word] if word else [])]
    ends = []
    for _ in range(2):
        process = os.fork()
        if process == 0:
            code, _, err = run(compare, words)
            os._exit(code if code == 0 or err.count("\n") == 1 else 99)
        ends.append(process)
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in ends]
    assert sorted(codes) in ([0, 2], [0, 0] if word else [0, 2]), codes  # one after the other
    assert result(COMMAND) == whole
    assert sorted(os.listdir("compares")) == ["c", "whole"]


@pytest.mark.parametrize("kind", ["flipped", "cut", "wrong types", "foreign"])
def test_damaged_files_change_no_result_in_silence(whole, kind):
    """What --resume believes has a checksum."""
    for name, seed in itertools.product((files.CONFIG, files.METRICS, files.SUMMARY), range(2)):
        copy_of("compares/whole", COMMAND)
        lines_before = Path(COMMAND, files.METRICS).read_text().splitlines()
        Path(COMMAND, files.METRICS).write_text("\n".join(lines_before[:6]) + "\n")
        damage(Path(COMMAND, name), kind, random.Random(f"{kind} {name} {seed}"))
        code, _, err = run(compare, AGAIN)
        assert (code, err.count("\n")) in ((0, 0), (2, 1)), err
        if code == 0:
            assert result(COMMAND) == whole, (name, seed)
            if name == files.METRICS:
                assert (
                    "cut or damaged; what is missing is trained again"
                    in Path(COMMAND, "c.log").read_text()
                )
        else:
            assert "damaged" in err or "start it again with --overwrite" in err


class Forked:
    """Stands in for a process that runs search.py."""

    def __init__(self, searches, seed, slot):
        words = searches._words(seed, slot)
        searches.stderr[seed] = io.BytesIO()
        self.pid, self.returncode = os.fork(), None
        if self.pid == 0:
            os._exit(run(search, words)[0])

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def wait(self):
        while self.poll() is None:
            time.sleep(0.01)


@pytest.fixture
def patch(quick_epochs):
    """What it sets is undone before quick_epochs is; `monkeypatch` would put a stand-in back."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@posix
@pytest.mark.parametrize("who", ["one", "all"])
def test_several_searches_that_are_killed_go_on(here, undisturbed, patch, who):
    """One is killed in its second epoch, or that and the process that began it: the other search
    goes on alone."""
    patch.setattr(several.Searches, "_start", lambda self, *args: Forked(self, *args))
    patch.setattr(several, "POLL", 0.01)
    patch.setattr(compare, "main", lambda words: words)
    words = [*SMALL_SEARCH, "--seeds", "2", "--name", "d"]
    train, parent = search.train, os.getpid()

    def then_die(*args):
        if args[5].cfg.seed == 1 and args[4] == 2 and os.path.exists("deadly"):
            os.remove("deadly")
            if who == "all" and os.getppid() != parent:
                os.kill(os.getppid(), signal.SIGKILL)
            os._exit(77)
        return train(*args)

    patch.setattr(search, "train", then_die)
    Path("deadly").touch()
    began = os.fork()
    if began == 0:
        os._exit(run(search, words)[0])
    code = os.waitstatus_to_exitcode(os.waitpid(began, 0)[1])
    assert code == (-signal.SIGKILL if who == "all" else 0)
    again = ["--seeds", "2", "--name", "d", "--resume", "--quiet"]
    while True:  # until the other one has ended
        code, _, err = run(search, again)
        if code == 0:
            break
        assert (code, err.count("\n")) == (2, 1), err
        assert "belongs to a run that is going on" in err
        time.sleep(0.05)
    same_result("searchs/d-seed1", undisturbed[0])
    assert len(lines("searchs/d-seed2/metrics.jsonl")) == 6
