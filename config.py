"""The command lines of search.py and augment.py: argparse groups, SearchConfig, AugmentConfig.

Nothing on disk is touched here. Defaults are the paper's (arXiv 1806.09055, sec. 3.1 and App. A);
one that differs says so in its help text. The README has the table.
"""

import argparse
import math
import re

import genotypes as gt

# What --quick sets, unless given: about two minutes on two CPU cores, measured.
# One thread, since networks this small are no faster on two, and threads that wait for each other
# make them crawl where another program wants a core.
QUICK_SEARCH = {"layers": 4, "init_channels": 8, "batch_size": 32, "epochs": 12, "threads": 1}
QUICK_AUGMENT = {"layers": 5, "init_channels": 16, "batch_size": 64, "epochs": 20, "threads": 1}

# Of no consequence for the result: never taken from an earlier run, ...
OF_THE_CALL = ("name", "resume", "overwrite", "evaluate")
# ... and taken from it, but free to change when it is resumed or evaluated.
FREE = ("device", "gpus", "threads", "workers", "print_freq", "data_path", "quiet", "max_madds")


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
                   help="loader processes (default: 0 for digits, else one per core, 4 at most)")
    g.add_argument("--amp", choices=("off", "bf16"), default="off",
                   help="bf16: bfloat16 where it is tolerated; the finite difference of the search "
                        "stays in float32")
    g.add_argument("--tf32", action=argparse.BooleanOptionalAction, default=True,
                   help="allow TF32 on CUDA cards that have it; not for the finite difference")
    g.add_argument("--compile", action="store_true",
                   help="torch.compile each cell; takes minutes at the start")
    g.add_argument("--quiet", action="store_true",
                   help="say only warnings and the result; the log has the rest")
    g.add_argument("--print_freq", type=count, default=50,
                   help="steps between lines (without a terminal) or updates of the bar's means")


def add_data_group(parser, cutout_default, cutout_help):
    g = parser.add_argument_group("data")
    g.add_argument("--dataset", default="digits",
                   help="digits (bundled), mnist, fashionmnist or cifar10 (downloaded)")
    g.add_argument("--data_path", default="./data/", help="folder of downloaded data sets")
    g.add_argument("--cutout_length", type=count_or_zero, default=cutout_default, help=cutout_help)


def add_search_net_group(parser):
    g = parser.add_argument_group("supernet")
    g.add_argument("--init_channels", type=count, default=16, help="channels of the first cells")
    g.add_argument("--layers", type=count, default=8,
                   help="cells; the ones at 1/3 and 2/3 of the depth are reduction cells")
    g.add_argument("--n_nodes", type=count, default=4, help="computed nodes of a cell")
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
    g.add_argument("--val_portion", type=fraction, default=0.5,
                   help="share of the training images that only alpha learns from")


def add_evaluate_group(parser):
    g = parser.add_argument_group("evaluate", "instead of training")
    g.add_argument("--evaluate", metavar="RUN",
                   help="rebuild the network of augments/NAME (or of one of its .pt files) and "
                        "score it on the test split; no other flag is needed")


def add_augment_net_group(parser):
    g = parser.add_argument_group("network")
    g.add_argument("--genotype",
                   help="the cell: a run folder (searchs/NAME), a JSON file, a published name "
                        f"({', '.join(gt.PUBLISHED)}) or the text Genotype(...)")
    g.add_argument("--init_channels", type=count, default=36, help="channels of the first cells")
    g.add_argument("--layers", type=count, default=20,
                   help="cells; the ones at 1/3 and 2/3 of the depth are reduction cells")
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
        self.exit(2, f"{self.prog}: {message} (--help lists all flags)\n")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Appends the default where there is one number or word to say."""

    def _get_help_string(self, action):
        if action.default is None or isinstance(action.default, (bool, list)):
            return action.help
        return super()._get_help_string(action)


# --- the two configurations ---------------------------------------------------------------------


class Config(argparse.Namespace):
    """All flags of a run as attributes. Parses `argv` (None: sys.argv) and creates nothing.

    `saved` holds flags of an earlier run, for --resume and --evaluate: they take the place of the
    defaults, and a flag that contradicts them is refused.
    """

    ROOT = PROG = DESCRIPTION = None
    QUICK = {}

    def __init__(self, argv=None, saved=None):
        super().__init__()
        parser = Parser(
            self.PROG, description=self.DESCRIPTION, formatter_class=HelpFormatter,
            allow_abbrev=False,
        )  # fmt: skip
        self.add_groups(parser)
        if saved is not None:
            saved = {key: value for key, value in saved.items() if key not in OF_THE_CALL}
            parser.set_defaults(**saved)
        elif parser.parse_args(argv).quick:
            parser.set_defaults(**self.QUICK)
        parser.parse_args(argv, namespace=self)
        if saved is not None:
            for key, value in saved.items():
                if key not in FREE and getattr(self, key) != value:
                    parser.error(f"--{key} was {value} in that run and cannot change now")
        self.check(parser)

    def add_groups(self, parser):
        raise NotImplementedError

    def check(self, parser):
        """Refuse combinations of flags that make no sense."""
        if self.resume and not self.name:
            parser.error(f"--resume needs --name, the folder in {self.ROOT} to go on with")
        if self.resume and self.overwrite:
            parser.error("--resume keeps the earlier run and --overwrite deletes it; choose one")

    def flags(self):
        """All flags as a dict of JSON values."""
        return dict(vars(self))


class SearchConfig(Config):
    """Flags of search.py."""

    ROOT, PROG, QUICK = "searchs", "search.py", QUICK_SEARCH
    DESCRIPTION = "Search a cell with DARTS. Everything is recorded in searchs/NAME."

    def add_groups(self, parser):
        add_run_group(parser, self.ROOT)
        add_data_group(parser, 0, "side in pixels of the square that cutout blanks; 0: none")
        add_search_net_group(parser)
        add_weight_group(parser)
        add_alpha_group(parser)

    def check(self, parser):
        super().check(parser)
        if self.w_lr_min > self.w_lr:
            parser.error(f"--w_lr_min {self.w_lr_min} is above --w_lr {self.w_lr}")


class AugmentConfig(Config):
    """Flags of augment.py."""

    ROOT, PROG, QUICK = "augments", "augment.py", QUICK_AUGMENT
    DESCRIPTION = "Train a found cell from scratch, or evaluate a trained one."

    def add_groups(self, parser):
        add_run_group(parser, self.ROOT)
        add_evaluate_group(parser)
        add_data_group(
            parser, None,
            "side in pixels of the square that cutout blanks, 0: none (default: half the image, "
            "the paper's 16 at 32 pixels)",
        )  # fmt: skip
        add_augment_net_group(parser)
        add_train_group(parser)

    def check(self, parser):
        super().check(parser)
        if self.evaluate:
            allowed = ("evaluate", "batch_size", *FREE)
            for key, value in self.flags().items():
                if key not in allowed and value != parser.get_default(key):
                    parser.error(f"--evaluate trains nothing and does not take --{key}")
        if not (self.genotype or self.evaluate or self.resume):
            parser.error(
                "--genotype is needed: a run folder such as searchs/digits, a JSON file, the text "
                f"Genotype(...), or one of {', '.join(gt.PUBLISHED)}"
            )
