"""Bad files: each gives one line that names the file."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from embedmask.runtime import BadFile, Model, Session, main
from embedmask.runtime_file import FORMAT, KEY, VERSION, read_metadata, settings_of


def write(path: Path, **metadata: object) -> Path:
    """Write a graph of one operator with metadata; none without keyword arguments."""
    value = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["images"], ["boxes"])
    graph = onnx.helper.make_graph([node], "g", [value], [onnx.helper.make_empty_tensor_value_info("boxes")])
    model = onnx.helper.make_model(graph)
    model.metadata_props.add(key="other", value="x" * 300)
    if metadata:
        model.metadata_props.add(key=KEY, value=json.dumps(metadata))
    path.write_bytes(model.SerializeToString())
    return path


def test_metadata_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.onnx", format=FORMAT, version=VERSION, settings={"é": 1})
    assert read_metadata(path)["settings"] == {"é": 1}
    with pytest.raises(BadFile, match=r"a\.onnx: its metadata lacks 'class_names'"):
        settings_of(read_metadata(path), path)


@pytest.mark.parametrize(
    ("metadata", "line"),
    [
        ({}, "has no metadata of embedmask"),
        ({"format": "other", "version": 1}, "has no metadata of embedmask"),
        ({"format": FORMAT}, "its metadata is damaged"),
        ({"format": FORMAT, "version": VERSION + 1}, f"format {VERSION + 1} is newer than {VERSION}"),
    ],
)
def test_other_metadata(tmp_path: Path, metadata: dict[str, object], line: str) -> None:
    with pytest.raises(BadFile, match=rf"a\.onnx: {line}"):
        read_metadata(write(tmp_path / "a.onnx", **metadata))


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.onnx", format=FORMAT, version=VERSION).read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut.onnx").write_bytes(whole[:length])
        with pytest.raises(BadFile, match=r"cut\.onnx: (not an ONNX file, or cut off|has no metadata)"):
            read_metadata(tmp_path / "cut.onnx")


@pytest.mark.parametrize(
    "content", [b"", b"no graph at all", b"\x89PNG\r\n\x1a\n" + bytes(99), b"{}", b"\xff" * 40]
)
def test_other_kinds(tmp_path: Path, content: bytes) -> None:
    for name in ("a.onnx", "a.xml"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadFile, match=rf"{name}: not an (ONNX|OpenVINO) file, or cut off"):
            read_metadata(tmp_path / name)


def test_openvino_without_metadata_or_weights(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text("<net><layers><data offset='0' size='8'/></layers></net>")
    with pytest.raises(BadFile, match=r"a\.bin: missing or cut off"):
        read_metadata(tmp_path / "a.xml")
    (tmp_path / "a.bin").write_bytes(bytes(8))
    with pytest.raises(BadFile, match=r"a\.xml: has no metadata of embedmask"):
        read_metadata(tmp_path / "a.xml")


def test_the_command_prints_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, line in (("gone.onnx", "no such file"), ("a.onnx", "has no metadata of embedmask")):
        write(tmp_path / "a.onnx")
        assert main([str(tmp_path / name), "photo.jpg", "--out", str(tmp_path / "out")]) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1
        assert line in captured.err
    assert main([str(tmp_path / "a.onnx"), "x/p.jpg", "y/p.png", "--out", str(tmp_path / "out")]) == 2
    assert "another image has the name p" in capsys.readouterr().err
    assert main([str(tmp_path / "a.onnx"), "x/p.jpg", "y/P.png", "--out", str(tmp_path / "out")]) == 2
    assert "another image has the name P" in capsys.readouterr().err
    own = tmp_path / "out/labels/p.png"
    assert main([str(tmp_path / "a.onnx"), str(own), "--out", str(tmp_path / "out")]) == 2
    assert f"{own}: is one of the images and would be replaced" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_raises_on_unknown_engine(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="engine 'opnvino': choose one of onnxruntime, openvino"):
        Session(tmp_path / "a.onnx", engine="opnvino")


def test_a_graph_that_the_engine_rejects(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    names = dict.fromkeys(settings_names(), 1)
    model = onnx.load_from_string(write(path, format=FORMAT, version=VERSION, settings=names).read_bytes())
    model.graph.node[0].op_type = "NoSuchOperator"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BadFile, match=r"a\.onnx: onnxruntime cannot load it"):
        Model(path)


def settings_names() -> list[str]:
    from dataclasses import fields

    from embedmask.runtime import Settings

    return [field.name for field in fields(Settings)]
