"""Conversion of the authors' checkpoints to model files."""

from __future__ import annotations

from pathlib import Path

from embedmask.config import ModelConfig
from embedmask.errors import BadInput
from embedmask.model.embedmask import EmbedMask
from embedmask.weights.checkpoint import read_torch_file, save
from embedmask.weights.official import convert

COCO_CLASSES = 80


def convert_file(official: Path, out: Path) -> ModelConfig:
    """Convert a checkpoint of the authors' code to a model file and return its config.

    Raises:
        BadInput: The file is not a checkpoint of the authors' code, is damaged, or would execute code.
    """
    if out.suffix != ".safetensors":
        raise BadInput(f"--out {out}: model files end in .safetensors")
    config, state = convert(read_torch_file(official))
    model = EmbedMask(config)
    model.load_state_dict(state)
    save(model, out, class_names=class_names(config.num_classes))
    return config


def class_names(count: int) -> list[str]:
    """Return COCO's class names for 80 classes, else numbered names: the authors' files contain none."""
    if count != COCO_CLASSES:
        return [f"class {label}" for label in range(count)]
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

    # torchvision lists COCO's 91 category ids, of which 80 have a name
    listed = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return [name for name in listed if name not in ("__background__", "N/A")]
