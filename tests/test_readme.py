"""What the README promises is true of the code."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

import config
import genotypes as gt
from models import ops

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_defaults_is_the_parsers():
    table = re.findall(r"^\| (search|augment|both) `--(\w+)` \| (\S+) \| \S", README, re.M)
    parsed = {
        "search": config.SearchConfig([]),
        "augment": config.AugmentConfig(["--genotype", "DARTS_V2"]),
    }
    listed = {"search": set(), "augment": set()}
    for scripts, flag, value in table:
        for script in listed if scripts == "both" else [scripts]:
            assert str(getattr(parsed[script], flag)) == value, flag
            listed[script].add(flag)
    # no default that changes a result may escape the table
    elsewhere = {
        "name", "quick", "resume", "overwrite", "device", "gpus", "threads", "workers",
        "print_freq", "dataset", "data_path", "primitives", "genotype", "evaluate", "compile",
        "checkpoint_cells", "quiet", "max_madds",
    }  # fmt: skip
    for script, cfg in parsed.items():
        assert set(cfg.flags()) - elsewhere == listed[script]


def commands():
    for block in re.findall(r"```sh\n(.*?)```", README, re.S):
        for line in block.replace("\\\n", " ").splitlines():
            for command in line.split("#")[0].split("&&"):
                yield command.strip()
    yield from re.findall(r"`(python \w+\.py[^`]*)`", README)


def test_every_command_names_a_script_and_flags_that_exist():
    seen = set()
    for command in filter(None, commands()):
        words = shlex.split(command)
        if words[0] == "pip":
            assert (ROOT / words[-1]).is_file()
        elif words[1] == "-m":
            assert words[2] == "pytest"
        else:
            assert (ROOT / words[1]).is_file(), command
            seen.add(words[1])
            if words[1] == "search.py" and "--help" not in words:
                config.SearchConfig(words[2:])
            elif words[1] == "augment.py":
                config.AugmentConfig(words[2:])
    assert seen >= {"search.py", "augment.py", "visualize.py", "gif_maker.py", "plot_train_val.py"}


def test_every_file_named_is_there():
    rows = re.findall(r"^\| (`[^|]*\.py`[^|]*) \|", README, re.M)
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    ours = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("*.py")}
    ours |= {f"models/{p.name}" for p in (ROOT / "models").glob("[a-z]*.py")}
    ours |= {f"scripts/{p.name}" for p in (ROOT / "scripts").glob("*.py")}
    assert named == ours
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / picture).is_file()


def test_every_dependency_is_explained():
    wanted = set()
    for file in ("requirements.txt", "requirements-dev.txt"):
        wanted |= set(re.findall(r"^([A-Za-z][\w-]*)", (ROOT / file).read_text(), re.M))
    section = README.split("## Why each dependency")[1].split("##")[0]
    rows = re.findall(r"^\| ([^|]+) \|", section, re.M)[1:]
    assert wanted == {name.strip() for row in rows for name in row.split(",")}


def test_all_ops_and_published_cells_are_named():
    for name in [*ops.OPS, *gt.PUBLISHED, *gt.PRESETS]:
        assert name in README, name


def test_the_example_block_runs_as_written(monkeypatch):
    block, primitives = re.findall(r"```python\n(.*?)```", README, re.S)[:2]
    monkeypatch.setattr(ops, "OPS", dict(ops.OPS))
    exec(block, vars(ops))
    names = {}
    exec(primitives, names)
    for C in (3, 4):
        for stride in (1, 2):
            for affine in (True, False):
                op = ops.OPS["ghost_conv"](C, stride, affine)
                x = torch.randn(2, C, 7, 8)
                assert op(x).shape == (2, C, -(-7 // stride), 8 // stride)
                norms = [m for m in op.modules() if isinstance(m, nn.BatchNorm2d)]
                assert norms
                assert all(norm.affine == affine for norm in norms)
    assert ops.check_primitives(names["PRIMITIVES"])
    vars(ops).pop("GhostConv")


@pytest.mark.parametrize("script", ["search", "augment"])
def test_the_scripts_have_a_main_that_takes_words(script):
    assert callable(importlib.import_module(script).main)
