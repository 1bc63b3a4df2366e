"""All data sets by name, in one table. To add one, add a row to it, and no other line anywhere.

Importing this loads no torch: the openers import what they need. Images that are not here come
from a folder: image_folder.py.
"""

import contextlib
import difflib
import importlib.util
import os
from collections.abc import Callable
from typing import NamedTuple

from console.errors import one_line


class DataSpec(NamedTuple):
    """What the networks need to know of a data set. Images are (C_in, *size); mean and std are per
    channel, of values in [0, 1]; `white` is the value of 16-bit files that becomes 1."""

    name: str
    C_in: int
    size: tuple
    classes: tuple
    mean: tuple
    std: tuple
    white: int = 65535

    def describe(self):
        """Channels and size of the images, as in "grey 8x8"."""
        H, W = self.size
        return f"{'grey' if self.C_in == 1 else 'colour'} {H}x{W}"

    def to_dict(self):
        """The same in types that JSON and torch.load(weights_only=True) know."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in self._asdict().items()}

    @classmethod
    def from_dict(cls, saved):
        """The DataSpec that `to_dict` wrote."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()})


# --- openers: (data_path, whether it is the training split) -> dataset --------------------------
# A dataset has (image, class) pairs, images as PIL or uint8 (C, H, W), and `targets`.


class Digits:
    """UCI optical digits, bundled with the repository: 1,437 training and 360 test images, 8x8."""

    N_TEST = 360
    in_memory = True

    def __init__(self, train):
        import numpy as np
        import torch

        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        with np.load(os.path.join(root, "data", "digits.npz")) as file:
            images, labels = file["images"], file["labels"]  # (1797, 8, 8) uint8, (1797,)
        part = slice(None, -self.N_TEST) if train else slice(-self.N_TEST, None)
        self.pixels = torch.from_numpy(images[part]).unsqueeze(1)  # (N, 1, 8, 8)
        self.targets = labels[part].tolist()

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.pixels[index], self.targets[index]


def _torchvision(name):
    """Opener of a data set that torchvision has under this name."""

    def open_split(data_path, train):
        from torchvision import datasets

        return getattr(datasets, name)(data_path, train=train, download=True)

    return open_split


def _svhn(data_path, train):
    """SVHN names its splits and its targets otherwise."""
    from torchvision import datasets

    if importlib.util.find_spec("scipy") is None:  # before 180 MB are downloaded
        raise ValueError("svhn comes in MATLAB files, which need scipy: pip install scipy")
    dataset = datasets.SVHN(data_path, "train" if train else "test", download=True)
    dataset.targets = dataset.labels.tolist()
    return dataset


def upright(image):
    """EMNIST stores its letters lying on their side, mirrored."""
    from PIL import Image

    return image.transpose(Image.Transpose.TRANSPOSE)


def _emnist(data_path, train):
    from torchvision import datasets

    return datasets.EMNIST(data_path, "balanced", train=train, transform=upright, download=True)


# --- the table ----------------------------------------------------------------------------------


class NamedDataSet(NamedTuple):
    """A row of DATA_SETS."""

    spec: DataSpec
    open: Callable  # as above; downloads what is missing
    augment: str  # what --augment auto means for it: a kind of transforms.augmentation
    file: str = ""  # the file to put into --data_path by hand where there is no network


_DIGITS = tuple("0123456789")
_FASHION = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
_CIFAR10 = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_KANA = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"
_CIFAR100_WORDS = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
    crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
    keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain
    mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain
    plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
    television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
_CIFAR100 = tuple(_CIFAR100_WORDS.split())
_FOUR = "train-images-idx3-ubyte.gz (and the three other files)"
_ROWS = (
    NamedDataSet(
        DataSpec("digits", 1, (8, 8), _DIGITS, (0.3054,), (0.3753,)),
        lambda data_path, train: Digits(train),
        augment="digits",
    ),
    NamedDataSet(
        DataSpec("mnist", 1, (28, 28), _DIGITS, (0.1307,), (0.3081,)),
        _torchvision("MNIST"),
        augment="digits",
        file=os.path.join("MNIST", "raw", _FOUR),
    ),
    NamedDataSet(
        DataSpec("fashionmnist", 1, (28, 28), tuple(_FASHION.split(",")), (0.2860,), (0.3530,)),
        _torchvision("FashionMNIST"),
        augment="light",
        file=os.path.join("FashionMNIST", "raw", _FOUR),
    ),
    NamedDataSet(
        DataSpec(
            "cifar10", 3, (32, 32), _CIFAR10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
        ),
        _torchvision("CIFAR10"),
        augment="cifar",
        file="cifar-10-python.tar.gz",
    ),
    # from here on mean and std are the values in common use
    NamedDataSet(
        DataSpec(
            "cifar100", 3, (32, 32), _CIFAR100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
        ),
        _torchvision("CIFAR100"),
        augment="cifar",
        file="cifar-100-python.tar.gz",
    ),
    NamedDataSet(
        DataSpec("svhn", 3, (32, 32), _DIGITS, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
        _svhn,
        augment="digits",
        file="train_32x32.mat (and test_32x32.mat)",
    ),
    NamedDataSet(
        DataSpec("kmnist", 1, (28, 28), _KANA, (0.1918,), (0.3483,)),
        _torchvision("KMNIST"),
        augment="digits",
        file=os.path.join("KMNIST", "raw", _FOUR),
    ),
    NamedDataSet(  # its "balanced" split: letters that look alike in both cases share a class
        DataSpec("emnist", 1, (28, 28), (*_DIGITS, *_LETTERS), (0.1751,), (0.3332,)),
        _emnist,
        augment="digits",
        file=os.path.join("EMNIST", "raw", "gzip.zip"),
    ),
)
DATA_SETS = {row.spec.name: row for row in _ROWS}
FOLDERS = ("folder", "imagenet")  # image folders: --data_path/train/<class>/* (image_folder.py)
NAMES = (*DATA_SETS, *FOLDERS)


def find(name):
    """The row of a data set. Raises ValueError for an unknown name."""
    if name not in DATA_SETS:
        raise ValueError(
            f"unknown data set {name!r}: there is no such folder of images here, and known by name "
            f"are {', '.join(NAMES)}{nearest(name)}"
        )
    return DATA_SETS[name]


def nearest(name):
    """A question for the end of an error: whether a data set or a folder here that is called like
    `name` was meant; "" if there is none."""
    folders = []
    with contextlib.suppress(OSError):  # where the folder may not be listed
        folders = [entry.name for entry in os.scandir() if entry.is_dir()]
    known = {known.lower(): known for known in (*folders, *NAMES)}
    near = difflib.get_close_matches(name.lower(), known, n=1)
    return f"; did you mean {known[near[0]]!r}?" if near else ""


def spec(name):
    """The DataSpec of a data set. Raises ValueError for an unknown name."""
    return find(name).spec


def load_split(name, data_path, train):
    """The training or test split: (image, class) pairs, with `targets`.

    Downloads what is missing to `data_path`. Raises ValueError for an unknown name and OSError,
    saying which file to put where, when the download fails.
    """
    row = find(name)
    try:
        return row.open(data_path, train)
    except (RuntimeError, OSError) as error:  # of which URLError is one
        if not row.file:
            raise
        reason = getattr(error, "reason", None) or one_line(error)
        raise OSError(
            f"{name} is not in {data_path} and cannot be downloaded ({reason}); "
            f"put {os.path.join(data_path, row.file)} there yourself"
        ) from None
