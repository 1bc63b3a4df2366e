"""What a trained network got wrong: the confusion matrix, and the images it was surest of."""

import json
import os

import numpy as np
from PIL import Image
from torch.utils.data import Subset
from torchvision.transforms.functional import to_pil_image

from console.terminal import visible
from data_sets.splits import Transformed
from records import files, verdict

SIDE = 128  # pixels of the longer side of a small picture


def record(run_files, part, epoch, classes, dataset, answers):
    """Write confusion.json and the small pictures of the images that were most surely wrong;
    returns the record.

    part     what was scored, "test" or the like, after `epoch`
    dataset  the scored images, a Transformed, in the order of `answers`, a utils.Answers
    """
    targets, predicted, probability = answers.lists()
    surest = verdict.most_surely_wrong(targets, predicted, probability)
    found = {
        "part": part,
        "epoch": epoch,
        "classes": list(classes),
        "matrix": verdict.confusion(targets, predicted, len(classes)),
        "wrong": [
            {
                "image": name_of(dataset, i),
                "class": classes[targets[i]],
                "taken_for": classes[predicted[i]],
                "probability": round(probability[i], 4),
                "picture": f"{files.PLOTS}/wrong-{number}.png",
            }
            for number, i in enumerate(surest, start=1)
        ],
    }
    for i, wrong in zip(surest, found["wrong"], strict=True):
        save_picture(dataset.dataset[i][0], os.path.join(run_files.path, wrong["picture"]))
    files.write_text(run_files.file(files.CONFUSION), json.dumps(found) + "\n")
    return found


def locate(dataset, index):
    """(data set below all Subset and Transformed, index of the image there)."""
    while isinstance(dataset, (Subset, Transformed)):
        if isinstance(dataset, Subset):
            index = int(dataset.indices[index])
        dataset = dataset.dataset
    return dataset, index


def name_of(dataset, index):
    """The file of an image, relative to its folder; without files its number, counted from 0."""
    source, index = locate(dataset, index)
    return visible(source.files[index]) if hasattr(source, "files") else f"image {index}"


def save_picture(image, path):
    """A small PNG of an image, PIL or uint8 (C, H, W); its pixels stay squares."""
    if not isinstance(image, Image.Image):
        image = to_pil_image(image)
    image = image.convert("RGB")
    longer = max(image.size)
    if longer > SIDE:
        image.thumbnail((SIDE, SIDE))
    else:
        times = max(SIDE // longer, 1)
        image = Image.fromarray(np.asarray(image).repeat(times, 0).repeat(times, 1))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with files.atomic_write(path) as temporary:
        image.save(temporary, format="PNG")
