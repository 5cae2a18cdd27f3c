"""Comparison of EmbedMask with the baseline: its configuration, the pipelines, and the report."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torchvision.models.detection import maskrcnn_resnet50_fpn

from embedmask._supervision import sv
from embedmask.benchmark.calibration import (
    BOX_CELLS,
    calibrate_embedmask,
    calibrate_torchvision,
    write_test_image,
)
from embedmask.benchmark.memory import Steps, peaks_in_own_process
from embedmask.benchmark.pipelines import SETTINGS, EmbedMaskPipeline, Pipeline, Setting, TorchvisionPipeline
from embedmask.benchmark.timing import Measured, interleave, machine, medians, quartiles, time_run
from embedmask.config import Engine, ModelConfig, Precision
from embedmask.data.images import read_image
from embedmask.data.transforms import EvalTransform
from embedmask.device import choose_device, choose_precision
from embedmask.errors import BadInput
from embedmask.inference.engines import make_network
from embedmask.model.embedmask import EmbedMask
from embedmask.structures import Size
from embedmask.weights.checkpoint import load_checkpoint

EMBEDMASK, EXPORTED, BASELINE = "embedmask", "exported", "torchvision"
"""Names of the pipelines in the report."""
COMPILED = ("compile", "compiled")
"""Engines and settings whose peak memory would be that of the compiler."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Configuration of a comparison. All values can be pickled, since other processes receive them.

    Attributes:
        config: model configuration of EmbedMask. Images are resized by its rule but never enlarged, for both pipelines.
        weights: state dict of EmbedMask, safetensors; None: random weights.
        image_size: `(height, width)` of the image file.
        detections: per image, in both pipelines.
        engines: engines of EmbedMask to measure.
        exported: files of `embedmask export` to measure. They keep their weights, resizing and number of
            detections.
        settings: settings of the baseline to measure.
        batches: batch sizes to measure.
        runs: number of measured runs.
        warmup: number of runs before them, which are not measured.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        precision: number format of EmbedMask's convolutions.
        threads: threads of the processor; None: torch's default.
        box_cells: sides of the boxes of an untrained EmbedMask, in cells of their pyramid level.
        memory: also measure peak memory.
    """

    config: ModelConfig
    weights: Path | None = None
    image_size: Size = (800, 1216)
    detections: int = 100
    engines: tuple[Engine, ...] = ("torch",)
    exported: tuple[Path, ...] = ()
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
        for name in ("runs", "warmup", "detections", "image_size", "batches", "threads"):
            value = getattr(self, name)
            lowest = min(value) if isinstance(value, tuple) else value
            if lowest is not None and lowest < 1:
                raise BadInput(f"{name}: at least 1, got {lowest}")

    @property
    def model_config(self) -> ModelConfig:
        """Return the model configuration of both pipelines: images are not enlarged."""
        short = self.config.image_short_side
        return replace(
            self.config,
            image_short_side=None if short is None else min(short, *self.image_size),
            max_detections=self.detections,
        )

    @property
    def network_size(self) -> Size:
        """Return the `(height, width)` of the resized image."""
        return EvalTransform.from_config(self.model_config).geometry(self.image_size).resized


@dataclass(frozen=True)
class RunId:
    """Identity of a measured pipeline.

    Attributes:
        pipeline: `EMBEDMASK`, `EXPORTED` or `BASELINE`.
        setting: an engine of EmbedMask, an exported file, or a setting of the baseline.
        batch: number of images in a batch.
        label: name of an exported file in the report; empty: the name of the file.
    """

    pipeline: str
    setting: Any
    batch: int
    label: str = ""

    def __str__(self) -> str:
        setting = self.label or (self.setting.name if isinstance(self.setting, Path) else self.setting)
        return f"{self.pipeline} {setting}" + (f", batch {self.batch}" if self.batch > 1 else "")


class PipelineFactory:
    """Builder of pipelines. Calibrated weights and the benchmark image are files that other processes can share.

    Attributes:
        bench: the configuration of the comparison.
        folder: where the files are written, unless they exist.
        device: device of the networks.
        image: path of the benchmark image.
    """

    def __init__(self, bench: BenchConfig, folder: Path) -> None:
        """Set the number of threads and write the benchmark image."""
        self.bench, self.folder = bench, folder
        if bench.threads is not None:
            torch.set_num_threads(bench.threads)
        self.device = choose_device(bench.device)
        self.image = folder / "image.jpg"
        if not self.image.exists():
            write_test_image(self.image, bench.image_size)

    def make(self, run: RunId) -> Pipeline:
        """Return a pipeline that is ready to run."""
        files = [self.image] * run.batch
        if run.pipeline == BASELINE:
            # its settings change the network in place
            return TorchvisionPipeline(copy.deepcopy(self.mask_rcnn), files, self.device, run.setting)
        if run.pipeline == EXPORTED:
            return self._exported(run.setting, files)
        dtype = choose_precision(self.device, self.bench.precision)
        network = make_network(self.embedmask, run.setting, dtype)
        return EmbedMaskPipeline(self.embedmask, network, self.bench.model_config, files)

    def _exported(self, path: Path, files: list[Path]) -> Pipeline:
        """Return the pipeline of an exported file; the image is not enlarged."""
        model = load_checkpoint(path).model.to(self.device)
        short = model.config.image_short_side
        short = None if short is None else min(short, *self.bench.image_size)
        return EmbedMaskPipeline(
            model, make_network(model), replace(model.config, image_short_side=short), files
        )

    @cached_property
    def embedmask(self) -> EmbedMask:
        """Return EmbedMask, calibrated, on its device."""
        bench, path = self.bench, self.folder / "embedmask.safetensors"
        cfg = bench.model_config
        model = EmbedMask(cfg).eval().to(self.device)
        if path.exists():
            model.load_state_dict(load_file(path))
            return model
        if bench.weights is not None:
            try:
                model.load_state_dict(load_file(bench.weights))
            except RuntimeError:
                raise BadInput(
                    f"{bench.weights}: its tensors do not fit the changed model; omit the options that change layers"
                ) from None
        resize = EvalTransform.from_config(cfg)
        batch = model.preprocess([resize.image(read_image(self.image))])
        calibrate_embedmask(
            model, batch, bench.detections, trained=bench.weights is not None, box_cells=bench.box_cells
        )
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
        return model

    @cached_property
    def mask_rcnn(self) -> Any:
        """Return torchvision's Mask R-CNN, calibrated, on its device."""
        bench, path = self.bench, self.folder / "torchvision.safetensors"
        model: Any = maskrcnn_resnet50_fpn(
            weights=None,
            weights_backbone=None,
            min_size=min(bench.network_size),
            # torchvision rounds sizes down: one pixel more keeps the long side
            max_size=max(bench.network_size) + 1,
            box_detections_per_img=bench.detections,
        )
        model.eval().to(self.device)
        if path.exists():
            model.load_state_dict(load_file(path))
            return model
        image = read_image(self.image).to(self.device).float() / 255
        calibrate_torchvision(model, image, bench.detections)
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
        return model


def compare(bench: BenchConfig, progress: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Measure both pipelines; `progress` receives a line of text before each step.

    Returns:
        Plain values, ready for JSON: `medians` and `quartiles`, seconds per image by pipeline and stage; `cpu_medians`,
        the same in CPU seconds; `shares`, the fraction of the whole per stage; `ratios`, the speed of each engine of
        EmbedMask and of each exported file relative to the baseline with the same batch size, at its `best` setting and
        in `float32`; `cpu_ratios`, the same by CPU time; `works`, number and mean area of the detections; `memory_mb`,
        the peak memory of a separate process up to the end of each stage of its first run; `fails`, the baseline
        settings that do not run, and the error; `machine`; `plan`, the configuration.

    Raises:
        BadInput: an engine, device or precision is not available.
    """
    torch.manual_seed(0)
    times: dict[RunId, Measured] = {}
    works: dict[str, dict[str, float]] = {}
    memory: dict[str, dict[str, float]] = {}
    fails: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        factory = PipelineFactory(bench, Path(folder))
        for batch in bench.batches:
            pipelines = dict(_warm_up(factory, batch, fails, progress))
            progress(f"measuring {bench.runs} runs of {', '.join(map(str, pipelines))}")
            times |= interleave(pipelines, bench.runs, factory.device)
            works |= {str(run): _describe(pipeline.detections[0]) for run, pipeline in pipelines.items()}
            del pipelines  # frees the device before the next batch size
        for run in times if bench.memory else ():
            if run.setting not in COMPILED:
                progress(f"memory of {run}")
                memory[str(run)] = peaks_in_own_process(stages_of, bench, factory.folder, run)
    return {
        **_summarize(times),
        "works": works,
        "memory_mb": memory,
        "fails": fails,
        "machine": machine(factory.device),
        "plan": _plan(bench),
    }


def _plan(bench: BenchConfig) -> dict[str, Any]:
    """Return the configuration as plain values, with the names of exported files instead of their paths."""
    return {
        **asdict(bench),
        "weights": "random" if bench.weights is None else "trained",
        "network_size": bench.network_size,
        "exported": [short_name(path, bench.exported) for path in bench.exported],
    }


def short_name(path: Path, paths: Collection[Path]) -> str:
    """Return the shortest end of a path that no other path has: `model.xml`, or `int8/model.xml` beside `float/`."""
    for count in range(1, len(path.parts)):
        if not any(other.parts[-count:] == path.parts[-count:] for other in paths if other != path):
            return Path(*path.parts[-count:]).as_posix()
    return path.as_posix()


def stages_of(bench: BenchConfig, folder: Path, run: RunId) -> Steps:
    """Return the stages of a pipeline; called in a separate process, which needs a function of a module."""
    return PipelineFactory(bench, folder).make(run).stages()


def _warm_up(
    factory: PipelineFactory, batch: int, fails: dict[str, str], progress: Callable[[str], None]
) -> Iterator[tuple[RunId, Pipeline]]:
    """Yield the pipelines after their warm-up runs. Baseline settings that raise go to `fails` instead."""
    runs = [RunId(EMBEDMASK, engine, batch) for engine in factory.bench.engines]
    files = factory.bench.exported
    runs += [RunId(EXPORTED, path, batch, short_name(path, files)) for path in files]
    runs += [RunId(BASELINE, setting, batch) for setting in factory.bench.settings]
    for run in runs:
        progress(f"preparing {run}")
        try:
            pipeline = factory.make(run)
            for _ in range(factory.bench.warmup):
                time_run(pipeline, factory.device)
        except Exception as error:
            if run.pipeline != BASELINE:
                raise
            fails[str(run)] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            continue
        yield run, pipeline


def _describe(detections: sv.Detections) -> dict[str, float]:
    """Return the number and the mean areas of the detections of one image."""
    count = len(detections)
    box_area = float(detections.box_area.mean()) if count else 0.0
    mask_area = float(detections.area.mean()) if count else 0.0
    return {"detections": count, "mean_box_area_px": box_area, "mean_mask_area_px": mask_area}


def _summarize(times: Mapping[RunId, Measured]) -> dict[str, Any]:
    """Return medians, quartiles, shares and ratios of the measured times, by the name of the run."""
    wall = {run: medians(measured.wall, run.batch) for run, measured in times.items()}
    cpu = {run: medians(measured.cpu, run.batch) for run, measured in times.items()}
    return {
        "medians": {str(run): seconds for run, seconds in wall.items()},
        "quartiles": {str(run): quartiles(measured.wall, run.batch) for run, measured in times.items()},
        "shares": {
            str(run): {stage: value / seconds["whole"] for stage, value in seconds.items()}
            for run, seconds in wall.items()
        },
        "cpu_medians": {str(run): seconds for run, seconds in cpu.items()},
        "ratios": _ratios(wall),
        "cpu_ratios": _ratios(cpu),
    }


def _ratios(middle: Mapping[RunId, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return the speed of each EmbedMask relative to the baseline with the same batch size: at its best, in float32."""
    ratios: dict[str, dict[str, float]] = {}
    for run in middle:
        if run.pipeline != BASELINE:
            # the baseline's seconds over EmbedMask's
            speedups = {
                other.setting: seconds["whole"] / middle[run]["whole"]
                for other, seconds in middle.items()
                if other.pipeline == BASELINE and other.batch == run.batch
            }
            best = {"best": min(speedups.values())} if speedups else {}
            ratios[str(run)] = best | {name: value for name, value in speedups.items() if name == "float32"}
    return ratios
