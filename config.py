"""The command lines of search.py, augment.py and of what uses a trained network.

One rule decides the value of a flag: defaults < --quick < --paper < inherited < said. `flag` says
of each what --quick and --paper make of it, whether a training inherits it, and whether it may
change on --resume.

Nothing on disk is touched here. Defaults are the paper's (arXiv 1806.09055, sec. 3.1 and App. A);
one that differs says so in its help text. docs/reference.md has the table.
"""

import argparse
import itertools
import os
import sys

import genotypes as gt
from console.parser import (
    Parser,
    batch,
    cells,
    count,
    count_or_zero,
    digit,
    duration,
    folder_name,
    fraction,
    gpus,
    jobs,
    nodes,
    non_negative,
    out_file,
    portion,
    positive,
    probability,
    processes,
    seed,
    threads,
)
from console.terminal import guarded, plural
from data_sets import named
from data_sets.options import MAX_MEGAPIXELS
from records.comparison import ACCURACY, LOSSES, RANK_BY


def flag(group, name, *, default=None, quick=None, paper=None, inherit=None, keep="fixed", **words):
    """Add a flag to a group; `words` are those of argparse.

    quick    its value under --quick (None: no other)
    paper    its value under --paper (None: no other)
    inherit  whether a training inherits it, from its search or from the training of --init_from:
             "network", it does; "images", it does on the same images; "space", a comparison does,
             from the first search
    keep     on --resume: "fixed", it may not change; "free", it may, since it does not change the
             result; "never", it belongs to one call and is not remembered
    """
    # suppressed, so that what is parsed is what was said
    action = group.add_argument(name, default=argparse.SUPPRESS, **words)
    action.value, action.quick, action.paper = default, quick, paper
    action.inherit, action.keep = inherit, keep


def switch(group, name, **words):
    """A flag that is on when it is said."""
    flag(group, name, action="store_true", default=False, **words)


def or_auto(parse):
    """`parse`, or "auto", of which the search makes a value."""

    def parse_or_auto(text):
        try:
            return text if text == "auto" else parse(text)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"{error}, or auto") from None

    return parse_or_auto


alpha_lr, warmup_epochs = or_auto(positive), or_auto(count_or_zero)


def primitives(text):
    """A preset's name, "auto", or op names separated by commas; OPS is asked when the supernet is
    built."""
    if text in gt.PRESETS:
        return list(gt.PRESETS[text])
    names = [name.strip() for name in text.split(",")]
    if "" in names:
        raise argparse.ArgumentTypeError(f"{text!r} holds an empty name")
    return names


# networks of torchvision that comparing/baselines.py knows to fit to small images
BASELINES = ("mobilenet_v3_small", "mobilenet_v2", "shufflenet_v2_x1_0", "resnet18")

WORKERS_HELP = (
    "loader processes in all (default: 0 for images in memory, else one per core, at most 4)"
)
CUTOUT_HELP = (
    "side in pixels of the square that cutout blanks, 0: none (default: half the image, the "
    "paper's 16 at 32 pixels; from 96 pixels on none, as in the official code)"
)
QUICK_HELP = (
    "a small setting that ends within minutes on a laptop; what you say goes before it "
    "(docs/reference.md lists what it sets)"
)
QUIET_HELP = "say only warnings and the result; the log has the rest"
MEGAPIXELS_HELP = "image files of more million pixels are not read, but listed as too large"
ONE_GPU_HELP = "CUDA card to use, counted from 0 (default: the first)"
GPUS_HELP = (
    "CUDA card to use, counted from 0 (default: the first); several, such as 0,1,2,3 or all: a "
    "process on each, which share every batch"
)
COMPARED_GPUS_HELP = "CUDA cards for the trainings, counted from 0, such as 0,2 (default: all)"
CACHE_HELP = "keep decoded images of a folder in memory up to this many GB"


# fmt: off
# --- groups -------------------------------------------------------------------------------------


def add_run_group(parser, root):
    g = parser.add_argument_group("run", "where it is recorded")
    flag(g, "--name", type=folder_name, keep="never",
         help=f"folder of the run, {root}/NAME (default: named after what it is about, numbered)")
    switch(g, "--quick", help=QUICK_HELP)
    switch(g, "--resume", keep="never",
           help="go on with --name where it was saved last; flags are remembered")
    switch(g, "--overwrite", keep="never",
           help="replace an earlier run of this name; it is removed after the first epoch")
    switch(g, "--new_split", keep="never",
           help="--resume although the images have changed: they are divided anew, and images that "
                "were held out may be trained on")
    flag(g, "--seed", type=seed, default=2, help="of weights, split and batches")
    switch(g, "--quiet", keep="free", help=QUIET_HELP)
    flag(g, "--print_freq", type=count, default=50, keep="free",
         help="steps between lines (without a terminal) or updates of the bar's means")
    flag(g, "--checkpoint_minutes", type=non_negative, default=0.0, metavar="N", keep="free",
         help="save every N minutes inside an epoch, too; --resume goes on from there to the same "
              "result (0: after each epoch only)")


def add_several_group(parser):
    g = parser.add_argument_group("several searches", "and which of their cells to train")
    flag(g, "--seeds", type=count, default=1, keep="never", metavar="N",
         help="search N times, with --seed, --seed + 1, ..., a process each, as many at once as "
              "there are CUDA cards or cores; then compare.py tells the best cell, and whether the "
              "search beat random ones")
    flag(g, "--compare", type=count_or_zero, default=0, quick=12, metavar="N", keep="free",
         help="at the end let compare.py train what was found beside N random cells, briefly and "
              "all alike, and choose the best of all (0: not; several searches are always "
              "compared, then with as many random cells as searches, four at least)")


def add_paper_switch(parser):
    g = parser.add_argument_group("setting")
    switch(g, "--paper",
           help="the setting of the DARTS paper: sets every flag that the paper gives a value, "
                "unless you say it (docs/reference.md lists them)")


def add_step_flag(g):
    flag(g, "--on_nan", choices=("stop", "skip"), default="stop", keep="free",
         help="a loss or gradient that is NaN or infinite changes no weight, and then: stop ends "
              "the run in one line, skip leaves the step out and counts it")


def add_graphs_flag(g):
    switch(g, "--cuda_graphs", keep="free",
           help="record a step as a CUDA graph, several times as fast for small maps; not for "
                "blocks that decide anew in Python with every step")


def add_device_group(parser):
    g = parser.add_argument_group("device", "on what it runs")
    # one thread under --quick: networks this small are no faster on two, and threads that wait for
    # each other make them crawl where another program wants a core
    add_device_flags(g, quick_threads=1, gpus_help=GPUS_HELP)
    flag(g, "--workers", type=processes, keep="free", help=WORKERS_HELP)
    flag(g, "--amp", choices=("off", "bf16"), default="off",
         help="bf16: bfloat16 where it is tolerated; the finite difference of the search stays in "
              "float32")
    flag(g, "--tf32", action=argparse.BooleanOptionalAction, default=True,
         help="allow TF32 on CUDA cards that have it; not for the finite difference")
    flag(g, "--layout", choices=("auto", "channels_last", "contiguous"), default="auto",
         keep="free",
         help="memory layout of maps; auto: channels_last on a CPU, on a CUDA card whichever is "
              "faster in a short trial")
    add_graphs_flag(g)
    switch(g, "--deterministic",
           help="two runs are equal bit for bit on a machine, on CUDA too, where that costs time: "
                "no trial of kernels or layouts; loader processes start anew with every epoch, so "
                "that a resumed run is equal, too")
    switch(g, "--compile",
           help="torch.compile each cell; takes minutes at the start, and in a search gradients of "
                "w are then computed in the passes for alpha alone, too")


def add_processes_group(parser, rates):
    g = parser.add_argument_group("several processes", "and parts of a batch; "
                                                       "docs/several-gpus.md")
    flag(g, "--accumulate", type=count, default=1, metavar="N",
         help="pass each batch in N parts and add up their gradients: about an N-th of the memory")
    switch(g, "--scale_lr",
           help=f"linear rule: {rates} in proportion to --batch_size, from the default of both")
    switch(g, "--sync_bn",
           help="BatchNorm over the batch of all processes (default: each over its own share)")
    flag(g, "--dist_timeout", type=positive, default=10.0, metavar="MINUTES", keep="never",
         help="end when another process has not answered for so long")


def add_ops_flag(g, default):
    flag(g, "--ops", metavar="FILE", keep="free", inherit="network",
         help="blocks of your own: a Python file, which is run, that defines OPS as models/ops.py "
              f"does (default: {default})")


def add_device_flag(g):
    flag(g, "--device", choices=("auto", "cuda", "mps", "cpu"), default="auto", keep="free",
         help="auto: CUDA, else MPS, else CPU")


def add_device_flags(g, quick_threads=None, gpus_help=ONE_GPU_HELP):
    """The flags of every command that runs a network."""
    add_device_flag(g)
    flag(g, "--gpus", type=gpus, metavar="N", keep="free", help=gpus_help)
    flag(g, "--threads", type=threads, quick=quick_threads, keep="free",
         help="CPU threads of torch (default: its own choice, all cores); on a shared machine "
              "fewer can be much faster")


def add_data_group(parser, cutout_default, cutout_help, cutout_quick=None):
    g = parser.add_argument_group("data", "a data set by name, or a folder of your own images")
    flag(g, "--dataset", default="digits", inherit="images",
         help=f"a data set by name ({', '.join(named.DATA_SETS)}; digits are bundled, most "
              "others downloaded); a folder that holds train/CLASS/IMAGES, and val/ or test/ if "
              "you have them; or imagenet, such a folder in --data_path at 224x224")
    flag(g, "--data_path", default="./data/", inherit="images", keep="free",
         help="folder of downloaded data sets; of the images for --dataset folder")
    flag(g, "--in_channels", type=digit, choices=(1, 3), inherit="images",
         help="1: grey, 3: colour (default: what the images are)")
    flag(g, "--input_size", type=count, nargs="+", metavar=("H", "W"), inherit="images",
         help="scale and cut images to H x W pixels; one number: a square (default: as they are; "
              "of several sizes the median, the shorter side 224 at most)")
    flag(g, "--test_portion", type=fraction, default=0.2, inherit="images",
         help="portion of every class that is held out of a folder without val/ and test/; the "
              "same images whatever --seed is")
    flag(g, "--bad_images", choices=("fail", "skip"), default="fail", inherit="images",
         help="what to do about files that cannot be read; both list them")
    flag(g, "--max_megapixels", type=positive, default=MAX_MEGAPIXELS, inherit="images",
         help=MEGAPIXELS_HELP)
    flag(g, "--subset", type=portion, default=1.0,
         help="portion of the training images of every class to use")
    flag(g, "--augment", default="auto", inherit="images",
         choices=("auto", "none", "light", "cifar", "digits", "trivial"),
         help="random changes of training images; digits is for whatever must not be mirrored, "
              "auto chooses by data set (a folder: cifar)")
    flag(g, "--hflip", action=argparse.BooleanOptionalAction, inherit="images",
         help="mirror training images left to right, or not (default: as --augment does)")
    flag(g, "--cutout_length", type=count_or_zero, default=cutout_default, quick=cutout_quick,
         help=cutout_help)
    flag(g, "--cache_gb", type=non_negative, default=2.0, inherit="images", keep="free",
         help=CACHE_HELP)


def add_loss_group(parser):
    g = parser.add_argument_group("loss", "cross-entropy of training; scores use the plain one")
    flag(g, "--label_smoothing", type=probability, default=0.0, inherit="images",
         help="portion of the target that is spread over all classes")
    flag(g, "--class_weights", choices=("none", "balanced"), default="none", inherit="images",
         help="balanced: rare classes weigh more, in inverse proportion to their images")


def add_stem_flags(g):
    flag(g, "--stem", choices=("auto", "cifar", "imagenet"), default="auto", inherit="network",
         help="cifar: the first cell sees every pixel; imagenet: it sees maps of an eighth of the "
              "size; auto: imagenet where the shorter side has 96 or more")
    flag(g, "--stem_multiplier", type=count, default=3, inherit="network",
         help="channels of the stem, in multiples of --init_channels")


def add_search_net_group(parser):
    g = parser.add_argument_group("supernet")
    flag(g, "--init_channels", type=count, default=16, quick=8, paper=16,
          help="channels of the first cells")
    flag(g, "--layers", type=cells, default=8, quick=4, paper=8,
         help="cells; the ones at 1/3 and 2/3 of the depth are reduction cells")
    flag(g, "--n_nodes", type=nodes, default=4, paper=4, help="computed nodes of a cell")
    add_stem_flags(g)
    flag(g, "--k", type=count, default=2, paper=2,
         help="edges that a node of the found cell keeps (all, where it has fewer)")
    flag(g, "--max_skips", type=count_or_zero, quick=2, metavar="M",
         help="P-DARTS: skip connections that the normal cell may keep (default: any number)")
    flag(g, "--max_madds", type=positive, metavar="M", keep="free",
         help="warn when the found network needs more than M million multiply-adds")
    switch(g, "--checkpoint_cells", help="compute each cell twice to need less memory")
    add_ops_flag(g, "none")
    flag(g, "--partial_channels", type=count, default=1, paper=1, metavar="K",
         help="PC-DARTS: one channel of K goes through the ops, which takes less time and memory, "
              "and alpha gets a weight for every edge; must divide --init_channels "
              "(docs/search-methods.md)")
    switch(g, "--auxiliary_skip",
           help="DARTS-: every edge has one more skip connection, outside the softmax, which fades "
                "out over the search (docs/search-methods.md)")
    flag(g, "--primitives", type=primitives, default=list(gt.PRIMITIVES), quick=["auto"],
         paper=list(gt.PRESETS["darts"]), metavar="LIST",
         help="candidate ops, separated by commas; or a preset: "
              f"{', '.join(gt.PRESETS)}; or auto, PRIMITIVES without those that are too wide for "
              "the maps of the last cells (default: PRIMITIVES of genotypes.py, with those of "
              "--ops)")


def add_weight_group(parser):
    """The inner problem: SGD on w (App. A.1)."""
    g = parser.add_argument_group("w", "network weights: SGD, cosine learning rate")
    flag(g, "--epochs", type=count, default=50, quick=18, paper=50,
          help="passes over the weights' half")
    flag(g, "--batch_size", type=batch, default=64, quick=32, paper=64,
         help="images of one step, from each half; scale --w_lr in proportion")
    flag(g, "--w_lr", type=positive, default=0.025, paper=0.025,
          help="learning rate of the first epoch")
    flag(g, "--w_lr_min", type=non_negative, default=0.0, paper=0.0,
         help="where the cosine ends (the official code ends at 0.001)")
    flag(g, "--w_momentum", type=probability, default=0.9, paper=0.9, help="of SGD")
    flag(g, "--w_weight_decay", type=non_negative, default=3e-4, paper=3e-4,
          help="L2 term of SGD")
    flag(g, "--w_grad_clip", type=positive, default=5.0,
         help="largest norm of the gradient of w; alpha is never clipped")
    add_step_flag(g)


def add_alpha_group(parser):
    """The outer problem: Adam on alpha (sec. 2.3; values of App. A.1)."""
    g = parser.add_argument_group("alpha", "architecture parameters, one update per update of w")
    flag(g, "--alpha_lr", type=alpha_lr, default="auto", paper=3e-4,
         help="step size of Adam, constant; auto: alpha can move as far as in the paper, however "
              "few the steps are (0.0003, the paper's, to 0.03)")
    flag(g, "--alpha_weight_decay", type=non_negative, default=1e-3, paper=1e-3,
         help="L2 term inside Adam (not decoupled)")
    flag(g, "--order", type=digit, choices=(1, 2), default=2, quick=1, paper=2,
         help="2: xi is the current learning rate of w; 1: xi = 0, no unrolled step, less time "
              "and memory")
    flag(g, "--hessian", choices=("difference", "forward", "exact", "none"), default="forward",
         paper="difference",
         help="the second-order term of --order 2: central difference (the paper's), one-sided "
              "difference (a pass less), exact (several times the time and memory) or none (w' "
              "alone: two passes less); docs/gradient.md compares them")
    flag(g, "--eps", type=positive, default=0.3, paper=0.01,
         help="of --hessian difference and forward: by how much the weights are moved. The paper's "
              "0.01 measures mostly noise (docs/gradient.md)")
    flag(g, "--reuse_gradient", action=argparse.BooleanOptionalAction, default=True,
         paper=False,
         help="train the weights with the gradient that --order 2 has computed already; the paper "
              "computes it again after alpha's step, which takes a pass more")
    flag(g, "--val_portion", type=fraction, default=0.5, paper=0.5,
         help="portion of the training images that only alpha learns from")
    flag(g, "--warmup_epochs", type=warmup_epochs, default=0, quick="auto", paper=0,
         help="epochs at the start in which only the weights learn; auto: a quarter of all")
    flag(g, "--beta_decay", type=non_negative, default=0.0, paper=0.0, metavar="LAMBDA",
         help="beta-DARTS: a penalty on strong entries of alpha whose weight grows from 0 to "
              "LAMBDA over the search (docs/search-methods.md)")


def add_stop_group(parser):
    g = parser.add_argument_group("early stop", "of a search; docs/search-methods.md")
    flag(g, "--stop_unchanged", type=count, metavar="N",
         help="DARTS+: end when the cell has not changed for N epochs (default: never)")
    flag(g, "--stop_skips", type=count, metavar="M",
         help="DARTS+: end when the normal cell has M skip connections, with the cell of the epoch "
              "before (default: never)")
    switch(g, "--stop_eigenvalue",
           help="RobustDARTS: end when the dominant eigenvalue of the Hessian in alpha has "
                "risen by a third within five epochs, with the cell from before; needs ten epochs")
    switch(g, "--eigenvalue",
           help="record and plot that eigenvalue after each epoch; takes the time of some steps "
                "and several times the memory of one")


def add_select_group(parser):
    """From the supernet to a cell (sec. 2.4, or another way)."""
    g = parser.add_argument_group("selection", "how the cell is read from the supernet")
    flag(g, "--select", choices=("alpha", "perturbation"), default="alpha", keep="free",
         help="alpha: the strongest ops, the paper's; perturbation (DARTS-PT): after the last "
              "epoch, the ops whose removal costs the supernet most accuracy on the alpha half "
              "(docs/search-methods.md)")
    flag(g, "--tune_epochs", type=non_negative, default=0.5, keep="free", metavar="E",
         help="of --select perturbation: after each edge that is decided, the weights are trained "
              "for this many epochs, or parts of one (0: not)")


def add_augment_net_group(parser):
    g = parser.add_argument_group("network")
    flag(g, "--genotype", inherit="network",
         help="the cell: a run folder (searchs/NAME), a JSON file, a published name "
              f"({', '.join(gt.PUBLISHED)}), the text Genotype(...), or a random cell, random or "
              "random:SEED. The data flags of a search are inherited unless given here")
    flag(g, "--space", metavar="RUN", keep="never",
         help="of --genotype random: draw it as searchs/NAME could have found it, from its ops, "
              "nodes and edges, and inherit from that search (default: from PRIMITIVES)")
    add_ops_flag(g, "that of the search")
    flag(g, "--init_from", metavar="RUN",
         help="start from the weights of augments/NAME (or of one of its .pt files), wherever name "
              "and shape agree. --genotype, the flags of the network and of the data are those of "
              "that run unless given here")
    flag(g, "--init_channels", type=count, default=36, quick=16, inherit="network",
         help="channels of the first cells")
    flag(g, "--layers", type=cells, default=20, quick=5, inherit="network",
         help="cells; the ones at 1/3 and 2/3 of the depth are reduction cells")
    add_stem_flags(g)
    flag(g, "--aux_weight", type=non_negative, default=0.4, inherit="network",
         help="weight of the auxiliary head's loss; 0 builds none")
    flag(g, "--drop_path_prob", type=probability, default=0.2,
         help="drop path of the end; grows from 0 in proportion to the epoch")


def add_train_group(parser):
    """Training from scratch (App. A.2)."""
    g = parser.add_argument_group("training", "SGD, cosine learning rate down to 0")
    flag(g, "--epochs", type=count, default=600, quick=20, help="passes over the training set")
    flag(g, "--batch_size", type=batch, default=96, quick=64,
         help="images of one step; scale --lr in proportion")
    add_sgd_flags(g)
    add_step_flag(g)


def add_sgd_flags(g, quick_lr=None):
    flag(g, "--lr", type=positive, default=0.025, quick=quick_lr,
         help="learning rate of the first epoch")
    flag(g, "--momentum", type=probability, default=0.9, help="of SGD")
    flag(g, "--weight_decay", type=non_negative, default=3e-4, help="L2 term of SGD")
    flag(g, "--grad_clip", type=positive, default=5.0, help="largest norm of the gradient")


def add_candidates_group(parser):
    g = parser.add_argument_group("candidates", "what is compared")
    flag(g, "candidates", nargs="*", metavar="CELL", default=[],
         help="anything that augment.py --genotype takes: a run folder (searchs/NAME), a JSON "
              f"file, a published name ({', '.join(gt.PUBLISHED)}), the text Genotype(...); or "
              "random:SEED, a random cell")
    flag(g, "--random", type=count_or_zero, default=0, metavar="N",
         help="add N random cells, random:SEED with the seeds --seed, --seed + 1, ...")
    flag(g, "--n_nodes", type=nodes, default=4, inherit="space",
         help="computed nodes of a random cell; these three are those of the first search unless "
              "given here")
    flag(g, "--k", type=count, default=2, inherit="space", help="edges that its nodes keep")
    flag(g, "--primitives", type=primitives, default=list(gt.PRIMITIVES), metavar="LIST",
         inherit="space", help="its ops, separated by commas, or a preset: "
                               f"{', '.join(gt.PRESETS)}")
    add_ops_flag(g, "that of the first search")
    flag(g, "--baseline", nargs="+", choices=BASELINES, default=[], metavar="NET",
         help="networks of torchvision to stand beside the cells, from scratch, trained alike: "
              f"{', '.join(BASELINES)}")


def add_compare_run_group(parser, root):
    g = parser.add_argument_group("run", "where it is recorded, on what it runs")
    flag(g, "--name", type=folder_name, keep="never",
         help=f"folder of the comparison, {root}/NAME (default: the data set, numbered)")
    switch(g, "--quick", help=QUICK_HELP)
    switch(g, "--resume", keep="never",
           help="go on with --name behind the trainings that are finished; flags are remembered")
    switch(g, "--overwrite", keep="never",
           help="replace an earlier comparison of this name; it is removed after the first "
                "training")
    flag(g, "--seed", type=seed, default=2, help="of the split and of the first training")
    switch(g, "--quiet", keep="free", help=QUIET_HELP)
    flag(g, "--jobs", type=jobs, keep="free",
         help="trainings at once, a process each, with one thread (default: one per CUDA card of "
              "--gpus, else one per core)")
    add_device_flag(g)
    flag(g, "--gpus", type=gpus, metavar="N", keep="free", help=COMPARED_GPUS_HELP)
    flag(g, "--workers", type=processes, keep="free",
         help="loader processes of each training (default: 0 on a CPU and for images in memory, "
              "else up to four)")
    flag(g, "--amp", choices=("off", "bf16"), default="off", help="bf16: bfloat16 where it is "
                                                                  "tolerated")
    add_graphs_flag(g)


def add_compare_train_group(parser):
    g = parser.add_argument_group("training", "all alike, from scratch, on one part of the "
                                              "training set, scored on the other")
    flag(g, "--epochs", type=count, default=40, quick=8,
         help="epochs of the last rung; the first has half of them")
    flag(g, "--budget", type=duration, metavar="TIME",
         help="choose --epochs so that all is over after about this time: 90s, 30m, 2h")
    flag(g, "--seeds", type=count, default=2, help="trainings of each candidate in each rung")
    flag(g, "--rank_by", choices=RANK_BY, default=ACCURACY, quick=LOSSES,
         help="which half goes on and which cell is best is told by " + "; ".join(
             f"{name}: {what}" for name, what in RANK_BY.items()))
    flag(g, "--val_portion", type=fraction, default=0.5,
         help="portion of the training images that is scored; two halves change places in every "
              "second training")
    flag(g, "--layers", type=cells, default=8, quick=5,
         help="cells; the ones at 1/3 and 2/3 of the depth are reduction cells")
    flag(g, "--init_channels", type=count, default=16, quick=8, help="channels of the first cells")
    add_stem_flags(g)
    flag(g, "--aux_weight", type=non_negative, default=0.4,
         help="weight of the auxiliary head's loss; 0 builds none")
    flag(g, "--drop_path_prob", type=probability, default=0.2, quick=0.0,
         help="drop path of the end; grows from 0 in proportion to the epoch")
    flag(g, "--batch_size", type=batch, default=64, quick=32,
         help="images of one step; scale --lr in proportion")
    add_sgd_flags(g, quick_lr=0.05)


def add_out_flag(g, what):
    flag(g, "--out", type=out_file, metavar="FILE", help=what)


RUN_HELP = "augments/NAME (its last epoch) or one of its .pt files"


# fmt: on
# --- configurations -----------------------------------------------------------------------------


class Config(argparse.Namespace):
    """All flags of a command as attributes, and `said`, those of the command line, as a dict.

    Parses `argv` (None: sys.argv) and creates nothing. `inherit` and `resume` take in the flags of
    an earlier run. What is wrong ends the program in one line with exit code 2.
    """

    PROG = DESCRIPTION = EXAMPLE = None

    def __init__(self, argv=None):
        super().__init__()
        parser = Parser(self.PROG, self.EXAMPLE, description=self.DESCRIPTION)
        self.add_groups(parser)
        said = vars(parser.parse_args(argv))
        actions = {a.dest: a for a in parser._actions if hasattr(a, "keep")}
        self._parser, self._actions, self.said = parser, actions, said
        self.normalise()
        self.inherit({})
        self.check()

    @classmethod
    def answer_at_once(cls):
        """Answer --help and wrong flags, and end: before torch is imported, which takes seconds.
        To be called by a script that was started as such. Of several processes, which torchrun
        gives a RANK, one answers, later."""
        if "RANK" not in os.environ or {"-h", "--help"} & set(sys.argv[1:]):
            with guarded():
                cls()

    def add_groups(self, parser):
        raise NotImplementedError

    def normalise(self):
        """One form in `said` for what can be said in several."""

    def check(self):
        """Refuse combinations of flags that make no sense."""

    def error(self, message):
        """End the program in one line."""
        self._parser.error(message)

    def inherit(self, flags):
        """Set all flags: defaults < --quick < --paper < `flags`, of an earlier run, < said."""
        actions = self._actions.items()
        values = {name: a.value for name, a in actions}
        for setting in ("quick", "paper"):
            if {**values, **self.said}.get(setting):
                chosen = {name: getattr(a, setting) for name, a in actions}
                values |= {name: value for name, value in chosen.items() if value is not None}
        values |= {name: value for name, value in flags.items() if name in self._actions}
        for name, value in {**values, **self.said}.items():
            setattr(self, name, value)

    def flags(self):
        """All flags as a dict of JSON values."""
        return {name: getattr(self, name) for name in self._actions}

    def words(self, names):
        """The words of a command line that say the flags `names` as they are."""
        found = []
        for name in names:
            option, value = self._actions[name].option_strings[0], getattr(self, name)
            if isinstance(value, bool):
                found.append(option if value else f"--no-{option[2:]}")
            elif self._actions[name].nargs == "+":
                found += [option, *map(str, value)]
            else:
                text = ",".join(map(str, value)) if isinstance(value, list) else value
                found.append(f"{option}={text}")
        return found

    def default(self, name):
        """The default of a flag."""
        return self._actions[name].value

    def unsayable(self, flags):
        """The first of `flags` that no command line could give, in words; None where all could."""
        for name, value in flags.items():
            if name in self._actions and not _could_be_said(self._actions[name], value):
                return f"--{name} {value!r}, which is no value of that flag"
        return None

    def require_sayable(self, flags, source):
        """End the program where `source` holds a value that no command line could give a flag."""
        if fault := self.unsayable(flags):
            self.error(f"{source} says {fault}")

    def marked(self, flags, **marks):
        """Those of `flags` that are marked so: inherit="images", keep="free", ..."""
        return {
            name: flags[name]
            for name, action in self._actions.items()
            if name in flags and all(getattr(action, m) == value for m, value in marks.items())
        }


def _could_be_said(action, value):
    """Whether a command line could have given a flag this value, or its default has it."""
    if value is None:
        return action.value is None
    if action.nargs == 0:  # on or off
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    if action.nargs in ("+", "*"):
        return isinstance(value, list) and all(_parses(action, item) for item in value)
    return _parses(action, value)


def _parses(action, value):
    text = str(value)
    if isinstance(value, list):  # as `primitives` makes it
        text = ",".join(map(str, value))
    try:
        parsed = action.type(text) if action.type else text
    except (ValueError, argparse.ArgumentTypeError):
        return False
    return parsed == value and (action.choices is None or value in action.choices)


class RunConfig(Config):
    """What search.py and augment.py have in common."""

    ROOT = None

    def normalise(self):
        said = self.said
        if "input_size" in said:
            if len(said["input_size"]) > 2:
                self.error(f"--input_size takes H and W, not {len(said['input_size'])} numbers")
            said["input_size"] = H, W = [said["input_size"][0], said["input_size"][-1]]
            if (H, W) == (1, 1):
                self.error("--input_size 1 1: one pixel is no image; take more of them")
        dataset = said.get("dataset")
        if dataset and dataset not in named.NAMES and os.path.isdir(dataset):
            # as a path it may differ when the run goes on: images can be moved
            there = os.path.abspath(said.setdefault("data_path", dataset))
            if there != os.path.abspath(dataset):
                self.error(
                    f"--dataset {dataset} is a folder and --data_path {said['data_path']} another; "
                    f"give one of them"
                )
            said["dataset"] = "folder"

    def inherit(self, flags):
        super().inherit(flags)
        if self.dataset in named.FOLDERS:  # a later run may start from another folder
            self.data_path = os.path.abspath(self.data_path)

    def require_images(self):
        """Refuse a --data_path that would go unheeded, since nothing names a data set but the
        bundled digits."""
        if self.dataset == "digits" and "data_path" in self.said and "dataset" not in self.said:
            self.error(
                "--data_path says where the images of --dataset are, and none was named; say "
                "--dataset FOLDER for images of your own"
            )

    def resume_from(self, saved):
        """Go on with a run whose flags were `saved`. They bind, but for those that are free."""
        kept = {
            name: value
            for name, value in saved.items()
            if name in self._actions and self._actions[name].keep != "never"
        }
        # of these two what is said now goes before what was said then of the other
        if self.said.get("device") in ("cpu", "mps"):
            kept.pop("gpus", None)
        if "gpus" in self.said and kept.get("device") in ("cpu", "mps"):
            del kept["device"]
        self.require_sayable(kept, "the checkpoint")
        self.inherit(kept)
        # a flag that the run did not know yet had its default
        fixed = self.marked({name: self.default(name) for name in self._actions}, keep="fixed")
        for name, value in {**fixed, **self.marked(kept, keep="fixed")}.items():
            if getattr(self, name) != value:
                self.error(f"--{name} was {value} in that run and cannot change now")
        self.check_together()

    def is_other_data(self, inherited):
        """Whether the command line names another data set than the flags of an earlier run."""
        if "dataset" not in self.said:  # a --data_path alone says where the images are now
            return False
        if self.dataset != inherited.get("dataset", self.dataset):
            return True
        there = inherited.get("data_path", self.data_path)
        return self.dataset == "folder" and os.path.abspath(there) != self.data_path

    def check(self):
        if self.resume and not self.name:
            self.error(f"--resume needs --name, the folder in {self.ROOT} to go on with")
        if self.resume and self.overwrite:
            self.error("--resume keeps the earlier run and --overwrite deletes it; choose one")
        if self.new_split and not self.resume:
            self.error("--new_split belongs to --resume; a new run divides its images anyway")
        if not self.resume:  # else behind the flags of the run that goes on
            self.check_together()

    @property
    def lr_factor(self):
        """What learning rates are multiplied with: with --scale_lr the batch in units of the
        default one, which --quick changes with the rest of the setting; else 1."""
        return self.batch_size / self.usual_batch if self.scale_lr else 1.0

    @property
    def usual_batch(self):
        """The batch that the default learning rates are for."""
        action = self._actions["batch_size"]
        return action.quick if self.quick else action.value

    def check_together(self):
        """Refuse values that do not go together."""
        if self.sync_bn and self.compile:
            self.error("--sync_bn waits for other processes, which --compile cannot")


class SearchConfig(RunConfig):
    """Flags of search.py."""

    ROOT, PROG = "searchs", "search.py"
    DESCRIPTION = "Search a cell with DARTS. Everything is recorded in searchs/NAME."
    EXAMPLE = "python search.py --dataset pets --quick"

    def add_groups(self, parser):
        """The flags that most need first, those for experts last."""
        add_run_group(parser, self.ROOT)
        add_several_group(parser)
        add_paper_switch(parser)
        add_data_group(parser, 0, "side in pixels of the square that cutout blanks; 0: none")
        add_weight_group(parser)
        add_search_net_group(parser)
        add_alpha_group(parser)
        add_device_group(parser)
        add_processes_group(parser, "--w_lr, --w_lr_min and --alpha_lr")
        add_loss_group(parser)
        add_stop_group(parser)
        add_select_group(parser)

    def inherit(self, flags):
        """`auto_primitives`: the ops are still to be chosen by the size of the images."""
        super().inherit(flags)
        self.auto_primitives = self.primitives == ["auto"]
        if self.auto_primitives:
            self.primitives = list(gt.PRIMITIVES)

    @property
    def warmup(self):
        """The epochs in which only w learns, as a number: "auto" is a quarter, and leaves one."""
        if self.warmup_epochs == "auto":
            return min(-(-self.epochs // 4), self.epochs - 1)
        return self.warmup_epochs

    def check_together(self):
        super().check_together()
        if self.quick and self.paper:
            self.error("--quick and --paper are two settings; choose one")
        if self.w_lr_min > self.w_lr:
            self.error(f"--w_lr_min {self.w_lr_min} is above --w_lr {self.w_lr}")
        if self.warmup >= self.epochs:
            self.error(
                f"--warmup_epochs {self.warmup_epochs} of --epochs {self.epochs} leave alpha none "
                f"to learn in; lower it"
            )
        self._check_supernet()
        self._check_gradient()
        self._check_selection()
        self._check_stops()

    def _check_supernet(self):
        if self.k > self.n_nodes + 1:
            self.error(
                f"--k {self.k}: with --n_nodes {self.n_nodes} no node has more than "
                f"{self.n_nodes + 1} inputs to keep; lower --k"
            )
        C, K = self.init_channels, self.partial_channels
        # ops are given two channels at least: a skip connection of stride 2 has two halves
        allowed = [1, *(k for k in range(2, C // 2 + 1) if C % k == 0)]
        if K not in allowed:
            self.error(
                f"--partial_channels {K}: with --init_channels {C} it is one of "
                f"{', '.join(map(str, allowed))}"
            )
        if self.auxiliary_skip and self.epochs == 1:
            self.error("--auxiliary_skip fades out over the epochs; take --epochs 2 or more")

    def _check_gradient(self):
        for name in ("hessian", "eps", "reuse_gradient"):
            if name in self.said and self.order == 1:
                quick = " (which --quick takes: say --order 2, too)" if self.quick else ""
                self.error(
                    f"--{name} belongs to the second order and does nothing at --order 1{quick}"
                )
        if "eps" in self.said and self.hessian in ("exact", "none"):
            self.error(f"--eps belongs to a difference; --hessian {self.hessian} takes none")
        twice = {"hessian exact": self.hessian == "exact", "eigenvalue": self.eigenvalue}
        twice["stop_eigenvalue"] = self.stop_eigenvalue
        for name, other in itertools.product(twice, ("compile", "checkpoint_cells")):
            if twice[name] and getattr(self, other):
                self.error(f"--{name} goes backward twice, which --{other} cannot")

    def _check_selection(self):
        others = set(self.primitives) - {"skip_connect", "none"}
        chooses = "skip_connect" in self.primitives and others
        by_alpha = self.select != "perturbation"
        obeyed = by_alpha or self.resume  # a search that goes on keeps the limit of its records
        if "max_skips" not in self.said and not (obeyed and chooses and self.stop_skips is None):
            self.max_skips = None  # the limit of --quick gives way
        if self.max_skips is not None and not chooses:
            self.error(
                "--max_skips chooses between skip_connect and other ops; --primitives lacks these"
            )
        if "max_skips" in self.said and not by_alpha:
            self.error(
                "--max_skips limits what is read from alpha, and --select perturbation reads the "
                "cell from elsewhere; choose one"
            )
        tuned = self.tune_epochs != self.default("tune_epochs")
        if tuned and self.select != "perturbation":
            self.error("--tune_epochs belongs to --select perturbation and does nothing without")

    def _check_stops(self):
        """Refuse a rule that could not end this search: the last epoch is no early stop."""
        if self.stop_skips is not None and "skip_connect" not in self.primitives:
            self.error("--stop_skips counts skip_connect, which --primitives lacks")
        edges = sum(min(self.k, node + 2) for node in range(self.n_nodes))
        most = edges if self.max_skips is None else min(edges, self.max_skips)
        if self.stop_skips is not None and self.stop_skips > most:
            self.error(
                f"--stop_skips {self.stop_skips}: the normal cell keeps "
                f"{plural(most, 'skip connection')} at most"
            )
        needed = {
            "stop_unchanged": self.stop_unchanged and self.stop_unchanged + 1,
            "stop_skips": self.stop_skips and 2,
            "stop_eigenvalue": self.stop_eigenvalue and 10,
        }
        moving = self.epochs - self.warmup
        for name, epochs in needed.items():
            if epochs and epochs >= moving:
                self.error(
                    f"--{name} asks after {epochs} epochs in which alpha moves at the earliest, "
                    f"and this search has {moving}; take more --epochs"
                )


class AugmentConfig(RunConfig):
    """Flags of augment.py."""

    ROOT, PROG = "augments", "augment.py"
    DESCRIPTION = "Train a found cell from scratch. Everything is recorded in augments/NAME."
    EXAMPLE = "python augment.py --genotype searchs/pets --quick"

    def add_groups(self, parser):
        """The flags that most need first, those for experts last."""
        add_run_group(parser, self.ROOT)
        add_data_group(parser, None, CUTOUT_HELP)
        add_augment_net_group(parser)
        add_train_group(parser)
        add_device_group(parser)
        add_processes_group(parser, "--lr")
        add_loss_group(parser)

    def check_together(self):
        super().check_together()
        if self.space and not gt.is_random(self.genotype):
            self.error("--space belongs to --genotype random and does nothing without")
        if not (self.genotype or self.init_from or self.resume):
            self.error(
                "--genotype is needed: a run folder such as searchs/digits, a JSON file, the text "
                f"Genotype(...), or one of {', '.join(gt.PUBLISHED)}"
            )


class CompareConfig(RunConfig):
    """Flags of compare.py."""

    ROOT, PROG = "compares", "compare.py"
    DESCRIPTION = (
        "Train cells alike and briefly, drop the weaker half, train the others longer, and say "
        "which to train. Everything is recorded in compares/NAME."
    )
    new_split = False  # other images are another comparison

    def add_groups(self, parser):
        add_candidates_group(parser)
        add_compare_run_group(parser, self.ROOT)
        add_data_group(parser, None, CUTOUT_HELP, cutout_quick=0)
        add_compare_train_group(parser)
        add_loss_group(parser)

    def check_together(self):
        if {"epochs", "budget"} <= self.said.keys():
            self.error("--budget chooses the epochs, and --epochs says them; give one of them")
        if len(self.candidates) + self.random < 1:
            self.error(
                "nothing to compare; name cells, such as searchs/digits or DARTS_V2, or take "
                "random ones with --random 4"
            )
        if self.primitives == ["auto"]:
            self.error("--primitives auto belongs to a search; name the ops of random cells")
        if self.k > self.n_nodes + 1:
            self.error(f"--k {self.k} is above the {self.n_nodes + 1} inputs of the last node")


class EvaluateConfig(Config):
    """Flags of evaluate.py."""

    PROG = "evaluate.py"
    DESCRIPTION = "Score a trained network on its test split: its last and its best epoch."

    def add_groups(self, parser):
        parser.add_argument("run", metavar="RUN", help="augments/NAME, or one of its .pt files")
        g = parser.add_argument_group("flags", "all others are those of the training")
        add_ops_flag(g, "that of the training")
        flag(g, "--data_path", help="where the images are now (default: where they were)")
        flag(g, "--batch_size", type=batch, default=96, help="the accuracy does not depend on it")
        flag(g, "--workers", type=processes, help=WORKERS_HELP)
        flag(g, "--cache_gb", type=non_negative, help=f"{CACHE_HELP} (default: as in training)")
        add_device_flags(g)


class PredictConfig(Config):
    """Flags of predict.py."""

    PROG = "predict.py"
    DESCRIPTION = (
        "Classify images with a trained network: one line of CSV for each, with the probability "
        "of every class."
    )

    def add_groups(self, parser):
        paths = parser.add_argument(
            "paths", metavar="PATH", nargs="+", help="an image, or a folder of images"
        )
        paths.any_name = True
        g = parser.add_argument_group("flags")
        flag(g, "--from", metavar="RUN", dest="run", required=True, help=RUN_HELP)
        add_ops_flag(g, "that of the training")
        add_out_flag(g, "file to write (default: the terminal)")
        flag(g, "--batch_size", type=count, default=96, help="images at once")
        flag(g, "--max_megapixels", type=positive, default=MAX_MEGAPIXELS, help=MEGAPIXELS_HELP)
        add_device_flags(g)


class ExportConfig(Config):
    """Flags of export.py."""

    PROG = "export.py"
    DESCRIPTION = (
        "Write a trained network for other programs, and check that the file computes the same."
    )

    def add_groups(self, parser):
        parser.add_argument("run", metavar="RUN", help=RUN_HELP)
        g = parser.add_argument_group("flags")
        add_ops_flag(g, "that of the training")
        flag(g, "--threads", type=threads, help="CPU threads of torch (default: all cores)")
        flag(g, "--format", choices=("onnx", "torchscript", "pt2"), default="onnx",
             help="pt2: torch.export")  # fmt: skip
        add_out_flag(g, "file to write (default: in the run's folder, NAME.onnx and so on)")
