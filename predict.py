"""Classify images with a trained network; its checkpoint is all that is needed.

    python predict.py cat.png --from augments/NAME
    python predict.py pictures/ more/dog.jpg --from augments/NAME --out classes.csv

Writes CSV: the file, its class, and the probability of each class. Images of any size and kind are
brought to what the network was trained on. One that cannot be read costs a line on stderr and, at
the end, exit code 1; the others are classified.

Names are safe in a spreadsheet and on a terminal: see `cell`.
"""

from console import interrupts

if __name__ == "__main__":
    interrupts.end_in_one_line()  # from here on, also while torch is imported
    from config import PredictConfig

    PredictConfig.answer_at_once()  # before torch is imported

import csv
import os
import sys
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from config import PredictConfig
from console import errors
from console.terminal import command, complain, lost, plural, visible
from data_sets import image_files
from data_sets.options import MAX_MEGAPIXELS
from devices import layout, pick
from records.files import atomic_write
from tracking import trained_network
from tracking.trained_network import DeployedNetwork

# what begins a formula in Excel, LibreOffice or Google Sheets, also in the wide letters of Chinese
# and Japanese; a tab or carriage return, which does too, has become an escape
FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")


@command
def main(argv=None):
    """Returns the lines of the CSV as dicts, {"file", "class", and every class}, with names as they
    are. A class named as another key has an underscore behind it."""
    cfg = PredictConfig(argv)
    with errors.usage_errors(cfg.PROG):
        files = [file for path in cfg.paths for file in images_of(path)]
        trained = trained_network.load(trained_network.checkpoint_path(cfg.run), cfg.ops)
        device = pick.prepare_device(cfg)
        kind = layout.LAYOUTS[layout.default_layout(device)]
        net = DeployedNetwork(trained).to(device.torch_device, memory_format=kind)
    with errors.run_errors(cfg.PROG):
        rows = write_rows(cfg, files, net, trained.spec, device)
    if cfg.out:
        print(f"{cfg.out}: {plural(len(rows), 'image')} classified by {trained.path}")
    nobody_reads = not cfg.out and lost(sys.stdout) is not None
    if len(rows) < len(files) == 1:
        raise SystemExit(1)  # its line is all there is to say
    if len(rows) < len(files) and not nobody_reads:
        text = f"{len(files) - len(rows)} of {len(files)} images cannot be read"
        errors.end(cfg.PROG, text, 1, None)
    return rows


def write_rows(cfg, files, net, spec, device):
    """Classify the files, --batch_size at once, and write each as a line of CSV; returns the lines
    as dicts. Ends early where nobody reads them any more (| head)."""
    keys, rows = distinct(["file", "class", *spec.classes]), []
    with text_to(cfg.out) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(distinct(map(cell, keys)))
        for start in range(0, len(files), cfg.batch_size):
            batch = files[start : start + cfg.batch_size]
            images = list(read_images(batch, spec, cfg.max_megapixels))
            for row in classify(net, images, spec.classes, device):
                writer.writerow(map(cell, row))
                rows.append(dict(zip(keys, row, strict=True)))
            stream.flush()
            if lost(stream) is not None:
                break
    return rows


def distinct(names):
    """`names`, with underscores behind each that is like one before it."""
    found = {}
    for name in names:
        while name in found:
            name += "_"
        found[name] = None
    return list(found)


def cell(text):
    """A name as a cell of CSV: control characters and line breaks become escapes (\\n), and what a
    spreadsheet would take for a formula gets an apostrophe before it, which it takes for text."""
    text = visible(text)
    return f"'{text}" if text.startswith(FORMULA) else text


@contextmanager
def text_to(path):
    """A stream to a file that appears when all is written, with a byte order mark, without which
    Excel garbles its letters; without a path, the terminal."""
    if path is None:
        yield sys.stdout
        return
    with atomic_write(path) as temporary:
        with open(temporary, "w", encoding="utf-8-sig", newline="") as stream:
            yield stream


def images_of(path):
    """The image files of a path: itself, or all below a folder, in order of their names."""
    if not os.path.isdir(path):
        if not os.path.exists(path):
            raise ValueError(f"{visible(path)}: there is no such file or folder")
        if not os.path.isfile(path):
            raise ValueError(f"{visible(path)} is a pipe or a device, no image file")
        return [path]
    found, others = image_files.find(path)
    for kind, n in others.items():
        if kind.endswith(image_files.NO_FILE):  # other files are not expected to be images
            complain(f"{PredictConfig.PROG}: left out in {visible(path)}: {n} {kind}")
    if not found:
        raise ValueError(f"{visible(path)}: no image in this folder (PNG, JPEG, WebP, BMP, ...)")
    return [os.path.join(path, file) for file in found]


def read_images(files, spec, max_megapixels=MAX_MEGAPIXELS):
    """Yield (file, (C_in, H, W) in [0, 1]) of every image that can be read, naming the others. They
    are converted, scaled and cut as for training."""
    for file in files:
        try:
            with image_files.no_warnings():
                image = image_files.read(file, spec.C_in, spec.size, spec.white, max_megapixels)
            yield file, image.float() / 255
        except Exception as error:  # Pillow raises many kinds
            text = f"{visible(file)} cannot be read ({errors.one_line(error)})"
            complain(f"{PredictConfig.PROG}: {text}")


def classify(net, images, classes, device):
    """Yield [file, class, probability of each class] of (file, tensor) pairs."""
    if not images:
        return
    X = torch.stack([image for _, image in images])  # (N, C_in, H, W)
    with torch.no_grad():
        logits = net(X.to(device.torch_device)).cpu()  # before double(): Apple's GPUs have none
    probabilities = F.softmax(logits.double(), dim=1)  # (N, n_classes)
    for (file, _), row in zip(images, probabilities, strict=True):
        yield [file, classes[int(row.argmax())], *(f"{p:.6f}" for p in row.tolist())]


if __name__ == "__main__":
    main()
