"""Models for the Hugging Face Hub: a folder with weights, config and model card, and its upload."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData, constants
from huggingface_hub.errors import HFValidationError

from embedmask.config import DetectorConfig, model_to_dict, model_type_of
from embedmask.errors import BadInput
from embedmask.files import make_folder, write_json, write_text
from embedmask.model.detector import Detector
from embedmask.weights.checkpoint import save
from embedmask.weights.hub import WEIGHTS, check_connection, first_line

TASK = "image-segmentation"
TITLES = {"segm": "mask", "bbox": "box", "boundary": "boundary", "matching": "matching"}
"""Names of the groups of metrics in a card."""
MAX_NAMES = 20
"""Maximum number of class names in the text of a card; config.json has all."""


def save_pretrained(
    model: Detector,
    folder: str | Path,
    *,
    class_names: Sequence[str],
    name: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    dataset: str | None = None,
    license: str | None = None,
) -> None:
    """Write the files of a model on the hub: `model.safetensors`, `config.json` and the model card `README.md`.

    Args:
        model: model to save; its file is that of `embedmask.save`.
        folder: made if necessary; files of these names are replaced.
        class_names: name of each class.
        name: of the model in the card, `user/model`; None: that of the folder.
        metrics: content of a `metrics.json`, or of the file of `embedmask eval --json`.
        dataset: name of the data that the metrics were measured on, required with `metrics`.
        license: of the weights, by the hub's identifiers, such as `apache-2.0`; None: not stated.

    Raises:
        BadInput: `metrics` without `dataset`, a wrong number of class names, or the folder cannot be written.
    """
    folder = Path(folder)
    card = model_card(
        model, class_names, name or folder.resolve().name, metrics=metrics, dataset=dataset, license=license
    )
    make_folder(folder)
    save(model, folder / WEIGHTS, class_names=class_names)
    config = {
        "library_name": "embedmask",
        "class_names": [*class_names],
        "config": model_to_dict(model.config),
    }
    write_json(folder / constants.CONFIG_NAME, config)
    write_text(folder / constants.REPOCARD_NAME, str(card))


def push_to_hub(
    model: Detector, name: str, *, private: bool | None = None, token: str | None = None, **contents: Any
) -> str:
    """Send a model to the hub in one commit; the repository is created if necessary.

    Args:
        model: model to upload.
        name: `user/model`; the card that `save_pretrained` writes replaces an earlier one.
        private: visibility of a new repository; None: the hub's default, public.
        token: access token with write permission; None: that of `hf auth login`.
        contents: arguments of `save_pretrained`: `class_names`, `metrics`, `dataset`, `license`.

    Returns:
        Address of the commit.

    Raises:
        BadInput: as `save_pretrained`, an invalid name, no connection or no permission; the message has the reason.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, **{"name": name, **contents})
        try:
            check_connection(constants.ENDPOINT)
            api = HfApi(token=token)
            api.create_repo(name, private=private, exist_ok=True)
            info = api.upload_folder(
                repo_id=name, folder_path=folder, commit_message="Upload model with embedmask"
            )
        except HFValidationError as error:
            raise BadInput(f"{name}: not a name on the hub ({first_line(error)}); write user/model") from None
        except Exception as error:  # the network and the hub raise errors of several libraries
            raise BadInput(
                f"{name}: not uploaded to {constants.ENDPOINT} ({first_line(error)}); check the connection, and that "
                "you may write there: hf auth login"
            ) from None
    return str(info.commit_url)


def model_card(
    model: Detector,
    class_names: Sequence[str],
    name: str,
    *,
    metrics: Mapping[str, Any] | None = None,
    dataset: str | None = None,
    license: str | None = None,
) -> ModelCard:
    """Return the model card: the hub's metadata, use, config and metrics. Arguments and errors of `save_pretrained`."""
    if metrics and dataset is None:
        raise BadInput(f"{name}: metrics without the name of their data; pass dataset='name of the data set'")
    # metrics.json also holds durations and the step, whose names have no group, and undefined metrics
    figures = {
        key: float(value)
        for key, value in (metrics or {}).items()
        if "/" in key and isinstance(value, int | float) and math.isfinite(value)
    }
    results = [
        EvalResult(
            task_type=TASK, dataset_type="custom", dataset_name=str(dataset), metric_type=key,
            metric_name=metric_title(key), metric_value=round(value, 4),
        )
        for key, value in figures.items()
    ]  # fmt: skip
    data = ModelCardData(
        model_name=name, library_name="embedmask", pipeline_tag=TASK, license=license, eval_results=results or None,
        tags=["instance-segmentation", "embedmask"],
    )  # fmt: skip
    text = "\n".join([*_introduction(model, class_names, name), "", *_figures(figures, dataset)])
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{text}\n")


def metric_title(key: str) -> str:
    """Return the name of a metric in a card: `segm/AP50` is `mask AP50`."""
    group, _, metric = key.rpartition("/")
    return f"{TITLES.get(group, group)} {metric.replace('_', ', ')}".strip()


def _introduction(model: Detector, class_names: Sequence[str], name: str) -> list[str]:
    config, title = model.config, model_type_of(model.config).title
    names = ", ".join(class_names[:MAX_NAMES]) + (", ..." if len(class_names) > MAX_NAMES else "")
    threshold = ", ".join(f"{one:.2f}" for one in sorted(set(config.score_thresholds(None, [*class_names]))))
    millions = sum(value.numel() for value in model.parameters()) / 1e6
    rows = {
        "network": f"{title}, backbone {config.backbone}, {millions:.1f} million parameters",
        "classes": f"{len(class_names)}: {names}",
        "input": _input_size(config),
        "results": f"at most {config.max_detections} per image, from a score of {threshold} on",
    }  # fmt: skip
    return [
        f"# {name}", f"Instance segmentation with {title}, for `pip install embedmask`.", "",
        "```python", "from embedmask import Predictor", "",
        f'detections = Predictor.load("{name}")("photo.jpg")', "```", "",
        f"On the command line: `embedmask predict photo.jpg --weights {name} --out found`.", "",
        "| | |", "| --- | --- |", *(f"| {key} | {value.replace('|', chr(92) + '|')} |" for key, value in rows.items()),
    ]  # fmt: skip


def _input_size(config: DetectorConfig) -> str:
    if config.image_short_side is None:
        return "images at their own size"
    return f"images resized to a short side of {config.image_short_side} px, at most {config.image_long_side} px long"


def _figures(figures: Mapping[str, float], dataset: str | None) -> list[str]:
    if not figures:
        return ["No metrics are stated."]
    rows = (f"| {metric_title(key)} | {value:.4f} |" for key, value in figures.items())
    return [f"Measured on {dataset}:", "", "| metric | value |", "| --- | --- |", *rows]
