"""The plugin of napari: its manifest by npe2, and its widget on layers of napari, without a screen."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from predictors import NAMES, predictor_config

from embedmask import EmbedMask, Predictor
from embedmask.config import override
from embedmask.errors import BadInput
from embedmask.inference.explain import explain
from embedmask.masks import RunMasks
from embedmask.napari import layers as plugin
from embedmask.napari.layers import Plane, detect_layers, labels_layer
from embedmask.structures import Instances
from embedmask.weights.checkpoint import load_checkpoint, save

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
pytest.importorskip("napari", reason="needs pip install 'embedmask[napari]'")
npe2 = pytest.importorskip("npe2")
MANIFEST = Path(plugin.__file__).with_name("napari.yaml")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("napari") / "model.safetensors"
    torch.manual_seed(0)
    model = EmbedMask(predictor_config())
    torch.nn.init.constant_(model.head.class_logits.bias, 2.0)
    save(model, path, class_names=NAMES)
    return path


@pytest.fixture
def viewer() -> Iterator[Any]:
    """Return the model of a viewer: all of napari but the canvas, which needs OpenGL."""
    from napari.components import ViewerModel
    from qtpy.QtWidgets import QApplication

    QApplication.instance() or QApplication([])
    yield ViewerModel()
    plugin.load_predictor.cache_clear()


def photo(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 256, shape, dtype=np.uint8), np.ones((8, 8), np.uint8))


def run(widget: Any) -> int:
    """Click the button and wait; return how often the event loop ran meanwhile."""
    from qtpy.QtCore import QEventLoop, QTimer

    ticks, loop = [], QEventLoop()
    timer = QTimer()
    timer.timeout.connect(lambda: ticks.append(1))
    timer.start(1)
    widget.run.native.click()
    assert not widget.run.enabled, "a second run could start"
    end = time.monotonic() + 60
    while not widget.run.enabled:
        # that of QApplication, in PySide6 6.12, takes a reference of None with each call, until Python aborts
        loop.processEvents()
        assert time.monotonic() < end
    return len(ticks)


def test_manifest_is_valid() -> None:
    manifest = npe2.PluginManifest.from_file(MANIFEST)
    manifest.validate_imports()
    manager = npe2.PluginManager.instance()  # commands are resolved by the one of the process
    if "embedmask" not in manager:
        manager.register(manifest)
    (widget,) = [widget for widget in manager.iter_widgets() if widget.plugin_name == "embedmask"]
    from embedmask.napari.widget import DetectWidget

    assert manager.commands.get(widget.command) is DetectWidget


def test_entry_point_names_the_manifest() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    entry = project["project"]["entry-points"]["napari.manifest"]["embedmask"]
    assert entry == "embedmask.napari:napari.yaml"
    assert "napari/napari.yaml" in project["tool"]["setuptools"]["package-data"]["embedmask"]


def test_widget_adds_labels_and_embedding(viewer: Any, weights: Path) -> None:
    from embedmask.napari.widget import DetectWidget

    image = photo(10, 12)
    viewer.add_image(image, name="cells", scale=(0.5, 0.25), translate=(3, 4))
    widget = DetectWidget(viewer)
    widget.weights.value, widget.embedding.value, widget.tile.value = str(weights), True, 0
    widget.score.value = 0.4
    assert run(widget) > 1, "the window does not respond while the model runs"
    _, labels, embedding = viewer.layers
    (result,) = Predictor.load(weights).predict_stream([image], score_threshold=0.4)
    assert result.instances is not None
    masks = result.instances.masks.to_dense().numpy()
    assert len(masks) > 3
    expected = np.where(masks.any(0), masks.argmax(0) + 1, 0)
    np.testing.assert_array_equal(labels.data, expected)
    np.testing.assert_allclose(labels.features["score"][1:], result.instances.scores.numpy())
    assert list(labels.features["class"][:1]) == ["background"]
    assert widget.status.value == f"{len(masks)} objects"
    # both lie over the image
    for layer, slack in ((labels, 1e-6), (embedding, 16)):
        np.testing.assert_allclose(layer.extent.world, viewer.layers[0].extent.world, atol=slack * 0.5)
    assert embedding.rgb
    assert widget.image.value is viewer.layers[0], "the next run would use the embedding"
    assert embedding.data.shape[2] == 3


def test_current_plane_of_a_stack(viewer: Any, weights: Path) -> None:
    from embedmask.napari.widget import DetectWidget

    stack = np.stack([photo(10, 12, seed=k) for k in range(3)]).astype(np.uint16) * 257
    layer = viewer.add_image(stack)
    viewer.dims.set_current_step(0, 2)
    plane = Plane.of(layer, viewer.dims.point)
    np.testing.assert_array_equal(plane.image("camera")[0].numpy(), photo(10, 12, seed=2))
    widget = DetectWidget(viewer)
    widget.weights.value, widget.tile.value = str(weights), 64
    run(widget)
    assert viewer.layers[-1].data.shape == (80, 96)


def test_depth_is_that_of_the_model(viewer: Any, weights: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(weights)
    config = override(checkpoint.config, {"image_depth": 4095.0}, where="test")
    checkpoint.model.config = config
    save(checkpoint.model, tmp_path / "deep.safetensors", class_names=checkpoint.class_names)
    deep = photo(10, 12).astype(np.uint16) * 2
    plane = Plane.of(viewer.add_image(deep), viewer.dims.point)
    options = {"score_threshold": 0.3, "tile": None, "embedding": False}
    ((labels, details, _),) = detect_layers(plane, str(tmp_path / "deep.safetensors"), **options)
    predictor = Predictor.load(tmp_path / "deep.safetensors")
    detections = predictor(deep, 0.3)
    assert details["features"]["score"][1:] == pytest.approx(detections.confidence.tolist())
    ((_, others, _),) = detect_layers(plane, str(weights), **options)
    assert others["features"]["score"] != details["features"]["score"]
    assert labels.shape == deep.shape


def test_plane_of_layers_that_are_shifted_or_scaled(viewer: Any) -> None:
    stack = np.stack([photo(10, 12, seed=k) for k in range(10)])
    viewer.add_image(stack)
    shifted = viewer.add_image(stack, translate=(5, 0, 0))
    scaled = viewer.add_image(stack, scale=(2, 1, 1))
    for z, planes in ((7, (2, 4)), (14, (9, 7)), (0, (0, 0))):
        viewer.dims.set_point(0, z)
        for layer, expected in zip((shifted, scaled), planes, strict=True):
            assert Plane.of(layer, viewer.dims.point).index == (expected,)


def test_other_axes_are_refused(viewer: Any) -> None:
    from embedmask.napari.widget import DetectWidget

    viewer.add_image(np.stack([photo(10, 12)] * 3))
    widget = DetectWidget(viewer)
    viewer.dims.order = (1, 0, 2)
    widget.run.native.click()
    assert widget.status.value == "show the last two axes: roll the dimensions back"
    assert widget.run.enabled


def test_colors_and_pyramids(viewer: Any) -> None:
    colors = np.stack([photo(10, 12, seed=k) for k in range(3)], -1)
    layer = viewer.add_image([colors, colors[::2, ::2]], multiscale=True, rgb=True)
    image = Plane.of(layer, viewer.dims.point).image("camera")
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), colors)


def test_errors_are_shown_in_the_widget(viewer: Any, weights: Path) -> None:
    from embedmask.napari.widget import DetectWidget

    widget = DetectWidget(viewer)
    widget.run.native.click()
    assert widget.status.value == "open an image first"
    viewer.add_image(photo(10, 12), name="cells")
    widget.weights.value = "no_such_model"
    run(widget)
    assert "no_such_model" in widget.status.value
    widget.weights.value, widget.embedding.value, widget.tile.value = str(weights), True, 64
    run(widget)
    assert "cells is larger than a tile" in widget.status.value
    assert len(viewer.layers) == 1


def test_selected_image_is_chosen(viewer: Any) -> None:
    from embedmask.napari.widget import DetectWidget

    first, second = viewer.add_image(photo(2, 2)), viewer.add_image(photo(3, 3))
    widget = DetectWidget(viewer)
    assert widget.image.value is second
    viewer.layers.selection.active = first
    assert widget.image.value is first
    viewer.layers.remove(first)
    assert widget.image.value is second


def test_embedding_is_that_of_the_prediction(weights: Path) -> None:
    """One run of the network returns both; a cell of the embedding covers the pixels that the network sees there."""
    predictor, image = plugin.load_predictor(str(weights)), photo(10, 12)
    calls, network = [], predictor.network
    predictor.network = lambda *args, **options: calls.append(1) or network(*args, **options)
    plane = Plane(image, (), False, "a", (0.5, 0.5), (3.0, 4.0))
    layers = plugin.detect_layers(plane, str(weights), score_threshold=0.4, tile=128, embedding=True)
    plugin.load_predictor.cache_clear()
    assert len(calls) == 1
    (labels, _, _), (colors, options, kind) = layers
    explained = explain(Predictor.load(weights), np.stack([image] * 3, -1), 0.4)
    embed = explained.pixels.embed[:, : colors.shape[0], : colors.shape[1]]
    coordinates = explained.projection.coordinates(embed)
    np.testing.assert_array_equal(colors, explained.projection.colors(coordinates))
    assert (kind, options["rgb"]) == ("image", True)
    assert labels.any()
    for cells, scale, side in zip(colors.shape, options["scale"], image.shape, strict=False):
        assert (cells - 1) * scale < side * 0.5 <= cells * scale
    tiled = plugin.detect_layers(plane, str(weights), score_threshold=0.4, tile=128, embedding=False)
    np.testing.assert_array_equal(tiled[0][0], labels)


def test_first_object_keeps_shared_pixels() -> None:
    masks = RunMasks.from_dense(torch.ones(2, 3, 4, dtype=torch.bool))
    instances = Instances(torch.zeros(2, 4), torch.tensor([0.9, 0.5]), torch.tensor([1, 0]), masks)
    plane = Plane(None, (), False, "a", (1.0, 1.0), (0.0, 0.0))
    data, options, kind = labels_layer(instances, ["x", "y"], plane)
    assert kind == "labels"
    assert (data == 1).all()
    assert options["features"]["class"] == ["background", "y", "x"]


@pytest.mark.parametrize(
    "transform", [{"rotate": 30}, {"shear": [0.3]}, {"affine": [[1, 0, 50], [0, 1, 60], [0, 0, 1]]}]
)
def test_raises_on_layers_that_results_would_not_cover(viewer: Any, transform: dict[str, Any]) -> None:
    options = {"scale": (0.5, 0.25), "translate": (3, 4)}
    plain = viewer.add_image(photo(20, 30), **options)
    assert Plane.of(plain, (0.0, 0.0)).translate == (3, 4)
    with pytest.raises(BadInput, match="turned: is rotated, sheared or has an affine transform"):
        Plane.of(viewer.add_image(photo(20, 30), name="turned", **options, **transform), (0.0, 0.0))
