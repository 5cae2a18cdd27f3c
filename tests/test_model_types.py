"""A new type of model needs its own code and an entry of the registry: train, eval and predict then take it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from embedmask import Predictor
from embedmask.cli import main
from embedmask.config import MODEL_TYPES, DetectorConfig, MaskRCNNConfig, ModelConfig, model_type_of
from embedmask.config.model_types import ModelType, model_from_dict, model_to_dict
from embedmask.data.coco import CocoInstances
from embedmask.errors import BadInput
from embedmask.evaluation.run import evaluate_weights
from embedmask.masks import RunMasks
from embedmask.model.detector import Detector
from embedmask.structures import ImageBatch, Instances, LossTerms, Size, Target
from embedmask.weights.checkpoint import load_checkpoint

STRIDE, SIDE = 8, 64
CPU: dict[str, Any] = {"device": "cpu", "precision": "float32"}


# --- the toy type: one object per image, the cells with a high foreground probability ---


@dataclass(frozen=True, kw_only=True)
class ToyConfig(DetectorConfig):
    width: int = 8


class Toy(Detector):
    """A network of three convolutions on the finest map of the backbone."""

    config: ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config, STRIDE)
        self.head = nn.Sequential(
            nn.Conv2d(self.backbone.channels[0], config.width, 1),
            nn.ReLU(),
            nn.Conv2d(config.width, 1, 1),
        )

    def forward(self, batch: ImageBatch) -> Tensor:
        """Return foreground logits `[N, h, w]`."""
        logits: Tensor = self.head(self.backbone(batch.tensors)[0])[:, 0]
        return logits.float()


@dataclass
class ToyLosses(LossTerms):
    foreground: Tensor


def toy_objective(config: ToyConfig) -> Callable[[Toy, ImageBatch, Sequence[Target]], ToyLosses]:
    """Return the cross entropy of the cells with the union of all masks."""

    def compute(model: Toy, batch: ImageBatch, targets: Sequence[Target]) -> ToyLosses:
        logits = model(batch)
        union = torch.zeros(len(targets), 1, *batch.tensors.shape[2:])
        for row, target in zip(union, targets, strict=True):
            dense = target.dense_masks().any(0)
            row[0, : dense.shape[0], : dense.shape[1]] = dense
        cells = F.interpolate(union, logits.shape[1:], mode="area")[:, 0]
        return ToyLosses(F.binary_cross_entropy_with_logits(logits, cells))

    return compute


class ToyPostprocessor:
    network_options: ClassVar[Mapping[str, Any]] = {}
    built: ClassVar[list[tuple[int | None, float | None, bool]]] = []

    @classmethod
    def from_config(
        cls,
        cfg: ToyConfig,
        max_detections: int | None = None,
        score_threshold: float | None = None,
        reference_masks: bool = True,
        final_thresholds: Sequence[float] = (),
    ) -> Self:
        cls.built.append((max_detections, score_threshold, reference_masks))
        return cls()

    def __call__(
        self, predictions: Tensor, image_sizes: Sequence[Size], original_sizes: Sequence[Size]
    ) -> list[Instances]:
        assert predictions.dtype == torch.float32
        assert torch.is_inference_mode_enabled()
        assert not torch.is_autocast_enabled("cpu")
        instances = []
        for logits, (h, w), size in zip(predictions, image_sizes, original_sizes, strict=True):
            frame = F.interpolate(logits[None, None], scale_factor=STRIDE, mode="bilinear")[..., :h, :w]
            mask = F.interpolate(frame, size, mode="bilinear")[0, 0] > 0
            rows, columns = mask.nonzero().unbind(1) if mask.any() else (torch.zeros(1), torch.zeros(1))
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            score = torch.sigmoid(logits.max())[None]
            label = torch.zeros(1, dtype=torch.int64)
            instances.append(
                Instances(torch.tensor([box]).float(), score, label, RunMasks.from_dense(mask[None]))
            )
        return instances


# --- tests ---


@pytest.fixture(scope="module", autouse=True)
def toy_type() -> Iterator[None]:
    entry = ModelType(
        title="Toy", config=ToyConfig, model=f"{__name__}:Toy", objective=f"{__name__}:toy_objective",
        postprocessor=f"{__name__}:ToyPostprocessor",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODEL_TYPES, "toy", entry)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a data set with four images of one bright rectangle in each split."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    (folder / "images").mkdir()
    for split in ("train", "val"):
        images, annotations = [], []
        for number in range(1, 5):
            x1, y1, width, height = (
                int(value) for value in (*rng.integers(4, 24, 2), *rng.integers(24, 36, 2))
            )
            pixels = rng.integers(0, 40, (SIDE, SIDE, 3), dtype=np.uint8)
            pixels[y1 : y1 + height, x1 : x1 + width] += 180
            name = f"{split}{number}.png"
            Image.fromarray(pixels).save(folder / "images" / name)
            images.append({"id": number, "file_name": name, "height": SIDE, "width": SIDE})
            corners = [x1, y1, x1 + width, y1, x1 + width, y1 + height, x1, y1 + height]
            annotations.append({
                "id": number, "image_id": number, "category_id": 1, "segmentation": [corners],
                "bbox": [x1, y1, width, height], "area": width * height, "iscrowd": 0,
            })  # fmt: skip
        values = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "box"}]}
        (folder / f"{split}.json").write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train the toy with `embedmask train`."""
    out = tmp_path_factory.mktemp("toy")
    recipe = {
        "model": {"kind": "toy", "backbone": "test_resnet", "backbone_norm": "batch", "frozen_stages": 0,
                  "image_short_side": SIDE, "image_long_side": SIDE},
        "data": {"short_sides": [], "repeat": 10},
        "train": {"batch_size": 4, "max_steps": None, "epochs": 8, "optimizer": "adamw", "lr": 0.01,
                  "milestones": [], "warmup_steps": 0, "pretrained": False, "precision": "bfloat16",
                  "workers": 0, "eval_every": 8, "ema_decay": 0.5},
    }  # fmt: skip
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    words = ["train", "--config", str(out / "recipe.yaml"), "--data", str(data), "--out", str(out / "run")]
    assert main([*words, "--model.width", "6", "--device", "cpu"]) == 0
    return out / "run"


def test_training_learns_the_toy(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["segm/AP50"] > 0.9
    assert "loss/foreground" in (run / "metrics.csv").read_text()
    checkpoint = load_checkpoint(run / "model.safetensors")
    assert isinstance(checkpoint.model, Toy)
    assert isinstance(checkpoint.config, ToyConfig)
    assert checkpoint.config.width == 6
    # the score threshold of the best F1 on val is stored with the model
    assert metrics["decision/F1"] > 0.9
    assert checkpoint.config.default_score_threshold is not None
    assert 0 < checkpoint.config.default_score_threshold < 1


def test_evaluation_agrees_with_the_command(run: Path, data: Path, tmp_path: Path) -> None:
    weights, out = run / "model.safetensors", tmp_path / "metrics.json"
    ToyPostprocessor.built.clear()
    metrics = evaluate_weights(weights, CocoInstances.open(data, "val"), **CPU)
    words = ["eval", "--weights", str(weights), "--data", str(data), "--json", str(out), "--reference-masks"]
    assert main([*words, "--device", "cpu", "--precision", "float32"]) == 0
    assert json.loads(out.read_text())["segm/AP"] == metrics["segm/AP"] > 0.5
    assert ToyPostprocessor.built == [(None, None, False), (None, None, True)]


def test_prediction_agrees_with_the_command(run: Path, data: Path, tmp_path: Path) -> None:
    weights, image = run / "model.safetensors", data / "images" / "val1.png"
    ToyPostprocessor.built.clear()
    detections = Predictor.load(weights, **CPU)(image, score_threshold=0.4, max_detections=3)
    ((max_detections, candidates, reference_masks),) = ToyPostprocessor.built
    assert (max_detections, reference_masks) == (3, False)
    assert candidates == pytest.approx(0.4, rel=1e-5)
    assert len(detections) == 1
    words = ["predict", str(image), "--weights", str(weights), "--out", str(tmp_path), "--no-draw"]
    words += ["--score-threshold", "0.4"]
    assert main([*words, "--device", "cpu", "--precision", "float32"]) == 0
    (result,) = json.loads((tmp_path / "predictions.json").read_text())
    x1, y1, x2, y2 = detections.xyxy[0].tolist()
    assert result["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=0.01)


def test_errors_name_the_type(run: Path, data: Path) -> None:
    predictor = Predictor.load(run / "model.safetensors", **CPU)
    with pytest.raises(BadInput, match="embeddings: Toy has none"):
        predictor(data / "images" / "val1.png", embeddings=True)
    with pytest.raises(BadInput, match="engine 'openvino' supports EmbedMask only; use torch for a Toy"):
        Predictor.load(run / "model.safetensors", engine="openvino", **CPU)


def test_registry_finds_entries_by_config() -> None:
    for config in (ModelConfig(), MaskRCNNConfig(), ToyConfig()):
        entry = model_type_of(config)
        assert entry.config is type(config)
        assert model_from_dict(model_to_dict(config), where="test") == config
        assert issubclass(entry.load("model"), Detector)
        for part in ("objective", "postprocessor", "network"):
            assert callable(entry.load(part))
    with pytest.raises(BadInput, match=r"unknown model type 'toi' \(did you mean 'toy'\?\)"):
        model_from_dict({"kind": "toi"}, where="test")
