"""Learning-rate schedule and parameter groups of the solver (section 4.1)."""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from embedmask.config import TrainConfig

NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)


def lr_factor(step: int, total_steps: int, config: TrainConfig) -> float:
    """Return the factor on the base learning rate in an optimizer step.

    As in the authors' code, the warm-up factor multiplies the schedule, and a milestone applies from its step on. Steps
    count from 0.
    """
    warmup = 1.0
    if step < config.warmup_steps:
        done = step / config.warmup_steps if config.warmup == "linear" else 0.0
        warmup = config.warmup_factor * (1 - done) + done
    if config.schedule == "step":
        passed = sum(step >= round(fraction * total_steps) for fraction in config.milestones)
        return warmup * config.gamma**passed
    # half a cosine wave from the end of the warm-up; it would reach zero one step after the last
    length = max(total_steps - config.warmup_steps, 1)
    done = min(max(step - config.warmup_steps, 0) / length, 1.0)
    return warmup * (0.5 * (1 + math.cos(math.pi * done)))


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Return the parameter groups of the optimizer: weights, biases and norms, without empty groups.

    As in the authors' code, every parameter with "bias" in its name is a bias. With `norm_weight_decay` the weights
    of normalization layers form a separate group. Frozen parameters are left out.
    """
    weights: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    norms: list[nn.Parameter] = []
    norm_weights = {id(layer.weight) for layer in model.modules() if isinstance(layer, NORMS)}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if config.norm_weight_decay is not None and id(parameter) in norm_weights:
            norms.append(parameter)
        else:
            (biases if "bias" in name else weights).append(parameter)
    lr = config.step_lr
    groups = (
        {"name": "weights", "params": weights, "lr": lr, "weight_decay": config.weight_decay},
        {
            "name": "biases",
            "params": biases,
            "lr": lr * config.bias_lr_factor,
            "weight_decay": config.bias_weight_decay,
        },
        {"name": "norms", "params": norms, "lr": lr, "weight_decay": config.norm_weight_decay},
    )
    return [group for group in groups if group["params"]]
