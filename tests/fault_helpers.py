"""Faults of disks and machines, at the n-th operation on files of a run."""

import builtins
import contextlib
import io
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import checkpoint_of, equal, lines


@contextlib.contextmanager
def every_write(act):
    """act(what, path) is called before each operation that changes a file below searchs/, augments/
    or compares/: "open" (for writing), "save" (torch.save), "replace", "remove"."""
    here = os.getcwd()

    def is_ours(path):
        try:
            path = os.path.relpath(os.path.abspath(os.fspath(path)), here)
        except TypeError:  # a descriptor
            return False
        ours = path.split(os.sep)[0] in ("searchs", "augments", "compares")
        return ours and os.path.basename(path) != ".lock"

    def watched(what, function, writes=lambda *args, **kwargs: True, index=0):
        def call(*args, **kwargs):
            if len(args) > index and is_ours(args[index]) and writes(*args, **kwargs):
                act(what, os.fspath(args[index]))
            return function(*args, **kwargs)

        return call

    def is_writing(path, mode="r", *args, **kwargs):
        return mode[0] in "wax"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "open", watched("open", open, is_writing))
        patch.setattr(torch, "save", watched("save", torch.save, index=1))
        patch.setattr(os, "replace", watched("replace", os.replace))
        patch.setattr(os, "remove", watched("remove", os.remove))
        yield


def in_a_fork(function, kill_at):
    """function() in a process of its own, which ends at once, without another word, at the n-th
    operation on files: in the middle of a write, before anything else. Returns its exit code."""
    process = os.fork()
    if process == 0:
        os._exit(_quietly(function, kill_at))
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _quietly(function, kill_at):
    n = 0

    def act(what, path):
        nonlocal n
        n += 1
        if n == kill_at:
            if what in ("open", "save"):
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.write(descriptor, b'{"phase": "tra')
            os._exit(77)

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        with every_write(act):
            try:
                function()
            except BaseException:
                return 1
    return 0


def copy_of(run, to):
    """A copy of a run folder, under the name that it shall have; returns its path."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(run, to)
    return to


def same_result(run, other):
    """Assert that two searches have the same records, but for times, and the same files that hold
    their result, bit for bit; and that nothing temporary is left."""
    left = [path.name for path in Path(run).rglob("*") if ".tmp" in path.name]
    assert left == []
    for name in ("checkpoint.pt", "previous.pt", "best.pt"):
        states = [checkpoint_of(folder, name) for folder in (run, other)]
        for state in states:
            state.pop("flags")
        assert equal(*states), name
    for name in ("genotype.json", "genotype-last.json", "alphas.jsonl"):
        assert Path(run, name).read_bytes() == Path(other, name).read_bytes(), name
    timeless = [
        [{k: v for k, v in record.items() if "second" not in k} for record in lines(found)]
        for found in (Path(run, "metrics.jsonl"), Path(other, "metrics.jsonl"))
    ]
    assert timeless[0] == timeless[1]
