"""Quantization of an exported graph to int8 after training, by NNCF, for OpenVINO on processors that multiply int8."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedmask.config import DetectorConfig
from embedmask.data.coco import CocoInstances
from embedmask.data.transforms import EvalTransform
from embedmask.device import has_int8_units
from embedmask.errors import BadInput

LAST_LAYERS = (
    "trunk.head.class_logits", "trunk.head.box", "trunk.head.centerness", "trunk.head.proposal_reduce",
    "trunk.head.proposal_embed", "trunk.head.margin", "trunk.head.pixel_branch.embed", "embeddings",
)  # fmt: skip
"""Layers of the graph whose outputs are predictions; they and all after them stay float32."""
CROP_SIDES = (384, 512)
"""Smallest and largest side of the calibration images, px. Images that are smaller than their crop stay whole."""
MIN_IMAGES = 16
"""Minimum number of calibration images: the ranges of activations come from them alone."""


def check_int8(count: int) -> None:
    """Check that quantization to int8 can begin.

    Args:
        count: number of calibration images.

    Raises:
        BadInput: NNCF is missing, the processor has no units for int8, or there are too few images.
    """
    if count < MIN_IMAGES:
        raise BadInput(f"--images {count}: calibration needs at least {MIN_IMAGES} images")
    if not has_int8_units():
        raise BadInput("int8 needs a processor with VNNI or AMX; export for this one without --int8")
    try:
        _nncf()
    except ImportError:
        raise BadInput("int8 needs NNCF; pip install 'embedmask[export,int8]'") from None


def calibration_images(
    dataset: CocoInstances, config: DetectorConfig, count: int, seed: int = 0
) -> list[NDArray[np.uint8]]:
    """Read random images, resize them as the network's input, and crop them to sides of 384 to 512 px.

    Returns:
        `count` images, uint8 RGB `[1, 3, h, w]`; sides are multiples of 32 px where the image is large enough.

    Raises:
        BadInput: the data set has fewer images.
    """
    if len(dataset) < count:
        raise BadInput(
            f"{dataset.annotations_file}: {len(dataset)} images, calibration uses {count}; pass --images {len(dataset)}"
            if len(dataset) >= MIN_IMAGES
            else f"{dataset.annotations_file}: {len(dataset)} images; calibration needs at least {MIN_IMAGES}"
        )
    rng, resize = np.random.default_rng(seed), EvalTransform.from_config(config)
    images = []
    for index in sorted(rng.choice(len(dataset), count, replace=False).tolist()):
        pixels = resize.image(dataset.image(index)).numpy()  # [3, H, W]
        sides = rng.integers(CROP_SIDES[0] // 32, CROP_SIDES[1] // 32 + 1, 2) * 32
        free = np.maximum(np.array(pixels.shape[1:]) - sides, 0)
        y, x = rng.integers(0, free + 1)
        images.append(np.ascontiguousarray(pixels[None, :, y : y + sides[0], x : x + sides[1]]))
    return images


def quantize(graph: Any, images: Sequence[NDArray[np.uint8]]) -> Any:
    """Return the int8 graph of a float32 graph: convolutions in symmetric int8, last layers in float32.

    Args:
        graph: of `openvino_model`; it is not changed.
        images: as from `calibration_images`.
    """
    nncf = _nncf()
    quantizing = functools.partial(
        nncf.quantize,
        graph.clone(),
        nncf.Dataset(list(images)),
        subset_size=len(images),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        fast_bias_correction=False,
        ignored_scope=nncf.IgnoredScope(names=float32_names(graph)),
    )
    # NNCF draws progress bars and tables on stdout. Its own thread keeps the stacks for signal handlers of its many
    # `openvino.Core`, see `openvino_core`
    with contextlib.redirect_stdout(io.StringIO()), ThreadPoolExecutor(1) as thread:
        return thread.submit(quantizing).result()


def float32_names(graph: Any) -> list[str]:
    """Return the names of the operators outside the network's trunk: preprocessing, last layers and all after them."""
    operators = graph.get_ordered_ops()  # inputs first
    last = tuple(f"{layer}{end}" for layer in LAST_LAYERS for end in "./")
    after: set[str] = set()
    inside: set[str] = set()
    for operator in operators:
        name = operator.get_friendly_name()
        inputs = {value.get_node().get_friendly_name() for value in operator.input_values()}
        is_convolution = operator.get_type_name() == "Convolution"
        if inputs & after or (is_convolution and name.startswith(last)):
            after.add(name)
        elif inputs & inside or is_convolution:
            inside.add(name)
    return [name for operator in operators if (name := operator.get_friendly_name()) not in inside]


def _nncf() -> Any:
    """Import NNCF without its log and its usage statistics, which it would send over the network."""
    os.environ.setdefault("NNCF_CI", "1")
    nncf = importlib.import_module("nncf")
    logging.getLogger("nncf").setLevel(logging.ERROR)  # its import sets another level
    return nncf
