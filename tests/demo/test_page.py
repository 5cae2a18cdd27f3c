"""The page of `embedmask demo` in headless Chromium, at desktop and phone width, as a person uses it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import fails
from PIL import Image
from predictors import NAMES, predictor_config
from small_models import small_baseline
from test_readme import python_of

from embedmask import EmbedMask, Predictor
from embedmask.demo.session import Session, Settings
from embedmask.model.maskrcnn import MaskRCNN
from embedmask.weights.checkpoint import save

CHROMIUM = Path("/usr/bin/chromium")
EXAMPLE = Path(__file__).parents[2] / "src/embedmask/demo/examples/touching.png"
if find_spec("gradio") is None:  # importing it takes seconds
    pytest.skip("needs pip install 'embedmask[demo]'", allow_module_level=True)


def in_browser(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that opens the page in a browser."""
    return pytest.mark.slow(
        pytest.mark.skipif(not CHROMIUM.exists(), reason="needs chromium in /usr/bin")(test)
    )


Serve = Callable[..., str]


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Return a function that runs the command as typed and returns the address that it prints."""
    temporary = tmp_path_factory.mktemp("temporary")
    processes: list[subprocess.Popen[str]] = []

    def start(*words: str) -> str:
        command = [sys.executable, "-m", "embedmask", "demo", "--threads", "1", *words]
        environment = {"TMPDIR": str(temporary), "no_proxy": "127.0.0.1"}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        processes.append(process)
        assert process.stdout is not None
        address, _, advice = process.stdout.readline().partition(" ")
        assert address.startswith("http://127.0.0.1:"), "the page is for this computer only"
        assert advice == "· Ctrl+C stops\n"
        return address

    yield start
    for process in processes:
        process.send_signal(signal.SIGTERM)
    assert [process.wait(20) for process in processes]
    assert list(temporary.glob("embedmask-demo-*")) == [], "uploads are left behind"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra `dev`")
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=options)
        yield browser
        browser.close()


class Visit:
    """A page in the browser that records errors and requests to other hosts."""

    def __init__(self, browser: Any, address: str, width: int = 1280) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.address, self.errors = address, []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._check)
        self.page.goto(address)
        self.status = self.page.locator("#status")
        self.expect("Drop an image, or choose an example.")

    def _check(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.errors.append(request.url)

    def expect(self, text: str) -> None:
        self.status.get_by_text(text).wait_for(timeout=60_000)

    def upload(self, path: Path) -> None:
        self.page.locator("#file input[type=file]").set_input_files(path)

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name, exact=True).click()

    def fill(self, label: str, value: str) -> None:
        field = self.page.get_by_label(f"number input for {label}")
        field.fill(value)
        field.press("Enter")

    def download(self, name: str, folder: Path) -> Path:
        with self.page.expect_download() as waiting:
            self.page.get_by_role("button", name=name, exact=True).click()
        path = folder / waiting.value.suggested_filename
        waiting.value.save_as(path)
        return path

    def close(self) -> None:
        assert self.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "too wide"
        self.page.close()
        assert self.errors == []


@in_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_page_as_a_person_uses_it(width: int, serve: Serve, browser: Any, tmp_path: Path) -> None:
    session = Session.open(Predictor.load("nuclei", device="cpu"), EXAMPLE)
    visit = Visit(browser, serve(), width)
    page = visit.page
    visit.upload(EXAMPLE)
    visit.expect(f"{len(session.instances)} objects")
    count = len(session.instances)
    strict = int((session.instances.scores >= 0.7).sum())
    assert 0 < strict < count
    visit.fill("Score threshold", "0.7")
    visit.expect(f"{strict} objects")
    coco = json.loads(visit.download("COCO", tmp_path).read_text())
    assert [a["score"] for a in coco["annotations"]] == session.instances.scores[:strict].tolist()
    for name, file in (("Label image", "touching_labels.png"), ("LabelMe", "touching.json")):
        assert visit.download(name, tmp_path).name == file
    assert np.asarray(Image.open(tmp_path / "touching_labels.png")).shape == (256, 256)
    features = json.loads(visit.download("GeoJSON", tmp_path).read_text())["features"]
    assert len(features) == strict
    visit.tab("Pixel")
    y, x = (int(values.float().mean()) for values in session.instances.masks.to_dense()[0].nonzero().T)
    image = page.locator("#pixel img")
    side = image.bounding_box()["width"]
    image.click(position={"x": (x + 0.5) / 256 * side, "y": (y + 0.5) / 256 * side})
    session.update(Settings(0.7, 0.5))
    session.pixel = x, y
    phi = str(session.pixel_rows()[0][4])
    page.locator('#proposals [data-index="0"]').get_by_text(phi, exact=True).wait_for()
    visit.tab("Object")
    panel = page.locator("#probability img")
    panel.wait_for()
    before = panel.get_attribute("src")
    visit.fill("Factor of the margin", "0.5")
    page.wait_for_function("old => document.querySelector('#probability img').src != old", arg=before)
    page.get_by_text("chosen object").wait_for()
    visit.tab("Embeddings")
    page.locator("#colors img").wait_for()
    visit.close()


@in_browser
def test_examples_tiles_and_odd_files(serve: Serve, browser: Any, tmp_path: Path) -> None:
    visit = Visit(browser, serve())
    visit.page.locator("#examples .thumbnail-item").nth(2).click()
    visit.expect("in touching.png, 256 x 256 px")
    (tmp_path / "broken.png").write_bytes(EXAMPLE.read_bytes()[:2000])
    visit.upload(tmp_path / "broken.png")
    visit.expect("⚠️ broken.png: ")
    assert visit.page.locator("#drawn img").is_visible(), "the former image stays"
    large = np.tile(np.asarray(Image.open(EXAMPLE)), (3, 3))
    Image.fromarray(large).save(tmp_path / "large.png")
    visit.page.get_by_label("Tiles for larger images").click()
    visit.page.get_by_role("option", name="512 px").click()
    visit.tab("Pixel")
    visit.upload(tmp_path / "large.png")
    visit.expect("in 4 tiles")
    visit.page.locator("#pixel img").wait_for()
    assert visit.page.locator("#proposals [data-index]").count() == 0
    visit.close()


@in_browser
def test_mask_rcnn_gets_a_page_without_embeddings(serve: Serve, browser: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = small_baseline(candidate_threshold=0.05, default_score_threshold=0.1)
    save(MaskRCNN(config), tmp_path / "rcnn.safetensors", class_names=NAMES)
    visit = Visit(browser, serve("--weights", str(tmp_path / "rcnn.safetensors")))
    assert visit.page.get_by_text("has no embeddings").is_visible()
    assert visit.page.get_by_role("tab", name="Pixel", exact=True).count() == 0
    visit.upload(EXAMPLE)
    visit.expect("in touching.png")
    visit.close()


def test_events_without_a_browser(tmp_path: Path) -> None:
    from embedmask.demo.page import Page

    torch.manual_seed(0)
    model = EmbedMask(predictor_config(backbone="resnet10t", candidate_threshold=0.05))
    torch.nn.init.constant_(model.head.class_logits.bias, 2.0)
    page = Page(Predictor(model, NAMES, device="cpu"), "tiny", tmp_path)
    sliders = 0.3, 0.5, 20
    (tmp_path / "text.png").write_text("hello")
    refused = page.open(str(tmp_path / "text.png"), 0, *sliders, progress=lambda *_, **__: None)
    assert set(refused) == {page.status, page.file}
    assert refused[page.status].startswith("⚠️ text.png: ")
    opened = page.open_example(Event(2), 0, *sliders, progress=lambda *_, **__: None)
    assert "**20 objects** in touching.png, 256 x 256 px, the maximum number" in opened[page.status]
    session = page.open_again(opened[page.state], 128, *sliders, progress=lambda *_, **__: None)[page.state]
    assert len(session.outputs) == 9
    assert page.open_again(None, 128, *sliders) == {}
    session = opened[page.state]
    assert page.decode(session, 0.3, 0.5, 3)[page.objects] == session.object_rows()
    assert len(session.instances) == 3
    chosen = page.choose(Event([320, 320]), session)
    assert session.pixel == (128, 128)
    assert chosen[page.proposals] == session.pixel_rows()
    page.widen(session, 2.0)
    assert session.margin_factor == 2
    written = page.write("geojson", session)
    assert json.loads(Path(written[page.download]).read_text())["type"] == "FeatureCollection"
    for event in (opened, chosen):
        assert set(event) <= set(page.outputs())
    from gradio import Error

    with pytest.raises(Error, match="Drop an image first"):
        page.write("coco", None)
    assert page.decode(None, *sliders) == page.widen(None, 1.0) == page.choose(Event([0, 0]), None) == {}


class Event:
    """A click, as gradio describes it."""

    def __init__(self, index: Any) -> None:
        self.index = index


def test_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (EXAMPLE.parents[4] / "docs/demo.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    Image.open(EXAMPLE).save("cells.png")
    names: dict[str, Any] = {}
    exec(python_of(guide), names)
    assert len(names["closest"]) == 3
    assert len(json.loads(Path("geojson/cells.geojson").read_text())["features"]) > 20


def test_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        line = fails(capsys, "demo", "--port", other.getsockname()[1])
    assert "--port" in line
