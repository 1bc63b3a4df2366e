"""What a training inherits: from the search of its cell, or from the training it starts from."""

import json
import os
from pathlib import Path

import pytest
import torch
from conftest import (
    FAST_AUGMENT,
    FAST_SEARCH,
    checkpoint_of,
    ends_in_one_line,
    log_of,
    run_in,
    scores,
)

import augment
import genotypes as gt
import search
import utils
from config import AugmentConfig, SearchConfig
from data_sets import named
from models import augment_cnn
from tracking import checkpoint, inherit, search_log, trained_network


@pytest.fixture
def there(finished_augment, monkeypatch):
    """The folder that holds augments/a is the current one."""
    monkeypatch.chdir(finished_augment[0])
    return finished_augment[0]


def write_search(folder, *words):
    """What a search with these words leaves for a training."""
    folder.mkdir(parents=True)
    cfg = SearchConfig(list(words))
    space = {"primitives": cfg.primitives, "n_nodes": cfg.n_nodes, "k": cfg.k}
    text = gt.to_json(gt.DARTS_V1, **space, flags=search_log.flags_to_inherit(cfg))
    (folder / "genotype.json").write_text(text)


def write_training(path, *words):
    """What a training with these words leaves for another."""
    path.parent.mkdir(parents=True)
    cfg = AugmentConfig(["--genotype", "PDARTS", *words])
    progress = {"epoch": 1, "top1": 0.5, "genotype": gt.to_str(gt.DARTS_V1)}
    state = {"model": {}, "optim": {}, "scheduler": {}, "rng": {}, "images": {}}
    state |= {"inside": None, "stopped": None, "chosen": None, "train_loader": {}, "rng_others": []}
    state |= {"flags": cfg.flags(), "data": named.spec("digits").to_dict(), "best": progress}
    checkpoint.save({**state, **progress}, str(path))


def inherited(*words):
    """(the configuration of augment.py, what it has inherited in words)."""
    cfg = AugmentConfig(list(words))
    return cfg, inherit.inherit_flags(cfg)


def flags_of_run(name):
    return json.loads(Path(name, "config.json").read_text())["flags"]


# --- from a search ------------------------------------------------------------------------------


def test_a_training_inherits_the_images_and_the_stem_of_its_search(here):
    images = "--dataset svhn --data_path there --label_smoothing 0.1 --no-hflip --cache_gb 0.5"
    own = "--cutout_length 3 --subset 0.5 --seed 7 --layers 5 --init_channels 6 --epochs 9"
    write_search(here / "s", *images.split(), *own.split(), "--stem_multiplier", "2")
    wanted = {
        "dataset": "svhn", "data_path": "there", "label_smoothing": 0.1, "hflip": False,
        "cache_gb": 0.5, "stem_multiplier": 2,
    }  # fmt: skip
    for source in ("s", "s/genotype.json"):
        plain = AugmentConfig(["--genotype", source]).flags()
        cfg, said = inherited("--genotype", source)
        assert {k: v for k, v in cfg.flags().items() if v != plain[k]} == wanted
        assert said.startswith(f"inherited from {source}: ")
        assert set(said.split(": ", 1)[1].split(", ")) == {f"{k} {v}" for k, v in wanted.items()}


def test_what_is_said_beats_what_is_inherited(here):
    write_search(here / "s", "--dataset", "svhn", "--data_path", "there", "--hflip")
    cfg, said = inherited("--genotype", "s", "--data_path", "here", "--no-hflip", "--quick")
    assert (cfg.dataset, cfg.data_path, cfg.hflip, cfg.layers) == ("svhn", "here", False, 5)
    assert said == "inherited from s: dataset svhn"


def test_nothing_holds_of_another_data_set_but_the_stem(here):
    write_search(
        here / "s", "--dataset", "svhn", "--data_path", "there", "--in_channels", "1",
        "--label_smoothing", "0.1", "--stem_multiplier", "2",
    )  # fmt: skip
    cfg, said = inherited("--genotype", "s", "--dataset", "digits")
    assert (cfg.dataset, cfg.data_path, cfg.in_channels) == ("digits", "./data/", None)
    assert (cfg.label_smoothing, cfg.stem_multiplier) == (0.0, 2)
    assert said == "inherited from s: stem_multiplier 2"
    # the same one, said again, is no other
    cfg, _ = inherited("--genotype", "s", "--dataset", "svhn")
    assert (cfg.data_path, cfg.in_channels) == ("there", 1)


def test_a_folder_is_another_data_set_by_its_path_and_moved_by_data_path_alone(here):
    for name in ("pets", "others"):
        (here / name).mkdir()
    write_search(here / "s", "--dataset", "pets", "--input_size", "16")
    for words, path, size in (
        ([], "pets", [16, 16]),
        (["--dataset", "pets"], "pets", [16, 16]),
        (["--data_path", "others"], "others", [16, 16]),
        (["--dataset", "others"], "others", None),
        (["--dataset", "digits"], None, None),
    ):
        cfg, said = inherited("--genotype", "s", *words)
        assert bool(said) == bool(size), words
        wanted = "./data/" if path is None else str(here / path)
        assert (cfg.dataset, cfg.data_path) == ("folder" if path else "digits", wanted), words
        assert cfg.input_size == size, words


def test_a_cell_without_a_search_has_nothing_to_inherit(here):
    Path("plain.json").write_text(gt.to_json(gt.DARTS_V1))
    Path("odd.json").write_text(gt.to_json(gt.DARTS_V1, flags=["dataset"]))
    for source in ("PDARTS", gt.to_str(gt.DARTS_V1), "plain.json", "odd.json", "nothing"):
        plain = AugmentConfig(["--genotype", source]).flags()
        cfg, said = inherited("--genotype", source)
        assert cfg.flags() == plain
        assert said == ""


def test_what_a_file_says_beside_its_genotype(tmp_path):
    path = tmp_path / "g.json"
    path.write_text(gt.to_json(gt.DARTS_V1, k=2, flags={"dataset": "x"}))
    assert gt.metadata(path) == {"k": 2, "flags": {"dataset": "x"}}
    path.write_text("[1]")
    for source in (path, tmp_path, "DARTS_V1", gt.to_str(gt.DARTS_V1), "nothing"):
        assert gt.metadata(source) == {}


def test_a_network_is_built_from_flags_that_are_inherited_and_nothing_else():
    """Else --init_from could not build the network whose weights it copies."""
    cfg, read = AugmentConfig(["--genotype", "PDARTS", "--quick"]), set()

    class Recorder:
        def __getattr__(self, name):
            read.add(name)
            return getattr(cfg, name)

    augment_cnn.build(named.spec("digits"), Recorder(), gt.PDARTS)
    assert read | {"genotype", "ops"} == set(cfg.marked(cfg.flags(), inherit="network"))


def test_from_a_search_to_a_training_of_its_cell(here):
    words = ["--in_channels", "3", "--label_smoothing", "0.1", "--stem_multiplier", "2"]
    search.main([*FAST_SEARCH, *words, "--name", "s"])
    out = run_in(here, augment.main, [*FAST_AUGMENT, "--genotype", "searchs/s"])
    (line,) = [line for line in out.splitlines() if line.startswith("inherited from")]
    said = line.removeprefix("inherited from searchs/s: ").split(", ")
    assert sorted(said) == [
        "dataset digits", "in_channels 3", "label_smoothing 0.1", "stem_multiplier 2",
    ]  # fmt: skip
    assert line in log_of("augments/s")
    flags = flags_of_run("augments/s")
    assert (flags["in_channels"], flags["label_smoothing"]) == (3, 0.1)
    assert checkpoint_of("augments/s")["model"]["stem.0.weight"].shape == (4, 3, 3, 3)
    # and on other images
    run_in(here, augment.main, [*FAST_AUGMENT, "--genotype", "searchs/s", "--dataset", "digits"])
    assert sorted(os.listdir("augments")) == ["s", "s-2"]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("--genotype s", "s"),
        ("--genotype s/", "s"),
        ("--genotype s/genotype.json", "svhn"),
        ("--genotype s --dataset digits", "s-on-digits"),
        ("--genotype s --dataset svhn", "s"),
        ("--genotype s --dataset pets", "s-on-pets"),
        ("--genotype PDARTS", "PDARTS"),
        ("--genotype PDARTS --dataset pets", "PDARTS"),
        ("--init_from a.pt", "svhn"),
    ],
)
def test_a_training_is_called_after_its_search_cell_or_images(here, words, name):
    (here / "pets").mkdir()
    write_search(here / "s", "--dataset", "svhn")
    write_training(here / "t" / "a.pt", "--dataset", "svhn")
    os.rename("t/a.pt", "a.pt")
    cfg, _ = inherited(*words.split())
    assert inherit.default_run_name(cfg) == name


# --- --init_from --------------------------------------------------------------------------------


def test_init_from_inherits_the_cell_the_network_and_the_images(here):
    network = "--layers 5 --init_channels 6 --aux_weight 0 --stem imagenet --stem_multiplier 2"
    images = "--dataset svhn --data_path there --in_channels 1"
    own = "--lr 0.5 --epochs 3 --seed 9 --batch_size 8 --drop_path_prob 0.4 --cutout_length 2"
    write_training(here / "a" / "checkpoint.pt", *f"{network} {images} {own}".split())
    plain = AugmentConfig(["--init_from", "a"]).flags()
    cfg, said = inherited("--init_from", "a")
    changed = {k: v for k, v in cfg.flags().items() if v != plain[k]}
    wanted = {
        "layers": 5, "init_channels": 6, "aux_weight": 0.0, "stem": "imagenet",
        "stem_multiplier": 2, "dataset": "svhn", "data_path": "there", "in_channels": 1,
    }  # fmt: skip
    assert changed == {**wanted, "genotype": gt.to_str(gt.DARTS_V1)}
    assert said.startswith("inherited from a: ")
    assert set(said.removeprefix("inherited from a: ").split(", ")) == {
        f"{name} {value}" for name, value in wanted.items()
    }
    # another cell, other images, another size; the rest is still that of the network
    words = ["--genotype", "DARTS_V2", "--dataset", "digits", "--layers", "4", "--quick"]
    cfg, _ = inherited("--init_from", "a", *words)
    assert (cfg.genotype, cfg.dataset, cfg.data_path) == ("DARTS_V2", "digits", "./data/")
    assert (cfg.layers, cfg.init_channels, cfg.stem, cfg.in_channels) == (4, 6, "imagenet", None)


def test_init_from_copies_the_weights_and_counts_the_network_once(here, there, monkeypatch):
    source, calls, count = there / "augments" / "a", [], utils.multiply_adds
    monkeypatch.setattr(utils, "multiply_adds", lambda *args: calls.append(1) or count(*args))
    monkeypatch.chdir(here)
    words = "--epochs 1 --lr 1e-9 --batch_size 700 --weight_decay 0 --seed 5 --name b"
    out = run_in(here, augment.main, ["--init_from", str(source), *words.split()])
    old, new = checkpoint_of(source), checkpoint_of("augments/b")
    assert new["genotype"] == old["genotype"]
    for flag in ("layers", "init_channels", "aux_weight"):
        assert new["flags"][flag] == old["flags"][flag]
    total = len(old["model"])
    assert f"copied {total} of {total} tensors from {source}/checkpoint.pt\n" in out
    for name, tensor in old["model"].items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(new["model"][name], tensor, rtol=1e-4, atol=1e-6)
    assert len(calls) == 1


def test_init_from_with_other_classes_and_channels(here, there, monkeypatch):
    state = checkpoint_of("augments/a", "best.pt")
    state["model"]["linear.weight"] = torch.zeros(7, 32)
    state["model"]["linear.bias"] = torch.zeros(7)
    state["model"]["stem.0.weight"] = torch.zeros(6, 3, 3, 3)
    del state["model"]["aux_head.linear.weight"]
    monkeypatch.chdir(here)
    torch.save(state, "other.pt")
    out = run_in(here, augment.main, ["--init_from", "other.pt", *FAST_AUGMENT, "--name", "b"])
    total = len(state["model"]) + 1
    assert (
        f"copied {total - 4} of {total} tensors from other.pt; not, and so new: stem.0.weight, "
        f"aux_head.linear.weight, linear.weight, linear.bias\n" in out
    )
    # a resumed run goes on from its own weights, with or without the file it started from
    os.remove("other.pt")
    state = checkpoint_of("augments/b")
    state["flags"]["epochs"] = 2
    torch.save(state, "augments/b/checkpoint.pt")
    out = run_in(here, augment.main, ["--name", "b", "--resume"])
    assert "copied" not in out
    assert "inherited" not in out
    assert len(scores("augments/b")) == 2


def test_tensors_that_do_not_fit_are_named_four_at_most():
    net = torch.nn.ModuleList([torch.nn.Linear(2, 2, bias=i == 0) for i in range(7)])
    fits = {"0.bias": torch.full((2,), 7.0), "1.weight": torch.zeros(3, 2), "gone": torch.ones(1)}
    before = net[1].weight.clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained_network, "read", lambda path: {"model": fits})
        said = trained_network.init_from(net, "a.pt")
    assert said == (
        "copied 1 of 8 tensors from a.pt; not, and so new: 0.weight, 1.weight, 2.weight, 3.weight "
        "and 3 more"
    )
    assert net[0].bias.tolist() == [7, 7]
    assert torch.equal(net[1].weight, before)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--init_from searchs/s", "searchs/s/checkpoint.pt is the supernet of a search"),
        ("--init_from nothere", "there is no file or folder nothere"),
        ("--init_from augments", "there is no file or folder augments/checkpoint.pt"),
        ("--init_from augments/a/config.json", "augments/a/config.json is damaged"),
    ],
)
def test_what_init_from_refuses(there, words, message):
    text = ends_in_one_line(augment.main, [*words.split(), "--name", "x"])
    assert f"augment.py: {message}" in text


@pytest.mark.parametrize(
    ("flag", "source"),
    [
        ("--init_from", "augments/a"),
        ("--init_from", "augments/../augments/a/best.pt"),
        ("--genotype", "augments/a"),
        ("--genotype", "augments/a/genotype.json"),
    ],
)
def test_a_run_is_not_overwritten_by_one_that_starts_from_it(there, flag, source):
    words = [flag, source, "--name", "a", "--overwrite"]
    text = ends_in_one_line(augment.main, words)
    assert f"--overwrite would remove augments/a, which {flag} starts from; choose another" in text


def test_a_network_that_shares_no_tensor_is_refused(there, here):
    state = checkpoint_of(there / "augments" / "a")
    state["model"] = {f"other.{name}": value for name, value in state["model"].items()}
    torch.save(state, "other.pt")
    text = ends_in_one_line(augment.main, ["--init_from", "other.pt", "--name", "x"])
    assert "--init_from other.pt: no tensor agrees in name and shape; other network?" in text


@pytest.mark.parametrize(
    ("name", "value"), [("stem_multiplier", "two"), ("input_size", "big"), ("data_path", 3)]
)
def test_a_search_that_left_values_no_flag_can_have_is_refused(here, name, value, capsys):
    flags = {**search_log.flags_to_inherit(SearchConfig([])), name: value}
    (here / "g.json").write_text(gt.to_json(gt.DARTS_V1, flags=flags))
    with pytest.raises(SystemExit) as caught:
        inherited("--genotype", "g.json")
    assert caught.value.code == 2
    assert f"g.json says --{name} {value!r}" in capsys.readouterr().err


# --- random cells ---------------------------------------------------------------------------------


def test_a_random_cell_is_one_that_its_search_could_have_found(here):
    space = ["--n_nodes", "3", "--k", "1", "--primitives", "skip_connect,sep_conv_3x3,none"]
    write_search(here / "s", "--dataset", "svhn", "--stem_multiplier", "2", *space)
    found = set()
    for seed in range(6):
        cfg, said = inherited("--genotype", f"random:{seed}", "--space", "s")
        assert (cfg.dataset, cfg.stem_multiplier) == ("svhn", 2)
        assert said.startswith("inherited from s: ")
        genotype = inherit.genotype_of(cfg)
        assert [len(edges) for edges in genotype.normal] == [1, 1, 1]
        assert set(gt.ops_of(genotype)) <= {"skip_connect", "sep_conv_3x3"}
        assert genotype == inherit.genotype_of(cfg)
        found.add(gt.to_str(genotype))
        assert inherit.default_run_name(cfg) == f"random-{seed}-as-s"
    assert len(found) == 6


def test_a_random_cell_without_a_search_is_of_primitives():
    cfg, said = inherited("--genotype", "random", "--seed", "5")
    assert said == ""
    assert inherit.genotype_of(cfg) == gt.random_genotype(5) == gt.load("random:5")
    assert inherit.default_run_name(cfg) == "random-5"


@pytest.mark.parametrize(
    ("words", "fault"),
    [("--genotype random:x", "a random cell is random or random:SEED"),
     ("--genotype random:1 --space nothere", "--space nothere is no search"),
     ("--genotype DARTS_V2 --space s", "--space belongs to --genotype random")],
)  # fmt: skip
def test_what_is_no_random_cell_ends_in_one_line(here, words, fault):
    assert fault in ends_in_one_line(augment.main, words.split())


def test_ops_that_are_none_draw_nothing():
    with pytest.raises(ValueError, match="no op besides none"):
        gt.draw("random", 1, {"primitives": ["none"]})
