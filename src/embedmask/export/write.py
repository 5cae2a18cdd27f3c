"""Writing of exported files: the graph of `embedmask.export.graph` as ONNX, or as OpenVINO's `.xml` and `.bin`."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from embedmask.config import model_type_of
from embedmask.errors import BadInput
from embedmask.export.graph import DENSE_OUTPUT, OUTPUTS, Graph
from embedmask.export.metadata import metadata_text
from embedmask.export.nms import translation
from embedmask.files import atomic_write, check_writable, temporary_folder
from embedmask.model.detector import Detector
from embedmask.model.embedmask import EmbedMask
from embedmask.runtime import openvino_core
from embedmask.runtime_file import KEY

Format = Literal["onnx", "openvino"]
ENDINGS: dict[str, str] = {"onnx": ".onnx", "openvino": ".xml"}
OPSET = 18
TRACED_SHAPE = (2, 3, 160, 288)
"""Images that the network is traced with: more than one cell of 128 px, since sizes of 1 may become constants."""


def export_model(
    model: Detector,
    path: str | Path,
    format: Format = "onnx",
    *,
    class_names: Sequence[str],
    dense_masks: bool = False,
) -> Path:
    """Write a model as one graph; see `Graph` for its input and outputs. The model is not changed.

    Args:
        model: an EmbedMask.
        path: file to write; OpenVINO's weights are beside it, with the suffix .bin.
        format: `onnx` (.onnx) or `openvino` (.xml).
        class_names: name of each class.
        dense_masks: also output log phi of every detection.

    Returns:
        `path`.

    Raises:
        BadInput: the model or the format cannot be exported, a package is missing, or the file cannot be written.
    """
    path = Path(path)
    if format not in get_args(Format):
        raise BadInput(f"format {format!r}: use {' or '.join(get_args(Format))}")
    if path.suffix != ENDINGS[format]:
        raise BadInput(
            f"{path}: {format} files end in {ENDINGS[format]}; pass --out {path.stem}{ENDINGS[format]}"
        )
    check_writable(path)
    if format == "openvino":
        write_openvino(openvino_model(model, class_names=class_names, dense_masks=dense_masks), path)
        return path
    program = onnx_model(model, class_names=class_names, dense_masks=dense_masks)
    with atomic_write(path) as temporary:
        temporary.write_bytes(program.SerializeToString())
    return path


def onnx_model(model: Detector, *, class_names: Sequence[str], dense_masks: bool = False) -> Any:
    """Return the graph of a model in memory, an `onnx.ModelProto` with the metadata; arguments as in `export_model`.

    The names of its nodes begin with the module that they belong to, such as `trunk.head.class_tower.0/conv2d_12`.
    """
    if not isinstance(model, EmbedMask):
        raise BadInput(
            f"{model_type_of(model.config).title} cannot be exported: its selection of boxes has no fixed shape; "
            "export an EmbedMask"
        )
    if len(class_names) != model.config.num_classes:
        raise BadInput(
            f"{len(class_names)} class names for a model of {model.config.num_classes} classes; give one per class"
        )
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise BadInput("export needs ONNX; pip install 'embedmask[export]'") from None
    text = metadata_text(model, class_names, dense_masks=dense_masks, opset=OPSET)
    graph = _trace(model, dense_masks)
    for node in graph.graph.node:
        # "name: class" of each module from the outermost to the innermost, then of the operator
        scopes = {entry.key: entry.value for entry in node.metadata_props}.get("namespace", "")
        modules = [part.partition(":")[0] for part in scopes.split("/")[:-1]]
        node.name = f"{(modules or [''])[-1] or 'graph'}/{node.name}"
        del node.metadata_props[:]
    del graph.metadata_props[:]
    graph.metadata_props.add(key=KEY, value=text)
    graph.producer_name = "embedmask"
    return graph


def openvino_model(model: Detector, *, class_names: Sequence[str], dense_masks: bool = False) -> Any:
    """Return the graph of a model in memory, an `openvino.Model` with the metadata; arguments as in `export_model`."""
    return to_openvino(onnx_model(model, class_names=class_names, dense_masks=dense_masks))


def to_openvino(program: Any) -> Any:
    """Convert the result of `onnx_model` to an `openvino.Model` with the same metadata."""
    try:
        core = openvino_core()
    except ImportError:
        raise BadInput("format openvino needs OpenVINO; pip install 'embedmask[export]'") from None
    converted = core.read_model(io.BytesIO(program.SerializeToString()))
    text = next(entry.value for entry in program.metadata_props if entry.key == KEY)
    converted.set_rt_info(text, [KEY, "metadata"])
    return converted


def write_openvino(model: Any, path: Path) -> None:
    """Write an `openvino.Model` in float32 as `path` and its weights beside it; both files appear complete."""
    import openvino  # type: ignore[import-untyped, unused-ignore]

    weights = path.with_suffix(".bin")
    with temporary_folder(path.parent / path.stem) as folder:
        openvino.save_model(model, folder / path.name, compress_to_fp16=False)
        # both are copied before one is replaced, so that a failure does not leave new weights beside an old graph
        with atomic_write(path) as new_graph, atomic_write(weights) as new_weights:
            shutil.copyfile(folder / weights.name, new_weights)
            shutil.copyfile(folder / path.name, new_graph)


def _trace(model: EmbedMask, dense_masks: bool) -> Any:
    """Return the `onnx.ModelProto` of a model's graph, for images of any number and size."""
    names = [*OUTPUTS, DENSE_OUTPUT] if dense_masks else list(OUTPUTS)
    dynamic = torch.export.Dim.DYNAMIC
    graph = Graph(model, dense_masks=dense_masks).eval()
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph,
            (torch.zeros(TRACED_SHAPE, dtype=torch.uint8),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=names,
            dynamic_shapes={"images": {0: dynamic, 2: dynamic, 3: dynamic}},
            custom_translation_table=translation(),
            verbose=False,
        )
    assert program is not None
    return program.model_proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings and log, which concern torch itself."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
