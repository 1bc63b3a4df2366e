"""How long something will take on this machine, measured on its first steps."""

import time

import torch

import report
from console import errors
from console.terminal import plural
from models import augment_cnn

FIRST, LAST = 3, 13  # steps of a call between which the time is taken; the first ones are slower
TRIED, LONG = 10, 1.0  # steps, and seconds after which there are enough of them
LEAST = 3  # steps on a card, where each may still look for kernels
TOO_LONG = 10.0  # seconds of a first step on a CPU behind which no other is tried


class FirstSteps:
    """Takes the time of the first steps of a run, once, for an estimate of what is left."""

    def __init__(self):
        self._n = 0
        self._start = None

    def step_done(self, wait):
        """A step is done, `wait` waits for the device. Seconds per step where there is now a
        measurement, else None."""
        self._n += 1
        if self._n not in (FIRST, LAST):
            return None
        wait()
        now = time.perf_counter()
        if self._n == FIRST:
            self._start = now
            return None
        return (now - self._start) / (LAST - FIRST)


def describe(seconds_per_step, steps_left, warms_up):
    """What is left of a run, in words, by the time of a step, which may be one of the warm-up."""
    text = (
        f"about {report.duration(seconds_per_step * steps_left)} for {plural(steps_left, 'step')} "
        f"of {seconds_per_step:.2g} s that are left, and the scoring after each epoch"
    )
    if warms_up:
        text += "; steps after the warm-up take about twice as long"
    return text


def seconds_per_step(net, spec, cfg, criterion, device):
    """Seconds of a training step of a final network on random images, as `cfg`, the flags of
    augment.py, has it: of the fastest of a few, since other programs may be in the way of some. The
    first, which looks for kernels and takes memory, counts only where it alone takes long, on a
    CPU. Changes the weights of `net`."""
    net.to(device.torch_device).train()
    optim = torch.optim.SGD(net.parameters(), cfg.lr, cfg.momentum)
    X = torch.rand(cfg.batch_size, spec.C_in, *spec.size)
    y = torch.arange(cfg.batch_size) % len(spec.classes)
    steps = []
    for n in range(1 + TRIED):
        start = time.perf_counter()
        batch_X, batch_y = device.put((X, y))
        optim.zero_grad()
        with device.autocast():
            _, loss = augment_cnn.training_loss(net(batch_X), batch_y, criterion, cfg.aux_weight)
        loss.backward()
        optim.step()
        loss.item()  # waits for the device
        seconds = time.perf_counter() - start
        if n or (seconds > TOO_LONG and not device.is_cuda):
            steps.append(seconds)
        if sum(steps) > LONG and len(steps) >= (LEAST if device.is_cuda else 1):
            break
    return min(steps)


def say_of_training(run, measured):
    """What `measured()` gives, an `of_training`, for terminal, page and summary.json of a run or a
    comparison. Returns whether it could be measured."""
    try:
        found = measured()
    except Exception as error:  # mostly memory, which the supernet still holds
        run.log.detail(f"the time of the training was not estimated: {errors.one_line(error)}")
        return False
    run.files.update_summary(training=found)
    run.log.info(found["text"])
    return True


def of_training(net, spec, cfg, n_images, criterion, device, about=""):
    """{"seconds", "text"} of the training of a final network by the flags `cfg` on so many images;
    `about` stands before their number. Changes the weights of `net`."""
    steps = max(n_images // cfg.batch_size, 1) * cfg.epochs
    seconds = steps * seconds_per_step(net, spec, cfg, criterion, device)
    text = (
        f"training it will take about {report.duration(seconds)} on this machine: "
        f"{plural(cfg.epochs, 'epoch')} of {about}{plural(n_images, 'image')}, "
        f"{plural(cfg.layers, 'cell')}, {plural(cfg.init_channels, 'channel')}"
    )
    return {"seconds": round(seconds, 1), "text": text}
