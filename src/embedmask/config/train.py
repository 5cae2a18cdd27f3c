"""`TrainConfig`: the solver and the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from embedmask.fields import check_types, require

Precision = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The solver of section 4.1 (defaults: R-50 1x) and the engine's settings."""

    batch_size: int = 16
    """Images a step, all processes together."""
    max_steps: int | None = 90_000
    epochs: int | None = None
    """Train this many epochs instead of `max_steps`; set one of the two to null."""
    max_minutes: float | None = None
    """Stop after this many minutes, whatever the schedule."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    bias_lr_factor: float = 2.0
    bias_weight_decay: float = 0.0
    schedule: Literal["step", "cosine"] = "step"
    milestones: tuple[float, ...] = (2 / 3, 8 / 9)
    """Drops of the step schedule, as fractions of the whole training (60k and 80k of 90k)."""
    gamma: float = 0.1
    warmup_steps: int = 500
    warmup_factor: float = 1 / 3
    warmup: Literal["constant", "linear"] = "constant"
    clip_norm: float | None = None
    ema_decay: float | None = None
    """Keep a moving average of the weights and evaluate, save that; null: none."""
    pretrained: bool = True
    """Start the backbone from timm's ImageNet weights."""
    precision: Precision = "auto"
    """`auto`: bfloat16 where the device is fast at it. Embeddings, distances and losses stay float32."""
    workers: int | None = None
    """Processes that load pictures; null: one fewer than the cores, at most 8."""
    eval_every: int = 1
    """Epochs between evaluations on val."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        lengths = sum(value is not None for value in (self.max_steps, self.epochs))
        require(self, "max_steps", lengths == 1, "set while epochs is null, or null while epochs is set")
        for name in ("batch_size", "eval_every"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("max_steps", "epochs", "max_minutes", "clip_norm"):
            value = getattr(self, name)
            require(self, name, value is None or value > 0, "above 0, or null")
        require(self, "lr", self.lr > 0, "above 0")
        for name in (
            "warmup_steps",
            "seed",
            "momentum",
            "weight_decay",
            "bias_weight_decay",
            "bias_lr_factor",
        ):
            require(self, name, getattr(self, name) >= 0, "at least 0")
        require(self, "workers", self.workers is None or self.workers >= 0, "at least 0, or null")
        decay_ok = self.ema_decay is None or 0 <= self.ema_decay < 1
        require(self, "ema_decay", decay_ok, "from 0 to below 1, or null")
        milestones_ok = all(0 <= m <= 1 for m in self.milestones)
        require(self, "milestones", milestones_ok, "fractions of the training, from 0 to 1")
