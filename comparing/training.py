"""One training from scratch, in memory: what a comparison is made of.

The recipe is that of augment.py: SGD, cosine learning rate down to 0, the augmentations of the
loader, drop path that grows, auxiliary head (App. A.2 of arXiv 1806.09055). Nothing is written, and
everything follows from the seed.
"""

import functools
import time
import weakref
from typing import NamedTuple

import torch
from torch import nn

import utils
from devices import layout
from devices.cuda_graph import Graphed
from devices.pick import Device
from devices.step_guard import StepGuard
from models import augment_cnn

CPU = Device(torch.device("cpu"))


class Recipe(NamedTuple):
    """How a cell is made into a network and trained: the flags of augment.py of the same names."""

    epochs: int
    layers: int
    init_channels: int
    stem: str = "auto"
    stem_multiplier: int = 3
    aux_weight: float = 0.4
    drop_path_prob: float = 0.2
    lr: float = 0.025
    momentum: float = 0.9
    weight_decay: float = 3e-4
    grad_clip: float = 5.0
    label_smoothing: float = 0.0
    class_weights: str = "none"

    @classmethod
    def from_config(cls, cfg):
        """From a configuration that has all of these flags."""
        return cls(*(getattr(cfg, name) for name in cls._fields))


class Training:
    """A network at the start of its training.

    The weights, the order of the images and their random changes follow from `seed`. The split
    does not: that is the data's.
    """

    def __init__(self, cell, data, recipe, seed, device=CPU, warn=lambda text: None):
        """
        cell    a genotypes.Genotype; or a network, X -> logits or (logits, auxiliary logits or
                None), which is trained as it is
        data    a data_sets.loaders.Data: `train` is trained on, `val` scored
        device  a devices.pick.Device
        warn    is told in words if the steps cannot be recorded (`Device.graphs`)
        """
        utils.seed_everything(seed)
        is_net = isinstance(cell, nn.Module)
        self.net = cell if is_net else augment_cnn.build(data.spec, recipe, cell)
        utils.settle_norms(self.net, len(data.train) * recipe.epochs)
        self.net.to(device.torch_device).train()
        self.net.to(memory_format=layout.LAYOUTS[layout.default_layout(device)])
        self.data, self.recipe, self.device, self.warn = data, recipe, device, warn
        self.criterion = utils.criterion(recipe, data.class_counts, device)
        self.optim = torch.optim.SGD(
            self.net.parameters(),
            # on a card itself, so that a recorded step reads the rate of each epoch
            torch.tensor(recipe.lr, device=device.torch_device) if device.is_cuda else recipe.lr,
            recipe.momentum,
            weight_decay=recipe.weight_decay,
            fused=device.is_cuda,
        )
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optim, recipe.epochs)
        self.guard = StepGuard(device, self.net, "stop")
        self.meter = utils.Meter(device, "training loss", self.guard)
        self._step, self._logits = self._recorded("_train_step"), self._recorded("_forward")
        data.train.restart([seed, 0])

    def _recorded(self, name):
        """The method `name`, with --cuda_graphs as a CUDA graph if it can be recorded."""
        # weak: in a cycle of references the card's memory would outlive this training
        step = functools.partial(getattr(Training, name), weakref.proxy(self))
        return Graphed(step, self.warn) if self.device.graphs else step

    def epoch(self, number):
        """Train epoch `number`, counted from 1, and score it; see `train` for what is returned."""
        start = time.perf_counter()
        self.begin(number)
        trained = self.steps(self.data.train)
        val = self.score(self.data.val)
        self.scheduler.step()
        return {
            "epoch": number,
            "loss": val["loss"],
            "top1": val["top1"],
            "train_loss": trained["loss"],
            "train_top1": trained["top1"],
            "seconds": time.perf_counter() - start,
        }

    def begin(self, number):
        """Epoch `number` begins: drop path grows linearly, from 0 in the first."""
        if self.recipe.drop_path_prob and hasattr(self.net, "drop_path_prob"):
            self.net.drop_path_prob(self.recipe.drop_path_prob * (number - 1) / self.recipe.epochs)
            self._step = self._recorded("_train_step")  # the probability is recorded, too

    def steps(self, batches):
        """A training step for each batch; see `Meter.result`. Raises NotFinite."""
        for batch in batches:
            self.step(*self.device.put(batch))
        return self.result()

    def result(self):
        """The `Meter.result` of the steps since the last."""
        found = self.meter.result()
        self.meter.restart()
        return found

    def step(self, X, y):
        """A training step on X (N, C_in, H, W), y (N,), both on the device, which is not waited
        for: `meter` adds up what came out."""
        self._step(X, y)

    def _train_step(self, X, y):
        self.guard.begin()
        self.optim.zero_grad()
        with self.device.autocast():
            outputs = self._forward(X)
            main_loss, loss = augment_cnn.training_loss(
                outputs, y, self.criterion, self.recipe.aux_weight
            )
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.grad_clip)
        self.guard.update(self.optim, loss, w=norm)
        self.meter.add(main_loss, outputs[0], y)
        return ()

    def score(self, batches):
        """Plain cross-entropy and accuracy in evaluation mode; see `Meter.result`."""
        self.net.eval()
        found = utils.evaluate(lambda X: self._logits(X)[0], batches, self.device)
        self.net.train()
        return found

    def _forward(self, X):
        out = self.net(X)
        return out if isinstance(out, tuple) else (out, None)


def train(cell, data, recipe, seed, device=CPU, on_epoch=None):
    """Train a cell, or a network, from scratch (`Training` has the arguments).

    Returns one score per epoch: {"epoch", "loss", "top1", "train_loss", "train_top1", "seconds"},
    loss and top1 on `data.val`, plain cross-entropy, in evaluation mode. on_epoch(score) is called
    with each. Raises NotFinite, a FloatingPointError, where a loss or gradient is NaN or infinite.
    """
    training, scores = Training(cell, data, recipe, seed, device), []
    for number in range(1, recipe.epochs + 1):
        scores.append(training.epoch(number))
        if on_epoch is not None:
            on_epoch(scores[-1])
    return scores
