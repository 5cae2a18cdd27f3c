"""BatchNorm over the images of all processes, on any device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from embedmask.distributed import is_distributed


class DistributedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over the images of all processes. Unlike `nn.SyncBatchNorm` it runs on the CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalize `input`, `[N, C, H, W]`, as `nn.BatchNorm2d` does; all processes must call it together."""
        if not (self.training and is_distributed()):
            return super().forward(input)
        # a sum with a gradient; the module is missing where torch is built without process groups
        from torch.distributed.nn import functional

        all_reduce: Any = functional.all_reduce
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        values = input.float()
        over = (0, 2, 3)
        # per-channel sums [C] and the count of pixels in one all-reduce, [C + 1]
        sums: Tensor = all_reduce(torch.cat((values.sum(over), values.new_tensor([values[:, 0].numel()]))))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        # two passes, since E[x^2] - E[x]^2 would cancel in float32
        var: Tensor = all_reduce((values - mean.view(-1, 1, 1)).square().sum(over)) / count
        self.num_batches_tracked.add_(1)
        momentum = self.momentum or 0.0
        self.running_mean.lerp_(mean.detach(), momentum)
        # the running variance is the unbiased one, as in torch
        self.running_var.lerp_(var.detach() * count / (count - 1), momentum)
        # gamma (x - mean) / std + beta = x scale + shift
        scale = (var + self.eps).rsqrt() * self.weight
        shift = self.bias - mean * scale
        return (values * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)).to(input.dtype)


def synchronize_batch_norms(model: nn.Module) -> None:
    """Make the BatchNorm layers of a model share their statistics among all processes, in place.

    Parameter names and values stay. Subclasses of BatchNorm, such as timm's with a built-in activation, keep
    per-process statistics.
    """
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = DistributedBatchNorm2d
