"""Images of one's own: D/train/<class>/*, and D/val or D/test if there are such.

What the networks need to know of them (classes, size, channels, mean and std) is found in the
training part alone; no other part is opened before it is asked for. Without D/val and D/test a
portion of every class is held out, chosen by file name, so that every run holds out the same
images. What is found out goes to the log "darts.data".
"""

import hashlib
import logging
import math
import os
import unicodedata
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from console.terminal import byte_size, plural, visible
from data_sets import cache, image_files, image_parts, splits
from data_sets.image_parts import HELD_OUT
from data_sets.named import DataSpec
from data_sets.options import MAX_MEGAPIXELS
from records.files import CONFIG, METRICS, SUMMARY

log = logging.getLogger("darts.data")

LARGE = 256  # the shorter side, above which the log suggests smaller images
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def folder_name(path):
    """What an image folder and its runs are called."""
    return visible(os.path.basename(os.path.abspath(path)))


# --- which files there are ----------------------------------------------------------------------


class Files(NamedTuple):
    """Image files of one part: `files` relative to `root`, their classes as numbers."""

    root: str
    classes: tuple
    files: list
    targets: list

    def only(self, indices):
        """Those of the given indices."""
        files, targets = ([values[i] for i in indices] for values in (self.files, self.targets))
        return self._replace(files=files, targets=targets)

    def paths(self):
        return [os.path.join(self.root, file) for file in self.files]


def list_files(root, classes=None, again=False):
    """The Files of the class folders in `root`.

    classes  None, or the classes of the training part in their order: no other is allowed then
    again    what is left out was said when the same folder was read for the training part

    Raises ValueError for the folder of a run, and for class folders that are missing, empty,
    unknown or only one.
    """
    if all(os.path.isfile(os.path.join(root, name)) for name in (CONFIG, METRICS, SUMMARY)):
        raise ValueError(
            f"{root} is the folder of a run; name that of your images, with one subfolder per class"
        )
    class_of = {name: unicodedata.normalize("NFC", name) for name in image_parts.subfolders(root)}
    folders = sorted(set(class_of.values()))
    images, others = image_files.find(root)
    if not folders:
        loose = "images but no" if images else "neither images nor"
        raise ValueError(
            f"{root} holds {loose} class folders; put the images of each class into "
            f"{os.path.join(root, '<class>')}"
        )
    if classes is None:
        image_parts.check_class_folders(root, list(class_of), images)
        classes = tuple(folders)
    require_known(root, folders, classes)

    of_class = {name: [] for name in classes}
    for file in images:
        name, _, below = file.partition("/")
        if below:
            of_class[class_of[name]].append(file)
        else:
            others["outside the class folders"] += 1
    empty = [name for name in classes if not of_class[name]]
    if len(empty) == len(classes) or set(empty) & set(folders):
        raise ValueError(
            f"{root} has no image of class {', '.join(empty)}; read are PNG, JPEG, WebP, BMP, "
            f"TIFF, GIF and what else Pillow reads" + _left_out("; left out are", others)
        )
    if empty:
        log.info(f"{root} has no images of class {', '.join(empty)}; the score leaves them out")
    if others and not again:
        log.info(_left_out(f"left out in {root}:", others))
    files = [file for name in classes for file in of_class[name]]
    targets = [y for y, name in enumerate(classes) for _ in of_class[name]]
    return Files(root, classes, files, targets)


def require_known(root, folders, classes):
    """Raise ValueError for class folders in `root` that the training part has not."""
    known = {unicodedata.normalize("NFC", name) for name in classes}
    if unknown := [name for name in folders if unicodedata.normalize("NFC", name) not in known]:
        raise ValueError(
            f"{root} has classes that the training images have not: {', '.join(sorted(unknown))}"
        )


def _left_out(text, others):
    names = (f"{n} {suffix or 'without suffix'}" for suffix, n in others.most_common())
    return f"{text} {', '.join(names)}" if others else ""


def hold_out(listed, portion):
    """(training indices, held-out indices), sorted: `portion` of every class, whatever --seed is.

    The file names decide, so the choice is the same wherever the files lie and whatever else is
    there. Raises ValueError where a class keeps no image to train on.
    """

    def by_name(indices):
        def rank(i):
            name = unicodedata.normalize("NFC", listed.files[i])  # a Mac stores é as two
            return hashlib.sha256(f"held out/{name}".encode()).digest()

        return sorted(indices, key=rank)

    held_out, train = splits.draw(
        listed.targets, lambda n: max(1, round(portion * n)), order=by_name
    )
    targets = np.asarray(listed.targets)
    for y in sorted(set(targets[held_out]) - set(targets[train])):
        n = int((targets == y).sum())
        raise ValueError(
            f"class {listed.classes[y]} has {n} image(s), of which --test_portion {portion} holds "
            f"out {n}: none is left to train on"
        )
    return np.sort(train), np.sort(held_out)


def _list_part(part, options):
    """(Files of a part, names of the files that were held out of it)."""
    parts = image_parts.find(options.data_path)
    root = parts["train" if part == HELD_OUT else part]
    classes = options.known_spec and options.known_spec.classes
    listed = list_files(root, classes, again=part == HELD_OUT)
    if part == "train":
        image_parts.log_unused(options.data_path)
        for folder in set(parts.values()) - {root}:  # their names alone: found now, not at the end
            require_known(folder, image_parts.subfolders(folder), listed.classes)
    held_out_files = ()
    if part == HELD_OUT or (part == "train" and len(parts) == 1):
        train, held_out = hold_out(listed, options.test_portion)
        if part == HELD_OUT:
            return listed.only(held_out), ()
        held_out_files = tuple(listed.files[i] for i in held_out)
        listed = listed.only(train)
        log.info(
            f"there is neither val nor test in {options.data_path}: {len(held_out):,} images, "
            f"{options.test_portion:.0%} of each class by file name, are held out"
        )
    if part == "train" and options.subset < 1:
        listed = listed.only(splits.subset(listed.targets, options.subset, options.seed))
        log.info(f"--subset {options.subset}: {len(listed.files)} training images")
    return listed, held_out_files


# --- what is in them ----------------------------------------------------------------------------


def key_of(listed, *more):
    """Changes when a file comes, goes or is written anew, and with the folder and `more`."""
    # the folder too: unpacked BMP files of two sets may agree in names, sizes and times
    digest = hashlib.sha256(repr((os.path.abspath(listed.root), *more)).encode())
    for file, path in zip(listed.files, listed.paths(), strict=True):
        try:
            stat = os.stat(path)
        except OSError:  # a link that leads nowhere
            digest.update(f"{file} missing\n".encode())
        else:
            digest.update(f"{file} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:24]


def _cached(listed, cache_files, key, max_megapixels):
    """The cache's entry, or None where a file that was broken can be read now (a permission, say,
    which changes neither its size nor its time)."""
    entry = cache.cached(cache_files, key)
    for file in entry["bad"] if entry else ():
        if image_files.is_readable(os.path.join(listed.root, file), max_megapixels):
            return None
    return entry


def _headers(listed, options):
    """`image_files.survey`, from the cache if it is there."""
    key = key_of(listed, "modes", options.max_megapixels)
    headers = _cached(listed, options.cache_files, key, options.max_megapixels)
    if headers is None:
        headers = image_files.survey(listed, options.max_megapixels)
        cache.store(options.cache_files, key, headers)
    return headers


def _pixels(listed, spec, in_memory, options):
    """`image_files.decode`, from the cache if it is there and the pixels are not asked for."""
    limit = options.max_megapixels
    key = key_of(listed, spec.C_in, spec.size, spec.white, limit)
    entry, pixels = _cached(listed, options.cache_files, key, limit), None
    if in_memory or entry is None:
        entry, pixels = image_files.decode(listed, spec, in_memory, limit)
        cache.store(options.cache_files, key, entry)
    return entry, pixels


def _white(listed, headers, options):
    """What is white in 16-bit files of the training part; goes to the log."""
    if not any(map(image_files.has_16_bits, headers["modes"])):
        return image_files.WHITE
    key = key_of(listed, "white", options.max_megapixels)
    found = cache.cached(options.cache_files, key)
    if found is None:
        found = image_files.find_white(listed, options.max_megapixels)
        cache.store(options.cache_files, key, found)
    top, white = found
    log.info(
        f"the largest value in 16-bit files of {listed.root} is {top}: "
        f"{white.bit_length()} bits are taken for their range, 0 is black and {white} white"
    )
    return white


def _log_cut(sizes, size):
    """Name images of which little is left, since their proportions are far from those of `size`."""
    H, W = size
    much = [(h, w, n) for h, w, n in sizes if not W / 4 <= H * w / h <= 4 * W]
    if much:
        h, w, _ = max(much, key=lambda row: abs(math.log(H * row[1] / row[0] / W)))
        log.info(
            f"of {plural(sum(n for *_, n in much), 'image')} less than a quarter is left, the "
            f"middle: of proportions too far from {H}x{W} (one has {h}x{w})"
        )


def _spec_of(listed, headers, options):
    """The DataSpec that the headers give; mean and std are None where pixels must be asked."""
    imagenet = options.dataset == "imagenet"
    if not headers["sizes"]:
        raise ValueError(f"none of the image files in {listed.root} can be read")
    C_in = options.in_channels or (1 if headers["grey"] and not imagenet else 3)
    size = (224, 224) if imagenet else image_files.common_size(headers["sizes"])
    if options.input_size:
        size = tuple(options.input_size)
    fitted = [n for H, W, n in headers["sizes"] if size != (H, W)]
    if fitted:
        log.info(
            f"scaled and cut to {size[0]}x{size[1]}: {plural(sum(fitted), 'image')} of "
            f"{plural(len(fitted), 'other size')} (--input_size H W sets another)"
        )
    _log_cut(headers["sizes"], size)
    if min(size) > LARGE and not options.input_size:
        log.info(
            f"images of {size[0]}x{size[1]} are large for a search; --input_size 224 would make it "
            f"about {size[0] * size[1] / 224**2:.0f} times as fast"
        )
    mean = std = None
    if imagenet and C_in == 3:
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    white = _white(listed, headers, options)
    return DataSpec(folder_name(options.data_path), C_in, size, listed.classes, mean, std, white)


def _log_modes(listed, modes, C_in):
    """Which images are converted."""
    usual, wanted = ("L", "grey") if C_in == 1 else ("RGB", "RGB")
    odd = [f"{n} of mode {_describe(mode)}" for mode, n in modes.items() if mode != usual]
    if odd:
        log.info(f"converted to {wanted} in {listed.root}: {', '.join(odd)}")


def _describe(mode):
    if image_files.has_16_bits(mode):
        return f"{mode} (16 bits become 8)"
    if mode.endswith(" of 16"):
        return f"{mode} bits (nearly black where fewer than 16 are used; save such without alpha)"
    words = {
        "P": "palette",
        "RGBA": "transparent becomes white",
        "LA": "transparent becomes white",
        "CMYK": "print colours",
        "1": "black and white",
    }
    return f"{mode} ({words[mode]})" if mode in words else mode


def refuse_or_skip(listed, bad, how):
    """Indices of the images that are not broken. Raises ValueError unless `how` is "skip"; `bad` is
    {file: why}."""
    names = [f"{file} ({why})" for file, why in sorted(bad.items())]
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    text = (
        f"{len(bad)} of {len(listed.files)} image files looked at in {listed.root} cannot be read"
    )
    if how == "fail":
        raise ValueError(
            f"{text}: {shown}; mend or remove them, or leave them out with --bad_images skip"
        )
    kept = [i for i, file in enumerate(listed.files) if file not in bad]
    gone = sorted(set(listed.targets) - {listed.targets[i] for i in kept})
    if gone:
        names = ", ".join(listed.classes[y] for y in gone)
        raise ValueError(f"{text}, among them every image of class {names}")
    log.info(f"{text} and are skipped: {shown}")
    return kept


# --- the data set -------------------------------------------------------------------------------


class ImageFiles(Dataset):
    """Images of files, (uint8 (C_in, H, W), class) each: from memory, or decoded when asked for."""

    def __init__(self, listed, spec, pixels=None, max_megapixels=MAX_MEGAPIXELS):
        self.root, self.files, self.targets = listed.root, listed.files, listed.targets
        self.how = spec.C_in, spec.size, spec.white, max_megapixels  # as image_files.read wants it
        self.pixels = pixels

    @property
    def in_memory(self):
        return self.pixels is not None

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        if self.in_memory:
            image = self.pixels[index]
        else:
            path = os.path.join(self.root, self.files[index])
            with image_files.no_warnings():
                image = image_files.read(path, *self.how)
        return image, self.targets[index]


def load(part, options, budget):
    """A splits.Part of the image folder options.data_path: "train", "val", "test" or HELD_OUT.

    options  a DataOptions; with known_spec nothing is found out anew. Its subset makes the training
             part smaller and no other
    budget   a cache.CacheBudget, from which images in memory take

    Raises ValueError, in one line, for whatever cannot be trained on.
    """
    listed, held_out_files = _list_part(part, options)
    headers = _headers(listed, options)
    spec = options.known_spec or _spec_of(listed, headers, options)
    _log_modes(listed, headers["modes"], spec.C_in)

    needed = len(listed.files) * spec.C_in * spec.size[0] * spec.size[1] / 1e9
    in_memory = budget.take(needed)
    found, pixels = _pixels(listed, spec, in_memory, options)
    bad = {**headers["bad"], **found["bad"]}
    if bad:
        kept = refuse_or_skip(listed, bad, options.bad_images)
        listed = listed.only(kept)
        pixels = pixels[kept] if in_memory else None
    if spec.mean is None:
        mean, std = map(tuple, found["mean_std"])
        spec = spec._replace(mean=mean, std=std)
    where = f"in memory ({byte_size(1e9 * needed)})"
    if not in_memory:
        where = (
            f"read from disk each time: decoded they take {byte_size(1e9 * needed)}, more than the "
            f"{byte_size(1e9 * budget.left_gb)} that are left of --cache_gb"
        )
    verb = "is" if len(listed.files) == 1 else "are"
    log.info(f"{plural(len(listed.files), 'image')} of {listed.root} {verb} {where}")
    dataset = ImageFiles(listed, spec, pixels, options.max_megapixels)
    return splits.Part(spec, dataset, held_out_files)
