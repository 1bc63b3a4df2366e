"""From a data set to loaders: its parts, the split of the training set, batches.

A search sees the training set alone, in two halves: w learns from one, alpha from the other.
The test split is opened by `augment_data` and `held_data` only. The data sets themselves are in
data_sets.py, folders of images in image_folder.py, what happens to an image in transforms.py.
"""

import re
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader

from data_sets import image_folder
from data_sets.named import FOLDERS, DataSpec, Options, load_split, spec
from data_sets.splits import View, share, stratified_split
from data_sets.transforms import chosen, default_cutout, transforms
from devices import pick

# --- raw images ---------------------------------------------------------------------------------


class Raw(NamedTuple):
    """The images of one part, (image, class) each, before any transform."""

    spec: DataSpec
    images: Any
    indices: Any  # those to take, or None for all
    notes: list  # what was found and chosen, for the log
    convert: bool = False  # the images have not yet the size and channels of spec
    room: Any = None  # GB left for decoded images
    held_files: tuple = ()  # what is held out of an image folder without val and test


def open_part(name, data_path, part, options, seed=0, room=None):
    """One part as Raw: "train" (the share of options.subset), or one of `scored_parts`."""
    if name in FOLDERS:
        got = image_folder.load(name, data_path, part, options, seed, room)
        return Raw(got.spec, got.raw, None, got.notes, room=got.room, held_files=got.held)
    about = options.saved or _asked_for(spec(name), options)
    convert = (about.C_in, about.size) != (spec(name).C_in, spec(name).size)
    raw = load_split(name, data_path, part == "train")
    indices, notes = None, []
    if part == "train" and options.subset < 1:
        indices = share(raw.targets, options.subset, seed)
        notes.append(f"--subset {options.subset}: {len(indices)} training images")
    if convert and part == "train":
        notes.append(f"converted to {about.C_in} channel(s) of {about.size[0]}x{about.size[1]}")
    return Raw(about, raw, indices, notes, convert)


def _asked_for(about, options):
    """The DataSpec with --input_size and --in_channels."""
    if options.input_size:
        about = about._replace(size=tuple(options.input_size))
    if options.in_channels and options.in_channels != about.C_in:
        if options.in_channels == 1:  # about the same as that of the channels
            mean, std = ((sum(values) / 3,) for values in (about.mean, about.std))
        else:
            mean, std = about.mean * 3, about.std * 3
        about = about._replace(C_in=options.in_channels, mean=mean, std=std)
    return about


def scored_parts(name, data_path):
    """The parts a training is scored on: the first after every epoch, a second one at the end."""
    return image_folder.scored_parts(data_path) if name in FOLDERS else ["test"]


def subject(name, data_path):
    """What a run on this data set is called if it has no --name: a folder name."""
    if name not in FOLDERS:
        return name
    return re.sub(r"[^\w.+=-]+", "-", image_folder.subject(data_path)).strip("-.+=") or name


def class_counts(raw):
    """How many images each class has."""
    targets = np.asarray(raw.images.targets)
    if raw.indices is not None:
        targets = targets[raw.indices]
    return np.bincount(targets, minlength=len(raw.spec.classes)).tolist()


# --- loaders ------------------------------------------------------------------------------------


class Data(NamedTuple):
    """The loaders of a run. Batches are X (N, C_in, H, W) float32 and y (N,) int64.

    train  augmented, shuffled, full batches only: no BatchNorm ever sees a single image
    val    search: the half of alpha, augmented and shuffled; augment: None
    held   what is scored after an epoch, plain and in order; search: the half of alpha without
           augmentation; augment: the test split, or D/val of an image folder
    test   augment, where there are both D/val and D/test: D/test, for the end
    """

    spec: DataSpec
    train: DataLoader
    val: Any
    held: DataLoader
    test: Any = None
    held_name: str = "test"  # "test", "val" or "held-out"
    class_counts: tuple = ()  # training images of each class
    cutout_length: int = 0
    batch_size: int = 0  # of training
    notes: tuple = ()  # what was found and chosen, for the log
    held_files: tuple = ()  # image files held out of the training part, by name


def default_workers(name, in_memory=False):
    """Loader processes: none for decoded images in memory (the digits are), else up to four."""
    return 0 if name == "digits" or in_memory else min(4, pick.cores())


def _workers(workers, name, raw):
    in_memory = getattr(raw.images, "in_memory", False)
    return default_workers(name, in_memory) if workers is None else workers


def _loader(dataset, batch_size, train, workers, pin_memory):
    return DataLoader(
        dataset, batch_size, shuffle=train, drop_last=train, num_workers=workers,
        pin_memory=pin_memory, persistent_workers=workers > 0,
    )  # fmt: skip


def _fit_batch(batch_size, n_images, what, lower):
    """(batch size, notes for the log): smaller where there are fewer images and `lower` allows it.

    Raises ValueError, with a number that fits, where it does not.
    """
    if batch_size <= n_images:
        return batch_size, ()
    fits = 1 << (max(n_images, 1).bit_length() - 1)  # the largest power of two
    if not lower or fits < 2:
        raise ValueError(
            f"--batch_size {batch_size} is larger than {what} of {n_images} images; "
            + (f"try --batch_size {fits}" if fits > 1 else "two are needed at least")
        )
    return fits, (f"batch {fits} instead of {batch_size}, since {what} has {n_images} images",)


def in_words(about):
    """Channels and size of the images."""
    H, W = about.size
    return f"{'grey' if about.C_in == 1 else 'colour'} {H}x{W}"


def balance_in_words(data, class_weights):
    """The rarest and the most frequent class, and what is done about it."""
    counts, classes = data.class_counts, data.spec.classes
    few, many = counts.index(min(counts)), counts.index(max(counts))
    about = "balanced: the loss gives all classes the same say"
    if class_weights == "none":
        about = "none; --class_weights balanced gives rare classes the same say"
    return (
        f"class {classes[few]} has {counts[few]} training images, {classes[many]} "
        f"{counts[many]}; class weights {about}"
    )


def search_data(
    name, data_path, batch_size, val_portion, seed, workers=None, pin_memory=False, cutout_length=0,
    options=None, lower=False,
):  # fmt: skip
    """Data of a search: the training set in two stratified parts, `val_portion` of it for alpha.

    name     one of data_sets.SPECS, or "folder" or "imagenet" for the image folder `data_path`
    options  a data_sets.Options (default: those of the flags)
    lower    take a smaller batch where there are fewer images
    """
    options = options or Options()
    raw = open_part(name, data_path, "train", options, seed)
    about, workers = raw.spec, _workers(workers, name, raw)
    w_part, alpha_part = _halves(raw, val_portion, seed)
    what = "the part of the training set that w learns from"
    batch_size, fitted = _fit_batch(batch_size, len(w_part), what, lower)
    if len(alpha_part) < 2:
        raise ValueError(f"--val_portion {val_portion} leaves alpha {len(alpha_part)} images")
    _check_classes(raw, w_part, alpha_part, val_portion)

    kind, note = chosen(name, options)
    augmented = transforms(about, True, cutout_length, kind, options.hflip, raw.convert)
    plain = transforms(about, False, convert=raw.convert)
    images, alpha_batch = raw.images, min(batch_size, len(alpha_part))
    return Data(
        about,
        train=_loader(View(images, augmented, w_part), batch_size, True, workers, pin_memory),
        val=_loader(View(images, augmented, alpha_part), alpha_batch, True, workers, pin_memory),
        held=_loader(View(images, plain, alpha_part), batch_size, False, workers, pin_memory),
        held_name="alpha half",
        class_counts=tuple(class_counts(raw)),
        cutout_length=cutout_length,
        notes=(*raw.notes, *fitted, note),
        batch_size=batch_size,
        held_files=tuple(raw.held_files),
    )


def _halves(raw, val_portion, seed):
    """`stratified_split` of the images of `raw`."""
    targets = np.asarray(raw.images.targets)
    if raw.indices is None:
        return stratified_split(targets, val_portion, seed)
    first, second = stratified_split(targets[raw.indices], val_portion, seed)
    return raw.indices[first], raw.indices[second]


def _check_classes(raw, w_part, alpha_part, val_portion):
    targets = np.asarray(raw.images.targets)
    for what, part in (("the weights", w_part), ("alpha", alpha_part)):
        for y in sorted(set(targets[[*w_part, *alpha_part]]) - set(targets[part])):
            n = int(sum(targets[[*w_part, *alpha_part]] == y))
            raise ValueError(
                f"class {raw.spec.classes[y]} has {n} training image(s), and none is left for "
                f"{what} with --val_portion {val_portion}; add images, or leave the class out"
            )


def augment_data(
    name, data_path, batch_size, workers=None, pin_memory=False, cutout_length=0, seed=0,
    options=None, lower=False,
):  # fmt: skip
    """Data of the final training: all of the training set, scored on the test split.

    name, options, lower  as in `search_data`
    seed           of options.subset
    cutout_length  None: `default_cutout`
    """
    options = options or Options()
    raw = open_part(name, data_path, "train", options, seed)
    about, loader_workers = raw.spec, _workers(workers, name, raw)
    n_images = len(raw.images) if raw.indices is None else len(raw.indices)
    batch_size, fitted = _fit_batch(batch_size, n_images, "the training set", lower)
    if cutout_length is None:
        cutout_length = default_cutout(about.size)
    kind, note = chosen(name, options)
    augmented = transforms(about, True, cutout_length, kind, options.hflip, raw.convert)
    plain = transforms(about, False, convert=raw.convert)

    parts, room = {}, raw.room
    for part in scored_parts(name, data_path):
        held = open_part(name, data_path, part, options._replace(saved=about), room=room)
        room = held.room
        view, n = View(held.images, plain), _workers(workers, name, held)
        parts[part] = held, _loader(view, batch_size, False, n, pin_memory)
    first, *others = parts
    return Data(
        about,
        train=_loader(
            View(raw.images, augmented, raw.indices), batch_size, True, loader_workers, pin_memory
        ),
        val=None,
        held=parts[first][1],
        test=parts[others[0]][1] if others else None,
        held_name=first,
        class_counts=tuple(class_counts(raw)),
        cutout_length=cutout_length,
        notes=(*raw.notes, *fitted, *(n for held, _ in parts.values() for n in held.notes), note),
        batch_size=batch_size,
        held_files=tuple(raw.held_files),
    )


def held_data(
    name, data_path, batch_size, workers=None, pin_memory=False, options=None, part=None
):  # fmt: skip
    """(DataSpec, loader) of one of `scored_parts` alone (default: the first, which training is
    scored on after every epoch).

    Of an image folder options.saved must say what its training found out.
    """
    options = options or Options()
    part = part or scored_parts(name, data_path)[0]
    held = open_part(name, data_path, part, options)
    plain = transforms(held.spec, False, convert=held.convert)
    workers = _workers(workers, name, held)
    return held.spec, _loader(View(held.images, plain), batch_size, False, workers, pin_memory)
