"""The command `python -m embedmask.runtime FILE IMAGE... --out DIR`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from .graph_file import BadFile
from .model import Model, predict_files


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 done, 1 some images could not be read, 2 bad arguments or file."""
    parser = argparse.ArgumentParser(
        "python -m embedmask.runtime", description="Predict with an exported file."
    )
    parser.add_argument("file", help="exported file, .onnx or .xml")
    parser.add_argument("image", nargs="+", help="image files")
    parser.add_argument(
        "--out", type=Path, required=True, help="results folder: predictions.json, labels/NAME.png"
    )
    parser.add_argument("--score-threshold", type=float, help="minimum score; by default the model's")
    parser.add_argument(
        "--max-detections", type=int, help="maximum detections per image; by default the model's"
    )
    parser.add_argument("--threads", type=int, help="CPU threads; by default the engine's choice")
    options = parser.parse_args(argv)
    try:
        return predict(options)
    except BadFile as error:
        print(f"embedmask.runtime: {error}", file=sys.stderr)
    except OSError as error:
        print(
            f"embedmask.runtime: {error.filename or options.out}: {error.strerror or error}", file=sys.stderr
        )
    return 2


def predict(options: argparse.Namespace) -> int:
    """Write the label image of every image, then the results of all."""
    paths = [Path(name) for name in options.image]
    twins = [path for index, path in enumerate(paths) if path.stem in {other.stem for other in paths[:index]}]
    if twins:
        raise BadFile(f"{twins[0]}: another image has the name {twins[0].stem}; pass them in two calls")
    model = Model(options.file, threads=options.threads)
    rows: list[dict[str, Any]] = []
    done = 0
    chosen = {"score_threshold": options.score_threshold, "max_detections": options.max_detections}
    for path, result in predict_files(model, paths, **chosen):
        if isinstance(result, BadFile):
            print(f"embedmask.runtime: {result}", file=sys.stderr)
            continue
        done += 1
        rows += result.coco(done)
        target = options.out / "labels" / f"{path.stem}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        write(target, Image.fromarray(result.label_image()).save)
    if not done:
        return 2
    text = ",\n".join(json.dumps(row) for row in rows)
    write(options.out / "predictions.json", lambda file: file.write_text(f"[{text}]\n", encoding="utf-8"))
    print(f"{len(rows)} objects in {done} images · {options.out}")
    return 0 if done == len(paths) else 1


def write(path: Path, content: Any) -> None:
    """Write a file completely or not at all: `content` receives a temporary path beside it."""
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        content(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
