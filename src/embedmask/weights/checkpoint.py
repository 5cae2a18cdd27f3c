"""Checkpoints: a safetensors file with the weights, the config of the model and the class names.

Torch files, which may contain code, are read by `read_torch_file` only, restricted to tensors and plain values.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from embedmask.config import DetectorConfig, model_from_dict, model_to_dict
from embedmask.errors import BadInput
from embedmask.files import atomic_write
from embedmask.model.build import build_model
from embedmask.model.detector import Detector
from embedmask.weights.exported import ExportedModel, is_exported, read_exported
from embedmask.weights.released import find_weights, missing_weights_error

FORMAT = "embedmask"
VERSION = 1
TORCH_PICKLE = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"
"""First bytes of a torch file from before torch 1.6; newer ones are zip archives."""


@dataclass(frozen=True)
class Checkpoint:
    """Content of a checkpoint file.

    Attributes:
        config: config of the network and its post-processing.
        model: network with its weights, on the CPU, in eval mode.
        class_names: name of each of the `config.num_classes` labels.
    """

    config: DetectorConfig
    model: Detector
    class_names: list[str]


def save(
    model: Detector,
    path: str | Path,
    *,
    class_names: Sequence[str],
    dtype: torch.dtype | None = None,
    config: DetectorConfig | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the weights, the config and the class names to one safetensors file, atomically.

    Args:
        model: model to save.
        path: file to write.
        class_names: name of each of the `model.config.num_classes` labels.
        dtype: dtype of the weights in the file, such as torch.float16 for half the size; None: unchanged.
        config: config to write instead of the model's, for example with another threshold.
        metadata: further entries of the file's metadata.

    Raises:
        BadInput: the number of names is wrong, `dtype` cannot represent the weights, or the file cannot be written.
    """
    names, count = list(class_names), model.config.num_classes
    if isinstance(class_names, str) or len(names) != count:
        raise BadInput(
            f"{path}: {len(names)} class names for a model of {count} classes; give one name per class"
        )
    entries = {
        **(metadata or {}),
        "format": FORMAT,
        "version": str(VERSION),
        "config": json.dumps(model_to_dict(config or model.config)),
        "class_names": json.dumps(names),
    }
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise BadInput(
            f"{path}: dtype {dtype} is not a dtype of weights; use torch.float16, bfloat16 or float32"
        )
    state = model.state_dict()
    tensors = {
        name: value.detach().to("cpu", dtype if value.is_floating_point() else None).contiguous()
        for name, value in state.items()
    }
    for name, value in state.items():
        if bool(value.isfinite().all()) and not bool(tensors[name].isfinite().all()):
            raise BadInput(f"{path}: {name} has values outside the range of {dtype}; use another dtype")
    with atomic_write(path) as temporary:
        _write_safetensors(temporary, tensors, entries)


def _write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file with sorted metadata, so that equal models give equal files."""
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        # the library reports errors of the disk as text only
        code = re.search(r"os error (\d+)", str(error))
        raise (OSError(int(code[1]), os.strerror(int(code[1]))) if code else OSError(str(error))) from error
    with path.open("rb+") as file:
        # 8 bytes of header length, little-endian, then the header as JSON padded with spaces, then the tensors;
        # the library writes the metadata in random order, so it is sorted in place: the length stays the same
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        file.seek(8)
        file.write(json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(size))


def load(path: str | Path) -> Detector:
    """Load the network of a checkpoint file or a released model; see `load_checkpoint`."""
    return load_checkpoint(path).model


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Load a checkpoint written by `save`.

    Args:
        path: a file, the name of a released model (`nuclei`), or a file of `embedmask export`. Weights in half
            precision become float32.

    Raises:
        BadInput: the file is missing, truncated or damaged, is not an EmbedMask checkpoint, comes from a newer version,
            or its tensors differ from those of its config (the message names the first).
    """
    path = find_weights(path)
    if is_exported(path):
        exported, settings = read_exported(path)
        return Checkpoint(exported, ExportedModel(exported, path, settings).eval(), settings.class_names)
    with _open_checkpoint(path) as file:
        config, class_names = _parse_metadata(file.metadata() or {}, path)
        model = build_model(config)
        # compare names and shapes before any tensor is read
        expected = {name: list(value.shape) for name, value in model.state_dict().items()}
        shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        fix = "the file does not match its config, save or convert it again"
        for name, shape in expected.items():
            if name not in shapes:
                raise BadInput(f"{path}: tensor {name!r} is missing; {fix}")
            if shapes[name] != shape:
                raise BadInput(f"{path}: tensor {name!r} is {shapes[name]}, expected {shape}; {fix}")
        for name in shapes:
            if name not in expected:
                raise BadInput(f"{path}: unexpected tensor {name!r}; {fix}")
        model.load_state_dict({name: file.get_tensor(name) for name in shapes})
    return Checkpoint(config=model.config, model=model.eval(), class_names=class_names)


def read_config(path: str | Path) -> DetectorConfig:
    """Read the config of a checkpoint without its weights; arguments and errors as in `load_checkpoint`."""
    path = find_weights(path)
    if is_exported(path):
        return read_exported(path)[0]
    with _open_checkpoint(path) as file:
        return _parse_metadata(file.metadata() or {}, path)[0]


@contextmanager
def _open_checkpoint(path: Path) -> Iterator[Any]:
    if path.suffix == ".ckpt":
        raise BadInput(
            f"{path}: the state of a training, to resume it; give model.safetensors of that folder"
        )
    if file_form(path) in ("torch", "pickle"):
        raise BadInput(
            f"{path}: a torch file, not an EmbedMask checkpoint; "
            f"convert it: embedmask convert {path.name} --out {path.stem}.safetensors"
        )
    with reading_safetensors(path), safe_open(path, framework="pt") as file:
        yield file


@contextmanager
def reading_safetensors(path: Path) -> Iterator[None]:
    """Convert errors of reading a safetensors file to `BadInput`."""
    try:
        yield
    except SafetensorError as error:
        raise BadInput(f"{path}: truncated or damaged ({error}); copy or download it again") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror or error})") from None


def file_form(path: Path) -> Literal["safetensors", "torch", "pickle"] | None:
    """Return the format of a weights file by its first bytes; None if it is unknown.

    Raises:
        BadInput: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(TORCH_PICKLE))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror or error})") from None
    # safetensors: 8 bytes of header length, then JSON. Tested first, since the length may also begin with 0x80
    if start[8:9] == b"{":
        return "safetensors"
    if start.startswith((b"PK\x03\x04", TORCH_PICKLE)):
        return "torch"
    return "pickle" if start.startswith(b"\x80") else None  # opcode PROTO, from protocol 2 on


def read_torch_file(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a torch file: bare, or under "model" or "state_dict".

    Only tensors and plain values are unpickled. A file with other objects is rejected before any code runs.

    Returns:
        Name -> tensor on the CPU, without a `module.` prefix that all names share.

    Raises:
        BadInput: the file is missing, truncated or damaged, contains other objects, or has no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise missing_weights_error(path)
    values = load_plain(path, partial(torch.load, map_location="cpu", weights_only=True))
    # training checkpoints wrap the state dict, some of them twice
    for key in ("model", "state_dict"):
        if isinstance(values, Mapping) and isinstance(values.get(key), Mapping):
            values = values[key]
    if (
        not isinstance(values, Mapping)
        or not values
        or not all(isinstance(v, Tensor) for v in values.values())
    ):
        raise BadInput(
            f'{path}: contains no state dict; expected tensors by name, bare or under "model" or "state_dict"'
        )
    return without_prefix({str(name): value for name, value in values.items()})


def _parse_metadata(metadata: Mapping[str, str], path: Path) -> tuple[DetectorConfig, list[str]]:
    if metadata.get("format") != FORMAT:
        raise BadInput(
            f"{path}: safetensors, but not an EmbedMask checkpoint; use a file written by embedmask.save"
        )
    try:
        version, values = int(metadata["version"]), json.loads(metadata["config"])
        class_names = [str(name) for name in json.loads(metadata["class_names"])]
        values = dict(values)
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path}: the header is damaged ({error!r}); copy or download it again") from None
    if version > VERSION:
        raise BadInput(
            f"{path}: checkpoint format {version} is newer than {VERSION}, the latest supported; upgrade embedmask"
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


def load_plain(path: Path, read: Callable[[Path], Any]) -> Any:
    """Read a pickle with an unpickler that rejects code.

    Args:
        path: file to read.
        read: unpickler; it raises `pickle.UnpicklingError` for objects other than tensors and plain values.

    Raises:
        BadInput: the file is damaged, or contains other objects.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about old pickle protocols
            return read(path)
    except Exception as error:  # a truncated pickle may raise any error
        text = str(error) if isinstance(error, pickle.UnpicklingError) else ""
    # the messages of torch's restricted unpickler, and of `load_arrays`
    named = re.search(r"(?:unsupported global:?|it needs) (?:global )?([\w.]+)", text, re.IGNORECASE)
    foreign = re.search(r"unsupported (operand|class)|unrecognized|can only", text, re.IGNORECASE)
    if not named and not foreign:
        raise BadInput(f"{path}: truncated, damaged or not a torch file; copy or download it again")
    content = named[1].rstrip(".") if named else "objects other than tensors"
    raise BadInput(f"{path}: refused, since {content} could run code; use a file that contains tensors only")


def without_prefix(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a copy of a state dict without the prefix `module.` of data-parallel wrappers, if all names have it."""
    prefix = "module." if all(name.startswith("module.") for name in values) else ""
    return {name.removeprefix(prefix): value for name, value in values.items()}


def model_title(weights: Path) -> str:
    """Return a name for a model file: its own, or its folder's if its own is that of every run's files."""
    return weights.resolve().parent.name if weights.stem in ("model", "best", "last") else weights.stem
