"""The commands `embedmask explain` and `embedmask compare`."""

from __future__ import annotations

from pathlib import Path

from embedmask.cli.threads import use_threads
from embedmask.cli.thresholds import parse_score_threshold
from embedmask.config.data import Split
from embedmask.errors import BadInput


def explain(
    image: Path,
    *,
    weights: Path,
    out: Path,
    score_threshold: str | None = None,
    max_detections: int | None = None,
    instances: int = 24,
    threads: int | None = None,
    device: str = "auto",
) -> None:
    """Draw the embeddings, probability maps and margins behind the masks of an image (figure 1 of the paper).

    Args:
        image: Image file.
        weights: Model file (.safetensors), the name of a bundled model, or user/model on the Hugging Face Hub.
        out: Results folder, new or empty: figure1.png, its panels, instances.png and explanation.json.
        score_threshold: Minimum score: one number, or CLASS=NUMBER,CLASS=NUMBER; by default from the model.
        max_detections: Maximum number of detections; by default from the model.
        instances: Maximum number of detections whose probability map is drawn, the best first.
        threads: CPU threads; by default PyTorch's choice.
        device: auto, cpu, cuda, cuda:N or mps.
    """
    use_threads(threads)
    from embedmask.figures import write_explanation
    from embedmask.inference.explain import explain as explain_image
    from embedmask.inference.predictor import Predictor

    predictor = Predictor.load(weights, device=device)
    explanation = explain_image(predictor, image, parse_score_threshold(score_threshold), max_detections)
    drawn = write_explanation(explanation, out, instances)
    print(f"{len(explanation.detections)} detections, {drawn} probability maps · {out / 'figure1.png'}")


def compare(
    image: list[str],
    *,
    weights: list[Path] = [],  # noqa: B006
    out: Path,
    data: Path | None = None,
    split: Split = "val",
    score_threshold: str | None = None,
    columns: int | None = None,
    threads: int | None = None,
    device: str = "auto",
) -> None:
    """Draw the detections of several models side by side, or those of one model in many images (figures 3 and 4).

    Args:
        image: Image files; each is a row.
        weights: Model files (.safetensors), bundled models, or user/model on the Hugging Face Hub, of any type; each is
            a column.
        out: Image to write (.png or .jpg).
        data: Folder of a data set with these images, whose ground truth becomes the first column.
        split: Split of the data set with annotations.
        score_threshold: Minimum score: one number, or CLASS=NUMBER,CLASS=NUMBER; by default from each model.
        columns: Columns of the sheet; by default one per model, or 4 for a single model without ground truth.
        threads: CPU threads; by default PyTorch's choice.
        device: auto, cpu, cuda, cuda:N or mps.
    """
    use_threads(threads)
    if not weights:
        raise BadInput("missing: weights; see --help")
    from embedmask.figures import compare_models
    from embedmask.visualize import image_format, write_image

    image_format(out)  # fail before the models run
    sheet = compare_models(
        [Path(name) for name in image],
        weights,
        data=data,
        split=split,
        score_threshold=parse_score_threshold(score_threshold),
        columns=columns,
        device=device,
        report=print,
    )
    write_image(sheet, out)
    print(f"images {len(image)}, models {len(weights)} · {out}")
