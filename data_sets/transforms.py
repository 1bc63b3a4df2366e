"""What happens to an image on its way to a network: augmentation, normalisation, cutout."""

import torch
from torchvision.transforms import v2

from data_sets import image_files


class Cutout(torch.nn.Module):
    """Cutout (arXiv 1708.04552): zero a square of `length` pixels around a random pixel.

    x (C, H, W), normalised, so zero is the mean -> a new tensor. The square may hang over the
    border. The position comes from torch's generator, which differs between loader workers.
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


# --augment auto: what suits the data sets by name. Folders get "cifar".
AUTO = {
    "digits": "digits", "mnist": "digits", "kmnist": "digits", "emnist": "digits",
    "svhn": "digits", "fashionmnist": "light",
}  # fmt: skip
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

    def moves(part):
        return [v2.RandomCrop(size, padding=[max(1, round(side / part)) for side in size[::-1]])]

    if kind == "digits" and min(size) >= 16:
        steps = [v2.RandomAffine(degrees=10, translate=(0.1, 0.1), scale=(0.9, 1.1))]
    else:
        steps = {
            "none": list, "light": lambda: moves(14), "cifar": lambda: moves(8),
            "digits": lambda: moves(8), "trivial": lambda: moves(8),
        }[kind]()  # fmt: skip
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
    """Image (PIL, or a tensor (..., h, w)) -> the same at `size` (H, W), as image_files.fit."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, image):
        return image_files.fit(image, self.size)


def transforms(about, train, cutout_length=0, kind="none", hflip=None, convert=False):
    """The transform of a data set: raw image -> float tensor (C_in, H, W), normalised; for training
    also augmented.

    kind, hflip  as in `augmentation`
    convert      the raw images may have other channels or another size than `about` says
    """
    steps = [v2.ToImage()]
    if convert:
        steps += [v2.Grayscale() if about.C_in == 1 else v2.RGB(), Fit(about.size)]
    if train:
        steps += augmentation(kind, about.size, hflip)
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(about.mean, about.std)]
    if train and cutout_length:
        steps.append(Cutout(cutout_length))
    return v2.Compose([*steps, v2.ToPureTensor()])


def chosen(name, options):
    """(kind of augmentation for a data set, a line for the log)."""
    kind = AUTO.get(name, "cifar") if options.augment == "auto" else options.augment
    mirrored = kind in MIRRORED if options.hflip is None else options.hflip
    how = "chosen for this data set; --augment has others" if options.augment == "auto" else "asked"
    return kind, (
        f"augmentation {kind} ({how}), {'mirrored left to right' if mirrored else 'not mirrored'}"
        + (" (--no-hflip where that makes another class of it)" if mirrored else "")
    )
