"""`Recipe`: the full configuration of an experiment, read from YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from embedmask.config.convert import current_names, from_dict, to_dict
from embedmask.config.data import DataConfig
from embedmask.config.detector import DetectorConfig
from embedmask.config.model import PRESETS, ModelConfig
from embedmask.config.model_types import DEFAULT_TYPE, model_from_dict, model_to_dict
from embedmask.config.train import TrainConfig
from embedmask.errors import BadInput
from embedmask.fields import nearest
from embedmask.files import parse_yaml


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Full configuration of an experiment, as in the files of `embedmask train --config` and in results folders."""

    model: DetectorConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str) -> Self:
        """Build a recipe from `{preset, model, data, train}`, each optional.

        Args:
            values: sections of plain values; `model` may be the name of a model type instead.
            where: source of the values, for error messages.

        Raises:
            BadInput: a key, field, preset or model type is unknown, or a value is invalid.
        """
        known = ("preset", "model", "data", "train")
        unknown = set(values) - set(known)
        if unknown:
            key = min(unknown, key=str)
            raise BadInput(f"{where}: unknown key {key!r}{nearest(key, known)}; use {', '.join(known)}")
        parts = {
            name: {} if values.get(name) is None else values[name] for name in ("model", "data", "train")
        }
        if isinstance(parts["model"], str):
            parts["model"] = {"kind": parts["model"]}
        for name, part in parts.items():
            if not isinstance(part, Mapping):
                raise BadInput(f"{where}: {name} must be a mapping of fields, got {part!r}")
        model = _add_preset(values, where, parts["model"])
        return cls(
            model=model_from_dict(model, where=f"{where}: model"),
            data=from_dict(DataConfig, parts["data"], where=f"{where}: data"),
            train=from_dict(TrainConfig, parts["train"], where=f"{where}: train"),
        )

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read a recipe file.

        Raises:
            BadInput: the file cannot be read or is not a valid recipe.
        """
        return cls.from_mapping(read_yaml(path), where=str(path))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `from_mapping` reads."""
        return {"model": model_to_dict(self.model), "data": to_dict(self.data), "train": to_dict(self.train)}


def _add_preset(values: Mapping[str, Any], where: str, model: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add the fields of the recipe's preset to those of an EmbedMask model; other model types have none."""
    if model.get("kind", DEFAULT_TYPE) != DEFAULT_TYPE:
        if "preset" in values:
            raise BadInput(f"{where}: presets exist for EmbedMask only; omit preset for {model['kind']!r}")
        return model
    preset = values.get("preset", "paper")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise BadInput(f"{where}: unknown preset {preset!r}{nearest(str(preset), PRESETS)}")
    return {**PRESETS[preset], **current_names(ModelConfig, model, f"{where}: model")}


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping; an empty file gives an empty one.

    Raises:
        BadInput: the file is missing, unreadable, not YAML, or not a mapping.
    """
    try:
        values = parse_yaml(Path(path).read_text(encoding="utf-8"), path)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such recipe file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error.__class__.__name__})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise BadInput(f"{path}: expected a mapping with preset, model, data, train")
    return values
