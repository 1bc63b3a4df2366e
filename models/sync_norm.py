"""--sync_bn: BatchNorm with the statistics of the whole batch, that of all processes.

torch's SyncBatchNorm is for CUDA cards alone, has no second derivative, and cannot take the scale
that MixedNorm has. This one is made of sums that have derivatives of every order.
"""

import torch
from torch import nn

from models.fan import MixedNorm


class Summed(torch.autograd.Function):
    """The sum of a tensor over the processes of a group. Its gradient is the sum of theirs, since
    each loss is its process's part of the whole."""

    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return group.sum([x])[0]

    @staticmethod
    def backward(ctx, grad):
        return Summed.apply(grad.contiguous(), ctx.group), None


class SyncNorm(nn.BatchNorm2d):
    """BatchNorm2d over the maps of all processes of `group`. (N, C, H, W) -> the same."""

    group = None

    def forward(self, x):
        return self.normalise(x, self.weight, self.bias)

    def normalise(self, x, scale, shift):
        """x (N, C, H, W), normalised, times `scale` plus `shift`, (C,) each, or None."""
        if not self.training:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, scale, shift, eps=self.eps
            )
        with torch.autocast(x.device.type, enabled=False):
            x32 = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
            mean, var, n = self._moments(x32)
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var * (n / (n - 1)), self.momentum)
            factor = torch.rsqrt(var + self.eps)
            factor = factor if scale is None else factor * scale
            out = (x32 - _spread(mean)) * _spread(factor)
            return (out if shift is None else out + _spread(shift)).to(x.dtype)

    def _moments(self, x):
        """(mean (C,), variance (C,), number of values per channel) over all processes."""
        count = x.new_full((1,), x.numel() / x.size(1))
        sums = Summed.apply(torch.cat([x.sum((0, 2, 3)), count]), self.group)
        n = sums[-1].detach()
        mean = sums[:-1] / n
        squares = (x - _spread(mean)).square().sum((0, 2, 3))
        return mean, Summed.apply(squares, self.group) / n, n


class SyncMixedNorm(SyncNorm, MixedNorm):
    """MixedNorm in the same way."""

    def forward(self, x, mix):
        scale = mix.repeat_interleave(self.num_features // self.k)
        return self.normalise(x, scale, self.zero)


def _spread(values):
    return values.view(1, -1, 1, 1)


def synchronise(net, group):
    """Let every BatchNorm of `net` take the statistics of all processes of `group`. Parameters,
    buffers and their names stay. Does nothing for one process, which has the whole batch."""
    if group.size == 1:
        return
    kinds = {nn.BatchNorm2d: SyncNorm, MixedNorm: SyncMixedNorm}
    for name, module in net.named_modules():
        if type(module) in kinds and module.momentum is not None and module.track_running_stats:
            module.__class__ = kinds[type(module)]
            module.group = group
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"--sync_bn knows BatchNorm2d with momentum and running statistics, and {name} is "
                f"another {type(module).__name__}; leave --sync_bn out"
            )
