"""What happens to an image on its way to a network: augmentation, normalisation, cutout."""

import logging

import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from data_sets import image_files, named

log = logging.getLogger("darts.data")


class Cutout(torch.nn.Module):
    """Cutout (arXiv 1708.04552): zero a square of `length` pixels around a random pixel.

    x (C, H, W), normalised, so zero is the mean -> a new tensor. The square may hang over the
    border. The position comes from torch's generator.
    """

    def __init__(self, length):
        super().__init__()
        self.length = length

    def forward(self, x):
        H, W = x.shape[-2:]
        top = int(torch.randint(H, ())) - self.length // 2
        left = int(torch.randint(W, ())) - self.length // 2
        x = x.clone()
        x[:, max(top, 0) : max(top + self.length, 0), max(left, 0) : max(left + self.length, 0)] = 0
        return x


MOVES = {"light": 1 / 14, "cifar": 1 / 8, "digits": 1 / 8, "trivial": 1 / 8}
MIRRORED = ("light", "cifar", "trivial")


def augmentation(kind, size, hflip=None):
    """The random transforms of a training image of `size` (H, W), before it is normalised.

    none     nothing
    light    moves of up to 1/14 of the side, mirrored left to right
    cifar    moves of up to 1/8, mirrored
    digits   moves of up to 1/8 (from 16 pixels on 1/10, with small turns and scales), not mirrored:
             for whatever is another thing, or nothing, in the mirror
    trivial  as cifar, and one random change of colour, contrast, shear, ... (TrivialAugmentWide)

    hflip    True or False: mirror, or do not, whatever the kind
    """
    if kind == "digits" and min(size) >= 16:
        steps = [v2.RandomAffine(degrees=10, translate=(0.1, 0.1), scale=(0.9, 1.1))]
    elif kind == "none":
        steps = []
    else:
        H, W = (max(1, round(side * MOVES[kind])) for side in size)
        steps = [v2.RandomCrop(size, padding=[W, H])]  # of both sides, of top and bottom
    if kind in MIRRORED if hflip is None else hflip:
        steps.append(v2.RandomHorizontalFlip())
    if kind == "trivial":
        steps.append(v2.TrivialAugmentWide())
    return steps


def default_cutout(size):
    """Half the shorter side, the paper's 16 at 32 pixels; from 96 pixels on none, as the official
    code trains ImageNet."""
    return min(size) // 2 if min(size) < 96 else 0


class Fit(torch.nn.Module):
    """A raw image (PIL, or uint8 (C, h, w)) as a PIL image of other channels and size, in the way
    that image files are read."""

    def __init__(self, C_in, size):
        super().__init__()
        self.C_in, self.size = C_in, size

    def forward(self, image):
        if isinstance(image, torch.Tensor):
            image = F.to_pil_image(image)
        return image_files.fit(image_files.to_channels(image, self.C_in), self.size)


def transforms(spec, train, cutout_length=0, kind="none", hflip=None):
    """The transform of a data set: image (PIL, or uint8 (C_in, H, W)) as `spec` says -> float
    tensor (C_in, H, W), normalised; for training also augmented.

    kind, hflip  as in `augmentation`
    """
    steps = [v2.ToImage()]
    if train:
        steps += augmentation(kind, spec.size, hflip)
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(spec.mean, spec.std)]
    if train and cutout_length:
        steps.append(Cutout(cutout_length))
    return v2.Compose([*steps, v2.ToPureTensor()])


def pick_augmentation(options):
    """The kind of augmentation that a DataOptions asks for. Goes to the log."""
    kind, how = options.augment, "asked"
    if kind == "auto":
        # image folders get what the paper gives CIFAR-10
        row = named.DATA_SETS.get(options.dataset)
        kind, how = (
            row.augment if row else "cifar",
            "chosen for this data set; --augment has others",
        )
    mirrored = "not mirrored"
    if kind in MIRRORED if options.hflip is None else options.hflip:
        mirrored = "mirrored left to right (--no-hflip where that makes another class of it)"
    log.info(f"augmentation {kind} ({how}), {mirrored}")
    return kind
