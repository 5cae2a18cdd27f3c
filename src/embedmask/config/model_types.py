"""Registry of the types of model, by their names in recipes and model files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embedmask.config.convert import from_dict, to_dict
from embedmask.config.detector import DetectorConfig
from embedmask.config.maskrcnn import MaskRCNNConfig
from embedmask.config.model import ModelConfig
from embedmask.errors import BadInput
from embedmask.fields import nearest

KINDS: dict[str, type[DetectorConfig]] = {"embedmask": ModelConfig, "maskrcnn": MaskRCNNConfig}
DEFAULT_KIND = "embedmask"


def model_from_dict(values: Mapping[str, Any], where: str) -> DetectorConfig:
    """Build the config of the model type `values["kind"]`, by default EmbedMask.

    Args:
        values: field name -> plain value, and `kind`.
        where: source of the values, for error messages.

    Raises:
        BadInput: the type or a field is unknown (the message suggests the nearest), or a value is invalid.
    """
    kind = values.get("kind", DEFAULT_KIND)
    if not isinstance(kind, str) or kind not in KINDS:
        raise BadInput(
            f"{where}: unknown model type {kind!r}{nearest(str(kind), KINDS)}; use {' or '.join(KINDS)}"
        )
    return from_dict(KINDS[kind], {k: v for k, v in values.items() if k != "kind"}, where=where)


def model_to_dict(config: DetectorConfig) -> dict[str, Any]:
    """Return the plain values that `model_from_dict` reads; those of EmbedMask have no `kind`."""
    kind = next(name for name, cls in KINDS.items() if type(config) is cls)
    return to_dict(config) if kind == DEFAULT_KIND else {"kind": kind, **to_dict(config)}
