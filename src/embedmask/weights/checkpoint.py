"""Checkpoints: one safetensors file that holds the weights, the config of the model and the class names.

Nothing else is needed to predict. Files of torch, which could carry code, are read by `read_torch_file`
alone, and only their tensors.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from embedmask.config import DetectorConfig, model_from_dict, model_to_dict
from embedmask.errors import BadInput
from embedmask.files import atomic_write
from embedmask.model.build import build_model
from embedmask.model.detector import Detector
from embedmask.weights.released import find_weights, no_weights

FORMAT = "embedmask"
VERSION = 1

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        config: the network and its post-processing.
        model: the network with its weights, on the CPU, in eval mode.
        class_names: name of each label, `config.num_classes` of them.
    """

    config: DetectorConfig
    model: Detector
    class_names: list[str]


def save(
    model: Detector, path: str | Path, *, class_names: Sequence[str], dtype: torch.dtype | None = None
) -> None:
    """Write the weights, the config and the class names to one safetensors file, whole or not at all.

    Args:
        class_names: name of each label, `model.config.num_classes` of them.
        dtype: of the weights in the file, as torch.float16 for half the size; None: as they are.

    Raises:
        BadInput: the number of names does not fit, `dtype` cannot hold the weights, or the file cannot be written.
    """
    names, count = list(class_names), model.config.num_classes
    if isinstance(class_names, str) or len(names) != count:
        raise BadInput(
            f"{path}: {len(names)} class names for a model of {count} classes; give one name a class"
        )
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "config": json.dumps(model_to_dict(model.config)),
        "class_names": json.dumps(names),
    }
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise BadInput(f"{path}: dtype {dtype} holds no weights; use torch.float16, bfloat16 or float32")
    state = model.state_dict()
    tensors = {name: _packed(value, dtype) for name, value in state.items()}
    for name, value in state.items():
        if bool(value.isfinite().all()) and not bool(tensors[name].isfinite().all()):
            raise BadInput(f"{path}: {name} has values beyond {dtype}; use another, or leave dtype out")
    with atomic_write(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:
            # the library hides what the disk said in a text
            code = re.search(r"os error (\d+)", str(error))
            raise (
                OSError(int(code[1]), os.strerror(int(code[1]))) if code else OSError(str(error))
            ) from error


def _packed(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    return value.detach().to("cpu", dtype if value.is_floating_point() else None).contiguous()


def load(path: str | Path) -> Detector:
    """The network of a checkpoint, or of a released model by name; on the CPU, in eval mode, as `load_checkpoint`."""
    return load_checkpoint(path).model


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Rebuild the network that `save` wrote.

    Args:
        path: a file, or the name of a model that comes with the package (`nuclei`). Weights kept in half precision
            become float32.

    Raises:
        BadInput: no such file; cut short or damaged; not an EmbedMask checkpoint; written by a newer version;
            or its tensors are not those of its config (the first that differs is named).
    """
    path = find_weights(path)
    _refuse_torch_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            config, class_names = _parse_metadata(file.metadata() or {}, path)
            model = build_model(config)
            state = model.state_dict()
            held = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            _check_tensors({name: tuple(value.shape) for name, value in state.items()}, held, path)
            model.load_state_dict({name: file.get_tensor(name) for name in held})
    except SafetensorError as error:
        raise BadInput(f"{path}: cut short or damaged ({error}); copy or download it again") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror or error})") from None
    return Checkpoint(config=config, model=model.eval(), class_names=class_names)


def read_config(path: str | Path) -> DetectorConfig:
    """Return the config of a checkpoint, from its header; path and errors as of `load_checkpoint`."""
    path = find_weights(path)
    _refuse_torch_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            return _parse_metadata(file.metadata() or {}, path)[0]
    except SafetensorError as error:
        raise BadInput(f"{path}: cut short or damaged ({error}); copy or download it again") from None


def read_torch_file(path: str | Path) -> dict[str, Tensor]:
    """Name -> tensor (CPU) of a torch file: a bare state dict, or one under "model" as the authors have it.

    A `module.` prefix that all names share (saved from a data-parallel wrapper) is taken off. Only tensors
    and plain values are unpickled: a file that asks for anything else is refused before any of it runs.

    Raises:
        BadInput: no such file; cut short or damaged; wants to execute code; or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise no_weights(path)
    values = _load_plain(path)
    if isinstance(values, Mapping) and isinstance(values.get("model"), Mapping):
        values = values["model"]
    if (
        not isinstance(values, Mapping)
        or not values
        or not all(isinstance(v, Tensor) for v in values.values())
    ):
        raise BadInput(f'{path}: holds no state dict; expected tensors by name, alone or under "model"')
    return without_prefix({str(name): value for name, value in values.items()})


def _refuse_torch_file(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror or error})") from None
    # a torch file is a zip archive, or of old a pickle; safetensors has "{" after its 8 bytes of length
    if start.startswith((b"PK\x03\x04", b"\x80")) and start[8:] != b"{":
        raise BadInput(
            f"{path}: a torch file, not an EmbedMask checkpoint; "
            f"convert it: embedmask convert {path.name} --out {path.stem}.safetensors"
        )


def _parse_metadata(metadata: Mapping[str, str], path: Path) -> tuple[DetectorConfig, list[str]]:
    if metadata.get("format") != FORMAT:
        raise BadInput(
            f"{path}: safetensors, but not an EmbedMask checkpoint; give a file written by embedmask.save"
        )
    try:
        version, values = int(metadata["version"]), json.loads(metadata["config"])
        class_names = [str(name) for name in json.loads(metadata["class_names"])]
        values = dict(values)
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path}: its header is damaged ({error!r}); copy or download it again") from None
    if version > VERSION:
        raise BadInput(
            f"{path}: checkpoint format {version}, this version reads up to {VERSION}; upgrade embedmask"
        )
    try:
        config = model_from_dict(values, where=f"{path}: config")
    except BadInput as error:
        raise BadInput(f"{error}; if a newer version wrote it, upgrade embedmask") from None
    if len(class_names) != config.num_classes:
        raise BadInput(
            f"{path}: {len(class_names)} class names for {config.num_classes} classes; save it again"
        )
    return config, class_names


def _check_tensors(expected: Shapes, held: Shapes, path: Path) -> None:
    """The names and shapes of the file must be those of the network; the first that is not is named."""
    mend = "the file and its config are of different models, save or convert it again"
    for name, shape in expected.items():
        if name not in held:
            raise BadInput(f"{path}: tensor {name!r} is missing; {mend}")
        if held[name] != shape:
            raise BadInput(f"{path}: tensor {name!r} is {list(held[name])}, expected {list(shape)}; {mend}")
    for name in held:
        if name not in expected:
            raise BadInput(f"{path}: tensor {name!r} has no place in the model; {mend}")


def _load_plain(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # torch warns of old pickle protocols; what it cannot read it raises
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler may meet anything in a file that ends early
        asked = _asked_for(error)
        if asked is None:
            raise BadInput(
                f"{path}: cut short, damaged or not a torch file; copy or download it again"
            ) from None
        raise BadInput(
            f"{path}: refused, it asks for {asked}, which could run code; give a file that holds tensors only"
        ) from None


def _asked_for(error: Exception) -> str | None:
    """What a file asked for beyond tensors and plain values; None where it is only unreadable."""
    if not isinstance(error, pickle.UnpicklingError):
        return None
    named = re.search(r"unsupported global:? (?:global )?([\w.]+)", str(error), re.IGNORECASE)
    if named:
        return named[1].rstrip(".")
    foreign = re.search(r"unsupported (operand|class)|unrecognized|can only", str(error), re.IGNORECASE)
    return "objects other than tensors" if foreign else None


def without_prefix(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of a state dict without the `module.` that all names of a data-parallel wrapper begin with."""
    start = "module." if all(name.startswith("module.") for name in values) else ""
    return {name.removeprefix(start): value for name, value in values.items()}
