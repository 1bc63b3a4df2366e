"""What a training says and records: set-up, epochs, the result."""

import functools
import os

import genotypes as gt
import plot_train_val
import utils
import visualize
from console import errors
from console.terminal import visible
from models import stems
from records import files
from tracking import common_log
from tracking.run_folder import versions

PICTURES = {"curves": plot_train_val.plot_run}


def log_setup(run, data, genotype, size, memory, findings):
    """The first lines: what is trained, on what. `findings` are further lines, empty ones are not
    said."""
    cfg, log, spec = run.cfg, run.log, data.spec
    common_log.log_header(run, memory)
    log.info(
        f"{spec.name}: {len(data.train.dataset)} training images, {len(data.val.dataset)} "
        f"{data.val_name} images, {spec.describe()}, batch {data.batch_size}, lr {cfg.lr}, cutout "
        f"{data.cutout_length}; classes {', '.join(map(visible, spec.classes))}"
    )
    common_log.log_balance(run, data)
    log.info(f"genotype: {genotype}")
    log.info(f"network: {stems.describe(cfg, spec.size)}, {utils.describe_size(size)}")
    common_log.warn_of_learning_rate(run, data, "lr")
    for finding in filter(None, findings):
        log.info(finding)


def record_setup(run, data, genotype, size):
    """The held-out images, the cell, the size of the network, the next command."""
    common_log.record_held_out(run, data)
    text = gt.to_json(genotype, dataset=data.spec.name, size=list(data.spec.size))
    files.write_text(run.files.file(files.GENOTYPE), text + "\n")
    run.files.update_summary(next=evaluate_command(run), val_name=data.val_name, network=size)


def log_epoch(run, train, val, val_name):
    """The epoch's row of the table."""
    epoch = run.last["epoch"]
    if epoch == run.first_epoch:
        common_log.log_speed(run, train)
    run.log.row(epoch, train, val, run.best, val_name)


def finish(run, data, size, test, pictures):
    """Make the last pictures and log the result: both accuracies and what one needs to quote them.

    test  the scores on D/test, which no epoch was picked by; None where there is none beside D/val
    """
    last, best, name = run.last, run.best, data.val_name
    run.board.hparams(run.cfg.flags(), best_top1=best["top1"], last_top1=last["top1"])
    paths = [os.path.join(run.files.plot_path, files.drawing(cell)) for cell in files.CELLS]
    genotype = gt.from_str(last["genotype"])
    pictures.at_end(drawing=functools.partial(visualize.plot, genotype, *paths, data.spec.name))
    quote, final = "the last", ""
    if test is not None:
        quote, final = "the test's", f"test accuracy of the last epoch: {test['top1']:.2%}\n"
    run.log.result(
        f"{name} accuracy of the last epoch ({last['epoch']}): {last['top1']:.2%}\n"
        f"{name} accuracy of the best epoch ({best['epoch']}): {best['top1']:.2%} "
        f"(picked on the {name} split, so it flatters; quote {quote})\n"
        f"{final}{utils.describe_size(size)}\n"
        f"seed {run.cfg.seed}; {', '.join(' '.join(item) for item in versions().items())}\n"
        f"evaluate it again with\n{evaluate_command(run)}"
    )


def evaluate_command(run):
    said = [name for name in ("device", "gpus") if name in run.cfg.said]
    words = [word for name in said for word in (f"--{name}", getattr(run.cfg, name))]
    return errors.command("evaluate.py", run.files.path, *words)
