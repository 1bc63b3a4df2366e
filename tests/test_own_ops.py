"""--ops: blocks from a file of one's own, from check_ops to export."""

import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import FAST_AUGMENT, FAST_SEARCH, checkpoint_of, ends_in_one_line, interrupt

import augment
import check_ops
import compare
import evaluate
import export
import predict
import search
from models import ops, own_ops

BLOCKS = """
import os
from torch import nn

os.mkdir("ran" + str(len(os.listdir())))


class Mine(nn.Sequential):
    def __init__(self, C, stride, affine):
        super().__init__(nn.ReLU(), nn.Conv2d(C, C, 3, stride, 1, bias=False),
                         nn.BatchNorm2d(C, affine=affine))


OPS = {"mine": Mine}
"""


@pytest.fixture(autouse=True)
def as_in_a_new_process(monkeypatch):
    """Nothing is loaded yet, and nothing stays."""
    monkeypatch.setattr(own_ops, "_loaded", {})
    before = dict(ops.OPS)
    yield
    ops.OPS.clear()
    ops.OPS.update(before)


def forget():
    """What a new process knows."""
    own_ops._loaded.clear()
    ops.OPS.pop("mine", None)


def runs():
    """How often the file has been run."""
    return len([name for name in os.listdir() if name.startswith("ran")])


def test_from_a_search_to_an_export(here, capsys):
    (here / "b.py").write_text(BLOCKS)
    words = [*FAST_SEARCH, "--primitives", "mine", "--ops", "b.py", "--name", "s", "--epochs", "2"]
    assert "--resume" in interrupt(search, words, epoch=2)
    forget()
    search.main(["--name", "s", "--resume"])
    forget()
    augment.main([*FAST_AUGMENT, "--genotype", "searchs/s", "--name", "a"])
    state = checkpoint_of("augments/a")
    assert "('mine', 0)" in state["genotype"]
    assert state["flags"]["ops"].startswith(f"{here / 'b.py'}#")
    for command, rest in (
        (evaluate, ["augments/a"]), (export, ["augments/a", "--format", "torchscript"]),
    ):  # fmt: skip
        forget()
        command.main(rest)
    assert runs() == 5

    forget()
    (here / "b.py").rename(here / "c.py")
    for command, rest in (
        (evaluate, ["augments/a"]), (export, ["augments/a"]), (predict, ["s.png", "--from", "a"]),
    ):  # fmt: skip
        if command is predict:
            (here / "s.png").write_bytes(b"")
            rest = ["s.png", "--from", "augments/a"]
        text = ends_in_one_line(command.main, rest)
        assert f"the blocks mine come from {here / 'b.py'}, which cannot be read" in text
        assert "--ops FILE says where they are now" in text
    assert runs() == 5
    evaluate.main(["augments/a", "--ops", "c.py"])
    assert runs() == 6

    forget()
    (here / "b.py").write_text(BLOCKS + "# changed")
    text = ends_in_one_line(augment.main, ["--name", "a", "--resume"])
    assert "b.py has changed since this run began, and is not run unasked" in text
    assert runs() == 6
    capsys.readouterr()


def test_a_comparison_trains_them(here):
    (here / "b.py").write_text(BLOCKS)
    search.main([*FAST_SEARCH, "--primitives", "mine", "--ops", "b.py", "--name", "s"])
    forget()
    words = ["searchs/s", "random:1", "--name", "c", "--epochs", "2", "--seeds", "1", "--jobs", "1"]
    compare.main([*words, "--layers", "3", "--init_channels", "2", "--batch_size", "32"])
    forget()
    augment.main([*FAST_AUGMENT, "--genotype", "compares/c", "--name", "a"])
    assert checkpoint_of("augments/a")["flags"]["ops"].startswith(f"{here / 'b.py'}#")


def test_without_primitives_own_blocks_are_added(here):
    (here / "b.py").write_text(BLOCKS)
    words = [word for word in FAST_SEARCH if "," not in word and word != "--primitives"]
    search.main([*words, "--ops", "b.py", "--name", "s", "--order", "1"])
    assert checkpoint_of("searchs/s")["flags"]["primitives"][-2:] == ["none", "mine"]


def test_check_ops_tries_them(here, capsys):
    (here / "b.py").write_text(BLOCKS)
    check_ops.main(["--ops", "b.py", "--channels", "4"])
    assert "1 block tried, all right" in capsys.readouterr().out
    (here / "w.py").write_text(BLOCKS.replace("stride, 1, bias", "1, 1, bias"))
    with pytest.raises(SystemExit):
        check_ops.main(["--ops", "w.py", "--channels", "4"])
    assert "defined in w.py:8\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("x = 1", "defines no OPS; write OPS = {"),
        ("OPS = {}", "defines no OPS"),
        ("OPS = [", "cannot be run: SyntaxError"),
        ("OPS = {x: 1}", "cannot be run: NameError: name 'x' is not defined"),
        ("raise SystemExit(3)", "cannot be run: SystemExit: 3"),
        ("OPS = {'a,b': 1}", "'a,b' is no name for a block"),
        ("OPS = {'sep_conv_3x3': 1}", "sep_conv_3x3 comes with the repository; take another"),
    ],
)
def test_files_that_give_no_blocks_end_in_one_line(here, text, message):
    if text is not None:
        (here / "b.py").write_text(text)
    assert message in ends_in_one_line(check_ops.main, ["--ops", "b.py"])
    with pytest.raises(ValueError, match="b.py"):
        own_ops.use(SimpleNamespace(ops="b.py", said={"ops": "b.py"}))
    assert "a,b" not in ops.OPS


def test_the_example_of_the_docs_runs_as_written(here, capsys):
    page = (Path(__file__).resolve().parents[1] / "docs" / "own-blocks.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.S)
    Path("my_blocks.py").write_text(example)
    check_ops.main(["--ops", "my_blocks.py"])
    assert "conv_7x7" in capsys.readouterr().out
    search.main([*FAST_SEARCH, "--ops", "my_blocks.py", "--primitives", "conv_7x7,skip_connect"])


def test_the_command_that_says_more_of_a_bad_block_knows_its_file(here, capsys):
    Path("b.py").write_text(BLOCKS.replace("stride, 1,", "stride, 0,").replace("os.mkdir", "str"))
    said = ends_in_one_line(search.main, [*FAST_SEARCH, "--ops", "b.py", "--primitives", "mine"])
    words = re.search(r"check_ops.py (mine --ops \S+b\.py) says more", said)[1].split()
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        check_ops.main(words)
    assert caught.value.code == 1
    assert "mine" in capsys.readouterr().out
