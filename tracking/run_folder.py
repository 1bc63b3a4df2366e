"""The folder of a run, searchs/NAME or augments/NAME, and everything written into it.

    config.json      flags, versions, device, start time
    NAME.log         what the terminal said, without the bars, and the details of each epoch
    metrics.jsonl    one JSON object per phase and epoch
    alphas.jsonl     search: softmax(alpha) and the genotype after each epoch
    genotype.json    search: of the best epoch, and genotype-last.json;  augment: its cell
    summary.json     the size of the final network, the time for pictures, the next command
    checkpoint.pt    the last epoch, with all that resuming needs;  best.pt
    plots/           the drawings: of each epoch of a search, of the cell of a training
    report.html      everything above to look at (report.py)
    tb/              TensorBoard events

Files that matter are written to a temporary name and then renamed.
"""

import json
import os
import platform
import shutil
import subprocess
import time

import numpy
import torch
import torchvision

from records import files, reader
from tracking import checkpoint


def free_name(root, name):
    """`name`, or name-2, name-3, ...: the first that is no folder in `root` yet."""
    free, n = name, 1
    while os.path.exists(os.path.join(root, free)):
        n += 1
        free = f"{name}-{n}"
    return free


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


class RunFolder:
    """Writes the files of one run."""

    def __init__(self, root, name):
        self.name = name
        self.path = os.path.join(root, name)
        self.plot_path = self.file(files.PLOTS)

    def file(self, name):
        """Path of a file in this folder."""
        return os.path.join(self.path, name)

    def has_checkpoint(self):
        """Whether an epoch has been finished."""
        return os.path.exists(self.file(files.CHECKPOINT))

    def check_free(self, overwrite):
        """Raise ValueError where the folder exists and may not be overwritten."""
        if not os.path.exists(self.path):
            return
        if not overwrite:
            go_on = ", go on with --resume," if self.has_checkpoint() else ""
            raise ValueError(
                f"{self.path} exists; choose another --name{go_on} or replace it with --overwrite"
            )
        if not os.path.isfile(self.file(files.CONFIG)):
            raise ValueError(f"{self.path} is no run folder (no {files.CONFIG}); not overwritten")

    def create(self, flags, device_name):
        """Make the folder anew, with its config.json."""
        if os.path.exists(self.path):
            shutil.rmtree(self.path)
        os.makedirs(self.path)
        record = {
            "flags": flags,
            "versions": versions(),
            "device": device_name,
            "start_time": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        files.write_json(self.file(files.CONFIG), record)

    def append(self, name, record):
        """One JSON object as one line at the end of a .jsonl file."""
        with open(self.file(name), "a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")

    def update_summary(self, **values):
        """Put values into summary.json, beside those that stand there."""
        path = self.file(files.SUMMARY)
        files.write_json(path, {**reader.read_object(path), **values})

    def keep_epochs(self, last):
        """Drop records of epochs after `last`, which a resumed run will write again."""
        for name in (files.METRICS, files.ALPHAS):
            path = self.file(name)
            if os.path.exists(path):
                kept = [r for r in reader.read_lines(path) if r.get("epoch", last + 1) <= last]
                if kept:
                    files.write_text(path, "".join(json.dumps(r) + "\n" for r in kept))
                else:
                    os.remove(path)

    def save(self, state, is_best):
        """Write checkpoint.pt and, for the best epoch so far, best.pt."""
        checkpoint.save(state, self.file(files.CHECKPOINT))
        if is_best:
            checkpoint.save(state, self.file(files.BEST))
