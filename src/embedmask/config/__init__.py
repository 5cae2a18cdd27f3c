"""Typed configuration: the only place that holds defaults.

`ModelConfig` is what a checkpoint carries: all that is needed to rebuild the network and to turn pictures into
instances. `DataConfig` and `TrainConfig` matter in training only. A recipe (`configs/*.yaml`) is
`{preset: NAME, model: {...}, data: {...}, train: {...}}` and says only what differs from the defaults.
"""

from embedmask.config.convert import from_dict, override, to_dict
from embedmask.config.data import DataConfig
from embedmask.config.model import HINGE_MARGIN, PRESETS, ModelConfig
from embedmask.config.recipe import Recipe, read_yaml
from embedmask.config.train import Precision, TrainConfig

__all__ = [
    "HINGE_MARGIN",
    "PRESETS",
    "DataConfig",
    "ModelConfig",
    "Precision",
    "Recipe",
    "TrainConfig",
    "from_dict",
    "override",
    "read_yaml",
    "to_dict",
]
