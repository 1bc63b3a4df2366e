"""Records of a run: written in one piece, read whatever has become of them."""

import contextlib
import json
import os
import shutil
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import genotypes as gt
import plot_alphas
import report
import visualize
from records import files, reader

RECORDS = (files.CONFIG, files.METRICS, files.ALPHAS, files.SUMMARY, files.GENOTYPE)

# --- writing ------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_not_at_all(here):
    files.write_text("a", "old\n")

    def stop():
        with files.atomic_write("a") as temporary:
            Path(temporary).write_text("half")
            assert Path("a").read_text() == "old\n"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert os.listdir() == ["a"]
    assert Path("a").read_text() == "old\n"
    files.write_json("a", {"ü": [1]})
    assert json.loads(Path("a").read_text(encoding="utf-8")) == {"ü": [1]}
    assert os.listdir() == ["a"]


def test_an_error_before_anything_is_written_leaves_nothing(here):
    with pytest.raises(OSError, match="full"), files.atomic_write("a"):
        raise OSError("disk full")
    assert os.listdir() == []


def test_two_writers_of_one_file_do_not_meet(here):
    both_inside = threading.Barrier(2)

    def write(text):
        with files.atomic_write("a") as temporary:
            Path(temporary).write_text(text)
            both_inside.wait()

    writers = [threading.Thread(target=write, args=(letter * 9,)) for letter in "xy"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert os.listdir() == ["a"]
    assert Path("a").read_text() in ("x" * 9, "y" * 9)


# --- reading ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(finished_search, tmp_path_factory):
    """A copy of the records of a search, and their text."""
    folder = tmp_path_factory.mktemp("records")
    for name in RECORDS:
        shutil.copy(finished_search[0] / "searchs" / "s" / name, folder)
    return folder, {name: (folder / name).read_text() for name in RECORDS}


def paths_of(value, path=()):
    """The path of every value inside a JSON value."""
    yield path
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in keys:
        yield from paths_of(value[key], (*path, key))


def replaced(value, path, new):
    """A JSON value with `new` at `path`."""
    if not path:
        return new
    value = dict(value) if isinstance(value, dict) else list(value)
    value[path[0]] = replaced(value[path[0]], path[1:], new)
    return value


ODD = st.sampled_from([
    None, True, -1, 0, 3, 10**400, 0.5, -0.5, 1e308, float("nan"), float("inf"), "", "nope",
    "Genotype(", [], [[]], [1], {}, {"a": 1}, gt.to_str(gt.DARTS_V2), "none", "\ud800",
])  # fmt: skip


@st.composite
def damaged(draw, text):
    """The text of a record with one value replaced, or some letters."""
    if draw(st.booleans()):
        at, length = draw(st.integers(0, len(text))), draw(st.integers(0, 30))
        return (
            text[:at]
            + draw(st.sampled_from(["", "0", '"', "[" * 5000, "\0"]))
            + text[at + length :]
        )
    parts = text.splitlines() if text.startswith('{"') else [text]
    i = draw(st.integers(0, len(parts) - 1))
    value = json.loads(parts[i])
    path = draw(st.sampled_from(list(paths_of(value))))
    parts[i] = json.dumps(replaced(value, path, draw(ODD)))
    return "\n".join(parts)


def use(folder):
    """What the drawing commands read of a run, without the drawing."""
    report.template().render(report.collect(folder))
    genotype = gt.load(folder)
    visualize.known_about(folder, genotype)
    history = reader.read_alphas(folder)
    plot_alphas.table(plot_alphas.recommended(folder, history))
    for cell in files.CELLS:
        series = plot_alphas.curves(history, cell)
        lengths = {len(weights) for ops in series.values() for weights in ops.values()}
        assert lengths == {len(history)}
    for record in history:
        visualize.strengths_of(record, gt.from_str(record["genotype"]))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_records_are_passed_over_or_refused_in_a_line(run, data):
    folder, texts = run
    name = data.draw(st.sampled_from(RECORDS))
    texts = {**texts, name: data.draw(damaged(texts[name]))}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    with contextlib.suppress(ValueError, OSError):  # which commands end with, in one line
        use(str(folder))


def test_a_damaged_line_is_passed_over_and_the_others_are_kept(run, here):
    folder, texts = run
    for name in RECORDS:
        Path(name).write_text(texts[name])
    first, second = texts[files.ALPHAS].splitlines()
    good = json.loads(second)
    for path, value in (
        (("primitives", 2), "skip_conect"), (("normal", 0, 1, 3), "0.1"), (("normal", 0, 1), []),
        (("reduce",), good["reduce"][:1]), (("genotype",), good["genotype"][:-9]),
        (("epoch",), "2"), (("entropy", "normal"), None), (("normal", 0, 0, 0), float("nan")),
    ):  # fmt: skip
        Path(files.ALPHAS).write_text(f"{first}\n{json.dumps(replaced(good, path, value))}\n")
        assert [record["epoch"] for record in reader.read_alphas(".")] == [1], path
    rows = [json.loads(line) for line in texts[files.METRICS].splitlines()]
    for key, value in (("loss", "x"), ("top1", None), ("epoch", 2.0), ("phase", [])):
        lines = [json.dumps(row) for row in [*rows[:3], {**rows[3], key: value}]]
        Path(files.METRICS).write_text("\n".join(lines))
        assert list(reader.read_metrics(".")["val"]) == [1], key
    Path(files.METRICS).write_text(json.dumps({**rows[0], "seconds": "long"}))
    assert "seconds" not in reader.read_metrics(".")["train"][1]
    assert reader.epoch_seconds(".") == 0
