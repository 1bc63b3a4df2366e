"""Importing a module does nothing, the picture commands import no torch, every script has help."""

import ast
import compileall
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(p.stem for p in ROOT.glob("*.py") if "__main__" in p.read_text(encoding="utf-8"))
# and all of console/ and records/
WITHOUT_TORCH = (
    "config",
    "genotypes",
    "data_sets.named",
    "visualize",
    "gif_maker",
    "plot_train_val",
    "plot_alphas",
    "report",
)


def modules():
    """{module name: its file} of everything users run or import."""
    packages = {p.parent for p in ROOT.glob("*/__init__.py")} - {ROOT / "tests"}
    files = [*ROOT.glob("*.py"), *(file for folder in packages for file in folder.glob("*.py"))]
    names = {f: ".".join(f.relative_to(ROOT).with_suffix("").parts) for f in files}
    return {name.removesuffix(".__init__"): file for file, name in names.items()}


def python(code, folder):
    """Run `code` in a process of its own, in `folder`; it must say nothing."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_imports_keep_to_the_layers_of_pyproject(tmp_path):
    # import-linter knows packages only, so each script becomes the __init__.py of a package
    for script in ROOT.glob("*.py"):
        (tmp_path / script.stem).mkdir()
        shutil.copy(script, tmp_path / script.stem / "__init__.py")
    for package in {name.split(".")[0] for name in modules() if "." in name}:
        shutil.copytree(ROOT / package, tmp_path / package)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    done = subprocess.run(
        ["lint-imports", "--no-cache"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_module_has_its_place_in_the_layers():
    settings = ROOT.joinpath("pyproject.toml").read_text(encoding="utf-8")
    roots, layers = settings.split("root_packages = [")[1].split("layers = [")
    names = {name for line in layers.split("]")[0].split('"')[1::2] for name in line.split(" | ")}
    assert names == {name.split(".")[0] for name in modules()}
    assert names == set(roots.split("]")[0].split('"')[1::2])


def test_what_draws_or_reads_flags_imports_no_torch(tmp_path):
    packages = [name for name in modules() if name.split(".")[0] in ("console", "records")]
    code = "import importlib, sys"
    for name in (*packages, *WITHOUT_TORCH):
        code += f"\nimportlib.import_module({name!r}); assert 'torch' not in sys.modules, {name!r}"
    python(code, tmp_path)


def test_importing_does_nothing(tmp_path):
    code = (
        "import sys, threading, multiprocessing; before = list(sys.argv)\n"
        f"import {', '.join(modules())}\n"
        "assert not multiprocessing.active_children() and sys.argv == before\n"
        "assert threading.active_count() == 1"
    )
    python(code, tmp_path)
    assert os.listdir(tmp_path) == []


def test_everything_compiles():
    assert all(compileall.compile_file(f, quiet=1, force=True) for f in modules().values())


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_help(script, here, capsys):
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(script).main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert re.match(rf"usage: (python )?{script}\.py ", out)
    assert os.listdir(here) == []


def run_without_torch(folder, script, *words):
    """A script that has finished as a process, where torch cannot be imported."""
    (folder / "torch.py").write_text("raise SystemExit('torch was imported')")
    env = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, ROOT / script, *words]
    return subprocess.run(command, env=env, capture_output=True, text=True)


@pytest.mark.parametrize(
    "script", ["search", "augment", "compare", "evaluate", "predict", "export"]
)
def test_help_does_not_wait_for_torch(script, tmp_path):
    done = run_without_torch(tmp_path, f"{script}.py", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")


@pytest.mark.parametrize("words", [["--n_nodes", "999999999"], ["--layers", "999999999"]])
def test_an_absurd_size_is_refused_before_torch_is_imported(words, tmp_path):
    done = run_without_torch(tmp_path, "search.py", *words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"argument {words[0]}: '{words[1]}' is not a whole number" in done.stderr


def test_a_script_runs_by_its_path_from_another_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "report.py", "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: report.py ")


def test_every_script_starts_main_and_no_more():
    assert set(SCRIPTS) >= {"search", "augment", "evaluate", "predict", "export"}
    for script in SCRIPTS:
        text = (ROOT / f"{script}.py").read_text(encoding="utf-8")
        assert text.endswith('\n\nif __name__ == "__main__":\n    main()\n'), script


def test_nothing_is_ever_evaluated():
    """But for the file of --ops, which is there to be run."""
    for file in modules().values():
        if file == ROOT / "models" / "own_ops.py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert getattr(node.func, "id", None) not in ("eval", "exec"), file
