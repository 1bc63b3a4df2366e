"""From a data set to loaders: its parts, the split of the training set, batches.

A search sees the training set alone, in two halves: w learns from one, alpha from the other. The
test split is opened by `augment_data` and `scored_loaders` only. The data sets by name are in
named.py, folders of images in image_folder.py, what happens to an image in transforms.py. What is
found out and chosen goes to the log "darts.data".
"""

import logging
import os
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Subset

from console.parser import to_folder_name
from console.terminal import plural
from data_sets import image_folder, image_parts, named, splits
from data_sets.cache import CacheBudget
from data_sets.loader_processes import Loader
from data_sets.shares import ScoredBatches
from data_sets.shuffled import Augmented, ShuffledLoader
from data_sets.splits import Part, Transformed
from data_sets.transforms import Fit, default_cutout, pick_augmentation, transforms
from devices import pick

log = logging.getLogger("darts.data")


class Data(NamedTuple):
    """The loaders of a run. Batches are X (N, C_in, H, W) float32 and y (N,) int64.

    train  augmented, shuffled, full batches only: no BatchNorm ever sees a single image
    alpha  search: the half of alpha, in the same way; training: None
    val    what is scored after every epoch, plain and in order; search: the half of alpha without
           augmentation; training: the test split, or D/val of an image folder
    test   training, where there are both D/val and D/test: D/test, for the end
    """

    spec: named.DataSpec
    train: ShuffledLoader
    alpha: Any
    val: Loader
    test: Any
    val_name: str  # "alpha half", "val", "test" or "held-out"
    class_counts: tuple  # training images of each class
    cutout_length: int
    batch_size: int  # of training; it may be smaller than --batch_size
    held_out_files: tuple  # image files held out of the training part, by name
    images: dict  # which images were read: {part: splits.fingerprint}

    def describe_balance(self, class_weights):
        """The rarest and the most frequent class, and what is done about it."""
        counts, classes = self.class_counts, self.spec.classes
        few, many = counts.index(min(counts)), counts.index(max(counts))
        weights = "balanced: the loss gives all classes the same say"
        if class_weights == "none":
            weights = "none; --class_weights balanced gives rare classes the same say"
        return (
            f"class {classes[few]} has {counts[few]} training images, {classes[many]} "
            f"{counts[many]}; class weights {weights}"
        )


def search_data(options):
    """The Data of a search: the training set in two stratified parts, options.val_portion of it for
    alpha; with options.swapped w has the part of alpha, and alpha that of w. Raises ValueError, in
    one line, for what cannot be searched on."""
    part = open_part("train", options, CacheBudget(options.cache_gb))
    w_half, alpha_half = splits.stratified_split(part.targets, options.val_portion, options.seed)
    if options.swapped:
        w_half, alpha_half = alpha_half, w_half
    what = "the part of the training set that w learns from"
    batch_size = _fit_batch(options, len(w_half), what)
    _check_halves(part, w_half, alpha_half, options.val_portion)

    cutout_length, augmented = _augmented(part.spec, options)
    w_half, alpha_half = (Subset(part.dataset, half.tolist()) for half in (w_half, alpha_half))
    alpha_batch = _require_shares(min(batch_size, len(alpha_half)), options)
    workers = _workers(part.dataset, options)  # in all: both halves are read at once
    share = options._replace(workers=workers - workers // 2)
    train = _training_loader(w_half, augmented, batch_size, share)
    share = options._replace(workers=workers // 2)
    alpha = _training_loader(alpha_half, augmented, alpha_batch, share, half=1)
    val = _scoring_loader(alpha_half, part.spec, batch_size, options)
    _take_turns((train, alpha), (val,))
    return Data(
        part.spec,
        train=train,
        alpha=alpha,
        val=val,
        test=None,
        val_name="alpha half",
        class_counts=_class_counts(part),
        cutout_length=cutout_length,
        batch_size=batch_size,
        held_out_files=part.held_out_files,
        images={"train": splits.fingerprint(part.dataset, part.spec.classes)},
    )


def augment_data(options):
    """The Data of the final training: all of the training set, scored on other images. Raises
    ValueError, in one line, for what cannot be trained on."""
    budget = CacheBudget(options.cache_gb)
    part = open_part("train", options, budget)
    batch_size = _fit_batch(options, len(part.dataset), "the training set")
    cutout_length, augmented = _augmented(part.spec, options)
    known = options._replace(known_spec=part.spec, batch_size=batch_size)
    scored = scored_loaders(known, budget)
    val_name = next(iter(scored))
    train = _training_loader(part.dataset, augmented, batch_size, options)
    _take_turns((train,), tuple(scored.values()))
    read = {"train": part.dataset} | {name: loader.dataset for name, loader in scored.items()}
    return Data(
        part.spec,
        train=train,
        alpha=None,
        val=scored[val_name],
        test=scored["test"] if val_name == "val" and "test" in scored else None,
        val_name=val_name,
        class_counts=_class_counts(part),
        cutout_length=cutout_length,
        batch_size=batch_size,
        held_out_files=part.held_out_files,
        images={
            name: splits.fingerprint(dataset, part.spec.classes) for name, dataset in read.items()
        },
    )


def scored_loaders(options, budget=None):
    """{part: loader} of what a training is scored on: "test", "val" or "held-out" after every
    epoch, and where there is a val, "test" at the end.

    Of an image folder options.known_spec must say what its training found out.
    """
    budget = budget or CacheBudget(options.cache_gb)
    names = ["test"]
    if options.dataset in named.FOLDERS:
        names = image_parts.scored(options.data_path)
    parts = {name: open_part(name, options, budget) for name in names}
    return {
        name: _scoring_loader(part.dataset, part.spec, options.batch_size, options)
        for name, part in parts.items()
    }


def default_run_name(dataset, data_path):
    """What a run on this data set is called if it has no --name: a folder name."""
    if dataset not in named.FOLDERS:
        return dataset
    return to_folder_name(image_folder.folder_name(data_path)) or dataset


# --- parts --------------------------------------------------------------------------------------


def open_part(name, options, budget):
    """The Part "train" (the portion options.subset of it), "test", or of an image folder also "val"
    or "held-out"."""
    if name != "train" or not _is_other_folder(options.dataset, options.data_path):
        return _open_part(name, options, budget)
    unread = (
        f"the folder {options.dataset} here is not read: {options.dataset} is a data set by name. "
        f"--dataset ./{options.dataset} takes the folder"
    )
    log.info(unread)
    try:
        return _open_part(name, options, budget)
    except (OSError, ValueError) as error:  # no log will be written
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"{error}; {unread}") from error


def _open_part(name, options, budget):
    """The Part, whatever else is called like the data set."""
    train = name == "train"
    if options.dataset in named.FOLDERS:
        return image_folder.load(name, options, budget)
    own = named.spec(options.dataset)
    spec = options.known_spec or _as_asked(own, options)
    dataset = named.load_split(options.dataset, options.data_path, train)
    if (spec.C_in, spec.size) != (own.C_in, own.size):
        dataset = Transformed(dataset, Fit(spec.C_in, spec.size))
        if train:
            log.info(f"converted to {spec.C_in} channel(s) of {spec.size[0]}x{spec.size[1]}")
    if train and options.subset < 1:
        targets = splits.targets_of(dataset)
        indices = splits.subset(targets, options.subset, options.seed)
        dataset = Subset(dataset, indices.tolist())
        log.info(f"--subset {options.subset}: {len(dataset)} training images")
    return Part(spec, dataset)


def _is_other_folder(dataset, data_path):
    """Whether the name of a data set is also that of a folder here, which is not read."""
    return os.path.isdir(dataset) and os.path.abspath(dataset) != os.path.abspath(data_path)


def _as_asked(spec, options):
    """The DataSpec with --input_size and --in_channels."""
    if options.input_size:
        spec = spec._replace(size=tuple(options.input_size))
    if options.in_channels and options.in_channels != spec.C_in:
        if options.in_channels == 1:  # about the same as that of the channels
            mean, std = ((sum(values) / 3,) for values in (spec.mean, spec.std))
        else:
            mean, std = spec.mean * 3, spec.std * 3
        spec = spec._replace(C_in=options.in_channels, mean=mean, std=std)
    return spec


def _class_counts(part):
    return tuple(np.bincount(part.targets, minlength=len(part.spec.classes)).tolist())


def _check_halves(part, w_half, alpha_half, val_portion):
    """Raise ValueError where a half lacks a class, or is none."""
    if len(alpha_half) < 2:
        raise ValueError(
            f"--val_portion {val_portion} leaves alpha {plural(len(alpha_half), 'image')}"
        )
    targets = part.targets
    for what, half in (("the weights", w_half), ("alpha", alpha_half)):
        for y in sorted(set(targets) - set(targets[half])):
            raise ValueError(
                f"class {part.spec.classes[y]} has {(targets == y).sum()} training image(s), and "
                f"none is left for {what} with --val_portion {val_portion}; add images, or leave "
                f"the class out"
            )


# --- batches ------------------------------------------------------------------------------------


def _augmented(spec, options):
    """(cutout length, the transform of training images)."""
    cutout_length = options.cutout_length
    if cutout_length is None:
        cutout_length = default_cutout(spec.size)
    kind = pick_augmentation(options)
    return cutout_length, transforms(spec, True, cutout_length, kind, options.hflip)


def _fit_batch(options, n_images, what):
    """The batch size: smaller than asked where there are fewer images and nobody asked for it.

    Raises ValueError, with a number that fits, where somebody did, and for a batch that leaves a
    process fewer than two images in a part.
    """
    if options.batch_size <= n_images:
        return _require_shares(options.batch_size, options)
    few = plural(n_images, "image")
    fits = 1 << (max(n_images, 1).bit_length() - 1)  # the largest power of two
    if not options.may_shrink_batch or fits < 2:
        raise ValueError(
            f"--batch_size {options.batch_size} is larger than {what}, {few}; "
            + (f"try --batch_size {fits}" if fits > 1 else "two are needed at least")
        )
    log.info(f"batch {fits} instead of {options.batch_size}, since {what} has {few}")
    return _require_shares(fits, options)


def _require_shares(batch_size, options):
    """`batch_size`, if two images of it are in each part of each process: BatchNorm needs a second
    value where a map is down to one pixel. Else raises ValueError."""
    size, parts = options.share[1], options.accumulate
    if size * parts > 1 and batch_size < 2 * size * parts:
        how = f"{size} processes" if size > 1 else ""
        how += " and " * (size > 1 < parts) + f"--accumulate {parts}" * (parts > 1)
        raise ValueError(
            f"a batch of {batch_size} images is too small for {how}: it leaves fewer than two for "
            f"each pass; {2 * size * parts} are needed at least"
        )
    return batch_size


def _training_loader(dataset, augmented, batch_size, options, half=0):
    images = Augmented(dataset, augmented)
    seed = [options.seed, half]
    return ShuffledLoader(images, batch_size, seed, options.share, **_how_to_load(images, options))


def _scoring_loader(dataset, spec, batch_size, options):
    images = Transformed(dataset, transforms(spec, train=False))
    if len(images) < options.share[1]:
        raise ValueError(
            f"{len(images)} images to score are fewer than {options.share[1]} processes; start "
            f"fewer, or add images"
        )
    batches = ScoredBatches(len(images), batch_size, options.share)
    return Loader(images, batch_sampler=batches, **_how_to_load(images, options))


def _how_to_load(dataset, options):
    workers = _workers(dataset, options)
    return {
        "num_workers": workers,
        # processes that live on keep random states that no checkpoint holds
        "persistent_workers": workers > 0 and not options.deterministic,
        "pin_memory": options.pin_memory,
        # torch draws a seed for loader processes: not from the generator of the network
        "generator": torch.Generator(),
    }


def _workers(dataset, options):
    """Loader processes in all, of those that read at the same time."""
    if options.workers is not None:
        return options.workers
    in_memory = getattr(splits.source(dataset), "in_memory", False)
    return default_workers(in_memory, options.local_size)


def _take_turns(trained, scored):
    """The loaders of a training epoch and each that is scored on end each other's processes."""
    for loader in trained:
        loader.others = scored
    for loader in scored:
        loader.others = (*trained, *(other for other in scored if other is not loader))


def default_workers(in_memory, n=1):
    """Loader processes of each of `n` processes on this machine: none for decoded images in memory,
    else up to four."""
    return 0 if in_memory else max(1, min(4, pick.cores() // n))
