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
from console.terminal import plural, visible
from devices import launch, processes
from models import augment_cnn, small_maps, stems
from records import alphas, files, reader, verdict
from strategies.steering import TRAVEL
from tracking import common_log, estimate

# what is drawn beside the cells, from the files of the run
PICTURES = {
    "curves": plot_train_val.plot_run,
    "alphas": plot_alphas.plot_run,
    "GIF": gif_maker.make_gifs,
}


# --- set-up -------------------------------------------------------------------------------------


def log_setup(run, data, net, memory, strategies):
    """The first lines: what is searched, on what, with what."""
    cfg, log, spec = run.cfg, run.log, data.spec
    common_log.log_header(run, memory)
    log.info(
        f"{spec.name}: {plural(len(data.train.dataset), 'image')} for w, "
        f"{len(data.alpha.dataset):,} for alpha, batch {data.batch_size}, "
        f"w_lr {cfg.w_lr * cfg.lr_factor:g}; {spec.describe()}, {len(spec.classes)} classes: "
        f"{', '.join(map(visible, spec.classes))}"
    )
    common_log.log_balance(run, data)
    log.info(
        f"supernet: {stems.describe(cfg, spec.size)}, {cfg.layers} cells, "
        f"{cfg.init_channels} channels, {plural(cfg.n_nodes, 'node')}, "
        f"{sum(w.numel() for w in net.weights()):,} weights; ops {', '.join(net.primitives)}"
    )
    for op, why in net.looped_ops().items():
        log.info(f"{op} runs edge by edge, since its block {why}; the other ops run wide")
    common_log.warn_of_learning_rate(run, data, "w_lr")
    if "normal" not in gt.searched_cells(cfg.layers):
        log.warn(
            f"with --layers {cfg.layers} every cell is a reduction cell: the normal cell is not "
            f"searched, and the one in the genotype is drawn by chance; take 3 or more"
        )
    warn_of_blind_ops(run, stems.map_size(spec.size, net.net.stem))
    warn_of_short_travel(run, strategies)
    for line in strategies.describe():
        log.info(line)
    start = "search"
    if run.first_epoch > 1:
        start = f"go on with epoch {run.first_epoch} of the search"
    if run.stopped:
        log.info(f"this search has ended after epoch {run.last['epoch']}: {run.stopped}")
        return
    if run.first_epoch > cfg.epochs:
        again = cfg.select == "perturbation"
        what = "its cell is selected again" if again else "here is its result again"
        log.info(f"this search is over after epoch {cfg.epochs}; {what}")
        return
    length = f"{plural(cfg.epochs, 'epoch')} of {plural(run.n_steps, 'step')}"
    log.info(f"{start}: {length}, {describe_gradient(cfg)}")


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


@common_log.by_main
def record_setup(run, data, strategies):
    """The held-out images, how alpha is steered, and the command that trains what is found."""
    common_log.record_held_out(run, data)
    if run.last["epoch"]:  # the run goes on: in line with its checkpoint
        record_genotypes(run, data.spec)
    run.files.update_summary(
        next=augment_command(run),
        gradient=describe_gradient(run.cfg),
        strategies=strategies.describe(),
    )


def warn_of_blind_ops(run, size):
    """Ops of which all taps but one fall on padding, on maps of the last cells. `size` (H, W) is
    that of the maps which the first cell reads."""
    names, maps = run.cfg.primitives, small_maps.cell_maps(size, run.cfg.layers)
    blind = small_maps.blind_ops(names, maps[-1])
    if not blind:
        return
    first = 1 + maps.index(maps[-1])
    which = f"cell {first}" if first == len(maps) else f"cells {first} to {len(maps)}"
    kept = ",".join(name for name in names if name not in blind)
    run.log.warn(
        f"{', '.join(blind)}: on the maps of {which}, of "
        f"{maps[-1][0]}x{maps[-1][1]} pixels, all taps but the middle one fall on padding, so "
        f"these are 1x1 convolutions there; --primitives {kept} leaves them out"
    )


def warn_of_short_travel(run, strategies):
    """A search in which alpha cannot get far enough to decide an edge, whatever the data say."""
    travel = strategies.alpha_steps * strategies.alpha_lr
    if travel < alphas.LEAST_TRAVEL:
        lower = "" if run.cfg.alpha_lr == "auto" else "--alpha_lr auto, "
        enough = alphas.fewest_steps(strategies.alpha_lr)
        run.log.warn(
            f"alpha can move by {travel:.2g} at most ({plural(strategies.alpha_steps, 'step')} of "
            f"{strategies.alpha_lr:g}; in the paper by {TRAVEL:.2f}), which decides no edge; "
            f"{enough:,} steps at that rate could; take {lower}more --epochs, a smaller "
            f"--batch_size or more images"
        )


# --- an epoch -----------------------------------------------------------------------------------


def record_genotypes(run, spec):
    """genotype-last.json of the last epoch and genotype.json of what is recommended. Behind the
    checkpoint, so that they are never ahead of it."""
    for name, found in ((files.GENOTYPE_LAST, run.last), (files.GENOTYPE, run.recommended)):
        write_genotype(run, spec, name, found)


@common_log.by_main
def write_genotype(run, spec, name, found, **metadata):
    """`found` {"genotype", "epoch", "top1"} as JSON in the run folder."""
    cfg = run.cfg
    text = gt.to_json(
        gt.from_str(found["genotype"]),
        epoch=found["epoch"],
        top1=found["top1"],
        **metadata,
        dataset=spec.name,
        size=list(spec.size),
        primitives=cfg.primitives,
        n_nodes=cfg.n_nodes,
        k=cfg.k,
        flags=flags_to_inherit(cfg),
    )
    files.write_text(run.files.file(name), text + "\n")


def record_selection(run, spec, net, genotype, removals, how_sure, left):
    """Recommend the cell that --select perturbation has chosen in the last epoch's supernet, in
    genotype.json, and say how many edges differ from alpha's, in genotype-last.json. The
    others tell what it has measured (`perturbation.after_search`)."""
    different, edges = gt.n_different(genotype, net.genotype(run.cfg.max_skips))
    run.chosen = {**run.last, "genotype": gt.to_str(genotype)}
    write_genotype(run, spec, files.GENOTYPE, run.chosen, select="perturbation")
    run.selection = (
        f"chosen by perturbation in the supernet of epoch {run.last['epoch']}; {different} of "
        f"{edges} edges differ from those that alpha keeps there ({files.GENOTYPE_LAST})"
    )
    words = f"{run.selection}; {left}"
    run.files.update_summary(selection=words, removals=removals, how_sure=how_sure)
    if how_sure is not None:
        say_how_sure(run, how_sure)


def flags_to_inherit(cfg):
    """What a training inherits from this search."""
    flags = cfg.flags()
    return {**cfg.marked(flags, inherit="images"), **cfg.marked(flags, inherit="network")}


def record_alphas(run, net, genotype, curvature):
    """What alpha says after an epoch, into alphas.jsonl and TensorBoard; returns the record.
    `curvature` goes with it: {} or {"eigenvalue": float}."""
    epoch, board = run.last["epoch"], run.board
    step = epoch * run.n_steps
    record = {"epoch": epoch, "primitives": net.primitives, "entropy": {}, "counts": {}}
    record |= curvature
    if curvature:
        board.scalars("mix/hessian", curvature, step)
    for cell, tables in (("normal", net.alpha_normal), ("reduce", net.alpha_reduce)):
        mix = [[gt.softmax(row) for row in rows] for rows in gt.as_lists(tables)]
        record[cell] = mix
        record["entropy"][cell] = gt.mean_entropy(tables)
        record["counts"][cell] = gt.count_ops(getattr(genotype, cell))
        board.histogram(f"alpha_{cell}", [w for rows in mix for row in rows for w in row], step)
        weights = {
            f"{j}-{node}/{op}": weight
            for node, rows in enumerate(mix, start=2)
            for j, row in enumerate(rows)
            for op, weight in zip(net.primitives, row, strict=True)
        }
        board.scalars(f"mix/{cell}", weights, step)
    board.scalars("mix/entropy", record["entropy"], step)
    if edge_weights := net.edge_weights():
        record["edge_weights"] = {cell: gt.as_lists(found) for cell, found in edge_weights.items()}
        for cell, tables in record["edge_weights"].items():
            weights = {f"{j}-{node}": weight for node, row in enumerate(tables, start=2)
                       for j, weight in enumerate(row)}  # fmt: skip
            board.scalars(f"mix/edges_{cell}", weights, step)
    if run.cfg.auxiliary_skip:
        record["skip_factor"] = net.skip_factor.item()
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
    if "eigenvalue" in record:
        log.detail(f"    dominant eigenvalue of the Hessian in alpha {record['eigenvalue']:.4g}")
    if "skip_factor" in record:
        log.detail(f"    auxiliary skip: factor {record['skip_factor']:.2f}")
    ahead = alphas.strong_skips(record)
    if 2 * ahead >= edges:  # of an undecided alpha it would say nothing
        log.warn(
            f"{ahead} of {edges} edges of the normal cell are skip connections, and clearly so; "
            f"such cells train poorly, and searching longer makes more of them (--max_skips "
            f"{alphas.fewer_skips(ahead)}, fewer --epochs)",
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


@common_log.by_main
def finish(run, data, pictures):
    """Record the size of the final network, make the last pictures, log the result."""
    best = gt.from_str(run.recommended["genotype"])
    run.files.update_summary(stopped=run.stopped)
    final = final_flags(run)
    net, size = final_network(run, data.spec, best, final)
    if size is not None:
        run.files.update_summary(network=size)
    run.board.hparams(run.cfg.flags(), best_top1=run.best["top1"], last_top1=run.last["top1"])
    log_genotypes(run, best)
    log_size(run, size)
    if size is not None:
        log_time_to_train(run, data, net, final)
    better = log_verdict(run, data)
    if not run.selection:
        log_how_sure(run, better)
    run.record_state("finished")
    pictures.at_end(drawing=lambda: report.draw_epochs(run.files.path, only_missing=True))
    text = (
        f"{run.recommended['top1']:.2%} is the accuracy of the supernet, not of the found cell: "
        f"the cell must be trained from scratch. "
    )
    if is_compared(run.cfg):
        again = errors.command(run.cfg.PROG, "--name", run.files.name, "--resume")
        run.log.result(
            f"{text}Before that it is compared with {plural(run.cfg.compare, 'random cell')}; if "
            f"that breaks off, go on with\n{again}"
        )
    else:
        common_log.say_more(run, next_steps(run))
        run.log.result(f"{text}Train it with\n{augment_command(run)}")


def is_compared(cfg):
    """Whether a comparison follows: not under torchrun, behind which nobody would begin one."""
    return bool(cfg.compare) and (not processes.under_torchrun() or launch.takes_over())


def log_genotypes(run, best):
    """The last genotype and the best, in words, and how clearly each edge was decided."""
    last_epoch, best_epoch = run.last["epoch"], run.recommended["epoch"]
    best_name = "best" if run.chosen is None else "chosen"
    if run.stopped:
        run.log.result(f"ended after epoch {last_epoch} of {run.cfg.epochs}: {run.stopped}")
    if run.selection:
        run.log.info(f"genotype of alpha (epoch {last_epoch}): {run.last['genotype']}")
        run.log.result(f"genotype {run.selection} (recommended): {best}")
    elif last_epoch != best_epoch:
        run.log.info(
            f"last genotype (epoch {last_epoch}, supernet top1 {run.last['top1']:.2%} on the alpha "
            f"half): {run.last['genotype']}"
        )
    if not run.selection:
        run.log.result(
            f"{'last and ' * (last_epoch == best_epoch)}{best_name} genotype (epoch "
            f"{common_log.which(run, run.recommended)}, supernet top1 "
            f"{run.recommended['top1']:.2%} on the alpha half; recommended): {best}"
        )
    run.log.info(f"the {best_name} genotype in words:\n" + gt.describe(best))
    try:
        history = {record["epoch"]: record for record in reader.read_alphas(run.files.path)}
    except ValueError:  # the file was damaged or deleted; the result does not depend on it
        history = {}
    if best_epoch in history:  # for the log: the page has the table, too
        run.log.detail(
            f"{'edges by alpha' if run.selection else 'its edges'}, strongest op besides none and "
            f"runner-up (* {'alpha keeps it, not removal' if run.selection else 'is kept'}):\n"
            + plot_alphas.table(history[best_epoch])
        )


def log_verdict(run, data):
    """What the supernet's accuracy is worth, for terminal, page and summary.json; returns whether
    it is better than guessing."""
    classes, top1 = data.spec.classes, run.recommended["top1"]
    judged = verdict.judge(top1, common_log.scored_counts(data.val, len(classes)), classes)
    run.files.update_summary(
        verdict={**judged, "part": data.val_name, "epoch": run.recommended["epoch"]},
        more=next_steps(run),
    )
    run.log.result(f"verdict on the supernet: {visible(judged['text'])}")
    if not judged["better"]:
        run.log.warn(
            "the supernet is no better than guessing, so the recommended cell is a matter of "
            "chance; take more --epochs, a smaller --batch_size or more images, then another "
            "--w_lr"
        )
    return judged["better"]


def next_steps(run):
    """What else can be done with the cell, as [{"what": in words, "command": to paste}]."""
    words = ["compare.py", run.files.path, "--random", str(run.cfg.compare or 4)]
    words += ["--quick"] if run.cfg.quick else []
    words += run.cfg.words([flag for flag in ("device", "gpus") if flag in run.cfg.said])
    return [{"what": "see whether random cells are as good", "command": errors.command(*words)}]


def log_how_sure(run, better):
    """How much of the recommended cell is more than chance, for terminal, page and summary.json.
    `better`: whether the supernet is better than guessing."""
    cells = gt.searched_cells(run.cfg.layers)
    try:
        history = reader.read_alphas(run.files.path)
        found = alphas.how_sure(history, run.recommended["epoch"], cells)
    except (ValueError, IndexError):  # the records were damaged or deleted
        return
    if not better and found["decided"]:
        found["text"] += "; the supernet is no better than guessing, so this means nothing"
        found["advice"] = found["advice"] or alphas.SEARCH_LONGER
    run.files.update_summary(how_sure=found)
    say_how_sure(run, found)


def say_how_sure(run, found):
    run.log.result(": ".join(filter(None, (found["text"], found["advice"]))))


def final_flags(run):
    """The flags that the last line trains with."""
    final = AugmentConfig(augment_words(run))
    final.inherit(flags_to_inherit(run.cfg))
    return final


def log_time_to_train(run, data, net, final):
    """How long the last line will take, by steps of its network, which change it; nothing where
    that fails."""
    # the training takes all images
    n_images = round((len(data.train.dataset) + len(data.alpha.dataset)) / run.cfg.subset)
    criterion = utils.criterion(final, data.class_counts, run.device)
    about = "about " if run.cfg.subset < 1 else ""
    what = net, data.spec, final, n_images, criterion, run.device, about
    estimate.say_of_training(run, lambda: estimate.of_training(*what))


def final_network(run, spec, genotype, final):
    """The network that the last line trains, with the flags `final`, and its `utils.network_size`;
    None of both where it cannot be counted."""
    try:
        net = augment_cnn.build(spec, final, genotype)
        return net, utils.network_size(net, spec, final)
    except Exception as error:  # a block of one's own may not be countable
        run.log.warn(f"the final network was not counted: {errors.one_line(error)}")
        return None, None


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
