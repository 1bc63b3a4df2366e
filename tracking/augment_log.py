"""What a training says and records: set-up, epochs, the result."""

import functools
import os

import genotypes as gt
import plot_confusion
import plot_train_val
import utils
import visualize
from console import errors
from console.terminal import plural, visible
from models import stems
from records import comparison, files, reader, verdict
from tracking import common_log, mistakes
from tracking.run_folder import versions

FEW_STEPS = 100  # of a whole training: after so few the images may not be to blame


def draw_confusion(run_path):
    """The confusion matrix, which is there when the training has ended."""
    if os.path.exists(os.path.join(run_path, files.CONFUSION)):
        plot_confusion.plot_run(run_path)


PICTURES = {"curves": plot_train_val.plot_run, "confusion": draw_confusion}


def log_setup(run, data, genotype, size, memory, findings):
    """The first lines: what is trained, on what. `findings` are further lines, empty ones are not
    said."""
    cfg, log, spec = run.cfg, run.log, data.spec
    common_log.log_header(run, memory)
    log.info(
        f"{spec.name}: {plural(len(data.train.dataset), 'training image')}, "
        f"{plural(len(data.val.dataset), f'{data.val_name} image')}, {spec.describe()}, "
        f"batch {data.batch_size}, lr {cfg.lr * cfg.lr_factor:g}, cutout {data.cutout_length}; "
        f"classes {', '.join(map(visible, spec.classes))}"
    )
    common_log.log_balance(run, data)
    if who := comparison.who(origin(run)):
        log.info(f"the cell is {who}")
    log.info(f"genotype: {genotype}")
    if why := doubt(cfg.genotype):
        log.warn(f"--genotype {cfg.genotype}: {why}")
    log.info(f"network: {stems.describe(cfg, spec.size)}, {utils.describe_size(size)}")
    common_log.warn_of_learning_rate(run, data, "lr")
    for finding in filter(None, findings):
        log.info(finding)


def origin(run):
    """{"name", "kind"} of a cell that comes from a comparison, as genotype.json has them there; {}
    of others. A run that goes on has them in its own."""
    known = gt.metadata(run.files.path) or gt.metadata(run.cfg.genotype)
    return {key: known[key] for key in ("name", "kind")} if comparison.who(known) else {}


def doubt(source):
    """Why the cell of the search or comparison `source` is a matter of chance, in words; "" where
    nothing says so, as of a damaged one."""
    if not os.path.isdir(source):
        return ""
    try:
        if reader.is_comparison(source):
            rows = comparison.read(source)
            if not comparison.is_weak(rows):
                return ""
            if reader.read_summary(source).get("finished"):
                return comparison.weak_words(rows)
            return f"{comparison.weak_words(rows, False)} The comparison is not over."
        if not os.path.isfile(os.path.join(source, files.ALPHAS)):
            return ""  # the verdict of a training is on its network, not on the cell
        judged = reader.read_summary(source).get("verdict")
    except (ValueError, OSError):
        return ""
    if not judged or judged.get("better") is not False:
        return ""
    return f"{visible(judged['text'])}, so its cell is a matter of chance; search longer first"


@common_log.by_main
def record_setup(run, data, genotype, size):
    """The held-out images, the cell, the size of the network, the next command."""
    common_log.record_held_out(run, data)
    images = {"dataset": data.spec.name, "size": list(data.spec.size)}
    text = gt.to_json(genotype, **images, **origin(run))
    files.write_text(run.files.file(files.GENOTYPE), text + "\n")
    run.files.update_summary(next=evaluate_command(run), val_name=data.val_name, network=size)


def log_epoch(run, train, val, val_name):
    """The epoch's row of the table."""
    epoch = run.last["epoch"]
    if epoch == run.first_epoch:
        common_log.log_speed(run, train)
    run.log.row(epoch, train, val, run.best, val_name)


@common_log.by_main
def finish(run, data, size, scored, pictures):
    """Judge the last epoch's network, make the last pictures and log the result: both accuracies
    and what one needs to quote them, what they are worth, what to do next.

    scored  (scores, utils.Answers) on D/test, which no epoch was picked by; where there is none
            beside D/val, on that
    """
    last, best, name = run.last, run.best, data.val_name
    scores, answers = scored
    quote, final = "the last", ""
    if data.test is not None:
        quote, final = "the test's", f"test accuracy of the last epoch: {scores['top1']:.2%}\n"
    found, judged = judge(run, data, scores, answers)
    run.board.hparams(run.cfg.flags(), best_top1=best["top1"], last_top1=last["top1"])
    run.log.result(
        f"{name} accuracy of the last epoch ({last['epoch']}): {last['top1']:.2%}\n"
        f"{name} accuracy of the best epoch ({common_log.which(run, best)}): {best['top1']:.2%} "
        f"(picked on the {name} split, so it flatters; quote {quote})\n"
        f"{final}{describe(found, judged)}\n{utils.describe_size(size)}\n"
        f"seed {run.cfg.seed}; {', '.join(' '.join(item) for item in versions().items())}"
    )
    if not judged["better"]:
        run.log.warn(f"the network is no better than guessing: {advice(run, data)}")
    paths = [os.path.join(run.files.plot_path, files.drawing(cell)) for cell in files.CELLS]
    genotype = gt.from_str(last["genotype"])
    run.record_state("finished")
    pictures.at_end(drawing=functools.partial(visualize.plot, genotype, *paths, data.spec.name))
    common_log.say_more(run, next_steps(run))
    run.log.result(f"evaluate it again with\n{evaluate_command(run)}")


def judge(run, data, scores, answers):
    """Into confusion.json, small pictures and summary.json: what the network got wrong, and what
    its accuracy is worth. Returns (what confusion.json holds, `verdict.judge`)."""
    part, loader = (data.val_name, data.val) if data.test is None else ("test", data.test)
    found = mistakes.record(
        run.files, part, run.last["epoch"], data.spec.classes, loader.dataset, answers
    )
    hits, counts = verdict.per_class(found["matrix"])
    judged = verdict.judge(scores["top1"], counts, data.spec.classes, hits)
    by_class = {
        name: hit / count
        for name, hit, count in zip(data.spec.classes, hits, counts, strict=True)
        if count
    }
    run.files.update_summary(
        verdict={**judged, "part": part, "classes": by_class}, more=next_steps(run)
    )
    return found, judged


def describe(found, judged):
    """The verdict, the classes and the mistakes in lines."""
    classes, matrix = [visible(name) for name in found["classes"]], found["matrix"]
    lines = [
        f"verdict on the last epoch: {judged['text']}",
        verdict.describe_classes(matrix, classes),
        verdict.describe_confusions(matrix, classes),
        "most surely wrong: "
        + ", ".join(
            f"{wrong['image']} ({visible(wrong['class'])} taken for {visible(wrong['taken_for'])}, "
            f"{wrong['probability']:.1%})"
            for wrong in found["wrong"][:3]
        ),
    ]
    return "\n".join(line for line in lines if line and (found["wrong"] or "wrong:" not in line))


def advice(run, data):
    """What to do about a network that is no better than guessing."""
    steps = run.n_steps * run.cfg.epochs
    try:
        trained = reader.read_metrics(run.files.path)["train"][run.last["epoch"]]["top1"]
    except (ValueError, KeyError):  # the records were damaged or deleted
        trained = 0.0
    if verdict.judge(trained, data.class_counts, data.spec.classes)["better"]:
        first = ""
        if steps < FEW_STEPS:
            first = f"{plural(steps, 'step')} may be too few, so take more --epochs first; then "
        return (
            f"it gets {trained:.2%} of the training images right, but that does not carry over to "
            f"others; {first}take more images, and look whether the "
            f"{data.val_name} images are in the right classes"
        )
    return (
        f"it has learned nothing in {plural(steps, 'step')}; take more --epochs or a smaller "
        f"--batch_size, and if the loss does not fall then, another --lr"
    )


def next_steps(run):
    """What can be done with the network, as [{"what": in words, "command": to paste}]."""
    path, genotype = run.files.path, run.cfg.genotype
    steps = [
        ("classify your own images", "predict.py", ("IMAGE_OR_FOLDER", "--from", path)),
        ("use it in other programs", "export.py", (path,)),
    ]
    if genotype and os.path.isfile(os.path.join(genotype, files.ALPHAS)):
        words = (genotype, "--random", "4", *(["--quick"] if run.cfg.quick else []))
        steps.append(("see whether random cells are as good", "compare.py", words))
    return [
        {"what": what, "command": errors.command(*words, *more)} for what, *words, more in steps
    ]


def evaluate_command(run):
    said = [name for name in ("device", "gpus") if name in run.cfg.said]
    if run.cfg.gpus == "all" or "," in (run.cfg.gpus or ""):  # evaluate.py takes one
        said = [name for name in said if name != "gpus"]
    words = [word for name in said for word in (f"--{name}", getattr(run.cfg, name))]
    return errors.command("evaluate.py", run.files.path, *words)
