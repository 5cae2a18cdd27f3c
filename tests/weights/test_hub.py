"""Models on the Hugging Face Hub, in both directions, against a local stand-in of its HTTP interface."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command_line import fails
from hub_server import COMMIT, HubServer, running_hub
from huggingface_hub import ModelCard, constants
from predictors import NAMES, same
from small_models import small_config

from embedmask import EmbedMask, Predictor, load
from embedmask.errors import BadInput
from embedmask.weights import hub
from embedmask.weights.hub import fetch, is_hub_name
from embedmask.weights.released import find_weights

METRICS = {"segm/AP": 0.61234, "bbox/AP50": 0.7, "segm/AP_large": None, "classes": {"disc": {"segm/AP": 1}}}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with running_hub() as server:
        use(server.url, tmp_path, monkeypatch)
        yield server


def use(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `huggingface_hub` use this address and an empty cache, as HF_ENDPOINT and HF_HOME do at its import."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{repo_id}")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "".join(template[1:]))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(
        EmbedMask(small_config(candidate_threshold=0.0, max_detections=20)),
        NAMES,
        device="cpu",
        precision="float32",
    )


def test_pushed_model_predicts_the_same(server: HubServer, predictor: Predictor) -> None:
    url = predictor.push_to_hub("me/cells", metrics=METRICS, dataset="shapes, val", license="apache-2.0")
    assert url == f"{server.url}/me/cells/commit/{COMMIT}"
    assert set(server.files["me/cells"]) == {"model.safetensors", "config.json", "README.md"}
    image = torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8)
    options = {"device": "cpu", "precision": "float32"}
    for twin in (
        Predictor.load("me/cells", **options),
        Predictor.load(Path("me/cells"), **options),
        Predictor.from_pretrained("me/cells", revision=COMMIT, **options),
    ):
        assert twin.class_names == NAMES
        assert same(twin(image, score_threshold=0.0), predictor(image, score_threshold=0.0))
    assert isinstance(load("me/cells"), EmbedMask)


def test_second_load_downloads_nothing(server: HubServer, predictor: Predictor) -> None:
    predictor.push_to_hub("me/cells")
    path = find_weights("me/cells")
    del server.requests[:]
    assert find_weights("me/cells") == path
    assert not any(request.startswith("GET") for request in server.requests)


def test_cached_model_needs_no_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, predictor: Predictor
) -> None:
    with running_hub() as server:
        use(server.url, tmp_path, monkeypatch)
        predictor.push_to_hub("me/cells")
        path = find_weights("me/cells")
    assert find_weights("me/cells") == path
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_weights("me/cells") == path


def test_card_and_config(tmp_path: Path, predictor: Predictor) -> None:
    durations = {"seconds": 9000.5, "epochs": 12, "kept_step": 7, "segm/AP_large": float("nan")}
    predictor.save_pretrained(tmp_path / "cells", metrics={**METRICS, **durations}, dataset="shapes, val")
    card = ModelCard.load(tmp_path / "cells" / "README.md")
    assert card.data.library_name == "embedmask"
    assert card.data.pipeline_tag == "image-segmentation"
    assert card.data.license is None
    assert {(one.metric_name, one.metric_value, one.dataset_name) for one in card.data.eval_results} == {
        ("mask AP", 0.6123, "shapes, val"), ("box AP50", 0.7, "shapes, val")
    }  # fmt: skip
    assert "| mask AP | 0.6123 |" in card.text
    assert 'Predictor.load("cells")' in card.text
    assert "3: disc, star, ring" in card.text
    config = json.loads((tmp_path / "cells" / "config.json").read_text())
    assert config["class_names"] == NAMES
    assert config["config"]["channels"] == 32
    # a folder is a name, too
    assert Predictor.from_pretrained(tmp_path / "cells", device="cpu").class_names == NAMES


def test_metrics_need_the_name_of_their_data(tmp_path: Path, predictor: Predictor) -> None:
    with pytest.raises(BadInput, match="pass dataset="):
        predictor.save_pretrained(tmp_path / "cells", metrics=METRICS)
    assert not (tmp_path / "cells").exists()


def test_local_paths_and_bundled_names_come_first(
    server: HubServer, tmp_path: Path, predictor: Predictor
) -> None:
    predictor.save_pretrained("me/cells")
    assert find_weights("me/cells") == Path("me/cells/model.safetensors")
    assert find_weights("nuclei").name == "nuclei.safetensors"
    with pytest.raises(BadInput, match="me/stars: no such weights file"):
        find_weights("me/stars")  # `me` is a folder here
    assert server.requests == []


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("user/model", True), ("user/model-1.5_b", True), ("user", False), ("a/b/c", False), ("./model", False),
        ("../model", False), ("/model", False), ("runs/model.safetensors", False), ("out/model.onnx", False),
        ("out/model.xml", False),
    ],
)  # fmt: skip
def test_hub_names(name: str, is_one: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_name(name) == is_one


def test_unknown_names_are_one_line(server: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.files["me/text"] = {"config.json": b"{}"}
    line = fails(capsys, "eval", "--weights", "me/other", "--data", "nowhere")
    assert line.startswith(
        f"embedmask: me/other: no such file or model, here or on {server.url}; check the name"
    )
    with pytest.raises(
        BadInput, match=r"me/text: has no model.safetensors on http.*not a model of embedmask"
    ):
        fetch("me/text")
    server.files["me/text"]["model.safetensors"] = b"nothing"
    with pytest.raises(BadInput, match="has no revision 'v2'"):
        fetch("me/text", revision="v2")
    with pytest.raises(BadInput, match=r"not a name on the hub.*write user/model"):
        fetch("me/a--b")
    with pytest.raises(BadInput, match="truncated or damaged"):
        load("me/text")


def test_unreachable_hub_is_one_line_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, predictor: Predictor
) -> None:
    with socket.socket() as free:  # an address where no server listens
        free.bind(("127.0.0.1", 0))
        use(f"http://127.0.0.1:{free.getsockname()[1]}", tmp_path, monkeypatch)
        start = time.monotonic()
        with pytest.raises(
            BadInput, match=r"me/cells: no such file, and http.* could not be reached \(.*refused"
        ):
            find_weights("me/cells")
        with pytest.raises(BadInput, match=r"me/cells: not uploaded to http.*refused"):
            predictor.push_to_hub("me/cells")
        assert time.monotonic() - start < hub.TIMEOUT


def test_refused_upload_is_one_line(server: HubServer, predictor: Predictor) -> None:
    with pytest.raises(BadInput, match=r"me/cells: not uploaded to .*403.*hf auth login"):
        predictor.push_to_hub("me/cells", token="wrong")
    with pytest.raises(BadInput, match="not a name on the hub"):
        predictor.push_to_hub("me/a/b")
    assert server.files == {}
