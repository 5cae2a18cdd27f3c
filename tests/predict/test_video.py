"""`embedmask predict` of videos."""

from __future__ import annotations

import shutil
import struct
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from command_line import fails
from predict_command import RATE, results_of, words

from embedmask._supervision import sv
from embedmask.cli import main
from embedmask.predict.video import VideoReader


class TestVideo:
    def test_options_of_images_are_noted(
        self, weights: Path, video: Path, tmp_path: Path, capsys: Any
    ) -> None:
        given = words(video, weights, tmp_path / "out", "--no-draw", "--page", "2", "--format", "roi")
        assert main(given) == 0
        assert "videos are read without --page, which apply to images" in capsys.readouterr().err

    def test_drawn_and_frame_by_frame(self, weights: Path, video: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        assert main(words(video, weights, out, "--format", "labels")) == 0
        info = sv.VideoInfo.from_video_path(str(out / "clip.mp4"))
        assert (info.resolution_wh, info.fps) == ((64, 48), RATE)
        frames = list(sv.get_video_frames_generator(str(out / "clip.mp4")))
        assert len(frames) == 8
        plain = next(sv.get_video_frames_generator(str(video)))
        assert np.abs(frames[0].astype(int) - plain).mean() > 1
        images, results = results_of(out)
        assert [(image["file_name"], image["frame"]) for image in images] == [
            (str(video), frame) for frame in range(8)
        ]
        assert {result["image_id"] for result in results} == set(range(1, 9))
        assert len(list((out / "labels" / "clip").iterdir())) == 8

    def test_video_and_image_with_the_same_name(self, weights: Path, video: Path, images: Path) -> None:
        shutil.copy(min(images.iterdir()), video.parent / "clip.jpg")
        out = video.parent / "out"
        more = (str(video.parent / "clip.jpg"), "--no-draw")
        arguments = words(video, weights, out)
        assert main([*arguments[:2], *more, *arguments[2:]]) == 0
        images, _ = results_of(out)
        assert [image["name"] for image in images] == [f"clip/{k:06}" for k in range(8)] + ["clip_2"]
        assert not (out / "clip.mp4").exists()

    def test_truncated_video_keeps_its_frames(
        self, weights: Path, video: Path, tmp_path: Path, capsys: Any
    ) -> None:
        content = video.read_bytes()
        video.write_bytes(content[: len(content) // 2])
        assert main(words(video, weights, tmp_path / "out")) == 1
        num_read = len(results_of(tmp_path / "out")[0])
        assert 0 < num_read < 8
        line = f"clip.avi: breaks off after {num_read} of 8 frames"
        assert line in capsys.readouterr().err
        before = (tmp_path / "out" / "clip.mp4").stat().st_mtime_ns
        assert main(words(video, weights, tmp_path / "out", "--resume")) == 1
        assert line in capsys.readouterr().err
        assert (tmp_path / "out" / "clip.mp4").stat().st_mtime_ns == before
        assert len(results_of(tmp_path / "out")[0]) == num_read
        video.write_bytes(content[:100])
        assert "clip.avi" in fails(capsys, *words(video, weights, tmp_path / "none"))
        assert not (tmp_path / "none").exists()


TIMES = [0, 33, 133, 166, 700, 701, 1000, 2200]
"""Start of the frames, ms."""


def make_video(path: Path, *, sound: str | None = None, rate: int = 48000, times: list[int] = TIMES) -> Path:
    """Write frames of 64 x 48 px at these times, with three seconds of a tone."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        tone = file.add_stream(sound, rate=rate) if sound else None
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
        if tone is not None:
            wave = np.sin(np.arange(3 * rate) / 20).astype(np.float32)[None]
            samples = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            samples.sample_rate = rate
            file.mux(tone.encode(samples))
            file.mux(tone.encode(None))
    return path


def frame_times(path: Path) -> list[float]:
    with av.open(str(path)) as file:
        return [float(frame.pts * frame.time_base) for frame in file.decode(video=0)]


def sound_of(path: Path) -> tuple[str, float, float]:
    """Return the codec of the sound, its start and its length, s."""
    with av.open(str(path)) as file:
        stream = file.streams.audio[0]
        frames = list(file.decode(stream))
        length = sum(frame.samples for frame in frames) / stream.rate
        return stream.codec_context.codec.canonical_name, float(frames[0].time), length


class TestTimes:
    @pytest.mark.parametrize("ending", [".mp4", ".mkv", ".mov"])
    def test_variable_rates_keep_their_times(self, ending: str, weights: Path, tmp_path: Path) -> None:
        video, out = make_video(tmp_path / f"clip{ending}"), tmp_path / "out"
        assert frame_times(video) == pytest.approx([time / 1000 for time in TIMES])
        assert main(words(video, weights, out)) == 0
        assert frame_times(out / "clip.mp4") == frame_times(video)
        assert [image["time"] for image in results_of(out)[0]] == frame_times(video)

    def test_times_without_a_drawn_video(self, weights: Path, tmp_path: Path) -> None:
        video, out = make_video(tmp_path / "clip.mp4", times=[500, 700, 1500]), tmp_path / "out"
        assert main(words(video, weights, out, "--no-draw")) == 0
        assert [image["time"] for image in results_of(out)[0]] == [0.5, 0.7, 1.5]

    def test_times_that_do_not_increase_are_extrapolated(self, tmp_path: Path) -> None:
        video = VideoReader(make_video(tmp_path / "clip.mp4"))
        video.rate, video.time_base = Fraction(10), Fraction(1, 1000)
        frames = [SimpleNamespace(pts=pts, duration=7) for pts in (None, 50, 50, 20, None, 1000)]
        for frame in frames:
            video.times.append(video._time(frame))
        assert video.times == [(0, 100), (50, 7), (150, 100), (250, 100), (350, 100), (1000, 7)]


class TestSound:
    @pytest.mark.parametrize(
        ("ending", "sound", "codec"),
        [
            (".mp4", "aac", "aac"),
            (".mkv", "libopus", "opus"),
            (".mov", "mp3", "mp3"),
            (".avi", "pcm_s16le", "aac"),
            (".mkv", "mp2", "aac"),
        ],
    )
    def test_sound_is_transferred(
        self, ending: str, sound: str, codec: str, *, weights: Path, tmp_path: Path
    ) -> None:
        video, out = make_video(tmp_path / f"clip{ending}", sound=sound), tmp_path / "out"
        assert main(words(video, weights, out)) == 0
        name, start, length = sound_of(out / "clip.mp4")
        assert name == codec
        assert start == pytest.approx(sound_of(video)[1], abs=0.03)
        assert length == pytest.approx(sound_of(video)[2], abs=0.1)

    def test_silent_video(self, weights: Path, tmp_path: Path) -> None:
        assert main(words(make_video(tmp_path / "clip.mp4"), weights, tmp_path / "out")) == 0
        with av.open(str(tmp_path / "out" / "clip.mp4")) as file:
            assert len(file.streams.audio) == 0

    def test_damaged_sound_is_left_out_with_a_warning(
        self, weights: Path, tmp_path: Path, capsys: Any
    ) -> None:
        video = make_video(tmp_path / "clip.mkv", sound="libopus")
        out = tmp_path / "out"

        def broken(*args: Any) -> Any:
            yield from ()
            raise av.InvalidDataError(1, "no sound")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("embedmask.predict.video.copied_packets", broken)
            assert main(words(video, weights, out)) == 0
        assert "clip.mkv: its sound is left out from here on" in capsys.readouterr().err
        assert frame_times(out / "clip.mp4") == frame_times(video)


@pytest.mark.parametrize(
    ("matrix", "turns"),
    [
        ((0, 65536, 0, -65536, 0, 0, 48 << 16, 0, 1 << 30), -1),
        ((-65536, 0, 0, 0, -65536, 0, 64 << 16, 48 << 16, 1 << 30), 2),
        ((0, -65536, 0, 65536, 0, 0, 0, 64 << 16, 1 << 30), 1),
    ],
    ids=["clockwise", "upside down", "counterclockwise"],
)
def test_phone_videos_are_upright(matrix: tuple[int, ...], turns: int, weights: Path, tmp_path: Path) -> None:
    video = make_video(tmp_path / "clip.mp4")
    data = bytearray(video.read_bytes())
    place = data.find(b"tkhd") + 44  # the matrix of the track
    plain = next(VideoReader(video).frames())
    data[place : place + 36] = struct.pack(">9i", *matrix)
    video.write_bytes(data)
    turned = next(VideoReader(video).frames())
    assert torch.equal(turned, torch.rot90(plain, turns, (1, 2)))
    assert main(words(video, weights, tmp_path / "out")) == 0
    assert {(i["height"], i["width"]) for i in results_of(tmp_path / "out")[0]} == {tuple(turned.shape[1:])}
    with av.open(str(tmp_path / "out" / "clip.mp4")) as file:
        (stream,) = file.streams.video
        assert (stream.height, stream.width) == tuple(turned.shape[1:])
