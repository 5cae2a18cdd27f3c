"""`Recipe`: a whole experiment, as a YAML file says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml

from embedmask.config.convert import from_dict, to_dict
from embedmask.config.data import DataConfig
from embedmask.config.detector import DetectorConfig
from embedmask.config.model import PRESETS, ModelConfig
from embedmask.config.model_types import DEFAULT_KIND, model_from_dict, model_to_dict
from embedmask.config.train import TrainConfig
from embedmask.errors import BadInput
from embedmask.fields import nearest


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole experiment: what `embedmask train --config` reads and what a results folder keeps."""

    model: DetectorConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str) -> Self:
        """`{preset, model, data, train}`, each part optional; `model: maskrcnn` alone names a kind of model."""
        known = ("preset", "model", "data", "train")
        unknown = set(values) - set(known)
        if unknown:
            key = min(unknown, key=str)
            raise BadInput(f"{where}: unknown key {key!r}{nearest(key, known)}; use {', '.join(known)}")
        parts = {name: values.get(name) or {} for name in ("model", "data", "train")}
        if isinstance(parts["model"], str):
            parts["model"] = {"kind": parts["model"]}
        for name, part in parts.items():
            if not isinstance(part, Mapping):
                raise BadInput(f"{where}: {name} must be a mapping of fields, got {part!r}")
        preset = _preset(values, where, parts["model"])
        return cls(
            model=model_from_dict({**preset, **parts["model"]}, where=f"{where}: model"),
            data=from_dict(DataConfig, parts["data"], where=f"{where}: data"),
            train=from_dict(TrainConfig, parts["train"], where=f"{where}: train"),
        )

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read a recipe file; raises `BadInput` on anything that is not one."""
        return cls.from_mapping(read_yaml(path), where=str(path))

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping that `from_mapping` takes back."""
        return {"model": model_to_dict(self.model), "data": to_dict(self.data), "train": to_dict(self.train)}


def _preset(values: Mapping[str, Any], where: str, model: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the version of EmbedMask that a recipe starts from; of another kind there is one version."""
    if model.get("kind", DEFAULT_KIND) != DEFAULT_KIND:
        if "preset" in values:
            raise BadInput(f"{where}: a preset is a version of EmbedMask; leave it out for {model['kind']!r}")
        return {}
    preset = values.get("preset", "paper")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise BadInput(f"{where}: unknown preset {preset!r}{nearest(str(preset), PRESETS)}")
    return PRESETS[preset]


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML mapping from disk; an empty file is an empty mapping."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path}: no such recipe file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error.__class__.__name__})") from None
    except yaml.YAMLError as error:
        raise BadInput(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise BadInput(f"{path}: expected a mapping with preset, model, data, train")
    return values
