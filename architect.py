"""The gradient of alpha: the outer half of the bilevel problem (sec. 2.3 of arXiv 1806.09055).

    min over alpha   L_val(w*(alpha), alpha)      with  w*(alpha) = argmin over w  L_train(w, alpha)

w* is approximated by one virtual SGD step, w' = w - xi * dL_train/dw (Eq. 6). The chain rule gives
(Eq. 7)

    dL_val(w', alpha)/dalpha  -  xi * d2L_train(w, alpha)/(dalpha dw) * dL_val(w', alpha)/dw'

and the matrix-vector product is a central difference of two first derivatives (Eq. 8)

    ( dL_train(w+, alpha)/dalpha - dL_train(w-, alpha)/dalpha ) / (2 * eps),
    w+- = w +- eps * dL_val/dw',     eps = 0.01 / ||dL_val/dw'||_2.

The toy problem of the paper (fig. 2): L_train = w^2 - 2*alpha*w + alpha^2,
L_val = alpha*w - 2*alpha + 1. At alpha = w = 2 the virtual step stays at w' = 2, the first term
is w' - 2 = 0, and the second is 2 * xi * alpha: the gradient is 2.0 for xi = 0.5, where first
order (xi = 0) gives 0. `tests/test_architect.py` runs it.
"""

from contextlib import contextmanager

import torch
from torch.nn.utils import get_total_norm


class Architect:
    """Fills alpha.grad. Works in place on the network: no second copy is ever made.

    `net` is a module with alphas(), weights() and loss(X, y) -> scalar, as SearchCNNController.
    """

    EPS = 0.01  # the numerator of eps (a footnote of sec. 2.3)

    def __init__(self, net, w_momentum, w_weight_decay):
        """`w_momentum` and `w_weight_decay` are those of the SGD that trains w."""
        self.net = net
        self.w_momentum = w_momentum
        self.w_weight_decay = w_weight_decay
        self.alphas = list(net.alphas())
        # frozen weights take no step, virtual or real
        self.weights = [w for w in net.weights() if w.requires_grad]
        self.draws = False  # whether a pass was seen to draw random numbers

    def unrolled_backward(self, trn_X, trn_y, val_X, val_y, xi, w_optim):
        """Write the gradient of L_val(w - xi * dL_train/dw, alpha) into alpha.grad (Eq. 6-8).

        trn_X, val_X  (N, C_in, H, W);  trn_y, val_y  (N,)
        xi            virtual learning rate; 0 gives first order, the gradient of L_val at w, with
                      one forward and backward pass
        w_optim       the SGD of w, read for its momentum

        Weights, their gradients and all buffers (BatchNorm statistics) are afterwards what they
        were, bit for bit, also when an exception passes through.
        """
        # only the real w step may move BatchNorm statistics
        with _kept(list(self.net.buffers())):
            if xi == 0:
                dalpha = self._grad(val_X, val_y, self.alphas)
            else:
                dalpha = self._second_order(trn_X, trn_y, val_X, val_y, xi, w_optim)
        for alpha, grad in zip(self.alphas, dalpha, strict=True):
            alpha.grad = grad

    def _second_order(self, trn_X, trn_y, val_X, val_y, xi, w_optim):
        with _kept(self.weights):
            self.virtual_step(trn_X, trn_y, xi, w_optim)  # w is w' from here
            grads = self._grad(val_X, val_y, self.alphas + self.weights)
        dalpha, dw = grads[: len(self.alphas)], grads[len(self.alphas) :]
        hessian = self.compute_hessian(dw, trn_X, trn_y)
        torch._foreach_add_(dalpha, hessian, alpha=-xi)  # Eq. 7
        return dalpha

    def virtual_step(self, trn_X, trn_y, xi, w_optim):
        """Turn w into w' as one step of SGD with learning rate xi would (Eq. 6), in place.

        SGD adds weight decay to the gradient, then momentum: w' = w - xi * (m * v + dw + wd * w),
        v the momentum buffer. The caller restores w.
        """
        step = self._grad(trn_X, trn_y, self.weights)
        with torch.no_grad():
            if self.w_weight_decay:
                torch._foreach_add_(step, self.weights, alpha=self.w_weight_decay)
            # before its first step SGD has no buffer, and its first step has no momentum; get,
            # since the state is a defaultdict and indexing would write into it
            velocity = [w_optim.state.get(w, {}).get("momentum_buffer") for w in self.weights]
            moving = [i for i, v in enumerate(velocity) if v is not None]
            if moving and self.w_momentum:
                torch._foreach_add_(
                    [step[i] for i in moving], [velocity[i] for i in moving], alpha=self.w_momentum
                )
            torch._foreach_add_(self.weights, step, alpha=-xi)

    def compute_hessian(self, dw, trn_X, trn_y):
        """d2L_train/(dalpha dw) * dw by central difference (Eq. 8), one tensor per alpha.

        `dw` holds one tensor per weight. Where the loss is smooth the error falls with eps^2,
        eps = 0.01 / ||dw||; where ReLU or max pooling changes sides between w+ and w- the
        gradient of alpha jumps, and the jump divided by 2 * eps comes in. A dw of zero gives zero.
        BatchNorm statistics move, weights do not. Both passes draw the same random numbers: two
        dropout masks differ by far more than w+ and w-, and eps would divide that.
        """
        with torch.no_grad():
            # the bound keeps EPS / ||dw|| finite, and w+- = w for dw = 0; a tensor, not a
            # number, so the GPU is not waited for
            eps = self.EPS / get_total_norm(dw).clamp_min(1e-12)
            step = torch._foreach_mul(dw, eps)
        with _full_precision(self.weights[0].device.type), _kept(self.weights) as saved:
            with torch.no_grad():
                torch._foreach_add_(self.weights, step)  # w+ = w + eps * dw
            random = self._random_states()
            positive = self._grad(trn_X, trn_y, self.alphas)
            for get, set_, state in random:  # dropout must draw the same in both passes
                self.draws = self.draws or not torch.equal(get(), state)
                set_(state)
            with torch.no_grad():  # from w itself: (w + s) - 2s would round twice
                _copy(self.weights, saved)
                torch._foreach_sub_(self.weights, step)  # w- = w - eps * dw
            negative = self._grad(trn_X, trn_y, self.alphas)
        with torch.no_grad():
            torch._foreach_sub_(positive, negative)
            torch._foreach_div_(positive, 2 * eps)
        return positive

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

    def _grad(self, X, y, inputs):
        """Gradient of the loss for `inputs` alone; zeros for what the loss does not reach."""
        loss = self.net.loss(X, y)
        grads = torch.autograd.grad(loss, inputs, allow_unused=True)
        return [
            torch.zeros_like(value) if grad is None else grad
            for value, grad in zip(inputs, grads, strict=True)
        ]


@contextmanager
def _full_precision(device_type):
    """Full float32 (or whatever the weights are), whatever is allowed elsewhere.

    w+ and w- differ by less than TF32 or bfloat16 resolves, so a difference of two passes in them
    is rounding noise. PyTorch lets cuDNN convolve in TF32 by default.
    """
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    allowed = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        with torch.autocast(device_type, enabled=False):
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
