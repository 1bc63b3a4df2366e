"""What a search and a training say and record alike."""

import functools

import numpy as np

from console.terminal import visible
from data_sets import loader_speed, splits
from records import files, reader


def by_main(say):
    """Decorates say(run, ...): of several processes the first alone does it."""

    @functools.wraps(say)
    def say_if_main(run, *args, **words):
        if run.group.is_main:
            say(run, *args, **words)

    return say_if_main


def log_header(run, memory):
    """Where, on what, and what was found out about the data."""
    run.log.info(f"{run.files.path} on {run.device.name}, maps {memory}, seed {run.cfg.seed}")
    for finding in run.findings:
        run.log.info(finding)


def log_balance(run, data):
    """How unequal the classes are, where that matters."""
    counts = data.class_counts
    if run.cfg.class_weights != "none" or max(counts) > 3 * min(counts):
        run.log.info(visible(data.describe_balance(run.cfg.class_weights)))


def warn_of_learning_rate(run, data, name):
    """Another batch size with the default learning rate `name`; --quick has chosen both, and one
    that was lowered for want of images is nobody's choice. With --scale_lr, what it made."""
    cfg = run.cfg
    if cfg.scale_lr:
        rates = {n: getattr(cfg, n) for n in (name, f"{name}_min", "alpha_lr") if hasattr(cfg, n)}
        said = [f"{n} {lr} -> {lr * cfg.lr_factor:g}" for n, lr in rates.items() if lr != "auto"]
        run.log.info(
            f"--scale_lr: batch {cfg.batch_size} instead of {cfg.usual_batch}, so {', '.join(said)}"
        )
        return
    batch, lr = cfg.default("batch_size"), cfg.default(name)
    if batch != data.batch_size == cfg.batch_size and getattr(cfg, name) == lr and not cfg.quick:
        run.log.warn(
            f"batch {data.batch_size} with the learning rate of batch {batch}; the linear rule "
            f"suggests --{name} {lr * data.batch_size / batch:g}"
        )


def log_speed(run, train):
    """Throughput of the loader beside that of the steps, after the first epoch."""
    run.log.info(loader_speed.describe(train, run.cfg.workers))
    run.log.detail(
        f"    {train['seconds'] / run.n_steps:.3f} s per step, "
        f"{train['images_per_second']:.0f} images per second"
    )


def record_held_out(run, data):
    """The list of images that are held out of the training part of a folder."""
    if data.held_out_files:
        path = run.files.file(files.HELD_OUT)
        files.write_text(path, "".join(f"{visible(name)}\n" for name in data.held_out_files))


def which(run, found):
    """The epoch of `found`, a run's best, in words: of equal scores it is the last."""
    equal = sum(top1 == found["top1"] for top1 in reader.scores(run.files.path).values())
    return f"{found['epoch']}, the last of {equal} that are equal" if equal > 1 else found["epoch"]


def scored_counts(loader, n_classes):
    """How many images of each class a loader scores."""
    return np.bincount(splits.targets_of(loader.dataset), minlength=n_classes).tolist()


def say_more(run, steps):
    """What else can be done with the result, [{"what", "command"}], a line each."""
    run.log.info("\n".join(f"{step['what']}:  {step['command']}" for step in steps))
