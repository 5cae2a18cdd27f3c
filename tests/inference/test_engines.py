"""Every engine equals the plain network, for frames of any size, and does not change the model."""

from __future__ import annotations

import copy
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import maps_of, small_baseline, small_config
from torch import Tensor, nn

from embedmask import EmbedMask, Predictions
from embedmask.errors import BadInput
from embedmask.inference import engines, openvino
from embedmask.inference.engines import Engine, Network, make_network
from embedmask.inference.fused import FusedConv2d, Trunk, fuse, has_fused_operators
from embedmask.model.maskrcnn import MaskRCNN
from embedmask.structures import ImageBatch

SIZES = {torch.float32: [(64, 96), (160, 32)], torch.bfloat16: [(96, 160), (160, 96)]}
"""Frames by dtype of the network. On narrow frames, normalizing the small maps of random weights amplifies the rounding
of bfloat16, by a factor that depends on the processor; autocast then differs from float32 as much as the engines. A map
of one cell, as of 64 x 96 px, may be near 0 by chance."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Maximum difference relative to the largest value of a map."""


def model_of(seed: int = 0, **changes: Any) -> EmbedMask:
    """Create a model with random weights and with norms other than the identity."""
    torch.manual_seed(seed)
    model = EmbedMask(small_config(**changes)).eval()
    for module in model.modules():
        if hasattr(module, "running_mean") and module.running_mean is not None:
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, std=0.1)
    return model


def batch_of(size: tuple[int, int] = (64, 96), images: int = 2) -> ImageBatch:
    generator = torch.Generator().manual_seed(images)
    return ImageBatch(torch.randn(images, 3, *size, generator=generator), [size] * images)


def plain(model: EmbedMask, batch: ImageBatch) -> Predictions:
    with torch.inference_mode():
        return model(batch)


def assert_same(actual: Predictions, expected: Predictions, dtype: torch.dtype = torch.float32) -> None:
    assert (actual.strides, actual.pixel_stride) == (expected.strides, expected.pixel_stride)
    for one, other in zip(maps_of(actual), maps_of(expected), strict=True):
        assert one.dtype == torch.float32
        assert one.shape == other.shape
        scale = float(other.abs().max()) + 1e-6
        assert float((one - other).abs().max()) <= TOLERANCE[dtype] * scale


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EMBEDMASK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("stride", [None, 4, 16])
@pytest.mark.parametrize("preset", ["paper", "ijcai21", "fused"])
def test_torch_equals_plain_network(preset: str, stride: int | None, dtype: torch.dtype) -> None:
    model = model_of(preset=preset, embed_stride=stride)
    network = make_network(model, "torch", dtype)
    for size in SIZES[dtype]:
        assert_same(network(batch_of(size)), plain(model, batch_of(size)), dtype)


@pytest.mark.parametrize("detector", ["retinanet", "tal"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_any_detector(detector: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "STEP_PIXELS", 1)  # an image at a time, whose maps are concatenated
    model = model_of(detector=detector, preset="ijcai21")
    network = make_network(model, "torch", dtype)
    for size in SIZES[dtype]:
        assert_same(network(batch_of(size)), plain(model, batch_of(size)), dtype)


@pytest.mark.parametrize(
    ("backbone", "norm"),
    [
        *((name, "batch") for name in ("resnetv2_18", "regnetx_002", "convnext_atto", "cspresnet50")),
        *((name, norm) for name in ("resnet18", "efficientnet_b0") for norm in ("batch", "frozen")),
    ],
)
def test_any_backbone(backbone: str, norm: str) -> None:
    model = model_of(backbone=backbone, backbone_norm=norm, frozen_stages=0)
    for dtype in TOLERANCE:
        actual = make_network(model, "torch", dtype)(batch_of())
        assert_same(actual, plain(model, batch_of()), dtype)


def test_resnet_is_fully_fused() -> None:
    trunk = Trunk(model_of(backbone="resnet50", preset="fused"), torch.bfloat16, portable=False)
    layers = list(trunk.modules())
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in layers)
    fused = [layer for layer in trunk.backbone.modules() if isinstance(layer, FusedConv2d)]
    assert len(fused) == 53
    assert sum(layer.relu for layer in fused) == 49  # all but the four shortcuts
    assert not trunk.mixed
    assert {layer.weight.dtype for layer in fused} == {torch.bfloat16}
    assert trunk.head.proposal_embed.weight.dtype == torch.float32


@pytest.mark.skipif(not has_fused_operators(torch.float32), reason="torch without oneDNN")
@pytest.mark.parametrize("other", [None, (2, 8, 9, 7), (2, 8, 1, 1)])
@pytest.mark.parametrize("relu", [False, True])
def test_fused_convolution_equals_portable(other: tuple[int, ...] | None, relu: bool) -> None:
    torch.manual_seed(0)
    conv, norm, x = nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8).eval(), torch.randn(2, 4, 9, 7)
    norm.running_mean.normal_()
    added = None if other is None else torch.randn(other)
    with torch.inference_mode():
        expected = norm(conv(x)) + (0 if added is None else added)
        expected = expected.relu() if relu else expected
        for portable in (True, False):
            fused = FusedConv2d(conv, norm, relu=relu, portable=portable)
            addend = None if added is None else added.clone()
            torch.testing.assert_close(fused(x, addend), expected, rtol=1e-4, atol=1e-5)


class Shared(nn.Module):
    """A module that reads the added map again later, also through a view."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module to any image."""
        x = self.first(x)
        half = x[:, :2]
        y = (self.second(x) + x).relu()
        return torch.cat([y, half, x], 1)


def test_maps_read_later_are_not_overwritten() -> None:
    torch.manual_seed(0)
    module, x = Shared().eval(), torch.randn(1, 3, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(fuse(copy.deepcopy(module), portable=False)(x), module(x))


class Branching(nn.Module):
    """A module that cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module to any image."""
        return x if x.sum() > 0 else -x


def test_untraceable_module_is_returned_unchanged() -> None:
    module = Branching()
    assert fuse(module, portable=False) is module


def test_model_is_not_changed() -> None:
    check_unchanged(model_of(preset="fused").train(), "torch")


def check_unchanged(model: EmbedMask, engine: Engine) -> None:
    """Run an engine, and check that a model in training mode is as it was and can be trained."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    make_network(model, engine, torch.bfloat16)(batch_of())
    assert model.training
    assert [type(module) for module in model.modules()] == kinds
    after = model.state_dict()
    assert all(
        torch.equal(after[name], value) and after[name].dtype == value.dtype for name, value in before.items()
    )
    assert all(p.requires_grad for p in model.parameters())
    model(batch_of().tensors).pixel_embed.sum().backward()


def test_large_batch_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = model_of(), batch_of(images=5)
    network = make_network(model)
    whole = network(batch)
    monkeypatch.setattr(engines, "STEP_PIXELS", 2 * 64 * 96)
    assert_same(network(batch), whole)
    monkeypatch.setattr(engines, "STEP_PIXELS", 1)
    assert_same(network(batch), whole)


def test_mask_rcnn_requires_torch() -> None:
    torch.manual_seed(0)
    model = MaskRCNN(small_baseline()).eval()
    actual = make_network(model)(batch_of(), max_detections=3)
    assert [len(one["scores"]) for one in actual] == [3, 3]
    with pytest.raises(BadInput, match=r"supports EmbedMask only; use torch for a MaskRCNN"):
        make_network(model, "openvino")


def test_raises_on_unknown_engine() -> None:
    with pytest.raises(BadInput, match=r"engine 'tensorrt': use torch, compile, openvino"):
        make_network(model_of(), "tensorrt")  # type: ignore[arg-type]


def test_raises_without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BadInput, match=r"needs a C\+\+ compiler; install g\+\+"):
        make_network(model_of(), "compile")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_compiled_equals_plain_network(dtype: torch.dtype) -> None:
    model = model_of()
    network = make_network(model, "compile", dtype)
    for size in SIZES[dtype]:
        assert_same(network(batch_of(size)), plain(model, batch_of(size)), dtype)


class TestOpenvino:
    """The converted network and its cache."""

    @pytest.fixture(autouse=True)
    def _library(self) -> None:
        pytest.importorskip("openvino")

    @pytest.fixture
    def converted(self, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Return the cache with `model_of()` in it, which is converted for the first test only."""
        template = tmp_path_factory.getbasetemp() / "converted"
        if not template.exists():
            make_network(model_of(), "openvino")
            shutil.copytree(cache, template)
        return shutil.copytree(template, cache, dirs_exist_ok=True)

    @pytest.mark.parametrize(
        ("preset", "stride", "dtype"),
        [
            pytest.param("paper", None, torch.float32, marks=pytest.mark.slow),
            ("ijcai21", 4, torch.bfloat16),
            pytest.param("fused", None, torch.bfloat16, marks=pytest.mark.slow),
        ],
    )
    def test_equals_plain_network(self, preset: str, stride: int | None, dtype: torch.dtype) -> None:
        model = model_of(preset=preset, embed_stride=stride)
        network = make_network(model, "openvino", dtype)
        for size in [*SIZES[dtype], (288, 320)]:
            assert_same(network(batch_of(size)), plain(model, batch_of(size)), dtype)

    @pytest.mark.slow
    def test_model_is_not_changed(self) -> None:
        check_unchanged(model_of(preset="fused").train(), "openvino")

    @pytest.mark.slow
    def test_anchors(self) -> None:
        model = model_of(detector="retinanet", preset="ijcai21")
        network = make_network(model, "openvino")
        for size in SIZES[torch.float32]:
            assert_same(network(batch_of(size)), plain(model, batch_of(size)))

    @pytest.mark.slow
    @pytest.mark.usefixtures("converted")
    def test_results_survive_the_next_image(self) -> None:
        network = make_network(model_of(), "openvino")
        first = network(batch_of())
        copies = [level.clone() for level in maps_of(first)]
        network(ImageBatch(-batch_of().tensors, [(64, 96)] * 2))
        assert all(torch.equal(one, other) for one, other in zip(maps_of(first), copies, strict=True))

    @pytest.mark.usefixtures("converted")
    def test_threads_do_not_share_buffers(self) -> None:
        network = make_network(model_of(), "openvino")
        expected = [network(batch_of(size)) for size in SIZES[torch.float32]]
        actual: dict[int, Predictions] = {}

        def work(index: int) -> None:
            for _ in range(5):
                actual[index] = network(batch_of(SIZES[torch.float32][index]))

        threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for index in range(2):
            assert_same(actual[index], expected[index])

    def test_network_is_converted_once(self, converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        count = _count_conversions(monkeypatch)
        assert_same(make_network(model_of(), "openvino")(batch_of()), plain(model_of(), batch_of()))
        assert count == []
        # what is compiled does not matter for the number of conversions
        library = pytest.importorskip("openvino")
        x = library.opset13.parameter([1], name="x")
        monkeypatch.setattr(openvino, "_convert", lambda *_: count.append(1) or library.Model([x], [x], "x"))
        make_network(model_of(), "openvino", torch.bfloat16)
        make_network(model_of(seed=1), "openvino")
        assert len(count) == 2
        assert len(list(converted.iterdir())) == 3

    @pytest.mark.slow
    def test_damaged_cache_file_is_replaced(self, converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (file,) = converted.iterdir()
        count = _count_conversions(monkeypatch)
        for damage in (b"", b"no network", file.read_bytes()[:-1] + b"?"):
            file.write_bytes(damage)
            assert_same(make_network(model_of(), "openvino")(batch_of()), plain(model_of(), batch_of()))
        assert len(count) == 3
        make_network(model_of(), "openvino")
        assert len(count) == 3
        assert list(converted.iterdir()) == [file]

    @pytest.mark.slow
    def test_warns_on_unwritable_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("EMBEDMASK_CACHE", str(tmp_path / "file"))
        model = model_of()
        with pytest.warns(UserWarning, match="is not cached"):
            network: Network = make_network(model, "openvino")
        assert_same(network(batch_of()), plain(model, batch_of()))

    @pytest.mark.slow
    def test_raises_on_wrong_conversion(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        library = pytest.importorskip("openvino")
        model, convert = model_of(), library.convert_model
        other = openvino._Flat(Trunk(model_of(seed=1), torch.float32, portable=True))
        monkeypatch.setattr(library, "convert_model", lambda trunk, **options: convert(other, **options))
        with pytest.raises(
            BadInput, match=r"backbone 'resnet10t' cannot be converted to OpenVINO; use engine"
        ):
            make_network(model, "openvino")
        assert not cache.exists()


def test_raises_without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BadInput, match=r"pip install 'embedmask\[export\]'"):
        make_network(model_of(), "openvino")


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    assert openvino.cache_folder() == cache
    monkeypatch.delenv("EMBEDMASK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert openvino.cache_folder() == Path("/somewhere/embedmask")


def _count_conversions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by one item per conversion."""
    count: list[int] = []
    library = pytest.importorskip("openvino")
    convert = library.convert_model

    def counted(*args: Any, **options: Any) -> Any:
        count.append(1)
        return convert(*args, **options)

    monkeypatch.setattr(library, "convert_model", counted)
    return count
