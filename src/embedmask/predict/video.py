"""Reading and writing of videos with PyAV; frame times and sound are preserved."""

from __future__ import annotations

import os
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

from embedmask.errors import BadInput
from embedmask.files import atomic_write
from embedmask.visualize import Pixels

CODEC = "mpeg4"
COPIED_SOUND = ("aac", "mp3", "ac3", "eac3", "opus", "alac", "flac")
"""Audio codecs that players support in MP4; any other is re-encoded as AAC."""
BITS_PER_PIXEL = 2
WHOLE = 0.95
"""A video that yields less than this fraction of its advertised frames and duration is reported as truncated."""
USUAL_RATE = Fraction(25)
"""Frames per second of files that do not state a rate."""


class VideoReader:
    """Reader of a video's frames, upright, with their times.

    Attributes:
        total, duration: Number of frames and length in `time_base` according to the file; 0: unknown.
        rate: Mean number of frames per second.
        time_base: Seconds per unit of `times`.
        times: Start and duration of the frames read so far.
        error: Reason why reading stopped before the end of the file; None: it did not.
    """

    def __init__(self, path: Path) -> None:
        """Open the file and decode its first frame.

        Raises:
            BadInput: The file is not a video, or has no frames.
        """
        self.path = path
        self.times: list[tuple[int, int]] = []
        self.error: str | None = None
        try:
            with av.open(os.fspath(path)) as container:
                stream = _video_stream(container)
                self.total, self.duration = stream.frames, stream.duration or 0
                self.rate = stream.average_rate or USUAL_RATE
                self.time_base = stream.time_base or Fraction(0)
                # headers may be intact while the frames are not: decode one
                has_frames = next(container.decode(stream), None) is not None
        except (av.FFmpegError, ValueError) as error:
            raise BadInput(
                f"{path}: cannot be read as a video ({_reason(error)}); replace the file"
            ) from None
        if not has_frames:
            raise BadInput(f"{path}: has no frames; replace the file")

    def frames(self) -> Iterator[Tensor]:
        """Yield the frames, uint8 RGB `[3, H, W]`, until the end or the first error."""
        try:
            with av.open(os.fspath(self.path)) as container:
                stream = _video_stream(container)
                stream.thread_type = "AUTO"
                for frame in container.decode(stream):
                    self.times.append(self._time(frame))
                    # quarter turns only: players also ignore any other rotation
                    turns, rest = divmod(frame.rotation, 90)
                    pixels = np.rot90(frame.to_ndarray(format="rgb24"), 0 if rest else turns)
                    yield torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
        except av.FFmpegError as error:
            self.error = _reason(error)

    def seconds(self, index: int) -> float:
        """Return the start of a frame that was read, s."""
        return float(self.times[index][0] * self.time_base)

    @property
    def breaks_off(self) -> bool:
        """Return whether reading ended early.

        Some files count frames that they do not store, so both the number of frames and the duration must fall short.
        """
        if self.error is not None or not self.times:
            return True
        # end of the last frame (start + duration) minus start of the first, in units of the time base
        length = sum(self.times[-1]) - self.times[0][0]
        too_short = not self.duration or length < WHOLE * self.duration
        return len(self.times) < WHOLE * self.total and too_short

    def _time(self, frame: av.VideoFrame) -> tuple[int, int]:
        """Return start and duration of a frame; missing or non-increasing times are extrapolated at the mean rate."""
        # mean duration of a frame in units of the time base, at least one so that times increase
        step = max(round(1 / (self.rate * self.time_base)), 1)
        earliest = self.times[-1][0] + 1 if self.times else None
        if frame.pts is None or (earliest is not None and frame.pts < earliest):
            return (0 if earliest is None else earliest - 1 + step), step
        return frame.pts, frame.duration or step


@contextmanager
def write_video(
    path: Path, video: VideoReader, report: Callable[[str], None]
) -> Iterator[Callable[[Pixels, int], None]]:
    """Write an MP4 file with the frame times and the sound of `video`; the file is written atomically.

    Args:
        report: Called with one line if the sound cannot be transferred.

    Yields:
        Function that appends a drawn frame, uint8 RGB `[H, W, 3]`, given its index in `video`.

    Raises:
        BadInput: The file cannot be written.
    """
    with (
        atomic_write(path) as temporary,
        av.open(os.fspath(video.path)) as source,
        av.open(os.fspath(temporary), "w", format="mp4") as target,
    ):
        writer = FrameWriter(video, target, Sound(source, target, report))
        yield writer.append
        writer.close()


class FrameWriter:
    """Encoder of frames that interleaves the sound of the source."""

    def __init__(self, video: VideoReader, target: OutputContainer, sound: Sound) -> None:
        """Add a video stream to the target, before anything is written."""
        self.video, self.target, self.sound = video, target, sound
        # MPEG-4 stores the numerator of the rate in 16 bits
        rate = video.rate.limit_denominator(1001)
        if rate.numerator >= 2**16:
            rate = Fraction(min(round(rate), 2**16 - 1))
        self.stream: Any = target.add_stream(CODEC, rate=rate)
        self.stream.time_base = video.time_base

    def append(self, image: Pixels, index: int) -> None:
        """Encode a frame, uint8 RGB `[H, W, 3]`; the first one sets the size of the video."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        if index == 0:
            self.stream.width, self.stream.height, self.stream.pix_fmt = frame.width, frame.height, "yuv420p"
            # the bit rate is proportional to px per second and must fit into 32 signed bits
            bits = int(BITS_PER_PIXEL * self.video.rate * frame.width * frame.height)
            self.stream.codec_context.bit_rate = min(max(bits, 1), 2**31 - 1)
        # MPEG-4 needs planar YUV; frames of another size are scaled to that of the first
        frame = frame.reformat(self.stream.width, self.stream.height, "yuv420p")
        frame.pts = index
        self._encode(frame)

    def close(self) -> None:
        """Write the frames that the encoder still holds, and the rest of the sound."""
        self._encode(None)
        self.sound.mux_until(float("inf"))

    def _encode(self, frame: av.VideoFrame | None) -> None:
        """Write the packets of a frame; None flushes the encoder."""
        for packet in self.stream.encode(frame):
            # the encoder numbers frames (pts = index); the file gets the times of the source
            start, duration = self.video.times[packet.pts]
            packet.pts = packet.dts = start
            packet.duration, packet.time_base = duration, self.video.time_base
            self.sound.mux_until(float(start * self.video.time_base))
            self.target.mux(packet)


class Sound:
    """Transfer of the sound of one file to another; does nothing if the source is silent."""

    def __init__(
        self, source: InputContainer, target: OutputContainer, report: Callable[[str], None]
    ) -> None:
        """Add an audio stream to the target, before anything is written."""
        self.source, self.target, self.report = source, target, report
        self._next_packet: Any = None  # read from the source, not yet due
        self._packets: Iterator[Any] = iter(())
        stream: Any = source.streams.best("audio")
        if stream is None:
            return
        try:
            # re-encoding costs quality, so copy every codec that MP4 players support
            if stream.codec_context.codec.canonical_name in COPIED_SOUND:
                self._packets = copied_packets(source, stream, target.add_stream_from_template(stream))
            else:
                self._packets = encoded_packets(source, stream, target.add_stream("aac", rate=stream.rate))
        except (av.FFmpegError, ValueError, AttributeError) as error:
            self._stop(error)

    def mux_until(self, seconds: float) -> None:
        """Write the sound that starts before this time: the streams of a file are interleaved."""
        try:
            self._next_packet = self._next_packet or next(self._packets, None)
            # the packet after the limit has left the iterator already: it waits for the next call
            while self._next_packet is not None and (
                self._next_packet.dts * self._next_packet.time_base <= seconds
            ):
                self.target.mux(self._next_packet)
                self._next_packet = next(self._packets, None)
        except (av.ArgumentError, av.InvalidDataError) as error:  # damaged sound; not a full disk
            self._stop(error)

    def _stop(self, error: Exception) -> None:
        """Omit the remaining sound and report it."""
        self._next_packet, self._packets = None, iter(())
        self.report(f"{self.source.name}: its sound is left out from here on ({_reason(error)})")


def copied_packets(source: InputContainer, stream: Any, output: Any) -> Iterator[Any]:
    """Yield the packets of a stream, assigned to the output stream without re-encoding."""
    for packet in source.demux(stream):
        if packet.dts is not None:  # the last packet only flushes
            packet.stream = output
            yield packet


def encoded_packets(source: InputContainer, stream: Any, output: Any) -> Iterator[Any]:
    """Yield the packets of a stream, re-encoded for the output stream."""
    for frame in source.decode(stream):
        yield from output.encode(frame)
    yield from output.encode(None)


def _video_stream(container: InputContainer) -> Any:
    """Return the video stream.

    Raises:
        ValueError: The file has no video stream.
    """
    stream = container.streams.best("video")
    if stream is None:
        raise ValueError("it has no video stream")
    return stream


def _reason(error: Exception) -> str:
    """Return the message of an error in one line."""
    return " ".join(str(error).split()) or type(error).__name__
