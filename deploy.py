"""What a trained network is good for: score it, classify images, start another training.

    python augment.py --evaluate augments/NAME
    python augment.py --predict cat.png --from augments/NAME
    python augment.py --init_from augments/NAME --dataset other

augment.py calls these; export.py writes the network for other programs. Only --evaluate needs the
data set, the others the checkpoint alone.
"""

import csv
import os
import sys
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

import genotypes as gt
import utils
from config import AugmentConfig
from console import errors
from data_sets import image_files, loaders, named
from data_sets.options import DataOptions
from devices import layout, pick
from models import augment_cnn, ops
from records.files import atomic
from tracking import checkpoint, run_folder

# --- a trained network --------------------------------------------------------------------------


class Trained(NamedTuple):
    """What `load` finds in a checkpoint of augment.py. `net` is on the CPU, in evaluation mode."""

    path: str
    net: nn.Module
    spec: named.DataSpec
    genotype: gt.Genotype
    flags: dict
    epoch: int
    top1: float


def checkpoint_path(run):
    """The file of a RUN: of a run folder its last epoch, since the best was picked on the test
    split; any other path is the file itself."""
    return os.path.join(run, run_folder.CHECKPOINT) if os.path.isdir(run) else run


def read(path):
    """A checkpoint of augment.py as a dict. Raises ValueError for anything else."""
    state = checkpoint.load_checkpoint(path)
    if "optim" not in state:
        raise ValueError(
            f"{path} is a supernet, whose weights belong to all ops of all edges; train its "
            f"genotype first: augment.py --genotype {os.path.dirname(path)}"
        )
    return state


def load(path):
    """The network of a checkpoint of augment.py, from the file alone -> `Trained`."""
    state = read(path)
    # flags that an older checkpoint lacks have their defaults
    flags = AugmentConfig(["--resume", "--name", "x"], state["flags"])
    spec = named.DataSpec.from_dict(state["data"])
    genotype = gt.from_str(state["genotype"], ops.OPS)
    net = augment_cnn.build(spec, flags, genotype)
    checkpoint.load_state(net, state["model"], path)
    return Trained(path, net.eval(), spec, genotype, state["flags"], state["epoch"], state["top1"])


def init_from(net, path):
    """Copy into `net` what a checkpoint holds under the same name in the same shape; returns what
    was copied and what not, in words. Raises ValueError if that is nothing."""
    saved, own = read(path)["model"], net.state_dict()
    fits = {name: v for name, v in saved.items() if name in own and v.shape == own[name].shape}
    if not fits:
        raise ValueError(f"--init_from {path}: no tensor agrees in name and shape; other network?")
    net.load_state_dict(fits, strict=False)
    rest = [name for name in own if name not in fits]
    named = ", ".join(rest[:4]) + (f" and {len(rest) - 4} more" if len(rest) > 4 else "")
    kept = f"; not, and so new: {named}" if rest else ""
    return f"copied {len(fits)} of {len(own)} tensors from {path}{kept}"


class Deployed(nn.Module):
    """The network as others use it, normalisation inside, auxiliary head and drop path off.

    Images (N, C_in, H, W), float32 in [0, 1] -> logits (N, n_classes).
    """

    def __init__(self, trained):
        super().__init__()
        shape = (1, trained.spec.C_in, 1, 1)
        self.register_buffer("mean", torch.tensor(trained.spec.mean).view(shape))
        self.register_buffer("std", torch.tensor(trained.spec.std).view(shape))
        self.net = trained.net
        self.eval()

    def forward(self, images):
        return self.net((images - self.mean) / self.std)[0]


# --- --evaluate ---------------------------------------------------------------------------------


def evaluate(cfg, argv):
    """--evaluate: score a checkpoint on the test split; of a run folder both files, the last epoch
    and the best. Returns a list of the results."""
    paths = [cfg.evaluate]
    if os.path.isdir(cfg.evaluate):
        paths = [os.path.join(cfg.evaluate, f) for f in (run_folder.CHECKPOINT, run_folder.BEST)]
    return [evaluate_file(path, cfg, argv) for path in paths]


def evaluate_file(path, cfg, argv):
    """Score one checkpoint and print what came out beside what training logged."""
    with errors.usage_errors("augment.py"):
        trained = load(path)
        batch_size = cfg.batch_size  # any will do; the accuracy does not depend on it
        saved = {k: v for k, v in trained.flags.items() if k != "batch_size"}
        cfg = AugmentConfig(argv, saved)
        device = pick.pick_device(cfg.device, cfg.gpus)
        pick.prepare_device(device, cfg.threads, cfg.tf32)
        options = DataOptions.from_config(
            cfg, trained.spec, run_folder.cache_files(cfg.ROOT), pin_memory=device.type == "cuda"
        )
        held = loaders.scored_loaders(options._replace(batch_size=batch_size))
        net = trained.net.to(device, memory_format=layout.memory_format(device))
    with errors.run_errors("augment.py"):
        scores = {
            part: utils.evaluate(lambda X: net(X)[0], loader, F.cross_entropy, device, cfg.amp)
            for part, loader in held.items()
        }
    first = next(iter(scores))  # what training was scored on after every epoch
    top = min(5, len(trained.spec.classes))
    for part, score in scores.items():
        logged = f" (training logged top1 {trained.top1:.2%})" if part == first else ""
        print(
            f"{path}, epoch {trained.epoch}, {trained.spec.name} {part} split: top1 "
            f"{score['top1']:.2%} top{top} {score['top5']:.2%} loss {score['loss']:.4f}{logged}"
        )
    return scores[first]


# --- --predict ----------------------------------------------------------------------------------


def predict(cfg):
    """--predict: one line of CSV per image, the file, its class and the probability of each class.

    Images of any size and kind are brought to what the network was trained on. A file that cannot
    be read costs a line on stderr and, at the end, exit code 1; the others are classified. Returns
    the lines as dicts.
    """
    with errors.usage_errors("augment.py"):
        check_out(cfg.out)
        files = images_of(cfg.predict)
        trained = load(checkpoint_path(cfg.trained))
        device = pick.pick_device(cfg.device, cfg.gpus)
        pick.prepare_device(device, cfg.threads)
        net = Deployed(trained).to(device, memory_format=layout.memory_format(device))
    with errors.run_errors("augment.py"):
        names, rows, broken = ["file", "class", *trained.spec.classes], [], 0
        with text_to(cfg.out) as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(names)
            for start in range(0, len(files), cfg.batch_size):
                batch = files[start : start + cfg.batch_size]
                readable = list(read_images(batch, trained.spec))
                broken += len(batch) - len(readable)
                for row in classify(net, readable, trained.spec.classes, device):
                    writer.writerow(row)
                    rows.append(dict(zip(names, row, strict=True)))
    if cfg.out:
        print(f"{cfg.out}: {len(rows)} images classified by {trained.path}")
    if broken:
        print(f"augment.py: {broken} of {len(files)} images cannot be read", file=sys.stderr)
        raise SystemExit(1)
    return rows


def check_out(path):
    """Raise ValueError where --out names a file in a folder that does not exist."""
    folder = os.path.dirname(path or "") or "."
    if not os.path.isdir(folder):
        raise ValueError(f"--out {path}: there is no folder {folder}")
    if path and os.path.isdir(path):
        raise ValueError(f"--out {path} is a folder; name a file in it")


@contextmanager
def text_to(path):
    """A stream to a file that appears when all is written; without a path, the terminal."""
    if path is None:
        yield sys.stdout
        return
    with atomic(path) as temporary:
        with open(temporary, "w", encoding="utf-8", newline="") as stream:
            yield stream


def images_of(path):
    """The image files of a path: itself, or all below a folder, in order of their names."""
    if not os.path.isdir(path):
        if not os.path.exists(path):
            raise ValueError(f"--predict {path}: there is no such file or folder")
        image_files.require_utf8(path)
        return [path]
    files = [os.path.join(path, file) for file in image_files.find(path)[0]]
    if not files:
        raise ValueError(f"--predict {path}: no image in this folder (PNG, JPEG, WebP, BMP, ...)")
    return files


def read_images(files, spec):
    """Yield (file, (C_in, H, W) in [0, 1]) of every image that can be read, naming the others. They
    are converted, scaled and cut as for training."""
    for file in files:
        try:
            with image_files.no_warnings():
                image = image_files.read(file, spec.C_in, spec.size)
            yield file, image.float() / 255
        except Exception as error:  # Pillow raises many kinds
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            print(f"augment.py: {file} cannot be read ({reason})", file=sys.stderr)


def classify(net, images, classes, device):
    """Yield [file, class, probability of each class] of (file, tensor) pairs."""
    if not images:
        return
    X = torch.stack([image for _, image in images])  # (N, C_in, H, W)
    with torch.no_grad():
        shares = F.softmax(net(X.to(device)).double(), dim=1).cpu()  # (N, n_classes)
    for (file, _), row in zip(images, shares, strict=True):
        yield [file, classes[int(row.argmax())], *(f"{p:.6f}" for p in row.tolist())]
