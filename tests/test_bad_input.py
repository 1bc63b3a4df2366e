"""Bad input to every command: one line that names flag, value and what is allowed, exit code 2, and
no file or folder left behind.

The tests walk the parsers of all commands, so a new flag is tested by itself; a new type of flag
needs a row in BAD.
"""

import argparse
import contextlib
import io
import os
import re
from pathlib import Path

import pytest
from conftest import ends_in_one_line
from hypothesis import example, given, settings
from hypothesis import strategies as st

import augment
import check_ops
import compare
import config
import evaluate
import export
import genotypes as gt
import gif_maker
import plot_alphas
import plot_compare
import plot_confusion
import plot_train_val
import predict
import report
import runs
import search
import visualize
from console import parser as types
from console.parser import Parser, shown
from data_sets import named
from models import ops

ROOT = Path(__file__).parent.parent

# every command, and the least that it needs
COMMANDS = {
    search: [], augment: ["--genotype", "PDARTS"], evaluate: ["nothere"], export: ["nothere"],
    compare: ["PDARTS"], plot_compare: ["nothere"], plot_confusion: ["nothere"],
    predict: ["nothere.png", "--from", "nothere"], check_ops: [], visualize: ["PDARTS"],
    gif_maker: ["nothere"], plot_alphas: ["nothere"], plot_train_val: ["nothere"],
    report: ["nothere"], runs: [],
}  # fmt: skip


RUN_OF = {
    gif_maker: "searchs", plot_alphas: "searchs", plot_confusion: "augments",
    plot_compare: "compares", plot_train_val: "augments", report: "searchs",
    evaluate: "augments", export: "augments",
}  # fmt: skip


@pytest.mark.parametrize("script", RUN_OF, ids=lambda script: script.__name__)
def test_a_folder_that_is_not_there_is_said_to_be_missing(here, script):
    words = ["--format", "torchscript"] if script is export else []
    said = ends_in_one_line(script.main, ["pets", *words], code=2)
    assert re.search(r"there is no (run folder|file or folder) pets$", said.strip())
    os.makedirs(f"{RUN_OF[script]}/pets")
    said = ends_in_one_line(script.main, ["pets", *words], code=2)
    assert said.strip().endswith(f"pets; did you mean {RUN_OF[script]}/pets?")


class Parsed(Exception):
    """Carries the parser that a command made, and its words."""


def parser_of(script):
    """The parser of a command, which goes no further."""

    def stop(self, words=None, namespace=None):
        raise Parsed(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parser, "parse_args", stop)
        try:
            script.main([])
        except Parsed as parsed:
            return parsed.args[0]
    raise AssertionError(f"{script.__name__} parses nothing")


PARSERS = {script: parser_of(script) for script in COMMANDS}
ACTIONS = [
    (script, action)
    for script, parser in PARSERS.items()
    for action in parser._actions
    if action.dest != "help"
]


def test_every_command_is_here():
    scripts = {p.stem for p in ROOT.glob("*.py") if "\n@command\n" in p.read_text(encoding="utf-8")}
    assert scripts == {script.__name__ for script in COMMANDS}
    mains = {p.stem for p in ROOT.glob("*.py") if "__main__" in p.read_text(encoding="utf-8")}
    assert mains == scripts


# --- the table ----------------------------------------------------------------------------------

# what no flag takes, and what is said of it
ANYWHERE = {
    "": "is empty",
    "\udcff.png": "holds bytes that are no UTF-8",
    "\ud800": "holds bytes that are no UTF-8",
    "a\nb": "holds control characters", "\r\nsearch.py: all is well": "holds control characters",
    "\x1b[2J": "holds control characters", "a\0b": "holds control characters",
    "\u2028": "holds control characters", "\u202etxt": "holds control characters",
    "x" * 100_001: "is too long; 100,000 characters at most",
    "--": "",
}  # fmt: skip
NO_NUMBER = ["nan", "inf", "-inf", "1e999", "-1e999", "9" * 900, "one", "1,5", "0x10", " ", "1 2",
             "1e300", "-1e-9", "--5", "None", "1e", "½", "[1]"]  # fmt: skip
NO_WHOLE = [*NO_NUMBER, "1.5", "1e3", "-1", str(2**31 + 2**30), str(2**32), str(2**63),
            str(2**64), "1" + "0" * 400]  # fmt: skip
NO_FOLDER = ["a/b", "/", "..", ".", "-", "-x", "a b", "a\\b", "con", "NUL", "aux.txt", "Com1",
             "lpt9.", "a.", "n" * 201, "n" * 250, "é" * 101, "*", "~", "$HOME",
             ".hidden"]  # fmt: skip
# by type of a flag: (what it refuses, what its message says is allowed)
BAD = {
    types.positive: ([*NO_NUMBER, "0", "-1", "1e-400", "1e-31"], "a number above 0"),
    types.non_negative: ([*NO_NUMBER, "-1"], "a number of 0 or more, 1e30 at most"),
    config.warmup_epochs: ([*NO_WHOLE, "Auto"], "1,000,000,000 at most, or auto"),
    config.alpha_lr: ([*NO_NUMBER, "0", "-1", "Auto"], "1e-30 to 1e30, or auto"),
    types.fraction: ([*NO_NUMBER, "0", "1", "2", "-1"], "between 0 and 1, both excluded"),
    types.probability: ([*NO_NUMBER, "1", "1.5"], "from 0 up to, not including, 1"),
    types.portion: ([*NO_NUMBER, "0", "1.01", "-1"], "a number above 0, 1 at most"),
    types.count: ([*NO_WHOLE, "0"], "a whole number of 1 or more, 1,000,000,000 at most"),
    types.batch: ([*NO_WHOLE, "0", "1"], "a whole number of 2 or more, 1,000,000,000 at most"),
    types.count_or_zero: (NO_WHOLE, "a whole number of 0 or more, 1,000,000,000 at most"),
    types.seed: (
        [word for word in NO_WHOLE if word != str(2**31 + 2**30)],
        "a whole number of 0 or more, 4,294,967,295 at most",
    ),
    types.cells: ([*NO_WHOLE, "0", "1001"], "a whole number of 1 or more, 1,000 at most"),
    types.nodes: ([*NO_WHOLE, "0", "101"], "a whole number of 1 or more, 100 at most"),
    types.gpus: (["-1", "a", "0,", ",1", "0;1", "1.5", "All", "\u0661"], "a number of a CUDA card"),
    types.threads: ([*NO_WHOLE, "0", "1025"], "a whole number of 1 or more, 1,024 at most"),
    types.processes: ([*NO_WHOLE, "1025"], "a whole number of 0 or more, 1,024 at most"),
    types.jobs: ([*NO_WHOLE, "0", "1025"], "a whole number of 1 or more, 1,024 at most"),
    types.duration: ([*NO_NUMBER, "30", "m", "0s", "-1m", "1e3s", "1234567s", "3 m", "5d", "٣m"],
                     "a time such as 90s, 30m or 2h"),
    types.channel_counts: ([*NO_WHOLE[:6], "16,", ",", "16;8", "10001"], "a whole number of"),
    types.digit: (NO_WHOLE + NO_NUMBER + ["7", "11", "١"], "choose from 1, "),
    types.folder_name: (NO_FOLDER, "use letters, digits and . _ + = -"),
    types.out_file: ([".", "nothere/x.csv", "o" * 241, "folder", "folder/"], ""),
    types.out_folder: (["file", "file/below", "o" * 256], ""),
    config.primitives: ([",", "none,,skip_connect", "none,"], "empty name"),
    gif_maker.frames_per_second: ([*NO_NUMBER, "0", "1e-300", "51", "-3"], "0.01 to 50"),
    None: ([], ""),
}  # fmt: skip
NO_CHOICE = ["nothere", "-", "0.0", "None", "c" * 900]


def bad_values(action):
    """[(value, what its message must say)] of a flag."""
    if action.nargs == 0:
        return [(word, "") for word in ("1", "True", "", "--", "a\nb", "\udcff", "9" * 5000)]
    values, allowed = BAD[action.type]
    found = [(value, allowed) for value in values]
    if action.choices and action.type is None:
        found += [(value, f"choose from {next(iter(action.choices))}") for value in NO_CHOICE]
    typed = list(found)
    for value, said in ANYWHERE.items():
        if value == "--":
            if action.option_strings:  # a number or a choice says what is allowed
                any_text = not typed or action.type is config.primitives
                found.append((value, "is no value; " if any_text else typed[0][1]))
            continue
        if getattr(action, "any_name", False) and "control" in said:
            continue
        found.append(
            (value, said.replace("100,000", "100,000" if is_genotype(action) else "1,000"))
        )
    return found


def is_genotype(action):
    return action.dest in ("genotype", "candidates")


def words_with(script, action, value):
    """Command lines that give a flag, or a positional, this value."""
    needed = COMMANDS[script]
    if not action.option_strings:
        return [[*needed[1:], "--", value]]
    name = action.option_strings[-1]
    ways = [[*needed, f"{name}={value}"]]
    return ways if action.nargs == 0 else [*ways, [*needed, name, value]]


def outcome(script, words):
    """(exit code, standard error, values) of the parser of a command with these words."""
    values = code = None
    with (
        contextlib.redirect_stderr(io.StringIO()) as err,
        contextlib.redirect_stdout(io.StringIO()),  # of --help
    ):
        try:
            values = PARSERS[script].parse_args(list(words))
        except SystemExit as end:
            code = end.code
    return code, err.getvalue(), values


def refused(script, words):
    """What standard error says when the parser of a command refuses these words."""
    code, text, values = outcome(script, words)
    assert code == 2, (words[-1][:80], values, text)
    assert text.startswith(f"{script.__name__}.py: "), text
    assert text.endswith("\n")
    assert text[:-1].isprintable(), text  # so it is one line
    assert len(text) < 3000, text
    return text


@pytest.mark.parametrize("script", COMMANDS, ids=lambda script: script.__name__)
def test_bad_values_of_every_flag(script, here):
    (here / "folder").mkdir()
    (here / "file").touch()
    before = sorted(here.rglob("*"))
    tried = 0
    for owner, action in ACTIONS:
        if owner is not script:
            continue
        for value, allowed in bad_values(action):
            for words in words_with(script, action, value):
                text = refused(script, words)
                tried += 1
                if words[-1] == value and value.startswith("-"):
                    continue  # taken for a flag
                if action.nargs != 0:
                    name = "/".join(action.option_strings) or action.metavar
                    assert f"argument {name}: " in text, (text, value)
                    assert allowed in text
                    if action.type not in (types.channel_counts, types.digit):
                        assert shown(value)[:60] in text
    assert sorted(here.rglob("*")) == before
    assert tried > 5


@pytest.mark.parametrize("script", COMMANDS, ids=lambda script: script.__name__)
def test_the_command_itself_refuses_one_of_each_flag(script, here):
    """The whole command, not its parser alone."""
    for owner, action in ACTIONS:
        if owner is script and action.option_strings:
            words = [*COMMANDS[script], f"{action.option_strings[-1]}=--"]
            assert action.option_strings[-1] in ends_in_one_line(script.main, words)


def test_a_flag_without_its_value_and_flags_that_there_are_not(here):
    for script, action in ACTIONS:
        if action.option_strings and action.nargs != 0:
            name = action.option_strings[-1]
            assert f"argument {name}: expected" in refused(script, [*COMMANDS[script], name])
    for script, needed in COMMANDS.items():
        for word in ("--nothere", "--a=\x1b[2J\n", "--\udcff", "--é", "-x" * 60_000):
            refused(script, [*needed, word])


def test_of_a_flag_that_is_said_twice_the_last_counts():
    assert config.SearchConfig(["--epochs", "3", "--epochs=4"]).epochs == 4
    assert config.SearchConfig(["--tf32", "--no-tf32"]).tf32 is False


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (visualize, ["-x"]), (report, ["-x"]), (gif_maker, ["-x"]), (plot_alphas, ["-x"]),
        (plot_train_val, ["-x"]), (evaluate, ["-x"]), (export, ["-x"]),
        (predict, ["-x.png", "--from", "y"]),
    ],
)  # fmt: skip
def test_a_name_that_begins_with_a_dash(script, words, here):
    text = ends_in_one_line(script.main, words)
    assert "a name that begins with a dash goes behind --" in text
    behind = ends_in_one_line(script.main, [*words[1:], "--", words[0]])
    assert words[0] in behind  # it was looked for
    assert "dash" not in ends_in_one_line(script.main, [])


def test_a_flag_that_is_nearly_the_missing_one_is_asked_for(here):
    text = ends_in_one_line(predict.main, ["x.png", "--form", "y"])
    assert "required: --from; did you mean --from?" in text


@st.composite
def random_words(draw):
    script, action = draw(st.sampled_from(ACTIONS))
    value = draw(st.one_of(
        st.text(max_size=12),
        st.text(st.sampled_from("0123456789.,-+e_ \n\udcff"), max_size=8),
        st.integers().map(str), st.floats().map(str),
    ))  # fmt: skip
    return script, action, draw(st.sampled_from(words_with(script, action, value)))


@settings(max_examples=400, deadline=None)
@given(random_words())
def test_any_text_is_a_value_or_refused_in_one_line(case):
    script, action, words = case
    code, text, values = outcome(script, words)
    if code is not None:
        assert code == 0 if {"-h", "--help"} & set(words) else code == 2
        assert len(text.splitlines()) == (code == 2)
        return
    assert text == ""
    found = getattr(values, action.dest)
    if action.nargs is None and action.type not in (config.primitives, types.channel_counts):
        assert isinstance(found, (str, int, float))


# --- what only the command itself can refuse ----------------------------------------------------


REFUSED = [
    (search, ["--dataset"]), (search, ["--primitives"]), (search, ["--gpus"]),
    (augment, ["--genotype"]), (augment, ["--init_from"]), (evaluate, []), (export, []),
    (predict, ["--from", "nothere"]), (predict, ["nothere", "--from"]), (check_ops, []),
    (visualize, []), (gif_maker, []), (plot_alphas, []), (plot_train_val, []), (report, []),
    (plot_compare, []), (compare, []), (compare, ["PDARTS"]), (compare, ["--resume", "--name"]),
    (search, ["--resume", "--name"]), (search, ["--dataset", "folder", "--data_path"]),
]  # fmt: skip


# what is there; hypothesis takes constants from the code, so it finds these names, too
KNOWN = {"auto", "all", *named.NAMES, *gt.PRESETS, *gt.PUBLISHED, *ops.OPS}


class Began(Exception):
    """A command has accepted its words and would begin to work."""


@pytest.fixture(scope="module")
def no_work(tmp_path_factory):
    """An empty current folder, for all examples of a test. No command gets beyond its words: no
    data set is opened, no block tried, no cell drawn."""

    def begin(*args, **kwargs):
        raise Began

    def open_known(name, *args):
        named.find(name)  # which refuses what there is not
        begin()

    folder = tmp_path_factory.mktemp("empty")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(check_ops, "quick", lambda *args, **kwargs: None)
        patch.setattr(check_ops, "faults_of", begin)
        patch.setattr(named, "load_split", open_known)
        patch.setattr(visualize, "plot", begin)
        yield folder


def is_known(text):
    """Whether a command may accept `text` where a name is asked for."""
    names = {name.strip() for name in text.split(",")}
    return names <= KNOWN or text.strip().startswith("Genotype") or text.isdecimal()  # a card


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(REFUSED), st.text(min_size=1, max_size=300))
@example((search, ["--dataset"]), "digits")
@example((augment, ["--genotype"]), " PDARTS")
@example((check_ops, []), "none")
@example((visualize, []), "DARTS_V2")
def test_names_of_what_is_not_there(no_work, case, text):
    script, words = case
    if "\0" not in text and os.path.exists(text):  # "." or "/"
        return
    if words and words[-1].startswith("--"):
        words = [*words[:-1], f"{words[-1]}={text}"]
    else:
        words = [*words, "--", text]
    try:
        ends_in_one_line(script.main, words)
    except Began:
        assert is_known(text)
    assert os.listdir(no_work) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no such files")
def test_a_fifo_is_no_file_of_ours(here):
    """Who opens one waits for ever."""
    os.mkfifo("f")
    for script, words in (
        (search, ["--ops"]), (augment, ["--genotype"]), (compare, []), (evaluate, []),
        (check_ops, ["--ops"]),
    ):  # fmt: skip
        assert "f" in ends_in_one_line(script.main, [*words, "f"])


@pytest.mark.parametrize(
    "name", ["con", "x" * 255, "日" * 85, "...", "aux.images", "a" * 199 + "é"]
)
def test_a_run_is_named_after_any_folder(name):
    made = types.to_folder_name(name)
    assert made == "" or types.folder_name(made) == made
    assert types.to_folder_name("pets") == "pets"


@given(st.text())
def test_a_run_is_named_after_any_text(text):
    made = types.to_folder_name(text)
    assert not made or types.folder_name(made) == made


def test_a_type_of_flags_that_is_not_here_is_found():
    for _, action in ACTIONS:
        assert action.type in BAD, f"{action.dest}: add bad values for its type to BAD"
        assert isinstance(action, argparse.Action)
