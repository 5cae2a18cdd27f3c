"""The two splits of a data set, as loaders that know how many processes share the work."""

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
from embedmask.errors import BadInput
from embedmask.inference.loop import choose_workers


class TrainValDataModule(LightningDataModule):
    """`train` and `val` of one folder, opened and checked at once.

    Attributes:
        train_set: the training split, with the recipe's random views.
        val_set: the validation split, images in their own frame.
        evaluated: positions in val of the images that are evaluated; None: all.
        start: batches that an earlier part of the run has trained on, over all epochs.

    Raises:
        BadInput: a split is missing or broken, or the two disagree on the classes.
    """

    def __init__(self, data: Path, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.evaluated: Sequence[int] | None = None
        self.start = 0
        self._batches_an_epoch: int | None = None
        transform = TrainTransform(recipe.data)
        self.train_set, self.val_set = open_train_val(data, recipe.data, transform, recipe.model.reading())
        if not len(self.train_set) or not len(self.val_set):
            raise BadInput(f"{data}: train and val need at least one image each")
        check_same_classes(self.train_set, self.val_set)

    def report_lines(self, data: Path) -> list[str]:
        """Return the layout of the data, and a line for each kind of doubtful annotation of both splits."""
        layouts = [self.train_set.layout] + [self.val_set.layout] * self.val_set.leaves_out
        warnings = [*self.train_set.warning_lines(), *self.val_set.warning_lines()]
        return [*(f"{data}: {layout}" for layout in layouts), *warnings]

    def state_dict(self) -> dict[str, Any]:
        """Where in the data the run stands; a part of the checkpoint."""
        assert self.trainer is not None
        done = self.trainer.fit_loop.total_batch_idx + 1
        return {"batches": done, "batches_an_epoch": self.trainer.num_training_batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on behind the batches that are done."""
        self.start, self._batches_an_epoch = state_dict["batches"], state_dict["batches_an_epoch"]

    def train_dataloader(self) -> DataLoader[TrainBatch]:
        """Shuffled batches; the order depends on the seed and the epoch alone.

        Raises:
            BadInput: the run was begun with batches, or data, of another size.
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
        if self._batches_an_epoch not in (None, len(loader)):
            raise BadInput(
                f"the run was begun with {self._batches_an_epoch} batches an epoch and cannot go on with "
                f"{len(loader)}; give the same data, batch_size, accumulate and repeat"
            )
        return loader

    def val_dataloader(self) -> DataLoader[EvalBatch]:
        """Images of val in the network's frame, one a batch: padding would change what GroupNorm sees."""
        model = self.recipe.model
        world_size, rank = self._processes()
        return eval_loader(
            self.val_set,
            EvalTransform(model.image_short_side, model.image_long_side, model.image_rounding),
            workers=choose_workers(self.recipe.train.workers),
            rank=rank,
            world_size=world_size,
            wanted=self.evaluated,
        )

    def _processes(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer is not None else (1, 0)
