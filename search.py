"""Search a cell: Algorithm 1 of DARTS (arXiv 1806.09055).

    python search.py --quick              two minutes on a laptop
    python search.py --dataset cifar10    the paper's setting

Everything is recorded in searchs/NAME. The last lines say how to train what was found.
"""

import functools
import os

import torch
import torch.nn.functional as F
from torch import nn

import check_ops
import genotypes as gt
import pace
import preproc
import run_folder
import search_log
import utils
from architect import Architect
from config import SearchConfig, data_flags
from graphs import Graphed
from models import stems
from models.ops import check_primitives
from models.search_cnn import SearchCNNController
from pictures import Pictures


def main(argv=None):
    # config
    cfg = SearchConfig(argv)
    with utils.usage_errors("search.py"):
        if cfg.resume:
            saved = run_folder.read_flags(os.path.join("searchs", cfg.name))
            cfg = SearchConfig(argv, saved)
        check_primitives(cfg.primitives)  # at once, not after a download
        device = utils.pick_device(cfg.device, cfg.gpus)
        utils.prepare_device(device, cfg.threads, cfg.tf32)
        check_ops.check(cfg.primitives, cfg.init_channels)
        stem = preproc.subject(cfg.dataset, cfg.data_path)
        run = run_folder.RunFolder(cfg, utils.device_name(device), stem=stem)
        utils.seed_everything(cfg.seed)

        # data: two halves of the training set; the test split stays closed
        data = preproc.search_data(
            cfg.dataset, cfg.data_path, cfg.batch_size, cfg.val_portion, cfg.seed, cfg.workers,
            pin_memory=device.type == "cuda", cutout_length=cfg.cutout_length,
            options=preproc.Options.of(cfg, run.state and run.state.get("data")),
            lower="batch_size" not in cfg.given(),
        )  # fmt: skip
        cfg.batch_size = data.batch_size
        data = data._replace(train=pace.Timed(data.train), val=pace.Timed(data.val))

        # model
        net = SearchCNNController(
            data.spec.C_in, cfg.init_channels, len(data.spec.classes), cfg.layers,
            utils.criterion(cfg.label_smoothing, cfg.class_weights, data.class_counts, device),
            cfg.n_nodes, cfg.stem_multiplier, cfg.primitives, cfg.k,
            stem=stems.pick(cfg.stem, data.spec.size),
        ).to(device)  # fmt: skip
        layout = utils.pick_layout(
            cfg.layout, net, cfg.batch_size, data.spec.C_in, data.spec.size, cfg.amp
        )
        net.to(memory_format=utils.LAYOUTS[layout])
        net.net.checkpoint_cells = cfg.checkpoint_cells
        if cfg.compile:
            utils.compile_cells(net.net.cells)

        # optimizers (sec. 3.1.1 and App. A.1)
        w_optim = torch.optim.SGD(
            net.weights(), cfg.w_lr, momentum=cfg.w_momentum, weight_decay=cfg.w_weight_decay,
            fused=device.type == "cuda",
        )  # fmt: skip
        alpha_optim = torch.optim.Adam(
            net.alphas(), cfg.alpha_lr, betas=(0.5, 0.999), weight_decay=cfg.alpha_weight_decay,
            fused=device.type == "cuda", capturable=device.type == "cuda",
        )  # fmt: skip
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
            w_optim, cfg.epochs, eta_min=cfg.w_lr_min
        )
        architect = Architect(
            net, cfg.w_momentum, cfg.w_weight_decay, cfg.hessian, cfg.eps, cfg.reuse_gradient
        )

        parts = {
            "model": net, "w_optim": w_optim, "alpha_optim": alpha_optim, "scheduler": scheduler,
        }  # fmt: skip
        best, last, first_epoch = {"epoch": 0, "top1": -1.0}, None, 1
        if cfg.resume:
            run.restore(parts)
            best, first_epoch = run.state["best"], run.state["epoch"] + 1
            last = {"epoch": run.state["epoch"], "top1": run.state["top1"]}

    with utils.run_errors("search.py", run), run:
        n_steps = len(data.train)
        run.open_tensorboard((first_epoch - 1) * n_steps)
        announce(run, cfg, net, data, layout, first_epoch)
        run.note(next=augment_command(run, cfg))
        pictures = Pictures(run, search_log.PICTURES)
        run.bar(first_epoch, n_steps)

        # epochs
        for epoch in range(first_epoch, cfg.epochs + 1):
            lr = w_optim.param_groups[0]["lr"]
            trained = train(data, net, architect, w_optim, alpha_optim, epoch, cfg, run, device)
            scheduler.step()
            speed = pace.speed((data.train, data.val), trained)
            run.metrics("train", epoch, epoch * n_steps, **trained, **speed, lr=lr)
            held = validate(data.held, net, device, cfg.amp)
            run.metrics("val", epoch, epoch * n_steps, **held, lr=lr)

            genotype = net.genotype()
            last = {"epoch": epoch, "top1": held["top1"]}
            is_best = held["top1"] > best["top1"]
            if is_best:
                best = {**last, "genotype": gt.to_str(genotype)}
            write_genotypes(run, cfg, data.spec, genotype, epoch, held["top1"], is_best)
            if epoch == first_epoch:
                run.info(pace.in_words(speed, cfg.workers))
            record = search_log.record_alphas(run, net, genotype, epoch, epoch * n_steps)
            search_log.log_epoch(run, cfg, net, genotype, epoch, trained, held, best)

            run.save(
                parts, epoch, is_best, best=best, top1=held["top1"],
                genotype=gt.to_str(genotype), flags=cfg.flags(), data=data.spec.to_dict(),
            )  # fmt: skip
            # after saving: a drawing that fails costs no epoch
            drawing = functools.partial(
                search_log.draw, run, record, data.spec, held["top1"], epoch * n_steps
            )
            pictures.after_epoch(trained["seconds"] + held["seconds"], drawing=drawing)
        search_log.warn_of_few_steps(run, cfg, data)  # once more, beside the result
        search_log.finish(run, cfg, net, data.spec, last, best, pictures, augment_words(run, cfg))
    return run.path


def train(data, net, architect, w_optim, alpha_optim, epoch, cfg, run, device):
    """One pass over D_train: each step moves alpha on D_val, then w on D_train (Algorithm 1)."""
    meter = utils.Meter(device)  # sums stay on the device
    w_lr = w_optim.param_groups[0]["lr"]  # this epoch's cosine value
    xi = w_lr if cfg.order == 2 else 0.0  # sec. 2.3: xi = 0 is first order
    n_steps = len(data.train)
    net.train()

    def move(trn_X, trn_y, val_X, val_y):  # waits for nothing, so that a CUDA graph can hold it
        # alpha: gradient of L_val(w - xi * dL_train/dw, alpha), Eq. 6-8
        with utils.autocast(device, cfg.amp):
            passed = architect.unrolled_backward(trn_X, trn_y, val_X, val_y, xi, w_optim)
        alpha_optim.step()

        # w: plain SGD, with the gradient of the virtual step or anew, where alpha is now
        if passed is None:
            w_optim.zero_grad()
            with utils.autocast(device, cfg.amp):
                logits = net(trn_X)  # (N, n_classes)
                loss = net.criterion(logits, trn_y)
            loss.backward()  # adds to alpha.grad too; unrolled_backward writes it anew
        else:
            loss, logits = passed
        nn.utils.clip_grad_norm_(net.weights(), cfg.w_grad_clip)
        w_optim.step()
        return loss.detach(), logits.detach()

    if cfg.cuda_graphs:
        move = Graphed(move, functools.partial(run.warn, kind="CUDA graph"))

    # D_val restarts when used up, so --val_portion never shortens the pass over D_train
    batches = zip(data.train, utils.endless(data.val), strict=False)
    for step, (train_batch, val_batch) in enumerate(batches, start=1):
        trn_X, trn_y = utils.to_device(train_batch, device)  # (N, C_in, H, W), (N,)
        val_X, val_y = utils.to_device(val_batch, device)
        loss, logits = move(trn_X, trn_y, val_X, val_y)

        meter.add(loss, logits, trn_y)
        global_step = (epoch - 1) * n_steps + step
        if run.due(global_step):  # the only wait for the device
            run.step(epoch, step, n_steps, global_step, meter.means())
        run.advance()

    return meter.result()


def validate(loader, net, device, amp="off"):
    """Plain cross-entropy and accuracy of the supernet on `loader`, in evaluation mode."""
    net.eval()
    return utils.evaluate(net, loader, F.cross_entropy, device, amp)


# --- what the run says and keeps ----------------------------------------------------------------


def announce(run, cfg, net, data, layout, first_epoch):
    """The first lines: what is searched, on what, with what."""
    run.opening(layout, data)
    run.info(
        f"{data.spec.name}: {len(data.train.dataset)} images for w, {len(data.val.dataset)} for "
        f"alpha, batch {cfg.batch_size}, w_lr {cfg.w_lr}; {preproc.in_words(data.spec)}, "
        f"{len(data.spec.classes)} classes: {', '.join(data.spec.classes)}"
    )
    if cfg.class_weights != "none" or max(data.class_counts) > 3 * min(data.class_counts):
        run.info(preproc.balance_in_words(data, cfg.class_weights))
    weights = sum(w.numel() for w in net.weights())
    run.info(
        f"supernet: {stems.pick(cfg.stem, data.spec.size)} stem, {cfg.layers} cells, "
        f"{cfg.init_channels} channels, {cfg.n_nodes} nodes, "
        f"{weights:,} weights; ops {', '.join(net.primitives)}"
    )
    for op, why in net.looped_ops().items():
        run.info(f"{op} runs edge by edge, since its block {why}; the other ops run wide")
    if cfg.batch_size != 64 and cfg.w_lr == 0.025 and not cfg.quick:
        run.warn(
            f"batch {cfg.batch_size} with the learning rate of batch 64; the linear rule suggests "
            f"--w_lr {0.025 * cfg.batch_size / 64:g}"
        )
    if cfg.layers < 3:
        run.warn(
            f"with --layers {cfg.layers} every cell is a reduction cell: the normal cell is not "
            f"searched, and the one in the genotype is drawn by chance; take 3 or more"
        )
    order = gradient_in_words(cfg)
    search_log.warn_of_few_steps(run, cfg, data)
    start = "search" if first_epoch == 1 else f"go on with epoch {first_epoch} of the search"
    run.info(f"{start}: {cfg.epochs} epochs of {len(data.train)} steps, {order}")


def gradient_in_words(cfg):
    """How alpha's gradient is computed, for the log."""
    if cfg.order == 1:
        return "first order"
    how = {
        "difference": f"central difference, eps {cfg.eps:g}",
        "forward": f"one-sided difference, eps {cfg.eps:g}",
        "exact": "exact product",
        "none": "lookahead without the product",
    }[cfg.hessian]
    return f"second order ({how}{', gradient of w reused' if cfg.reuse_gradient else ''})"


def write_genotypes(run, cfg, spec, genotype, epoch, top1, is_best):
    """genotype-last.json after every epoch, genotype.json after the best so far."""
    about = {
        "epoch": epoch, "top1": top1, "dataset": spec.name, "size": list(spec.size),
        "primitives": cfg.primitives, "n_nodes": cfg.n_nodes, "k": cfg.k,
        # what augment.py takes over
        "flags": {**data_flags(cfg.flags()), "stem_multiplier": cfg.stem_multiplier},
    }  # fmt: skip
    text = gt.to_json(genotype, **about)
    run.write("genotype-last.json", text)
    if is_best:
        run.write("genotype.json", text)


def augment_command(run, cfg):
    """The complete command that trains the found cell, to be pasted into a shell."""
    return utils.command("augment.py", *augment_words(run, cfg))


def augment_words(run, cfg):
    """The words of that command behind augment.py."""
    words = ["--genotype", run.path]  # which knows the data
    if cfg.device != "auto":
        words += ["--device", cfg.device]
    if cfg.gpus is not None:
        words += ["--gpus", cfg.gpus]
    if cfg.workers is not None:
        words += ["--workers", str(cfg.workers)]
    if cfg.quick:
        words.append("--quick")
    return words


if __name__ == "__main__":
    main()
