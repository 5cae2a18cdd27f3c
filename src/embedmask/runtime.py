"""Prediction with an exported file, without torch: numpy, Pillow and onnxruntime (or openvino for `.xml`) are enough.

This file, `runtime_file.py` and `runtime_masks.py` import nothing else of embedmask: copy them into another project,
beside each other. The command is `python -m embedmask.runtime FILE IMAGE... --out DIR`, or `python runtime.py ...` with
the copy.

Example:
    >>> from embedmask.runtime import Model
    >>> result = Model("model.onnx")("photo.jpg")
    >>> result.boxes, result.scores, result.labels, result.masks()
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

if __package__:
    from .runtime_file import read_metadata, settings_of
    from .runtime_masks import Array, BadFile, Result, Settings, Threshold, decode_masks, rescored
else:  # a copy outside a package
    from runtime_file import read_metadata, settings_of  # type: ignore
    from runtime_masks import Array, BadFile, Result, Settings, Threshold, decode_masks, rescored  # type: ignore

__all__ = ["BadFile", "Model", "Result", "Session", "Settings", "main", "read_metadata", "settings_of"]

Source = str | Path | Image.Image | NDArray[np.uint8]


def read_image(source: Source, settings: Settings) -> NDArray[np.uint8]:
    """Return an image as uint8 RGB `[H, W, 3]`, upright.

    Args:
        source: a file, a Pillow image, or an array uint8 `[H, W, 3]` RGB, `[H, W, 4]` RGBA or `[H, W]` gray.

    Raises:
        BadFile: not an image of 8 bits, or without the page or channel that the model reads.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim not in (2, 3) or source.shape[2:] not in ((), (3,), (4,)):
            raise BadFile(f"an array {source.dtype} {list(source.shape)}: pass uint8 RGB [H, W, 3]")
        return np.repeat(source[..., None], 3, 2) if source.ndim == 2 else source[..., :3]
    opened = isinstance(source, Image.Image)  # page and channels are chosen for files only
    name = getattr(source, "filename", "") or "the image" if opened else str(source)
    try:
        image = source.copy() if isinstance(source, Image.Image) else Image.open(source)
        is_page = opened or not settings.page or _seek(image, settings.page)
        # raw modes of a file that is not loaded yet, such as RGB;16B, of which Pillow keeps the high bytes
        decoders = [tile[3] for tile in getattr(image, "tile", ())]
        wide = any("16" in str(args[0] if isinstance(args, tuple) else args) for args in decoders)
        # TIFF's sample format: Pillow reads signed 8-bit values (2) as if they were unsigned (1)
        signed = any(kind != 1 for kind in getattr(image, "tag_v2", {}).get(339, ()))
        image.load()
    except FileNotFoundError:
        raise BadFile(f"{name}: no such image; check the path") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise BadFile(f"{name}: cannot be read as an image ({' '.join(str(error).split())})") from None
    if not is_page:
        raise BadFile(f"{name}: its frames may be channels or copies, not pages; predict with embedmask")
    if wide or signed or image.mode[0] in "IF":
        raise BadFile(
            f"{name}: not unsigned 8 bits per value; convert it to uint8, or predict with embedmask"
        )
    image = ImageOps.exif_transpose(image)
    if image.mode in ("P", "PA"):  # via RGBA, so that the transparent colors of a palette are kept
        image = image.convert("RGBA")
    pixels = np.asarray(image.convert("RGB"))
    if settings.channels is None or opened:
        return pixels
    last, count = max(settings.channels), 1 if Image.getmodebase(image.mode) == "L" else 3
    if last >= count:
        raise BadFile(f"{name}: its page has no channel {last}; predict stacks of channels with embedmask")
    return pixels[..., settings.channels * (3 // len(settings.channels))]


def _seek(image: Image.Image, page: int) -> bool:
    """Go to a frame of a file; return whether it is certainly a page, not a channel, preview or smaller copy."""
    size, certain = image.size, image.format != "MPO"
    for frame in range(page + 1):
        image.seek(frame)
        tags: Any = getattr(image, "tag_v2", {})
        text = str(tags.get(270, ""))  # the description; ImageJ and tifffile name an axis of channels in it
        plain = text.startswith(("ImageJ=", '{"shape"')) and "channels=" not in text and "axes" not in text
        private = {t for t in tags if t >= 2**15} - {33432, 34665, 34675, 50838, 50839}  # EXIF, ImageJ
        certain &= (plain or not text) and not private and image.size == size
    return certain


def resize(image: NDArray[np.uint8], settings: Settings) -> NDArray[np.uint8]:
    """Return an image `[H, W, 3]` at the network's resolution, `[h, w, 3]`."""
    height, width = settings.resized_size((image.shape[0], image.shape[1]))
    if (height, width) == image.shape[:2]:
        return image
    pillow = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(pillow.resize((width, height), Image.Resampling.BILINEAR))


class Session:
    """A graph with its engine.

    Attributes:
        engine: `onnxruntime` or `openvino`.
    """

    def __init__(self, path: str | Path, *, engine: str | None = None, threads: int | None = None) -> None:
        """Load a graph; `BadFile` if the engine is not installed or cannot load it.

        Args:
            engine: None: openvino for `.xml`, else onnxruntime.
            threads: of the CPU; None: the engine's choice.
        """
        self.engine = engine or ("openvino" if Path(path).suffix == ".xml" else "onnxruntime")
        if self.engine not in ENGINES:
            raise BadFile(f"engine {engine!r}: choose one of {', '.join(ENGINES)}")
        try:
            self._run = ENGINES[self.engine](path, threads)
        except ImportError:
            raise BadFile(f"{path}: needs {self.engine}; pip install {self.engine}") from None
        except Exception as error:  # the engines raise their own errors
            reason = " ".join(str(error).split())[:120]
            raise BadFile(f"{path}: {self.engine} cannot load it ({reason}); export it again") from error

    def run(self, images: NDArray[np.uint8]) -> dict[str, Array]:
        """Run the graph on images of one size, uint8 RGB `[N, 3, H, W]`; return its outputs by name.

        boxes float32 `[N, K, 4]` px of `images`, scores `[N, K]`, labels int64 `[N, K]` (-1: none), q `[N, K, D]`,
        s `[N, K, 1 or D]`, p `[N, D, h, w]`, log_phi if exported.
        """
        outputs: dict[str, Array] = self._run(np.ascontiguousarray(images))
        return outputs


def _with_onnxruntime(path: str | Path, threads: int | None) -> Any:
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))


@functools.cache
def openvino_core() -> Any:
    """Return the one `openvino.Core` of this process, which is never freed; ImportError without OpenVINO.

    Each Core gives its thread a stack for signal handlers, unmaps it at its end and restores the previous one. If two
    do not end in reverse order, the stack in use is unmapped, and the next signal with a handler kills the process.
    """
    import openvino  # type: ignore[import-untyped, unused-ignore]

    return openvino.Core()


def _with_openvino(path: str | Path, threads: int | None) -> Any:
    # float32: boxes of bfloat16 are several px off
    properties = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        properties |= {"INFERENCE_NUM_THREADS": threads}  # type: ignore[dict-item]
    compiled = openvino_core().compile_model(str(path), "CPU", properties)
    names = [output.any_name for output in compiled.outputs]
    # copied: the engine reuses its memory
    return lambda images: dict(zip(names, map(np.array, compiled([images]).values()), strict=True))


ENGINES = {"onnxruntime": _with_onnxruntime, "openvino": _with_openvino}


class Model:
    """An exported file, ready to predict."""

    def __init__(self, path: str | Path, *, engine: str | None = None, threads: int | None = None) -> None:
        """Load a file; arguments and errors as in `Session`, and `BadFile` for files without our metadata."""
        self.metadata = read_metadata(path)
        self.settings = settings_of(self.metadata, path)
        self.session = Session(path, engine=engine, threads=threads)

    def __call__(
        self, image: Source, score_threshold: Threshold | None = None, max_detections: int | None = None
    ) -> Result:
        """Detect the objects in an image.

        Args:
            image: a file, a Pillow image, or an array uint8 RGB `[H, W, 3]`.
            score_threshold: minimum score: one number, one per class, or by class name; None: the model's.
            max_detections: maximum number of results; None: the model's.

        Raises:
            BadFile: no image, or a threshold or number that the graph does not serve.
        """
        thresholds, limit = self.check(score_threshold, max_detections)
        pixels = read_image(image, self.settings)
        resized = resize(pixels, self.settings)
        outputs = self.session.run(resized.transpose(2, 0, 1)[None])
        first = {name: value[0] for name, value in outputs.items()}
        result = self._decode(first, resized.shape, pixels.shape)
        return result.select(np.flatnonzero(result.scores >= thresholds[result.labels])[:limit])

    def check(
        self, score_threshold: Threshold | None = None, max_detections: int | None = None
    ) -> tuple[Array, int]:
        """Return the threshold of each class, float32 `[C]`, and the number of results; see `__call__`."""
        limit = self.settings.max_detections if max_detections is None else max_detections
        if not 1 <= limit <= self.settings.max_detections:
            raise BadFile(f"max_detections {limit}: this file serves 1 to {self.settings.max_detections}")
        return self.settings.thresholds(score_threshold), limit

    def _decode(self, outputs: dict[str, Array], network: Sequence[int], original: Sequence[int]) -> Result:
        """Decode the outputs for one image, in its frame."""
        image_size, size = (network[0], network[1]), (original[0], original[1])
        rows = np.flatnonzero(outputs["labels"] >= 0)
        names = ("boxes", "scores", "labels", "q", "s")
        boxes, scores, labels, q, s = (outputs[name][rows] for name in names)
        runs = decode_masks(
            outputs["p"], boxes, q, s, self.settings, image_size=image_size, original_size=size
        )
        scale = np.array([size[1] / image_size[1], size[0] / image_size[0]] * 2, np.float32)
        limits = np.array([size[1], size[0]] * 2, np.float32)
        result = Result(
            (boxes * scale).clip(0, limits), scores, labels, runs, size, self.settings.class_names
        )
        if not self.settings.rescore:
            return result
        result.scores = rescored(result.boxes, scores, labels, runs, size)
        return result.select(np.argsort(-result.scores, kind="stable"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 done, 1 some images could not be read, 2 bad arguments or file."""
    parser = argparse.ArgumentParser(
        "python -m embedmask.runtime", description="Predict with an exported file."
    )
    parser.add_argument("file", help="exported file, .onnx or .xml")
    parser.add_argument("image", nargs="+", help="image files")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="results folder: predictions.json, images.json, labels/NAME.png",
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
        reason = f"{error.filename or options.out}: {error.strerror or error}"
        print(f"embedmask.runtime: {reason}", file=sys.stderr)
    return 2


def predict(options: argparse.Namespace) -> int:
    """Write the label image of every image, then the results of all and `images.json`."""
    paths = [Path(name) for name in options.image]
    targets = [options.out / "labels" / f"{path.stem}.png" for path in paths]
    check_targets(paths, targets)
    model = Model(options.file, threads=options.threads)
    chosen = {"score_threshold": options.score_threshold, "max_detections": options.max_detections}
    model.check(**chosen)
    rows: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    for path, target in zip(paths, targets, strict=True):
        try:
            result = model(path, **chosen)
        except BadFile as error:
            print(f"embedmask.runtime: {error}", file=sys.stderr)
            continue
        # as in `embedmask predict`, an image that cannot be read has no number
        number, (height, width) = len(images) + 1, result.size
        images.append({"id": number, "file_name": str(path), "height": height, "width": width})
        rows += result.coco(number)
        target.parent.mkdir(parents=True, exist_ok=True)
        write(target, Image.fromarray(result.label_image()).save)
    if not images:
        return 2
    text = ",\n".join(json.dumps(row) for row in rows)
    write(options.out / "predictions.json", lambda file: file.write_text(f"[{text}]\n", encoding="utf-8"))
    categories = [{"id": n, "name": name} for n, name in enumerate(model.settings.class_names, start=1)]
    text = json.dumps({"images": images, "categories": categories})
    write(options.out / "images.json", lambda file: file.write_text(text, encoding="utf-8"))
    print(f"{len(rows)} objects in {len(images)} images: {options.out}")
    return 0 if len(images) == len(paths) else 1


def check_targets(paths: Sequence[Path], targets: Sequence[Path]) -> None:
    """Raise `BadFile` if two images have one label image, or one of these would replace an image."""
    sources = {path.resolve() for path in paths}
    names: set[str] = set()
    for path, target in zip(paths, targets, strict=True):
        name = target.name.casefold()  # file systems may ignore the case
        if name in names:
            raise BadFile(f"{path}: another image has the name {path.stem}; pass them in two calls")
        if target.resolve() in sources:
            raise BadFile(f"{target}: is one of the images and would be replaced; choose another --out")
        names.add(name)


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
