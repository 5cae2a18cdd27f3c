"""The learning-rate schedule and the parameter groups of the solver (section 4.1), as pure functions."""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from embedmask.config import TrainConfig

NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)


def lr_factor(step: int, total_steps: int, config: TrainConfig) -> float:
    """What the base learning rate is multiplied by in optimizer step `step` (0-based) of `total_steps`.

    The authors' order: the warm-up factor multiplies the schedule, the first full step is `warmup_steps`,
    and a milestone counts from the step that it names on.
    """
    decay = (
        _cosine(step, total_steps, config)
        if config.schedule == "cosine"
        else _steps(step, total_steps, config)
    )
    return _warmup(step, config) * decay


def _warmup(step: int, config: TrainConfig) -> float:
    if step >= config.warmup_steps:
        return 1.0
    if config.warmup == "constant":
        return config.warmup_factor
    done = step / config.warmup_steps
    return config.warmup_factor * (1 - done) + done


def _steps(step: int, total_steps: int, config: TrainConfig) -> float:
    passed = sum(step >= round(fraction * total_steps) for fraction in config.milestones)
    return config.gamma**passed


def _cosine(step: int, total_steps: int, config: TrainConfig) -> float:
    # The half wave starts after the warm-up, and the last step is still above zero
    length = max(total_steps - config.warmup_steps, 1)
    done = min(max(step - config.warmup_steps, 0) / length, 1.0)
    return 0.5 * (1 + math.cos(math.pi * done))


def _norm_weights(model: nn.Module) -> list[nn.Parameter]:
    layers = [module for module in model.modules() if isinstance(module, NORMS)]
    return [layer.weight for layer in layers if layer.weight is not None and layer.weight.requires_grad]


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """The authors' groups: every parameter whose name contains "bias" has its own rate and decay.

    With `norm_weight_decay` the weights of normalisation layers are a group of their own. Frozen parameters
    (`requires_grad` False) are left out, and so is a group that would be empty.
    """
    norms = _norm_weights(model) if config.norm_weight_decay is not None else []
    apart = set(map(id, norms))
    named = [(name, parameter) for name, parameter in model.named_parameters() if id(parameter) not in apart]
    trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    groups = (
        {
            "name": "weights",
            "params": [parameter for name, parameter in trained if "bias" not in name],
            "lr": config.step_lr,
            "weight_decay": config.weight_decay,
        },
        {
            "name": "biases",
            "params": [parameter for name, parameter in trained if "bias" in name],
            "lr": config.step_lr * config.bias_lr_factor,
            "weight_decay": config.bias_weight_decay,
        },
        {
            "name": "norms",
            "params": norms,
            "lr": config.step_lr,
            "weight_decay": config.norm_weight_decay,
        },
    )
    return [group for group in groups if group["params"]]
