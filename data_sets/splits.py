"""Which images of a data set go where: drawn class by class."""

import hashlib
import os
import unicodedata
from collections import defaultdict
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset, Subset

from console.terminal import plural
from data_sets.named import DataSpec


class Transformed(Dataset):
    """A data set seen through a transform of its images."""

    def __init__(self, dataset, transform):
        self.dataset = dataset
        self.transform = transform

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        image, y = self.dataset[index]
        return self.transform(image), int(y)


class Part(NamedTuple):
    """One part of a data set: (image, class) pairs, not augmented and not normalised.

    dataset         has `targets`, or is a Subset or Transformed of one that has
    held_out_files  names of the image files that were held out of this part
    """

    spec: DataSpec
    dataset: Dataset
    held_out_files: tuple = ()

    @property
    def targets(self):
        return targets_of(self.dataset)


def source(dataset):
    """The data set below all Subset and Transformed."""
    while isinstance(dataset, (Subset, Transformed)):
        dataset = dataset.dataset
    return dataset


def targets_of(dataset):
    """Int array (N,), the class of every image. Reads no image."""
    if isinstance(dataset, Subset):
        return targets_of(dataset.dataset)[np.asarray(dataset.indices, dtype=int)]
    if isinstance(dataset, Transformed):
        return targets_of(dataset.dataset)
    return np.asarray(dataset.targets, dtype=int)


def fingerprint(dataset, classes):
    """Which images these are: {"classes": {class: how many}, "files": a hash of the names and sizes
    of their files}. The hash is empty where there are no files, as for data sets by name."""
    counts = np.bincount(targets_of(dataset), minlength=len(classes)).tolist()
    read, digest = source(dataset), ""
    if hasattr(read, "files"):
        sizes = (os.path.getsize(os.path.join(read.root, file)) for file in read.files)
        lines = (f"{file} {n}\n" for file, n in zip(read.files, sizes, strict=True))
        known = "".join(sorted(unicodedata.normalize("NFC", line) for line in lines))
        digest = hashlib.sha256(known.encode()).hexdigest()[:24]
    return {"classes": dict(zip(classes, counts, strict=True)), "files": digest}


def differences(before, now):
    """What differs between two {part: `fingerprint`}, in words, one for each part."""
    found = []
    for part in sorted(before.keys() | now.keys()):
        old, new = (images.get(part, {"classes": {}, "files": ""}) for images in (before, now))
        if old == new:
            continue
        counts = [images["classes"] for images in (old, new)]
        n, m = (sum(count.values()) for count in counts)
        changed = [
            f"{name} {a} -> {b}"
            for name in counts[0] | counts[1]
            if (a := counts[0].get(name, 0)) != (b := counts[1].get(name, 0))
        ]
        how = ", ".join(changed) or "as many of each class, but other files"
        found.append(f"{part} had {plural(n, 'image')} and has {m:,} ({how})")
    return found


def by_class(targets):
    """{class: its indices, ascending}, classes ascending. Reads each target once."""
    groups = defaultdict(list)
    for i, y in enumerate(targets):
        groups[int(y)].append(i)
    return dict(sorted(groups.items()))


def draw(targets, count, order):
    """Draw images of every class; returns (drawn, rest), two int arrays of indices.

    count  function: number of images of a class -> how many of them to draw
    order  function: indices of a class -> the same in the order in which they are drawn
    """
    drawn, rest = [], []
    for indices in by_class(targets).values():
        ordered = [int(i) for i in order(indices)]
        n = count(len(indices))
        drawn += ordered[:n]
        rest += ordered[n:]
    return np.array(drawn, dtype=int), np.array(rest, dtype=int)


def stratified_split(targets, portion, seed):
    """Shuffle and divide 0..N-1 in two, `portion` of every class in the second part.

    Returns two int arrays, disjoint and together all of 0..N-1; one seed, one split.
    """
    rng = np.random.default_rng(seed)
    first, second = draw(targets, lambda n: n - round(portion * n), rng.permutation)
    return rng.permutation(first), rng.permutation(second)


def subset(targets, portion, seed):
    """Indices of `portion` of every class, two images of it at least, in order."""
    rng = np.random.default_rng([seed, 1])  # not the draw of stratified_split
    kept, _ = draw(targets, lambda n: max(2, round(portion * n)), rng.permutation)
    return np.sort(kept)
