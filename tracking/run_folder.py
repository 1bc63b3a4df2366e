"""The record of a run: searchs/NAME or augments/NAME and everything written into it.

    config.json      flags, versions, device, start time
    NAME.log         what the terminal said, without the bars, and the details of each epoch
    metrics.jsonl    one JSON object per phase and epoch
    alphas.jsonl     search: softmax(alpha) and the genotype after each epoch
    genotype.json    search: best by the held-out half, and genotype-last.json;  augment: its cell
    summary.json     the size of the final network, the time for pictures, the next command
    checkpoint.pt    the last epoch, with all that resuming needs;  best.pt
    plots/           search: the drawings of each epoch
    report.html      everything above to look at (report.py)
    tb/              TensorBoard events

Files that matter are written to a temporary name and then renamed.
"""

import json
import logging
import logging.handlers
import os
import platform
import shutil
import subprocess
import time

import numpy
import torch
import torchvision
from PIL import Image
from tensorboardX import SummaryWriter

from console import errors
from console.terminal import Terminal
from data_sets.named import DataSpec
from records import files
from records.reader import ALPHAS, CONFIG, METRICS, SUMMARY, read_object
from tracking import checkpoint

CHECKPOINT, BEST = "checkpoint.pt", "best.pt"


def free_name(root, stem):
    """`stem`, or stem-2, stem-3, ...: the first that is no folder in `root` yet."""
    name, n = stem, 1
    while os.path.exists(os.path.join(root, name)):
        n += 1
        name = f"{stem}-{n}"
    return name


def read_flags(path):
    """The flags of an earlier run in folder `path`. Raises ValueError if there is none."""
    file = os.path.join(path, CONFIG)
    try:
        with open(file, encoding="utf-8") as stream:
            return json.load(stream)["flags"]
    except FileNotFoundError:
        raise ValueError(f"no run to go on with: {file} does not exist") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not readable: {error}") from None


def versions():
    """Versions of everything that has a part in the numbers."""
    here = os.path.dirname(os.path.abspath(__file__))
    try:
        commit = subprocess.run(
            ["git", "-C", here, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip()
    except OSError:  # no git on this machine
        commit = ""
    return {
        "repository": commit or "unknown",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
    }


class RunFolder(Terminal):
    """One run's folder and its records, and what it says (terminal.py). A context manager."""

    def __init__(self, cfg, device, stem):
        """
        cfg     a config.SearchConfig or AugmentConfig; gets a name here if it has none
        device  name of the device, for the record
        stem    what a run without --name is called after

        Nothing is created before the context is entered. Raises ValueError when the folder exists
        and neither --resume nor --overwrite was given, or when there is nothing to resume.
        """
        super().__init__(cfg)
        self.findings = keep_findings()
        cfg.name = cfg.name or free_name(cfg.ROOT, stem)
        self.device = device
        self.name = cfg.name
        self.path = os.path.join(cfg.ROOT, cfg.name)
        self.plot_path = os.path.join(self.path, "plots")
        self.drawn = None  # the cell that TensorBoard has a picture of
        self.state = None  # the checkpoint to go on from
        self._writer = None
        if cfg.resume:
            if not self.has_checkpoint():
                raise ValueError(
                    f"nothing to resume in {self.path}: no epoch was finished; use --overwrite"
                )
            self.state = checkpoint.load_checkpoint(self.file(CHECKPOINT))
        elif os.path.exists(self.path):
            if not cfg.overwrite:
                go_on = ", go on with --resume," if self.has_checkpoint() else ""
                raise ValueError(
                    f"{self.path} exists; choose another --name{go_on} or replace it with "
                    f"--overwrite"
                )
            if not os.path.isfile(self.file(CONFIG)):
                raise ValueError(f"{self.path} is no run folder (no {CONFIG}); not overwritten")

    def __enter__(self):
        if self.state is None:
            if os.path.exists(self.path):
                shutil.rmtree(self.path)
            os.makedirs(self.path)
            record = {
                "flags": self.cfg.flags(),
                "versions": versions(),
                "device": self.device,
                "start_time": time.strftime("%Y-%m-%d %H:%M:%S"),
            }
            self.write(CONFIG, json.dumps(record, indent=1))
        else:
            self._keep_epochs(self.state["epoch"])
        self.open_log(self.file(f"{self.name}.log"))
        return self

    def __exit__(self, kind, error, traceback):
        if error is not None:
            self.info(f"stopped by {kind.__name__}{f': {error}' if str(error) else ''}")
        self.close_bar()
        if self._writer is not None:
            self._writer.close()
        self.close_log()

    def has_checkpoint(self):
        """Whether an epoch has been finished."""
        return os.path.exists(self.file(CHECKPOINT))

    def how_to_go_on(self):
        """What to do after the run was interrupted, behind a verb."""
        if not self.has_checkpoint():
            return " before an epoch was finished; start again, with --overwrite to keep the name"
        again = errors.command(self.cfg.PROG, "--name", self.name, "--resume")
        return f"; go on after the last finished epoch with\n{again}"

    def file(self, name):
        """Path of a file in this folder."""
        return os.path.join(self.path, name)

    # --- records --------------------------------------------------------------------------------

    def write(self, name, text):
        """Write a text file in one piece."""
        with files.atomic(self.file(name)) as temporary:
            with open(temporary, "w", encoding="utf-8") as stream:
                stream.write(text + "\n")

    def append(self, name, record):
        """One JSON object as one line at the end of a .jsonl file."""
        with open(self.file(name), "a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")

    def opening(self, layout, data):
        """The first lines of a run: where, on what, and what was found out about the `data`, a
        loaders.Data. Keeps the list of held-out images."""
        self.top_k = min(5, len(data.spec.classes))
        self.info(f"{self.path} on {self.device}, maps {layout}, seed {self.cfg.seed}")
        for record in self.findings.buffer:
            self.info(record.getMessage())
        if data.held_out_files:
            self.write("held-out.txt", "\n".join(data.held_out_files))

    def known_spec(self):
        """DataSpec of the run that goes on, or None."""
        return self.state and DataSpec.from_dict(self.state["data"])

    def cache_files(self):
        return cache_files(self.cfg.ROOT)

    def note(self, **values):
        """Put values into summary.json, beside those that stand there."""
        record = {**read_object(self.file(SUMMARY)), **values}
        self.write(SUMMARY, json.dumps(record, indent=1))

    def metrics(self, phase, epoch, step, **values):
        """One phase ("train" or "val") of one epoch: to metrics.jsonl and TensorBoard."""
        self.append(METRICS, {"phase": phase, "epoch": epoch, "step": step, **values})
        for key in ("loss", "top1", "top5", "lr"):
            if key in values:
                self.scalar(f"{phase}/{key}", values[key], step)

    def _keep_epochs(self, last):
        """Drop records of epochs after `last`, which a resumed run will write again."""
        for name in (METRICS, ALPHAS):
            if os.path.exists(self.file(name)):
                with open(self.file(name), encoding="utf-8") as stream:
                    lines = [line.rstrip("\n") for line in stream]
                kept = [line for line in lines if _epoch_of(line) <= last]
                if kept:
                    self.write(name, "\n".join(kept))
                else:
                    os.remove(self.file(name))

    def save(self, parts, epoch, is_best, **more):
        """Write checkpoint.pt and, for the best epoch so far, best.pt.

        `parts` are what has a state_dict, by name ("model", ...). `more` is kept beside them; of it
        torch.load(..., weights_only=True) must be able to read everything.
        """
        states = {name: part.state_dict() for name, part in parts.items()}
        state = {**states, "rng": checkpoint.rng_state(), "epoch": epoch, **more}
        checkpoint.save_checkpoint(state, self.file(CHECKPOINT))
        if is_best:
            checkpoint.save_checkpoint(state, self.file(BEST))

    def restore(self, parts):
        """Resuming: put `parts` and the random generators back to the last finished epoch."""
        for name, part in parts.items():
            checkpoint.load_state(part, self.state[name], self.file(CHECKPOINT))
        checkpoint.set_rng_state(self.state["rng"])

    # --- TensorBoard ----------------------------------------------------------------------------

    def open_tensorboard(self, first_step=0):
        """Start the event file; a resumed run hides what was written after `first_step`."""
        # TensorBoard hides the purge step as well, and the last finished epoch stands at first_step
        purge = first_step + 1 if first_step else None
        self._writer = SummaryWriter(self.file("tb"), purge_step=purge)
        if not first_step:
            rows = [f"|{key}|{value}|" for key, value in sorted(self.cfg.flags().items())]
            self._writer.add_text("config", "\n".join(["|flag|value|", "|-|-|", *rows]))

    def scalar(self, tag, value, step):
        """One TensorBoard scalar."""
        self._writer.add_scalar(tag, value, step)

    def histogram(self, tag, values, step):
        """One TensorBoard histogram of numbers."""
        self._writer.add_histogram(tag, numpy.asarray(values), step)

    def image(self, tag, path, step):
        """A picture file as a TensorBoard image."""
        with Image.open(path) as picture:
            pixels = numpy.asarray(picture.convert("RGB"))
        self._writer.add_image(tag, pixels, step, dataformats="HWC")

    def hparams(self, **results):
        """The flags and what came out, for TensorBoard's table of runs."""
        flags = {
            key: value if isinstance(value, (bool, int, float, str)) else str(value)
            for key, value in self.cfg.flags().items()
        }
        self._writer.add_hparams(flags, results, name="hparams")


def cache_files(root):
    """What was found out about image folders: own first, then that of the other script."""
    roots = sorted(("searchs", "augments"), key=lambda other: other != root)
    return [os.path.join(folder, ".images.json") for folder in roots]


def keep_findings():
    """A handler that holds what the data package logs, until the run has a log of its own."""
    logger = logging.getLogger("darts.data")
    logger.setLevel(logging.INFO)
    for old in list(logger.handlers):
        logger.removeHandler(old)
    handler = logging.handlers.MemoryHandler(10_000, flushLevel=logging.CRITICAL)
    logger.addHandler(handler)
    return handler


def _epoch_of(line):
    """Epoch of a .jsonl line; infinity for one cut off in the middle."""
    try:
        return json.loads(line)["epoch"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
