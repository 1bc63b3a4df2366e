"""Which images of a training set go where."""

import numpy as np
from torch.utils.data import Dataset


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


def share(targets, portion, seed):
    """Indices of `portion` of every class, two images of it at least, in order."""
    targets, kept = np.asarray(targets), []
    rng = np.random.default_rng([seed, 1])  # not the draw of stratified_split
    for y in np.unique(targets):
        indices = rng.permutation(np.flatnonzero(targets == y))
        kept.append(indices[: max(2, round(portion * len(indices)))])
    return np.sort(np.concatenate(kept))
