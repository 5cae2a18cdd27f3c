"""Widget of napari that runs a model on an image layer and adds its results as layers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from magicgui.widgets import CheckBox, ComboBox, Container, FloatSpinBox, Label, LineEdit, PushButton, SpinBox
from napari.layers import Image, Layer
from napari.qt.threading import create_worker

from embedmask.errors import BadInput
from embedmask.napari.layers import RESULT, LayerData, Plane, detect_layers

if TYPE_CHECKING:
    from napari.viewer import Viewer


class DetectWidget(Container[Any]):
    """Fields for image layer, model, score threshold, tile and embedding; a button that runs the model in a thread."""

    def __init__(self, viewer: Viewer) -> None:
        """Offer the image layers of the viewer, the selected one first."""
        self._viewer = viewer
        self.image = ComboBox(label="image", choices=self._image_layers)
        self.weights = LineEdit(
            label="model", value="nuclei", tooltip="model file, bundled model, or user/model"
        )
        self.score = FloatSpinBox(
            label="score above", value=0, max=1, step=0.05, tooltip="0: that of the model"
        )
        self.tile = SpinBox(label="tile", value=1024, max=2**20, step=256, tooltip="side in px; 0: no tiles")
        self.embedding = CheckBox(label="add embedding", value=False)
        self.run = PushButton(text="Detect")
        self.status = Label(value="")
        super().__init__(
            widgets=[
                self.image, self.weights, self.score, self.tile, self.embedding, self.run, self.status,
            ]
        )  # fmt: skip
        self.run.changed.connect(self._start)
        for event in (viewer.layers.events.inserted, viewer.layers.events.removed):
            event.connect(lambda _: self.image.reset_choices())
        viewer.layers.selection.events.active.connect(self._follow_selection)

    def _image_layers(self, _: object) -> list[Image]:
        """Return the image layers, the selected one first."""
        layers = [layer for layer in self._viewer.layers if _is_source(layer)]
        return sorted(layers, key=lambda layer: layer is not self._viewer.layers.selection.active)

    def _follow_selection(self, event: Any) -> None:
        """Choose the image layer that the user selects."""
        if _is_source(event.value):
            self.image.reset_choices()
            self.image.value = event.value

    def _start(self) -> None:
        """Run the model in a thread of napari, which keeps the window responsive."""
        if self.image.value is None:
            self.status.value = "open an image first"
            return
        dims = self._viewer.dims
        if sorted(dims.order[-2:]) != [dims.ndim - 2, dims.ndim - 1]:
            self.status.value = "show the last two axes: roll the dimensions back"
            return
        self.run.enabled, self.status.value = False, "running"
        compute: Any = detect_layers  # napari's annotation accepts functions without types only
        create_worker(
            compute,
            Plane.of(self.image.value, dims.point),
            str(Path(self.weights.value).expanduser()),
            score_threshold=self.score.value or None,
            tile=self.tile.value or None,
            embedding=self.embedding.value,
            _connect={"returned": self._add, "errored": self._report, "finished": self._finish},
        )

    def _add(self, layers: list[LayerData]) -> None:
        """Add the results to the viewer."""
        for data, options, kind in layers:
            self._viewer.add_layer(Layer.create(data, options, kind))
        self.status.value = f"{len(layers[0][1]['features']['index']) - 1} objects"

    def _report(self, error: Exception) -> None:
        """Show an error that the user can fix; napari reports others itself."""
        self.status.value = str(error) if isinstance(error, BadInput) else f"failed: {error!r}"

    def _finish(self) -> None:
        """Allow the next run."""
        self.run.enabled = True


def _is_source(layer: Layer | None) -> TypeGuard[Image]:
    """Return whether a layer is an image, and not a result of this plugin."""
    return isinstance(layer, Image) and RESULT not in layer.metadata
