"""The import arrows, and that importing a module does nothing."""

import ast
import compileall
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Who may import whom. No arrow points back up and there is no circle.
ARROWS = {
    "search": {
        "config", "utils", "run_folder", "preproc", "pace", "graphs", "architect", "genotypes",
        "search_log", "pictures", "models.search_cnn", "models.ops", "models.stems", "check_ops",
    },
    "search_log": {
        "config", "utils", "genotypes", "records", "visualize", "gif_maker", "plot_train_val",
        "plot_alphas", "report", "models.augment_cnn",
    },
    "augment": {
        "config", "utils", "run_folder", "preproc", "pace", "graphs", "genotypes", "plot_train_val",
        "visualize", "pictures", "deploy", "export", "models.augment_cnn", "models.ops",
        "models.stems", "check_ops",
    },
    "check_ops": {"utils", "models.ops", "models.wide"},
    "export": {"deploy", "genotypes", "utils", "models.ops"},
    "deploy": {
        "config", "utils", "run_folder", "preproc", "image_files", "genotypes",
        "models.augment_cnn", "models.ops",
    },
    "config": {"genotypes"},
    "run_folder": {"utils", "records", "terminal"},
    "pictures": {"records", "report"},
    "report": {
        "files", "genotypes", "palette", "records", "visualize", "gif_maker", "plot_train_val",
        "plot_alphas",
    },
    "visualize": {"files", "genotypes", "palette", "records"},
    "gif_maker": {"files", "palette", "records"},
    "plot_train_val": {"files", "palette", "records"},
    "plot_alphas": {"genotypes", "palette", "records", "plot_train_val"},
    "models.search_cnn": {"models.search_cells", "models.ops", "models.stems", "genotypes"},
    "models.search_cells": {"models.ops", "models.wide"},
    "models.wide": {"models.ops"},
    "models.reference": {"models.ops"},
    "models.augment_cnn": {"models.augment_cells", "models.ops", "models.stems", "genotypes"},
    "models.augment_cells": {"models.ops"},
    "models.ops": set(),
    "models.stems": set(),
    "models": set(),
    "architect": set(),
    "graphs": set(),
    "utils": {"files"},
    "files": set(),
    "preproc": {"data_sets", "image_folder", "transforms", "utils"},
    "image_folder": {"data_sets", "image_files"},
    "image_files": {"utils"},
    "transforms": {"image_files"},
    "data_sets": set(),
    "pace": set(),
    "genotypes": set(),
    "records": set(),
    "palette": set(),
    "terminal": set(),
}  # fmt: skip


def modules():
    """{module name: its file} of everything users run or import."""
    files = [*ROOT.glob("*.py"), *(ROOT / "models").glob("*.py")]
    names = {f: ".".join(f.relative_to(ROOT).with_suffix("").parts) for f in files}
    return {name.removesuffix(".__init__"): file for file, name in names.items()}


def imported(file, ours):
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= whole & ours or {node.module}
    return found & ours


def test_the_import_arrows():
    table = modules()
    assert set(table) == set(ARROWS)
    for name, file in table.items():
        assert imported(file, set(table)) <= ARROWS[name], name


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
    assert compileall.compile_dir(ROOT / "models", quiet=1, force=True)
    assert all(compileall.compile_file(f, quiet=1, force=True) for f in ROOT.glob("*.py"))


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
