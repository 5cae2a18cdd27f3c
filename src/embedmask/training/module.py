"""Lightning module of the model, its objective and its solver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from embedmask.config import Recipe, TrainConfig, model_type_of
from embedmask.data.loader import EvalBatch, TrainBatch
from embedmask.distributed import all_reduce_max_size, gather
from embedmask.errors import TrainingStopped
from embedmask.inference.detect import detect, make_postprocessor
from embedmask.inference.engines import make_network
from embedmask.inference.results import coco_results
from embedmask.model.build import build_model
from embedmask.model.detector import Detector
from embedmask.structures import ImageBatch, Instances, LossTerms, Size, Target
from embedmask.training.schedule import lr_factor, parameter_groups

Objective = Callable[[Detector, ImageBatch, Sequence[Target]], LossTerms]


class EmbedMaskModule(LightningModule):
    """Lightning module that computes the losses in training and COCO results in validation.

    Args:
        recipe: recipe whose `model.num_classes` matches the data set.
        category_ids: category id of each class, for the COCO results.
        dtype: of the convolutions; in bfloat16 weights and images have the channels-last layout, which is faster.

    Attributes:
        model: the network in training.
        detect: `detect` with a copy of `model` for inference; it exists during an evaluation only.
    """

    def __init__(
        self,
        recipe: Recipe,
        category_ids: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.category_ids = list(category_ids)
        self.inference_dtype = dtype
        self.memory_format = torch.channels_last if dtype == torch.bfloat16 else torch.contiguous_format
        self.model = build_model(recipe.model).to(memory_format=self.memory_format)
        self.objective: Objective = model_type_of(recipe.model).load("objective")(recipe.model)
        self.detect: Callable[[ImageBatch, Sequence[Size]], list[Instances]] | None = None

    def compute_losses(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Return the weighted loss terms of a batch, as scalars by name."""
        images, targets = batch
        # images: uint8 [3, h, w] of several sizes -> inputs.tensors: float32 [N, 3, Hp, Wp];
        # padding affects GroupNorm and the background locations: all processes pad to the same size
        inputs = self.model.preprocess(
            images, all_reduce_max_size([image.shape[1:] for image in images], self.device)
        )
        inputs.tensors = inputs.tensors.contiguous(memory_format=self.memory_format)
        return self.objective(self.model, inputs, targets).as_dict()

    def on_train_batch_start(self, batch: TrainBatch, batch_idx: int) -> None:
        """Seed torch by the recipe's seed, the batch and the rank, so that a resumed run samples the same."""
        entropy = (self.recipe.train.seed, self.trainer.fit_loop.total_batch_idx, self.trainer.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))

    def training_step(self, batch: TrainBatch, batch_idx: int) -> dict[str, Any]:
        """Compute the loss of a batch.

        Returns:
            `loss`: the scalar to minimize; `losses`: name -> mean over the processes; `lr`: the learning rate;
            `images`: number of images in the batches of all processes.

        Raises:
            TrainingStopped: a loss is not finite in any process.
        """
        terms = self.compute_losses(batch)
        total = torch.stack(list(terms.values())).sum()
        # one transfer for all values: [2 + number of terms]
        values = torch.stack([total.new_tensor(len(batch[1])), total, *terms.values()]).detach()
        count, *means = self.trainer.strategy.reduce(values, reduce_op="mean").tolist()
        losses = dict(zip(("total", *terms), means, strict=True))
        if not np.isfinite(means).all():
            raise TrainingStopped(self._non_finite_message(losses, [target.image_id for target in batch[1]]))
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log_dict({**{f"loss/{name}": value for name, value in losses.items()}, "lr": rate})
        self.log("loss", losses["total"], prog_bar=True, logger=False)
        images = round(count * self.trainer.world_size)
        return {"loss": total * self._part_weight(batch_idx), "losses": losses, "lr": rate, "images": images}

    def _part_weight(self, batch_idx: int) -> float:
        """Return the weight of an accumulated part, so that a step is the mean of its parts.

        Lightning divides each part by `accumulate`, also in the last step of an epoch, which may have fewer parts.
        """
        parts = self.trainer.accumulate_grad_batches
        first = batch_idx - batch_idx % parts
        return parts / min(parts, int(self.trainer.num_training_batches) - first)

    def on_validation_epoch_start(self) -> None:
        """Build the network of the evaluation from the weights, which a callback has replaced by their average."""
        network = make_network(self.model, dtype=self.inference_dtype)
        self.detect = partial(detect, network, make_postprocessor(self.recipe.model))

    def on_validation_epoch_end(self) -> None:
        """Drop the network of the evaluation."""
        self.detect = None

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> dict[str, Any]:
        """Return `results`: pairs of image id and COCO results in the frame of the image file."""
        images, image_ids, original_sizes = batch
        assert self.detect is not None
        detections = self.detect(self.model.preprocess(images), original_sizes)
        pairs = zip(image_ids, detections, strict=True)
        return {
            "results": [
                (image_id, coco_results(instances, image_id, self.category_ids))
                for image_id, instances in pairs
            ]
        }

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer and a schedule that sets the learning rate in every step."""
        config = self.recipe.train
        optimizer = make_optimizer(parameter_groups(self.model, config), config)
        total = config.max_steps or int(self.trainer.estimated_stepping_batches)
        scheduler = LambdaLR(optimizer, partial(lr_factor, total_steps=total, config=config))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _non_finite_message(self, losses: dict[str, float], image_ids: list[int | None]) -> str:
        values = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        images = ", ".join(map(str, gather(image_ids)))
        return (
            f"step {self.trainer.global_step + 1}: the loss is not finite ({values}); images {images}; the weights "
            "were not updated and the last checkpoint remains; lower --train.lr, set --train.clip_norm, or check "
            "these images"
        )


def make_optimizer(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    """Return SGD with momentum (section 4.1), or AdamW."""
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
