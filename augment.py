"""Train a found cell from scratch (sec. 3.2 of arXiv 1806.09055), or evaluate a trained one.

    python augment.py --genotype searchs/NAME --quick     minutes on a laptop
    python augment.py --genotype DARTS_V2 --dataset cifar10    the paper's setting
    python augment.py --evaluate augments/NAME

Everything is recorded in augments/NAME.
"""

import functools
import os

import torch
import torch.nn.functional as F
from torch import nn

import genotypes as gt
import plot_train_val
import preproc
import run_folder
import utils
import visualize
from config import AugmentConfig
from models.augment_cnn import AugmentCNN
from models.ops import OPS
from pictures import Pictures


def main(argv=None):
    # config
    cfg = AugmentConfig(argv)
    if cfg.evaluate:
        return evaluate(cfg, argv)
    with utils.usage_errors("augment.py"):
        if cfg.resume:
            saved = run_folder.read_flags(os.path.join("augments", cfg.name))
            cfg = AugmentConfig(argv, saved)
        device = utils.pick_device(cfg.device, cfg.gpus)
        utils.prepare_device(device, cfg.threads, cfg.tf32)
        run = run_folder.RunFolder(cfg, utils.device_name(device), stem=subject(cfg))
        # a resumed run keeps its cell, whatever has become of the file it came from
        source = run.state["genotype"] if cfg.resume else cfg.genotype
        genotype = gt.load(source, OPS)
        utils.seed_everything(cfg.seed)

        # data
        cutout_length = cfg.cutout_length
        if cutout_length is None:
            cutout_length = min(preproc.spec(cfg.dataset).size) // 2
        data = preproc.augment_data(
            cfg.dataset, cfg.data_path, cfg.batch_size, cfg.workers,
            pin_memory=device.type == "cuda", cutout_length=cutout_length,
        )  # fmt: skip

        # model
        net = build(data.spec, cfg.init_channels, cfg.layers, cfg.aux_weight > 0, genotype)
        net.to(device, memory_format=utils.memory_format(device))
        if cfg.compile:
            for cell in net.cells:
                cell.compile()

        # optimizer (App. A.2)
        optim = torch.optim.SGD(
            net.parameters(), cfg.lr, momentum=cfg.momentum, weight_decay=cfg.weight_decay
        )
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optim, cfg.epochs)

        parts = {"model": net, "optim": optim, "scheduler": scheduler}
        best, last, first_epoch = {"epoch": 0, "top1": -1.0}, None, 1
        if cfg.resume:
            run.restore(parts)
            best, first_epoch = run.state["best"], run.state["epoch"] + 1
            last = {"epoch": run.state["epoch"], "top1": run.state["top1"]}

    with utils.run_errors("augment.py", run), run:
        n_steps = len(data.train)
        run.open_tensorboard((first_epoch - 1) * n_steps)
        announce(run, cfg, net, genotype, data, device, cutout_length)
        pictures = Pictures(run, {"curves": plot_train_val.plot_run})
        run.bar(first_epoch, n_steps)

        # epochs
        for epoch in range(first_epoch, cfg.epochs + 1):
            lr = optim.param_groups[0]["lr"]
            # grows linearly, from 0 in the first epoch
            net.drop_path_prob(cfg.drop_path_prob * (epoch - 1) / cfg.epochs)
            trained = train(data.train, net, optim, epoch, cfg, run, device)
            scheduler.step()
            run.metrics("train", epoch, epoch * n_steps, **trained, lr=lr)
            held = validate(data.held, net, device, cfg.amp)
            run.metrics("val", epoch, epoch * n_steps, **held, lr=lr)

            last = {"epoch": epoch, "top1": held["top1"]}
            is_best = held["top1"] > best["top1"]
            best = last if is_best else best
            run.save(
                parts, epoch, is_best, best=best, top1=held["top1"],
                genotype=gt.to_str(genotype), flags=cfg.flags(), data=data.spec.to_dict(),
            )  # fmt: skip
            run.row(epoch, trained, held, best, "test")
            pictures.after_epoch(trained["seconds"] + held["seconds"])
        report(run, cfg, net, genotype, data.spec, last, best, pictures)
    return run.path


def train(loader, net, optim, epoch, cfg, run, device):
    """One pass over the training set. The loss that is reported is that of the main classifier."""
    meter = utils.Meter(device)
    n_steps = len(loader)
    net.train()
    for step, batch in enumerate(loader, start=1):
        X, y = utils.to_device(batch, device)  # (N, C_in, H, W), (N,)
        optim.zero_grad()
        with utils.autocast(device, cfg.amp):
            logits, aux_logits = net(X)  # (N, n_classes) each
            main_loss = loss = F.cross_entropy(logits, y)
            if aux_logits is not None:
                loss = loss + cfg.aux_weight * F.cross_entropy(aux_logits, y)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), cfg.grad_clip)
        optim.step()

        meter.add(main_loss, logits, y)
        global_step = (epoch - 1) * n_steps + step
        if run.due(global_step):  # the only wait for the device
            run.step(epoch, step, n_steps, global_step, meter.means())
        run.advance()
    return meter.result()


def validate(loader, net, device, amp="off"):
    """Loss and accuracy on `loader`, in evaluation mode."""
    net.eval()
    return utils.evaluate(lambda X: net(X)[0], loader, F.cross_entropy, device, amp)


def evaluate(cfg, argv):
    """--evaluate: the network of a saved file, rebuilt from the file alone, on the test split. Of a
    run folder both files, the last epoch and the best."""
    paths = [cfg.evaluate]
    if os.path.isdir(cfg.evaluate):
        paths = [os.path.join(cfg.evaluate, f) for f in (run_folder.CHECKPOINT, run_folder.BEST)]
    return [evaluate_file(path, cfg, argv) for path in paths]


def evaluate_file(path, cfg, argv):
    """Score one checkpoint and print what came out beside what training logged."""
    with utils.usage_errors("augment.py"):
        state = utils.load_checkpoint(path)
        if "optim" not in state:
            raise ValueError(f"{path} is a supernet; train its genotype first")
        batch_size = cfg.batch_size  # any will do; the accuracy does not depend on it
        cfg = AugmentConfig(argv, {k: v for k, v in state["flags"].items() if k != "batch_size"})
        device = utils.pick_device(cfg.device, cfg.gpus)
        utils.prepare_device(device, cfg.threads, cfg.tf32)
        spec, loader = preproc.held_data(
            cfg.dataset, cfg.data_path, batch_size, cfg.workers, device.type == "cuda"
        )
        genotype = gt.from_str(state["genotype"], OPS)
        net = build(spec, cfg.init_channels, cfg.layers, cfg.aux_weight > 0, genotype)
        utils.load_state(net, state["model"], path)
        net.to(device, memory_format=utils.memory_format(device))
    with utils.run_errors("augment.py"):
        held = validate(loader, net, device, cfg.amp)
    print(
        f"{path}, epoch {state['epoch']}, {cfg.dataset} test split: top1 {held['top1']:.2%} "
        f"top5 {held['top5']:.2%} loss {held['loss']:.4f} "
        f"(training logged top1 {state['top1']:.2%})"
    )
    return held


def build(spec, C, n_layers, auxiliary, genotype):
    """The final network for a data set."""
    return AugmentCNN(spec.size, spec.C_in, C, len(spec.classes), n_layers, auxiliary, genotype)


def subject(cfg):
    """What a run without --name is called after: its search, published cell, or data set."""
    if os.path.isdir(cfg.genotype):
        return os.path.basename(os.path.abspath(cfg.genotype))
    return cfg.genotype if cfg.genotype in gt.PUBLISHED else cfg.dataset


# --- what the run says --------------------------------------------------------------------------


def sizes(net, spec, madds):
    """Parameters with and without the auxiliary head, and multiply-adds, in words."""
    H, W = spec.size
    return (
        f"{utils.param_size(net):.3f} M params ({utils.count_params(net, auxiliary=False):,}; with "
        f"the auxiliary head {utils.count_params(net):,}), {madds / 1e6:.1f} M multiply-adds for "
        f"an image of {H}x{W}"
    )


def announce(run, cfg, net, genotype, data, device, cutout_length):
    """The first lines: what is trained, on what."""
    run.info(f"{run.path} on {utils.device_name(device)}, seed {cfg.seed}")
    run.info(
        f"{data.spec.name}: {len(data.train.dataset)} training images, "
        f"{len(data.held.dataset)} test images, batch {cfg.batch_size}, lr {cfg.lr}, "
        f"cutout {cutout_length}; classes {', '.join(data.spec.classes)}"
    )
    run.info(f"genotype: {genotype}")
    madds = utils.multiply_adds(net, data.spec.C_in, data.spec.size)
    run.info(
        f"network: {cfg.layers} cells, {cfg.init_channels} channels, {sizes(net, data.spec, madds)}"
    )
    run.write("genotype.json", gt.to_json(genotype, dataset=data.spec.name,
                                          size=list(data.spec.size)))  # fmt: skip
    run.note(
        next=utils.command("augment.py", "--evaluate", run.path),
        network={"params": utils.count_params(net, auxiliary=False), "madds": madds,
                 "size": list(data.spec.size), "layers": cfg.layers, "channels": cfg.init_channels},
    )  # fmt: skip
    if cfg.batch_size != 96 and cfg.lr == 0.025 and not cfg.quick:
        run.warn(
            f"batch {cfg.batch_size} with the learning rate of batch 96; the linear rule suggests "
            f"--lr {0.025 * cfg.batch_size / 96:g}"
        )


def report(run, cfg, net, genotype, spec, last, best, pictures):
    """The last lines: both accuracies and everything one needs to quote them."""
    run.close_bar()
    run.hparams(best_top1=best["top1"], last_top1=last["top1"])
    drawing = functools.partial(
        visualize.plot, genotype, run.file("normal"), run.file("reduce"), spec.name
    )
    pictures.at_end(drawing=drawing)
    madds = utils.multiply_adds(net, spec.C_in, spec.size)
    versions = ", ".join(f"{name} {version}" for name, version in run_folder.versions().items())
    run.result(
        f"test accuracy of the last epoch ({last['epoch']}): {last['top1']:.2%}\n"
        f"test accuracy of the best epoch ({best['epoch']}): {best['top1']:.2%} (picked on the "
        f"test split, so it flatters; quote the last)\n"
        f"{sizes(net, spec, madds)}\n"
        f"seed {cfg.seed}; {versions}\n"
        f"evaluate it again with\n{utils.command('augment.py', '--evaluate', run.path)}"
    )


if __name__ == "__main__":
    main()
