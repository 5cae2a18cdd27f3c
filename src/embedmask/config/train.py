"""`TrainConfig`: the solver and the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from embedmask.fields import check_types, require

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Engine = Literal["torch", "compile", "openvino"]
"""What runs the network in prediction."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The solver of section 4.1 (defaults: R-50 1x) and the engine's settings."""

    batch_size: int = 16
    """Images a step, all processes and all parts together."""
    accumulate: int = 1
    """Go through a step's images in so many parts, one after the other, and add up the gradients: the memory of
    `batch_size / accumulate` images. Each part is a batch of its own to the losses' normalisers."""
    max_steps: int | None = 90_000
    epochs: int | None = None
    """Train this many epochs instead of `max_steps`; set one of the two to null."""
    max_minutes: float | None = None
    """Stop after this many minutes, whatever the schedule; then the last evaluation follows. The minutes before a
    `--resume` count."""
    early_stop: int | None = None
    """Stop after this many evaluations without a better mask AP; null: never."""
    checkpoint_minutes: float | None = 10
    """Write `last.ckpt`, from which `--resume` goes on, this often within an epoch, and after every one that ends a
    minute or more after the last time; null: not within epochs, but after every one."""
    checkpoint_steps: int | None = None
    """The same in steps; null: by the clock alone."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    lr_batch_size: int | None = None
    """The batch that `lr` is meant for: with another `batch_size` all rates are scaled in proportion (the linear
    rule); null: `lr` as it stands."""
    momentum: float = 0.9
    weight_decay: float = 1e-4
    bias_lr_factor: float = 2.0
    bias_weight_decay: float = 0.0
    norm_weight_decay: float | None = None
    """Of the weights of normalisation layers (the authors' second repository: 0); null: as of other weights. Their
    biases are biases like any other."""
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
    pretrained: bool | str = True
    """Start the backbone from timm's ImageNet weights (true), from a file with weights of its architecture (names of
    timm, of torchvision's ResNets, or a Detectron pickle such as R-50.pkl), or from random weights (false), which are
    not frozen."""
    init: str | None = None
    """Start from a model file, or a released model by name (`nuclei`), instead. Tensors of another shape stay random,
    as those of the class layer with another number of classes. Names of classes do not matter."""
    precision: Precision = "auto"
    """`auto`: bfloat16 where the device is fast at it. Embeddings, distances and losses stay float32."""
    workers: int | None = None
    """Processes that load images; null: one fewer than the cores, at most 8."""
    eval_every: int = 1
    """Epochs between evaluations on val."""
    eval_minutes: float | None = None
    """Minutes that must pass between two evaluations besides, for data sets whose epochs take seconds. The end of the
    training is always evaluated; which weights are best then depends on the clock. Null: by epochs alone."""
    class_thresholds: bool = False
    """Choose `decision_threshold` for each class on val, not one for all; where the recipe leaves it null."""
    keep: Literal["best", "last"] = "best"
    """Weights that `model.safetensors` holds: the best on val by mask AP, or the last, as authors report theirs."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        lengths = sum(value is not None for value in (self.max_steps, self.epochs))
        require(self, "max_steps", lengths == 1, "set while epochs is null, or null while epochs is set")
        for name in ("batch_size", "accumulate", "eval_every"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        parts_ok = self.batch_size % self.accumulate == 0
        require(self, "accumulate", parts_ok, f"a divisor of batch_size {self.batch_size}")
        for name in ("max_steps", "epochs", "max_minutes", "clip_norm", "early_stop", "lr_batch_size", "eval_minutes",
                     "checkpoint_minutes", "checkpoint_steps"):  # fmt: skip
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
        norm_ok = self.norm_weight_decay is None or self.norm_weight_decay >= 0
        require(self, "norm_weight_decay", norm_ok, "at least 0, or null")
        require(self, "workers", self.workers is None or self.workers >= 0, "at least 0, or null")
        decay_ok = self.ema_decay is None or 0 <= self.ema_decay < 1
        require(self, "ema_decay", decay_ok, "from 0 to below 1, or null")
        milestones_ok = all(0 <= m <= 1 for m in self.milestones)
        require(self, "milestones", milestones_ok, "fractions of the training, from 0 to 1")

    @property
    def step_lr(self) -> float:
        """The rate of a step of `batch_size` images, before the schedule."""
        return self.lr if self.lr_batch_size is None else self.lr * self.batch_size / self.lr_batch_size
