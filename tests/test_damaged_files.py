"""The picture commands on a run, one of whose files is damaged, or which goes on meanwhile: no
traceback, and whatever cannot be done is said in a line."""

import contextlib
import io
import json
import os
import random
import shutil
import threading
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

import gif_maker
import plot_alphas
import plot_train_val
import report
import visualize
from records import files

SEARCH, TRAINING = "searchs/s", "augments/a"
DRAWING = "plots/EP01-normal.png"
# the files of a run that each command reads
READS = {
    report: (
        files.CONFIG, files.METRICS, files.ALPHAS, files.GENOTYPE, files.SUMMARY, DRAWING,
        "normal.gif", "plots",
    ),
    plot_alphas: (files.ALPHAS, files.GENOTYPE),
    plot_train_val: (files.METRICS, files.SUMMARY),
    gif_maker: (files.CONFIG, files.METRICS, files.ALPHAS, files.GENOTYPE),
    visualize: (files.GENOTYPE, files.ALPHAS),
}  # fmt: skip
OF_TRAINING = (files.CONFIG, files.METRICS, files.GENOTYPE, files.SUMMARY, "plots/normal.png")
CASES = [(script, SEARCH, name) for script, names in READS.items() for name in names]
CASES += [(report, TRAINING, name) for name in OF_TRAINING]
CASES += [(visualize, TRAINING, files.GENOTYPE), (plot_train_val, TRAINING, files.METRICS)]
KINDS = ("empty", "cut", "flipped", "foreign", "wrong types", "missing", "deep", "binary", "folder")
KINDS += ("fifo",) if hasattr(os, "mkfifo") else ()


def with_wrong_types(value):
    """A JSON value in which each number, text and list has become something else."""
    if isinstance(value, dict):
        return {key: with_wrong_types(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return {"0": value}
    return [value] if isinstance(value, str) else str(value)


def damaged(content, kind, name, draw):
    """The bytes of a file after it was damaged; `draw` is a random.Random."""
    is_json = name.endswith((".json", ".jsonl"))
    if kind == "cut":
        return content[: draw.randrange(1, len(content))]
    if kind == "flipped":
        flipped = bytearray(content)
        for _ in range(5):
            flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
        return bytes(flipped)
    if kind == "foreign":
        other = io.BytesIO()
        Image.new("1", (3, 2)).save(other, "BMP")
        return b'{"name": "something else", "version": [1, 2]}\n' if is_json else other.getvalue()
    if kind == "wrong types":
        if not is_json:
            return b'{"a": 1}'
        parts = content.decode().splitlines() if name.endswith(".jsonl") else [content.decode()]
        return "".join(f"{json.dumps(with_wrong_types(json.loads(p)))}\n" for p in parts).encode()
    return {"empty": b"", "deep": b'{"flags": ' + b"[" * 100_000, "binary": draw.randbytes(2000)}[
        kind
    ]


def damage(path, kind, draw):
    """Damage a file, or a folder as if it were one."""
    name, content = path.name, path.read_bytes() if path.is_file() else b"a folder"
    if kind == "folder" and path.is_dir():
        kind = "missing"
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind != "missing":
        if not path.suffix and kind == "wrong types":
            kind = "empty"
        path.write_bytes(damaged(content, kind, name, draw))


def run(script, words):
    """(exit code, standard output, standard error) of a command; an exception is a traceback."""
    code = 0
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        try:
            script.main(list(words))
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()


def assert_ends_well(script, folder, path, kind, seed):
    """The command on a copy of a run in which a file is damaged so."""
    copy = Path("copy") / Path(path).parent.name
    shutil.rmtree("copy", ignore_errors=True)
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("tb", "*.pt"))
    damage(copy / path, kind, random.Random(f"{path} {kind} {seed}"))
    words = [str(copy), *(["--out", "copy/out"] if script is visualize else [])]
    code, _, err = run(script, words)
    assert code in (0, 1, 2)
    lines = err.splitlines()
    assert all(line.startswith(f"{script.__name__}.py: ") for line in lines), err
    assert len(lines) == 1 or (script is report and len(lines) <= 4) or code == 0, err
    assert not (code and not lines)
    assert not [p.name for p in copy.rglob("*.tmp*")]


@pytest.fixture
def quick_pictures(monkeypatch):
    """Pictures are not rendered, which is most of the time: what is read and laid out is."""
    png = io.BytesIO()
    Image.new("RGB", (40, 30), "white").save(png, "PNG")

    def save(fig, target, **words):
        Path(target).write_bytes(png.getvalue())

    monkeypatch.setattr(Figure, "savefig", save)
    monkeypatch.setattr(visualize, "render_bytes", lambda source, form: (png.getvalue(), []))


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_costs_no_traceback(kind, here, finished_augment, quick_pictures):
    for script, folder, path in CASES:
        assert_ends_well(script, finished_augment[0] / folder, path, kind, seed=0)


def go_on(folder, whole, stop):
    """Write the files of a run over and over, as the run does it: lines grow, by halves at worst,
    other files are replaced."""
    growing = (files.METRICS, files.ALPHAS)
    others = [p for p in whole.rglob("*") if p.is_file() and p.suffix in (".json", ".png", ".html")]
    while not stop.is_set():
        for name in growing:
            lines = (whole / name).read_text().splitlines(keepends=True)
            files.write_text(folder / name, "".join(lines[: len(lines) // 2]))
            with open(folder / name, "a") as stream:
                for line in lines[len(lines) // 2 :]:
                    stream.write(line[:20])
                    stream.flush()
                    stream.write(line[20:])
        for path in others:
            with files.atomic_write(str(folder / path.relative_to(whole))) as temporary:
                shutil.copyfile(path, temporary)


def test_report_beside_a_search_that_goes_on(here, finished_augment, quick_pictures, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    whole, folder = finished_augment[0] / SEARCH, here / SEARCH
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("tb", "*.pt"))
    stop = threading.Event()
    search = threading.Thread(target=go_on, args=(folder, whole, stop))
    search.start()
    try:
        ends = [run(report, [SEARCH]) for _ in range(4)]
    finally:
        stop.set()
        search.join()
    assert ends == [(0, f"{Path(SEARCH, files.REPORT)}\n", "")] * 4
    assert not [path.name for path in folder.rglob("*.tmp*")]
