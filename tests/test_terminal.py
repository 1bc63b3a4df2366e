"""What stands behind standard output may be closed, full or of another alphabet, and names may hold
anything: no run ends by it, and nothing reaches terminal, log or CSV raw."""

import contextlib
import csv
import errno
import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import FAST_AUGMENT, FAST_SEARCH, lines, log_of
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

import augment
import evaluate
import plot_train_val
import predict
import report
import search
import visualize
from console import errors, terminal
from console.log import Log
from console.terminal import Guarded, guarded, visible

ROOT = Path(__file__).parent.parent

# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b-c.png", "a b-c.png"), ("猫 собака é 👩‍🚀", "猫 собака é 👩‍🚀"), ("a\\b", "a\\b"),
        ("\x1b[31m", "\\x1b[31m"), ("a\r\nb\tc", "a\\r\\nb\\tc"), ("\0\x7f\x9b", "\\x00\\x7f\\x9b"),
        ("\u2028\u202e", "\\u2028\\u202e"), (os.fsdecode(b"caf\xe9"), "caf\\xe9"),
        ("\ud800", "\\ud800"), (7, "7"),
    ],
)  # fmt: skip
def test_what_a_terminal_would_obey_is_shown(text, shown):
    assert visible(text) == shown


@given(st.text())
@example("\x85\u2029\u2066")
def test_what_is_shown_is_one_line_and_can_be_encoded(text):
    shown = visible(text)
    assert len(shown.splitlines()) <= 1
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", shown)
    shown.encode()
    assert visible(shown) == shown
    assert visible(text, keep="\n").count("\n") == text.count("\n")


def test_an_exception_is_shown_too():
    assert errors.one_line(ValueError("class \x1b[2J\nof two")) == "class \\x1b[2J of two"


# --- streams ------------------------------------------------------------------------------------


class Broken(io.StringIO):
    """A stream that takes some writes and then none; with `late`, it says so at the flush."""

    def __init__(self, error, takes=0, late=False):
        super().__init__()
        self.error, self.takes, self.late = error, takes, late

    def write(self, text):
        if self.takes > 0:
            self.takes -= bool(text)
            super().write(text)
        elif not self.late:
            raise self.error
        return len(text)

    def flush(self):
        if self.late and self.takes <= 0:
            raise self.error


LOSSES = [
    OSError(errno.EIO, os.strerror(errno.EIO)),  # the terminal is closed
    BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)),  # | head
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)),  # a full pipe that does not wait
    OSError(errno.EBADF, os.strerror(errno.EBADF)),
    ValueError("I/O operation on closed file"),
]


@pytest.mark.parametrize("error", LOSSES, ids=str)
@pytest.mark.parametrize("takes", [0, 1, 3])
def test_a_lost_stream_swallows_what_is_written(error, takes):
    for late in (False, True):
        inner = Broken(error, takes, late)
        stream = Guarded(inner, escape=True)
        for word in "abcde":
            stream.write(word)
            stream.flush()
        assert inner.getvalue() == "abcde"[:takes]
        assert stream.lost is error


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "cp437", "latin-1", "utf-8"])
def test_letters_that_a_code_page_lacks_become_escapes(encoding):
    inner = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    stream = Guarded(inner, escape=True)
    print("cat 猫 \udce9 \x1b", file=stream)
    stream.flush()
    assert stream.lost is None
    text = inner.buffer.getvalue().decode(encoding)
    cat = "猫" if encoding == "utf-8" else "\\u732b"
    assert text == f"cat {cat} \\xe9 \\x1b\n"


def test_a_process_without_standard_output_can_print(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # pythonw, or >&- in a shell
    with guarded():
        print("nobody hears it")
        assert not sys.stdout.isatty()
        sys.stdout.flush()
    assert sys.stdout is None


def ends(function, *words, out=None):
    """(exit code, standard error) of function(words) with `out` as standard output."""
    with (
        contextlib.redirect_stdout(io.StringIO() if out is None else out),
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        try:
            function(list(words))
        except SystemExit as end:
            return end.code, err.getvalue()
    return 0, err.getvalue()


@pytest.mark.parametrize("error", LOSSES, ids=str)
def test_a_command_that_prints_says_what_was_lost_but_not_that_its_reader_left(
    error, finished_augment, monkeypatch
):
    monkeypatch.chdir(finished_augment[0])
    left = isinstance(error, BrokenPipeError)
    for main, prog, words in (
        (evaluate.main, "evaluate.py", ["augments/a"]),
        (plot_train_val.main, "plot_train_val.py", ["augments/a"]),
        (search.main, "search.py", ["--help"]),
    ):
        said = f"{prog}: standard output: {terminal.reason(error)}\n"
        wanted = (0, "") if left else (1, said)
        assert ends(main, *words, out=Broken(error)) == wanted


def test_predict_stops_where_nobody_reads(finished_augment, tmp_path, monkeypatch):
    monkeypatch.chdir(finished_augment[0])
    for i in range(6):
        Image.new("L", (8, 8), 40 * i).save(tmp_path / f"{i}.png")
    read = []
    real = predict.read_images
    monkeypatch.setattr(predict, "read_images", lambda *a: [read.append(1), *real(*a)][1:])
    words = [str(tmp_path), "--from", "augments/a", "--batch_size", "1"]
    out = Broken(LOSSES[1], takes=2)  # the header and a line
    assert ends(predict.main, *words, out=out) == (0, "")
    assert len(out.getvalue().splitlines()) == 2
    assert len(read) == 2
    code, said = ends(predict.main, *words, out=Broken(LOSSES[2], takes=2))
    assert (code, said) == (1, "predict.py: standard output: No space left on device\n")
    # an image that cannot be read counts, whoever reads the terminal
    (tmp_path / "7.png").write_bytes(b"")
    code, said = ends(predict.main, *words, "--out", "p.csv", out=Broken(LOSSES[1]))
    assert code == 1
    assert said.endswith("predict.py: 1 of 7 images cannot be read\n")


@pytest.mark.parametrize("error", LOSSES, ids=str)
def test_the_log_goes_on_and_says_once_that_the_terminal_is_gone(here, error):
    said = Log()
    out = Broken(error, takes=2)  # the text and the end of its line
    with contextlib.redirect_stdout(out), guarded():
        said.open("r.log")
        for word in ("one", "two", "three"):
            said.info(word)
        said.close()
    assert out.getvalue() == "one\n"
    one, two, gone, three = log_of(here).splitlines()
    assert (one, two, three) == ("one", "two", "three")
    assert gone.startswith(f"WARNING: standard output is gone ({terminal.reason(error)})")


class Bars(Broken):
    def isatty(self):
        return True


def test_lines_take_the_place_of_bars_that_are_gone(here, capsys):
    said, means = Log(), {"loss": 1.0, "top1": 0.5, "top5": 1.0}
    with contextlib.redirect_stderr(Bars(LOSSES[0], takes=8)), guarded():
        said.open("r.log")
        said.open_bars(1, 2, 3)
        for epoch in (1, 2):
            for step in (1, 2, 3):
                said.step(epoch, step, 3, means, 5)
                said.advance(epoch)
        said.close()
    gone, *steps = log_of(here).splitlines()
    assert gone.startswith("WARNING: standard error is gone (Input/output error)")
    assert steps[-1] == "epoch 2 step 3/3  loss 1.0000  top1 50.00%  top5 100.00%"
    assert steps == capsys.readouterr().out.splitlines()[-len(steps) :]


@pytest.mark.parametrize("loss", [0, 1])
def test_a_run_goes_on_without_its_terminal(here, loss):
    out, err = Broken(LOSSES[loss], takes=3), Bars(LOSSES[loss], takes=3)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        search.main([*FAST_SEARCH, "--name", "s", "--print_freq", "1"])
    log = log_of("searchs/s")
    assert log.count("standard output is gone") == log.count("standard error is gone") == 1
    assert "Train it with" in log
    assert len(lines("searchs/s/metrics.jsonl")) == 2
    assert "stopped by" not in log


def test_a_real_terminal_that_is_closed_and_a_real_pipe(here, finished_augment):
    """Both at once, since a process that imports torch takes seconds."""
    master, slave = pty.openpty()
    words = [sys.executable, ROOT / "search.py", *FAST_SEARCH, "--name", "s"]
    run = subprocess.Popen(words, stdout=slave, stderr=slave, stdin=slave)
    os.close(slave)
    os.read(master, 1)  # its first line
    os.close(master)
    reader, writer = os.pipe()
    os.close(reader)
    image = here / "a.png"
    Image.new("L", (8, 8)).save(image)
    classify = [sys.executable, ROOT / "predict.py", image, "--from", "augments/a"]
    done = subprocess.run(
        classify, cwd=finished_augment[0], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
    assert run.wait(timeout=300) == 0
    log = log_of("searchs/s")
    assert log.count(" is gone (Input/output error)") >= 1
    assert "Train it with" in log


# --- a data set whose names are hostile ---------------------------------------------------------

ESCAPE, FORGED = "\x1b[31mred", "z\n11-25 18:00:00 | WARNING: forged"
FORMULA = "=cmd|' calc'!A0"
CLASSES = sorted([ESCAPE, FORGED, FORMULA, "file", "class", "猫", "собака"])


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """(folder with a search s and a training a on hostile names, {command: bytes of its standard
    output in a code page of Windows})."""
    folder, generator, said = tmp_path_factory.mktemp("hostile"), np.random.default_rng(0), {}
    for name in CLASSES:
        (folder / "pets\n\x1b" / "train" / name).mkdir(parents=True)
        for i in range(12):
            pixels = generator.integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(folder / "pets\n\x1b" / "train" / name / f"+{i}\t.png")
    before = os.getcwd()
    try:
        small = ["--subset", "1", "--batch_size", "16"]
        for main, words in (
            (search.main, [*FAST_SEARCH, *small, "--dataset", ".", "--name", "s"]),
            (augment.main, [*FAST_AUGMENT, *small, "--genotype", "searchs/s", "--name", "a"]),
            (evaluate.main, ["augments/a"]),
            (predict.main, [FORMULA, "file", "--from", "../augments/a"]),
            (predict.main, [FORMULA, "--from", "../augments/a", "--out", "../p.csv"]),
            (visualize.main, ["searchs/s", "--out", "drawn"]),
            (report.main, ["searchs/s"]),
        ):
            out = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", newline="")
            err = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", newline="")
            os.chdir(folder / "pets\n\x1b" / ("train" if main is predict.main else ""))
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main(words)
                out.flush()
                err.flush()
            said[main.__module__, len(said)] = out.buffer.getvalue(), err.buffer.getvalue()
    finally:
        os.chdir(before)
    return folder / "pets\n\x1b", said


def test_hostile_names_reach_no_terminal_and_no_log(hostile):
    folder, said = hostile
    for key, streams in said.items():
        for text in streams:
            text = text.decode("cp1252")
            assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text), key
            assert not re.search("^11-25", text, re.M), key
    for run in ("searchs/s", "augments/a"):
        log = (folder / run / f"{run[-1]}.log").read_text(encoding="utf-8")
        assert "猫" in log  # files are UTF-8, whatever the terminal is
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", log)
        assert not re.search("^11-25", log, re.M)
        assert r"z\n11-25 18:00:00 | WARNING: forged" in log


def test_hostile_names_in_csv(hostile):
    folder, said = hostile
    data = (folder / "p.csv").read_bytes()
    assert data.startswith(b"\xef\xbb\xbffile,class,")
    (terminal_text,) = [o for (m, n), (o, _) in said.items() if m == "predict" and n == 3]
    assert terminal_text.startswith(b"file,class,")
    rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    assert len(rows) == 13
    header = rows[0]
    assert len(set(header)) == len(header) == 2 + len(CLASSES)
    assert {"'=cmd|' calc'!A0", "file_", "class_", "\\x1b[31mred", "猫"} < set(header)
    for row in rows:
        for text in row:
            assert not text.startswith(("=", "+", "-", "@", "\t", "\r"))
            assert text == visible(text)
    assert rows[1][0].startswith("'=cmd")


def test_the_returned_lines_keep_the_names(hostile, monkeypatch):
    monkeypatch.chdir(hostile[0] / "train")
    with contextlib.redirect_stdout(io.StringIO()):
        rows = predict.main(["file", "--from", "../augments/a"])
    assert [row["file"] for row in rows] == sorted(f"file/+{i}\t.png" for i in range(12))
    assert all(row["class"] in CLASSES for row in rows)
    assert set(rows[0]) == {*CLASSES, "file_", "class_"}
    for row in rows:
        assert 0 <= float(row["file_"]) <= 1


@given(st.text(max_size=20))
@example("\uff1d1")
@example("@SUM(A1)")
@example("\tx")
@example("\r=1")
def test_no_cell_is_a_formula(text):
    shown = predict.cell(text)
    assert shown[:1] not in ("=", "+", "-", "@", "\t", "\r", "\uff1d")
    assert shown.removeprefix("'") == visible(text).removeprefix("'")


@given(st.lists(st.sampled_from(["file", "class", "a", "a_", "file_"]), unique=True))
def test_columns_differ(classes):
    columns = predict.distinct(["file", "class", *classes])
    assert columns[:2] == ["file", "class"]
    assert len(set(columns)) == len(classes) + 2


# --- printed commands ---------------------------------------------------------------------------


def test_commands_on_windows(monkeypatch):
    monkeypatch.setattr(errors, "WINDOWS", True)
    monkeypatch.setattr(sys, "executable", "C:\\Program Files\\Python\\python.exe")
    words = ["--genotype", "searchs\\my cats", "--out", "searchs\\digits", "it's"]
    command = errors.command("augment.py", *words)
    assert "'" not in command.replace('"it\'s"', "")
    assert "\\" not in command
    assert command.startswith('"C:/Program Files/Python/python.exe" ')
    assert command.endswith('--genotype "searchs/my cats" --out searchs/digits "it\'s"')


def test_two_drives_have_no_relative_path(monkeypatch):
    def other_drive(path, start=None):
        raise ValueError("path is on mount 'C:', start on mount 'D:'")

    monkeypatch.setattr(os.path, "relpath", other_drive)
    assert errors.command("augment.py").endswith(f" {ROOT / 'augment.py'}")


def test_where_the_current_folder_is_gone_a_command_has_the_whole_path(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert errors.command("augment.py").endswith(f" {ROOT / 'augment.py'}")


def test_pictures_of_a_run_whose_path_looks_like_a_formula(finished_augment, tmp_path):
    run = tmp_path / "$x^{$ a_b$"
    run.mkdir()
    (run / "metrics.jsonl").write_bytes(
        (finished_augment[0] / "augments/a/metrics.jsonl").read_bytes()
    )
    assert ends(plot_train_val.main, str(run)) == (0, "")
    assert visualize.caption_of("a\n\x1b", 1) == "a\\n\\x1b, epoch 1"
