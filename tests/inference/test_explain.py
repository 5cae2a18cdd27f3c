"""Explanations: probability maps give the masks, colors agree between pixels and proposals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from predictors import NAMES, changed, predictor_config
from small_models import small_baseline
from torch.nn import functional as F

from embedmask import EmbedMask, Predictor
from embedmask.errors import BadInput
from embedmask.inference.explain import Explanation, Projection, explain, sample_map
from embedmask.model.build import build_model
from embedmask.structures import PixelMap

SETTINGS: dict[str, dict[str, Any]] = {
    "prob": {},
    "log_prob": {"mask_interpolation": "log_prob", "mask_threshold": 0.53},
    "aligned": {"mask_interpolation": "aligned", "min_prob": 1e-6},
    "per dimension": {"margin_source": "tower", "margin_input_scale": 32.0},
    "two dimensions": {"embed_dim": 2},
}


def varied(**changes: Any) -> Predictor:
    """Return a predictor whose embeddings spread as far as its margins, so that masks have outlines."""
    torch.manual_seed(1)
    model = EmbedMask(predictor_config(**changes))
    with torch.no_grad():
        for conv in (model.head.proposal_embed, model.head.pixel_branch.embed):
            assert conv is not None
            conv.weight.mul_(12)
    return Predictor(model, NAMES, device="cpu", precision="float32")


@pytest.fixture(params=SETTINGS, ids=str)
def explained(request: pytest.FixtureRequest, photo: np.ndarray) -> Explanation:
    return explain(varied(**SETTINGS[request.param]), photo, 0.0)


def test_masks_are_the_probabilities_above_the_threshold(explained: Explanation) -> None:
    found = explained.detections
    assert found.mask is not None
    compared = 0
    for index, (x1, y1, x2, y2) in enumerate(np.rint(found.xyxy).astype(int)):
        box = (slice(y1, y2), slice(x1, x2))
        expected = explained.probability(index) > explained.threshold
        mask = np.asarray(found.mask[index])
        assert (mask[box] != expected[box]).sum() <= 1
        assert not (mask & ~expected).sum() > 1
        compared += 0 < mask.sum() < mask.size
    assert compared >= 5


def test_margin_is_the_distance_of_half_probability(explained: Explanation) -> None:
    distances = explained.margin_distances
    margins = explained.proposal_margin
    assert distances.shape == (len(explained.detections),)
    if margins.shape[1] == 1:
        assert torch.exp(-margins[:, 0] * distances**2) == pytest.approx(
            np.full(len(distances), 0.5), rel=1e-5
        )
    else:  # the mean of log s and that of log d agree
        mean = margins.log().mean(1).exp()
        assert torch.exp(-mean * distances**2) == pytest.approx(np.full(len(distances), 0.5), rel=1e-4)


def test_projection_is_the_svd() -> None:
    torch.manual_seed(0)
    values = torch.randn(6, 500) * torch.tensor([5.0, 4, 3, 2, 1, 0.5])[:, None] + 7
    found = Projection.fit(values)
    centered = values.double() - values.double().mean(1, keepdim=True)
    left, singular, _ = torch.linalg.svd(centered, full_matrices=False)
    assert ((found.components @ left[:, :3]).abs() - torch.eye(3)).abs().max() < 1e-9
    torch.testing.assert_close(found.shares, (singular.square() / singular.square().sum())[:3])
    assert (found.components.gather(1, found.components.abs().argmax(1, keepdim=True)) > 0).all()
    coordinates = found.coordinates(values)
    torch.testing.assert_close(coordinates.mean(1), torch.zeros(3, dtype=torch.float64))
    colors = found.colors(coordinates)
    assert colors.shape == (500, 3)
    # a hundredth of the pixels is clipped at either end
    assert [(colors == end).mean() for end in (0, 255)] == pytest.approx([0.01, 0.01], abs=0.006)


def test_padding_does_not_change_the_components() -> None:
    torch.manual_seed(0)
    inside = torch.randn(4, 9, 12)
    maps = [F.pad(inside, (0, 4, 0, 7), value=value) for value in (0.0, 50.0)]
    # an image of 70 x 90 px at stride 8 has 9 x 12 cells
    found = [Projection.of(PixelMap(one, 8, (70, 90))) for one in maps]
    assert torch.equal(found[0].components, found[1].components)
    torch.testing.assert_close(found[0].components, Projection.fit(inside.flatten(1)).components)


def test_few_dimensions_and_constant_embeddings() -> None:
    flat = Projection.fit(torch.ones(5, 20))
    assert flat.colors(flat.coordinates(torch.ones(5, 20))).shape == (20, 3)
    assert (flat.shares == 0).all()
    single = Projection.fit(torch.randn(1, 30))
    assert single.shares.tolist() == pytest.approx([1, 0, 0])


def test_equal_embeddings_have_equal_colors(explained: Explanation) -> None:
    projection = explained.projection
    as_pixel = projection.colors(projection.coordinates(explained.proposal_embed.T[:, None]))
    assert np.array_equal(as_pixel[0], explained.proposal_colors())
    colors = explained.pixel_colors()
    assert colors.shape == (*explained.image.shape[1:], 3)
    assert colors.dtype == np.uint8


def test_sample_map_equals_torch() -> None:
    values = torch.randn(2, 5, 7)
    rows, columns = ((torch.arange(n * 3).double() + 0.5) / 3 - 0.5 for n in (5, 7))
    found = sample_map(values, rows.clamp(0, 4), columns.clamp(0, 6))
    expected = F.interpolate(values[None], scale_factor=3, mode="bilinear")[0]
    torch.testing.assert_close(found, expected)


def test_pixel_embeddings_of_the_predictor(photo: np.ndarray) -> None:
    predictor = varied()
    found = predictor(photo, 0.0, embeddings=True)
    assert set(predictor(photo, 0.0).metadata) == set()
    image = torch.from_numpy(photo.copy()).permute(2, 0, 1)
    resized = predictor.resize.image(image)
    expected = predictor.network(predictor.model.preprocess([resized])).pixel_embed[0]
    assert np.array_equal(found.metadata["pixel_embed"], expected.detach().numpy())
    assert found.metadata["pixel_stride"] == 8
    assert found.metadata["network_size"] == tuple(resized.shape[1:])
    for listed, source in zip(
        predictor([photo, photo[:50]], 0.0, embeddings=True), (photo, photo[:50]), strict=True
    ):
        alone = predictor(source, 0.0, embeddings=True)
        np.testing.assert_allclose(listed.metadata["pixel_embed"], alone.metadata["pixel_embed"], atol=1e-4)
    tiled = predictor(photo, 0.0, embeddings=True, tile=64, overlap=16)
    assert "pixel_embed" not in tiled.metadata
    assert tiled.data["proposal_embed"].shape == (len(tiled), 4)


def test_nothing_found(photo: np.ndarray) -> None:
    empty = explain(varied(), photo, 1.0)
    assert len(empty.detections) == 0
    assert empty.proposal_colors().shape == (0, 3)
    assert empty.to_dict()["instances"] == []


def test_raises_on_a_model_without_embeddings(photo: np.ndarray) -> None:
    baseline = Predictor(build_model(small_baseline()), NAMES, device="cpu")
    with pytest.raises(BadInput, match="the model has no embeddings"):
        explain(changed(baseline), photo)
