"""Trained BatchNorm that does not know how many processes share a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn

from embedmask.training.processes import is_distributed


class _SumOfAll(torch.autograd.Function):
    """The sum over the processes: what one adds reaches the losses of all, and their gradients come back summed."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _SumOfAll.forward(ctx, grads[0])


def sum_of_all(values: Tensor) -> Tensor:
    """Sum over all processes, with a gradient; any shape, the same in each."""
    total: Tensor = _SumOfAll.apply(values)
    return total


class DistributedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over the images of all processes. (torch's own, `SyncBatchNorm`, has no CPU.)"""

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.BatchNorm2d`, `[N, C, H, W]`; every process must be here at the same time."""
        if not (self.training and is_distributed()):
            return super().forward(input)
        values = input.float()
        over = (0, 2, 3)
        sums = sum_of_all(torch.cat((values.sum(over), values.new_tensor([values[:, 0].numel()]))))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        # about the mean of all, not of each: squares that are subtracted later would cost digits
        var = sum_of_all((values - mean.view(-1, 1, 1)).square().sum(over)) / count
        self._remember(mean.detach(), var.detach() * count / (count - 1))
        scale = (var + self.eps).rsqrt() * self.weight
        shift = self.bias - mean * scale
        return (values * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)).to(input.dtype)

    def _remember(self, mean: Tensor, var: Tensor) -> None:
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        for average, value in ((self.running_mean, mean), (self.running_var, var)):
            assert average is not None
            average.lerp_(value, self.momentum or 0.0)


def synchronize_batch_norms(model: nn.Module) -> None:
    """Let the BatchNorm layers of a model see all processes' images, in place; names and values stay.

    A layer that is more than a BatchNorm, as timm's with an activation inside, keeps its own share.
    """
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = DistributedBatchNorm2d
