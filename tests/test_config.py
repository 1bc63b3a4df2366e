"""The command lines: defaults, --quick, what is refused and how."""

import os

import pytest

import genotypes as gt
from config import QUICK_AUGMENT, QUICK_SEARCH, AugmentConfig, SearchConfig


def test_search_defaults_are_the_papers():
    cfg = SearchConfig([])
    wanted = {
        "epochs": 50, "batch_size": 64, "init_channels": 16, "layers": 8, "n_nodes": 4,
        "w_lr": 0.025, "w_lr_min": 0.0, "w_momentum": 0.9, "w_weight_decay": 3e-4,
        "w_grad_clip": 5.0, "alpha_lr": 3e-4, "alpha_weight_decay": 1e-3, "order": 2,
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


@pytest.mark.parametrize(
    ("config", "words", "quick"),
    [(SearchConfig, [], QUICK_SEARCH), (AugmentConfig, ["--genotype", "PDARTS"], QUICK_AUGMENT)],
)
def test_quick_sets_five_flags_unless_given(config, words, quick):
    assert set(quick) == {"layers", "init_channels", "batch_size", "epochs", "threads"}
    plain, cfg = config(words), config(["--quick", *words])
    changed = {k: v for k, v in cfg.flags().items() if v != plain.flags()[k]}
    assert changed == {**quick, "quick": True}
    given = config([*words, "--epochs", "50", "--quick", "--layers", "8"])
    assert (given.epochs, given.layers) == (50, 8)
    assert given.init_channels == quick["init_channels"]


def test_primitives_by_list_and_by_preset():
    assert SearchConfig(["--primitives", "efficient"]).primitives == gt.PRESETS["efficient"]
    assert SearchConfig(["--primitives", "none, skip_connect"]).primitives == [
        "none", "skip_connect",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        "--epochs 0", "--epochs 1.5", "--epochs many", "--batch_size 1", "--w_lr 0", "--w_lr nan",
        "--w_lr inf", "--w_lr -1", "--w_momentum 1", "--val_portion 1", "--val_portion 0",
        "--order 3", "--layers 0", "--n_nodes 0", "--seed -1", "--workers -1", "--cutout_length -1",
        "--name a/b", "--name ..", "--name .", "--device tpu", "--epoch 3", "--w_lr_min 0.1",
        "--resume", "--name a --resume --overwrite", "--print_freq 0", "--primitives skip_connect,",
    ],
)  # fmt: skip
def test_wrong_flags_end_in_one_line_with_exit_code_2(words, capsys):
    with pytest.raises(SystemExit) as caught:
        SearchConfig(words.split())
    assert caught.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("search.py: ")
    assert text.count("\n") == 1
    assert words.split()[0].lstrip("-") in text or "--resume" in words


@pytest.mark.parametrize(
    "words", [[], ["--evaluate", "x", "--resume", "--name", "x"], ["--evaluate", "x", "--lr", "1"]]
)
def test_augment_says_what_it_needs(words, capsys):
    with pytest.raises(SystemExit) as caught:
        AugmentConfig(words)
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_names_every_default_in_words(capsys):
    for config in (SearchConfig, AugmentConfig):
        with pytest.raises(SystemExit) as caught:
            config(["--help"])
        assert caught.value.code == 0
        text = capsys.readouterr().out
        assert "default: None" not in text
        assert "default: False" not in text
        assert "(default: 0.025)" in text


def test_saved_flags_take_the_place_of_defaults_and_bind(capsys):
    saved = SearchConfig(["--name", "x", "--quick", "--alpha_lr", "0.01"]).flags()
    cfg = SearchConfig(["--name", "x", "--resume", "--workers", "1"], saved)
    assert cfg.alpha_lr == 0.01
    assert cfg.epochs == QUICK_SEARCH["epochs"]
    assert cfg.resume
    assert cfg.workers == 1
    with pytest.raises(SystemExit):
        SearchConfig(["--name", "x", "--resume", "--layers", "9"], saved)
    assert "--layers was 4 in that run and cannot change now" in capsys.readouterr().err


def test_a_configuration_touches_nothing_on_disk(here):
    SearchConfig(["--name", "x"])
    AugmentConfig(["--genotype", "searchs/x", "--name", "x"])
    assert os.listdir(".") == []


def test_what_was_given_is_known_from_what_was_not(here):
    cfg = SearchConfig(["--quick", "--epochs", "12", "--batch_size=32"])
    assert cfg.given() == {"quick", "epochs", "batch_size"}
    assert "batch_size" not in SearchConfig(["--quick"]).given()
    assert "_argv" not in cfg.flags()


@pytest.mark.parametrize(
    ("word", "near"), [("--quikc", "--quick"), ("--batch-size", "--batch_size")]
)
def test_a_misspelt_flag_is_put_right(word, near, capsys):
    with pytest.raises(SystemExit):
        SearchConfig([word])
    assert f"did you mean {near}?" in capsys.readouterr().err


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
    cfg = SearchConfig(["--eps", "0.01", "--no-reuse_gradient"])
    assert (cfg.hessian, cfg.eps, cfg.reuse_gradient) == ("difference", 0.01, False)
