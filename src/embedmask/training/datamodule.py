"""The two splits of a data set, as loaders that know how many processes share the work."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from embedmask.config import Recipe
from embedmask.data.coco import CocoInstances
from embedmask.data.loader import EvalBatch, TrainBatch, eval_loader, train_loader
from embedmask.data.transforms import EvalTransform, TrainTransform
from embedmask.errors import BadInput
from embedmask.inference.loop import choose_workers


class SplitPair(LightningDataModule):
    """`train` and `val` of one folder, opened and checked at once.

    Attributes:
        train_set: the training split, with the recipe's random views.
        val_set: the validation split, pictures in their own frame.

    Raises:
        BadInput: a split is missing or broken, or the two disagree on the classes.
    """

    def __init__(self, data: Path, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.train_set = CocoInstances.open(data, "train", TrainTransform(recipe.data))
        self.val_set = CocoInstances.open(data, "val")
        if not len(self.train_set) or not len(self.val_set):
            raise BadInput(f"{data}: train and val need at least one picture each")
        ours, theirs = (
            list(zip(s.category_ids, s.class_names, strict=True)) for s in (self.train_set, self.val_set)
        )
        if ours != theirs:
            raise BadInput(
                f"{self.val_set.annotations_file}: its categories {theirs[:8]} are not those of train, "
                f"{ours[:8]}; give both splits the same list"
            )

    def train_dataloader(self) -> DataLoader[TrainBatch]:
        """Shuffled batches; the order depends on the seed and the epoch alone."""
        config = self.recipe.train
        world_size, rank = self._processes()
        return train_loader(
            self.train_set,
            batch_size=config.batch_size,
            workers=choose_workers(config.workers),
            seed=config.seed,
            repeat=self.recipe.data.repeat,
            rank=rank,
            world_size=world_size,
        )

    def val_dataloader(self) -> DataLoader[EvalBatch]:
        """Pictures of val in the network's frame, one a batch: padding would change what GroupNorm sees."""
        model = self.recipe.model
        world_size, rank = self._processes()
        return eval_loader(
            self.val_set,
            EvalTransform(model.image_short_side, model.image_long_side),
            batch_size=1,
            workers=choose_workers(self.recipe.train.workers),
            rank=rank,
            world_size=world_size,
        )

    def _processes(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer is not None else (1, 0)
