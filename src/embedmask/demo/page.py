"""Page of the demo in gradio: its layout, its events, and the server."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from time import sleep
from typing import Any

import gradio as gr
import pandas as pd

from embedmask.demo.session import Format, Session, Settings
from embedmask.errors import BadInput
from embedmask.figures import paint_instances, scale_panel
from embedmask.inference.predictor import Predictor
from embedmask.visualize import Pixels

EXAMPLES = sorted((Path(__file__).parent / "examples").glob("*.png"))
SHOWN = (640, 1600)
"""Shortest and longest side of an image on the page, px: smaller images are enlarged, larger ones reduced."""
FORMATS: dict[Format, str] = {
    "coco": "COCO",
    "labels": "Label image",
    "polygons": "LabelMe",
    "geojson": "GeoJSON",
}
TILE = 1536
"""Default side of tiles, px, of models that do not resize images."""
START = "Drop an image, or choose an example."
HINT = "Click an object to see its probability map, its margin, and its embedding relative to the others."
PROGRESS = gr.Progress()
Update = dict[Any, Any]
"""Component -> new value."""
CSS = """
footer {display: none !important}
.view {min-height: 100px}
#examples .grid-wrap {min-height: 0}
"""


class Page:
    """Components of the page and the functions that its events call.

    Attributes:
        blocks: the page.
    """

    def __init__(self, predictor: Predictor, model_name: str, folder: Path) -> None:
        """Lay out the page of a model.

        Args:
            model_name: name to show.
            folder: existing folder for files to download.
        """
        self.predictor, self.folder = predictor, folder
        config = predictor.model.config
        names = ", ".join(predictor.class_names[:8]) + (", ..." if len(predictor.class_names) > 8 else "")
        line = f"# EmbedMask\nModel `{model_name}`; classes: {names}. Images stay on this computer."
        if not config.has_embeddings:
            line += " This type of model has no embeddings, so the page shows its objects only."
        with gr.Blocks(title="EmbedMask", analytics_enabled=False) as self.blocks:
            self.state = gr.State(None)
            gr.Markdown(line)
            with gr.Row():
                self.file = gr.File(label="Image", height=170, min_width=300, elem_id="file")
                self.examples = gr.Gallery(
                    list(EXAMPLES), show_label=False, columns=len(EXAMPLES), height="auto", allow_preview=False,
                    buttons=[], interactive=False, visible=predictor.class_names == ["nucleus"],
                    min_width=300, object_fit="contain", elem_id="examples",
                )  # fmt: skip
            self.status = gr.Markdown(START, elem_id="status")
            with gr.Row():
                with gr.Column(scale=3, min_width=300), gr.Tabs():
                    self._objects_tab()
                    self._embedding_tabs(visible=config.has_embeddings)
                with gr.Column(scale=1, min_width=300):
                    self._controls(Settings.of(predictor), max(config.candidate_threshold, config.min_score))
            self._connect()

    def _controls(self, settings: Settings, lowest: float) -> None:
        """Lay out sliders, tiles and downloads."""
        max_detections = self.predictor.model.config.max_detections
        # rounded up to a step, since an exported file serves no lower score
        self.score = gr.Slider(
            ceil(100 * lowest) / 100, 1, settings.score_threshold, step=0.01, label="Score threshold"
        )
        self.threshold = gr.Slider(0.05, 0.95, settings.mask_threshold, step=0.01, label="Mask threshold")
        self.limit = gr.Slider(
            1, max_detections, max_detections, step=1, label="Maximum number of objects (right end: no limit)"
        )
        default = TILE if self.predictor.model.config.image_short_side is None else 0
        self.tile = gr.Dropdown(
            [("no tiles", 0), *((f"{side} px", side) for side in (512, 1024, TILE))],
            value=default, label="Tiles for larger images",
        )  # fmt: skip
        gr.Markdown("Download as")
        with gr.Row():
            self.buttons = {fmt: gr.Button(name, size="sm", min_width=100) for fmt, name in FORMATS.items()}
        self.download = gr.DownloadButton(visible="hidden", elem_id="download")

    def _objects_tab(self) -> None:
        """Lay out the image with the objects drawn, and their table."""
        headers = ["object", "class", "score", "x", "y", "width", "height", "area"]
        with gr.Tab("Objects"):
            self.drawn = image_view(label="Objects", elem_id="drawn")
            self.objects = gr.Dataframe(headers=headers, datatype="auto", max_height=300, interactive=False)

    def _embedding_tabs(self, *, visible: bool) -> None:
        """Lay out the tabs that need embeddings."""
        with gr.Tab("Pixel", visible=visible):
            gr.Markdown("Click a pixel: how close is its embedding to that of each proposal?")
            self.pixel_image = image_view(label="φ of the pixel, 0 (blue) to 1 (yellow)", elem_id="pixel")
            headers = ["object", "class", "distance", "margin", "phi"]
            self.proposals = gr.Dataframe(
                headers=headers, datatype="auto", max_height=300, interactive=False, elem_id="proposals"
            )
        with gr.Tab("Object", visible=visible):
            self.hint = gr.Markdown(HINT, elem_id="hint")
            self.object_image = image_view(label="Objects", elem_id="object")
            self.factor = gr.Slider(0.25, 4, 1, step=0.05, label="Factor of the margin", elem_id="factor")
            with gr.Row():
                self.probability = image_view(show_label=False, elem_id="probability", min_width=300)
                self.scatter = gr.ScatterPlot(
                    x="component 1", y="component 2", color="class", tooltip="all",
                    label="Proposal embeddings", min_width=300,
                )  # fmt: skip
        with gr.Tab("Embeddings", visible=visible):
            gr.Markdown("The first three principal components of the pixel embedding as red, green and blue.")
            with gr.Row():
                self.pixel_colors = image_view(label="Pixel embedding", min_width=300, elem_id="colors")
                self.proposal_colors = image_view(label="Proposal embeddings", min_width=300)

    def _connect(self) -> None:
        """Connect the events. All run one after another: they share the model and the session."""
        one: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
        quick: dict[str, Any] = {**one, "trigger_mode": "always_last", "show_progress": "hidden"}
        sliders = [self.score, self.threshold, self.limit]
        settings, everything = [self.state, *sliders], self.outputs()
        views = [self.drawn, self.pixel_image, self.object_image, self.pixel_colors]
        slow = {**one, "show_progress_on": views}
        self.file.upload(self.open, [self.file, self.tile, *sliders], everything, **slow)
        self.examples.select(self.open_example, [self.tile, *sliders], everything, **slow)
        self.tile.input(self.open_again, [self.state, self.tile, *sliders], everything, **slow)
        gr.on([slider.input for slider in sliders], self.decode, settings, everything, **quick)
        self.factor.input(self.widen, [self.state, self.factor], everything, **quick)
        for image in (self.drawn, self.pixel_image, self.object_image):
            image.select(self.choose, self.state, everything, **quick)
        for fmt, button in self.buttons.items():
            written = button.click(partial(self.write, fmt), self.state, [self.download, self.status], **one)
            written.success(fn=None, js="() => document.querySelector('#download').click()")

    def outputs(self) -> list[Any]:
        """Return all components that events change."""
        return [
            self.state, self.status, self.file, self.drawn, self.objects, self.pixel_image, self.proposals,
            self.hint, self.object_image, self.probability, self.factor, self.scatter, self.pixel_colors,
            self.proposal_colors,
        ]  # fmt: skip

    def open(self, path: str, tile: int, *values: float, progress: gr.Progress = PROGRESS) -> Update:
        """Run the network on a file and show the result; on invalid input keep the former image."""
        try:
            session = Session.open(
                self.predictor, Path(path), tile,
                lambda done, total: progress((done, total), desc="network", unit="tiles"),
            )  # fmt: skip
        except BadInput as error:
            return {self.status: f"⚠️ {error}", self.file: None}
        colors = session.explanation.pixel_colors() if session.explanation is not None else None
        return {
            self.state: session,
            self.file: None,  # the place for the next file
            self.pixel_colors: None if colors is None else on_page(colors),
            self.factor: 1,
            **self.decode(session, *values),
        }

    def open_example(
        self, event: gr.SelectData, tile: int, *values: float, progress: gr.Progress = PROGRESS
    ) -> Update:
        """Open the example that was clicked."""
        return self.open(str(EXAMPLES[event.index]), tile, *values, progress=progress)

    def open_again(
        self, session: Session | None, tile: int, *values: float, progress: gr.Progress = PROGRESS
    ) -> Update:
        """Open the image in other tiles."""
        return {} if session is None else self.open(str(session.path), tile, *values, progress=progress)

    def decode(self, session: Session | None, score: float, threshold: float, limit: float) -> Update:
        """Decode the objects again and show them."""
        if session is None:
            return {}
        max_detections = self.predictor.model.config.max_detections
        session.update(Settings(score, threshold, None if limit >= max_detections else int(limit)))
        explanation = session.explanation
        colors = None if explanation is None else paint_instances(explanation, explanation.proposal_colors())
        return {
            self.status: status(session),
            self.drawn: on_page(session.drawn),
            self.objects: session.object_rows(),
            self.proposal_colors: None if colors is None else on_page(colors),
            **self.show_pixel(session),
        }

    def choose(self, event: gr.SelectData, session: Session | None) -> Update:
        """Choose the pixel that was clicked, and the object there."""
        if session is None:
            return {}
        x, y = event.index
        session.choose(x, y, on_page(session.drawn).shape[1])
        return {self.factor: 1, **self.show_pixel(session)}

    def widen(self, session: Session | None, factor: float) -> Update:
        """Set the factor of the margin of the chosen object."""
        if session is None:
            return {}
        session.margin_factor = factor
        return self.show_pixel(session)

    def show_pixel(self, session: Session) -> Update:
        """Show the proposals at the chosen pixel, and the object there."""
        columns = ["component 1", "component 2", "object", "class"]
        scene, panel = session.draw_object()
        missed = panel is None and session.pixel is not None and session.has_embeddings
        return {
            self.pixel_image: on_page(session.draw_pixel()),
            self.proposals: session.pixel_rows(),
            self.hint: "No object at this pixel: click inside a mask." if missed else HINT,
            self.object_image: on_page(scene),
            self.probability: None if panel is None else on_page(panel),
            self.scatter: pd.DataFrame(session.embedding_rows(), columns=columns),
        }

    def write(self, fmt: Format, session: Session | None) -> Update:
        """Write a file for the browser to download."""
        if session is None:
            raise gr.Error("Drop an image first.", print_exception=False)
        try:
            path = session.write(fmt, Path(mkdtemp(dir=self.folder)))
        except BadInput as error:
            raise gr.Error(str(error), print_exception=False) from None
        return {self.download: str(path)}


def image_view(**options: Any) -> gr.Image:
    """Return a component that shows an image."""
    return gr.Image(
        interactive=False, format="png", buttons=["download", "fullscreen"], elem_classes="view", **options
    )


def status(session: Session) -> str:
    """Return a line about the objects, the image and the tiles, and the notes of the file."""
    height, width = session.image.shape[1:]
    count, tiles = len(session.instances), len(session.outputs)
    line = f"**{count} object{'' if count == 1 else 's'}** in {session.path.name}, {width} x {height} px"
    if tiles > 1:
        line += f", in {tiles} tiles; embeddings are shown for images without tiles"
    elif count == (session.settings.max_detections or session.predictor.model.config.max_detections):
        line += ", the maximum number"
    return " · ".join([line, *session.notes])


def on_page(image: Pixels) -> Pixels:
    """Return an image in the size in which the page shows it."""
    return scale_panel(image, *SHOWN)


def serve(
    predictor: Predictor, model_name: str, *, host: str, port: int | None, announce: Callable[[str], None]
) -> None:
    """Serve the page until the process is interrupted; uploads and downloads are deleted then.

    Args:
        model_name: name to show.
        host: address to listen on.
        port: None: the first free one from 7860 on.
        announce: receives the address of the page, once it is ready.

    Raises:
        BadInput: the port is in use, or the address does not belong to this computer.
    """
    with TemporaryDirectory(prefix="embedmask-demo-") as name:
        os.environ["GRADIO_TEMP_DIR"] = name
        blocks = Page(predictor, model_name, Path(name)).blocks
        try:
            _, address, _ = blocks.launch(
                server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True,
                ssr_mode=False, run_history=False, footer_links=[], css=CSS, max_file_size="500mb",
                state_session_capacity=16, enable_monitoring=False,
            )  # fmt: skip
        except OSError as error:
            raise BadInput(f"demo: {error}; choose another --port or --host") from None
        announce(address)
        with suppress(KeyboardInterrupt):
            while True:
                sleep(0.2)
        # unlike gradio's own handler, this ends the connections of open pages first
        blocks.close(verbose=False)
