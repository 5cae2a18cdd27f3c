"""Videos in and out, by PyAV: every frame keeps its time, and the sound goes along."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.container import InputContainer, OutputContainer
from torch import Tensor
from tqdm import tqdm

from embedmask.errors import BadInput
from embedmask.files import atomic_write
from embedmask.visualize import Pixels

CODEC = "mpeg4"
COPIED_SOUND = ("aac", "mp3", "ac3", "eac3", "opus", "alac", "flac")
"""Sound that players find in an MP4 file; any other is encoded as AAC."""
BITS_PER_PIXEL = 2
WHOLE = 0.95
"""A video that gives a smaller share than this of the frames and of the time that it tells of breaks off."""
USUAL_RATE = Fraction(25)
"""Frames a second where a file does not say."""


class VideoReader:
    """The frames of a video, upright, with their times.

    Attributes:
        total, duration: number of frames and length in `time_base` that the file says it has; 0: it does not say.
        rate: mean number of frames a second.
        time_base: seconds a unit of `times`.
        times: start and duration of every frame that was read so far.
        error: why reading ended before the end of the file; None: it did not.
    """

    def __init__(self, path: Path) -> None:
        """Look at the file.

        Raises:
            BadInput: not a video, or one without frames.
        """
        self.path = path
        self.times: list[tuple[int, int]] = []
        self.error: str | None = None
        try:
            with av.open(os.fspath(path)) as container:
                stream = _video_stream(container)
                self.total, self.duration = stream.frames, stream.duration or 0
                self.rate = _fraction(stream.average_rate) or USUAL_RATE
                self.time_base = _fraction(stream.time_base)
                self.has_frames = next(container.decode(stream), None) is not None
        except (av.FFmpegError, ValueError) as error:
            raise BadInput(
                f"{path}: cannot be read as a video ({_reason(error)}); replace the file"
            ) from None
        if not self.has_frames:
            raise BadInput(f"{path}: has no frames; replace the file")

    def frames(self) -> Iterator[Tensor]:
        """Read the frames one after the other, uint8 RGB `[3, H, W]`; as many as can be read."""
        try:
            with av.open(os.fspath(self.path)) as container:
                stream = _video_stream(container)
                stream.thread_type = "AUTO"
                for frame in container.decode(stream):
                    self.times.append(self._time(frame))
                    yield torch.from_numpy(_upright(frame)).permute(2, 0, 1)
        except av.FFmpegError as error:
            self.error = _reason(error)

    def seconds(self, index: int) -> float:
        """Return the time of a frame that was read."""
        return float(self.times[index][0] * self.time_base)

    @property
    def breaks_off(self) -> bool:
        """Whether reading ended early. Some files count frames that they leave out: then their time is there."""
        if self.error is not None or not self.times:
            return True
        length = sum(self.times[-1]) - self.times[0][0]
        too_short = not self.duration or length < WHOLE * self.duration
        return len(self.times) < WHOLE * self.total and too_short

    def _time(self, frame: av.VideoFrame) -> tuple[int, int]:
        """Return start and duration of a frame; a time that is missing or not later follows from the mean rate."""
        step = max(round(1 / (self.rate * self.time_base)), 1)
        earliest = self.times[-1][0] + 1 if self.times else None
        if frame.pts is None or (earliest is not None and frame.pts < earliest):
            return (0 if earliest is None else earliest - 1 + step), step
        return frame.pts, frame.duration or step


@contextmanager
def write_video(path: Path, video: VideoReader) -> Iterator[Callable[[Pixels, int], None]]:
    """Give a function that appends a drawn frame, uint8 RGB `[H, W, 3]`, by its index, to an MP4 file.

    Each frame has the time of that frame of `video`, whose sound is copied. The file appears whole or not at all.

    Raises:
        BadInput: it cannot be written.
    """
    with (
        atomic_write(path) as temporary,
        av.open(os.fspath(video.path)) as source,
        av.open(os.fspath(temporary), "w", format="mp4") as target,
    ):
        stream: Any = target.add_stream(CODEC, rate=_codec_rate(video.rate))
        stream.time_base = video.time_base
        sound = Sound(source, target)

        def mux(frame: av.VideoFrame | None) -> None:
            for packet in stream.encode(frame):
                # the codec counts frames; the file has their times
                start, duration = video.times[packet.pts]
                packet.pts = packet.dts = start
                packet.duration, packet.time_base = duration, video.time_base
                sound.mux_until(float(start * video.time_base))
                target.mux(packet)

        def show(image: Pixels, index: int) -> None:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            if index == 0:
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
                bits = int(BITS_PER_PIXEL * video.rate * frame.width * frame.height)
                stream.codec_context.bit_rate = min(max(bits, 1), 2**31 - 1)
            frame = frame.reformat(stream.width, stream.height, "yuv420p")
            frame.pts = index
            mux(frame)

        yield show
        mux(None)
        sound.mux_until(float("inf"))


class Sound:
    """The sound of one file on its way into another, none where the first has none."""

    def __init__(self, source: InputContainer, target: OutputContainer) -> None:
        """Add a stream for it, before anything is written."""
        self.source, self.target = source, target
        self._waiting: Any = None
        self._packets: Iterator[Any] = iter(())
        stream: Any = source.streams.best("audio")
        if stream is None:
            return
        try:
            if stream.codec_context.codec.canonical_name in COPIED_SOUND:
                self._packets = _copied(source, stream, target.add_stream_from_template(stream))
            else:
                self._packets = _encoded(source, stream, target.add_stream("aac", rate=stream.rate))
        except (av.FFmpegError, ValueError, AttributeError) as error:
            self._end(error)

    def mux_until(self, seconds: float) -> None:
        """Write the sound that begins before this time: both streams of a file go side by side."""
        try:
            self._waiting = self._waiting or next(self._packets, None)
            while self._waiting is not None and self._waiting.dts * self._waiting.time_base <= seconds:
                self.target.mux(self._waiting)
                self._waiting = next(self._packets, None)
        except (
            av.ArgumentError,
            av.InvalidDataError,
        ) as error:  # the file is damaged; a full disk is another error
            self._end(error)

    def _end(self, error: Exception) -> None:
        self._waiting, self._packets = None, iter(())
        line = f"embedmask: {self.source.name}: its sound is left out from here on ({_reason(error)})"
        tqdm.write(line, file=sys.stderr)


def _copied(source: InputContainer, stream: Any, output: Any) -> Iterator[Any]:
    for packet in source.demux(stream):
        if packet.dts is not None:  # the last one is empty
            packet.stream = output
            yield packet


def _encoded(source: InputContainer, stream: Any, output: Any) -> Iterator[Any]:
    for frame in source.decode(stream):
        yield from output.encode(frame)
    yield from output.encode(None)


def _video_stream(container: InputContainer) -> Any:
    """Return the stream of the images.

    Raises:
        ValueError: there is none.
    """
    stream = container.streams.best("video")
    if stream is None:
        raise ValueError("it has no images")
    return stream


def _upright(frame: av.VideoFrame) -> Pixels:
    """Return the pixels `[H, W, 3]`, turned as the file says; players ignore all but quarter turns, too."""
    turns, rest = divmod(frame.rotation, 90)
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), 0 if rest else turns))


def _codec_rate(rate: Fraction) -> Fraction:
    """Return a rate that MPEG-4 can hold, whose numerator has 16 bits."""
    rate = rate.limit_denominator(1001)
    return rate if rate.numerator < 2**16 else Fraction(min(round(rate), 2**16 - 1))


def _fraction(value: Any) -> Fraction:
    """Return PyAV's rational number as Python's; 0 where there is none."""
    return Fraction(value.numerator, value.denominator) if value else Fraction(0)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
