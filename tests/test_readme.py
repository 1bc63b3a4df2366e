"""What the README promises is true of the code."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch
from conftest import FAST_AUGMENT, FAST_SEARCH
from PIL import Image
from torch import nn

import augment
import check_ops
import config
import genotypes as gt
import search
from data_sets import named
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
        "checkpoint_cells", "cache_gb", "predict", "export", "trained", "out", "init_from",
        "layout", "cuda_graphs",
        "quiet", "max_madds",
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
    assert seen >= {
        "search.py", "augment.py", "visualize.py", "gif_maker.py", "plot_train_val.py",
        "check_ops.py",
    }  # fmt: skip


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


def test_the_example_block_runs_as_written(monkeypatch, here, capsys):
    examples = re.findall(r"```python\n(.*?)```", README, re.S)
    block, primitives = (e for e in examples if e.startswith(("class ", "PRIMITIVES")))
    monkeypatch.setattr(ops, "OPS", dict(ops.OPS))
    monkeypatch.setattr(augment, "OPS", ops.OPS)
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
    check_ops.main(["ghost_conv"])
    assert "ghost_conv" in capsys.readouterr().out
    monkeypatch.setattr(gt, "PRIMITIVES", names["PRIMITIVES"])
    search.main([*FAST_SEARCH, "--epochs", "1", "--name", "s"])
    assert "ops ghost_conv, sep_conv_3x3, skip_connect, none" in capsys.readouterr().out
    gene = [[("ghost_conv", 0), ("ghost_conv", 1)], [("ghost_conv", 1), ("skip_connect", 2)]]
    text = gt.to_str(gt.Genotype(gene, [2, 3], gene, [2, 3]))
    augment.main([*FAST_AUGMENT, "--genotype", text, "--name", "a"])
    vars(ops).pop("GhostConv")


def test_the_example_of_an_exported_network_runs_as_written(finished_augment, here, capsys):
    (example,) = re.findall(r"```python\n(import json.*?)```", README, re.S)
    run = str(finished_augment[0] / "augments" / "a")
    image, _ = named.Digits(train=False)[0]
    Image.fromarray(image[0].numpy()).save("seven.png")
    augment.main(["--export", "onnx", "--from", run, "--out", "digits.onnx"])
    capsys.readouterr()
    augment.main(["--predict", "seven.png", "--from", run])
    wanted = capsys.readouterr().out.splitlines()[1].split(",")[1]
    exec(example, {})
    assert capsys.readouterr().out == f"{wanted}\n"


@pytest.mark.parametrize("script", ["search", "augment"])
def test_the_scripts_have_a_main_that_takes_words(script):
    assert callable(importlib.import_module(script).main)
