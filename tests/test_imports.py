"""Importing a module does nothing, and the picture commands import no torch."""

import ast
import compileall
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def modules():
    """{module name: its file} of everything users run or import."""
    packages = {p.parent for p in ROOT.glob("*/__init__.py")} - {ROOT / "tests"}
    files = [*ROOT.glob("*.py"), *(file for folder in packages for file in folder.glob("*.py"))]
    names = {f: ".".join(f.relative_to(ROOT).with_suffix("").parts) for f in files}
    return {name.removesuffix(".__init__"): file for file, name in names.items()}


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
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": "."}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    layers = ROOT.joinpath("pyproject.toml").read_text(encoding="utf-8")
    assert all(f'"{name}"' in layers for name in modules() if "." not in name)


def test_torch_stays_out_of_genotypes_and_config():
    for name in (
        "genotypes", "config", "gif_maker", "plot_train_val", "plot_alphas", "visualize", "report",
    ):  # fmt: skip
        code = f"import {name}, sys; assert 'torch' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_importing_does_nothing(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); before = list(sys.argv)\n"
        f"import {', '.join(modules())}\n"
        "import threading, multiprocessing\n"
        "assert not multiprocessing.active_children() and sys.argv == before"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert os.listdir(tmp_path) == []


def test_everything_compiles():
    assert all(compileall.compile_file(f, quiet=1, force=True) for f in modules().values())


@pytest.mark.parametrize(
    "script", [p.name for p in ROOT.glob("*.py") if "__main__" in p.read_text()]
)
def test_every_script_has_help(script, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / script, "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ")
    assert os.listdir(tmp_path) == []


def test_nothing_is_ever_evaluated():
    for file in modules().values():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert getattr(node.func, "id", None) not in ("eval", "exec"), file
