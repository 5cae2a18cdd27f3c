"""Typed configuration: the only place that holds defaults.

Checkpoints store a `ModelConfig`, or a `MaskRCNNConfig` for the baseline: everything needed to rebuild the network and
to predict. `DataConfig` and `TrainConfig` apply to training only. A recipe (`configs/*.yaml`) is
`{preset: NAME, model: {...}, data: {...}, train: {...}}` and lists only fields that differ from the defaults;
`model: maskrcnn` selects the baseline.
"""

from embedmask.config.convert import from_dict, override, to_dict
from embedmask.config.data import DataConfig
from embedmask.config.detector import DetectorConfig, ScoreThreshold
from embedmask.config.maskrcnn import MaskRCNNConfig
from embedmask.config.model import HINGE_MARGIN, PRESETS, ModelConfig
from embedmask.config.model_types import MODEL_TYPES, model_from_dict, model_to_dict, model_type_of
from embedmask.config.reading import DEFAULT_READING, ReadOptions
from embedmask.config.recipe import Recipe, read_yaml
from embedmask.config.train import Engine, Precision, TrainConfig

__all__ = [
    "DEFAULT_READING",
    "HINGE_MARGIN",
    "MODEL_TYPES",
    "PRESETS",
    "DataConfig",
    "DetectorConfig",
    "Engine",
    "MaskRCNNConfig",
    "ModelConfig",
    "Precision",
    "ReadOptions",
    "Recipe",
    "ScoreThreshold",
    "TrainConfig",
    "from_dict",
    "model_from_dict",
    "model_to_dict",
    "model_type_of",
    "override",
    "read_yaml",
    "to_dict",
]
