"""The gradient of alpha: the outer half of the bilevel problem (sec. 2.3 of arXiv 1806.09055).

    min over alpha   L_val(w*(alpha), alpha)      with  w*(alpha) = argmin over w  L_train(w, alpha)

w* is approximated by one virtual SGD step, w' = w - xi * dL_train/dw (Eq. 6). The chain rule gives
(Eq. 7)

    dL_val(w', alpha)/dalpha  -  xi * d2L_train(w, alpha)/(dalpha dw) * dL_val(w', alpha)/dw'

and the matrix-vector product is a central difference of two first derivatives (Eq. 8)

    ( dL_train(w+, alpha)/dalpha - dL_train(w-, alpha)/dalpha ) / (2 * eps),
    w+- = w +- eps * dL_val/dw',     eps = 0.01 / ||dL_val/dw'||_2.

HESSIANS lists the other ways to get the product; docs/gradient.md has the error and cost of each.

The toy problem of the paper (fig. 2): L_train = w^2 - 2*alpha*w + alpha^2,
L_val = alpha*w - 2*alpha + 1. At alpha = w = 2 the virtual step stays at w' = 2, the first term
is w' - 2 = 0, and the second is 2 * xi * alpha: the gradient is 2.0 for xi = 0.5, where first
order (xi = 0) gives 0. `tests/test_architect.py` runs it.
"""

from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch.nn.utils import get_total_norm

from devices.parts import WHOLE

# How the matrix-vector product of Eq. 7 is computed
HESSIANS = {
    "difference": "central difference, Eq. 8: two passes more",
    "forward": "one-sided difference from w, where alpha's gradient is known: one pass more",
    "exact": "double backward: no eps, several times the time and memory of a pass",
    "none": "left out (lookahead): no pass more",
}


class TrainingPass(NamedTuple):
    """What the pass over the training batch at (w, alpha) found."""

    loss: torch.Tensor
    logits: torch.Tensor
    dw: list  # dL_train/dw, one per weight; None for a weight that the loss does not reach
    dalpha: list  # dL_train/dalpha for hessian="forward", else empty
    statistics: list  # all buffers after the pass, for reuse_gradient, else empty
    random: Any  # the random generators before the pass


class Architect:
    """Fills alpha.grad. Works in place on the network: no second copy is ever made.

    `net` is a module with net(X) -> logits, criterion(logits, y) -> scalar loss, alphas() and
    weights(), as SearchCNNController.
    """

    def __init__(
        self, net, hessian="difference", eps=0.3, reuse_gradient=False, penalty=None, parts=WHOLE
    ):
        """
        hessian          a key of HESSIANS
        eps              numerator of eps in Eq. 8 (the paper's: 0.01, a footnote of sec. 2.3)
        reuse_gradient   the step of w takes dL_train/dw of the virtual step, computed before
                         alpha's step, and saves a pass: both steps read the same (w, alpha)
        penalty          a term of L_val in alpha alone: penalty(alphas) -> scalar
        parts            a devices.parts.Parts: how each pass over a batch is divided. Each gradient
                         below is that of the whole batch, the same in all processes
        """
        if hessian not in HESSIANS:
            raise ValueError(f"hessian {hessian!r} is none of {', '.join(HESSIANS)}")
        self.net = net
        self.hessian = hessian
        self.eps = eps
        self.reuse_gradient = reuse_gradient
        self.penalty = penalty
        self.parts = parts
        self.alphas = list(net.alphas())
        # frozen weights take no step, virtual or real
        self.weights = [w for w in net.weights() if w.requires_grad]
        if not self.weights:
            raise ValueError("every weight of the network is frozen; nothing can be learned")
        self.draws = False  # whether a pass was seen to draw random numbers

    def unrolled_backward(self, trn_X, trn_y, val_X, val_y, xi, w_optim):
        """Write the gradient of L_val(w - xi * dL_train/dw, alpha) into alpha.grad (Eq. 6-8).

        trn_X, val_X  (N, C_in, H, W);  trn_y, val_y  (N,): the share of this process
        xi            virtual learning rate; 0 gives first order, the gradient of L_val at w, with
                      one forward and backward pass
        w_optim       the SGD of w, whose step the virtual one repeats; w is never stepped here

        Weights, their gradients and all buffers (BatchNorm statistics) are afterwards what they
        were, bit for bit, also when an exception passes through. Returns None.

        With reuse_gradient and xi > 0 it is also the pass of the step of w: it leaves dL_train/dw
        at (w, alpha) in the .grad of the weights and BatchNorm moved by that one pass, and returns
        its (loss, logits). An exception still leaves everything as it was.
        """
        reuse = self.reuse_gradient and xi != 0
        # only the pass of the real w step may move BatchNorm statistics
        with _kept(list(self.net.buffers())) as statistics:
            if xi == 0:
                dalpha = self._grad(val_X, val_y, self.alphas)
            else:
                first = self.training_pass(trn_X, trn_y)
                dalpha, dw = self.lookahead(first, val_X, val_y, xi, w_optim)
                if self.hessian != "none":
                    hessian = self.compute_hessian(dw, first, trn_X, trn_y)
                    torch._foreach_add_(dalpha, hessian, alpha=-xi)  # Eq. 7
            if reuse:
                _copy(statistics, first.statistics)  # what is put back
        if self.penalty is not None:  # in alpha alone, so no virtual step and no w' change it
            penalty = self.penalty(self.alphas)
            grads = torch.autograd.grad(penalty, self.alphas, materialize_grads=True)
            torch._foreach_add_(dalpha, list(grads))
        for alpha, grad in zip(self.alphas, dalpha, strict=True):
            alpha.grad = grad
        if not reuse:
            return None
        for w, grad in zip(self.weights, first.dw, strict=True):
            # a copy in w's layout: autograd may give one tensor to two weights, and w.grad is
            # clipped in place
            w.grad = None if grad is None else torch.empty_like(w).copy_(grad)
        return first.loss, first.logits

    def training_pass(self, X, y):
        """The pass over the training batch X (N, C_in, H, W), y (N,) at (w, alpha)."""
        forward = self.hessian == "forward"
        random = [] if self.hessian == "none" else self._random_states()
        # a one-sided difference is taken from this pass: as exact as the other side must be
        with self._full_precision() if forward else nullcontext():
            inputs = self.weights + self.alphas if forward else self.weights
            loss, logits, grads = self.parts.gradient(self._compute, X, y, inputs)
        n = len(self.weights)
        pairs = zip(self.alphas, grads[n:], strict=True) if forward else ()
        dalpha = [torch.zeros_like(a) if g is None else g for a, g in pairs]
        statistics = [b.clone() for b in self.net.buffers()] if self.reuse_gradient else []
        return TrainingPass(loss, logits, grads[:n], dalpha, statistics, random)

    def lookahead(self, first, val_X, val_y, xi, w_optim):
        """dL_val/dalpha and dL_val/dw at (w', alpha), w' from the gradient of `first`, a
        `TrainingPass`; dw is empty where nothing needs it. Weights are restored."""
        inputs = self.alphas if self.hessian == "none" else self.alphas + self.weights
        with _kept(self.weights):
            self.virtual_step(first.dw, xi, w_optim)  # w is w' from here
            grads = self._grad(val_X, val_y, inputs)
        return grads[: len(self.alphas)], grads[len(self.alphas) :]

    @torch.no_grad()
    def virtual_step(self, dw, xi, w_optim):
        """Turn w into w' as one step of SGD with gradient `dw` and learning rate xi would (Eq. 6),
        in place. The caller restores w.

        SGD adds weight decay to the gradient, then momentum: w' = w - xi * (m * v + dw + wd * w),
        v the momentum buffer. It passes over weights without gradient. Momentum and weight decay
        are those of `w_optim`; raises ValueError for more than these two.
        """
        (group,) = w_optim.param_groups
        if group["nesterov"] or group["dampening"] or group["maximize"]:
            raise ValueError("the virtual step knows SGD with momentum and weight decay alone")
        steps = [(w, g) for w, g in zip(self.weights, dw, strict=True) if g is not None]
        weights = [w for w, _ in steps]
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - xi * group["weight_decay"])
        # before its first step SGD has no buffer, and its first step has no momentum; get,
        # since the state is a defaultdict and indexing would write into it
        velocity = [(w, w_optim.state.get(w, {}).get("momentum_buffer")) for w in weights]
        velocity = [(w, v) for w, v in velocity if v is not None]
        for pairs, factor in ((velocity, group["momentum"]), (steps, 1)):
            if pairs and factor:
                torch._foreach_add_(*map(list, zip(*pairs, strict=True)), alpha=-xi * factor)

    def compute_hessian(self, dw, first, trn_X, trn_y):
        """d2L_train/(dalpha dw) * dw (Eq. 7), one tensor per alpha, as `hessian` says.

        dw     a direction, one tensor per weight; zero gives zero
        first  the `TrainingPass` of trn_X, trn_y

        BatchNorm statistics move, weights do not. All passes draw the random numbers that `first`
        drew: two dropout masks differ by far more than w+ and w-, and eps would divide that.
        """
        compute = self._exact if self.hessian == "exact" else self._difference
        with self._full_precision(), self._draws_of(first.random):
            return compute(dw, first, trn_X, trn_y)

    def _difference(self, dw, first, trn_X, trn_y):
        """By central difference (Eq. 8), or one-sided where `first` has the gradient of alpha.

        Where the loss is smooth the error of the central one falls with eps^2; where ReLU or max
        pooling changes sides between w+ and w- the gradient of alpha jumps, and the jump divided
        by 2 * eps comes in.
        """
        with torch.no_grad():
            # the bound keeps eps / ||dw|| finite, and w+- = w for dw = 0; a tensor, not a
            # number, so the GPU is not waited for
            eps = self.eps / get_total_norm(dw).clamp_min(1e-12)
            step = torch._foreach_mul(dw, eps)
        with _kept(self.weights) as saved:
            with torch.no_grad():
                torch._foreach_add_(self.weights, step)  # w+ = w + eps * dw
            positive = self._grad(trn_X, trn_y, self.alphas)
            if self.hessian == "forward":
                negative, distance = first.dalpha, eps
            else:
                self._rewind(first.random)
                with torch.no_grad():  # from w itself: (w + s) - 2s would round twice
                    _copy(self.weights, saved)
                    torch._foreach_sub_(self.weights, step)  # w- = w - eps * dw
                negative, distance = self._grad(trn_X, trn_y, self.alphas), 2 * eps
        with torch.no_grad():
            torch._foreach_sub_(positive, negative)
            torch._foreach_div_(positive, distance)
        return positive

    def _exact(self, dw, first, trn_X, trn_y):
        """By double backward: the derivative of dL_train/dw in alpha, times dw. Through ReLU and
        max pooling it is the derivative where none of them changes sides.

        It computes dL_train/dw again rather than keep the graph of `first` through the pass at w':
        that graph holds more than twice the maps of a pass.
        """
        total = [torch.zeros_like(alpha) for alpha in self.alphas]
        for loss, _ in self.parts.losses(self._compute, trn_X, trn_y):
            grads = torch.autograd.grad(loss, self.weights, create_graph=True, allow_unused=True)
            reached = [i for i, g in enumerate(grads) if g is not None and g.requires_grad]
            directions = [dw[i] for i in reached]
            grads = [grads[i] for i in reached]
            found = torch.autograd.grad(grads, self.alphas, directions, materialize_grads=True)
            torch._foreach_add_(total, found)
        return self.parts.group.sum(total)

    @contextmanager
    def _draws_of(self, random):
        """Random numbers are drawn from the states `random` on; afterwards as if none had been."""
        after = [(set_, get()) for get, set_, _ in random]
        try:
            self._rewind(random)
            yield
        finally:
            for set_, state in after:
                set_(state)

    def _rewind(self, random):
        for get, set_, state in random:
            self.draws = self.draws or not torch.equal(get(), state)
            set_(state)

    def _random_states(self):
        """(get, set, state) of every generator that a pass may draw from. The states lie in the
        memory of the host, also those of a GPU, so it is not waited for.

        While a CUDA graph is recorded they cannot be read. That is no loss where no pass has drawn
        yet (the first is never recorded); else raises RuntimeError.
        """
        device = self.weights[0].device
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            if self.draws:
                raise RuntimeError("a block draws random numbers, as dropout does")
            return []
        generators = [(torch.get_rng_state, torch.set_rng_state)]
        if device.type == "cuda":
            generators.append(
                (
                    lambda: torch.cuda.get_rng_state(device),
                    lambda state: torch.cuda.set_rng_state(state, device),
                )
            )
        elif device.type == "mps":
            generators.append((torch.mps.get_rng_state, torch.mps.set_rng_state))
        return [(get, set_, get()) for get, set_ in generators]

    def _compute(self, X, y):
        logits = self.net(X)
        return self.net.criterion(logits, y), logits

    def _grad(self, X, y, inputs):
        """Gradient of the loss for `inputs` alone; zeros for what the loss does not reach."""
        _, _, grads = self.parts.gradient(self._compute, X, y, inputs)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, grads, strict=True)]

    @contextmanager
    def _full_precision(self):
        """Full float32 (or whatever the weights are), whatever is allowed elsewhere.

        w+ and w- differ by less than TF32 or bfloat16 resolves, so a difference of two passes in
        them is rounding noise. PyTorch lets cuDNN convolve in TF32 by default.
        """
        backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
        allowed = [backend.allow_tf32 for backend in backends]
        try:
            for backend in backends:
                backend.allow_tf32 = False
            with torch.autocast(self.weights[0].device.type, enabled=False):
                yield
        finally:
            for backend, value in zip(backends, allowed, strict=True):
                backend.allow_tf32 = value


@contextmanager
def _kept(tensors):
    """Restore `tensors` bit for bit at the end, also of an exception; yields the saved values."""
    saved = [torch.empty_like(tensor, requires_grad=False) for tensor in tensors]
    _copy(saved, tensors)
    try:
        yield saved
    finally:
        _copy(tensors, saved)


@torch.no_grad()
def _copy(to, source):
    """Copy a list of tensors onto another with one fused call per dtype: lists of mixed dtypes are
    copied one by one, and BatchNorm has floats and a count."""
    pairs = list(zip(to, source, strict=True))
    for dtype in {tensor.dtype: None for tensor in to}:
        torch._foreach_copy_(*zip(*(p for p in pairs if p[0].dtype == dtype), strict=True))
