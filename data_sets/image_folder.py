"""Images of one's own: D/train/<class>/*, and D/val or D/test if there are such.

What the networks need to know of them (classes, size, channels, mean and std) is found in the
training part alone; no other part is opened before it is asked for. Without D/val and D/test a
share of every class is held out, chosen by file name, so that every run holds out the same images.
"""

import hashlib
import os
from typing import Any, NamedTuple

from torch.utils.data import Dataset

from data_sets import image_files
from data_sets.named import DataSpec

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}
HELD_OUT = "held-out"  # the part that is made where there is neither val nor test

LARGE = 256  # the shorter side, above which the log suggests smaller images
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# --- which files there are ----------------------------------------------------------------------


def _subfolders(path):
    names = (entry.name for entry in os.scandir(path) if entry.is_dir())
    return sorted(name for name in names if name[0] != "." and name != "__MACOSX")


def _images(path):
    """Image files below `path`, as relative paths with /, in order; how many other files."""
    found, others = [], 0
    for folder, _, names in os.walk(path, followlinks=True):
        for name in names:
            if name.startswith("."):
                continue
            if name.lower().endswith(EXTENSIONS):
                file = os.path.relpath(os.path.join(folder, name), path)
                found.append(file.replace(os.sep, "/"))
            else:
                others += 1
    return sorted(found), others


def find_parts(path):
    """{"train": folder, and "val", "test" where there are such}, opening no image.

    Class folders directly in `path` are a training part. Raises ValueError for what is no image
    folder or can be read in two ways.
    """
    if not os.path.isdir(path):
        raise ValueError(
            f"{path} is no folder of images; it should hold train/<class>/<images>. Images that "
            f"were moved: --data_path says where they are now"
        )
    folders = _subfolders(path)
    parts = {}
    for part, names in PARTS.items():
        for folder in folders:
            if folder.lower() in names and part not in parts:
                parts[part] = os.path.join(path, folder)
    if "train" not in parts:
        if parts:
            raise ValueError(f"{path} has {', '.join(parts)} but no train/<class>/<images>")
        return {"train": path}
    if not _subfolders(parts["train"]) and len(folders) > len(parts):
        raise ValueError(
            f"{parts['train']} has no class folders, but {path} has others; "
            f"put every class into {os.path.join(path, 'train', '<class>')}"
        )
    if "test" in parts and not _subfolders(parts["test"]):
        del parts["test"]  # without labels, as ImageNet's
    return parts


def scored_parts(path):
    """The parts that a training is scored on: first the one it is scored on after every epoch."""
    parts = find_parts(path)
    return [part for part in ("val", "test") if part in parts] or [HELD_OUT]


class Files(NamedTuple):
    """Image files of one part: `files` relative to `root`, their classes as numbers."""

    root: str
    classes: tuple
    files: list
    targets: list

    def only(self, keep):
        """Those whose index is in `keep`."""
        files, targets = ([values[i] for i in keep] for values in (self.files, self.targets))
        return self._replace(files=files, targets=targets)

    def by_class(self):
        """For each class, the indices of its files in an order that their names alone decide."""
        return [
            [i for i, y in enumerate(self.targets) if y == label]
            for label in range(len(self.classes))
        ]

    def paths(self):
        return [os.path.join(self.root, file) for file in self.files]


def list_files(root, classes=None):
    """(Files, notes) of the class folders in `root`.

    classes  None, or the classes of the training part in their order: no other is allowed then

    Raises ValueError for class folders that are missing, empty, unknown or only one.
    """
    found = _subfolders(root)
    if not found:
        loose = "images but no" if _images(root)[0] else "neither images nor"
        raise ValueError(
            f"{root} holds {loose} class folders; put the images of each class into "
            f"{os.path.join(root, '<class>')}"
        )
    if classes is None:
        if len(found) == 1:
            raise ValueError(f"{root} has one class only, {found[0]}; there must be two or more")
        classes = tuple(found)
    elif set(found) - set(classes):
        unknown = ", ".join(sorted(set(found) - set(classes)))
        raise ValueError(f"{root} has classes that the training images have not: {unknown}")

    files, targets, empty, others = [], [], [], 0
    for y, name in enumerate(classes):
        images, rest = _images(os.path.join(root, name)) if name in found else ([], 0)
        files += [f"{name}/{file}" for file in images]
        targets += [y] * len(images)
        others += rest
        if not images:
            empty.append(name)
    if empty and (len(empty) == len(classes) or set(empty) & set(found)):
        raise ValueError(
            f"{root} has no image of class {', '.join(empty)}; "
            f"these are read: {', '.join(EXTENSIONS)}"
        )
    notes = []
    if empty:
        notes.append(f"{root} has no images of class {', '.join(empty)}; the score leaves them out")
    if others:
        notes.append(f"{others} files in {root} are no images by their names and are left out")
    return Files(root, classes, files, targets), notes


def _rank(files, salt):
    """Orders file names at random, the same way wherever they lie and whatever else is there."""
    return lambda i: hashlib.sha256(f"{salt}/{files[i]}".encode()).digest()


def hold_out(listed, portion):
    """(training indices, held-out indices): `portion` of every class, whatever --seed is."""
    train, held = [], []
    for label, indices in enumerate(listed.by_class()):
        if not indices:  # known from the run that goes on, and without images now
            continue
        n_held = max(1, round(portion * len(indices)))
        if n_held >= len(indices):
            raise ValueError(
                f"class {listed.classes[label]} has {len(indices)} image(s), of which "
                f"--test_portion {portion} holds out {n_held}: none is left to train on"
            )
        ranked = sorted(indices, key=_rank(listed.files, "held out"))
        held += ranked[:n_held]
        train += ranked[n_held:]
    return sorted(train), sorted(held)


def share(listed, portion, seed):
    """Indices of `portion` of every class, two images of it at least."""
    kept = []
    for indices in listed.by_class():
        ranked = sorted(indices, key=_rank(listed.files, f"subset {seed}"))
        kept += ranked[: max(2, round(portion * len(indices)))]
    return sorted(kept)


def refuse_or_skip(listed, bad, how):
    """(the others, their indices, a note) where images are broken. Raises ValueError unless `how`
    is "skip"."""
    names = [f"{file} ({why})" for file, why in sorted(bad.items())]
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    text = f"{len(bad)} of {len(listed.files)} image files in {listed.root} are broken"
    if how == "fail":
        raise ValueError(
            f"{text}: {shown}; mend or remove them, or leave them out with --bad_images skip"
        )
    kept = [i for i, file in enumerate(listed.files) if file not in bad]
    rest = listed.only(kept)
    gone = sorted(set(listed.targets) - set(rest.targets))
    if gone:
        names = ", ".join(listed.classes[y] for y in gone)
        raise ValueError(f"{text}, among them every image of class {names}")
    return rest, kept, f"{text} and skipped: {shown}"


def key_of(listed, *more):
    """Changes when a file comes, goes or is written anew, and with the folder and `more`."""
    # the folder too: unpacked BMP files of two sets may agree in names, sizes and times
    digest = hashlib.sha256(repr((os.path.abspath(listed.root), *more)).encode())
    for file in listed.files:
        about = os.stat(os.path.join(listed.root, file))
        digest.update(f"{file} {about.st_size} {about.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:24]


# --- the data set -------------------------------------------------------------------------------


class ImageFiles(Dataset):
    """Images of files, (uint8 (C_in, H, W), class) each: from memory, or decoded when asked for."""

    def __init__(self, listed, C_in, size, images=None):
        self.root, self.files, self.targets = listed.root, listed.files, listed.targets
        self.C_in, self.size, self.images = C_in, size, images

    @property
    def in_memory(self):
        return self.images is not None

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        if self.images is not None:
            image = self.images[index]
        else:
            path = os.path.join(self.root, self.files[index])
            with image_files.no_warnings():
                image = image_files.read(path, self.C_in, self.size)
        return image, self.targets[index]


class Loaded(NamedTuple):
    """One part of an image folder."""

    spec: DataSpec
    raw: ImageFiles
    notes: list
    room: Any  # what --cache_gb leaves for other parts
    held: list  # of the training part, the files that are held out of it


def load(name, path, part, options, seed=0, room=None):
    """One part of the image folder `path`: "train", "val", "test" or HELD_OUT.

    name     "folder", or "imagenet" for its usual size, mean and std
    options  a data_sets.Options; with options.saved nothing is found out anew
    seed     of options.subset, which makes the training part smaller and no other
    room     GB that decoded images may take (default: options.cache_gb)

    Raises ValueError, in one line, for whatever cannot be trained on.
    """
    room = options.cache_gb if room is None else room
    saved = options.saved
    parts = find_parts(path)
    held_out = part == HELD_OUT
    root, held_files = parts["train" if held_out else part], []
    listed, notes = list_files(root, None if saved is None else saved.classes)
    if held_out or (part == "train" and len(parts) == 1):
        train, held = hold_out(listed, options.test_portion)
        everything, listed = listed, listed.only(held if held_out else train)
        if not held_out:
            held_files = [everything.files[i] for i in held]
            notes.append(
                f"there is neither val nor test in {path}: {len(held)} images, "
                f"{options.test_portion:.0%} of each class by file name, are held out"
            )
    if part == "train" and options.subset < 1:
        listed = listed.only(share(listed, options.subset, seed))
        notes.append(f"--subset {options.subset}: {len(listed.files)} training images")

    # sizes and modes, from the headers
    key = key_of(listed, "headers")
    seen = _as_it_was(listed, image_files.recall(options.notebooks, key))
    if seen is None:
        seen = image_files.survey(listed)
        image_files.remember(options.notebooks, key, seen)
    bad = dict(seen["bad"])
    about = saved or _describe(name, path, listed.classes, seen, options, notes)
    usual = {"L"} if about.C_in == 1 else {"RGB"}
    odd = {mode: n for mode, n in seen["modes"].items() if mode not in usual}
    if odd:
        counts = ", ".join(f"{n} of mode {_in_words(mode)}" for mode, n in odd.items())
        notes.append(f"converted to {'grey' if about.C_in == 1 else 'RGB'} in {root}: {counts}")

    # pixels: mean and std, what is broken, and the images themselves where there is room
    needed = len(listed.files) * about.C_in * about.size[0] * about.size[1] / 1e9
    keep = needed <= room
    key = key_of(listed, about.C_in, about.size)
    pixels, images = _as_it_was(listed, image_files.recall(options.notebooks, key)), None
    if keep or pixels is None:
        counts, broken, images = image_files.decode(listed, about.C_in, about.size, keep)
        pixels = {"bad": broken, "mean_std": image_files.mean_and_std(counts)}
        image_files.remember(options.notebooks, key, pixels)
    bad |= pixels["bad"]
    if bad:
        listed, kept, note = refuse_or_skip(listed, bad, options.bad_images)
        images = images[kept] if keep else None
        notes.append(note)
    if about.mean is None:
        about = about._replace(mean=tuple(pixels["mean_std"][0]), std=tuple(pixels["mean_std"][1]))
    notes.append(
        f"{len(listed.files)} images of {root} are "
        + (f"in memory ({needed:.3g} GB)" if keep else
           f"read from disk each time: decoded they take {needed:.3g} GB, more than --cache_gb")
    )  # fmt: skip
    raw = ImageFiles(listed, about.C_in, about.size, images)
    return Loaded(about, raw, notes, room - needed if keep else room, held_files)


def _as_it_was(listed, known):
    """What is remembered, or None if a file that was broken can be read now (a permission, say,
    which changes neither its size nor its time)."""
    for file in known["bad"] if known else ():
        if image_files.is_readable(os.path.join(listed.root, file)):
            return None
    return known


def _describe(name, path, classes, seen, options, notes):
    """The DataSpec that the headers give; mean and std are None where pixels must be asked."""
    if not seen["sizes"]:
        raise ValueError(f"none of the image files in {path} can be read")
    C_in = options.in_channels or (1 if seen["grey"] and name != "imagenet" else 3)
    size = (224, 224) if name == "imagenet" else image_files.common_size(seen["sizes"])
    if options.input_size:
        size = tuple(options.input_size)
    fitted = sum(n for H, W, n in seen["sizes"] if size != (H, W))
    if fitted:
        notes.append(
            f"{fitted} images of {len(seen['sizes'])} sizes are scaled and cut to "
            f"{size[0]}x{size[1]} (--input_size H W sets another size)"
        )
    if min(size) > LARGE and not options.input_size:
        notes.append(
            f"images of {size[0]}x{size[1]} are large for a search; --input_size 224 would make it "
            f"about {size[0] * size[1] / 224**2:.0f} times as fast"
        )
    mean = std = None
    if name == "imagenet" and C_in == 3:
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    return DataSpec(subject(path), C_in, size, classes, mean, std)


def subject(path):
    """What a data set and its runs are called: the folder's own name."""
    return os.path.basename(os.path.abspath(path))


def _in_words(mode):
    if mode.startswith("I"):
        return f"{mode} (16 bits become 8)"
    words = {
        "P": "palette", "RGBA": "transparent becomes white", "LA": "transparent becomes white",
        "CMYK": "print colours", "1": "black and white",
    }  # fmt: skip
    return f"{mode} ({words[mode]})" if mode in words else mode
