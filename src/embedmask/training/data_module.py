"""The train and val splits of a data set as Lightning's data module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from embedmask.config import Recipe
from embedmask.data.coco import check_same_classes, open_train_val
from embedmask.data.loader import EvalBatch, TrainBatch, eval_loader, train_loader
from embedmask.data.transforms import EvalTransform, TrainTransform
from embedmask.device import choose_workers
from embedmask.errors import BadInput


class TrainValDataModule(LightningDataModule):
    """The splits `train` and `val` of a data folder, opened and checked on construction.

    Attributes:
        train_set: training split with the augmentation of the recipe.
        val_set: validation split with images in their own frame.
        evaluated: indices of the val images to evaluate; None: all.
        start: number of batches, over all epochs, that a resumed run has trained on already.

    Raises:
        BadInput: a split is missing or invalid, or the two differ in their classes.
    """

    def __init__(self, data: Path, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.evaluated: Sequence[int] | None = None
        self.start = 0
        self._batches_per_epoch: int | None = None
        transform = TrainTransform(recipe.data, recipe.model.image_rounding)
        self.train_set, self.val_set = open_train_val(data, recipe.data, transform, recipe.model.reading())
        if not len(self.train_set) or not len(self.val_set):
            raise BadInput(f"{data}: train and val must have at least one image each")
        check_same_classes(self.train_set, self.val_set)

    def report_lines(self, data: Path) -> list[str]:
        """Return a line for the layout of the data, and one for each type of doubtful annotation."""
        layouts = [self.train_set.layout] + [self.val_set.layout] * self.val_set.has_dropped_objects
        warnings = [*self.train_set.warning_lines(), *self.val_set.warning_lines()]
        return [*(f"{data}: {layout}" for layout in layouts), *warnings]

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the data, which the checkpoint stores."""
        assert self.trainer is not None
        done = self.trainer.fit_loop.total_batch_idx + 1
        return {"batches": done, "batches_an_epoch": self.trainer.num_training_batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position of a checkpoint."""
        self.start, self._batches_per_epoch = state_dict["batches"], state_dict["batches_an_epoch"]

    def train_dataloader(self) -> DataLoader[TrainBatch]:
        """Return the loader of shuffled batches, whose order depends on the seed and the epoch alone.

        Raises:
            BadInput: a resumed run had another number of batches per epoch.
        """
        config = self.recipe.train
        world_size, rank = self._processes()
        loader = train_loader(
            self.train_set,
            batch_size=config.batch_size // config.accumulate,
            workers=choose_workers(config.workers),
            seed=config.seed,
            repeat=self.recipe.data.repeat,
            start=self.start,
            rank=rank,
            world_size=world_size,
        )
        if self._batches_per_epoch not in (None, len(loader)):
            raise BadInput(
                f"the run began with {self._batches_per_epoch} batches per epoch and cannot be resumed with "
                f"{len(loader)}; use the same data, batch_size, accumulate and repeat"
            )
        return loader

    def val_dataloader(self) -> DataLoader[EvalBatch]:
        """Return the loader of val images, one per batch since padding would change GroupNorm's statistics."""
        world_size, rank = self._processes()
        return eval_loader(
            self.val_set,
            EvalTransform.from_config(self.recipe.model),
            workers=choose_workers(self.recipe.train.workers),
            rank=rank,
            world_size=world_size,
            positions=self.evaluated,
        )

    def _processes(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer is not None else (1, 0)
