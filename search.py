"""Search a cell: Algorithm 1 of DARTS (arXiv 1806.09055).

    python search.py --quick              some minutes on a laptop
    python search.py --dataset cifar10    the paper's setting

Everything is recorded in searchs/NAME. The last lines say how to train what was found; with --quick
it is compared with random cells before, in compares/NAME.
"""

from console import interrupts

if __name__ == "__main__":
    interrupts.end_in_one_line()  # from here on, also while torch is imported
    from config import SearchConfig

    SearchConfig.answer_at_once()  # before torch is imported

import functools
import itertools
import os
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils import get_total_norm

import check_ops
import compare
import genotypes as gt
import utils
from architect import Architect
from comparing import several
from config import SearchConfig
from console import errors, one_voice
from console.terminal import command
from data_sets import loader_speed, loaders
from devices import launch, layout, pick, processes
from devices.cuda_graph import Graphed
from devices.step_guard import StepGuard
from models import memory, own_ops, small_maps, stems, sync_norm
from models.ops import check_primitives
from models.search_cnn import SearchCNNController
from strategies import perturbation
from strategies.steering import Strategies
from tracking import resume, run_folder, search_log
from tracking.budget import Budget
from tracking.picture_schedule import Pictures
from tracking.run import Run


@command
def main(argv=None):
    cfg = SearchConfig(argv)
    if cfg.seeds > 1:
        return compare.main(several.search(cfg))
    if (n := launch.wanted(cfg)) > 1:
        words = launch.start(cfg.PROG, argv, n)
        return compare.main(words) if words else None
    path = search(cfg)
    if one_voice.rank() or not search_log.is_compared(cfg):
        return path
    words = several.compare_words(cfg, os.path.basename(path), [path])
    return launch.hand_over(words) if processes.under_torchrun() else compare.main(words)


def search(cfg):
    """One search with the flags `cfg`, a config.SearchConfig; returns its folder."""
    budget = Budget(cfg)
    with (
        errors.usage_errors(cfg.PROG, budget.advice),
        run_folder.set_up(cfg, group=processes.join(cfg)) as folder,
    ):
        processes.here().from_main(lambda: several.require_comparable(cfg))
        state = resume.to_resume(cfg, folder, processes.here())
        device = check_space(cfg, state, budget)
        name = loaders.default_run_name(cfg.dataset, cfg.data_path)
        run = Run(cfg, device, name, folder, state, budget.advice)
        utils.seed_everything(cfg.seed)

        # data: two halves of the training set; the test split stays closed
        data = run.load_data(loaders.search_data)
        budget.check(device, memory.supernet_cells, data)

        # model
        if cfg.auto_primitives:
            small_maps.choose(cfg, data.spec)
        net = build_supernet(cfg, data, device)
        utils.settle_norms(net, run.n_steps * cfg.epochs)
        kept_as = layout.place(net, device, data, cfg)
        if cfg.sync_bn:
            sync_norm.synchronise(net, device.group)

        # optimizers (sec. 3.1.1 and App. A.1)
        strategies = Strategies(cfg, run.n_steps)
        optims = build_optimizers(cfg, net, device, strategies.alpha_lr)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
            optims.w, cfg.epochs, cfg.w_lr_min * cfg.lr_factor
        )
        choices = (cfg.hessian, cfg.eps, cfg.reuse_gradient)
        parts = utils.parts(cfg, device, net.criterion)
        architect = Architect(net, *choices, penalty=strategies.penalty, parts=parts)
        run.track(
            model=net,
            w_optim=optims.w,
            alpha_optim=optims.alpha,
            scheduler=scheduler,
            strategies=strategies,
            train_loader=data.train,
            alpha_loader=data.alpha,
        )

    with errors.run_errors(cfg.PROG, run), run:
        search_log.log_setup(run, data, net, kept_as, strategies)
        search_log.record_setup(run, data, strategies)
        pictures = Pictures(run, search_log.PICTURES)

        for epoch in run.epochs():
            strategies.before_epoch(epoch)
            lr = optims.w.param_groups[0]["lr"]
            net.fade_skip(epoch, cfg.epochs)
            outer = architect if strategies.alpha_moves else None
            trained = train(data, net, outer, optims, epoch, run)
            trained |= loader_speed.speed((data.train, data.alpha), trained)
            val = validate(run.stoppable(data.val), net, device) | strategies.measure()
            scheduler.step()  # a run that stops while it validates is saved as of its last step

            record = save_epoch(run, data, net, strategies, lr, trained, val)
            # after saving: a drawing that fails costs no epoch
            pictures.after_epoch(
                trained["seconds"] + val["seconds"],
                drawing=functools.partial(search_log.draw, run, record, data.spec.name),
            )
        if cfg.select == "perturbation":
            selected, *measured = perturbation.after_search(run, data, net)
            search_log.record_selection(run, data.spec, net, selected, *measured)
        search_log.finish(run, data, pictures)
    return run.files.path


def check_space(cfg, state, budget):
    """Find out at once, not after a download, whether the ops can be searched and fit into memory;
    returns the Device. `state` is the checkpoint of a run that goes on, or None."""
    own = own_ops.use(cfg)
    if not state and "primitives" not in cfg.said:
        cfg.primitives = [*cfg.primitives, *own]
    check_primitives(cfg.primitives)
    device = pick.prepare_device(cfg)
    budget.check(device, memory.supernet_cells)
    channels = cfg.init_channels // cfg.partial_channels  # of the narrowest op
    if cfg.deterministic:
        check_ops.require_deterministic(cfg.primitives, channels, device.torch_device)
    check_ops.quick(cfg.primitives, channels)
    return device


def build_supernet(cfg, data, device):
    """The supernet for the images of `data`, a loaders.Data."""
    net = SearchCNNController(
        data.spec.C_in,
        cfg.init_channels,
        len(data.spec.classes),
        cfg.layers,
        utils.criterion(cfg, data.class_counts, device),
        n_nodes=cfg.n_nodes,
        stem_multiplier=cfg.stem_multiplier,
        primitives=cfg.primitives,
        k=cfg.k,
        stem=stems.pick(cfg.stem, data.spec.size),
        partial_channels=cfg.partial_channels,
        auxiliary_skip=cfg.auxiliary_skip,
    )
    net.net.checkpoint_cells = cfg.checkpoint_cells
    return net


class Optimizers(NamedTuple):
    w: torch.optim.Optimizer
    alpha: torch.optim.Optimizer


def build_optimizers(cfg, net, device, alpha_lr):
    """SGD with momentum for w, Adam with learning rate `alpha_lr` for alpha."""
    fused = device.is_cuda
    w_optim = torch.optim.SGD(
        net.weights(),
        cfg.w_lr * cfg.lr_factor,
        cfg.w_momentum,
        weight_decay=cfg.w_weight_decay,
        fused=fused,
    )
    alpha_optim = torch.optim.Adam(
        net.alphas(),
        alpha_lr,
        betas=(0.5, 0.999),
        weight_decay=cfg.alpha_weight_decay,
        fused=fused,
        capturable=fused,
    )
    return Optimizers(w_optim, alpha_optim)


def train(data, net, architect, optims, epoch, run):
    """One pass over D_train: each step moves alpha on D_val, then w on D_train (Algorithm 1).
    Without an architect w moves alone.

    Returns the means of `utils.Meter.result` over the training images.
    """
    cfg, device = run.cfg, run.device
    guard = StepGuard(device, net, cfg.on_nan)
    meter = run.meter(guard)  # sums stay on the device
    w_lr = optims.w.param_groups[0]["lr"]  # this epoch's cosine value
    xi = w_lr if cfg.order == 2 else 0.0  # sec. 2.3: xi = 0 is first order
    parts, compute = utils.parts(cfg, device, net.criterion), utils.passes(net, device)
    net.train()

    def search_step(trn_X, trn_y, *val):  # never waits, so that a CUDA graph can hold it
        guard.begin()
        passed = None
        if architect is not None:
            # alpha: gradient of L_val(w - xi * dL_train/dw, alpha), Eq. 6-8
            with device.autocast():
                passed = architect.unrolled_backward(trn_X, trn_y, *val, xi, optims.w)
            guard.update(optims.alpha, alpha=get_total_norm([a.grad for a in net.alphas()]))

        # w: plain SGD, with the gradient of the virtual step or anew, where alpha is now
        if passed is None:
            optims.w.zero_grad()
            # adds to alpha.grad too; unrolled_backward writes it anew
            loss, logits = parts.backward(compute, trn_X, trn_y, net.weights())
        else:
            loss, logits = passed
        norm = nn.utils.clip_grad_norm_(net.weights(), cfg.w_grad_clip)
        guard.update(optims.w, loss, w=norm)
        return loss, logits

    if device.graphs:
        search_step = Graphed(search_step, functools.partial(run.log.warn, kind="CUDA graph"))

    # D_val restarts when used up, so --val_portion never shortens the pass over D_train
    val_batches = utils.endless(data.alpha) if architect is not None else itertools.repeat(None)
    for step, (train_batch, val_batch) in run.steps(zip(data.train, val_batches, strict=False)):
        trn_X, trn_y = device.put(train_batch)  # (N, C_in, H, W), (N,)
        val = () if val_batch is None else device.put(val_batch)
        loss, logits = search_step(trn_X, trn_y, *val)
        meter.add(loss, logits, trn_y)
        run.step_done(epoch, step, meter)
    return run.trained(epoch, meter)


def validate(loader, net, device):
    """Plain cross-entropy and accuracy of the supernet on `loader`, in evaluation mode."""
    net.eval()
    return utils.evaluate(net, loader, device)


def save_epoch(run, data, net, strategies, lr, trained, val):
    """Record and save the epoch that `trained` and `val` are of; the record of its alphas."""
    genotype = net.genotype(run.cfg.max_skips)
    is_best = run.record_epoch(run.last["epoch"] + 1, lr, trained, val, gt.to_str(genotype))
    parts = utils.parts(run.cfg, run.device, net.criterion)
    curvature = strategies.curvature(net, data, run.device, parts)
    record = search_log.record_alphas(run, net, genotype, curvature)
    strategies.after_epoch(run, record)
    run.save(is_best)
    search_log.record_genotypes(run, data.spec)
    search_log.log_epoch(run, trained, val, record)
    return record


if __name__ == "__main__":
    main()
