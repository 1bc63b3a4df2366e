"""The command lines of search.py and augment.py: argparse groups, SearchConfig, AugmentConfig.

Nothing on disk is touched here. Defaults are the paper's (arXiv 1806.09055, sec. 3.1 and App. A);
one that differs says so in its help text. The README has the table.
"""

import argparse
import difflib
import math
import os
import re

import genotypes as gt

# What --quick sets, unless given: about two minutes on two CPU cores, measured.
# One thread, since networks this small are no faster on two, and threads that wait for each other
# make them crawl where another program wants a core.
QUICK_SEARCH = {"layers": 4, "init_channels": 8, "batch_size": 32, "epochs": 12, "threads": 1}
QUICK_AUGMENT = {"layers": 5, "init_channels": 16, "batch_size": 64, "epochs": 20, "threads": 1}

# Of no consequence for the result: never taken from an earlier run, ...
OF_THE_CALL = ("name", "resume", "overwrite", "evaluate", "predict", "export", "trained", "out")
# ... and taken from it, but free to change when it is resumed or evaluated.
FREE = (
    "device", "gpus", "threads", "workers", "layout", "cuda_graphs", "print_freq", "data_path",
    "cache_gb", "quiet", "max_madds",
)  # fmt: skip


# Names that --dataset knows (data_sets.py has them all); a folder of images is named by its path.
DATA_SETS = (
    "digits", "mnist", "fashionmnist", "cifar10", "cifar100", "svhn", "kmnist", "emnist",
    "folder", "imagenet",
)  # fmt: skip
# What can be done with a trained network, and the flags that have a part in it.
USES = {
    "evaluate": ("batch_size", *FREE),
    "predict": ("trained", "out", "batch_size", "device", "gpus", "threads"),
    "export": ("trained", "out"),
}
# What a search says of its images, but each training decides for itself.
OF_THE_TRAINING = ("cutout_length", "subset")


# --- types of flags: each says what is allowed --------------------------------------------------


def number(text, kind, allowed, test):
    """Parse one number or raise the error that argparse prints."""
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and test(value)):
        raise argparse.ArgumentTypeError(f"{text!r} is not {allowed}")
    return value


def positive(text):
    return number(text, float, "a number above 0", lambda x: x > 0)


def non_negative(text):
    return number(text, float, "a number of 0 or more", lambda x: x >= 0)


def fraction(text):
    return number(text, float, "a number between 0 and 1, both excluded", lambda x: 0 < x < 1)


def probability(text):
    return number(text, float, "a number from 0 up to, not including, 1", lambda x: 0 <= x < 1)


def share(text):
    return number(text, float, "a number above 0, 1 at most", lambda x: 0 < x <= 1)


def count(text):
    return number(text, int, "a whole number of 1 or more", lambda x: x >= 1)


def batch(text):
    # BatchNorm needs a second value where a map is down to one pixel
    return number(text, int, "a whole number of 2 or more", lambda x: x >= 2)


def count_or_zero(text):
    return number(text, int, "a whole number of 0 or more", lambda x: x >= 0)


def folder_name(text):
    """A run's name: one folder, no path."""
    if not re.fullmatch(r"\w[\w.+=-]*", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no folder name; use letters, digits and . _ + = -, "
            "with a letter or digit first"
        )
    return text


def primitives(text):
    """A preset's name, or op names separated by commas; OPS is asked when the supernet is built."""
    if text in gt.PRESETS:
        return list(gt.PRESETS[text])
    names = [name.strip() for name in text.split(",")]
    if "" in names:
        raise argparse.ArgumentTypeError(f"{text!r} holds an empty name")
    return names


# fmt: off
# --- groups -------------------------------------------------------------------------------------


def add_run_group(parser, root):
    g = parser.add_argument_group("run", "where it is recorded and on what it runs")
    g.add_argument("--name", type=folder_name,
                   help=f"folder of the run, {root}/NAME (default: its subject, numbered)")
    g.add_argument("--quick", action="store_true",
                   help="a small setting that ends within minutes on a laptop: sets --layers, "
                        "--init_channels, --batch_size, --epochs and --threads unless given")
    g.add_argument("--resume", action="store_true",
                   help="go on with --name after its last finished epoch; flags are remembered")
    g.add_argument("--overwrite", action="store_true", help="delete an earlier run of this name")
    g.add_argument("--seed", type=count_or_zero, default=2, help="of weights, split and batches")
    g.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto",
                   help="auto: CUDA, else MPS, else CPU")
    g.add_argument("--gpus", metavar="N",
                   help="CUDA card to use, counted from 0 (default: the first)")
    g.add_argument("--threads", type=count,
                   help="CPU threads of torch (default: its own choice, all cores); on a shared "
                        "machine fewer can be much faster")
    g.add_argument("--workers", type=count_or_zero,
                   help="loader processes (default: 0 for images in memory, else one per core, at "
                        "most 4)")
    g.add_argument("--amp", choices=("off", "bf16"), default="off",
                   help="bf16: bfloat16 where it is tolerated; the finite difference of the search "
                        "stays in float32")
    g.add_argument("--tf32", action=argparse.BooleanOptionalAction, default=True,
                   help="allow TF32 on CUDA cards that have it; not for the finite difference")
    g.add_argument("--layout", choices=("auto", "channels_last", "contiguous"), default="auto",
                   help="memory layout of maps; auto: channels_last on a CPU, on a CUDA card "
                        "whichever is faster in a short trial")
    g.add_argument("--cuda_graphs", action="store_true",
                   help="record a step as one CUDA graph per epoch; for small maps on fast cards")
    g.add_argument("--compile", action="store_true",
                   help="torch.compile each cell; takes minutes at the start, and in a search "
                        "gradients of w are then computed in the passes for alpha alone, too")
    g.add_argument("--quiet", action="store_true",
                   help="say only warnings and the result; the log has the rest")
    g.add_argument("--print_freq", type=count, default=50,
                   help="steps between lines (without a terminal) or updates of the bar's means")


def add_data_group(parser, cutout_default, cutout_help):
    g = parser.add_argument_group("data", "a data set by name, or a folder of your own images")
    g.add_argument("--dataset", default="digits",
                   help="digits (bundled); mnist, fashionmnist, cifar10, cifar100, svhn, kmnist or "
                        "emnist (downloaded); a folder that holds train/CLASS/IMAGES, and val/ or "
                        "test/ if you have them; or imagenet, such a folder in --data_path at "
                        "224x224")
    g.add_argument("--data_path", default="./data/",
                   help="folder of downloaded data sets; of the images for --dataset folder")
    g.add_argument("--in_channels", type=int, choices=(1, 3),
                   help="1: grey, 3: colour (default: what the images are)")
    g.add_argument("--input_size", type=count, nargs="+", metavar=("H", "W"),
                   help="scale and cut images to H x W pixels; one number: a square (default: as "
                        "they are; of several sizes the median, the shorter side 224 at most)")
    g.add_argument("--test_portion", type=fraction, default=0.2,
                   help="share of every class that is held out of a folder without val/ and test/; "
                        "the same images whatever --seed is")
    g.add_argument("--bad_images", choices=("fail", "skip"), default="fail",
                   help="what to do about files that cannot be read; both list them")
    g.add_argument("--subset", type=share, default=1.0,
                   help="share of the training images of every class to use")
    g.add_argument("--augment", default="auto",
                   choices=("auto", "none", "light", "cifar", "digits", "trivial"),
                   help="random changes of training images; digits is for whatever must not be "
                        "mirrored, auto chooses by data set (a folder: cifar)")
    g.add_argument("--hflip", action=argparse.BooleanOptionalAction, default=None,
                   help="mirror training images left to right, or not (default: as --augment does)")
    g.add_argument("--cutout_length", type=count_or_zero, default=cutout_default, help=cutout_help)
    g.add_argument("--cache_gb", type=non_negative, default=2.0,
                   help="keep decoded images of a folder in memory up to this many GB")


def add_loss_group(parser):
    g = parser.add_argument_group("loss", "cross-entropy of training; scores use the plain one")
    g.add_argument("--label_smoothing", type=probability, default=0.0,
                   help="share of the target that is spread over all classes")
    g.add_argument("--class_weights", choices=("none", "balanced"), default="none",
                   help="balanced: rare classes weigh more, in inverse proportion to their images")


def add_stem_flag(g):
    g.add_argument("--stem", choices=("auto", "cifar", "imagenet"), default="auto",
                   help="cifar: the first cell sees every pixel; imagenet: it sees maps of an "
                        "eighth of the size; auto: imagenet where the shorter side has 96 or more")


def add_search_net_group(parser):
    g = parser.add_argument_group("supernet")
    g.add_argument("--init_channels", type=count, default=16, help="channels of the first cells")
    g.add_argument("--layers", type=count, default=8,
                   help="cells; the ones at 1/3 and 2/3 of the depth are reduction cells")
    g.add_argument("--n_nodes", type=count, default=4, help="computed nodes of a cell")
    add_stem_flag(g)
    g.add_argument("--k", type=count, default=2,
                   help="edges that a node of the found cell keeps (all, where it has fewer)")
    g.add_argument("--stem_multiplier", type=count, default=3,
                   help="channels of the stem, in multiples of --init_channels")
    g.add_argument("--max_madds", type=positive, metavar="M",
                   help="warn when the found network needs more than M million multiply-adds")
    g.add_argument("--checkpoint_cells", action="store_true",
                   help="compute each cell twice to need less memory")
    g.add_argument("--primitives", type=primitives, default=list(gt.PRIMITIVES), metavar="LIST",
                   help="candidate ops, separated by commas, or a preset: "
                        f"{', '.join(gt.PRESETS)} (default: PRIMITIVES of genotypes.py)")


def add_weight_group(parser):
    """The inner problem: SGD on w (App. A.1)."""
    g = parser.add_argument_group("w", "network weights: SGD, cosine learning rate")
    g.add_argument("--epochs", type=count, default=50, help="passes over the weights' half")
    g.add_argument("--batch_size", type=batch, default=64,
                   help="images of one step, from each half; scale --w_lr in proportion")
    g.add_argument("--w_lr", type=positive, default=0.025, help="learning rate of the first epoch")
    g.add_argument("--w_lr_min", type=non_negative, default=0.0,
                   help="where the cosine ends (the official code ends at 0.001)")
    g.add_argument("--w_momentum", type=probability, default=0.9, help="of SGD")
    g.add_argument("--w_weight_decay", type=non_negative, default=3e-4, help="L2 term of SGD")
    g.add_argument("--w_grad_clip", type=positive, default=5.0,
                   help="largest norm of the gradient of w; alpha is never clipped")


def add_alpha_group(parser):
    """The outer problem: Adam on alpha (sec. 2.3; values of App. A.1)."""
    g = parser.add_argument_group("alpha", "architecture parameters, one update per update of w")
    g.add_argument("--alpha_lr", type=positive, default=3e-4, help="step size of Adam, constant")
    g.add_argument("--alpha_weight_decay", type=non_negative, default=1e-3,
                   help="L2 term inside Adam (not decoupled)")
    g.add_argument("--order", type=int, choices=(1, 2), default=2,
                   help="2: xi is the current learning rate of w; 1: xi = 0, no unrolled step, "
                        "less than half the time and less memory")
    g.add_argument("--hessian", choices=("difference", "forward", "exact", "none"),
                   default="difference",
                   help="the second-order term of --order 2: central difference (the paper's), "
                        "one-sided difference (a pass less), exact (several times the time and "
                        "memory) or none (w' alone: two passes less); docs/gradient.md compares "
                        "them")
    g.add_argument("--eps", type=positive, default=0.3,
                   help="of the difference: how far it moves w. The paper's 0.01 drowns the term "
                        "in the jumps of ReLU and max pooling (docs/gradient.md)")
    g.add_argument("--reuse_gradient", action=argparse.BooleanOptionalAction, default=True,
                   help="the step of w takes the gradient that the virtual step of --order 2 has "
                        "computed, before alpha's step (the paper: computes it again, behind it)")
    g.add_argument("--val_portion", type=fraction, default=0.5,
                   help="share of the training images that only alpha learns from")


def add_use_group(parser):
    g = parser.add_argument_group(
        "use", "instead of training: what a trained network can do. RUN is augments/NAME (its last "
               "epoch) or one of its .pt files")
    g.add_argument("--evaluate", metavar="RUN",
                   help="score RUN on the test split, its last and its best epoch; no other flag "
                        "is needed")
    g.add_argument("--predict", metavar="PATH",
                   help="classify an image, or all images of a folder, with --from RUN: a line of "
                        "CSV for each, to the terminal or to --out")
    g.add_argument("--export", choices=("onnx", "torchscript", "pt2"), metavar="FORMAT",
                   help="write the network of --from RUN to --out as onnx, torchscript or pt2 "
                        "(torch.export), and check the file against the network")
    g.add_argument("--from", metavar="RUN", dest="trained", help="for --predict and --export")
    g.add_argument("--out", metavar="FILE", help="for --predict and --export")


def add_augment_net_group(parser):
    g = parser.add_argument_group("network")
    g.add_argument("--genotype",
                   help="the cell: a run folder (searchs/NAME), a JSON file, a published name "
                        f"({', '.join(gt.PUBLISHED)}) or the text Genotype(...). The data flags "
                        "of a search are taken over unless given here")
    g.add_argument("--init_from", metavar="RUN",
                   help="start from the weights of augments/NAME (or of one of its .pt files), "
                        "wherever name and shape agree. --genotype, the flags of the network and "
                        "of the data are those of that run unless given here")
    g.add_argument("--init_channels", type=count, default=36, help="channels of the first cells")
    g.add_argument("--layers", type=count, default=20,
                   help="cells; the ones at 1/3 and 2/3 of the depth are reduction cells")
    add_stem_flag(g)
    g.add_argument("--stem_multiplier", type=count, default=3,
                   help="channels of the stem, in multiples of --init_channels")
    g.add_argument("--aux_weight", type=non_negative, default=0.4,
                   help="weight of the auxiliary head's loss; 0 builds none")
    g.add_argument("--drop_path_prob", type=probability, default=0.2,
                   help="drop path of the end; grows from 0 in proportion to the epoch")


def add_train_group(parser):
    """Training from scratch (App. A.2)."""
    g = parser.add_argument_group("training", "SGD, cosine learning rate down to 0")
    g.add_argument("--epochs", type=count, default=600, help="passes over the training set")
    g.add_argument("--batch_size", type=batch, default=96,
                   help="images of one step; scale --lr in proportion")
    g.add_argument("--lr", type=positive, default=0.025, help="learning rate of the first epoch")
    g.add_argument("--momentum", type=probability, default=0.9, help="of SGD")
    g.add_argument("--weight_decay", type=non_negative, default=3e-4, help="L2 term of SGD")
    g.add_argument("--grad_clip", type=positive, default=5.0, help="largest norm of the gradient")


# fmt: on
class Parser(argparse.ArgumentParser):
    """Says what was wrong in one line, without the page of usage before it."""

    def error(self, message):
        if message.startswith("unrecognized arguments: --"):
            word = message.split()[2].split("=")[0].replace("-", "_")
            known = {f.replace("-", "_"): f for a in self._actions for f in a.option_strings}
            near = difflib.get_close_matches(word, known, 1)
            message += f"; did you mean {known[near[0]]}?" if near else ""
        self.exit(2, f"{self.prog}: {message} (--help lists all flags)\n")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Appends the default where there is one number or word to say."""

    def _get_help_string(self, action):
        if action.default is None or isinstance(action.default, (bool, list)):
            return action.help
        return super()._get_help_string(action)


def flags_of(add_groups, flags):
    """Those of `flags` that the groups hold."""
    parser = Parser(add_help=False)
    for add_group in add_groups:
        add_group(parser)
    return {key: flags[key] for key in vars(parser.parse_args([])) if key in flags}


def data_flags(flags):
    """Those of `flags` that say what the images are and how they are learned from: what a training
    takes over from its search."""
    groups = [lambda parser: add_data_group(parser, None, ""), add_loss_group, add_stem_flag]
    found = flags_of(groups, flags)
    return {key: value for key, value in found.items() if key not in OF_THE_TRAINING}


def shape_flags(flags):
    """Those of `flags` that say which final network it is."""
    found = flags_of([add_augment_net_group], flags)
    return {k: v for k, v in found.items() if k not in ("init_from", "drop_path_prob")}


# --- the two configurations ---------------------------------------------------------------------


class Config(argparse.Namespace):
    """All flags of a run as attributes. Parses `argv` (None: sys.argv) and creates nothing.

    `saved` holds flags of an earlier run, for --resume and --evaluate: they take the place of the
    defaults, and a flag that contradicts them is refused. `taken` holds flags of another run, for
    --genotype and --init_from: they take the place of the defaults and may be contradicted.
    """

    ROOT = PROG = DESCRIPTION = None
    QUICK = {}

    def __init__(self, argv=None, saved=None, taken=None):
        super().__init__()
        parser = Parser(
            self.PROG, description=self.DESCRIPTION, formatter_class=HelpFormatter,
            allow_abbrev=False,
        )  # fmt: skip
        self.add_groups(parser)
        self._argv = argv
        if saved is not None:
            saved = {key: value for key, value in saved.items() if key not in OF_THE_CALL}
            parser.set_defaults(**saved)
        elif parser.parse_args(argv).quick:
            parser.set_defaults(**self.QUICK)
        parser.set_defaults(**taken or {})
        parser.parse_args(argv, namespace=self)
        self.normalise(parser)
        if saved is not None:
            for key, value in saved.items():
                if key not in FREE and getattr(self, key) != value:
                    parser.error(f"--{key} was {value} in that run and cannot change now")
        self.check(parser)

    def add_groups(self, parser):
        raise NotImplementedError

    def normalise(self, parser):
        """One form for what can be said in several, so that a later run can compare."""
        if self.input_size is not None:
            if len(self.input_size) > 2:
                parser.error(f"--input_size takes H and W, not {len(self.input_size)} numbers")
            self.input_size = [self.input_size[0], self.input_size[-1]]
        if self.dataset not in DATA_SETS and os.path.isdir(self.dataset):
            # as a path it may differ when the run goes on: images can be moved
            if self.data_path not in (parser.get_default("data_path"), self.dataset):
                parser.error(
                    f"--dataset {self.dataset} is a folder and --data_path "
                    f"{self.data_path} another; give one of them"
                )
            self.dataset, self.data_path = "folder", self.dataset
        if self.dataset in ("folder", "imagenet"):  # a later run may start from another folder
            self.data_path = os.path.abspath(self.data_path)

    def check(self, parser):
        """Refuse combinations of flags that make no sense."""
        if self.resume and not self.name:
            parser.error(f"--resume needs --name, the folder in {self.ROOT} to go on with")
        if self.resume and self.overwrite:
            parser.error("--resume keeps the earlier run and --overwrite deletes it; choose one")

    def flags(self):
        """All flags as a dict of JSON values."""
        return {key: value for key, value in vars(self).items() if key != "_argv"}

    def given(self):
        """Names of the flags that stand on the command line, whatever their values."""
        parser, unsaid = Parser(self.PROG, allow_abbrev=False), object()
        self.add_groups(parser)
        parser.set_defaults(**dict.fromkeys(self.flags(), unsaid))
        parsed = vars(parser.parse_args(self._argv))
        return {key for key, value in parsed.items() if value is not unsaid}


class SearchConfig(Config):
    """Flags of search.py."""

    ROOT, PROG, QUICK = "searchs", "search.py", QUICK_SEARCH
    DESCRIPTION = "Search a cell with DARTS. Everything is recorded in searchs/NAME."

    def add_groups(self, parser):
        add_run_group(parser, self.ROOT)
        add_data_group(parser, 0, "side in pixels of the square that cutout blanks; 0: none")
        add_search_net_group(parser)
        add_weight_group(parser)
        add_loss_group(parser)
        add_alpha_group(parser)

    def check(self, parser):
        super().check(parser)
        if self.w_lr_min > self.w_lr:
            parser.error(f"--w_lr_min {self.w_lr_min} is above --w_lr {self.w_lr}")
        if self.k > self.n_nodes + 1:
            parser.error(
                f"--k {self.k}: with --n_nodes {self.n_nodes} no node has more than "
                f"{self.n_nodes + 1} inputs to keep; lower --k"
            )
        said = self.given()
        for flag in ("hessian", "eps", "reuse_gradient"):
            if flag in said and self.order == 1:
                parser.error(f"--{flag} belongs to the second order and does nothing at --order 1")
        if "eps" in said and self.hessian in ("exact", "none"):
            parser.error(f"--eps belongs to a difference; --hessian {self.hessian} takes none")
        for flag in ("compile", "checkpoint_cells"):
            if self.hessian == "exact" and getattr(self, flag):
                parser.error(f"--hessian exact goes backward twice, which --{flag} cannot")


class AugmentConfig(Config):
    """Flags of augment.py."""

    ROOT, PROG, QUICK = "augments", "augment.py", QUICK_AUGMENT
    DESCRIPTION = "Train a found cell from scratch, or use a trained one."

    def add_groups(self, parser):
        add_run_group(parser, self.ROOT)
        add_use_group(parser)
        add_data_group(
            parser, None,
            "side in pixels of the square that cutout blanks, 0: none (default: half the image, "
            "the paper's 16 at 32 pixels; from 96 pixels on none, as in the official code)",
        )  # fmt: skip
        add_augment_net_group(parser)
        add_train_group(parser)
        add_loss_group(parser)

    def check(self, parser):
        super().check(parser)
        uses = [flag for flag in USES if getattr(self, flag)]
        if len(uses) > 1:
            parser.error(f"--{uses[0]} and --{uses[1]} are two things; one at a time")
        if uses:
            (use,) = uses
            for key, value in self.flags().items():
                if key not in (use, *USES[use]) and value != parser.get_default(key):
                    flag = "from" if key == "trained" else key
                    parser.error(f"--{use} trains nothing and does not take --{flag}")
            if use != "evaluate" and not self.trained:
                parser.error(f"--{use} needs --from, the trained network: augments/NAME")
            if use == "export" and not self.out:
                parser.error("--export needs --out, the file to write")
        elif self.trained or self.out:
            parser.error("--from and --out belong to --predict and --export")
        if not (self.genotype or self.init_from or uses or self.resume):
            parser.error(
                "--genotype is needed: a run folder such as searchs/digits, a JSON file, the text "
                f"Genotype(...), or one of {', '.join(gt.PUBLISHED)}"
            )
