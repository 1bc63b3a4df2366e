"""The command lines: defaults, the rule of four sources, what --resume allows, what is refused."""

import argparse
import contextlib
import io
import json
import os
import re

import pytest
from conftest import ends_in_one_line
from hypothesis import given, settings
from hypothesis import strategies as st

import genotypes as gt
from config import (
    AugmentConfig,
    CompareConfig,
    EvaluateConfig,
    ExportConfig,
    PredictConfig,
    SearchConfig,
)
from console.parser import Parser
from strategies.steering import Strategies

# what --quick sets, by the README
QUICK_SEARCH = {
    "layers": 4, "init_channels": 8, "batch_size": 32, "epochs": 18, "threads": 1, "order": 1,
    "warmup_epochs": "auto", "compare": 12, "max_skips": 2,
}  # fmt: skip
QUICK_AUGMENT = {"layers": 5, "init_channels": 16, "batch_size": 64, "epochs": 20, "threads": 1}
# the least that a command line must hold
RUNS = [(SearchConfig, []), (AugmentConfig, ["--genotype", "PDARTS"])]
ALL = [
    *RUNS,
    (CompareConfig, ["PDARTS"]),
    (EvaluateConfig, ["x"]),
    (ExportConfig, ["x"]),
    (PredictConfig, ["x", "--from", "y"]),
]


def flags_of(config, needed):
    """{name: the argparse action of a flag}."""
    return config(needed)._actions


# --- defaults -----------------------------------------------------------------------------------


def test_search_defaults_are_the_papers():
    cfg = SearchConfig([])
    wanted = {
        "epochs": 50, "batch_size": 64, "init_channels": 16, "layers": 8, "n_nodes": 4,
        "w_lr": 0.025, "w_lr_min": 0.0, "w_momentum": 0.9, "w_weight_decay": 3e-4,
        "w_grad_clip": 5.0, "alpha_lr": "auto", "alpha_weight_decay": 1e-3, "order": 2,
        "val_portion": 0.5, "cutout_length": 0, "primitives": gt.PRIMITIVES,
    }  # fmt: skip
    assert {key: getattr(cfg, key) for key in wanted} == wanted


def test_augment_defaults_are_the_papers():
    cfg = AugmentConfig(["--genotype", "DARTS_V2"])
    wanted = {
        "epochs": 600, "batch_size": 96, "init_channels": 36, "layers": 20, "lr": 0.025,
        "momentum": 0.9, "weight_decay": 3e-4, "grad_clip": 5.0, "aux_weight": 0.4,
        "drop_path_prob": 0.2,
    }  # fmt: skip
    assert {key: getattr(cfg, key) for key in wanted} == wanted


@pytest.mark.parametrize(("config", "needed"), ALL)
def test_help_names_every_default_in_words(config, needed, capsys):
    with pytest.raises(SystemExit) as caught:
        config(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "default: None" not in text
    assert "default: False" not in text
    assert "SUPPRESS" not in text
    for name, action in flags_of(config, needed).items():
        flag = re.escape([*action.option_strings, action.metavar][0])
        assert re.search(f"{flag},? ", text), name
        if isinstance(action.value, (int, float)) and not isinstance(action.value, bool):
            assert f"(default: {action.value})" in text, name


def test_a_configuration_touches_nothing_on_disk(here):
    for config, needed in ALL:
        config(needed)
    assert os.listdir(here) == []


def test_flags_are_values_of_json():
    for config, needed in ALL:
        flags = config(needed).flags()
        assert json.loads(json.dumps(flags)) == flags


# --- defaults < --quick < --paper < inherited < said --------------------------------------------


@pytest.mark.parametrize(
    ("config", "needed", "quick"),
    [(*RUNS[0], QUICK_SEARCH), (*RUNS[1], QUICK_AUGMENT)],
)
def test_quick_sets_a_few_flags_unless_said(config, needed, quick):
    plain, cfg = config(needed), config(["--quick", *needed])
    changed = {k: v for k, v in cfg.flags().items() if v != plain.flags()[k]}
    assert changed == {**quick, "quick": True}
    assert getattr(cfg, "auto_primitives", None) is (True if config is SearchConfig else None)
    # a default that is said is said
    said = config([*needed, "--epochs", "50", "--quick", "--layers", "8"])
    assert (said.epochs, said.layers) == (50, 8)
    assert said.init_channels == quick["init_channels"]


@pytest.mark.parametrize(
    ("said", "limit"),
    [("", 2), ("--max_skips 1", 1), ("--stop_skips 3", None), ("--select perturbation", None),
     ("--primitives none,sep_conv_3x3", None), ("--primitives darts", 2)],
)  # fmt: skip
def test_the_limit_of_skips_of_quick_gives_way_to_what_is_said(said, limit):
    assert SearchConfig(["--quick", *said.split()]).max_skips == limit


def test_a_search_selected_anew_keeps_its_limit_of_skips():
    again = SearchConfig(["--name", "s", "--resume", "--select", "perturbation"])
    again.resume_from(SearchConfig(["--quick"]).flags())
    assert (again.select, again.max_skips) == ("perturbation", 2)


# the paper's, by its sec. 2.3 and 3.1.1 and App. A.1
PAPER = {
    "epochs": 50, "batch_size": 64, "init_channels": 16, "layers": 8, "n_nodes": 4, "k": 2,
    "w_lr": 0.025, "w_lr_min": 0.0, "w_momentum": 0.9, "w_weight_decay": 3e-4,
    "alpha_lr": 3e-4, "alpha_weight_decay": 1e-3, "order": 2, "hessian": "difference",
    "eps": 0.01, "reuse_gradient": False, "val_portion": 0.5, "warmup_epochs": 0,
    "beta_decay": 0.0, "partial_channels": 1, "primitives": gt.PRESETS["darts"],
}  # fmt: skip


def test_paper_sets_the_papers_values_unless_said(capsys):
    cfg = SearchConfig(["--paper", "--epochs", "3"])
    assert {name: getattr(cfg, name) for name in PAPER} == {**PAPER, "epochs": 3}
    assert {name for name, a in cfg._actions.items() if a.paper is not None} == set(PAPER)
    with pytest.raises(SystemExit):
        SearchConfig(["--paper", "--quick"])
    assert "--quick and --paper are two settings; choose one" in capsys.readouterr().err


def test_a_limit_of_skips_needs_a_choice(capsys):
    for ops in ("sep_conv_3x3,none", "skip_connect,none"):
        with pytest.raises(SystemExit):
            SearchConfig(["--max_skips", "2", "--primitives", ops])
        assert "--max_skips chooses between skip_connect and other" in capsys.readouterr().err


def test_what_was_said_is_known_from_what_was_not():
    cfg = SearchConfig(["--quick", "--epochs", "12", "--batch_size=32"])
    assert cfg.said == {"quick": True, "epochs": 12, "batch_size": 32}
    assert SearchConfig([]).said == {}
    assert set(cfg.flags()) == set(cfg._actions)


def words_for(action):
    """[(words, value)]: some ways to say a flag."""
    name = action.option_strings[0]
    if isinstance(action, argparse.BooleanOptionalAction):
        return [([name], True), ([f"--no-{name[2:]}"], False)]
    if action.nargs == 0:
        return [([name], True)]
    said = []
    for text in map(str, action.choices or ("0.01", "0.75", "3", "2", "skip_connect")):
        with contextlib.suppress(ValueError, argparse.ArgumentTypeError):
            value = action.type(text) if action.type else text
            said.append(([name, text], [value, value] if action.nargs == "+" else value))
    return said


class Search(SearchConfig):
    def check(self):
        """Any combination of flags will do here."""


class Augment(AugmentConfig):
    check = Search.check


@st.composite
def four_sources(draw):
    """(configuration, command line, what it says, flags of an earlier run)."""
    config = draw(st.sampled_from((Search, Augment)))
    ways = {
        name: words_for(action)
        for name, action in flags_of(config, []).items()
        if action.keep != "never"
    }
    names = st.sets(st.sampled_from(sorted(ways)))
    chosen = {name: draw(st.sampled_from(ways[name])) for name in draw(names)}
    words = [word for words, _ in draw(st.permutations(list(chosen.values()))) for word in words]
    inherited = {
        name: draw(st.sampled_from(ways[name]))[1] for name in draw(names) - {"quick", "paper"}
    }
    return config, words, {name: value for name, (_, value) in chosen.items()}, inherited


@settings(deadline=None, max_examples=150)
@given(four_sources())
def test_said_beats_inherited_beats_paper_beats_quick_beats_default(sources):
    config, words, said, inherited = sources
    cfg = config(words)
    assert cfg.said == said
    quick = {Search: QUICK_SEARCH, Augment: QUICK_AUGMENT}[config]
    for earlier in ({}, inherited):
        cfg.inherit({**earlier, "a flag that is gone": 1})
        for name, action in cfg._actions.items():
            wanted = action.value
            if "quick" in said and name in quick:
                wanted = quick[name]
            if "paper" in said and action.paper is not None:
                wanted = action.paper
            if name in earlier:
                wanted = earlier[name]
            if name in said:
                wanted = said[name]
            assert getattr(cfg, name) == wanted, name
        assert cfg.said == said
        assert not hasattr(cfg, "a flag that is gone")


# --- marks --------------------------------------------------------------------------------------


def group_of(config, needed, title):
    (group,) = [g for g in config(needed)._parser._action_groups if g.title == title]
    return {action.dest: action for action in group._group_actions}


def test_every_flag_says_whether_it_may_change():
    """A flag is free if what is learned does not depend on it: think twice before you add one
    here. --select reads a cell from a supernet that is finished, and --compare begins where the
    search ends, so they may be said again."""
    of_one_call = {"name", "resume", "overwrite", "new_split", "dist_timeout"}
    free = {
        "quiet", "print_freq", "checkpoint_minutes", "device", "gpus", "threads", "workers",
        "layout", "cuda_graphs", "data_path", "cache_gb", "on_nan", "ops",
    }  # fmt: skip
    for (config, needed), more, once in zip(
        RUNS,
        ({"max_madds", "select", "tune_epochs", "compare"}, set()),
        ({"seeds"}, {"space"}),
        strict=True,
    ):
        actions = flags_of(config, needed)
        assert {a.keep for a in actions.values()} == {"fixed", "free", "never"}
        assert {n for n, a in actions.items() if a.keep == "never"} == of_one_call | once
        assert {n for n, a in actions.items() if a.keep == "free"} == free | more
        # every flag but --help is one of ours
        assert {a.dest for a in config(needed)._parser._actions} - {"help"} == set(actions)


def test_every_flag_says_whether_a_training_inherits_it():
    for config, needed in RUNS:
        actions = flags_of(config, needed)
        assert {a.inherit for a in actions.values()} == {None, "network", "images"}
        # whatever says what the images are; a portion of them, and cutout, each run chooses itself
        data = group_of(config, needed, "data")
        own = {name for name, action in data.items() if action.inherit != "images"}
        assert own == {"subset", "cutout_length"}
        of_images = {n for n, a in actions.items() if a.inherit == "images"}
        assert of_images == set(data) - own | {"label_smoothing", "class_weights"}
    search, training = (flags_of(*run) for run in RUNS)
    network = {name for name, action in training.items() if action.inherit == "network"}
    assert network == {
        "genotype", "init_channels", "layers", "stem", "stem_multiplier", "aux_weight",
        "ops",
    }  # fmt: skip
    # a supernet is smaller than what is trained, but has the same stem
    assert {n for n, a in search.items() if a.inherit == "network"} == {
        "stem",
        "stem_multiplier",
        "ops",
    }
    for name in set(search) & set(training) - {"init_channels", "layers"}:
        assert search[name].inherit == training[name].inherit, name
        assert search[name].keep == training[name].keep, name


@pytest.mark.parametrize(("config", "needed"), RUNS)
def test_resuming_refuses_another_value_of_a_fixed_flag_and_takes_a_free_one(config, needed, here):
    saved = config(needed).flags()
    resume = ["--name", "x", "--resume"]
    plain = config(resume)
    plain.resume_from(saved)
    assert plain.flags() == {**saved, "name": "x", "resume": True}

    def resumed(words):
        cfg = config([*resume, *words])
        cfg.resume_from(saved)
        return cfg

    for name, action in flags_of(config, needed).items():
        if action.keep == "never":
            continue
        words, value = next(way for way in words_for(action) if way[1] != saved[name])
        if action.keep == "free":
            words = [*words, *(["--select", "perturbation"] if name == "tune_epochs" else [])]
            assert getattr(resumed(words), name) == value
            continue
        text = ends_in_one_line(resumed, words)
        assert f"--{name} was {saved[name]} in that run and cannot change now" in text
        if action.nargs is None and saved[name] is not None:  # saying what was is no change
            text = ",".join(saved[name]) if name == "primitives" else str(saved[name])
            assert getattr(resumed([action.option_strings[0], text]), name) == saved[name]


def test_a_resumed_run_has_the_flags_that_were_saved():
    saved = SearchConfig(["--name", "y", "--quick", "--alpha_lr", "0.01", "--overwrite"]).flags()
    cfg = SearchConfig(["--name", "x", "--resume", "--workers", "1"])
    cfg.resume_from({**saved, "a flag that is gone": 1})
    assert (cfg.alpha_lr, cfg.epochs, cfg.workers) == (0.01, QUICK_SEARCH["epochs"], 1)
    # these belong to one call
    assert (cfg.name, cfg.resume, cfg.overwrite) == ("x", True, False)


# --- forms of a flag ----------------------------------------------------------------------------


def test_primitives_by_list_and_by_preset():
    assert SearchConfig(["--primitives", "efficient"]).primitives == gt.PRESETS["efficient"]
    assert SearchConfig(["--primitives", "none, skip_connect"]).primitives == [
        "none", "skip_connect",
    ]  # fmt: skip


def test_one_input_size_is_a_square():
    assert SearchConfig(["--input_size", "32"]).input_size == [32, 32]
    assert SearchConfig(["--input_size", "1", "4"]).input_size == [1, 4]
    assert SearchConfig(["--input_size", "32", "48"]).input_size == [32, 48]
    assert "--input_size takes H and W" in ends_in_one_line(
        SearchConfig, ["--input_size", "1", "2", "3"]
    )


def test_a_folder_as_data_set_is_a_data_path(here):
    (here / "pets").mkdir()
    (here / "others").mkdir()
    cfg = SearchConfig(["--dataset", "pets"])
    assert (cfg.dataset, cfg.data_path) == ("folder", str(here / "pets"))
    assert SearchConfig(["--dataset", "pets", "--data_path", "pets"]).dataset == "folder"
    text = ends_in_one_line(SearchConfig, ["--dataset", "pets", "--data_path", "others"])
    assert "give one of them" in text
    # images may be moved, also when the name of their folder is said again
    saved = cfg.flags()
    moved = SearchConfig(["--name", "x", "--resume", "--dataset", "others"])
    moved.resume_from(saved)
    assert moved.data_path == str(here / "others")
    # a data set by name is no folder, even if there is one of its name
    (here / "digits").mkdir()
    assert SearchConfig(["--dataset", "digits"]).dataset == "digits"


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "--epochs 0", "--epochs 1.5", "--epochs many", "--batch_size 1", "--w_lr 0", "--w_lr nan",
        "--w_lr inf", "--w_lr -1", "--w_momentum 1", "--val_portion 1", "--val_portion 0",
        "--order 3", "--layers 0", "--n_nodes 0", "--seed -1", "--workers -1", "--cutout_length -1",
        "--name a/b", "--name ..", "--name .", "--device tpu", "--epoch 3", "--w_lr_min 0.1",
        "--resume", "--name a --resume --overwrite", "--print_freq 0", "--primitives skip_connect,",
        "--subset 0", "--subset 1.1", "--cache_gb -1", "--input_size 0", "--k 6",
    ],
)  # fmt: skip
def test_wrong_flags_end_in_one_line_with_exit_code_2(words, here):
    text = ends_in_one_line(SearchConfig, words.split())
    assert text.startswith("search.py: ")
    assert words.split()[0].lstrip("-") in text or "--resume" in words


@pytest.mark.parametrize(
    ("config", "words", "message"),
    [
        (AugmentConfig, "", "--genotype is needed"),
        (AugmentConfig, "--resume --genotype PDARTS", "--resume needs --name"),
        (EvaluateConfig, "", "the following arguments are required: RUN"),
        (EvaluateConfig, "x --lr 1", "unrecognized arguments: --lr 1"),
        (EvaluateConfig, "x --seed 1", "unrecognized arguments: --seed 1"),
        (EvaluateConfig, "x --genotype PDARTS", "unrecognized arguments: --genotype"),
        (PredictConfig, "", "required: PATH, --from"),
        (PredictConfig, "x.png", "required: --from"),
        (PredictConfig, "--from x", "required: PATH"),
        (PredictConfig, "x.png --from x --workers 1", "unrecognized arguments: --workers 1"),
        (SearchConfig, "--input_size 1 1", "--input_size 1 1: one pixel is no image"),
        (AugmentConfig, "--genotype PDARTS --input_size 1", "--input_size 1 1: one pixel"),
        (ExportConfig, "", "required: RUN"),
        (ExportConfig, "x --format tflite", "argument --format: invalid choice: 'tflite'"),
        (ExportConfig, "x --device cpu", "unrecognized arguments: --device cpu"),
        (ExportConfig, "x --out no/x", "'no/x': there is no folder no"),
        (PredictConfig, "x.png --from x --out .", "'.' is no file; name one"),
    ],
)
def test_a_command_says_what_it_needs_and_what_it_does_not_take(config, words, message, here):
    text = ends_in_one_line(config, words.split())
    assert text.startswith(f"{config.PROG}: ")
    assert message in text


def test_out_is_a_file_in_a_folder_that_exists(here):
    (here / "there").mkdir()
    for out in ("a.csv", "there/a.csv", str(here / "there" / "b")):
        assert ExportConfig(["x", "--out", out]).out == out
    for out, why in (
        ("", "'' is empty"),
        ("there", "'there' is no file; name one"),
        ("there/", "'there/' is no file; name one"),
        ("nothere/a.csv", "'nothere/a.csv': there is no folder nothere"),
    ):
        assert f"argument --out: {why}" in ends_in_one_line(ExportConfig, ["x", "--out", out])


@pytest.mark.parametrize(
    ("word", "near"), [("--quikc", "--quick"), ("--batch-size", "--batch_size")]
)
def test_a_misspelt_flag_is_put_right(word, near, here):
    assert f"did you mean {near}?" in ends_in_one_line(SearchConfig, [word])


def test_no_flag_may_be_shortened(here):
    assert "unrecognized arguments: --epoch 3; did you mean --epochs?" in ends_in_one_line(
        SearchConfig, ["--epoch", "3"]
    )


def test_help_goes_to_the_terminal_and_not_to_stderr():
    with contextlib.redirect_stderr(io.StringIO()) as err, pytest.raises(SystemExit):
        SearchConfig(["--help"])
    assert err.getvalue() == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--order 1 --eps 0.1", "--eps belongs to the second order"),
        ("--order 1 --hessian none", "--hessian belongs to the second order"),
        ("--order 1 --no-reuse_gradient", "--reuse_gradient belongs to the second order"),
        ("--hessian none --eps 0.1", "--eps belongs to a difference; --hessian none takes none"),
        ("--hessian exact --compile", "--hessian exact goes backward twice, which --compile"),
        ("--hessian exact --checkpoint_cells", "backward twice, which --checkpoint_cells cannot"),
        ("--hessian central", "invalid choice: 'central'"),
        ("--eps 0", "'0' is not a number above 0"),
    ],
)
def test_flags_of_alphas_gradient_that_do_nothing_are_refused(capsys, words, message):
    with pytest.raises(SystemExit):
        SearchConfig(words.split())
    assert message in capsys.readouterr().err


def test_the_papers_gradient_is_one_flag_each_away():
    cfg = SearchConfig(["--hessian", "difference", "--eps", "0.01", "--no-reuse_gradient"])
    assert (cfg.hessian, cfg.eps, cfg.reuse_gradient) == ("difference", 0.01, False)


def test_the_linear_rule_for_learning_rates_goes_by_the_default_batch():
    def factor(text, Config=SearchConfig):
        return Config(text.split()).lr_factor

    assert factor("--batch_size 256") == 1
    assert factor("--batch_size 256 --scale_lr") == 4
    assert factor("--batch_size 64 --scale_lr --quick") == 2  # whose batch is 32
    assert factor("--batch_size 32 --scale_lr --paper") == 0.5
    assert factor("--genotype PDARTS --batch_size 48 --scale_lr", AugmentConfig) == 0.5
    assert Strategies(SearchConfig(["--alpha_lr", "3e-4"]), 10).alpha_lr == 3e-4
    words = ["--alpha_lr", "3e-4", "--batch_size", "128", "--scale_lr"]
    assert Strategies(SearchConfig(words), 10).alpha_lr == 6e-4
    auto = Strategies(SearchConfig(words[2:]), 10).alpha_lr  # by the steps already
    assert auto == Strategies(SearchConfig([]), 10).alpha_lr


@pytest.mark.parametrize("Config", [SearchConfig, AugmentConfig])
def test_a_saved_flag_that_no_command_line_gives_is_refused(Config, capsys):
    words = ["--name", "x", "--resume"]
    saved = Config(words).flags()
    Config(words).resume_from(saved)
    said = ["--input_size", "8", "9", "--hflip", "--subset", "0.5", "--quick", "--name", "x"]
    said += ["--genotype", "PDARTS"] if Config is AugmentConfig else ["--primitives", "none,a"]
    Config(words).resume_from(Config(said).flags())
    any_text = {"genotype", "init_from", "data_path", "dataset", "gpus", "ops"}
    of_one_call = {"name", "resume", "overwrite", "new_split", "seeds", "space", "dist_timeout"}
    for name in saved.keys() - of_one_call:
        for value in ({}, [None], [[1]], -3.5, float("nan"), True, "\n"):
            if name in any_text and value == "\n":
                continue
            if isinstance(saved[name], bool) and value is True or (name, value) == ("hflip", True):
                continue
            with pytest.raises(SystemExit):
                Config(words).resume_from({**saved, name: value})
            text = capsys.readouterr().err
            assert f"the checkpoint says --{name} " in text
            assert text.count("\n") == 1


def test_what_goes_together_is_checked_behind_the_flags_of_the_run_that_goes_on():
    saved = SearchConfig(["--n_nodes", "6", "--k", "6", "--w_lr", "0.1", "--w_lr_min", "0.05"])
    cfg = SearchConfig(["--name", "x", "--resume", "--k", "6", "--w_lr_min", "0.05"])
    cfg.resume_from(saved.flags())
    assert (cfg.n_nodes, cfg.w_lr) == (6, 0.1)


def test_a_flag_that_an_old_run_did_not_know_binds_by_its_default(capsys):
    saved = SearchConfig([]).flags()
    del saved["hessian"]
    SearchConfig(["--name", "x", "--resume", "--hessian", "forward"]).resume_from(saved)
    with pytest.raises(SystemExit):
        SearchConfig(["--name", "x", "--resume", "--hessian", "none"]).resume_from(saved)
    assert "--hessian was forward in that run" in capsys.readouterr().err


def test_an_empty_default_is_not_said():
    parser = Parser("x.py")
    parser.add_argument("--a", default="", help="words")
    parser.add_argument("--b", default=0, help="a number")
    text = parser.format_help()
    assert "words\n" in text
    assert "a number (default: 0)" in text
