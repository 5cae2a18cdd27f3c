"""Registry of the types of model, by their names in recipes and model files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from embedmask.config.convert import from_dict, to_dict
from embedmask.config.detector import DetectorConfig
from embedmask.config.exported import ExportedConfig
from embedmask.config.maskrcnn import MaskRCNNConfig
from embedmask.config.model import ModelConfig
from embedmask.errors import BadInput
from embedmask.fields import nearest

Part = Literal["model", "objective", "postprocessor", "network"]


@dataclass(frozen=True, kw_only=True)
class ModelType:
    """Entry of the registry.

    The parts other than the config are named `module:attribute` and imported by `load` on first use, since configs do
    not depend on torch and are imported by all other modules.

    Attributes:
        title: name in messages.
        config: config class.
        model: subclass of `Detector`, built from the config alone.
        objective: function from the config to a function `(model, batch, targets) -> LossTerms`, where `batch` is an
            `ImageBatch` and `targets` has one `Target` per image; None: the type cannot be trained or saved.
        postprocessor: class with `from_config`, which takes the config and the arguments of `make_postprocessor` in
            their order; its objects are `PostProcessing`.
        network: function from `(model, engine, dtype)` to the `Network` of inference.
    """

    title: str
    config: type[DetectorConfig]
    model: str
    objective: str | None
    postprocessor: str
    network: str = "embedmask.inference.engines:copy_network"

    def load(self, part: Part) -> Any:
        """Import a part; `BadInput` for the objective of a type without one."""
        if getattr(self, part) is None:
            raise BadInput(f"a {self.title} cannot be trained; use the model file that it was made from")
        module, _, attribute = getattr(self, part).partition(":")
        return getattr(import_module(module), attribute)


MODEL_TYPES: dict[str, ModelType] = {
    "embedmask": ModelType(
        title="EmbedMask",
        config=ModelConfig,
        model="embedmask.model.embedmask:EmbedMask",
        objective="embedmask.objective.criterion:make_objective",
        postprocessor="embedmask.inference.postprocess:Postprocessor",
        network="embedmask.inference.engines:fused_network",
    ),
    "maskrcnn": ModelType(
        title="Mask R-CNN",
        config=MaskRCNNConfig,
        model="embedmask.model.maskrcnn:MaskRCNN",
        objective="embedmask.model.maskrcnn:make_objective",
        postprocessor="embedmask.model.maskrcnn_postprocess:MaskRCNNPostprocessor",
    ),
    "exported": ModelType(
        title="file of embedmask export",
        config=ExportedConfig,
        model="embedmask.weights.exported:ExportedModel",
        objective=None,
        postprocessor="embedmask.inference.exported:ExportedPostprocessor",
        network="embedmask.inference.exported:exported_network",
    ),
}
DEFAULT_TYPE = "embedmask"


def model_type_name(config: DetectorConfig) -> str:
    """Return the name of a config's model type in `MODEL_TYPES`."""
    return next(name for name, entry in MODEL_TYPES.items() if type(config) is entry.config)


def model_type_of(config: DetectorConfig) -> ModelType:
    """Return the registry's entry of a config."""
    return MODEL_TYPES[model_type_name(config)]


def model_from_dict(values: Mapping[str, Any], where: str) -> DetectorConfig:
    """Build the config of the model type `values["kind"]`, by default EmbedMask.

    Args:
        values: field name -> plain value, and `kind`.
        where: source of the values, for error messages.

    Raises:
        BadInput: the type or a field is unknown (the message suggests the nearest), or a value is invalid.
    """
    name = values.get("kind", DEFAULT_TYPE)
    known = [key for key, entry in MODEL_TYPES.items() if entry.objective is not None]
    if name not in known:
        raise BadInput(
            f"{where}: unknown model type {name!r}{nearest(str(name), known)}; use {' or '.join(known)}"
        )
    return from_dict(MODEL_TYPES[name].config, {k: v for k, v in values.items() if k != "kind"}, where=where)


def model_to_dict(config: DetectorConfig) -> dict[str, Any]:
    """Return the plain values that `model_from_dict` reads; those of EmbedMask have no `kind`.

    Raises:
        BadInput: the type cannot be saved.
    """
    name = model_type_name(config)
    if MODEL_TYPES[name].objective is None:
        raise BadInput(f"a {MODEL_TYPES[name].title} cannot be saved as a model file; copy it instead")
    return to_dict(config) if name == DEFAULT_TYPE else {"kind": name, **to_dict(config)}
