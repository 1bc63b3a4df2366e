"""What a search says and records: the row of an epoch, alpha, the drawings, the last lines."""

import math
import os

import genotypes as gt
import gif_maker
import plot_alphas
import plot_train_val
import report
import utils
import visualize
from config import AugmentConfig, data_flags
from console import errors
from models import augment_cnn
from records import files, reader

# what is drawn beside the cells, from the files of the run
PICTURES = {
    "curves": lambda path: plot_train_val.plot_run(path),
    "alphas": lambda path: plot_alphas.plot_run(path),
    # without drawings, which were warned of, there is nothing to animate
    "GIF": lambda path: (
        gif_maker.frames_of(os.path.join(path, "plots"), "normal") and gif_maker.make_gifs(path)
    ),
}


def cells_of(net, genotype):
    """(cell type, its alphas, its mixing weights as lists, its gene) of both cell types."""
    for cell, alphas, gene in (
        ("normal", net.alpha_normal, genotype.normal),
        ("reduce", net.alpha_reduce, genotype.reduce),
    ):
        mixing = [[gt.softmax(row) for row in rows] for rows in gt.as_lists(alphas)]
        yield cell, alphas, mixing, gene


def record_alphas(run, net, genotype, epoch, step):
    """What alpha says after an epoch, into alphas.jsonl and TensorBoard; returns the record."""
    record = {"epoch": epoch, "primitives": net.primitives, "entropy": {}, "counts": {}}
    for cell, alphas, mixing, gene in cells_of(net, genotype):
        record[cell] = mixing
        record["entropy"][cell] = gt.mean_entropy(alphas)
        record["counts"][cell] = gt.count_ops(gene)
        run.scalar(f"alpha_entropy/{cell}", record["entropy"][cell], step)
        run.histogram(f"alpha_{cell}", [w for rows in mixing for row in rows for w in row], step)
        for node, rows in enumerate(mixing, start=2):
            for j, row in enumerate(rows):
                for op, weight in zip(net.primitives, row, strict=True):
                    run.scalar(f"alpha_{cell}/{j}-{node}/{op}", weight, step)
    record["genotype"] = gt.to_str(genotype)
    run.append(files.ALPHAS, record)
    return record


def log_epoch(run, cfg, net, genotype, epoch, trained, held, best):
    """The epoch's row of the table, its details for the log, the warning about skip connections."""
    skips, edges = skips_of(genotype.normal)
    run.row(epoch, trained, held, best, skips=f"{skips}/{edges}")
    for cell, alphas, mixing, gene in cells_of(net, genotype):
        run.detail(
            f"    {cell:6} " + ", ".join(f"{n} {op}" for op, n in gt.count_ops(gene).items()) + "; "
            f"mean entropy of alpha {gt.mean_entropy(alphas):.4f} nats (undecided: "
            f"{math.log(len(net.primitives)):.4f}), largest weight "
            f"{max(max(row) for rows in mixing for row in rows):.3f}"
        )
    if epoch == 1:
        steps = -(-trained["seconds"] * trained["images_per_second"] // cfg.batch_size)
        run.detail(
            f"    {trained['seconds'] / max(steps, 1):.3f} s per step, "
            f"{trained['images_per_second']:.0f} images per second"
        )
    if 2 * skips >= edges:
        run.warn(
            f"{skips} of {edges} edges of the normal cell are skip connections; such cells train "
            f"poorly, and searching longer makes more of them (fewer --epochs, another --seed)",
            kind="skips",
        )


FEW_STEPS = 200  # fewer leave the supernet near chance; its statistics alone take as many


def warn_of_few_steps(run, cfg, data):
    """A search of a handful of steps runs, but what it finds means nothing."""
    steps = cfg.epochs * len(data.train)
    if steps < FEW_STEPS:
        run.warn(
            f"{steps} steps in all ({len(data.train)} an epoch) are too few for a cell that means "
            f"something; take more --epochs or a smaller --batch_size, for {FEW_STEPS} or more"
        )


def skips_of(gene):
    """(skip connections, edges) of a gene."""
    counts = gt.count_ops(gene)
    return counts.get("skip_connect", 0), sum(counts.values())


def draw(run, record, spec, top1, step):
    """The epoch's drawings, in plots/ and, where the cell has changed, in TensorBoard."""
    paths = visualize.plot_epoch(record, run.plot_path, spec.name, top1)
    if record["genotype"] != run.drawn:
        run.drawn = record["genotype"]
        for cell, path in zip(("normal", "reduce"), paths, strict=True):
            run.image(f"cell/{cell}", path, step)


def finish(run, cfg, net, spec, last, best, pictures, words):
    """The last lines: both genotypes, the strength of every edge, the size of the final network,
    the pictures, and the command that trains the best cell, augment.py with `words`."""
    run.close_bar()  # so that the command below is the last line
    kept = gt.from_str(best["genotype"])
    same = last["epoch"] == best["epoch"]
    if not same:
        run.info(
            f"last genotype (epoch {last['epoch']}, supernet top1 {last['top1']:.2%} on the alpha "
            f"half): {net.genotype()}"
        )
    run.result(
        f"{'last and best' if same else 'best'} genotype (epoch {best['epoch']}, supernet top1 "
        f"{best['top1']:.2%} on the alpha half; recommended): {kept}"
    )
    run.info("the best genotype in words:\n" + gt.describe(kept, cfg.layers))
    history = {record["epoch"]: record for record in reader.read_alphas(run.path)}
    run.info(
        "its edges, strongest op and runner-up (* is kept):\n"
        + plot_alphas.table(history[best["epoch"]])
    )
    say_size(run, cfg, spec, kept, words)
    run.hparams(best_top1=best["top1"], last_top1=last["top1"])
    pictures.at_end(drawing=lambda: report.draw_epochs(run.path, only_missing=True))
    skips, edges = skips_of(kept.normal)
    if 2 * skips >= edges:
        run.warn(f"the best normal cell has {skips} skip connections on {edges} edges")
    run.result(
        f"{best['top1']:.2%} is the accuracy of the supernet, not of the found cell: the cell must "
        f"be trained from scratch. Train it with\n{errors.command('augment.py', *words)}"
    )


def say_size(run, cfg, spec, genotype, words):
    """Parameters and multiply-adds of the network that the command at the end trains."""
    taken = {**data_flags(cfg.flags()), "stem_multiplier": cfg.stem_multiplier}
    final = AugmentConfig(words, taken=taken)
    try:
        net = augment_cnn.build(spec, final, genotype)
        facts = utils.network_facts(net, spec, final)
    except Exception as error:  # a block of one's own may not be countable
        run.warn(f"the final network was not counted: {error}")
        return
    run.note(network=facts)
    params, madds, (H, W) = facts["params"], facts["madds"], facts["size"]
    run.info(
        f"the network to train, {final.layers} cells and {final.init_channels} channels: "
        f"{params / 1e6:.3f} M params without the auxiliary head, {madds / 1e6:.1f} M "
        f"multiply-adds for an image of {H}x{W}"
    )
    if cfg.max_madds is not None and madds > cfg.max_madds * 1e6:
        run.warn(
            f"{madds / 1e6:.1f} M multiply-adds are more than --max_madds {cfg.max_madds:g}; train "
            f"it with fewer --init_channels or --layers, or search with cheaper --primitives"
        )
