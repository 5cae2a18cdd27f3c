"""The session of the demo against `Predictor`, `Explanation` and decoding with other margins; no browser."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from predictors import NAMES, changed, predictor_config, same
from scipy import ndimage
from small_models import small_baseline

from embedmask import EmbedMask, Predictor
from embedmask._supervision import sv
from embedmask.demo import session as demo
from embedmask.demo.session import Session, Settings
from embedmask.errors import BadInput
from embedmask.inference.explain import explain
from embedmask.inference.postprocess import Postprocessor
from embedmask.inference.results import to_detections
from embedmask.model.maskrcnn import MaskRCNN


def save_photo(path: Path, height: int = 90, width: int = 120) -> Path:
    rng = np.random.default_rng(0)
    blocks = np.kron(rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3)), np.ones((8, 8, 1)))
    Image.fromarray(blocks[:height, :width].astype(np.uint8)).save(path)
    return path


def eager(**changes: object) -> Predictor:
    torch.manual_seed(0)
    model = EmbedMask(predictor_config(backbone="resnet10t", candidate_threshold=0.05, **changes))
    torch.nn.init.constant_(model.head.class_logits.bias, 2.0)
    # margins at which some pixels of a random model belong to an object, and others do not
    torch.nn.init.constant_(model.head.margin.conv.bias, 1.0)
    return Predictor(model, NAMES, device="cpu", precision="float32")


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return eager()


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_photo(tmp_path_factory.mktemp("demo") / "photo.png")


@pytest.fixture
def session(predictor: Predictor, photo: Path) -> Session:
    return Session.open(predictor, photo)


def found(session: Session) -> sv.Detections:
    return to_detections(session.instances, session.predictor.class_names)


def with_threshold(predictor: Predictor, mask_threshold: float) -> Predictor:
    """Return the predictor with another mask threshold in the config of its model."""
    model = copy.copy(predictor.model)
    model.config = replace(model.config, mask_threshold=mask_threshold)
    return changed(predictor, model=model)


@pytest.mark.parametrize(
    "changes", [{}, {"score": "root", "rescore_masks": True, "mask_interpolation": "log_prob"}]
)
def test_sliders_give_the_results_of_predictor(changes: dict[str, object], photo: Path) -> None:
    predictor = eager(**changes)
    session = Session.open(predictor, photo)
    assert same(found(session), predictor(photo))
    without_network = changed(predictor, network=None)
    session.predictor = without_network
    scores = predictor(photo, 0.0).confidence
    assert scores is not None
    middle = float(scores[10])
    for settings in (Settings(middle, 0.5), Settings(0.0, 0.3, 12), Settings(middle, 0.8, 7)):
        session.update(settings)
        twin = with_threshold(predictor, settings.mask_threshold)
        expected = twin(photo, settings.score_threshold, settings.max_detections)
        assert same(found(session), expected)
        assert 0 < len(expected) < 20


def test_tiles_give_the_results_of_predictor(predictor: Predictor, tmp_path: Path) -> None:
    large, steps = save_photo(tmp_path / "large.png", 150, 200), []
    session = Session.open(predictor, large, 96, lambda *step: steps.append(step))
    assert len(session.outputs) == 12
    assert steps == [(done, 12) for done in range(12)]
    session.update(Settings(0.4, 0.4, 9))
    expected = with_threshold(predictor, 0.4)(large, 0.4, 9, tile=96, overlap=48)
    assert same(found(session), expected)
    assert len(expected) > 1
    session.choose(20, 20, 200)
    assert not session.has_embeddings
    assert (session.draw_object()[1], session.pixel_rows(), session.embedding_rows()) == (None, [], [])


def test_mask_rcnn_has_sliders_without_embeddings(photo: Path) -> None:
    torch.manual_seed(0)
    config = small_baseline(candidate_threshold=0.05, max_detections=12, image_short_side=64)
    predictor = Predictor(MaskRCNN(config), NAMES, device="cpu")
    session = Session.open(predictor, photo)
    session.update(Settings(0.2, 0.4, 5))
    assert same(found(session), with_threshold(predictor, 0.4)(photo, 0.2, 5))
    assert len(found(session)) > 0
    assert not session.has_embeddings


def test_pixel_agrees_with_the_probability_maps(session: Session) -> None:
    session.choose(100.5, 39.5, 240)  # shown at twice its width
    assert session.pixel == (50, 20)
    rows = session.pixel_rows()
    assert session.explanation is not None
    maps = [session.explanation.probability(index) for index in range(len(session.instances))]
    assert [row[4] for row in rows] == pytest.approx([maps[row[0] - 1][20, 50] for row in rows], abs=6e-5)
    assert [row[4] for row in rows] == sorted((row[4] for row in rows), reverse=True)
    assert len({row[4] for row in rows}) > 2
    exact = session.explanation.pixel_probabilities(50, 20)
    assert exact == pytest.approx([phi[20, 50] for phi in maps], abs=1e-5)


@pytest.mark.parametrize("interpolation", ["prob", "log_prob", "aligned"])
@pytest.mark.parametrize("place", [(0, 0), (119, 89), (60, 31)])
def test_one_pixel_of_every_interpolation(interpolation: str, place: tuple[int, int], photo: Path) -> None:
    explained = explain(eager(mask_interpolation=interpolation, min_prob=1e-9), photo, 0.3, 5)
    x, y = place
    expected = [explained.probability(index)[y, x] for index in range(5)]
    assert explained.pixel_probabilities(x, y) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("place", [(0, 0), (119, 89), (60, 31)])
def test_distances_are_those_of_the_embedding_at_the_pixel(place: tuple[int, int], session: Session) -> None:
    assert session.explanation is not None
    pixels = session.pixels
    sides = zip(place[::-1], session.image.shape[1:], pixels.image_size, strict=True)
    cell = [[(at + 0.5) * network / own / pixels.stride - 0.5] for at, own, network in sides]
    p = [ndimage.map_coordinates(channel, cell, order=1, mode="nearest") for channel in pixels.embed.numpy()]
    expected = np.linalg.norm(session.explanation.proposal_embed.numpy() - np.array(p).T, axis=1)
    assert session.explanation.pixel_distances(*place) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("factor", [0.75, 1.0, 1.5])
def test_margin_slider_decodes_with_a_scaled_margin(factor: float, session: Session) -> None:
    predictions, image_sizes, original_sizes = session.outputs[0]
    scaled = replace(
        predictions, proposal_margin=[level / factor**2 for level in predictions.proposal_margin]
    )
    config = session.predictor.model.config
    postprocess = Postprocessor.from_config(config, score_threshold=0.0, reference_masks=False)
    (expected,) = postprocess(scaled, image_sizes, original_sizes)
    index = 4
    widened = session.widened(index, factor)
    assert torch.equal(widened.masks.to_dense()[index], expected.masks.to_dense()[index])
    others = [place for place in range(len(widened)) if place != index]
    assert torch.equal(widened.masks.to_dense()[others], session.instances.masks.to_dense()[others])
    areas = [session.widened(index, f).masks.areas()[index] for f in (0.75, 1, 1.5)]
    assert areas[0] < areas[1] < areas[2]


def test_chosen_object_is_the_smallest_at_the_pixel(session: Session) -> None:
    dense = session.instances.masks.to_dense().numpy()
    shared = np.argwhere(dense.sum(0) > 1).tolist()
    assert shared
    for y, x in [(10, 10), (45, 60), *shared]:
        session.pixel = x, y
        covering = [index for index in range(len(dense)) if dense[index, y, x]]
        smallest = min(covering, key=lambda index: dense[index].sum(), default=None)
        assert session.chosen == smallest
    session.pixel = None
    assert session.chosen is None
    assert session.draw_object()[1] is None


def test_views_follow_the_chosen_object(session: Session) -> None:
    assert np.array_equal(session.draw_pixel(), session.drawn)
    y, x = session.instances.masks.to_dense()[0].nonzero()[0].tolist()
    session.choose(x, y, 120)
    assert session.chosen is not None
    rows = session.embedding_rows()
    assert [row[3] == "chosen object" for row in rows].index(True) == session.chosen
    first = session.draw_object()
    session.margin_factor = 0.5
    assert not any(map(np.array_equal, first, session.draw_object()))
    assert tuple(session.draw_pixel()[y, x]) == demo.CROSS
    assert [row[0] for row in session.object_rows()] == list(range(1, len(session.instances) + 1))


def test_downloads_hold_the_objects(session: Session, tmp_path: Path) -> None:
    session.update(Settings(0.4, 0.5, 5))
    dense = session.instances.masks.to_dense().numpy()
    coco = json.loads(session.write("coco", tmp_path).read_text())
    assert [c["name"] for c in coco["categories"]] == NAMES
    assert coco["images"] == [{"id": 1, "file_name": "photo.png", "width": 120, "height": 90}]
    from pycocotools import mask as coco_mask

    restored = [coco_mask.decode(a["segmentation"]) for a in coco["annotations"]]
    assert np.array_equal(restored, dense)
    assert [a["area"] for a in coco["annotations"]] == dense.sum((1, 2)).tolist()
    labels = np.asarray(Image.open(session.write("labels", tmp_path)))
    assert np.array_equal(labels > 0, dense.any(0))
    labelme = json.loads(session.write("polygons", tmp_path).read_text())
    assert {shape["label"] for shape in labelme["shapes"]} <= set(NAMES)
    assert Path(labelme["imagePath"]).name == labelme["imagePath"] == "photo.png"
    features = json.loads(session.write("geojson", tmp_path).read_text())["features"]
    assert len(features) == len(dense)


def test_odd_images_get_a_sentence(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, text = tmp_path / "broken.png", tmp_path / "text.png"
    broken.write_bytes(save_photo(tmp_path / "whole.png").read_bytes()[:300])
    text.write_text("hello")
    for path in (broken, text):
        with pytest.raises(BadInput, match=f"^{path.name}: ") as error:
            Session.open(predictor, path)
        assert str(tmp_path) not in str(error.value)
    monkeypatch.setattr(demo, "MAX_PIXELS", 1000)
    with pytest.raises(BadInput, match=r"whole.png: 120 x 90 px, .* embedmask predict --tile"):
        Session.open(predictor, tmp_path / "whole.png")


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (64, 64)])
def test_small_and_thin_images(size: tuple[int, int], predictor: Predictor, tmp_path: Path) -> None:
    session = Session.open(predictor, save_photo(tmp_path / "thin.png", *size), 64)
    session.choose(0, 0, size[1])
    assert session.draw_pixel().shape[:2] == size
    assert same(found(session), predictor(tmp_path / "thin.png", tile=64, overlap=32))


def test_nothing_found(predictor: Predictor, session: Session, tmp_path: Path) -> None:
    session.update(Settings(1.0, 0.5))
    session.choose(5, 5, 120)
    assert len(session.instances) == 0
    assert (session.pixel_rows(), session.object_rows(), session.draw_object()[1]) == ([], [], None)
    assert json.loads(session.write("coco", tmp_path).read_text())["annotations"] == []
    assert session.draw_pixel().shape == (90, 120, 3)
