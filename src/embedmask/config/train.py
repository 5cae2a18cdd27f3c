"""`TrainConfig`: the solver and the training engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from embedmask.fields import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    at_least,
    below,
    check_fields,
    require,
)

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Engine = Literal["torch", "compile", "openvino", "onnxruntime"]
"""Backend that runs the network in prediction."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of the solver (section 4.1; defaults: R-50 1x) and of the training engine."""

    # Length and batch
    batch_size: PositiveInt = 16
    """Images per optimizer step, over all processes and accumulated parts."""
    accumulate: PositiveInt = 1
    """Number of parts that a step is split into to save memory. Their gradients are averaged, at the memory of
    `batch_size / accumulate` images; the loss normalizers are computed per part."""
    max_steps: PositiveInt | None = 90_000
    """Number of optimizer steps. Set either this or `epochs`, and the other to null."""
    epochs: PositiveInt | None = None
    """Number of epochs, instead of `max_steps`."""
    max_minutes: PositiveFloat | None = None
    """Time limit in minutes, followed by a last evaluation; null: none. Time before a `--resume` counts."""
    early_stop: PositiveInt | None = None
    """Number of evaluations without a better mask AP after which training stops; null: never."""

    # Checkpoints
    checkpoint_minutes: PositiveFloat | None = 10
    """Minutes between checkpoints (`last.ckpt`) within an epoch; null: none within epochs. The end of an epoch also
    writes one, at most once per minute; with null every epoch does."""
    checkpoint_steps: PositiveInt | None = None
    """Steps between checkpoints within an epoch; null: by `checkpoint_minutes` alone."""

    # Solver (section 4.1)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimizer: SGD with momentum, or AdamW."""
    lr: PositiveFloat = 0.01
    """Base learning rate."""
    lr_batch_size: PositiveInt | None = None
    """Batch size that `lr` is given for; null: `batch_size`. Another `batch_size` scales all rates in proportion (the
    linear rule)."""
    momentum: NonNegativeFloat = 0.9
    """Momentum of SGD."""
    weight_decay: NonNegativeFloat = 1e-4
    """Weight decay."""
    bias_lr_factor: NonNegativeFloat = 2.0
    """Factor on the learning rate of biases."""
    bias_weight_decay: NonNegativeFloat = 0.0
    """Weight decay of biases."""
    norm_weight_decay: NonNegativeFloat | None = None
    """Weight decay of the weights of normalization layers; null: `weight_decay`. The authors' second repository uses 0.
    Biases of these layers follow `bias_weight_decay`."""
    schedule: Literal["step", "cosine"] = "step"
    """Learning-rate schedule: drops at `milestones`, or a half cosine to zero."""
    milestones: tuple[Fraction, ...] = (2 / 3, 8 / 9)
    """Drops of the step schedule, as fractions of the training (60k and 80k of 90k steps)."""
    gamma: PositiveFloat = 0.1
    """Factor on the learning rate at each milestone."""
    warmup_steps: NonNegativeInt = 500
    """Number of warm-up steps."""
    warmup_factor: Fraction = 1 / 3
    """Factor on the learning rate at the start of the warm-up."""
    warmup: Literal["constant", "linear"] = "constant"
    """Course of the warm-up: constant at `warmup_factor`, or rising linearly from it."""
    clip_norm: PositiveFloat | None = None
    """Maximum norm of the gradient; null: no clipping."""
    ema_decay: Annotated[float, at_least(0), below(1)] | None = None
    """Decay of a moving average of the weights, which is evaluated and saved; null: no average."""

    # Initial weights
    pretrained: bool | str = True
    """Initial backbone weights: timm's ImageNet weights (true), random (false), or a file. A file may hold names of
    timm or of torchvision's ResNets, or be a Detectron pickle such as R-50.pkl. Random weights are not frozen."""
    init: str | None = None
    """Model to fine-tune, instead of `pretrained`: a file, a released name (`nuclei`), or `user/model` on the hub.
    Tensors whose shape differs stay random, such as the class layer for another number of classes; class names are not
    compared."""

    # Engine
    precision: Precision = "auto"
    """Precision of the convolutions; `auto`: bfloat16 on devices that are fast at it. Embeddings, distances and losses
    stay float32."""
    workers: NonNegativeInt | None = None
    """Processes that load images; null: one fewer than the cores, at most 8."""

    # Evaluation and saved weights
    eval_every: PositiveInt = 1
    """Epochs between evaluations on val."""
    eval_minutes: PositiveFloat | None = None
    """Minimum minutes between two evaluations, in addition to `eval_every`, for data sets whose epochs take seconds.
    The end of the training is always evaluated; which weights are best depends on the clock. Null: epochs alone."""
    class_thresholds: bool = False
    """Choose `default_score_threshold` on val for each class instead of one for all, if the recipe leaves it null."""
    keep: Literal["best", "last"] = "best"
    """Weights to save as `model.safetensors`: the best on val by mask AP, or the last, as in published results."""

    seed: NonNegativeInt = 0
    """Seed of all random numbers."""

    def __post_init__(self) -> None:
        check_fields(self)
        lengths = sum(value is not None for value in (self.max_steps, self.epochs))
        require(self, "max_steps", lengths == 1, "set if epochs is null, or null if epochs is set")
        parts_ok = self.batch_size % self.accumulate == 0
        require(self, "accumulate", parts_ok, f"a divisor of batch_size {self.batch_size}")

    @property
    def step_lr(self) -> float:
        """Return the learning rate for `batch_size` images per step, before the schedule."""
        return self.lr if self.lr_batch_size is None else self.lr * self.batch_size / self.lr_batch_size
