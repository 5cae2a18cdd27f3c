"""Help of the config fields that the options --model.FIELD, --data.FIELD and --train.FIELD change."""

from __future__ import annotations

import ast
import inspect
import re
from argparse import SUPPRESS, Action, HelpFormatter
from collections.abc import Sequence
from typing import Any

from embedmask.config import MODEL_TYPES, DataConfig, DetectorConfig, TrainConfig
from embedmask.config.model_types import DEFAULT_TYPE
from embedmask.fields import describe_field

SECTIONS: dict[str, dict[str, type]] = {
    "model": {
        "--model.FIELD": DetectorConfig,
        **{
            f"--model.FIELD of {entry.title}"
            if name == DEFAULT_TYPE
            else f"--model.FIELD, model: {name}": entry.config
            for name, entry in MODEL_TYPES.items()
            if entry.objective is not None
        },
    },
    "data": {"--data.FIELD": DataConfig},
    "train": {"--train.FIELD": TrainConfig},
}
"""Title -> config whose own fields, without inherited ones, are listed below it, by section of a recipe."""
COMMON = {
    "model": ("backbone", "image_short_side", "max_detections", "nms_threshold", "embed_stride", "anchor_sizes"),
    "data": ("short_sides", "scale_range", "crop_size", "flip_horizontal", "flip_vertical", "rotate90",
             "color_jitter", "copy_paste", "repeat"),
    "train": ("batch_size", "accumulate", "epochs", "max_steps", "max_minutes", "lr", "pretrained", "init", "workers"),
}  # fmt: skip
"""Fields that the short help lists, by section."""


def describe_sections(sections: Sequence[str], formatter: HelpFormatter, *, every: bool) -> str:
    """Return the help of the fields of some sections: name, first sentence, type, constraints and default.

    Args:
        sections: `model`, `data` or `train`.
        formatter: an empty formatter, with the layout of the command's own options.
        every: list every field; otherwise those in `COMMON`.
    """
    for section in sections:
        for title, cls in SECTIONS[section].items():
            shown = [name for name in vars(cls)["__annotations__"] if every or name in COMMON[section]]
            summaries = field_summaries(cls)
            formatter.start_section(title if every else f"{title} (excerpt)")
            formatter.add_arguments([_field_action(section, cls, name, summaries[name]) for name in shown])
            formatter.end_section()
    return formatter.format_help()


def field_summaries(cls: type) -> dict[str, str]:
    """Return the first sentence of the docstring of each field that a config declares itself."""
    (definition,) = ast.parse(inspect.getsource(cls)).body
    assert isinstance(definition, ast.ClassDef)
    summaries = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            doc = " ".join(ast.literal_eval(text.value).split())
            # the periods in "eq. 3" and "0.5" do not end a sentence
            summaries[ast.unparse(field.target)] = re.split(r"(?<=\.) (?=[A-Z`])", doc, maxsplit=1)[0]
    return summaries


def _field_action(section: str, cls: type, name: str, summary: str) -> Action:
    """Return an argument that only serves to be formatted."""
    details = f"{describe_field(cls, name)}; default: {_format_value(getattr(cls, name))}"
    text = f"{summary.rstrip('.')} ({details})".replace("%", "%%")
    return Action([f"--{section}.{name}"], dest=name, nargs=0, default=SUPPRESS, help=text)


def _format_value(value: Any) -> str:
    """Return a value as it is written in a recipe."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_format_value, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
