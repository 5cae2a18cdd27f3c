"""Class-wise NMS of fixed shape: one operator in torch, which becomes ONNX's NonMaxSuppression."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from embedmask.inference.proposals import class_wise_nms


def nms_mask(
    boxes: Tensor, scores: Tensor, labels: Tensor, *, num_classes: int, threshold: float, limit: int
) -> Tensor:
    """Return which boxes class-wise NMS keeps.

    Args:
        boxes: `[N, P, 4]` xyxy px.
        scores: `[N, P]`; negative ones are not candidates.
        labels: int64 `[N, P]`, 0..C-1.
        num_classes: C.
        threshold: IoU with a better box above which a box is suppressed.
        limit: boxes to keep per class, at least the number of results.

    Returns:
        bool `[N, P]`.
    """
    # ONNX takes scores per class [N, C, P]: -1 for the classes that a box does not have
    is_class = F.one_hot(labels, num_classes).mT.bool()
    per_class = torch.where(is_class, scores[:, None], -1.0)
    keep: Tensor = torch.ops.embedmask.nms(boxes, per_class, threshold, limit)
    return keep > 0


@torch.library.custom_op("embedmask::nms", mutates_args=())
def nms(boxes: Tensor, scores: Tensor, threshold: float, limit: int) -> Tensor:
    """Return 1 for the boxes that NMS keeps, float32 `[N, P]`; `scores` `[N, C, P]` are negative for no candidate."""
    keep = torch.zeros_like(boxes[..., 0])
    best, labels = scores.max(1)
    for image, (box, score, label) in enumerate(zip(boxes, best, labels, strict=True)):
        rows = (score > 0).nonzero()[:, 0]
        rows_to_keep = rows[class_wise_nms(box[rows], score[rows], label[rows], threshold)]
        keep[image, rows_to_keep] = 1.0
    return keep


@nms.register_fake
def _(boxes: Tensor, scores: Tensor, threshold: float, limit: int) -> Tensor:
    return torch.empty_like(boxes[..., 0])


def translation() -> dict[Any, Any]:
    """Return the table that translates the operator into ONNX operators of opset 18."""
    from onnxscript import opset18

    op: Any = opset18  # its types do not accept constants

    def onnx_nms(boxes: Any, scores: Any, threshold: float, limit: int) -> Any:
        # rows of image, class, box: int64 [S, 3]
        selected = op.NonMaxSuppression(
            boxes,
            scores,
            op.Constant(value_ints=[limit]),
            op.Constant(value_floats=[threshold]),
            op.Constant(value_floats=[0.0]),
        )
        places = op.Gather(selected, op.Constant(value_ints=[0, 2]), axis=1)
        ones = op.Expand(op.Constant(value_float=1.0), op.Shape(selected, start=0, end=1))
        shape = op.Gather(op.Shape(scores), op.Constant(value_ints=[0, 2]))
        return op.ScatterND(op.ConstantOfShape(shape), places, ones)

    return {torch.ops.embedmask.nms.default: onnx_nms}
