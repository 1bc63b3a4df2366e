"""Data sets by name as loaders: the split, transforms, batches."""

import multiprocessing

import numpy as np
import pytest
import torch
from data_helpers import keep_findings, options  # noqa: F401, a fixture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

import utils
from data_sets import loaders, named, splits, transforms


def searched(dataset="digits", **changes):
    return loaders.search_data(options(dataset=dataset, **changes))


def trained(dataset="digits", **changes):
    return loaders.augment_data(options(dataset=dataset, **changes))


def indices(loader):
    """Which images of the training split a loader of `searched` takes."""
    return loader.dataset.dataset.indices


class Stub:
    """Stands for a torchvision data set: 40 images, classes in order."""

    def __init__(self, spec, train):
        rng = np.random.default_rng(0 if train else 1)
        channels = () if spec.C_in == 1 else (3,)
        self.images = rng.integers(0, 256, (40, *spec.size, *channels), dtype=np.uint8)
        self.targets = [i // 4 for i in range(40)]

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return Image.fromarray(self.images[index]), self.targets[index]


@pytest.fixture
def stubs(monkeypatch):
    """The data sets of torchvision without a network."""
    for name, row in named.DATA_SETS.items():
        if name != "digits":
            stub = row._replace(open=lambda data_path, train, spec=row.spec: Stub(spec, train))
            monkeypatch.setitem(named.DATA_SETS, name, stub)


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


class Counted(list):
    """A list that counts how often its values are read."""

    reads = 0

    def __iter__(self):
        for value in super().__iter__():
            self.reads += 1
            yield value

    def __getitem__(self, index):
        self.reads += 1
        return super().__getitem__(index)


@pytest.mark.parametrize("n_classes", [2, 200])
def test_grouping_reads_each_target_once_however_many_classes(n_classes):
    targets = Counted(i % n_classes for i in range(1000))
    groups = splits.by_class(targets)
    assert targets.reads == 1000
    assert list(groups) == list(range(n_classes))
    assert groups[1] == list(range(1, 1000, n_classes))
    splits.draw(targets, lambda n: n // 2, sorted)
    assert targets.reads == 2000


def test_a_subset_is_of_every_class_and_two_of_it_at_least():
    targets = [0] * 50 + [2] * 4 + [1] * 10
    kept = splits.subset(targets, 0.3, seed=0)
    assert kept.tolist() == sorted(set(kept))
    assert np.bincount(np.array(targets)[kept]).tolist() == [15, 3, 2]
    assert kept.tolist() == splits.subset(targets, 0.3, seed=0).tolist()
    assert kept.tolist() != splits.subset(targets, 0.3, seed=1).tolist()
    assert len(splits.subset([0] * 9 + [1], 0.1, seed=0)) == 3


def test_targets_are_found_below_subsets_and_transforms():
    class Images:
        targets = [5, 6, 7, 8]

    images = Images()
    below = splits.Transformed(torch.utils.data.Subset(images, [3, 1, 0]), None)
    chain = torch.utils.data.Subset(below, [2, 0])
    assert splits.targets_of(chain).tolist() == [5, 8]
    assert splits.source(chain) is images


def test_a_search_never_opens_the_test_split(monkeypatch):
    row = named.DATA_SETS["digits"]

    def guarded(data_path, train):
        assert train, "the test split was opened"
        return row.open(data_path, train)

    monkeypatch.setitem(named.DATA_SETS, "digits", row._replace(open=guarded))
    data = searched()
    w_half, alpha_half = set(indices(data.train)), set(indices(data.alpha))
    assert not w_half & alpha_half
    assert len(w_half | alpha_half) == 1437
    assert indices(data.val) == indices(data.alpha)
    with pytest.raises(AssertionError, match="test split"):
        trained()


# --- transforms ---------------------------------------------------------------------------------


def test_images_are_normalised_and_otherwise_untouched_for_scoring():
    raw = named.Digits(False)
    data = trained()
    X, y = next(iter(data.val))
    assert X.shape == (64, 1, 8, 8)
    assert X.dtype == torch.float32
    assert y.tolist() == raw.targets[:64]
    spec = named.spec("digits")
    wanted = (raw.pixels[:64].float() / 255 - spec.mean[0]) / spec.std[0]
    torch.testing.assert_close(X, wanted)


def test_augmentation_moves_images_and_mirrors_none_that_must_not_be():
    for name, row in named.DATA_SETS.items():
        kind = transforms.pick_augmentation(options(dataset=name))
        kinds = {type(t) for t in transforms.augmentation(kind, row.spec.size)}
        assert kinds, name
        assert v2.RandomVerticalFlip not in kinds
        mirrored = name in ("fashionmnist", "cifar10", "cifar100")
        assert (v2.RandomHorizontalFlip in kinds) == mirrored


@pytest.mark.parametrize("name", named.DATA_SETS)
def test_every_data_set_gives_batches_of_its_own_shape(name, stubs):
    spec = named.spec(name)
    data = searched(name, batch_size=4, workers=0, cutout_length=2)
    assert data.cutout_length == 2
    for loader in (data.train, data.alpha, data.val):
        X, y = next(iter(loader))
        assert X.shape == (4, spec.C_in, *spec.size)
        assert X.is_contiguous()
        assert y.dtype == torch.int64
    assert len(set(spec.classes)) == {"cifar100": 100, "emnist": 47}.get(name, 10)
    assert len(spec.mean) == len(spec.std) == spec.C_in


def test_training_images_differ_from_pass_to_pass():
    data = searched()
    raw = data.train.dataset
    torch.manual_seed(0)
    views = {raw[0][0].numpy().tobytes() for _ in range(200)}
    assert len(views) == 9  # a crop from one pixel of padding: nine places
    plain = data.val.dataset
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
    view = splits.Transformed(raw, transforms.transforms(named.spec("digits"), True, 3, "digits"))
    torch.manual_seed(0)
    loader = torch.utils.data.DataLoader(view, 8, shuffle=True, num_workers=2)
    batches = boxes(loader)
    assert batches[:8] != batches[8:16]


# --- loaders ------------------------------------------------------------------------------------


def test_training_batches_are_full_and_scoring_leaves_no_image_out():
    data = searched(batch_size=100)
    assert [len(y) for _, y in data.train] == [100] * 7
    assert sum(len(y) for _, y in data.val) == len(data.val.dataset) == 719


def test_a_last_batch_of_one_image_is_left_out_of_training_only(stubs):
    data = searched("cifar10", batch_size=19, workers=0)
    assert [len(y) for _, y in data.train] == [19]
    assert [len(y) for _, y in data.val] == [19, 1]


def test_a_batch_larger_than_the_split_is_refused(stubs):
    with pytest.raises(ValueError, match=r"--batch_size 21 is larger than .* 20 images"):
        searched("cifar10", batch_size=21)
    with pytest.raises(ValueError, match=r"--batch_size 41 is larger than .* 40 images"):
        trained("cifar10", batch_size=41)


def test_a_batch_that_nobody_asked_for_is_made_to_fit(stubs, caplog):
    may = {"workers": 0, "may_shrink_batch": True}
    data = searched("cifar10", batch_size=64, **may)
    assert (data.batch_size, len(data.train)) == (16, 1)  # of 20 images
    assert "batch 16 instead of 64" in caplog.text
    data = trained("cifar10", batch_size=96, **may)
    assert (data.batch_size, data.train.batch_sampler.batch_size) == (32, 32)  # of 40


def test_a_small_part_for_alpha_gets_smaller_batches(stubs):
    data = searched("cifar10", batch_size=16, val_portion=0.25, workers=0)
    assert len(data.alpha.dataset) == 10
    assert [len(y) for _, y in data.alpha] == [10]
    with pytest.raises(ValueError, match="leaves alpha 0 images"):
        searched("cifar10", batch_size=16, val_portion=0.01)


def test_pinned_memory_and_workers():
    data = searched()
    assert not data.train.pin_memory
    assert [loader.num_workers for loader in (data.train, data.alpha, data.val)] == [0] * 3
    data = searched(pin_memory=True, workers=1)
    assert all(loader.pin_memory for loader in (data.train, data.alpha, data.val))
    assert [loader.num_workers for loader in (data.train, data.alpha, data.val)] == [1, 0, 1]
    data = trained(workers=1)
    assert [loader.num_workers for loader in (data.train, data.val)] == [1, 1]
    assert loaders.default_workers(in_memory=True) == 0
    assert 1 <= loaders.default_workers(in_memory=False) <= 4


def test_workers_are_the_number_of_processes_in_all():
    def alive():
        return len(multiprocessing.active_children())

    before, data = alive(), searched(subset=0.1, batch_size=16, workers=2)
    try:
        for _ in range(2):
            for _ in zip(data.train, utils.endless(data.alpha), strict=False):
                assert alive() - before == 2
            for _ in data.val:
                assert alive() - before == 2
    finally:
        for loader in (data.train, data.alpha, data.val):
            loader.close()
    assert alive() == before


def test_what_a_training_is_scored_on_stands_alone_too():
    (
        whole,
        (name, loader),
    ) = trained(), *loaders.scored_loaders(options()).items()
    assert (name, whole.val_name, whole.alpha, whole.test) == ("test", "test", None, None)
    for one, other in zip(loader, whole.val, strict=True):
        assert all(map(torch.equal, one, other))
    images = {x.numpy().tobytes() for x, _ in whole.train.dataset.dataset}
    assert not images & {x.numpy().tobytes() for x, _ in loader.dataset.dataset}


def test_the_balance_of_classes_in_words():
    data = searched()._replace(class_counts=(9, 3, *[5] * 8))
    assert data.describe_balance("none").startswith("class 1 has 3 training images, 0 9; class we")
    assert "none; --class_weights balanced gives" in data.describe_balance("none")
    assert "weights balanced: " in data.describe_balance("balanced")
