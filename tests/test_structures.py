"""Shared data structures: targets, losses, instances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from small_models import no_objects, random_predictions, rectangles

from embedmask.errors import BadInput
from embedmask.masks import BitMasks, RunMasks
from embedmask.structures import Instances, Losses, Target


def test_length_of_instances() -> None:
    empty = Instances(
        torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), RunMasks([], (3, 4))
    )
    assert len(empty) == 0
    assert empty.masks.to_dense().shape == (0, 3, 4)


def instances() -> Instances:
    """Return three detections of 5 x 6 px, without proposal embeddings."""
    dense = torch.arange(90).view(3, 5, 6) % 4 == 0
    boxes, scores = torch.arange(12.0).view(3, 4), torch.tensor([0.9, 0.5, 0.2])
    return Instances(boxes, scores, torch.tensor([1, 0, 2]), RunMasks.from_dense(dense))


@pytest.mark.parametrize("index", [[2, 0], range(1, 3), [], [1, 1]])
def test_rows_of_every_column_are_selected(index: Sequence[int]) -> None:
    whole, rows = instances(), list(index)
    selected = whole.select(index)
    assert len(selected) == len(rows)
    for name in ("boxes", "scores", "labels"):
        assert torch.equal(getattr(selected, name), getattr(whole, name)[rows])
    assert torch.equal(selected.masks.to_dense(), whole.masks.to_dense()[rows])
    assert selected.proposal_embed.shape == selected.proposal_margin.shape == (len(rows), 0)


def test_embeddings_are_selected() -> None:
    embed = torch.arange(6.0).view(3, 2)
    whole = replace(instances(), proposal_embed=embed, proposal_margin=embed[:, :1])
    selected = whole.select([2, 1])
    assert torch.equal(selected.proposal_embed, embed[[2, 1]])
    assert torch.equal(selected.proposal_margin, embed[[2, 1], :1])
    assert whole.select([]).proposal_embed.shape == (0, 2)


def test_target_with_masks_in_either_form() -> None:
    target = changed()
    crops = replace(target, masks=BitMasks.of(target.masks))
    crops.validate(3)
    assert crops.mask_size == target.mask_size == (32, 32)
    assert torch.equal(crops.dense_masks(), target.dense_masks())


def test_losses_omit_missing_terms() -> None:
    one = torch.ones((), requires_grad=True)
    losses = Losses(one, one * 2, one * 3, one * 4, smooth=None, semantic=one * 5, num_positives=7)
    assert list(losses.as_dict()) == ["classification", "box", "centerness", "mask", "semantic"]
    assert losses.total.item() == 15
    losses.total.backward()
    assert one.grad is not None
    assert one.grad.item() == 15


def test_padded_size() -> None:
    assert random_predictions((33, 65)).padded_size == (40, 72)


def changed(**fields: torch.Tensor) -> Target:
    good = rectangles([[1, 2, 10, 12], [4, 4, 20, 30]], (32, 32))
    good.image_id = 41
    return Target(**{**vars(good), **fields})


BAD = {
    "label too high": ({"labels": torch.tensor([0, 3])}, r"labels 0\.\.3, but the model has classes 0\.\.2"),
    "label below 0": ({"labels": torch.tensor([-1, 0])}, r"labels -1\.\.0"),
    "no width": ({"boxes": torch.tensor([[1.0, 1, 5, 5], [7, 1, 7, 5]])}, "box 1 .* has no area"),
    "turned around": ({"boxes": torch.tensor([[9.0, 1, 5, 5], [1, 1, 7, 5]])}, "box 0 .* has no area"),
    "not a number": ({"boxes": torch.tensor([[1.0, 1, 5, 5], [1, 1, torch.nan, 5]])}, "box 1"),
    "infinite": ({"boxes": torch.tensor([[1.0, 1, torch.inf, 5], [1, 1, 7, 5]])}, "box 0"),
    "one mask": ({"masks": torch.ones(1, 32, 32, dtype=torch.bool)}, "2 boxes but 1 masks"),
    "masks without frame": ({"masks": torch.ones(2, 32, dtype=torch.bool)}, r"masks \[G, H, W\]"),
    "three sides": ({"boxes": torch.ones(2, 3)}, r"boxes \[G, 4\]"),
    "one label": ({"labels": torch.tensor([0])}, r"labels \[G\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_validate_raises_on_bad_targets(case: str) -> None:
    fields, message = BAD[case]
    with pytest.raises(BadInput, match=message) as error:
        changed(**fields).validate(3)
    assert "image 41" in str(error.value)
    assert "\n" not in str(error.value)


def test_validate_accepts_good_targets() -> None:
    changed().validate(3)
    no_objects((5, 6)).validate(1)
    assert len(changed()) == 2
