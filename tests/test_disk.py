"""Disks that are full, read-only or gone: one line that says what to do, and nothing is lost."""

import contextlib
import errno
import io
import itertools
import logging
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import SMALL_SEARCH, ends_in_one_line, log_of
from fault_helpers import copy_of, every_write, same_result

import search
from console import errors
from console.log import Log
from records import files
from tracking.run_folder import RunFolder

ROOT = Path(search.__file__).parent
TORCH_WORDS = "[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"


def fail_at(n, stays_full, code=errno.ENOSPC):
    """(act for `every_write`, the list of what failed): the n-th operation fails, and with
    `stays_full` all that write after it."""
    numbers, failed = itertools.count(1), []

    def act(what, path):
        number = next(numbers)
        if number == n or (number > n and stays_full and what in ("open", "save")):
            failed.append(path)
            if what == "save":
                raise RuntimeError(TORCH_WORDS)
            raise OSError(code, os.strerror(code), path)

    return act, failed


def outcome(words):
    """(exit code, standard error) of search.py."""
    with contextlib.redirect_stderr(io.StringIO()) as err:
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                search.main(words)
            except SystemExit as error:
                return error.code, err.getvalue()
    return 0, err.getvalue()


@pytest.mark.parametrize("stays_full", [False, True])
def test_a_full_disk_at_any_file_is_one_line_and_the_run_goes_on_from_it(
    here, undisturbed, quick_epochs, stays_full
):
    straight, in_second = undisturbed
    named = set()
    for n in itertools.count(1):
        copy_of(in_second, "searchs/s")
        act, failed = fail_at(n, stays_full)
        with every_write(act):
            code, text = outcome(["--name", "s", "--resume", "--quiet"])
        if not failed:
            break
        name = files.TEMPORARY.sub(r"\1", os.path.relpath(failed[0]))
        if "/tb/" in name:  # nobody stops for TensorBoard, but the disk may be full for others, too
            assert code == 0 or stays_full
        else:
            assert code == 1, (n, name, text)
        if code == 1:
            assert text.count("\n") == 1
            assert text.startswith("search.py: searchs/s/")
            assert "free some room on that disk" in text
            assert "search.py --name s --resume" in text
            if "/tb/" not in name:
                assert f"search.py: {name} cannot be written or read (" in text
                named.add(os.path.basename(name))
            assert outcome(["--name", "s", "--resume", "--quiet"]) == (0, "")
        same_result("searchs/s", straight)
    assert named >= {
        "s.log", "metrics.jsonl", "alphas.jsonl", "checkpoint.pt", "best.pt", "genotype.json",
        "genotype-last.json", "summary.json",
    }  # fmt: skip


def test_a_full_disk_before_the_first_epoch(here, undisturbed, quick_epochs):
    words = [*SMALL_SEARCH, "--name", "s"]
    for n in range(1, 8):
        shutil.rmtree("searchs", ignore_errors=True)
        act, failed = fail_at(n, stays_full=False)
        with every_write(act):
            code, text = outcome(words)
        if "/tb/" not in failed[0]:
            assert (code, text.count("\n")) == (1, 1), text
            assert "start again" in text
            words_again = [*words, "--overwrite"] if os.path.exists("searchs/s") else words
            assert outcome(words_again) == (0, "")
        same_result("searchs/s", undisturbed[0])


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_other_reasons_are_said_in_their_words(here, undisturbed, quick_epochs, code, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.0)
    copy_of(undisturbed[1], "searchs/s")

    def act(what, path):
        if what == "replace" and "checkpoint.pt.tmp" in path:
            raise OSError(code, os.strerror(code), path)

    with every_write(act):
        status, text = outcome(["--name", "s", "--resume", "--quiet"])
    assert status == 1
    assert text.startswith("search.py: searchs/s/checkpoint.pt cannot be written or read (")
    assert os.strerror(code) in text
    assert ("free some room" in text) == (code in (errno.EDQUOT, errno.EIO))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a full device")
@pytest.mark.parametrize("name", ["s.log", "metrics.jsonl", "alphas.jsonl"])
def test_a_full_device_behind_a_file_that_grows(here, undisturbed, quick_epochs, name):
    run = copy_of(undisturbed[1], "searchs/s")
    sound = Path(run, name).read_text() if os.path.exists(f"{run}/{name}") else None
    append = RunFolder.keep_epochs

    def then_full(self, last):
        append(self, last)
        with contextlib.suppress(FileNotFoundError):
            os.remove(f"{run}/{name}")
        os.symlink("/dev/full", f"{run}/{name}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "keep_epochs", then_full)
        code, text = outcome(["--name", "s", "--resume", "--quiet"])
    assert (code, text.count("\n")) == (1, 1), text
    assert f"searchs/s/{name} cannot be written or read (No space left on device)" in text
    os.remove(f"{run}/{name}")
    if sound is not None:
        Path(run, name).write_text(sound)
    assert outcome(["--name", "s", "--resume", "--quiet"]) == (0, "")
    same_result(run, undisturbed[0])


def test_a_log_on_a_full_disk_raises_and_closes(here):
    log = Log(quiet=True)
    if not os.path.exists("/dev/full"):
        pytest.skip("Linux has a full device")
    log.open("/dev/full")
    with pytest.raises(OSError, match="/dev/full"):
        log.info("x")
    log.close()
    assert logging.getLogger(f"darts.run.{os.path.abspath('/dev/full')}").handlers == []


def during_epoch(function, patch, epoch=3):
    """Call function() in an epoch, before its records are written."""
    validate, epochs = search.validate, []

    def first(*args):
        epochs.append(1)
        if len(epochs) == epoch:
            function()
        return validate(*args)

    patch.setattr(search, "validate", first)


def test_a_folder_that_is_deleted_during_the_run(here, quick_epochs):
    with pytest.MonkeyPatch.context() as patch:
        during_epoch(lambda: shutil.rmtree("searchs/s"), patch)
        code, text = outcome([*SMALL_SEARCH, "--name", "s"])
    assert (code, text.count("\n")) == (1, 1), text
    assert "searchs/s/.lock cannot be written or read (it was removed; the folder may be" in text
    assert not os.path.exists("searchs/s")


def test_a_run_whose_lock_is_removed_leaves_the_folder_to_another(here, quick_epochs):
    """As by a deletion that did not get to the end."""

    def another_takes_it():
        os.remove("searchs/s/.lock")
        other.resume()

    other = RunFolder("searchs", "s")
    with pytest.MonkeyPatch.context() as patch:
        during_epoch(another_takes_it, patch)
        code, text = outcome([*SMALL_SEARCH, "--name", "s"])
    assert (code, text.count("\n")) == (1, 1), text
    assert "searchs/s/.lock cannot be written or read (it was removed; the folder may be" in text
    other.require_held()  # its lock is still there
    with pytest.raises(ValueError, match="belongs to a run that is going on"):
        RunFolder("searchs", "s").hold()
    other.release()


@pytest.mark.parametrize(
    "name",
    ["config.json", "metrics.jsonl", "alphas.jsonl", "genotype.json", "summary.json", "best.pt",
     "checkpoint.pt", "previous.pt", "s.log", "tb"],
)  # fmt: skip
def test_a_file_that_is_deleted_during_the_run(here, quick_epochs, undisturbed, name):
    def delete():
        path = Path("searchs/s", name)
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    with pytest.MonkeyPatch.context() as patch:
        during_epoch(delete, patch)
        assert outcome([*SMALL_SEARCH, "--name", "s"]) == (0, "")
    assert outcome(["--name", "s", "--resume", "--quiet"]) == (0, "")
    assert os.path.exists("searchs/s/checkpoint.pt")
    if name.endswith(".jsonl"):
        assert f"searchs/s/{name} has no record of epoch 1, 2;" in log_of("searchs/s")
    elif name not in ("best.pt", "previous.pt", "checkpoint.pt"):
        same_result("searchs/s", undisturbed[0])


def test_the_clock_may_stand_still_or_go_back(here, undisturbed, quick_epochs, monkeypatch):
    """Durations come from a clock that only goes on; that of the day plays no part in them."""
    for clock in (lambda: 0.0, itertools.count(10**9, -3600).__next__):
        monkeypatch.setattr("time.time", clock)
        shutil.rmtree("searchs", ignore_errors=True)
        assert outcome([*SMALL_SEARCH, "--name", "s"]) == (0, "")
        same_result("searchs/s", undisturbed[0])


def test_no_program_takes_durations_from_the_clock_of_the_day():
    """Where it is read, it is a date or the age of a file."""
    found = {
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        if "time.time()" in path.read_text(encoding="utf-8")
        and not set(path.relative_to(ROOT).parts) & {"tests", ".venv", "out"}
    }
    assert found == {"records/files.py", "tracking/board.py"}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limits")
def test_a_real_quota_in_a_real_process(here):
    """ulimit -f: what torch, TensorBoard and Python make of it."""
    code = f"""
        import resource, sys
        sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
        from conftest import SMALL_SEARCH, stand_in_epochs, without_pictures
        import search
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
        with stand_in_epochs(), without_pictures():
            try:
                search.main([*SMALL_SEARCH, "--name", "q"])
            except SystemExit as error:
                print("code", error.code)
            soft = resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, soft))
            search.main(["--name", "q", "--resume"] if sys.argv[2] == "resume" else
                        [*SMALL_SEARCH, "--name", "q", "--overwrite"])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), "30000", "overwrite"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "code 1" in done.stdout
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "searchs/q/checkpoint.pt cannot be written or read (File too large)" in done.stderr
    assert "free some room on that disk" in done.stderr


def test_a_run_folder_that_cannot_be_made(here):
    Path("searchs").touch()
    text = ends_in_one_line(search.main, [*SMALL_SEARCH, "--name", "s"], code=1)
    assert "searchs" in text


def test_an_error_of_the_system_names_the_file_and_what_to_do(capsys):
    with pytest.raises(SystemExit), errors.run_errors("evaluate.py"):
        raise OSError(errno.ENOSPC, "No space left on device", "out.csv")
    assert capsys.readouterr().err == (
        "evaluate.py: out.csv cannot be written or read (No space left on device); free some room "
        "on that disk\n"
    )
