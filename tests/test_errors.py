"""How commands end, and the commands that they print."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import log_of

from config import SearchConfig
from console import errors
from devices.pick import Device
from tracking.run import Run
from tracking.run_folder import RunFolder


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("wrong"), "wrong"),
        (MemoryError(), "MemoryError"),  # as Python raises it: without a message
        (KeyError(), "KeyError"),
        (RuntimeError("\n"), "RuntimeError"),
        (RuntimeError("no such\n  operator\r\n\tabove\n"), "no such operator above"),
        (ValueError("x" * 300), "x" * 300),
        (ValueError("x" * 301), "x" * 300 + "..."),
    ],
)
def test_an_exception_in_one_line(error, text):
    assert errors.one_line(error) == text


def test_an_exception_in_fewer_letters():
    assert errors.one_line(ValueError("a\nlong message"), 6) == "a long..."


def ends(context, error, capsys):
    """(exit code, what is on stderr) of `error` within `context`."""
    with pytest.raises(SystemExit) as caught, context:
        raise error
    return caught.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "backend='inductor' raised:\nInvalidCxxCompiler: No working C++ compiler found in torch",
        "Failed to find C compiler. Please specify via CC environment variable.",
    ],
)
def test_a_missing_compiler_is_one_line(text, capsys):
    code, said = ends(errors.run_errors("search.py"), RuntimeError(text), capsys)
    assert code == 1
    assert said.startswith("search.py: --compile needs a C++ compiler")
    assert "leave --compile out" in said
    assert said.count("\n") == 1


def test_how_errors_end(capsys):
    code, text = ends(errors.usage_errors("search.py"), ValueError("wrong"), capsys)
    assert (code, text) == (2, "search.py: wrong\n")
    code, text = ends(errors.usage_errors("search.py"), OSError("no disk"), capsys)
    assert (code, text) == (1, "search.py: no disk\n")
    code, text = ends(errors.run_errors("search.py"), FloatingPointError("nan"), capsys)
    assert (code, text) == (1, "search.py: nan\n")
    code, text = ends(errors.run_errors("search.py"), OSError("full"), capsys)
    assert (code, text) == (1, "search.py: full\n")
    code, text = ends(errors.run_errors("evaluate.py"), KeyboardInterrupt(), capsys)
    assert (code, text) == (130, "evaluate.py: interrupted\n")
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")
    code, text = ends(errors.run_errors("search.py"), error, capsys)
    assert code == 1
    assert "search.py: out of GPU memory when it asked for 2 GiB; " in text
    assert text.count("\n") == 1


def test_an_interrupted_run_says_how_it_goes_on(here, capsys):
    cfg = SearchConfig(["--name", "x"])
    folder = RunFolder(cfg.ROOT, cfg.name)
    run = Run(cfg, Device(torch.device("cpu")), "digits", folder)
    code, text = ends(errors.run_errors("search.py", run), KeyboardInterrupt(), capsys)
    assert code == 130
    assert text == (
        "search.py: interrupted before anything was saved; start again, with --overwrite to keep "
        "the name\n"
    )
    assert os.listdir("searchs/x") == [".lock"]  # a Run takes its folder, and no more
    Path(run.files.file("checkpoint.pt")).touch()
    code, text = ends(errors.run_errors("search.py", run), KeyboardInterrupt(), capsys)
    assert code == 130
    again = errors.command("search.py", "--name", "x", "--resume")
    assert text == f"search.py: interrupted; go on with {again}\n"


def test_faults_of_our_own_keep_their_traceback():
    for context, error in (
        (errors.run_errors, ZeroDivisionError),
        (errors.run_errors, RuntimeError),
        (errors.run_errors, ValueError),
        (errors.usage_errors, TypeError),
        (errors.usage_errors, RuntimeError),
    ):
        with pytest.raises(error), context("search.py"):
            raise error


def test_the_cause_of_an_error_is_kept():
    cause = OSError("full")
    with pytest.raises(SystemExit) as caught, errors.usage_errors("search.py"):
        raise cause
    assert caught.value.__cause__ is cause


def test_the_printed_command_runs_in_a_shell(here):
    words = errors.command("visualize.py", "--help")
    done = subprocess.run(words, shell=True, capture_output=True, text=True, check=True)
    assert "GENOTYPE" in done.stdout
    assert errors.command("augment.py", "a b").endswith("augment.py 'a b'")


def test_the_printed_command_uses_this_python(here, monkeypatch):
    # another python first on PATH, even if it is a link to the same file
    os.symlink(sys.executable, "python")
    for path in ("", str(here)):
        monkeypatch.setenv("PATH", path)
        assert errors.command("augment.py").startswith(sys.executable)
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    assert errors.command("augment.py").startswith("python ")


def test_a_file_is_named_where_the_current_folder_is_gone(tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    error = OSError(errno.ENOENT, "No such file or directory", "searchs/x/metrics.jsonl")
    code, text = ends(errors.run_errors("search.py"), error, capsys)
    assert code == 1
    assert text.startswith("search.py: searchs/x/metrics.jsonl cannot be written or read (No such")


def test_the_log_ends_with_the_last_line_whatever_it_is(here, capsys):
    """A fault of ours keeps its traceback, and the log has its name."""
    for error, code in (
        (OSError(errno.ENOSPC, "No space left on device", "searchs/x/checkpoint.pt"), 1),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore\nmore"), 1),
        (RuntimeError("DataLoader worker (pid 81) is killed by signal: Killed."), 1),
        (RuntimeError("InvalidCxxCompiler: No working C++ compiler found in torch\n\nSet ..."), 1),
        (RuntimeError("aten::x does not have a deterministic implementation"), 1),
        (KeyboardInterrupt(), 130),
    ):
        cfg = SearchConfig(["--name", "x", "--overwrite"])
        run = Run(cfg, Device(torch.device("cpu")), "digits", RunFolder(cfg.ROOT, cfg.name))
        with pytest.raises(SystemExit) as caught, errors.run_errors("search.py", run), run:
            raise error
        out, err = capsys.readouterr()
        assert caught.value.code == code
        assert err.count("\n") == 1
        assert err == f"search.py: {log_of('searchs/x').splitlines()[-1]}\n"
        assert str(error).split(";")[0] not in out or not str(error)
        shutil.rmtree("searchs")
    run = Run(cfg, Device(torch.device("cpu")), "digits", RunFolder(cfg.ROOT, cfg.name))
    with pytest.raises(ZeroDivisionError), errors.run_errors("search.py", run), run:
        raise ZeroDivisionError("division by zero")
    assert log_of("searchs/x").splitlines()[-1] == "stopped by ZeroDivisionError: division by zero"
