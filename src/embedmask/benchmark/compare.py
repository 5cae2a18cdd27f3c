"""The comparison as a whole: which sides, on which load, and the report."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torchvision.models.detection import maskrcnn_resnet50_fpn

from embedmask.benchmark.calibration import (
    BOX_CELLS,
    calibrate_embedmask,
    calibrate_torchvision,
    write_test_image,
)
from embedmask.benchmark.memory import Steps, peaks_in_own_process
from embedmask.benchmark.pipelines import SETTINGS, EmbedMaskPipeline, Pipeline, Setting, TorchvisionPipeline
from embedmask.benchmark.timing import Times, interleave, machine, medians, quartiles, time_run
from embedmask.config import Engine, ModelConfig, Precision
from embedmask.data.images import read_image
from embedmask.data.transforms import EvalTransform, resized_size
from embedmask.errors import BadInput
from embedmask.inference.device import choose_device, choose_precision
from embedmask.inference.engines import make_network
from embedmask.model.embedmask import EmbedMask
from embedmask.structures import Size

OURS, THEIRS = "embedmask", "torchvision"
COMPILED = ("compile", "compiled")
"""Their peak memory would be the compiler's."""
LEAST = {"runs": 1, "warmup": 1, "detections": 1}


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What is measured; plain values, for other processes get it too.

    Attributes:
        config: of our model. Images are resized as it says, but never enlarged, and Mask R-CNN's likewise.
        weights: state dict of our model, safetensors; None: random weights.
        image_size: `(height, width)` of the image's file.
        detections: in an image, on both sides.
        engines: of ours.
        settings: of Mask R-CNN's that are tried.
        batches: images that the networks see at once.
        runs: that are counted, after `warmup` that are not.
        box_cells: sides of our random boxes, in cells of their pyramid level.
    """

    config: ModelConfig
    weights: Path | None = None
    image_size: Size = (800, 1216)
    detections: int = 100
    engines: tuple[Engine, ...] = ("torch",)
    settings: tuple[Setting, ...] = SETTINGS
    batches: tuple[int, ...] = (1,)
    runs: int = 10
    warmup: int = 2
    device: str = "auto"
    precision: Precision = "auto"
    threads: int | None = None
    box_cells: float = BOX_CELLS
    memory: bool = True

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise BadInput(f"{name}: at least {least}, got {getattr(self, name)}")
        for name in ("image_size", "batches"):
            if min(getattr(self, name)) < 1:
                raise BadInput(f"{name}: at least 1, got {min(getattr(self, name))}")
        if self.threads is not None and self.threads < 1:
            raise BadInput(f"threads: at least 1, got {self.threads}")

    @property
    def own_config(self) -> ModelConfig:
        """Ours, as `Predictor` has it: never enlarging, exact frames."""
        short = self.config.image_short_side
        return replace(
            self.config,
            image_short_side=None if short is None else min(short, *self.image_size),
            max_detections=self.detections,
            mask_frame="exact",
        )

    @property
    def network_size(self) -> Size:
        """`(height, width)` of the resized image."""
        cfg = self.own_config
        if cfg.image_short_side is None:
            return self.image_size
        return resized_size(self.image_size, cfg.image_short_side, cfg.image_long_side, cfg.image_rounding)


@dataclass(frozen=True)
class RunId:
    """Which side."""

    who: str
    setting: Any
    batch: int

    def __str__(self) -> str:
        return f"{self.who} {self.setting}" + (f", batch {self.batch}" if self.batch > 1 else "")


class PipelineFactory:
    """Makes sides; the weights that `load.py` has prepared lie in a folder, for other processes."""

    def __init__(self, plan: BenchConfig, folder: Path) -> None:
        self.plan, self.folder = plan, folder
        if plan.threads is not None:
            torch.set_num_threads(plan.threads)
        self.device = choose_device(plan.device)
        self.photo = folder / "image.jpg"
        if not self.photo.exists():
            write_test_image(self.photo, plan.image_size)

    def make(self, key: RunId) -> Pipeline:
        """One side, ready to run."""
        files = [self.photo] * key.batch
        if key.who == THEIRS:
            model = copy.deepcopy(self._theirs)
            return TorchvisionPipeline(model, files, self.device, key.setting)
        dtype = choose_precision(self.device, self.plan.precision)
        network = make_network(self._ours, key.setting, dtype)
        return EmbedMaskPipeline(self._ours, network, self.plan.own_config, files)

    @cached_property
    def _ours(self) -> EmbedMask:
        plan, path = self.plan, self.folder / "ours.safetensors"
        model = EmbedMask(plan.own_config).eval().to(self.device)
        if path.exists():
            model.load_state_dict(load_file(path))
            return model
        if plan.weights is not None:
            model.load_state_dict(load_file(plan.weights))
        cfg = plan.own_config
        resize = EvalTransform(cfg.image_short_side, cfg.image_long_side, cfg.image_rounding)
        batch = model.preprocess([resize.image(read_image(self.photo))])
        calibrate_embedmask(
            model, batch, plan.detections, trained=plan.weights is not None, box_cells=plan.box_cells
        )
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
        return model

    @cached_property
    def _theirs(self) -> Any:
        plan, path = self.plan, self.folder / "theirs.safetensors"
        model: Any = maskrcnn_resnet50_fpn(
            weights=None,
            weights_backbone=None,
            min_size=min(plan.network_size),
            max_size=max(plan.network_size) + 1,  # rounded down from a little more
            box_detections_per_img=plan.detections,
        )
        model.eval().to(self.device)
        if path.exists():
            model.load_state_dict(load_file(path))
            return model
        calibrate_torchvision(model, read_image(self.photo).to(self.device).float() / 255, plan.detections)
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
        return model


def compare(plan: BenchConfig, progress: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Measure; the report is plain values, ready for JSON.

    Args:
        progress: told what is being done.

    Returns:
        `medians`, `quartiles` (seconds an image: side -> stage) and `shares` of the whole; `ratios` of each of ours,
        how many times as fast as Mask R-CNN with the same batch at its `best` setting and in `float32`; `works`, what
        each side found; `memory_mb`, the most that a process of its own held until the end of each stage of its first
        run; `fails`, baseline settings that do not work here, and why; `machine`, `plan`.

    Raises:
        BadInput: an engine, device or precision that is not available.
    """
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        workshop = PipelineFactory(plan, Path(name))
        times: dict[RunId, Times] = {}
        works: dict[str, Any] = {}
        fails: dict[str, str] = {}
        for batch in plan.batches:
            sides = dict(_working(workshop, batch, fails, progress))
            progress(f"measuring {plan.runs} runs of {', '.join(map(str, sides))}")
            found = interleave({str(key): side for key, side in sides.items()}, plan.runs, workshop.device)
            times |= {key: found[str(key)] for key in sides}
            works |= {str(key): _findings(side) for key, side in sides.items()}
            del sides
        memory = dict(_memories(workshop, list(times), progress)) if plan.memory else {}
    return {
        **_figures(times),
        "works": works,
        "memory_mb": memory,
        "fails": fails,
        "machine": machine(workshop.device),
        "plan": {
            **asdict(plan),
            "weights": "random" if plan.weights is None else "trained",
            "network_size": plan.network_size,
        },
    }


def _keys(plan: BenchConfig, batch: int) -> list[RunId]:
    ours = [RunId(OURS, engine, batch) for engine in plan.engines]
    return ours + [RunId(THEIRS, setting, batch) for setting in plan.settings]


def _working(
    workshop: PipelineFactory, batch: int, fails: dict[str, str], progress: Callable[[str], None]
) -> Iterator[tuple[RunId, Pipeline]]:
    """The sides after their warm-up; of the baseline those that run at all."""
    for key in _keys(workshop.plan, batch):
        progress(f"preparing {key}")
        try:
            side = workshop.make(key)
            for _ in range(workshop.plan.warmup):
                time_run(side, workshop.device)
        except Exception as error:
            if key.who == OURS:
                raise
            fails[str(key)] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            continue
        yield key, side


def _findings(side: Pipeline) -> dict[str, float]:
    """What the first image's detections are."""
    found = side.detections[0]
    count = len(found)
    area = float(found.box_area.mean()) if count else 0.0
    covered = float(found.area.mean()) if count else 0.0
    return {"detections": count, "mean_box_area_px": area, "mean_mask_area_px": covered}


def _memories(
    workshop: PipelineFactory, keys: list[RunId], progress: Callable[[str], None]
) -> Iterator[tuple[str, dict[str, float]]]:
    for key in keys:
        if key.setting in COMPILED:
            continue
        progress(f"memory of {key}")
        yield str(key), peaks_in_own_process(_steps, workshop.plan, workshop.folder, key)


def _steps(plan: BenchConfig, folder: Path, key: RunId) -> Steps:
    return PipelineFactory(plan, folder).make(key).stages()


def _figures(times: dict[RunId, Times]) -> dict[str, Any]:
    middle = {key: medians(found, key.batch) for key, found in times.items()}
    return {
        "medians": {str(key): found for key, found in middle.items()},
        "quartiles": {str(key): quartiles(found, key.batch) for key, found in times.items()},
        "shares": {
            str(key): {stage: seconds / found["whole"] for stage, seconds in found.items()}
            for key, found in middle.items()
        },
        "ratios": {str(key): _ratios(key, middle) for key in middle if key.who == OURS},
    }


def _ratios(key: RunId, middle: dict[RunId, dict[str, float]]) -> dict[str, float]:
    """How many times as fast as the baseline with the same batch."""
    theirs = {
        other.setting: found["whole"]
        for other, found in middle.items()
        if other.who == THEIRS and other.batch == key.batch
    }
    own = middle[key]["whole"]
    best = {"best": min(theirs.values()) / own} if theirs else {}
    return best | ({"float32": theirs["float32"] / own} if "float32" in theirs else {})
