"""Train a found cell from scratch (sec. 3.2 of arXiv 1806.09055), or use a trained one.

    python augment.py --genotype searchs/NAME --quick     minutes on a laptop
    python augment.py --genotype DARTS_V2 --dataset cifar10    the paper's setting
    python augment.py --evaluate augments/NAME            also --predict and --export

Everything is recorded in augments/NAME.
"""

import functools
import os

import torch
import torch.nn.functional as F
from torch import nn

import check_ops
import deploy
import export
import genotypes as gt
import plot_train_val
import utils
import visualize
from config import AugmentConfig, data_flags, shape_flags
from console import errors
from data_sets import loader_speed, loaders, named
from devices import layout, pick
from devices.cuda_graph import Graphed
from models import augment_cnn, stems
from models.ops import OPS
from tracking import run_folder
from tracking.picture_schedule import Pictures


def main(argv=None):
    # config
    cfg = AugmentConfig(argv)
    if cfg.evaluate:
        return deploy.evaluate(cfg, argv)
    if cfg.predict:
        return deploy.predict(cfg)
    if cfg.export:
        return export.export(cfg)
    with errors.usage_errors("augment.py"):
        if cfg.resume:
            saved = run_folder.read_flags(os.path.join("augments", cfg.name))
            cfg = AugmentConfig(argv, saved)
        cfg, taken = (cfg, "") if cfg.resume else take_over(cfg, argv)
        device = pick.pick_device(cfg.device, cfg.gpus)
        pick.prepare_device(device, cfg.threads, cfg.tf32)
        run = run_folder.RunFolder(cfg, pick.device_name(device), stem=subject(cfg))
        # a resumed run keeps its cell, whatever has become of the file it came from
        source = run.state["genotype"] if cfg.resume else cfg.genotype
        genotype = gt.require_known(gt.load(source), OPS)
        check_ops.quick(gt.ops_of(genotype), cfg.init_channels, affines=(True,))
        utils.seed_everything(cfg.seed)
        copied = ""

        # data
        data = loaders.augment_data(
            cfg.dataset, cfg.data_path, cfg.batch_size, cfg.workers,
            pin_memory=device.type == "cuda", cutout_length=cfg.cutout_length, seed=cfg.seed,
            options=named.Options.of(cfg, run.state and run.state.get("data")),
            lower="batch_size" not in cfg.given(),
        )  # fmt: skip
        cfg.batch_size = data.batch_size
        data = data._replace(train=loader_speed.Timed(data.train))
        criterion = utils.criterion(
            cfg.label_smoothing, cfg.class_weights, data.class_counts, device
        )

        # model
        net = augment_cnn.build(data.spec, cfg, genotype)
        if cfg.init_from and not cfg.resume:
            copied = deploy.init_from(net, deploy.checkpoint_path(cfg.init_from))
        facts = utils.network_facts(net, data.spec, cfg)
        size = sizes(net, facts)
        net.to(device)
        kind = layout.pick_layout(
            cfg.layout, net, cfg.batch_size, data.spec.C_in, data.spec.size, cfg.amp
        )
        net.to(memory_format=layout.LAYOUTS[kind])
        if cfg.compile:
            layout.compile_cells(net.cells)

        # optimizer (App. A.2)
        optim = torch.optim.SGD(
            net.parameters(), cfg.lr, momentum=cfg.momentum, weight_decay=cfg.weight_decay,
            fused=device.type == "cuda",
        )  # fmt: skip
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optim, cfg.epochs)

        parts = {"model": net, "optim": optim, "scheduler": scheduler}
        best, last, first_epoch = {"epoch": 0, "top1": -1.0}, None, 1
        if cfg.resume:
            run.restore(parts)
            best, first_epoch = run.state["best"], run.state["epoch"] + 1
            last = {"epoch": run.state["epoch"], "top1": run.state["top1"]}

    with errors.run_errors("augment.py", run), run:
        n_steps = len(data.train)
        run.open_tensorboard((first_epoch - 1) * n_steps)
        announce(run, cfg, size, genotype, data, kind)
        for line in filter(None, (taken, copied)):
            run.info(line)
        run.note(
            next=errors.command("augment.py", "--evaluate", run.path),
            held_name=data.held_name,
            network=facts,
        )
        pictures = Pictures(run, {"curves": plot_train_val.plot_run})
        run.bar(first_epoch, n_steps)

        # epochs
        for epoch in range(first_epoch, cfg.epochs + 1):
            lr = optim.param_groups[0]["lr"]
            # grows linearly, from 0 in the first epoch
            net.drop_path_prob(cfg.drop_path_prob * (epoch - 1) / cfg.epochs)
            trained = train(data.train, net, optim, epoch, cfg, run, device, criterion)
            scheduler.step()
            speed = loader_speed.speed([data.train], trained)
            run.metrics("train", epoch, epoch * n_steps, **trained, **speed, lr=lr)
            held = validate(data.held, net, device, cfg.amp)
            run.metrics("val", epoch, epoch * n_steps, **held, lr=lr)

            last = {"epoch": epoch, "top1": held["top1"]}
            is_best = held["top1"] > best["top1"]
            best = last if is_best else best
            run.save(
                parts, epoch, is_best, best=best, top1=held["top1"],
                genotype=gt.to_str(genotype), flags=cfg.flags(), data=data.spec.to_dict(),
            )  # fmt: skip
            if epoch == first_epoch:
                run.info(loader_speed.in_words(speed, cfg.workers))
            run.row(epoch, trained, held, best, data.held_name)
            pictures.after_epoch(trained["seconds"] + held["seconds"])
        tested = None if data.test is None else validate(data.test, net, device, cfg.amp)
        report(run, cfg, size, genotype, data, last, best, tested, pictures)
    return run.path


def train(loader, net, optim, epoch, cfg, run, device, criterion=F.cross_entropy):
    """One pass over the training set. The loss that is reported is that of the main classifier."""
    meter = utils.Meter(device)
    n_steps = len(loader)
    net.train()

    def move(X, y):  # waits for nothing, so that a CUDA graph can hold it
        optim.zero_grad()
        with pick.autocast(device, cfg.amp):
            logits, aux_logits = net(X)  # (N, n_classes) each
            main_loss = loss = criterion(logits, y)
            if aux_logits is not None:
                loss = loss + cfg.aux_weight * criterion(aux_logits, y)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), cfg.grad_clip)
        optim.step()
        return main_loss.detach(), logits.detach()

    if cfg.cuda_graphs:
        move = Graphed(move, functools.partial(run.warn, kind="CUDA graph"))

    for step, batch in enumerate(loader, start=1):
        X, y = utils.to_device(batch, device)  # (N, C_in, H, W), (N,)
        loss, logits = move(X, y)

        meter.add(loss, logits, y)
        global_step = (epoch - 1) * n_steps + step
        if run.due(global_step):  # the only wait for the device
            run.step(epoch, step, n_steps, global_step, meter.means())
        run.advance()
    return meter.result()


def validate(loader, net, device, amp="off"):
    """Loss and accuracy on `loader`, in evaluation mode."""
    net.eval()
    return utils.evaluate(lambda X: net(X)[0], loader, F.cross_entropy, device, amp)


def take_over(cfg, argv):
    """What the run behind --genotype or --init_from knows and the command line does not say: the
    images it saw, and of a trained run its network. Returns (cfg, what was taken in words)."""
    taken, shape = searched_on(cfg.genotype) if cfg.genotype else {}, {}
    source = cfg.init_from or cfg.genotype
    if cfg.init_from:
        state = deploy.read(deploy.checkpoint_path(source))
        shape = {**shape_flags(state["flags"]), "genotype": state["genotype"]}
        taken = {**data_flags(state["flags"]), **shape}
    default = cfg.flags()
    cfg = AugmentConfig(argv, taken=taken)
    if other_images(default, cfg.flags(), taken):  # nothing of those holds
        taken = {k: v for k, v in taken.items() if k in shape or k not in data_flags(taken)}
        cfg = AugmentConfig(argv, taken=taken)
    used = {k: v for k, v in taken.items() if k == "dataset" or v != default[k]}
    said = ", ".join(f"{k} {v}" for k, v in used.items() if k != "genotype" and cfg.flags()[k] == v)
    return cfg, said and f"from {source}: {said}"


def other_images(default, flags, taken):
    """Whether the command line names another data set than the flags that were taken over."""
    if flags["dataset"] != taken.get("dataset", flags["dataset"]):
        return True
    if default["dataset"] != "folder":  # not said; a --data_path alone says where images are now
        return False
    paths = [os.path.abspath(f["data_path"]) for f in (default, taken) if "data_path" in f]
    return len(set(paths)) > 1


def searched_on(source):
    """The flags of a search that its training takes over; {} where `source` tells of none."""
    flags = gt.metadata(source).get("flags")
    if not isinstance(flags, dict) and os.path.exists(source):  # from before genotype.json had them
        folder = source if os.path.isdir(source) else os.path.dirname(source)
        try:
            flags = run_folder.read_flags(folder)
        except ValueError:  # a genotype that was copied elsewhere
            flags = None
    flags = flags if isinstance(flags, dict) else {}
    stem = {k: v for k, v in flags.items() if k == "stem_multiplier"}
    return {**data_flags(flags), **stem}


def subject(cfg):
    """What a run without --name is called after: its search, published cell, or data set."""
    if os.path.isdir(cfg.genotype):
        name = os.path.basename(os.path.abspath(cfg.genotype))
        flags = searched_on(cfg.genotype)
        if other_images(cfg.flags(), cfg.flags(), flags):
            name += f"-on-{loaders.subject(cfg.dataset, cfg.data_path)}"
        return name
    if cfg.genotype in gt.PUBLISHED:
        return cfg.genotype
    return loaders.subject(cfg.dataset, cfg.data_path)


# --- what the run says --------------------------------------------------------------------------


def sizes(net, facts):
    """`utils.network_facts` in words, with and without the auxiliary head."""
    H, W = facts["size"]
    return (
        f"{facts['params'] / 1e6:.3f} M params ({facts['params']:,}; with the auxiliary head "
        f"{utils.count_params(net):,}), {facts['madds'] / 1e6:.1f} M multiply-adds for an image of "
        f"{H}x{W}"
    )


def announce(run, cfg, size, genotype, data, layout):
    """The first lines: what is trained, on what."""
    run.opening(layout, data)
    run.info(
        f"{data.spec.name}: {len(data.train.dataset)} training images, "
        f"{len(data.held.dataset)} {data.held_name} images, {loaders.in_words(data.spec)}, "
        f"batch {cfg.batch_size}, lr {cfg.lr}, cutout {data.cutout_length}; "
        f"classes {', '.join(data.spec.classes)}"
    )
    if cfg.class_weights != "none" or max(data.class_counts) > 3 * min(data.class_counts):
        run.info(loaders.balance_in_words(data, cfg.class_weights))
    run.info(f"genotype: {genotype}")
    stem = stems.pick(cfg.stem, data.spec.size)
    run.info(f"network: {stem} stem, {cfg.layers} cells, {cfg.init_channels} channels, {size}")
    run.write("genotype.json", gt.to_json(genotype, dataset=data.spec.name,
                                          size=list(data.spec.size)))  # fmt: skip
    if cfg.batch_size != 96 and cfg.lr == 0.025 and not cfg.quick:
        run.warn(
            f"batch {cfg.batch_size} with the learning rate of batch 96; the linear rule suggests "
            f"--lr {0.025 * cfg.batch_size / 96:g}"
        )


def report(run, cfg, size, genotype, data, last, best, tested, pictures):
    """The last lines: both accuracies and everything one needs to quote them."""
    run.close_bar()
    run.hparams(best_top1=best["top1"], last_top1=last["top1"])
    drawing = functools.partial(
        visualize.plot, genotype, run.file("plots/normal"), run.file("plots/reduce"), data.spec.name
    )
    pictures.at_end(drawing=drawing)
    final, quote = "", "the last"
    if tested is not None:  # images that no epoch was picked by
        final, quote = f"test accuracy of the last epoch: {tested['top1']:.2%}\n", "the test's"
    versions = ", ".join(f"{name} {version}" for name, version in run_folder.versions().items())
    run.result(
        f"{data.held_name} accuracy of the last epoch ({last['epoch']}): {last['top1']:.2%}\n"
        f"{data.held_name} accuracy of the best epoch ({best['epoch']}): {best['top1']:.2%} "
        f"(picked on the {data.held_name} split, so it flatters; quote {quote})\n"
        f"{final}{size}\n"
        f"seed {cfg.seed}; {versions}\n"
        f"evaluate it again with\n{errors.command('augment.py', '--evaluate', run.path)}"
    )


if __name__ == "__main__":
    main()
