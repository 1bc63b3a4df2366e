"""A training step whose loss or gradient is not finite takes no update, and nobody waits for it.

Whether a gradient is finite is known on the device. Reading it there would hold up every step, and
a CUDA graph could not record it. So the device decides: the kernels of a fused optimizer read the
same flag that torch's gradient scaler sets, and leave weights and momentum as they are. What was
left out is counted on the device and read with the means of the epoch (utils.Meter).
"""

import torch

# what can be wrong, as the words of an error
LOSS, W, ALPHA = "the training loss", "the gradient of the weights", "the gradient of alpha"
_ROWS = {LOSS: 0, W: 1, ALPHA: 2}


class NotFinite(FloatingPointError):
    """Something is NaN or infinite.

    what  LOSS, W, ALPHA, or other words;  step  counted from 1 (see StepGuard), where it is known
    """

    def __init__(self, what, step=None):
        super().__init__(f"{what} is not finite")
        self.what, self.step = what, step


class StepGuard:
    """Decides about the updates of one epoch, or of a whole training of a comparison.

    begin() at the start of each step, then update(optimizer, ...) in place of optimizer.step().
    """

    def __init__(self, device, net, on_nan):
        """`device` is a pick.Device; on_nan "stop" or "skip"."""
        self.skip = on_nan == "skip"
        # per row of _ROWS: how many, and the first such step
        self.counts = torch.zeros(2, len(_ROWS), dtype=torch.int64, device=device.torch_device)
        self.step = torch.zeros((), dtype=torch.int64, device=device.torch_device)
        # a run that stops has no more use for its BatchNorm statistics
        self.buffers = {}
        for buffer in net.buffers() if self.skip else ():
            self.buffers.setdefault(buffer.dtype, []).append(buffer)
        self.saved = {}
        self.started = False

    @torch.no_grad()
    def begin(self):
        """A step begins."""
        self.step += 1
        self.saved = {dtype: _flat(buffers) for dtype, buffers in self.buffers.items()}

    def update(self, optim, loss=None, **norm):
        """optim.step(), unless the loss or the norm of the gradient is not finite.

        loss       0-dim; None for alpha
        w, alpha   one of them: the norm of that gradient, 0-dim

        With "skip" a step of w that is left out moves no BatchNorm statistics.
        """
        ((name, norm),) = norm.items()
        bad = ~torch.isfinite(norm)
        if loss is not None:
            bad_loss = ~torch.isfinite(loss.detach())
            self._count(LOSS, bad_loss)
            bad = bad | bad_loss
        self._count({"w": W, "alpha": ALPHA}[name], bad)
        if optim.defaults.get("fused"):
            if not self.started:
                _start_momentum(optim)
                self.started = name == "w"
            optim.found_inf = bad.float()
            optim.step()
        elif not bad:  # a CPU need not be waited for
            optim.step()
        if name == "w":
            self._restore_buffers(bad)

    @torch.no_grad()
    def _count(self, what, bad):
        counts, first = self.counts[0, _ROWS[what]], self.counts[1, _ROWS[what]]
        first.copy_(torch.where(bad & (counts == 0), self.step, first))
        counts += bad

    @torch.no_grad()
    def _restore_buffers(self, bad):
        for dtype, buffers in self.buffers.items():
            kept = torch.where(bad, self.saved[dtype], _flat(buffers))
            parts = kept.split([buffer.numel() for buffer in buffers])
            pairs = zip(parts, buffers, strict=True)
            torch._foreach_copy_(buffers, [part.view(buffer.shape) for part, buffer in pairs])

    def state_dict(self):
        return {"counts": self.counts.cpu(), "step": self.step.cpu()}

    def load_state_dict(self, state):
        self.counts.copy_(state["counts"])
        self.step.copy_(state["step"])

    def check(self, counts):
        """Raise NotFinite for the first thing that was not finite, unless steps are skipped.
        `counts` is `self.counts` as a list of lists."""
        _, first = counts
        steps = [step for step in first if step]
        if steps and not self.skip:
            step = min(steps)
            what = next(what for what, row in _ROWS.items() if first[row] == step)
            raise NotFinite(what, step)

    def left_out(self):
        """How many updates were left out. Waits for the device. Raises NotFinite if that is all
        updates of w: then nothing is learned."""
        (loss, w, alpha), _ = self.counts.tolist()
        if w and w == int(self.step):
            raise NotFinite(f"{LOSS if loss == w else W} of every step")
        return w + alpha

    def describe(self):
        """What was not finite in words, or ""."""
        counts, first = self.counts.tolist()
        return ", ".join(
            f"{what} in {n} step{'s' * (n > 1)} (the first is {first[row]})"
            for what, row in _ROWS.items()
            if (n := counts[row])
        )


def _flat(tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _start_momentum(optim):
    """Give the weights of an SGD a momentum of zero before their first step: the fused kernel would
    make a buffer, and leave it as it came from memory if that step is left out."""
    for group in optim.param_groups:
        for weight in group["params"] if group.get("momentum") else ():
            if weight.grad is not None and optim.state[weight].get("momentum_buffer") is None:
                optim.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
