"""The weights that a backbone starts from: a file's, timm's or random ones, and the settings that they require."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import constants, get_session, try_to_load_from_cache
from safetensors import safe_open
from torch import Tensor

from embedmask.config import DetectorConfig, TrainConfig
from embedmask.errors import BadInput
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
from embedmask.weights.released import no_weights

OPTIONAL = ("image_mean", "image_std", "backbone_norm_eps")
"""Settings that are None unless set; those that are set are kept."""
INPUT = ("channel_order", "stride_in_1x1", *OPTIONAL)
"""Settings with which the same weights compute something else."""
RANDOM: Mapping[str, Any] = {"backbone_norm": "batch", "frozen_stages": 0}
"""What is frozen would stay random for ever."""
SETTINGS = (*INPUT, *RANDOM)
"""All that the first weights may change."""

EFFICIENTNET = re.compile(r"_(conv_stem|conv_head|fc|bn\d|blocks\.\d+\._\w+)\.\w+")
"""Names of the EfficientNet-PyTorch package and of the lite weights made with it: the tensors of timm's `tf_` models in
the same order under other names."""
COUNTER = "num_batches_tracked"
"""BatchNorm's count of batches: not needed, and frozen layers have none."""
NUM_NAMED = 4
"""Missing or unused tensors that are named."""
TIMEOUT = 5.0
"""Seconds that the hub has for its first answer."""

Weights = Mapping[str, Tensor]


def adapt_config(config: DetectorConfig, train: TrainConfig, tell: Callable[[str], None]) -> DetectorConfig:
    """Change the settings that the first weights of the network require, and tell the changes in one line.

    Weights of Detectron's files and of `init` see images as they were trained to, unless a mean, standard deviation or
    epsilon is set. Random weights are not frozen.

    Raises:
        BadInput: a file cannot be read, or is of another backbone.
    """
    required: Mapping[str, Any]
    if train.init is not None:
        source, required = f"train.init {train.init}", _init_settings(train.init, config.backbone)
    elif isinstance(train.pretrained, str):
        source, required = f"train.pretrained {train.pretrained}", read_backbone_file(train.pretrained)[1]
    else:
        source, required = "random weights cannot be frozen", {} if train.pretrained else RANDOM
    given = {name: getattr(config, name) for name in required}
    changes = {
        name: value
        for name, value in required.items()
        if value != given[name] and (name not in OPTIONAL or given[name] is None)
    }
    # what `init` fills in is what its own run was given: no news unless a setting changes
    if changes and (train.init is None or not set(changes) <= set(OPTIONAL)):
        told = (f"model.{name} to {value}" for name, value in changes.items())
        tell(f"{source}: sets {', '.join(told)}")
    return replace(config, **changes)


def load_pretrained(backbone: Backbone, source: bool | str = True) -> str:
    """Copy pretrained weights into a backbone, in place.

    Args:
        source: a file (see `read_backbone_file`), or True for timm's weights of this backbone.

    Returns:
        One line: where they are from, how many tensors were found, which of the file were not used.

    Raises:
        BadInput: no such file, one of another architecture (the first tensor that differs is named), or timm's
            weights cannot be reached.
    """
    if isinstance(source, str):
        return _copy(backbone, read_backbone_file(source)[0], source)
    name = pretrained_name(backbone.name)
    return _copy(backbone, _fetch(name), f"timm's {name}")


def read_backbone_file(path: str | Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Read the weights of a backbone, from a file that need not be trusted: nothing in it is run.

    Read are state dicts in safetensors and torch files, with the names of timm or of torchvision's ResNets, and the
    pickles of Detectron's model zoo (`R-50.pkl`).

    Returns:
        Name -> tensor on the CPU; the settings of `DetectorConfig` that they require.

    Raises:
        BadInput: no such file, damaged, an EmbedMask model, or it asks for more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise no_weights(path, "; timm's weights are chosen by --model.backbone, as resnet50.tv_in1k")
    form = file_form(path)
    if form == "safetensors":
        return _read_safetensors(path), {}
    if form == "pickle" or (form is None and path.suffix == ".pkl"):
        return caffe.read_caffe_file(path), caffe.SETTINGS
    return read_torch_file(path), {}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with reading_safetensors(path), safe_open(path, framework="pt") as file:
        if (file.metadata() or {}).get("format") == FORMAT:
            raise BadInput(f"{path}: a whole EmbedMask model; start from it with --train.init {path}")
        return without_prefix({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def check_same_backbone(ours: str, theirs: str, init: str) -> None:
    """Raise `BadInput` unless two names are of one architecture; their tags, which name weights, may differ."""
    if ours.partition(".")[0] != theirs.partition(".")[0]:
        raise BadInput(f"train.init {init}: its backbone is {theirs}, the recipe's {ours}; use the same")


def _init_settings(path: str, backbone: str) -> dict[str, Any]:
    try:
        config = read_config(path)
    except BadInput as error:
        raise BadInput(f"train.init {error}") from None
    check_same_backbone(backbone, config.backbone, path)
    return {name: getattr(config, name) for name in INPUT}


def _copy(backbone: Backbone, tensors: Weights, source: str) -> str:
    """Copy the tensors whose names and shapes are the backbone's; those of the classifier are left out."""
    full: Weights = timm.create_model(backbone.name).state_dict()
    ordered = all(map(EFFICIENTNET.fullmatch, tensors))
    if ordered:
        tensors = dict(zip([*full, *list(tensors)[len(full) :]], tensors.values(), strict=False))
    expected = {_key(name): (name, value) for name, value in full.items()}
    held = {_key(name): (name, value) for name, value in tensors.items()}
    own = {_key(name): name for name in backbone.body.state_dict()}
    problem = f"{source}: not weights of {backbone.name}"
    for key in expected if ordered else own:
        name, value = expected[key]
        if key not in held and not name.endswith(COUNTER):
            raise BadInput(f"{problem}: tensor {name!r} {list(value.shape)} is missing")
        if key in held and held[key][1].shape != value.shape:
            raise BadInput(
                f"{problem}: tensor {name!r} is {list(held[key][1].shape)}, expected {list(value.shape)}"
            )
    for name, value in (held[key] for key in held if key not in expected):
        raise BadInput(f"{problem}: tensor {name!r} {list(value.shape)} has no place in it")
    backbone.body.load_state_dict({own[key]: held[key][1] for key in own if key in held}, strict=False)
    missing = [name for key, name in own.items() if key not in held]
    rest = (name for key, (name, _) in expected.items() if key in held and key not in own)
    unused = [name for name in rest if not name.endswith(COUNTER)]
    return (
        f"backbone {backbone.name}: {len(own) - len(missing)} of {len(own)} tensors from {source}"
        f"{', matched by their order' if ordered else ''}; missing: {_few(missing)}; not used: {_few(unused)}"
    )


def _key(name: str) -> str:
    """Spell a name as in the whole model or in timm's feature nets, which flatten it or put `model.` before it."""
    return name.removeprefix("model.").replace(".", "_")


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return (", ".join(names[:NUM_NAMED]) or "none") + more


def _fetch(name: str) -> Weights:
    """Return timm's weights of a model, with its tag, from the cache of the hub or from the hub."""
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise BadInput(
            f"timm has no weights of backbone {name!r}; give a file with --train.pretrained FILE, "
            "or choose another tag or backbone"
        )
    names = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    hub = f"{constants.ENDPOINT}/{config.hf_hub_id}/resolve/main/{names[0]}"
    url = hub if config.hf_hub_id else str(config.url)
    cached = [try_to_load_from_cache(config.hf_hub_id, each) for each in names if config.hf_hub_id]
    files = [path for path in cached if isinstance(path, str)]
    try:
        if not files:
            _check_connection(url)
        source = timm.create_model(
            name,
            pretrained=True,
            features_only=True,
            pretrained_cfg_overlay={"file": files[0]} if files else {},
        )
    except Exception as error:  # timm lets many kinds through: hub, network, disk
        reason = str(error).splitlines()[0][:120] if str(error) else error.__class__.__name__
        raise BadInput(
            f"the ImageNet weights of {name!r} could not be fetched ({reason}): "
            f"download {url} where there is a connection, and give the file with --train.pretrained FILE"
        ) from None
    weights: Weights = source.state_dict()
    return weights


def _check_connection(url: str) -> None:
    """Raise the error of one request, at most `TIMEOUT` seconds later: the hub's own retries take a minute."""
    errors: list[BaseException] = [TimeoutError(f"no answer within {TIMEOUT:.0f} s")]

    def ask() -> None:
        try:
            get_session().head(url, timeout=TIMEOUT)
            errors.clear()
        except Exception as error:
            errors.insert(0, error)

    # a thread, for the look-up of the host's name has no time limit
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    if errors:
        raise errors[0]
