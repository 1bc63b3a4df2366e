"""What the README and docs/ promise is true of the code."""

import argparse
import ast
import importlib.util
import inspect
import re
import shlex
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FAST_AUGMENT, SHORT_SEARCH, TINY_AUGMENT, TINY_SEARCH
from data_helpers import make
from PIL import Image
from torch import nn

import augment
import check_ops
import config
import export
import genotypes as gt
import predict
import search
from console.parser import Parser
from data_sets import named
from models import ops

ROOT = Path(__file__).parent.parent
PATHS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PATHS}
README, ALL = PAGES["README.md"], "\n".join(PAGES.values())
REFERENCE, DEVELOPING = PAGES["docs/reference.md"], PAGES["docs/developing.md"]
IMAGES = PAGES["docs/own-images.md"]
CONFIGS = {
    "search.py": config.SearchConfig, "augment.py": config.AugmentConfig,
    "compare.py": config.CompareConfig, "evaluate.py": config.EvaluateConfig,
    "predict.py": config.PredictConfig, "export.py": config.ExportConfig,
}  # fmt: skip

# Flags that the table of defaults leaves out although a resumed run may not change them: some have
# no influence on a result, ...
NO_INFLUENCE = {"quick", "paper", "eigenvalue", "compile", "checkpoint_cells"}
# ... some say what is searched or trained.
SUBJECT = {"dataset", "primitives", "genotype", "init_from"}


def inline():
    """Every piece of `code` in a sentence or table."""
    return re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", ALL, flags=re.S))


def section(page, title):
    """The text below a heading, up to the next one of any level."""
    return re.split(r"^#+ ", page.split(f"# {title}\n")[1], flags=re.M)[0]


def both_phases(*words):
    """The configurations of a search and of a training with the same words."""
    training = config.AugmentConfig(["--genotype", "DARTS_V2", *words])
    return {"search": config.SearchConfig([*words]), "augment": training}


# --- commands and flags -------------------------------------------------------------------------


def commands():
    for block in re.findall(r"```sh\n(.*?)```", ALL, re.S):
        for line in block.replace("\\\n", " ").splitlines():
            for command in line.split("#")[0].split("&&"):
                yield command.strip()
    yield from (code for code in inline() if re.match(r"python |pip ", code))


class Accepted(Exception):
    """Raised where a script would begin its work."""


def accepts(script, words, monkeypatch):
    """Whether the parser of a script accepts the words; nothing else of it runs."""
    if script in CONFIGS:
        CONFIGS[script](words)
        return True
    parse_args = argparse.ArgumentParser.parse_args

    def stop(self, *args, **kwargs):
        parse_args(self, *args, **kwargs)
        raise Accepted

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "path", list(sys.path))  # scripts/ put the repository there
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(Accepted):
        module.main(words)
    return True


@pytest.mark.parametrize("command", sorted({command for command in commands() if command}))
def test_every_command_names_a_script_and_flags_that_exist(command, monkeypatch):
    program, *words = shlex.split(command)
    if program == "torchrun":  # its own flags go before the script
        (first, *_) = [i for i, word in enumerate(words) if word.endswith(".py")]
        program, words = "python", words[first:]
    if program == "pip":
        assert words[0] == "install"
        assert words[1] != "-r" or (ROOT / words[2]).is_file()
    elif program == "python" and words[0] != "-m":
        script, *words = words
        assert (ROOT / script).is_file()
        assert "--help" in words or accepts(script, words, monkeypatch)
    else:
        assert program in ("python", "ruff", ".ci/run")
        assert program != "python" or words[1] == "pytest"
        assert all((ROOT / word).is_file() for word in words if word.endswith(".py"))


def test_the_commands_of_a_user_are_all_shown():
    shown = {words[1] for words in map(str.split, commands()) if words[:1] == ["python"]}
    assert shown >= {path.name for path in ROOT.glob("*.py") if "__main__" in path.read_text()}


def test_every_flag_named_is_one():
    files = [*ROOT.glob("*.py"), *ROOT.glob("scripts/*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in files)
    known = {
        *re.findall(r'"--([\w-]+)"', code),
        "help",
        "logdir",
        "shm-size",
        "max_restarts",
        "master_port",
        "standalone",
    }  # of others: TensorBoard, docker, torchrun
    known |= {f"no-{flag}" for flag in known}
    shown = {flag for text in inline() for flag in re.findall(r"--(\w[\w-]*)", text)}
    assert shown <= known


# --- tables -------------------------------------------------------------------------------------


def test_the_table_of_defaults_is_the_parsers():
    table = re.findall(r"^\| (search|augment|both) `--(\w+)` \| (\S+) \| \S", REFERENCE, re.M)
    parsed = both_phases()
    listed = {"search": set(), "augment": set()}
    for phases, flag, value in table:
        for phase in listed if phases == "both" else [phases]:
            assert str(getattr(parsed[phase], flag)) == value, flag
            listed[phase].add(flag)
    # no default that changes a result may escape the table
    for phase, cfg in parsed.items():
        fixed = set(cfg.marked(cfg.flags(), keep="fixed"))
        assert fixed - NO_INFLUENCE - SUBJECT == listed[phase]


def test_the_table_of_a_comparison_is_the_parsers():
    rows = re.findall(r"^\| compare `--(\w+)` \| (\S+) \| (\S+) \| \S", REFERENCE, re.M)
    plain, quick = (config.CompareConfig(["PDARTS", *words]) for words in ([], ["--quick"]))
    assert rows == [(name, *(str(getattr(cfg, name)) for cfg in (plain, quick)))
                    for name, *_ in rows]  # fmt: skip
    # what it shares with search and training stands in the other table
    shared = both_phases()["search"].flags().keys() & both_phases()["augment"].flags().keys()
    own = set(plain.marked(plain.flags(), keep="fixed")) - shared - {"candidates", "baseline"}
    assert own - {"budget", "n_nodes", "k", "primitives"} <= {name for name, *_ in rows}


def test_the_table_of_quick_is_the_parsers():
    rows = re.findall(
        r"^\| `--(\w+)` \| (\S+) \| (\S+) \|", section(REFERENCE, "What --quick sets"), re.M
    )
    plain, quick = both_phases(), both_phases("--quick")
    for column, phase in enumerate(("search", "augment"), start=1):
        before = plain[phase].flags()
        changed = {k: str(v) for k, v in quick[phase].flags().items() if v != before[k]}
        assert changed.pop("quick") == "True"
        assert changed == {row[0]: row[column] for row in rows if row[column] != "-"}


def test_the_table_of_paper_is_the_parsers():
    rows = re.findall(r"^\| `--(\w+)` \| (\S+) \|$", section(REFERENCE, "What --paper sets"), re.M)
    cfg = config.SearchConfig(["--paper"])
    papers = {name for name, action in cfg._actions.items() if action.paper is not None}
    assert papers - {"primitives"} == {name for name, _ in rows}
    assert {name: str(getattr(cfg, name)) for name, _ in rows} == dict(rows)


def test_every_product_file_is_named_and_there():
    rows = re.findall(r"^\| `([\w/.]+\.(?:py|j2))` \| \S", DEVELOPING, re.M)
    ours = [*ROOT.glob("*.py"), *ROOT.glob("scripts/*.py")]
    for package in {path.parent for path in ROOT.glob("*/__init__.py")} - {ROOT / "tests"}:
        ours += [*package.glob("[a-z]*.py"), *package.glob("*.j2")]
    assert sorted(rows) == sorted(path.relative_to(ROOT).as_posix() for path in ours)
    for name in inline():
        if re.fullmatch(r"[\w/.]+\.(py|toml)", name) and "NAME" not in name:
            assert (ROOT / name).is_file(), name


def test_the_layers_are_those_that_are_tested():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    tested = re.findall(r'"(.+)"', re.search(r"^layers = \[\n(.*?)^\]", text, re.M | re.S)[1])
    drawn = section(DEVELOPING, "Who may import whom").split("```\n")[1].splitlines()
    assert [set(re.findall(r"\w+", layer)) for layer in drawn] == [
        set(re.findall(r"\w+", layer)) for layer in tested
    ]


def test_every_dependency_is_explained():
    wanted = set()
    for file in ("requirements.txt", "requirements-dev.txt"):
        wanted |= set(re.findall(r"^([A-Za-z][\w-]*)", (ROOT / file).read_text(), re.M))
    rows = re.findall(r"^\| ([^|]+) \|", section(DEVELOPING, "Why each dependency"), re.M)[1:]
    assert sorted(wanted) == sorted(name.strip() for row in rows for name in row.split(","))


def test_all_ops_cells_and_data_sets_are_named():
    for name in [*ops.OPS, *gt.PUBLISHED, *gt.PRESETS]:
        assert f"`{name}`" in PAGES["docs/own-blocks.md"], name
    for name in named.NAMES:
        assert re.search(rf"`(--dataset )?{name}\b", IMAGES), name


# --- pages --------------------------------------------------------------------------------------


def test_the_readme_is_short():
    assert len(README.encode()) <= 10_000
    assert len(README.splitlines()) <= 185


@pytest.mark.parametrize("page", [name for name in PAGES if name != "README.md"])
def test_a_page_opens_with_its_reader_and_is_in_the_table_of_the_readme(page):
    assert re.match(r"# [^\n]+\n\nThis page is for you if [^.]+\.?", PAGES[page])
    assert re.search(rf"^\| \[[\w-]+\]\({page}\) \| \S", README, re.M)


def anchors(page):
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.parametrize("page", PAGES)
def test_all_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.resolve().is_file(), target
        name = path.resolve().relative_to(ROOT).as_posix()
        assert not anchor or anchor in anchors(PAGES[name]), target


# --- examples -----------------------------------------------------------------------------------


def test_the_example_block_runs_as_written(monkeypatch, here, capsys):
    examples = re.findall(r"```python\n(.*?)```", README, re.S)
    block, primitives = (e for e in examples if e.startswith(("class ", "PRIMITIVES")))
    monkeypatch.setitem(ops.OPS, "ghost_conv", None)  # and it is gone again after the test
    monkeypatch.setattr(ops, "GhostConv", None, raising=False)
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
    search.main([*SHORT_SEARCH, "--name", "s"])
    assert "ops ghost_conv, sep_conv_3x3, skip_connect, none" in capsys.readouterr().out
    gene = [[("ghost_conv", 0), ("ghost_conv", 1)], [("ghost_conv", 1), ("skip_connect", 2)]]
    text = gt.to_str(gt.Genotype(gene, [2, 3], gene, [2, 3]))
    augment.main([*FAST_AUGMENT, "--genotype", text, "--name", "a"])


@pytest.mark.parametrize("form", ["onnx", "torchscript", "pt2"])
def test_the_example_of_an_exported_network_runs_as_written(here, capsys, form):
    """On a colour photograph; its class is the one that predict.py says."""
    blocks = re.findall(r"```python\n(.*?)```", PAGES["docs/use-the-result.md"], re.S)
    prepare, onnx, torchscript = blocks
    make(here / "pets", ("train", "test"), size=(12, 10))
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(3).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("cat.jpg", exif=exif)
    flags = ["--genotype", "DARTS_V2", "--dataset", "pets", "--layers", "2", "--epochs", "1"]
    augment.main([*flags, "--init_channels", "2", "--batch_size", "4", "--name", "a"])
    (row,) = predict.main(["cat.jpg", "--from", "augments/a"])
    export.main(["augments/a", "--format", form, "--out", f"pets.{form}"])
    example = onnx if form == "onnx" else torchscript
    if form == "pt2":
        lines = [line for line in torchscript.splitlines() if "torch.jit.load" not in line]
        example = "\n".join(line.removeprefix("# ") for line in lines)
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated")
        exec(prepare + example, {})
    assert capsys.readouterr().out == f"{row['class']}\n"


def test_the_sample_image_is_a_seven(here):
    picture = Image.open(ROOT / "assets" / "seven.png")
    digits = named.load_split("digits", "data", train=False)
    (i,) = [i for i, (x, _) in enumerate(digits) if np.array_equal(x[0], np.asarray(picture))][:1]
    assert digits.targets[i] == 7


def test_the_example_of_a_data_set_can_be_searched(monkeypatch, here, capsys):
    opener, row = map(textwrap.dedent, re.findall(r"   ```python\n(.*?)```", DEVELOPING, re.S))
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        images, labels = rng.integers(0, 256, (24, 3, 24, 24), dtype=np.uint8), [0, 1] * 12
        np.savez(f"shapes-{part}.npz", images=images, labels=labels)
    exec(f"{opener}\nROWS = [{row}]", names := {**vars(named)})
    (added,) = names["ROWS"]
    monkeypatch.setitem(named.DATA_SETS, added.spec.name, added)
    words = ["--dataset", "shapes", "--data_path", ".", "--batch_size", "6", "--epochs", "1"]
    search.main([*TINY_SEARCH, *words])
    assert "2 classes: circle, square" in capsys.readouterr().out
    augment.main([*TINY_AUGMENT, "--genotype", "searchs/shapes", "--epochs", "1"])
    assert (here / "augments" / "shapes" / "checkpoint.pt").is_file()

    (statistics,) = re.findall(r"^```python\n(import torch.*?)```", DEVELOPING, re.S | re.M)
    capsys.readouterr()
    (here / "data").symlink_to(here)
    exec(statistics, {})
    mean, std = re.findall(r"tensor\((.+?)\)", capsys.readouterr().out)
    pixels = np.load("shapes-train.npz")["images"] / 255
    assert ast.literal_eval(mean) == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-3)
    assert ast.literal_eval(std) == pytest.approx(pixels.std((0, 2, 3)).tolist(), abs=1e-3)


def test_the_example_of_a_flag_makes_one():
    (example,) = re.findall(r"^ +(flag\(g, .+\))$", section(DEVELOPING, "Add a flag"), re.M)
    parser = Parser("search.py")
    exec(example, {**vars(config), "g": parser.add_argument_group("alpha")})
    assert parser.parse_args(["--alpha_beta1", "0.9"]).alpha_beta1 == 0.9
    source = inspect.getsource(config)
    for word, value in set(re.findall(r'\b(inherit|keep)="(\w+)"', source)):
        assert f'`"{value}"`' in DEVELOPING, (word, value)
    assert all(
        hasattr(config, name) for name in re.findall(r"`(add_\w+_(?:group|flags))`", DEVELOPING)
    )
    assert {"quick", "inherit", "keep"} <= set(inspect.signature(config.flag).parameters)
