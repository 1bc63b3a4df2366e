"""Data sets by name: what the networks need to know of each, and its two splits.

Images that are not here come from a folder: image_folder.py.
"""

import importlib.util
import os
import urllib.error
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import datasets


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


class Options(NamedTuple):
    """The flags of the data group that say how a data set is read; config.py explains them.

    saved     the DataSpec of the run to go on with or to score: nothing is found out anew
    notebooks JSON files that remember what was found out about a folder (image_folder.py); the
              first is written
    """

    in_channels: Any = None
    input_size: Any = None
    test_portion: float = 0.2
    bad_images: str = "fail"
    subset: float = 1.0
    augment: str = "auto"
    hflip: Any = None
    cache_gb: float = 2.0
    saved: Any = None
    notebooks: tuple = ()

    @classmethod
    def of(cls, cfg, saved=None):
        """From the flags of a run; `saved` is the "data" of its checkpoint, if it has one."""
        flags = {name: getattr(cfg, name) for name in cls._fields[:-2]}
        about = None if saved is None else DataSpec.from_dict(saved)
        roots = sorted(("searchs", "augments"), key=lambda root: root != cfg.ROOT)
        notebooks = tuple(os.path.join(root, ".images.json") for root in roots)
        return cls(**flags, saved=about, notebooks=notebooks)


# Mean and std of cifar100, svhn, kmnist and emnist are the values in common use.
_DIGITS = tuple("0123456789")
_CIFAR100 = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle",
    "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle",
    "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup",
    "dinosaur", "dolphin", "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house",
    "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard", "lobster", "man",
    "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid",
    "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy",
    "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal",
    "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar",
    "sunflower", "sweet_pepper", "table", "tank", "telephone", "television", "tiger", "tractor",
    "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman",
    "worm",
)  # fmt: skip
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
        DataSpec(
            "cifar100", 3, (32, 32),
            _CIFAR100,
            (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762),
        ),
        DataSpec(
            "svhn", 3, (32, 32), _DIGITS, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
        ),
        DataSpec(
            "kmnist", 1, (28, 28),
            ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"), (0.1918,), (0.3483,),
        ),
        DataSpec(  # its "balanced" split; upper and lower case share a class where they look alike
            "emnist", 1, (28, 28),
            (*_DIGITS, *"ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"), (0.1751,), (0.3332,),
        ),
    )
}  # fmt: skip


# image folders: D/train/<class>/*, D given by --data_path (image_folder.py)
FOLDERS = ("folder", "imagenet")


def spec(name):
    """The DataSpec of a data set. Raises ValueError for an unknown name."""
    if name not in SPECS:
        raise ValueError(
            f"unknown data set {name!r}: there is no such folder of images here, and known by name "
            f"are {', '.join((*SPECS, *FOLDERS))}"
        )
    return SPECS[name]


class Digits(Dataset):
    """UCI optical digits, bundled with the repository: 1,437 training and 360 test images, 8x8."""

    N_TEST = 360

    def __init__(self, train):
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        path = os.path.join(root, "data", "digits.npz")
        with np.load(path) as file:
            images, labels = file["images"], file["labels"]  # (1797, 8, 8) uint8, (1797,)
        part = slice(None, -self.N_TEST) if train else slice(-self.N_TEST, None)
        self.images = torch.from_numpy(images[part]).unsqueeze(1)  # (N, 1, 8, 8)
        self.targets = labels[part].tolist()

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.images[index], self.targets[index]


def _svhn(data_path, train, download):
    """SVHN names its splits and its targets otherwise."""
    if importlib.util.find_spec("scipy") is None:  # before 180 MB are downloaded
        raise ValueError("svhn comes in MATLAB files, which need scipy: pip install scipy")
    raw = datasets.SVHN(data_path, "train" if train else "test", download=download)
    raw.targets = raw.labels.tolist()
    return raw


def upright(image):
    """EMNIST stores its letters lying on their side, mirrored."""
    return image.transpose(Image.Transpose.TRANSPOSE)


def _emnist(data_path, train, download):
    return datasets.EMNIST(data_path, "balanced", train=train, transform=upright, download=download)


_FOUR = "train-images-idx3-ubyte.gz (and the three other files)"
# name: (how to open it, the file to put into --data_path without a network)
_TORCHVISION = {
    "mnist": (datasets.MNIST, os.path.join("MNIST", "raw", _FOUR)),
    "fashionmnist": (datasets.FashionMNIST, os.path.join("FashionMNIST", "raw", _FOUR)),
    "cifar10": (datasets.CIFAR10, "cifar-10-python.tar.gz"),
    "cifar100": (datasets.CIFAR100, "cifar-100-python.tar.gz"),
    "svhn": (_svhn, "train_32x32.mat (and test_32x32.mat)"),
    "kmnist": (datasets.KMNIST, os.path.join("KMNIST", "raw", _FOUR)),
    "emnist": (_emnist, os.path.join("EMNIST", "raw", "gzip.zip")),
}


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
