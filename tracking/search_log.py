"""What a search says and records: set-up, epochs, alpha, drawings, the result."""

import math

import genotypes as gt
import gif_maker
import plot_alphas
import plot_train_val
import report
import utils
import visualize
from config import AugmentConfig
from console import errors
from console.terminal import visible
from models import augment_cnn, stems
from records import files, reader
from tracking import common_log

# what is drawn beside the cells, from the files of the run
PICTURES = {
    "curves": plot_train_val.plot_run,
    "alphas": plot_alphas.plot_run,
    "GIF": gif_maker.make_gifs,
}
FEW_STEPS = 500  # fewer leave alpha undecided and the supernet near chance


# --- set-up -------------------------------------------------------------------------------------


def log_setup(run, data, net, memory):
    """The first lines: what is searched, on what, with what."""
    cfg, log, spec = run.cfg, run.log, data.spec
    common_log.log_header(run, memory)
    log.info(
        f"{spec.name}: {len(data.train.dataset)} images for w, {len(data.alpha.dataset)} for "
        f"alpha, batch {data.batch_size}, w_lr {cfg.w_lr}; {spec.describe()}, "
        f"{len(spec.classes)} classes: {', '.join(map(visible, spec.classes))}"
    )
    common_log.log_balance(run, data)
    log.info(
        f"supernet: {stems.describe(cfg, spec.size)}, {cfg.layers} cells, "
        f"{cfg.init_channels} channels, {cfg.n_nodes} nodes, "
        f"{sum(w.numel() for w in net.weights()):,} weights; ops {', '.join(net.primitives)}"
    )
    for op, why in net.looped_ops().items():
        log.info(f"{op} runs edge by edge, since its block {why}; the other ops run wide")
    common_log.warn_of_learning_rate(run, data, "w_lr")
    if cfg.layers < 3:
        log.warn(
            f"with --layers {cfg.layers} every cell is a reduction cell: the normal cell is not "
            f"searched, and the one in the genotype is drawn by chance; take 3 or more"
        )
    warn_of_few_steps(run)
    start = (
        "search" if run.first_epoch == 1 else f"go on with epoch {run.first_epoch} of the search"
    )
    log.info(f"{start}: {cfg.epochs} epochs of {run.n_steps} steps, {describe_gradient(cfg)}")


def describe_gradient(cfg):
    """How alpha's gradient is computed."""
    if cfg.order == 1:
        return "first order"
    how = {
        "difference": f"second order (central difference, eps {cfg.eps:g}",
        "forward": f"second order (one-sided difference, eps {cfg.eps:g}",
        "exact": "second order (exact",
        "none": "lookahead (a virtual step, no second-order term",
    }[cfg.hessian]
    return f"{how}{', gradient of w reused' if cfg.reuse_gradient else ''})"


def record_setup(run, data):
    """The held-out images, and the command that trains what is found."""
    common_log.record_held_out(run, data)
    if run.last["epoch"]:  # the run goes on: in line with its checkpoint
        record_genotypes(run, data.spec)
    run.files.update_summary(next=augment_command(run), gradient=describe_gradient(run.cfg))


def warn_of_few_steps(run):
    """A search of a handful of steps runs, but what it finds means nothing."""
    steps = run.cfg.epochs * run.n_steps
    if steps < FEW_STEPS:
        run.log.warn(
            f"{steps} steps in all ({run.n_steps} an epoch) are too few for a cell that means "
            f"something; take more --epochs or a smaller --batch_size, for {FEW_STEPS} or more"
        )


# --- an epoch -----------------------------------------------------------------------------------


def record_genotypes(run, spec):
    """genotype-last.json of the last epoch and genotype.json of the best so far. Behind the
    checkpoint, so that they are never ahead of it."""
    cfg = run.cfg
    for name, found in ((files.GENOTYPE_LAST, run.last), (files.GENOTYPE, run.best)):
        text = gt.to_json(
            gt.from_str(found["genotype"]),
            epoch=found["epoch"],
            top1=found["top1"],
            dataset=spec.name,
            size=list(spec.size),
            primitives=cfg.primitives,
            n_nodes=cfg.n_nodes,
            k=cfg.k,
            flags=flags_to_inherit(cfg),
        )
        files.write_text(run.files.file(name), text + "\n")


def flags_to_inherit(cfg):
    """What a training inherits from this search."""
    flags = cfg.flags()
    return {**cfg.marked(flags, inherit="images"), **cfg.marked(flags, inherit="network")}


def record_alphas(run, net, genotype):
    """What alpha says after an epoch, into alphas.jsonl and TensorBoard; returns the record."""
    epoch, board = run.last["epoch"], run.board
    step = epoch * run.n_steps
    record = {"epoch": epoch, "primitives": net.primitives, "entropy": {}, "counts": {}}
    for cell, alphas in (("normal", net.alpha_normal), ("reduce", net.alpha_reduce)):
        mix = [[gt.softmax(row) for row in rows] for rows in gt.as_lists(alphas)]
        record[cell] = mix
        record["entropy"][cell] = gt.mean_entropy(alphas)
        record["counts"][cell] = gt.count_ops(getattr(genotype, cell))
        board.histogram(f"alpha_{cell}", [w for rows in mix for row in rows for w in row], step)
        weights = {
            f"{j}-{node}/{op}": weight
            for node, rows in enumerate(mix, start=2)
            for j, row in enumerate(rows)
            for op, weight in zip(net.primitives, row, strict=True)
        }
        board.scalars(f"alpha_{cell}", weights, step)
    board.scalars("alpha_entropy", record["entropy"], step)
    record["genotype"] = gt.to_str(genotype)
    run.files.append(files.ALPHAS, record)
    return record


def log_epoch(run, train, val, record):
    """The epoch's row of the table, its details for the log, the warning about skip connections."""
    epoch, log = run.last["epoch"], run.log
    skips, edges = skips_of(record["counts"]["normal"])
    if epoch == run.first_epoch:
        common_log.log_speed(run, train)
    log.row(epoch, train, val, run.best, skips=f"{skips}/{edges}")
    for cell in files.CELLS:
        log.detail(
            f"    {cell:6} "
            + ", ".join(f"{n} {op}" for op, n in record["counts"][cell].items())
            + f"; mean entropy of alpha {record['entropy'][cell]:.4f} nats (undecided: "
            f"{math.log(len(record['primitives'])):.4f}), largest weight "
            f"{max(max(row) for rows in record[cell] for row in rows):.3f}"
        )
    if 2 * skips >= edges:
        log.warn(
            f"{skips} of {edges} edges of the normal cell are skip connections; such cells train "
            f"poorly, and searching longer makes more of them (fewer --epochs, another --seed)",
            kind="skips",
        )


def skips_of(counts):
    """(skip connections, edges) of the op counts of a gene."""
    return counts.get("skip_connect", 0), sum(counts.values())


def draw(run, record, dataset):
    """The epoch's drawings, in plots/ and, where the cell has changed, in TensorBoard."""
    paths = visualize.plot_epoch(record, run.files.plot_path, dataset, run.last["top1"])
    if record["genotype"] != run.board.drawn:
        run.board.drawn = record["genotype"]
        for cell, path in zip(files.CELLS, paths, strict=True):
            run.board.image(f"cell/{cell}", path, record["epoch"] * run.n_steps)


# --- the end ------------------------------------------------------------------------------------


def finish(run, data, pictures):
    """Record the size of the final network, make the last pictures, log the result."""
    best = gt.from_str(run.best["genotype"])
    size = size_of_final_network(run, data.spec, best)
    if size is not None:
        run.files.update_summary(network=size)
    run.board.hparams(run.cfg.flags(), best_top1=run.best["top1"], last_top1=run.last["top1"])
    log_genotypes(run, best)
    log_size(run, size)
    pictures.at_end(drawing=lambda: report.draw_epochs(run.files.path, only_missing=True))
    warn_of_few_steps(run)  # once more, beside the result
    skips, edges = skips_of(gt.count_ops(best.normal))
    if 2 * skips >= edges:
        run.log.warn(f"the best normal cell has {skips} skip connections on {edges} edges")
    run.log.result(
        f"{run.best['top1']:.2%} is the accuracy of the supernet, not of the found cell: the cell "
        f"must be trained from scratch. Train it with\n{augment_command(run)}"
    )


def log_genotypes(run, best):
    """The last genotype and the best, in words, and how clearly each edge was decided."""
    last_epoch, best_epoch = run.last["epoch"], run.best["epoch"]
    if last_epoch != best_epoch:
        run.log.info(
            f"last genotype (epoch {last_epoch}, supernet top1 {run.last['top1']:.2%} on the alpha "
            f"half): {run.last['genotype']}"
        )
    run.log.result(
        f"{'last and best' if last_epoch == best_epoch else 'best'} genotype (epoch {best_epoch}, "
        f"supernet top1 {run.best['top1']:.2%} on the alpha half; recommended): {best}"
    )
    run.log.info("the best genotype in words:\n" + gt.describe(best, run.cfg.layers))
    try:
        history = {record["epoch"]: record for record in reader.read_alphas(run.files.path)}
    except ValueError:  # the file was damaged or deleted; the result does not depend on it
        history = {}
    if best_epoch in history:
        run.log.info(
            "its edges, strongest op besides none and runner-up (* is kept):\n"
            + plot_alphas.table(history[best_epoch])
        )


def size_of_final_network(run, spec, genotype):
    """`utils.network_size` of the network that the last line trains, with the flags it will have;
    None where it cannot be counted."""
    final = AugmentConfig(augment_words(run))
    final.inherit(flags_to_inherit(run.cfg))
    try:
        return utils.network_size(augment_cnn.build(spec, final, genotype), spec, final)
    except Exception as error:  # a block of one's own may not be countable
        run.log.warn(f"the final network was not counted: {errors.one_line(error)}")
        return None


def log_size(run, size):
    if size is None:
        return
    run.log.info(f"the network to train: {utils.describe_size(size)}")
    limit = run.cfg.max_madds
    if limit is not None and size["madds"] > limit * 1e6:
        run.log.warn(
            f"{size['madds'] / 1e6:.1f} M multiply-adds are more than --max_madds {limit:g}; train "
            f"it with fewer --init_channels or --layers, or search with cheaper --primitives"
        )


def augment_command(run):
    """The complete command that trains the found cell, to be pasted into a shell."""
    return errors.command("augment.py", *augment_words(run))


def augment_words(run):
    """The words of that command behind augment.py."""
    cfg = run.cfg
    words = ["--genotype", run.files.path]  # which knows the data
    for name in ("device", "gpus", "workers"):
        if name in cfg.said:
            words += [f"--{name}", str(getattr(cfg, name))]
    return [*words, "--quick"] if cfg.quick else words
