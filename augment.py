"""Train a found cell from scratch (sec. 3.2 of arXiv 1806.09055).

    python augment.py --genotype searchs/NAME --quick     minutes on a laptop
    python augment.py --genotype DARTS_V2 --dataset cifar10    the paper's setting

Everything is recorded in augments/NAME. evaluate.py, predict.py and export.py use the result.
"""

from console import interrupts

if __name__ == "__main__":
    interrupts.end_in_one_line()  # from here on, also while torch is imported
    from config import AugmentConfig

    AugmentConfig.answer_at_once()  # before torch is imported

import functools

import torch
from torch import nn

import check_ops
import genotypes as gt
import utils
from config import AugmentConfig
from console import errors
from console.terminal import command
from data_sets import loader_speed, loaders
from devices import launch, layout, pick, processes
from devices.cuda_graph import Graphed
from devices.step_guard import StepGuard
from models import augment_cnn, memory, own_ops, sync_norm
from models.ops import OPS
from tracking import augment_log, inherit, resume, run_folder, trained_network
from tracking.budget import Budget
from tracking.picture_schedule import Pictures
from tracking.run import Run


@command
def main(argv=None):
    cfg = AugmentConfig(argv)
    if (n := launch.wanted(cfg)) > 1:
        return launch.start(cfg.PROG, argv, n)
    budget = Budget(cfg)
    with (
        errors.usage_errors(cfg.PROG, budget.advice),
        run_folder.set_up(cfg, group=processes.join(cfg)) as folder,
    ):
        state = resume.to_resume(cfg, folder, processes.here())
        inherited = "" if state else inherit.inherit_flags(cfg)
        own_ops.use(cfg)
        device = pick.prepare_device(cfg)
        name = inherit.default_run_name(cfg)
        run = Run(cfg, device, name, folder, state, budget.advice)
        # a resumed run keeps its cell, whatever has become of the file it came from
        genotype = gt.from_str(state["genotype"]) if state else inherit.genotype_of(cfg)
        gt.require_known(genotype, OPS)
        cells = functools.partial(memory.genotype_cells, genotype)
        budget.check(device, cells)
        if cfg.deterministic:
            check_ops.require_deterministic(
                gt.ops_of(genotype), cfg.init_channels, device.torch_device, affine=True
            )
        check_ops.quick(gt.ops_of(genotype), cfg.init_channels, affines=(True,))
        utils.seed_everything(cfg.seed)

        # data: all of the training set
        data = run.load_data(loaders.augment_data)
        budget.check(device, cells, data)
        criterion = utils.criterion(cfg, data.class_counts, device)

        # model
        net = augment_cnn.build(data.spec, cfg, genotype)
        copied = ""
        if cfg.init_from and not state:
            copied = trained_network.init_from(net, cfg.init_from)
        size = utils.network_size(net, data.spec, cfg)
        utils.settle_norms(net, run.n_steps * cfg.epochs)
        kept_as = layout.place(net, device, data, cfg)
        if cfg.sync_bn:
            sync_norm.synchronise(net, device.group)

        # optimizer (App. A.2)
        optim = torch.optim.SGD(
            net.parameters(),
            cfg.lr * cfg.lr_factor,
            cfg.momentum,
            weight_decay=cfg.weight_decay,
            fused=device.is_cuda,
        )
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optim, cfg.epochs)
        run.track(model=net, optim=optim, scheduler=scheduler, train_loader=data.train)
        run.last["genotype"] = gt.to_str(genotype)  # in a checkpoint inside the first epoch, too

    with errors.run_errors(cfg.PROG, run), run:
        augment_log.log_setup(run, data, genotype, size, kept_as, (inherited, copied))
        augment_log.record_setup(run, data, genotype, size)
        pictures = Pictures(run, augment_log.PICTURES)

        for epoch in run.epochs():
            lr = optim.param_groups[0]["lr"]
            # grows linearly, from 0 in the first epoch
            net.drop_path_prob(cfg.drop_path_prob * (epoch - 1) / cfg.epochs)
            trained = train(data.train, net, optim, criterion, epoch, run)
            trained |= loader_speed.speed([data.train], trained)
            val = validate(run.stoppable(data.val), net, device)
            scheduler.step()  # a run that stops while it validates is saved as of its last step

            is_best = run.record_epoch(epoch, lr, trained, val, gt.to_str(genotype))
            run.save(is_best)
            augment_log.log_epoch(run, trained, val, data.val_name)
            pictures.after_epoch(trained["seconds"] + val["seconds"])
        # once more, image by image: on D/test where there is one, which picked no epoch
        answers = utils.Answers()
        scored = data.val if data.test is None else data.test
        scores = validate(run.stoppable(scored), net, device, answers)
        augment_log.finish(run, data, size, (scores, answers), pictures)
    return run.files.path


def train(loader, net, optim, criterion, epoch, run):
    """One pass over the training set. Returns the means of `utils.Meter.result`; the loss is that
    of the main classifier."""
    cfg, device = run.cfg, run.device
    guard = StepGuard(device, net, cfg.on_nan)
    meter = run.meter(guard)  # sums stay on the device
    weights, parts = list(net.parameters()), utils.parts(cfg, device, criterion)
    net.train()

    def compute(X, y):
        with device.autocast():
            outputs = net(X)  # logits and auxiliary logits, (N, n_classes) each
            main_loss, loss = augment_cnn.training_loss(outputs, y, criterion, cfg.aux_weight)
        return loss, outputs[0], main_loss

    def train_step(X, y):  # never waits, so that a CUDA graph can hold it
        guard.begin()
        optim.zero_grad()
        loss, logits, main_loss = parts.backward(compute, X, y, weights)
        norm = nn.utils.clip_grad_norm_(weights, cfg.grad_clip)
        guard.update(optim, loss, w=norm)
        return main_loss, logits

    if device.graphs:
        train_step = Graphed(train_step, functools.partial(run.log.warn, kind="CUDA graph"))

    for step, batch in run.steps(loader):
        X, y = device.put(batch)  # (N, C_in, H, W), (N,)
        loss, logits = train_step(X, y)
        meter.add(loss, logits, y)
        run.step_done(epoch, step, meter)
    return run.trained(epoch, meter)


def validate(loader, net, device, answers=None):
    """Plain cross-entropy and accuracy on `loader`, in evaluation mode; see `utils.evaluate`."""
    net.eval()
    return utils.evaluate(lambda X: net(X)[0], loader, device, answers)


if __name__ == "__main__":
    main()
