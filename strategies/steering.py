"""The strategies of one search: one value that search.py asks at fixed points of its loop.

Without any flag every answer is that of Algorithm 1. docs/search-methods.md says in plain words
what each does and where it comes from.
"""

import torch

import genotypes as gt
from console.terminal import plural
from strategies import stopping
from strategies.eigenvalue import dominant_eigenvalue, fixed_batch

TRAVEL = 19_500 * 3e-4  # alpha steps of the paper's search times its alpha_lr
LOWEST, HIGHEST = 3e-4, 0.03  # of --alpha_lr auto: the paper's; more, and Adam's noise decides


def auto_alpha_lr(n_steps):
    """The alpha_lr with which `n_steps` of alpha carry an entry as far as in the paper.

    Adam moves an entry by about its learning rate a step.
    """
    return min(max(TRAVEL / max(n_steps, 1), LOWEST), HIGHEST)


class Strategies:
    """What a search does beside Algorithm 1, as its flags say.

    alpha_lr     step size of Adam
    alpha_steps  how many it takes in the whole search
    alpha_moves  whether alpha takes steps in this epoch; not while w warms up
    decay        lambda of beta-DARTS in this epoch
    """

    def __init__(self, cfg, n_steps):
        """cfg: a SearchConfig;  n_steps: of an epoch"""
        self.cfg = cfg
        self.alpha_epochs = cfg.epochs - cfg.warmup
        self.alpha_steps = self.alpha_epochs * n_steps
        auto = cfg.alpha_lr == "auto"
        self.alpha_lr = auto_alpha_lr(self.alpha_steps) if auto else cfg.alpha_lr * cfg.lr_factor
        self.alpha_moves, self.decay = True, 0.0
        self.wants_eigenvalue = cfg.eigenvalue or cfg.stop_eigenvalue
        self.history = []  # of the epochs in which alpha moved, as `stopping` takes it

    def before_epoch(self, epoch):
        """Set what changes from epoch to epoch; they count from 1."""
        done = epoch - 1 - self.cfg.warmup  # epochs in which alpha moved
        self.alpha_moves = done >= 0
        portion = done / (self.alpha_epochs - 1) if self.alpha_epochs > 1 else 1.0
        self.decay = self.cfg.beta_decay * max(portion, 0.0)

    @property
    def penalty(self):
        """What L_val gets beside the loss, a function of the alphas; None for nothing."""
        return self.beta_penalty if self.cfg.beta_decay else None

    def beta_penalty(self, alphas):
        """Scalar: lambda times the sum over all edges of logsumexp(alpha of the edge), beta-DARTS
        (arXiv 2203.01665). Its gradient is lambda * mix, so strong entries are pushed down most.

        alphas: tables (edges of a node, n_ops); vectors, the weights of edges, are passed over
        """
        tables = [alpha for alpha in alphas if alpha.dim() == 2]
        return self.decay * sum(torch.logsumexp(alpha, dim=-1).sum() for alpha in tables)

    def measure(self):
        """What the record of an epoch's validation holds beside the scores."""
        return {} if self.alpha_moves else {"warmup": True}

    def curvature(self, net, data, device, parts):
        """What the record of an epoch's alphas holds beside them: {"eigenvalue": float}, the
        dominant one of the Hessian of L_val in alpha, where it is wanted."""
        if not self.wants_eigenvalue:
            return {}
        X, y = device.put(fixed_batch(data.val, self.cfg.seed))
        return {"eigenvalue": dominant_eigenvalue(net, X, y, parts)}

    def after_epoch(self, run, record):
        """End the run if a rule says so. `record` is that of the epoch's alphas."""
        if not self.alpha_moves:
            return
        self.history.append({**run.last, "eigenvalue": record.get("eigenvalue", 0.0)})
        cfg, found = self.cfg, None
        if cfg.stop_skips is not None:
            found = stopping.skips(self.history, cfg.stop_skips)
        if cfg.stop_eigenvalue:
            found = found or stopping.eigenvalue(self.history)
        if cfg.stop_unchanged is not None:
            found = found or stopping.unchanged(self.history, cfg.stop_unchanged)
        if found is not None and run.last["epoch"] < cfg.epochs:
            run.stop(*found)

    def state_dict(self):
        return {"history": self.history}

    def load_state_dict(self, state):
        self.history = list(state["history"])

    def describe(self):
        """What differs from Algorithm 1, a line each, for log and page."""
        cfg, lines = self.cfg, []
        left_out = [name for name in gt.PRIMITIVES if name not in cfg.primitives]
        if left_out and set(cfg.primitives) < set(gt.PRIMITIVES):
            why = ", too wide for the maps of the last cells" if cfg.auto_primitives else ""
            lines.append(f"the ops are PRIMITIVES without {', '.join(left_out)}{why}")
        if cfg.alpha_lr == "auto":
            far = self.alpha_steps * self.alpha_lr
            how = "as far as" if far > 0.999 * TRAVEL else f"{far / TRAVEL:.1%} as far as"
            lines.append(
                f"--alpha_lr auto is {self.alpha_lr:.3g} here, with which alpha can move {how} "
                f"in the paper's {TRAVEL / LOWEST:,.0f} steps (bounds: {LOWEST:g} and {HIGHEST:g})"
            )
        if cfg.warmup:
            lines.append(f"warm-up: only w learns up to epoch {cfg.warmup}")
        if cfg.beta_decay:
            lines.append(f"beta decay: lambda grows from 0 to {cfg.beta_decay:g}")
        if cfg.partial_channels > 1:
            lines.append(
                f"partial channels: 1 of {cfg.partial_channels} goes through the ops, the others "
                f"pass beside them; every edge has a weight"
            )
        if cfg.auxiliary_skip:
            lines.append("auxiliary skip: one more on every edge, which fades out over the epochs")
        if cfg.max_skips is not None:
            # with the other selection where a search that had a limit is selected anew
            whose = " that alpha keeps" if cfg.select == "perturbation" else ""
            lines.append(
                f"at most {plural(cfg.max_skips, 'skip connection')} in the normal cell{whose}"
            )
        if self.wants_eigenvalue:
            lines.append("the dominant eigenvalue of the Hessian of L_val in alpha is recorded")
        early = "the search ends early"
        if cfg.stop_unchanged:
            epochs = plural(cfg.stop_unchanged, "epoch")
            lines.append(f"{early} when the cell has not changed for {epochs}")
        if cfg.stop_skips:
            skips = plural(cfg.stop_skips, "skip connection")
            lines.append(f"{early} before the normal cell has {skips}")
        if cfg.stop_eigenvalue:
            lines.append(f"{early} when the dominant eigenvalue has risen by a third")
        if cfg.select == "perturbation":
            lines.append("the cell is selected by perturbation, after the last epoch")
        return lines
