"""`embedmask predict` of videos."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from command_line import fails
from predict_command import RATE, results_of, words

from embedmask._supervision import sv
from embedmask.cli import main


class TestVideo:
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

    def test_a_video_and_a_picture_of_one_name(self, weights: Path, video: Path, pictures: Path) -> None:
        shutil.copy(min(pictures.iterdir()), video.parent / "clip.jpg")
        out = video.parent / "out"
        more = (str(video.parent / "clip.jpg"), "--no-draw")
        given = words(video, weights, out)
        assert main([given[0], given[1], *more, *given[2:]]) == 0
        images, _ = results_of(out)
        assert [image["name"] for image in images] == [f"clip/{k:06}" for k in range(8)] + ["clip_2"]
        assert not (out / "clip.mp4").exists()

    def test_a_video_cut_short_gives_what_it_holds(
        self, weights: Path, video: Path, tmp_path: Path, capsys: Any
    ) -> None:
        content = video.read_bytes()
        video.write_bytes(content[: len(content) // 2])
        assert main(words(video, weights, tmp_path / "out")) == 1
        given = len(results_of(tmp_path / "out")[0])
        assert 0 < given < 8
        assert f"clip.avi: breaks off after {given} of 8 frames" in capsys.readouterr().err
        video.write_bytes(content[:100])
        assert "clip.avi" in fails(capsys, *words(video, weights, tmp_path / "none"))
        assert not (tmp_path / "none").exists()
