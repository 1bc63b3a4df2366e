"""Data sets, the split, transforms, loaders."""

import json
import urllib.error

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from data_sets import loaders, named, splits, transforms


class Stub:
    """Stands for a torchvision data set: 40 images, classes in order."""

    def __init__(self, size=(32, 32), mode="RGB", n=40):
        self.size, self.mode, self.n = size, mode, n

    def __call__(self, root, train, download):
        rng = np.random.default_rng(0 if train else 1)
        channels = () if self.mode == "L" else (3,)
        shape = (self.n, *self.size, *channels)
        self.images = rng.integers(0, 256, shape, dtype=np.uint8)
        self.targets = [i * 10 // self.n for i in range(self.n)]
        return self

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return Image.fromarray(self.images[index]), self.targets[index]


@pytest.fixture
def stubs(monkeypatch):
    """The data sets of torchvision without a network."""
    grey, color = Stub((28, 28), "L"), Stub()
    table = {
        name: (grey if about.C_in == 1 else color, "f")
        for name, about in named.SPECS.items() if name != "digits"
    }  # fmt: skip
    monkeypatch.setattr(named, "_TORCHVISION", table)


# --- the bundled digits -------------------------------------------------------------------------


def test_digits():
    train, test = named.Digits(True), named.Digits(False)
    assert (len(train), len(test)) == (1437, 360)
    image, y = train[0]
    assert image.shape == (1, 8, 8)
    assert image.dtype == torch.uint8
    assert y == 0
    counts = np.bincount(train.targets) + np.bincount(test.targets)
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    pixels = train.images.double() / 255
    spec = named.SPECS["digits"]
    assert pixels.mean().item() == pytest.approx(spec.mean[0], abs=1e-4)
    assert pixels.std().item() == pytest.approx(spec.std[0], abs=1e-4)


# --- the split ----------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60),
    st.floats(0.05, 0.95),
    st.integers(0, 5),
)
def test_the_split_is_stratified_disjoint_and_complete(targets, portion, seed):
    first, second = splits.stratified_split(targets, portion, seed)
    assert sorted([*first, *second]) == list(range(len(targets)))
    for y in set(targets):
        n = targets.count(y)
        part = sum(targets[i] == y for i in second)
        assert abs(part - portion * n) <= 0.5 + 1e-9
    again = splits.stratified_split(targets, portion, seed)
    assert all(np.array_equal(a, b) for a, b in zip((first, second), again, strict=True))


def test_sorted_classes_are_shared_out_evenly_and_shuffled():
    targets = [y for y in range(4) for _ in range(50)]
    halves = splits.stratified_split(targets, 0.5, seed=0)
    for half in halves:
        assert np.bincount(np.array(targets)[half]).tolist() == [25] * 4
        assert (np.diff(np.array(targets)[half]) < 0).any()
    other = splits.stratified_split(targets, 0.5, seed=1)
    assert set(halves[0]) != set(other[0])  # other images, not only another order
    assert all(set(half) != {i for i in range(200) if i % 50 < 25} for half in halves)


def test_a_search_never_opens_the_test_split(monkeypatch):
    real = named.load_split

    def guarded(name, data_path, train):
        assert train, "the test split was opened"
        return real(name, data_path, train)

    monkeypatch.setattr(loaders, "load_split", guarded)
    data = loaders.search_data("digits", "unused", 64, 0.5, seed=0)
    w_half, alpha_half = set(data.train.dataset.indices), set(data.val.dataset.indices)
    assert not w_half & alpha_half
    assert len(w_half | alpha_half) == 1437
    assert list(data.held.dataset.indices) == list(data.val.dataset.indices)
    with pytest.raises(AssertionError, match="test split"):
        loaders.augment_data("digits", "unused", 64)


# --- transforms ---------------------------------------------------------------------------------


def test_images_are_normalised_and_otherwise_untouched_for_scoring():
    raw = named.Digits(False)
    data = loaders.augment_data("digits", "unused", 64)
    X, y = next(iter(data.held))
    assert X.shape == (64, 1, 8, 8)
    assert X.dtype == torch.float32
    assert y.tolist() == raw.targets[:64]
    spec = named.SPECS["digits"]
    wanted = (raw.images[:64].float() / 255 - spec.mean[0]) / spec.std[0]
    torch.testing.assert_close(X, wanted)


def test_augmentation_moves_images_and_mirrors_none_that_must_not_be():
    for name, about in named.SPECS.items():
        kind, _ = transforms.chosen(name, named.Options())
        kinds = {type(t) for t in transforms.augmentation(kind, about.size)}
        assert kinds, name
        assert v2.RandomVerticalFlip not in kinds
        mirrored = name in ("fashionmnist", "cifar10", "cifar100")
        assert (v2.RandomHorizontalFlip in kinds) == mirrored


@pytest.mark.parametrize("name", named.SPECS)
def test_every_data_set_gives_batches_of_its_own_shape(name, stubs):
    spec = named.spec(name)
    data = loaders.search_data(name, "unused", 4, 0.5, seed=0, workers=0, cutout_length=2)
    for loader in (data.train, data.val, data.held):
        X, y = next(iter(loader))
        assert X.shape == (4, spec.C_in, *spec.size)
        assert X.is_contiguous()
        assert y.dtype == torch.int64
    assert len(set(spec.classes)) == {"cifar100": 100, "emnist": 47}.get(name, 10)
    assert len(spec.mean) == len(spec.std) == spec.C_in


def test_training_images_differ_from_pass_to_pass():
    data = loaders.search_data("digits", "unused", 64, 0.5, seed=0)
    raw = data.train.dataset
    torch.manual_seed(0)
    views = {raw[0][0].numpy().tobytes() for _ in range(200)}
    assert len(views) == 9  # a crop from one pixel of padding: nine places
    plain = data.held.dataset
    assert torch.equal(plain[0][0], plain[0][0])


def test_cutout_blanks_a_square_around_any_pixel():
    torch.manual_seed(0)
    x = torch.ones(2, 8, 6)
    areas, hit = set(), torch.zeros(8, 6, dtype=torch.bool)
    for _ in range(400):
        y = transforms.Cutout(4)(x)
        blank = y[0] == 0
        assert torch.equal(y[0], y[1])
        rows, columns = blank.any(1).nonzero(), blank.any(0).nonzero()
        height, width = (int(i.max() - i.min()) + 1 for i in (rows, columns))
        assert blank.sum() == height * width
        assert height <= 4
        assert width <= 4
        areas.add((height, width))
        hit |= blank
    assert (4, 4) in areas
    assert min(h * w for h, w in areas) < 16  # it may hang over the border
    assert hit.all()
    assert torch.equal(x, torch.ones(2, 8, 6))


def test_cutout_longer_than_the_image_blanks_all_of_it():
    assert not transforms.Cutout(40)(torch.ones(1, 8, 8)).any()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a single core
def test_two_workers_do_not_cut_out_the_same_squares():
    def boxes(loader):
        return [tuple((x[0] == 0).flatten().tolist()) for X, _ in loader for x in X]

    raw = [(torch.full((1, 8, 8), 200, dtype=torch.uint8), 0)] * 32
    view = splits.View(raw, loaders.transforms(named.spec("digits"), True, 3, "digits"))
    torch.manual_seed(0)
    loader = loaders._loader(view, 8, True, 2, False)
    batches = boxes(loader)
    assert batches[:8] != batches[8:16]


# --- loaders ------------------------------------------------------------------------------------


def test_training_batches_are_full_and_scoring_leaves_no_image_out():
    data = loaders.search_data("digits", "unused", 100, 0.5, seed=0)
    assert [len(y) for _, y in data.train] == [100] * 7
    assert sum(len(y) for _, y in data.held) == len(data.held.dataset) == 719


def test_a_last_batch_of_one_image_is_left_out_of_training_only(stubs):
    data = loaders.search_data("cifar10", "unused", 19, 0.5, seed=0, workers=0)
    assert [len(y) for _, y in data.train] == [19]
    assert [len(y) for _, y in data.held] == [19, 1]


def test_a_batch_larger_than_the_split_is_refused(stubs):
    with pytest.raises(ValueError, match=r"--batch_size 21 is larger than .* 20 images"):
        loaders.search_data("cifar10", "unused", 21, 0.5, seed=0)
    with pytest.raises(ValueError, match=r"--batch_size 41 is larger than .* 40 images"):
        loaders.augment_data("cifar10", "unused", 41)


def test_a_batch_that_nobody_asked_for_is_made_to_fit(stubs):
    data = loaders.search_data("cifar10", "unused", 64, 0.5, seed=0, workers=0, lower=True)
    assert (data.batch_size, len(data.train)) == (16, 1)  # of 20 images
    assert "batch 16 instead of 64" in " ".join(data.notes)
    data = loaders.augment_data("cifar10", "unused", 96, workers=0, lower=True)
    assert (data.batch_size, data.train.batch_size) == (32, 32)  # of 40


def test_a_small_share_for_alpha_gets_smaller_batches(stubs):
    data = loaders.search_data("cifar10", "unused", 16, 0.25, seed=0, workers=0)
    assert len(data.val.dataset) == 10
    assert [len(y) for _, y in data.val] == [10]
    with pytest.raises(ValueError, match="leaves alpha 0 images"):
        loaders.search_data("cifar10", "unused", 16, 0.01, seed=0)


def test_pinned_memory_only_on_request():
    assert not loaders.search_data("digits", "unused", 64, 0.5, 0).train.pin_memory
    assert loaders.search_data("digits", "unused", 64, 0.5, 0, pin_memory=True).train.pin_memory


def test_default_workers():
    assert loaders.default_workers("digits") == 0
    assert 1 <= loaders.default_workers("cifar10") <= 4


def test_an_unknown_name_lists_the_known_ones():
    for call in (
        lambda: named.load_split("cifar11", "unused", True),
        lambda: named.spec("cifar11"),
    ):
        with pytest.raises(
            ValueError, match="'cifar11': there is no such folder .* digits, mnist, fashion"
        ):
            call()


@pytest.mark.parametrize("name", [name for name in named.SPECS if name != "digits"])
@pytest.mark.parametrize(
    "error", [urllib.error.URLError("no route"), RuntimeError("no route\nat all"), OSError("x")]
)
def test_offline_says_which_file_to_put_where(name, error, monkeypatch):
    def fails(*args, **kwargs):
        raise error

    file = named._TORCHVISION[name][1]
    monkeypatch.setitem(named._TORCHVISION, name, (fails, file))
    with pytest.raises(OSError, match=f"{name} is not in my_data and cannot be dow") as caught:
        named.load_split(name, "my_data", True)
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


def test_each_data_set_has_files_of_its_own():
    files = [file for _, file in named._TORCHVISION.values()]
    assert len(set(files)) == len(files) == 7


@pytest.mark.parametrize("name", named.SPECS)
def test_a_spec_survives_json(name):
    about = named.SPECS[name]
    assert named.DataSpec.from_dict(json.loads(json.dumps(about.to_dict()))) == about
