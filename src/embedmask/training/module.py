"""The model, its objective and its solver as Lightning wants them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from embedmask.config import Recipe, TrainConfig
from embedmask.data.loader import EvalBatch, TrainBatch
from embedmask.inference.loop import predict_batch
from embedmask.inference.postprocess import Postprocessor
from embedmask.inference.results import coco_results
from embedmask.model.embedmask import EmbedMask
from embedmask.objective.criterion import Criterion
from embedmask.training.schedule import lr_factor, parameter_groups


class EmbedMaskModule(LightningModule):
    """A training step is preprocess, network, criterion; a validation step is preprocess, network, results.

    Args:
        recipe: the whole experiment; `recipe.model.num_classes` is already that of the data set.
        category_ids: the data set's category id of each class, for the results of validation.
        channels_last: keep weights and pictures in the layout that fast bfloat16 convolutions want.
    """

    def __init__(
        self,
        recipe: Recipe,
        category_ids: Sequence[int],
        *,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.category_ids = list(category_ids)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.model = EmbedMask(recipe.model).to(memory_format=self.memory_format)
        self.criterion = Criterion.from_config(recipe.model)
        self.postprocess = Postprocessor.from_config(recipe.model)

    def training_step(self, batch: TrainBatch, batch_idx: int) -> Tensor:
        """The total loss (eq. 8); every term is logged by step and as the mean of the epoch."""
        images, targets = batch
        inputs = self.model.preprocess(images)
        inputs.tensors = inputs.tensors.contiguous(memory_format=self.memory_format)
        losses = self.criterion(self.model(inputs), targets)  # in float32 whatever the network ran in
        total = losses.total
        named = {"total": total, **losses.as_dict()}
        logged = {f"loss/{name}": term.detach() for name, term in named.items()}
        self.log_dict(logged, on_step=True, on_epoch=True, batch_size=len(images), sync_dist=True)
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"], batch_size=len(images))
        self.log("loss", total.detach(), prog_bar=True, logger=False, batch_size=len(images))
        return total

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> dict[str, Any]:
        """`results`: COCO results of the batch, in the pictures' own frames."""
        images, image_ids, original_sizes = batch
        found = predict_batch(
            self.model, self.postprocess, images, original_sizes, memory_format=self.memory_format
        )
        named = zip(image_ids, found, strict=True)
        rows = [row for image_id, one in named for row in coco_results(one, image_id, self.category_ids)]
        return {"results": rows}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The solver, with the learning rate set anew before every optimizer step."""
        config = self.recipe.train
        optimizer = make_optimizer(parameter_groups(self.model.named_parameters(), config), config)
        total = int(self.trainer.estimated_stepping_batches)
        scheduler = LambdaLR(optimizer, partial(lr_factor, total_steps=total, config=config))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def make_optimizer(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    """SGD with momentum (section 4.1), or AdamW."""
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
