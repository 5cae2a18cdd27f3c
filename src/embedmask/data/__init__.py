"""Pictures and ground truth, from a folder to batches."""

from embedmask.data.annotations import Annotations
from embedmask.data.coco import CocoInstances
from embedmask.data.images import read_image, read_size, resize_image
from embedmask.data.layouts import SplitFiles, find_split
from embedmask.data.loader import collate, eval_loader, train_loader
from embedmask.data.transforms import EvalTransform, TrainTransform, resized_size

__all__ = [
    "Annotations",
    "CocoInstances",
    "EvalTransform",
    "SplitFiles",
    "TrainTransform",
    "collate",
    "eval_loader",
    "find_split",
    "read_image",
    "read_size",
    "resize_image",
    "resized_size",
    "train_loader",
]
