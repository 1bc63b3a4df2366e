"""Data sets by name: the table, the ones that torchvision names otherwise, other sizes."""

import importlib.util

import numpy as np
import pytest
import torch
from conftest import FAST_AUGMENT, FAST_SEARCH
from PIL import Image
from torchvision import datasets
from torchvision.transforms import v2

import augment
import config
import search
import utils
from data_sets import loaders, named, transforms


class Stub:
    """Stands for CIFAR-100: five images of every class, in order."""

    def __init__(self, root, train, download):
        rng = np.random.default_rng(0 if train else 1)
        self.targets = [y for y in range(100) for _ in range(5)]
        self.images = rng.integers(0, 256, (500, 32, 32, 3), dtype=np.uint8)

    def __len__(self):
        return 500

    def __getitem__(self, index):
        return Image.fromarray(self.images[index]), self.targets[index]


def test_the_flag_names_what_there_is():
    assert (*named.SPECS, *named.FOLDERS) == config.DATA_SETS


def test_names_of_classes_are_torchvisions():
    assert named.SPECS["kmnist"].classes == tuple(datasets.KMNIST.classes)
    balanced = datasets.EMNIST.classes_split_dict["balanced"]
    assert named.SPECS["emnist"].classes == tuple(balanced)
    fashion = tuple(datasets.FashionMNIST.classes)
    assert named.SPECS["fashionmnist"].classes == fashion
    assert list(named.SPECS["cifar100"].classes) == sorted(named.SPECS["cifar100"].classes)


def test_a_hundred_classes_through_both_programs(here, monkeypatch):
    monkeypatch.setitem(named._TORCHVISION, "cifar100", (Stub, "f"))
    words = ["--dataset", "cifar100", "--workers", "0", "--input_size", "8", "--epochs", "1"]
    search.main([*FAST_SEARCH, *words, "--batch_size", "200", "--name", "s"])
    augment.main([*FAST_AUGMENT, *words, "--batch_size", "500", "--genotype", "searchs/s"])
    for path in ("searchs/s", "augments/s"):
        state = torch.load(f"{path}/checkpoint.pt", weights_only=True)
        heads = [v for k, v in state["model"].items() if k.endswith("linear.weight")]
        assert heads
        assert all(head.shape[0] == 100 for head in heads)
        assert state["data"]["size"] == [8, 8]


def test_svhn_needs_scipy_and_says_so(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install scipy"):
        named.load_split("svhn", "unused", True)


def test_svhn_and_emnist_are_opened_as_torchvision_wants(monkeypatch):
    calls = []

    class Fake:
        def __init__(self, *args, **kwargs):
            calls.append((args, kwargs))
            self.labels = np.array([3, 1])

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(datasets, "SVHN", Fake)
    monkeypatch.setattr(datasets, "EMNIST", Fake)
    for train, split in ((True, "train"), (False, "test")):
        assert named.load_split("svhn", "d", train).targets == [3, 1]
        assert calls.pop() == (("d", split), {"download": True})
        named.load_split("emnist", "d", train)
        args, kwargs = calls.pop()
        assert args == ("d", "balanced")
        assert (kwargs["train"], kwargs["download"]) == (train, True)
        image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
        assert np.array_equal(np.asarray(kwargs["transform"](image)), np.asarray(image).T)


@pytest.mark.parametrize("size", [[6], [30, 20]])
def test_digits_at_another_size_and_in_colour(size):
    H, W = size[0], size[-1]
    options = named.Options(in_channels=3, input_size=[H, W])
    data = loaders.augment_data("digits", "", 64, options=options)
    assert data.spec.size == (H, W)
    for loader in (data.train, data.held):
        X, _ = next(iter(loader))
        assert X.shape == (64, 3, H, W)
        assert torch.equal(X[:, 0], X[:, 2])
    assert loaders.search_data("digits", "", 64, 0.5, 0, options=options).spec == data.spec


def test_subset_of_a_data_set_by_name():
    parts = [
        loaders.search_data("digits", "", 16, 0.5, seed, options=named.Options(subset=0.1))
        for seed in (0, 0, 1)
    ]
    chosen = [{*d.train.dataset.indices, *d.val.dataset.indices} for d in parts]
    assert chosen[0] == chosen[1] != chosen[2]
    targets = np.array(named.Digits(True).targets)
    counts = np.bincount(targets[sorted(chosen[0])])
    assert counts.tolist() == [round(0.1 * n) for n in np.bincount(targets)]
    assert parts[0].class_counts == tuple(counts)
    assert not set(parts[0].train.dataset.indices) & set(parts[0].val.dataset.indices)
    trained = loaders.augment_data("digits", "", 16, options=named.Options(subset=0.1))
    assert set(trained.train.dataset.indices) == chosen[0]
    assert len(trained.held.dataset) == 360


@pytest.mark.parametrize("C_in", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (33, 20)])
@pytest.mark.parametrize("kind", ["none", "light", "cifar", "digits", "trivial"])
def test_every_augmentation_on_grey_and_colour(kind, size, C_in):
    torch.manual_seed(0)
    about = named.DataSpec("d", C_in, size, ("a", "b"), (0.5,) * C_in, (0.5,) * C_in)
    image = torch.randint(256, (C_in, *size), dtype=torch.uint8)
    views = [
        [transforms.transforms(about, True, 0, kind, hflip)(image) for _ in range(20)]
        for hflip in (None, True, False)
    ]
    for same in views:
        assert all(x.shape == (C_in, *size) and x.dtype == torch.float32 for x in same)
        moved = len({x.numpy().tobytes() for x in same}) > 1
        assert moved == (kind != "none" or same is views[1])
    for hflip in (True, False):
        kinds = {type(t) for t in transforms.augmentation(kind, size, hflip)}
        assert (v2.RandomHorizontalFlip in kinds) == hflip


@pytest.mark.parametrize(
    ("name", "kind", "mirrored"),
    [("digits", "digits", False), ("svhn", "digits", False), ("cifar100", "cifar", True),
     ("fashionmnist", "light", True), ("folder", "cifar", True)],
)  # fmt: skip
def test_what_auto_chooses_is_said(name, kind, mirrored):
    found, note = transforms.chosen(name, named.Options())
    assert found == kind
    assert f"augmentation {kind} (chosen" in note
    assert ("not mirrored" in note) != mirrored


@pytest.mark.parametrize(("kind", "part"), [("light", 14), ("cifar", 8)])
def test_images_that_are_not_square_move_in_proportion(kind, part):
    crop, ones = transforms.augmentation(kind, (56, 112))[0], torch.ones(1, 56, 112)
    torch.manual_seed(0)
    moved = [crop(ones)[0] for _ in range(300)]
    empty = [(max((1 - x.amax(d)).sum().int().item() for x in moved)) for d in (1, 0)]
    assert empty == [56 // part, 112 // part]  # rows and columns that came from outside, at most


def test_cutout_is_half_the_side_and_none_for_large_images():
    assert transforms.default_cutout((32, 32)) == 16
    assert transforms.default_cutout((32, 64)) == 16
    assert transforms.default_cutout((224, 224)) == 0


def test_every_flag_of_the_data_group_reaches_the_options():
    words = (
        "--in_channels 1 --input_size 7 --test_portion 0.3 --bad_images skip --subset 0.5 "
        "--augment trivial --no-hflip --cache_gb 0.25"
    )
    cfg = config.SearchConfig(words.split())
    saved = named.SPECS["digits"]
    own, other = "searchs/.images.json", "augments/.images.json"
    assert named.Options.of(cfg, saved.to_dict()) == named.Options(
        1, [7, 7], 0.3, "skip", 0.5, "trivial", False, 0.25, saved, (own, other)
    )
    defaults = named.Options.of(config.AugmentConfig(["--genotype", "DARTS_V2"]))
    assert defaults == named.Options(notebooks=(other, own))
    # and the training of the found cell takes them over, but for the share
    words = ["--genotype", "DARTS_V2", "--stem", "imagenet"]
    training = config.AugmentConfig(words, taken=config.data_flags(cfg.flags()))
    for flag in ("in_channels", "input_size", "test_portion", "bad_images", "augment", "hflip"):
        assert getattr(training, flag) == getattr(cfg, flag), flag
    assert (training.subset, training.stem) == (1, "imagenet")


def test_flags_that_change_the_images_bind_a_run_that_goes_on(capsys):
    saved = config.SearchConfig(["--name", "x", "--subset", "0.5", "--no-hflip"]).flags()
    cfg = config.SearchConfig(["--name", "x", "--resume", "--cache_gb", "0"], saved)
    assert (cfg.subset, cfg.hflip, cfg.cache_gb) == (0.5, False, 0)
    for words, flag in (("--augment none", "augment"), ("--stem imagenet", "stem"),
                        ("--input_size 9", "input_size"), ("--hflip", "hflip")):  # fmt: skip
        with pytest.raises(SystemExit):
            config.SearchConfig(["--name", "x", "--resume", *words.split()], saved)
        assert f"--{flag} was" in capsys.readouterr().err


def test_a_folder_is_named_by_its_path_and_may_move(here):
    (here / "pets").mkdir()
    (here / "digits").mkdir()  # a known name stays what it is
    cfg = config.SearchConfig(["--dataset", "pets"])
    assert (cfg.dataset, cfg.data_path) == ("folder", str(here / "pets"))  # from anywhere
    assert config.SearchConfig(["--dataset", "digits"]).dataset == "digits"
    (here / "moved").mkdir()
    words = ["--name", "x", "--resume", "--dataset", "moved"]
    assert config.SearchConfig(words, cfg.flags()).data_path == str(here / "moved")
    with pytest.raises(SystemExit):
        config.SearchConfig(["--dataset", "pets", "--data_path", "moved"])
    assert loaders.subject("folder", "a/my pets (2)/") == "my-pets-2"
    assert loaders.subject("cifar10", "data") == "cifar10"


def test_the_loss_without_flags_is_plain_cross_entropy():
    assert utils.criterion() is torch.nn.functional.cross_entropy
