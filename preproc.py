"""Data sets, the split of the training set, transforms.

A search sees the training set alone, in two halves: w learns from one, alpha from the other.
The test split is opened by `augment_data` only.
"""

import os
import urllib.error
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets
from torchvision.transforms import v2

# --- the data sets by name ----------------------------------------------------------------------


class DataSpec(NamedTuple):
    """What the networks need to know of a data set. Images are (C_in, *size); mean and std are per
    channel, of values in [0, 1]."""

    name: str
    C_in: int
    size: tuple
    classes: tuple
    mean: tuple
    std: tuple

    def to_dict(self):
        """The same in types that JSON and torch.load(weights_only=True) know."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in self._asdict().items()}

    @classmethod
    def from_dict(cls, saved):
        """The DataSpec that `to_dict` wrote."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()})


_DIGITS = tuple("0123456789")
SPECS = {
    about.name: about
    for about in (
        DataSpec("digits", 1, (8, 8), _DIGITS, (0.3054,), (0.3753,)),
        DataSpec("mnist", 1, (28, 28), _DIGITS, (0.1307,), (0.3081,)),
        DataSpec(
            "fashionmnist", 1, (28, 28),
            ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
             "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
            (0.2860,), (0.3530,),
        ),
        DataSpec(
            "cifar10", 3, (32, 32),
            ("airplane", "automobile", "bird", "cat", "deer",
             "dog", "frog", "horse", "ship", "truck"),
            (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616),
        ),
    )
}  # fmt: skip


def spec(name):
    """The DataSpec of a data set. Raises ValueError for an unknown name."""
    if name not in SPECS:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(SPECS)}")
    return SPECS[name]


def augmentation(name):
    """The random transforms of a training image: small moves for all, and mirroring only where a
    mirrored image is still one of its class (clothes and CIFAR, never digits; nothing is turned
    upside down)."""
    return {
        "digits": [v2.RandomCrop(8, padding=1)],
        "mnist": [v2.RandomAffine(degrees=10, translate=(0.1, 0.1), scale=(0.9, 1.1))],
        "fashionmnist": [v2.RandomCrop(28, padding=2), v2.RandomHorizontalFlip()],
        "cifar10": [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()],
    }[name]


class Digits(Dataset):
    """UCI optical digits, bundled with the repository: 1,437 training and 360 test images, 8x8."""

    N_TEST = 360

    def __init__(self, train):
        path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data", "digits.npz")
        with np.load(path) as file:
            images, labels = file["images"], file["labels"]  # (1797, 8, 8) uint8, (1797,)
        part = slice(None, -self.N_TEST) if train else slice(-self.N_TEST, None)
        self.images = torch.from_numpy(images[part]).unsqueeze(1)  # (N, 1, 8, 8)
        self.targets = labels[part].tolist()

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.images[index], self.targets[index]


_TORCHVISION = {
    "mnist": (datasets.MNIST, os.path.join("MNIST", "raw", "train-images-idx3-ubyte.gz (and the "
                                           "three other files)")),
    "fashionmnist": (datasets.FashionMNIST, os.path.join("FashionMNIST", "raw",
                                                         "train-images-idx3-ubyte.gz (and the "
                                                         "three other files)")),
    "cifar10": (datasets.CIFAR10, "cifar-10-python.tar.gz"),
}  # fmt: skip


def load_split(name, data_path, train):
    """The raw training or test split: (image, class) pairs, with `targets`.

    Downloads what is missing to `data_path`. Raises ValueError for an unknown name and OSError,
    saying which file to put where, when the download fails.
    """
    if spec(name).name == "digits":
        return Digits(train)
    dataset, file = _TORCHVISION[name]
    try:
        return dataset(data_path, train=train, download=True)
    except (urllib.error.URLError, RuntimeError, OSError) as error:
        reason = getattr(error, "reason", None) or str(error).splitlines()[0]
        raise OSError(
            f"{name} is not in {data_path} and cannot be downloaded ({reason}); "
            f"put {os.path.join(data_path, file)} there yourself"
        ) from None


# --- transforms ---------------------------------------------------------------------------------


class Cutout(torch.nn.Module):
    """Cutout (arXiv 1708.04552): zero a square of `length` pixels around a random pixel.

    x (C, H, W), normalised, so zero is the mean -> a new tensor. The square may hang over the
    border. The position comes from torch's generator, which differs between loader workers.
    """

    def __init__(self, length):
        super().__init__()
        self.length = length

    def forward(self, x):
        H, W = x.shape[-2:]
        top = int(torch.randint(H, ())) - self.length // 2
        left = int(torch.randint(W, ())) - self.length // 2
        x = x.clone()
        x[:, max(top, 0) : max(top + self.length, 0), max(left, 0) : max(left + self.length, 0)] = 0
        return x


def transforms(about, train, cutout_length=0):
    """The transform of a data set: raw image -> float tensor (C_in, H, W), normalised; for training
    also augmented."""
    steps = [v2.ToImage()]
    if train:
        steps += augmentation(about.name)
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(about.mean, about.std)]
    if train and cutout_length:
        steps.append(Cutout(cutout_length))
    return v2.Compose([*steps, v2.ToPureTensor()])


class View(Dataset):
    """Some images of a raw split, seen through a transform."""

    def __init__(self, raw, transform, indices=None):
        self.raw = raw
        self.transform = transform
        self.indices = range(len(raw)) if indices is None else indices

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, index):
        image, y = self.raw[int(self.indices[index])]
        return self.transform(image), int(y)


def stratified_split(targets, portion, seed):
    """Shuffle and divide 0..N-1 in two, `portion` of every class in the second part.

    Returns two int arrays, disjoint and together all of 0..N-1; one seed, one split.
    """
    rng = np.random.default_rng(seed)
    targets = np.asarray(targets)
    first, second = [], []
    for y in np.unique(targets):
        indices = rng.permutation(np.flatnonzero(targets == y))
        cut = len(indices) - round(portion * len(indices))
        first.append(indices[:cut])
        second.append(indices[cut:])
    return rng.permutation(np.concatenate(first)), rng.permutation(np.concatenate(second))


# --- loaders ------------------------------------------------------------------------------------


class Data(NamedTuple):
    """The loaders of a run. Batches are X (N, C_in, H, W) float32 and y (N,) int64.

    train  augmented, shuffled, full batches only: no BatchNorm ever sees a single image
    val    search: the half of alpha, augmented and shuffled; augment: None
    held   what is scored after an epoch, plain and in order; search: the half of alpha without
           augmentation; augment: the test split
    """

    spec: DataSpec
    train: DataLoader
    val: Any
    held: DataLoader


def default_workers(name):
    """Loader processes: none for the bundled digits, which lie in memory, else up to four."""
    if hasattr(os, "sched_getaffinity"):  # Linux: a container may own fewer cores than there are
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return 0 if name == "digits" else min(4, cores)


def _loader(dataset, batch_size, train, workers, pin_memory):
    return DataLoader(
        dataset, batch_size, shuffle=train, drop_last=train, num_workers=workers,
        pin_memory=pin_memory, persistent_workers=workers > 0,
    )  # fmt: skip


def _check_batch(batch_size, n_images, what):
    if batch_size > n_images:
        raise ValueError(
            f"--batch_size {batch_size} is larger than {what} of {n_images} images; lower it"
        )


def search_data(
    name, data_path, batch_size, val_portion, seed, workers=None, pin_memory=False, cutout_length=0
):
    """Data of a search: the training set in two stratified parts, `val_portion` of it for alpha."""
    raw = load_split(name, data_path, train=True)
    workers = default_workers(name) if workers is None else workers
    w_part, alpha_part = stratified_split(raw.targets, val_portion, seed)
    _check_batch(batch_size, len(w_part), "the weights' share of the training set")
    if len(alpha_part) < 2:
        raise ValueError(f"--val_portion {val_portion} leaves alpha {len(alpha_part)} images")

    augmented, plain = transforms(spec(name), True, cutout_length), transforms(spec(name), False)
    alpha_batch = min(batch_size, len(alpha_part))
    return Data(
        spec(name),
        train=_loader(View(raw, augmented, w_part), batch_size, True, workers, pin_memory),
        val=_loader(View(raw, augmented, alpha_part), alpha_batch, True, workers, pin_memory),
        held=_loader(View(raw, plain, alpha_part), batch_size, False, workers, pin_memory),
    )


def augment_data(name, data_path, batch_size, workers=None, pin_memory=False, cutout_length=0):
    """Data of the final training: all of the training set, scored on the test split."""
    raw = load_split(name, data_path, train=True)
    test = load_split(name, data_path, train=False)
    workers = default_workers(name) if workers is None else workers
    _check_batch(batch_size, len(raw), "the training set")
    augmented, plain = transforms(spec(name), True, cutout_length), transforms(spec(name), False)
    return Data(
        spec(name),
        train=_loader(View(raw, augmented), batch_size, True, workers, pin_memory),
        val=None,
        held=_loader(View(test, plain), batch_size, False, workers, pin_memory),
    )


def held_data(name, data_path, batch_size, workers=None, pin_memory=False):
    """(DataSpec, loader) of the test split alone."""
    test = load_split(name, data_path, train=False)
    workers = default_workers(name) if workers is None else workers
    plain = transforms(spec(name), False)
    return spec(name), _loader(View(test, plain), batch_size, False, workers, pin_memory)
