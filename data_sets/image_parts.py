"""Which folders of an image folder are its training, validation and test part, by their names.

Opens no image. What is found out goes to the log "darts.data".
"""

import logging
import os
import re

from data_sets import image_files

log = logging.getLogger("darts.data")

# words that name a part; "pred" has no labels, and is never read
_WORDS = {
    "train": {"train", "training"},
    "val": {"val", "valid", "validation", "validate", "dev", "devel", "eval", "evaluation"},
    "test": {"test", "testing"},
    "pred": {"pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled"},
}
_FILLERS = {"set", "sets", "seg", "split", "data", "dataset", "folder", "images", "image", "imgs",
            "img"}  # fmt: skip
PARTS = ("train", "val", "test")
HELD_OUT = "held-out"  # the part that is made where there is neither val nor test
LAYOUT = "D/train/<class>/<images>, and D/val/<class>, D/test/<class> if you have them"


def subfolders(path):
    """The names of the folders in `path` that are not hidden, sorted."""
    names = (name for name in os.listdir(path) if not image_files.is_hidden(name))
    return sorted(name for name in names if os.path.isdir(os.path.join(path, name)))


def part_of(name):
    """The part that a folder is by its name ("seg_train", "Testing", "val2017"), or None."""
    words = [word for word in re.split(r"[\W_\d]+", name.lower()) if word and word not in _FILLERS]
    word = re.sub(r"(set|data|images)$", "", words[0]) if len(words) == 1 else None
    return next((part for part, known in _WORDS.items() if word in known), None)


def find(path):
    """{"train": folder, and "val", "test" where there are such}.

    Class folders directly in `path` are a training part. Raises ValueError for what is no image
    folder or can be read in two ways.
    """
    if not os.path.isdir(path):
        raise ValueError(
            f"{path} is no folder of images; it should hold train/<class>/<images>. Images that "
            f"were moved: --data_path says where they are now"
        )
    folders, parts = subfolders(path), {}
    for part in PARTS:
        names = [name for name in folders if part_of(name) == part]
        names = [name for name in names if name.lower() == part] or names
        if len(names) > 1:
            raise ValueError(
                f"{path} has several folders that may be its {part} part: {', '.join(names)}; "
                f"rename all but one"
            )
        if names:
            parts[part] = _unwrapped(os.path.join(path, names[0]), part)
    if "train" not in parts:
        if parts:
            raise ValueError(
                f"{path} has {', '.join(parts)} but no train/<class>/<images>; if these are "
                f"classes, put all of them into {os.path.join(path, 'train')}"
            )
        return {"train": path}
    if not subfolders(parts["train"]) and [name for name in folders if part_of(name) is None]:
        raise ValueError(
            f"{parts['train']} has no class folders, but {path} has others; "
            f"put every class into {os.path.join(path, 'train', '<class>')}"
        )
    if "test" in parts and not subfolders(parts["test"]):
        del parts["test"]  # without labels, as ImageNet's
    return parts


def _unwrapped(folder, part):
    """`folder`, or what it holds alone: archives often unpack to train/train/<class>."""
    inside = subfolders(folder)
    if len(inside) == 1 and part_of(inside[0]) == part:
        return os.path.join(folder, inside[0])
    return folder


def log_unused(path):
    """Name the folders beside the training part that are not read."""
    parts = find(path)
    if parts["train"] == path:
        return
    used = {os.path.relpath(folder, path).split(os.sep)[0] for folder in parts.values()}
    if unused := [name for name in subfolders(path) if name not in used]:
        log.info(
            f"not read in {path}: {', '.join(unused)}; read are "
            f"{', '.join(sorted(used))}, by their names"
        )


def scored(path):
    """The parts that a training is scored on: first the one it is scored on after every epoch."""
    parts = find(path)
    return [part for part in ("val", "test") if part in parts] or [HELD_OUT]


def check_class_folders(root, folders, images):
    """Raise ValueError where the class `folders` of a training part are hardly classes; `images`
    are the paths below `root`."""
    direct = {image.split("/")[0] for image in images if image.count("/") == 1}
    below = {name: set(subfolders(os.path.join(root, name))) for name in folders}
    looks = [name for name in folders if part_of(name)]
    mixed = [name for name in folders if name not in direct and len(below[name] & {*folders}) > 1]
    if mixed or (len(folders) > 1 and len(looks) == len(folders)):
        raise ValueError(
            f"the class folders {', '.join(mixed or looks)} of {root} look like parts of a data "
            f"set; wanted is {LAYOUT}"
        )
    if len(folders) == 1:
        (only,) = folders
        inside = f", which holds {', '.join(sorted(below[only])[:10])}" if below[only] else ""
        hint = f"; did you mean {os.path.join(root, only)}?" if len(below[only]) > 1 else ""
        raise ValueError(
            f"{root} has one class only, {only}{inside}; there must be two or more{hint}"
        )
    shared = set.intersection(*below.values())
    if len(shared) > 1 and not direct:
        log.info(
            f"every class folder of {root} holds the folders {', '.join(sorted(shared)[:10])}; if "
            f"these are the classes, wanted is {LAYOUT}"
        )
