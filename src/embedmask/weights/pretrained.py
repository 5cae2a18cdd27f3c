"""Initial weights of the backbone, from a file, timm or at random, and the settings that they require."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import constants, try_to_load_from_cache
from safetensors import safe_open
from torch import Tensor

from embedmask.config import DetectorConfig, TrainConfig, model_type_of
from embedmask.errors import BadInput, name_some
from embedmask.model.backbone import Backbone, pretrained_name
from embedmask.weights import caffe
from embedmask.weights.checkpoint import (
    FORMAT,
    file_form,
    read_config,
    read_torch_file,
    reading_safetensors,
    without_prefix,
)
from embedmask.weights.hub import check_connection, first_line
from embedmask.weights.released import missing_weights_error

OPTIONAL = ("image_mean", "image_std", "backbone_norm_eps")
"""Settings that weights change only where they are None."""
INPUT = ("channel_order", "image_norm", "stride_in_1x1", *OPTIONAL)
"""Settings that change the output of the same weights."""
RANDOM: Mapping[str, Any] = {"backbone_norm": "batch", "frozen_stages": 0}
"""Settings of random weights, which must not be frozen."""
SETTINGS = (*INPUT, *RANDOM)
"""Settings that initial weights may change."""

EFFICIENTNET = re.compile(r"_(conv_stem|conv_head|fc|bn\d|blocks\.\d+\._\w+)\.\w+")
"""Tensor names of the EfficientNet-PyTorch package, whose order is that of timm's `tf_` models."""
COUNTER = "num_batches_tracked"
"""Batch counter of BatchNorm; frozen layers have none."""

Weights = Mapping[str, Tensor]


def adapt_config(config: DetectorConfig, train: TrainConfig, report: Callable[[str], None]) -> DetectorConfig:
    """Return the config with the settings that the initial weights require.

    Detectron's files and `train.init` set the image normalization that they were trained with, except a mean, standard
    deviation or epsilon that the config sets. Random weights are not frozen.

    Args:
        config: config of the recipe.
        train: source of the initial weights (`init`, `pretrained`).
        report: receives one line that lists the changes.

    Raises:
        BadInput: a weights file cannot be read, or belongs to another backbone.
    """
    required: Mapping[str, Any]
    if train.init is not None:
        source = f"train.init {train.init}"
        try:
            trained = read_config(train.init)
            model_type_of(trained).load("objective")  # an exported file has no weights to continue from
        except BadInput as error:
            raise BadInput(f"train.init {error}") from None
        check_same_backbone(config.backbone, trained.backbone, train.init)
        required = {name: getattr(trained, name) for name in INPUT}
    elif isinstance(train.pretrained, str):
        source, required = f"train.pretrained {train.pretrained}", read_backbone_file(train.pretrained)[1]
    else:
        source, required = "random weights cannot be frozen", {} if train.pretrained else RANDOM
    current = {name: getattr(config, name) for name in required}
    changes = {
        name: value
        for name, value in required.items()
        if value != current[name] and (name not in OPTIONAL or current[name] is None)
    }
    # filling in the optional settings of `init` is not reported on its own
    if changes and (train.init is None or not set(changes) <= set(OPTIONAL)):
        listed = (f"model.{name} to {value}" for name, value in changes.items())
        report(f"{source}: sets {', '.join(listed)}")
    return replace(config, **changes)


def load_pretrained(backbone: Backbone, source: bool | str = True) -> str:
    """Copy pretrained weights into a backbone, in place.

    Args:
        backbone: backbone to initialize.
        source: a file (see `read_backbone_file`), or True for timm's weights of this backbone.

    Returns:
        One line with the source, the number of tensors, and the names of missing and unused tensors.

    Raises:
        BadInput: the file is missing or belongs to another architecture (the message names the first mismatch), or
            timm's weights cannot be downloaded.
    """
    if isinstance(source, str):
        return _copy_tensors(backbone, read_backbone_file(source)[0], source)
    name = pretrained_name(backbone.name)
    return _copy_tensors(backbone, fetch_timm_weights(name), f"timm's {name}")


def read_backbone_file(path: str | Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Read the weights of a backbone from an untrusted file, without running code.

    Supported are state dicts in safetensors and torch files, with the names of timm or of torchvision's ResNets, and
    pickles of Detectron's model zoo (`R-50.pkl`).

    Returns:
        Name -> tensor on the CPU, and the fields of `DetectorConfig` that the weights require.

    Raises:
        BadInput: the file is missing or damaged, is a whole EmbedMask model, or contains objects other than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise missing_weights_error(
            path, "; timm's weights are selected by --model.backbone, such as resnet50.tv_in1k"
        )
    form = file_form(path)
    if form == "safetensors":
        with reading_safetensors(path), safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("format") == FORMAT:
                raise BadInput(f"{path}: a whole EmbedMask model; use it with --train.init {path}")
            return without_prefix({name: file.get_tensor(name) for name in file.keys()}), {}  # noqa: SIM118
    if form == "pickle" or (form is None and path.suffix == ".pkl"):
        return caffe.read_caffe_file(path), caffe.SETTINGS
    return read_torch_file(path), {}


def check_same_backbone(recipe: str, source: str, init: str) -> None:
    """Raise `BadInput` if the backbone of a recipe and that of its initial model differ apart from their tags.

    Args:
        recipe, source: backbones of the recipe and of the initial model.
        init: path or name of the initial model, for the error message.
    """
    if recipe.partition(".")[0] != source.partition(".")[0]:
        raise BadInput(f"train.init {init}: its backbone is {source}, the recipe's {recipe}; use the same")


def _copy_tensors(backbone: Backbone, tensors: Weights, source: str) -> str:
    """Copy tensors to the backbone if they are those of its architecture; return a summary."""
    full: Weights = timm.create_model(backbone.name).state_dict()
    # EfficientNet-PyTorch: take timm's names in order; surplus tensors stay and are reported as unexpected
    ordered = all(map(EFFICIENTNET.fullmatch, tensors))
    if ordered:
        tensors = dict(zip([*full, *list(tensors)[len(full) :]], tensors.values(), strict=False))
    # key -> (name, tensor) of the whole timm model with its classifier, of the file, and key -> name of the backbone
    expected = {_key(name): (name, value) for name, value in full.items()}
    source_tensors = {_key(name): (name, value) for name, value in tensors.items()}
    names = {_key(name): name for name in backbone.body.state_dict()}
    problem = f"{source}: not weights of {backbone.name}"
    # when matched by order, the classifier must also fit, since it confirms the order
    for key in expected if ordered else names:
        name, value = expected[key]
        if key not in source_tensors and not name.endswith(COUNTER):
            raise BadInput(f"{problem}: tensor {name!r} {list(value.shape)} is missing")
        if key in source_tensors and (shape := source_tensors[key][1].shape) != value.shape:
            raise BadInput(f"{problem}: tensor {name!r} is {list(shape)}, expected {list(value.shape)}")
    for name, value in (source_tensors[key] for key in source_tensors if key not in expected):
        raise BadInput(f"{problem}: unexpected tensor {name!r} {list(value.shape)}")
    matching = {names[key]: source_tensors[key][1] for key in names if key in source_tensors}
    backbone.body.load_state_dict(matching, strict=False)
    missing = [name for name in names.values() if name not in matching]
    rest = (name for key, (name, _) in expected.items() if key in source_tensors and key not in names)
    unused = [name for name in rest if not name.endswith(COUNTER)]
    return (
        f"backbone {backbone.name}: {len(names) - len(missing)} of {len(names)} tensors from {source}"
        f"{', matched by their order' if ordered else ''}; missing: {name_some(missing, 4) or 'none'}; "
        f"not used: {name_some(unused, 4) or 'none'}"
    )


def _key(name: str) -> str:
    """Return a key that is the same in a timm model and in its feature net, which flattens or prefixes names."""
    return name.removeprefix("model.").replace(".", "_")


def fetch_timm_weights(name: str) -> Weights:
    """Return timm's weights of a model, from the hub's cache or downloaded.

    Args:
        name: name of the model with the tag of its weights.

    Raises:
        BadInput: timm has no such weights, or they cannot be downloaded.
    """
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise BadInput(
            f"timm has no weights of backbone {name!r}; give a file with --train.pretrained FILE, "
            "or choose another tag or backbone"
        )
    names = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    hub = f"{constants.ENDPOINT}/{config.hf_hub_id}/resolve/main/{names[0]}"
    url = hub if config.hf_hub_id else str(config.url)
    # look in the cache first, so that cached weights need no connection
    cached = [try_to_load_from_cache(config.hf_hub_id, each) for each in names if config.hf_hub_id]
    files = [path for path in cached if isinstance(path, str)]
    try:
        if not files:
            check_connection(url)
        source = timm.create_model(
            name,
            pretrained=True,
            features_only=True,
            pretrained_cfg_overlay={"file": files[0]} if files else {},
        )
    except Exception as error:  # timm passes on errors of the hub, the network and the disk
        raise BadInput(
            f"the ImageNet weights of {name!r} could not be downloaded ({first_line(error)}); "
            f"download {url} on a machine with a connection and give the file with --train.pretrained FILE"
        ) from None
    weights: Weights = source.state_dict()
    return weights
