"""Promises of stabn.video: what is read is what was encoded; every bad file gives one sentence; nothing is left."""

from __future__ import annotations

import csv
import math
import os
import pickle
import re
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import pattern

from stabn import video
from stabn.video import Clip, VideoError, VideoWriter, iter_frames, probe, read_clip, read_clip_fast, write_video

Make = Callable[..., Path]
VFR = np.array([0.0, 0.033, 0.1, 0.133, 0.5, 0.5333, 0.6, 0.9, 0.91, 1.0, 1.25, 1.3])  # seconds


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference of two pictures of the same size, of 255."""
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("h264.mp4", {}),
        ("h264.mov", {}),
        ("h264.mkv", {}),
        ("h264.ts", {}),
        ("h264.flv", {}),
        ("without_display_times.avi", {}),
        ("mpeg4.avi", {"codec": "mpeg4"}),
        ("mpeg4_b_frames.avi", {"codec": "mpeg4", "bf": "2"}),
        ("full_range.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
        ("full_range.mp4", {"pix_fmt": "yuvj420p"}),
        ("ten_bit.mp4", {"pix_fmt": "yuv420p10le"}),
        ("mpeg2.mpg", {"codec": "mpeg2video"}),
        ("vp8.webm", {"codec": "libvpx"}),
        ("vp9_opus.webm", {"codec": "libvpx-vp9", "audio": "libopus"}),
        ("colours.gif", {"codec": "gif", "pix_fmt": "rgb8"}),
        ("lossless.mkv", {"codec": "ffv1", "pix_fmt": "bgr0"}),
    ],
)
def test_every_format_gives_the_encoded_frames(make_video: Make, name: str, options: dict[str, str]) -> None:
    path = make_video(name, **options)
    info, clip = probe(path), read_clip(path, 12)
    assert (info.frame_count, info.source_size, info.rotation) == (12, (48, 64), 0)
    assert info.has_audio == ("audio" in options)
    np.testing.assert_allclose(info.timestamps, np.arange(12) / 25, atol=1e-3)
    assert info.fps == pytest.approx(25, abs=0.3)
    assert info.duration == pytest.approx(12 / 25, abs=0.01)
    tolerance = {".gif": 25.0, ".mkv": 2.5 if options.get("codec") != "ffv1" else 0.0}.get(path.suffix, 3.0)
    assert difference(clip.frames, pattern()) <= tolerance
    times, frames = zip(*iter_frames(path), strict=True)
    np.testing.assert_array_equal(times, clip.timestamps)
    np.testing.assert_array_equal(np.stack(frames), clip.frames)
    assert clip.notes == ()


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_rotation_is_applied(make_video: Make, rotation: int, suffix: str) -> None:
    clip = read_clip(make_video(f"turned{suffix}", rotation=rotation), 12)
    upright = np.rot90(pattern(), rotation // 90 % 4, axes=(1, 2))
    assert (clip.rotation, clip.source_size) == (rotation, upright.shape[1:3])
    assert difference(clip.frames, upright) < 3
    small = read_clip(clip.path, 2, size=24)
    assert small.frames.shape == ((2, 24, 32, 3) if rotation == 180 else (2, 32, 24, 3))
    assert small.source_size == clip.source_size


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_variable_frame_rate_keeps_true_time_stamps(make_video: Make, suffix: str) -> None:
    path = make_video(f"vfr{suffix}", stamps=VFR + 0.7)  # a late first frame is second 0 as well
    np.testing.assert_allclose(probe(path).timestamps, VFR, atol=1e-3)
    clip = read_clip(path, [4, 7, 4])
    np.testing.assert_allclose(clip.timestamps, VFR[[4, 7, 4]], atol=1e-3)
    assert difference(clip.frames, pattern()[[4, 7, 4]]) < 3
    np.testing.assert_allclose([time for time, _ in iter_frames(path, 0.5, 0.9)], VFR[4:7], atol=1e-3)


def test_frames_are_the_centres_of_equal_segments(make_video: Make) -> None:
    path = make_video("clip.mp4")
    assert read_clip(path, 1).frame_indices.tolist() == [6]
    assert read_clip(path, 3).frame_indices.tolist() == [2, 6, 10]
    assert read_clip(path, 5).frame_indices.tolist() == [1, 3, 6, 8, 10]
    assert read_clip(path, 12).frame_indices.tolist() == list(range(12))
    assert read_clip(path, 24).frame_indices.tolist() == [i // 2 for i in range(24)]
    clip = read_clip(path, 3)
    assert difference(clip.frames, pattern()[[2, 6, 10]]) < 3
    np.testing.assert_allclose(clip.timestamps, [0.08, 0.24, 0.4])


def test_window(make_video: Make) -> None:
    path = make_video("clip.mp4", stamps=VFR)
    info = probe(path)
    assert read_clip(info, 3, window=(0.1, 0.6)).frame_indices.tolist() == [2, 4, 5]  # of 2, 3, 4, 5
    assert read_clip(info, 2, window=(0.9, math.inf)).frame_indices.tolist() == [8, 10]  # of 7 to 11
    assert read_clip(info, 2, window=(0.2, 0.4)).frame_indices.tolist() == [3, 3]  # none begins: the one on display
    for window in ((-1, 1), (1, 1), (2, 1), (9, 10), (math.nan, 1)):
        with pytest.raises(VideoError, match=r"clip\.mp4: has no window"):
            read_clip(info, 2, window=window)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("long.mp4", {"g": "10", "bf": "2"}),
        ("long.mkv", {"g": "10", "bf": "2"}),
        ("long.ts", {"g": "10", "bf": "2"}),
        ("open_gop.mp4", {"g": "10", "bf": "3", "x264-params": "open-gop=1"}),
        ("long.avi", {"codec": "mpeg4", "g": "10"}),
        ("long.webm", {"codec": "libvpx-vp9", "g": "10", "cpu-used": "8"}),
    ],
)
def test_seeking_gives_the_frames_that_reading_through_gives(
    make_video: Make, monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, str]
) -> None:
    path = make_video(name, pattern(150), **options)
    frames = [frame for _, frame in iter_frames(path)]
    info, decoded, decode = probe(path), 0, video._decoded

    def counting(packet: av.Packet) -> list | None:
        nonlocal decoded
        decoded += 1
        return decode(packet)

    monkeypatch.setattr(video, "_decoded", counting)
    wanted = [3, 97, 101, 148]
    clip = read_clip(info, wanted)
    for index, frame in zip(wanted, clip.frames, strict=True):
        np.testing.assert_array_equal(frame, frames[index])
    assert decoded < 100
    (time, frame), *_ = iter_frames(info, 4.0)
    assert time == pytest.approx(4)
    np.testing.assert_array_equal(frame, frames[100])


def test_size_is_the_short_side(make_video: Make) -> None:
    path = make_video("wide.mp4", pattern(4, 30, 47), codec="ffv1", pix_fmt="bgr0", container="matroska")
    assert read_clip(path, 2).frames.shape == (2, 30, 47, 3)  # odd sizes are kept
    clip = read_clip(path, 2, size=11)
    assert clip.frames.shape == (2, 11, 17, 3)
    assert clip.source_size == (30, 47)
    assert next(iter_frames(path, size=60))[1].shape == (60, 94, 3)


def test_colours_follow_the_tags(tmp_path: Path) -> None:
    colour = np.full((4, 32, 32, 3), (200, 60, 30), np.uint8)
    for tag, space in ((1, "ITU709"), (6, "ITU601"), (2, "ITU601")):  # 2: untagged
        for number, colour_range in ((1, "MPEG"), (2, "JPEG")):
            path = tmp_path / f"{tag}{number}.mp4"
            with av.open(str(path), "w") as output:
                stream = output.add_stream("libx264", rate=25, options={"crf": "1"})
                stream.width = stream.height = 32
                stream.pix_fmt = "yuv420p"
                stream.codec_context.colorspace, stream.codec_context.color_range = tag, number
                for array in colour:
                    frame = av.VideoFrame.from_ndarray(array, "rgb24")
                    yuv = {"dst_colorspace": space, "src_color_range": "JPEG", "dst_color_range": colour_range}
                    output.mux(stream.encode(frame.reformat(format="yuv420p", **yuv)))
                output.mux(stream.encode(None))
            assert np.abs(read_clip(path, 4).frames.astype(int) - colour).max() <= 4


def test_iterator_dropped_early_closes_the_file(make_video: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    path, containers, av_open = make_video("clip.mp4"), [], av.open

    def remembering(*args: object, **options: object) -> object:
        containers.append(av_open(*args, **options))
        return containers[-1]

    monkeypatch.setattr(av, "open", remembering)
    frames = iter_frames(path)
    next(frames)
    containers[-1].seek(0)  # still open
    del frames
    for container in containers:
        with pytest.raises(AssertionError):  # PyAV's answer for a closed container
            container.seek(0)


def test_clip_from_array() -> None:
    clip = Clip.from_array(pattern(5), fps=10)
    np.testing.assert_allclose(clip.timestamps, [0, 0.1, 0.2, 0.3, 0.4])
    assert (clip.source_size, clip.frame_count, clip.duration, clip.fps) == ((48, 64), 5, 0.5, 10)
    with pytest.raises(TypeError, match="float64"):
        Clip.from_array(np.zeros((2, 4, 4, 3)))  # type: ignore[arg-type]
    for shape in ((4, 4, 3), (2, 4, 4, 1), (0, 4, 4, 3)):
        with pytest.raises(ValueError, match=re.escape(str(shape))):
            Clip.from_array(np.zeros(shape, np.uint8))
    for fps in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="fps"):
            Clip.from_array(pattern(2), fps=fps)


@pytest.mark.parametrize("frames", [0, -1, True, 1.5, [], [[1]], [1.5], "3"])
def test_frames_is_checked(make_video: Make, frames: object) -> None:
    with pytest.raises(ValueError, match="`frames`"):
        read_clip(make_video("clip.mp4"), frames)  # type: ignore[arg-type]


def test_arguments_are_checked(make_video: Make) -> None:
    path = make_video("clip.mp4")
    with pytest.raises(VideoError, match=r"frames 0 to 11 here, asked for \[3, 12\]"):
        read_clip(path, [3, 12])
    for read in (lambda size: read_clip(path, 2, size=size), lambda size: iter_frames(path, size=size)):
        for size in (0, -4, 10**6):
            with pytest.raises(ValueError, match=f"`size` {size}"):
                read(size)


# ---------------------------------------------------------------- folders of images


def write_images(folder: Path, names: list[str], frames: np.ndarray) -> Path:
    codecs = {".png": ("png", "rgb24"), ".bmp": ("bmp", "bgr24"), ".jpg": ("mjpeg", "yuvj444p")}
    codecs |= {".jpeg": codecs[".jpg"], ".webp": ("libwebp", "yuv420p")}
    folder.mkdir()
    for name, array in zip(names, frames, strict=True):
        codec, pix_fmt = codecs[Path(name).suffix.lower()]
        encoder = av.CodecContext.create(codec, "w")
        encoder.height, encoder.width, encoder.pix_fmt = *array.shape[:2], pix_fmt
        encoder.time_base = Fraction(1, 25)
        frame = av.VideoFrame.from_ndarray(array, "rgb24").reformat(format=pix_fmt, dst_color_range="JPEG")
        (folder / name).write_bytes(b"".join(bytes(p) for p in [*encoder.encode(frame), *encoder.encode(None)]))
    return folder


def test_folder_in_natural_order(tmp_path: Path) -> None:
    names = ["frame2.jpg", "frame10.PNG", "frame1.webp", "frame11.bmp", "frame20.jpeg"]
    order = [2, 0, 1, 3, 4]
    frames = pattern(5)
    folder = write_images(tmp_path / "frames", names, frames)
    (folder / "notes.txt").write_text("not an image")
    (folder / "._frame3.jpg").write_bytes(b"left by a file manager")
    clip = read_clip(folder, 5)
    assert difference(clip.frames, frames[order]) < 4
    np.testing.assert_allclose(clip.timestamps, np.arange(5) / 12)
    assert (clip.fps, clip.duration, clip.frame_count) == pytest.approx((12, 5 / 12, 5))
    info = probe(folder, fps=5)
    assert (info.codec, info.duration) == ("images", pytest.approx(1))
    assert [time for time, _ in iter_frames(folder, 0.3, 0.7, fps=5)] == pytest.approx([0.4, 0.6])
    assert read_clip(folder, 2, window=(0.4, 0.8), fps=5, size=24).frames.shape == (2, 24, 32, 3)
    np.testing.assert_array_equal(read_clip_fast(folder, 5).frames, clip.frames)
    with pytest.raises(ValueError, match="`fps` is 0"):
        probe(folder, fps=0)


def test_folder_with_a_broken_image(tmp_path: Path) -> None:
    frames = pattern(4)
    folder = write_images(tmp_path / "frames", [f"{i}.png" for i in range(4)], frames)
    (folder / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    clip = read_clip(folder, 6)
    np.testing.assert_array_equal(clip.frames, frames[[0, 0, 2, 2, 3, 3]])
    np.testing.assert_allclose(clip.timestamps, np.array([0, 0, 2, 2, 3, 3]) / 12)
    assert clip.notes == ("1 of its 4 frames do not decode",)


def test_folder_of_different_sizes_is_refused(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "frames", ["1.png", "2.png"], pattern(2))
    write_images(tmp_path / "other", ["3.png"], pattern(1, 20, 30))
    os.replace(tmp_path / "other" / "3.png", folder / "3.png")
    with pytest.raises(VideoError, match=r"3\.png: is 30 x 20 pixels, the first image of its folder 64 x 48"):
        read_clip(folder, 3)


# ---------------------------------------------------------------- what is refused


def patched(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert data.count(old) >= 1
    path.write_bytes(data.replace(old, new))


def sound_only(path: Path, cover: bool = False) -> None:
    with av.open(str(path), "w") as output:
        sound = output.add_stream("libmp3lame" if path.suffix == ".mp3" else "aac", rate=48_000, layout="mono")
        if cover:
            picture = bytes.fromhex("89504e470d0a1a0a")
            output.add_attachment("cover.png", "image/png", picture)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 9600), np.int16), "s16", "mono")
        frame.sample_rate, frame.pts = 48_000, 0
        output.mux(sound.encode(frame))
        output.mux(sound.encode(None))


def bad_header(path: Path, width: int, height: int) -> None:
    """Write a size into the bitmap header of an AVI."""
    data = bytearray(path.read_bytes())
    at = data.index(b"strf") + 12
    data[at : at + 8] = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    path.write_bytes(data)


BAD: dict[str, tuple[Callable[[Make, Path], object], str]] = {
    "missing.mp4": (lambda make, path: None, "does not exist"),
    "missing_folder/a.mp4": (lambda make, path: None, "does not exist"),
    "empty.mp4": (lambda make, path: path.touch(), r"is empty \(0 bytes\)"),
    "text.mp4": (lambda make, path: path.write_text("Hello, this is not a video. " * 50), "is no video"),
    "random.mp4": (
        lambda make, path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
        "is no video|none of its frames|no streams",
    ),
    "program.webm": (lambda make, path: path.write_bytes(b"\x7fELF" + bytes(3000)), "is no video"),
    "picture.mp4": (
        lambda make, path: os.replace(write_images(path.parent / "x", ["1.png"], pattern(1)) / "1.png", path),
        "is no video",
    ),
    "sound.mp4": (lambda make, path: sound_only(path), "has no video stream"),
    "song_with_cover.mkv": (lambda make, path: sound_only(path, cover=True), "has no video stream"),
    "sound.mp3": (lambda make, path: sound_only(path), "is no video"),
    "header_only.mp4": (
        lambda make, path: path.write_bytes(b"\0\0\0\x14ftypisom\0\0\2\0isommp41\0\0\0\x08moov"),
        "has no streams|is no video",
    ),
    "one_frame.mp4": (lambda make, path: make(path.name, pattern(1)), "has one frame: a motion needs at least two"),
    "one_frame.gif": (
        lambda make, path: make(path.name, pattern(1), codec="gif", pix_fmt="rgb8"),
        "has one frame: a motion needs at least two",
    ),
    "cut_before_its_index.mp4": (
        lambda make, path: os.truncate(make(path.name), make(path.name).stat().st_size // 2),
        "is no video: damaged, cut off",
    ),
    "unknown_codec.mp4": (
        lambda make, path: patched(make(path.name), b"avc1\0\0", b"zzz9\0\0"),
        "codec that cannot be decoded|frames of 0 x 0|none of its frames",
    ),
    "zero_size.avi": (
        lambda make, path: bad_header(make(path.name, codec="rawvideo", pix_fmt="bgr24"), 0, 0),
        "has frames of 0 x 0|is no video",
    ),
    "huge.avi": (
        lambda make, path: bad_header(make(path.name, codec="rawvideo", pix_fmt="bgr24"), 10_000, 9_000),
        "has frames of 10000 x 9000: 1 to 67108864 pixels are read",
    ),
    "folder_without_images": (lambda make, path: path.mkdir(), "is a folder without images"),
    "folder_of_one": (
        lambda make, path: write_images(path, ["1.png"], pattern(1)),
        "has one frame: a motion needs at least two",
    ),
    "folder_of_broken_images": (
        lambda make, path: [path.mkdir(), (path / "1.jpg").write_text("no"), (path / "2.png").touch()],
        "none of its frames can be decoded",
    ),
    "null\0byte.mp4": (lambda make, path: None, "cannot be read"),
    "long_name" * 100 + ".mp4": (lambda make, path: None, "cannot be read"),
}


@pytest.mark.parametrize("name", BAD, ids=[name[:30].replace("\0", "0") for name in BAD])
def test_bad_input_is_one_sentence(
    make_video: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    build, reason = BAD[name]
    path = tmp_path / name
    build(make_video, path)
    for read in (
        probe,
        lambda path: read_clip(path, 4),
        lambda path: list(iter_frames(path)),
        lambda path: read_clip_fast(path, 4),
    ):
        with pytest.raises(VideoError, match=reason) as caught:
            read(str(path))
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
        assert str(pickle.loads(pickle.dumps(caught.value))) == message  # from a worker process, too
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{0}\n#EXT-X-ENDLIST\n",
        "\ufeff\n #EXTM3U\n#EXTINF:9,\nfile://{0}\n",
        "ffconcat version 1.0\nfile {0}\n",
        "file '{0}'\n" * 20,
        "[playlist]\nFile1={0}\n",
        '<?xml version="1.0"?><MPD><Period><BaseURL>{0}</BaseURL></Period></MPD>',
    ],
)
@pytest.mark.parametrize("name", ["list.mp4", "list.m3u8", "list.ffconcat", "list.gif"])
def test_playlist_is_refused_under_any_name(make_video: Make, name: str, text: str) -> None:
    secret = make_video("secret.mp4")
    path = secret.with_name(name)
    path.write_text(text.format(secret), encoding="utf-8")
    for read in (probe, lambda path: read_clip_fast(path, 2)):
        with pytest.raises(VideoError, match=r"is a playlist|is no video"):
            read(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")  # opening it would wait for a writer
    for path in (tmp_path / "pipe.mp4", "/dev/zero"):
        with pytest.raises(VideoError, match="is not a regular file"):
            probe(path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_unreadable(make_video: Make) -> None:
    path = make_video("clip.mp4")
    path.chmod(0)
    with pytest.raises(VideoError, match=r"cannot be read \(Permission denied\)"):
        probe(path)


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv", "cut.avi"])
def test_cut_off_file_gives_what_is_there(make_video: Make, name: str) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (30, 48, 64, 3), np.uint8)  # every frame takes space
    faststart = {"movflags": "+faststart"} if name.endswith("mp4") else {}
    path = make_video(name, frames, codec="mpeg4", **faststart)
    whole = read_clip(path, 30)
    os.truncate(path, path.stat().st_size * 6 // 10)
    clip = read_clip(path, 6)
    assert 10 < clip.frame_count < 25
    assert clip.frame_indices.max() < clip.frame_count
    np.testing.assert_array_equal(clip.frames[:5], whole.frames[clip.frame_indices[:5]])
    if name.endswith("mp4"):
        assert f"its header promises 30 frames, it has {clip.frame_count}" in clip.notes


def test_frames_that_do_not_decode_are_left_out(make_video: Make, capfd: pytest.CaptureFixture[str]) -> None:
    path = make_video("damaged.mp4", g="1", **{"x264-params": "slices=1"})
    good = read_clip(path, 12).frames
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for position, size in packets[5:7]:
        data[position : position + size] = bytes(size)
    path.write_bytes(data)
    clip = read_clip(path, 10)
    np.testing.assert_array_equal(clip.frames, good[[0, 1, 2, 3, 4, 7, 8, 9, 10, 11]])
    np.testing.assert_allclose(clip.timestamps, np.array([0, 1, 2, 3, 4, 7, 8, 9, 10, 11]) / 25)
    assert clip.notes == ("2 of its 12 frames do not decode",)
    assert read_clip(path, [0, 11]).notes == ()  # these two decode
    assert len(list(iter_frames(path))) == 10
    assert capfd.readouterr().err == ""


# ---------------------------------------------------------------- writing


def test_what_is_written_plays_in_browsers(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    write_video(path, pattern(), VFR)
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert container.format.name.startswith("mov,mp4")
        assert (context.name, context.pix_fmt, stream.width, stream.height) == ("h264", "yuv420p", 64, 48)
        assert (stream.colorspace, stream.color_primaries, stream.color_trc, stream.color_range) == (1, 1, 1, 1)
        assert not container.streams.audio
        assert stream.duration * stream.time_base == pytest.approx(1.35, abs=1e-3)  # the last as long as the one before
    clip = read_clip(path, 12)
    np.testing.assert_allclose(clip.timestamps, VFR, atol=1e-4)
    assert difference(clip.frames, pattern()) < 4
    assert os.listdir(tmp_path) == ["out.mp4"]


def test_first_frame_may_come_late(tmp_path: Path) -> None:
    write_video(tmp_path / "late.mp4", pattern(4), [0.25, 0.3, 0.4, 0.5])
    with av.open(str(tmp_path / "late.mp4")) as container:
        assert float(next(container.decode(video=0)).time) == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize("size", [(47, 63), (48, 63), (47, 64), (1, 1), (2, 3)])
def test_odd_sizes_are_padded_by_their_edge(tmp_path: Path, size: tuple[int, int]) -> None:
    frames = np.broadcast_to(np.uint8([90, 160, 220]), (3, *size, 3))
    write_video(tmp_path / "odd.mp4", frames, 10)
    clip = read_clip(tmp_path / "odd.mp4", 3)
    assert clip.source_size == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert np.abs(clip.frames.astype(int) - [90, 160, 220]).max() <= 4
    np.testing.assert_allclose(clip.timestamps, [0, 0.1, 0.2])


def loudness(path: Path) -> tuple[str, float, float, float]:
    """Codec, first and last second and mean absolute value (of 1) of the audio."""
    with av.open(str(path)) as container:
        codec = container.streams.audio[0].codec_context.codec.canonical_name
        frames = list(container.decode(audio=0))
    samples = np.concatenate([f.to_ndarray().astype(float).mean(axis=0) for f in frames])
    return codec, frames[0].time, frames[-1].time + frames[-1].samples / frames[-1].sample_rate, np.abs(samples).mean()


@pytest.mark.parametrize(
    ("name", "audio", "codec"),
    [
        ("a.mp4", "aac", "aac"),
        ("a.mkv", "libmp3lame", "mp3"),
        ("a.mkv", "libopus", "aac"),
        ("a.mov", "pcm_s16le", "aac"),
        ("a.ts", "aac", "aac"),
    ],
)
def test_audio_goes_along(make_video: Make, tmp_path: Path, name: str, audio: str, codec: str) -> None:
    source = make_video(name, pattern(25), audio=audio)
    out = tmp_path / "out.mp4"
    with VideoWriter(out, 64, 48, audio_from=source) as writer:
        for time, frame in iter_frames(source):
            writer.write(frame, time)
    assert probe(out).has_audio
    written, start, end, level = loudness(out)
    assert written == codec
    assert start == pytest.approx(0, abs=0.06)
    assert end == pytest.approx(1, abs=0.06)
    assert level == pytest.approx(2 / math.pi * 8000 / 32768, rel=0.15)  # the mean of a sine wave
    assert np.abs(probe(out).timestamps - np.arange(25) / 25).max() < 1e-3


def test_audio_keeps_its_distance_to_the_picture(make_video: Make, tmp_path: Path) -> None:
    source = make_video("late.mkv", stamps=np.arange(12) / 25 + 0.3, audio="aac")  # 0.3 s of sound before the picture
    with VideoWriter(tmp_path / "out.mp4", 64, 48, audio_from=probe(source)) as writer:
        for time, frame in iter_frames(source):
            writer.write(frame, time)
    _, start, end, _ = loudness(tmp_path / "out.mp4")
    assert start == pytest.approx(0, abs=0.03)
    assert end == pytest.approx(12 / 25, abs=0.06)


@pytest.mark.parametrize("damage", ["payload", "missing", "silent folder"])
def test_broken_audio_never_fails_the_video(make_video: Make, tmp_path: Path, damage: str) -> None:
    source = make_video("a.mp4", audio="aac")
    if damage == "missing":
        source = tmp_path / "not_there.mp4"
    elif damage == "silent folder":
        source = write_images(tmp_path / "frames", ["1.png", "2.png"], pattern(2))
    else:
        with av.open(str(source)) as container:
            packets = [(p.pos, p.size) for p in container.demux(audio=0) if p.size]
        data = bytearray(source.read_bytes())
        for position, size in packets:
            data[position : position + size] = np.random.default_rng(0).bytes(size)
        source.write_bytes(data)
    write_video(tmp_path / "out.mp4", pattern(), 25, audio_from=source)
    assert read_clip(tmp_path / "out.mp4", 12).frame_count == 12


def write_then_raise(writer: VideoWriter, error: BaseException) -> None:
    for i, frame in enumerate(pattern()):
        writer.write(frame, i / 25)
    raise error


def test_an_exception_leaves_nothing_behind(tmp_path: Path) -> None:
    old = tmp_path / "out.mp4"
    old.write_bytes(b"what was there before")
    for stop in (RuntimeError("stop"), KeyboardInterrupt()):
        with pytest.raises(type(stop)), VideoWriter(old, 64, 48) as writer:
            write_then_raise(writer, stop)
    with pytest.raises(VideoError, match="no frame was written"), VideoWriter(old, 64, 48):
        pass
    with pytest.raises(VideoError, match=r"cannot have frames of 0 x 0"):
        write_video(old, [], 25)
    assert os.listdir(tmp_path) == ["out.mp4"]
    assert old.read_bytes() == b"what was there before"


def test_writer_says_what_is_wrong(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    frame, path = pattern(1)[0], tmp_path / "out.mp4"
    with pytest.raises(VideoError, match=r"not_there/out\.mp4: cannot be written \(No such file"):
        write_video(tmp_path / "not_there" / "out.mp4", [frame], 25)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(VideoError, match=r"folder\.mp4: cannot be written \(Is a directory"):
        write_video(tmp_path / "folder.mp4", [frame, frame], 25)
    with pytest.raises(VideoError, match=r"out\.mp4: cannot be written"):
        write_video(path, np.zeros((2, 2, 20_000, 3), np.uint8), 25)  # wider than H.264 can be
    for wrong in (frame[:, :, 0], frame[:10], frame.astype(float)):
        with pytest.raises(ValueError, match=r"`frame` is .* this video takes uint8 \(48, 64, 3\)"):
            write_video(path, [frame, wrong], 25)
    for stamps in ([0, 0], [1, 0.5], [-1, 0], [0, math.nan], [0, math.inf]):
        with pytest.raises(ValueError, match="`timestamp` is"):
            write_video(path, [frame, frame], stamps)
    for stamps in ([0, 1, 2], 0, -5, math.nan):
        with pytest.raises(ValueError, match="`timestamps`"):
            write_video(path, [frame, frame], stamps)
    writer = VideoWriter(path, 64, 48)
    with pytest.raises(ValueError, match="`with` block"):
        writer.write(frame, 0)
    assert os.listdir(tmp_path) == ["folder.mp4"]
    assert capfd.readouterr().err == ""


# ---------------------------------------------------------------- decord


@pytest.mark.parametrize("size", [None, 64])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain.mp4", {}),
        ("turned.mp4", {"rotation": 90}),
        ("turned.mov", {"rotation": -90}),
        ("upside_down.mp4", {"rotation": 180}),
        ("vfr.mp4", {"stamps": VFR + 0.7}),
        ("full_range.mkv", {"pix_fmt": "yuvj420p"}),
        ("long.mp4", {"frames": pattern(60, 128, 192), "g": "10"}),
    ],
)
def test_decord_and_pyav_agree(make_video: Make, name: str, options: dict, size: int | None) -> None:
    decord = pytest.importorskip("decord")
    path = make_video(name, **{"frames": pattern(12, 128, 192), **options})
    expected = read_clip(path, 7, size=size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video, "read_clip", None)  # PyAV must not step in here
        clip = read_clip_fast(path, 7, size=size)
    assert difference(clip.frames, expected.frames) <= 2
    np.testing.assert_array_equal(clip.frame_indices, expected.frame_indices)
    np.testing.assert_array_equal(clip.timestamps, expected.timestamps)
    assert (clip.source_size, clip.rotation) == (expected.source_size, expected.rotation)
    seconds = decord.VideoReader(str(path)).get_frame_timestamp(range(clip.frame_count))[:, 0]
    np.testing.assert_allclose(seconds - seconds[0], probe(path).timestamps, atol=1e-3)
    np.testing.assert_array_equal(read_clip_fast(path, [5, 2]).frame_indices, [5, 2])


def test_without_decord_pyav_reads(make_video: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_video("clip.mp4")
    monkeypatch.setitem(sys.modules, "decord", None)  # its import fails
    np.testing.assert_array_equal(read_clip_fast(path, 5, size=24).frames, read_clip(path, 5, size=24).frames)


# ---------------------------------------------------------------- real clips


@pytest.mark.skipif("STABN_CLIPS" not in os.environ, reason="STABN_CLIPS names no folder of real clips")
def test_real_clips(tmp_path: Path) -> None:
    folder, wrong = Path(os.environ["STABN_CLIPS"]), []
    rows = list(csv.DictReader((folder / "manifest.csv").read_text(encoding="utf-8").splitlines()))
    assert rows
    for row in rows:
        path, expected = folder / row["file"], row["expected"]
        try:
            clip = read_clip(path, 16, size=64)
            times, frames = zip(*iter_frames(path), strict=True)
            write_video(tmp_path / "copy.mp4", frames[:8], times[:8], audio_from=path)
            copy = probe(tmp_path / "copy.mp4")
            size = (int(row["h"]), int(row["w"]))
            turned = int(row["rotation"] or 0)
            checks = {
                "decodes": expected == "decode" or "partial decode" in expected,
                "size": clip.source_size == (size[::-1] if turned % 180 else size) == frames[0].shape[:2],
                "rotation": clip.rotation == turned,
                "count": len(frames) == int(row["frames"]) == clip.frame_count or "partial" in expected,
                "shape": len(clip.frames) == 16 and min(clip.frames.shape[1:3]) == 64,
                "times": bool((np.diff(times) > 0).all()) and times[0] == 0,
                "copy": np.abs(copy.timestamps - times[: copy.frame_count]).max() < 1e-3,
            }
            wrong += [f"{row['file']}: {name}" for name, good in checks.items() if not good]
        except VideoError as error:
            if expected == "decode" or not str(error).startswith(f"{path}: "):
                wrong.append(str(error))
    assert not wrong
