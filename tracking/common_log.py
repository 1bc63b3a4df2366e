"""What a search and a training say and record alike."""

from console.terminal import visible
from data_sets import loader_speed
from records import files


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
    """Another batch size with the default learning rate `name`; --quick has chosen both."""
    cfg = run.cfg
    batch, lr = cfg.default("batch_size"), cfg.default(name)
    if data.batch_size != batch and getattr(cfg, name) == lr and not cfg.quick:
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
