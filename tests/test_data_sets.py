"""Data sets by name: the table, how each is opened, other sizes, augmentation, the options."""

import importlib.util
import json
import subprocess
import sys
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import keep_findings, make, options  # noqa: F401, a fixture
from PIL import Image
from torchvision import datasets
from torchvision.transforms import v2

import config
from data_sets import image_folder, loaders, named, transforms
from data_sets.options import DataOptions

ROOT = Path(__file__).parent.parent

# --- the table ----------------------------------------------------------------------------------


def test_digits():
    train, test = named.Digits(True), named.Digits(False)
    assert (len(train), len(test)) == (1437, 360)
    image, y = train[0]
    assert image.shape == (1, 8, 8)
    assert image.dtype == torch.uint8
    assert y == 0
    counts = np.bincount(train.targets) + np.bincount(test.targets)
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    pixels = train.pixels.double() / 255
    spec = named.spec("digits")
    assert pixels.mean().item() == pytest.approx(spec.mean[0], abs=1e-4)
    assert pixels.std().item() == pytest.approx(spec.std[0], abs=1e-4)


def test_the_table_loads_no_torch_and_is_what_the_flag_knows():
    code = "import sys, data_sets.named, data_sets.options; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert (*named.DATA_SETS, "folder", "imagenet") == named.NAMES


@pytest.mark.parametrize("name", named.DATA_SETS)
def test_a_row_of_the_table(name):
    row = named.DATA_SETS[name]
    assert row.spec.name == name
    assert named.DataSpec.from_dict(json.loads(json.dumps(row.spec.to_dict()))) == row.spec
    assert transforms.augmentation(row.augment, row.spec.size)
    files = [row.file for row in named.DATA_SETS.values() if row.file]
    assert len(set(files)) == len(files)


def test_a_data_set_more_is_a_row_more(monkeypatch):
    class Pair:
        targets = [0, 1] * 4

        def __len__(self):
            return 8

        def __getitem__(self, index):
            return Image.new("RGB", (6, 5), (index, 0, 0)), self.targets[index]

    spec = named.DataSpec("pairs", 3, (5, 6), ("even", "odd"), (0.5,) * 3, (0.25,) * 3)
    row = named.NamedDataSet(spec, lambda data_path, train: Pair(), augment="light")
    monkeypatch.setitem(named.DATA_SETS, "pairs", row)
    data = loaders.augment_data(options(dataset="pairs", batch_size=4, workers=0))
    assert (data.spec, data.class_counts) == (spec, (4, 4))
    assert data.spec.describe() == "colour 5x6"
    X, y = next(iter(data.val))
    assert y.tolist() == [0, 1, 0, 1]
    assert X[3, 0, 0, 0].item() == pytest.approx((3 / 255 - 0.5) / 0.25)


def test_an_unknown_name_lists_the_known_ones():
    for call in (
        lambda: named.load_split("cifar11", "unused", True),
        lambda: named.spec("cifar11"),
    ):
        with pytest.raises(
            ValueError, match="'cifar11': there is no such folder .* digits, mnist, fashion"
        ):
            call()


@pytest.mark.parametrize("name", [name for name, row in named.DATA_SETS.items() if row.file])
def test_offline_says_which_file_to_put_where(name, monkeypatch):
    row = named.DATA_SETS[name]
    for error in (urllib.error.URLError("no route"), RuntimeError("no route\nat all"), OSError()):

        def fails(*args, error=error):
            raise error

        monkeypatch.setitem(named.DATA_SETS, name, row._replace(open=fails))
        with pytest.raises(OSError, match=f"{name} is not in my_data and cannot be dow") as caught:
            named.load_split(name, "my_data", True)
        assert row.file in str(caught.value)
        assert "\n" not in str(caught.value)


def test_names_of_classes_are_torchvisions():
    classes = {name: row.spec.classes for name, row in named.DATA_SETS.items()}
    assert classes["kmnist"] == tuple(datasets.KMNIST.classes)
    assert classes["emnist"] == tuple(datasets.EMNIST.classes_split_dict["balanced"])
    assert classes["fashionmnist"] == tuple(datasets.FashionMNIST.classes)
    assert list(classes["cifar100"]) == sorted(classes["cifar100"])


class Hundred:
    """Stands for CIFAR-100: five images of every class, in order."""

    def __init__(self):
        self.targets = [y for y in range(100) for _ in range(5)]
        self.images = np.random.default_rng(0).integers(0, 256, (500, 32, 32, 3), dtype=np.uint8)

    def __len__(self):
        return 500

    def __getitem__(self, index):
        return Image.fromarray(self.images[index]), self.targets[index]


def test_a_hundred_classes(monkeypatch):
    row = named.DATA_SETS["cifar100"]._replace(open=lambda data_path, train: Hundred())
    monkeypatch.setitem(named.DATA_SETS, "cifar100", row)
    asked = options(dataset="cifar100", workers=0, input_size=[8, 8], batch_size=200)
    for data in (loaders.search_data(asked), loaders.augment_data(asked)):
        assert len(data.spec.classes) == 100
        assert data.class_counts == (5,) * 100
        X, y = next(iter(data.train))
        assert X.shape == (200, 3, 8, 8)
        assert y.max() > 90


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


@pytest.mark.parametrize("size", [[6, 6], [30, 20]])
def test_digits_at_another_size_and_in_colour(size):
    H, W = size
    asked = options(in_channels=3, input_size=size)
    data = loaders.augment_data(asked)
    assert data.spec.size == (H, W)
    for loader in (data.train, data.val):
        X, _ = next(iter(loader))
        assert X.shape == (64, 3, H, W)
        assert torch.equal(X[:, 0], X[:, 2])
    assert loaders.search_data(asked).spec == data.spec
    assert data.train.num_workers == 0


def test_subset_of_a_data_set_by_name():
    parts = [
        loaders.search_data(options(subset=0.1, batch_size=16, seed=seed)) for seed in (0, 0, 1)
    ]

    def images(*loaders):  # which ones of the training split
        halves = [loader.dataset.dataset for loader in loaders]
        return {half.dataset.indices[i] for half in halves for i in half.indices}

    chosen = [images(data.train, data.alpha) for data in parts]
    assert chosen[0] == chosen[1] != chosen[2]
    targets = np.array(named.Digits(True).targets)
    counts = np.bincount(targets[sorted(chosen[0])])
    assert counts.tolist() == [round(0.1 * n) for n in np.bincount(targets)]
    assert parts[0].class_counts == tuple(counts)
    assert not images(parts[0].train) & images(parts[0].alpha)
    trained = loaders.augment_data(options(subset=0.1, batch_size=16, seed=0))
    assert set(trained.train.dataset.dataset.indices) == chosen[0]
    assert len(trained.val.dataset) == 360


# --- augmentation -------------------------------------------------------------------------------


@pytest.mark.parametrize("C_in", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (33, 20)])
@pytest.mark.parametrize("kind", ["none", "light", "cifar", "digits", "trivial"])
def test_every_augmentation_on_grey_and_colour(kind, size, C_in):
    torch.manual_seed(0)
    spec = named.DataSpec("d", C_in, size, ("a", "b"), (0.5,) * C_in, (0.5,) * C_in)
    image = torch.randint(256, (C_in, *size), dtype=torch.uint8)
    views = [
        [transforms.transforms(spec, True, 0, kind, hflip)(image) for _ in range(20)]
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
    ("dataset", "kind", "mirrored"),
    [
        ("digits", "digits", False),
        ("svhn", "digits", False),
        ("cifar100", "cifar", True),
        ("fashionmnist", "light", True),
        ("folder", "cifar", True),
    ],
)
def test_what_auto_chooses_is_logged(dataset, kind, mirrored, caplog):
    assert transforms.pick_augmentation(options(dataset=dataset)) == kind
    assert f"augmentation {kind} (chosen" in caplog.text
    assert ("not mirrored" in caplog.text) != mirrored
    assert ("--no-hflip" in caplog.text) == mirrored
    other = options(dataset=dataset, augment="trivial", hflip=not mirrored)
    assert transforms.pick_augmentation(other) == "trivial"
    assert "augmentation trivial (asked)" in caplog.messages[-1]
    assert ("not mirrored" in caplog.messages[-1]) == mirrored


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


def test_cutout_without_a_flag_is_half_the_side():
    for length, wanted in ((None, 4), (0, 0), (3, 3)):
        assert loaders.augment_data(options(cutout_length=length)).cutout_length == wanted


# --- the flags ----------------------------------------------------------------------------------


def test_every_flag_of_the_data_group_reaches_the_options():
    words = (
        "--dataset mnist --data_path there --in_channels 1 --input_size 7 --test_portion 0.3 "
        "--bad_images skip --subset 0.5 --augment trivial --no-hflip --cutout_length 2 "
        "--cache_gb 0.25 --max_megapixels 7 --batch_size 6 --workers 3 --seed 9 "
        "--val_portion 0.4 --accumulate 2"
    )
    cfg = config.SearchConfig(words.split())
    spec = named.spec("digits")
    got = DataOptions.from_config(
        cfg, known_spec=spec, cache_files=("a.json",), may_shrink_batch=True, pin_memory=True
    )
    assert got == DataOptions(
        "mnist", "there", 1, [7, 7], 0.3, "skip", 0.5, "trivial", False, 2, 0.25, 7, 6, 3, 9,
        0.4, False, 2, spec, ("a.json",), True, True,
    )  # fmt: skip
    training = config.AugmentConfig(["--genotype", "DARTS_V2"])
    defaults = DataOptions.from_config(training)
    assert (defaults.val_portion, defaults.cutout_length, defaults.cache_files) == (None, None, ())
    with pytest.raises(TypeError, match="missing"):
        DataOptions.from_config(object())


def test_a_run_without_a_name_is_called_after_its_images():
    assert loaders.default_run_name("folder", "a/my pets (2)/") == "my-pets-2"
    assert loaders.default_run_name("cifar10", "data") == "cifar10"


@pytest.mark.parametrize("name", ["digits", "imagenet"])
def test_a_folder_called_like_a_data_set_is_never_passed_over_in_silence(
    here, caplog, monkeypatch, name
):
    def no_route(*args):
        raise OSError("no route")

    make(here / name, ("train", "test"))
    make(here / "there", ("train", "val"))
    small = {"dataset": name, "batch_size": 4, "data_path": str(here / "there")}
    loaders.search_data(options(**small, input_size=(8, 8)))
    said = [text for text in caplog.messages if "here is not read" in text]
    assert len(said) == 1
    assert f"--dataset ./{name} takes the folder" in said[0]
    cfg = config.SearchConfig(["--dataset", f"./{name}"])
    assert (cfg.dataset, cfg.data_path) == ("folder", str(here / name))
    with monkeypatch.context() as patch:  # nor where the data set cannot be read
        for module, function in ((named, "load_split"), (image_folder, "load")):
            patch.setattr(module, function, no_route)
        with pytest.raises(OSError, match=f"no route; .* --dataset ./{name} takes the folder"):
            loaders.search_data(options(**small))
    caplog.clear()
    own = {"dataset": "folder", "batch_size": 4, "data_path": str(here / name)}
    assert loaders.search_data(options(**own)).spec.classes == ("cat", "dog")
    assert "is not read" not in caplog.text
