"""Labelled videos on tiny copies of the true formats: what is recognised, sampled, mirrored, refused and checked."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import encode, pattern
from PIL import Image

import stabn.data
from stabn import train
from stabn.clips import Clips, Item, collate, drawn, random_box, resized, segmented
from stabn.data import DataError, Row, lists, mirrored, read
from stabn.video import read_clip

# As Something-Something writes them: apostrophes, commas, and no order of the alphabet.
NAMES = (
    "Holding something",
    "Pushing something from left to right",
    "Putting something, something and something on the table",
    "Pushing something from right to left",
    "Pushing something so that it almost falls off but doesn't",
)
TEMPLATES = {
    1: "Pushing [something] from left to right",
    2: "Putting [something], [something] and [something] on the table",
    3: "Pushing [something] from right to left",
}


def video(path: Path, count: int = 9, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    fast = {} if path.suffix == ".mp4" else {"codec": "libvpx", "deadline": "realtime"}
    return encode(path, pattern(count, 32, 48), **{**fast, **options})


def frames(path: Path, count: int = 9) -> Path:
    """JPEG frames as Something-Something V1 has them; noise, so that a file is larger than FFmpeg probes."""
    path.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (count, 32, 48, 3), np.uint8)
    for number, frame in enumerate(noise, 1):
        Image.fromarray(frame).save(path / f"{number:05}.jpg", quality=95)
    return path


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    """Something-Something V1: the list of training clips."""
    root = tmp_path / "v1"
    for clip in ("100218", "7", "24413"):
        frames(root / "20bn-something-something-v1" / clip)
    (root / "something-something-v1-labels.csv").write_text("\n".join(NAMES) + "\n")
    rows = [("24413", 3), ("100218", 2), ("7", 1)]
    (root / "something-something-v1-train.csv").write_text("".join(f"{clip};{NAMES[k]}\n" for clip, k in rows))
    (root / "something-something-v1-validation.csv").write_text(f"7;{NAMES[1]}\n")
    (root / "something-something-v1-test.csv").write_text("100218\n24413\n")
    return root / "something-something-v1-train.csv"


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    """Something-Something V2: the list of validation clips, the only one with labels."""
    root = tmp_path / "v2"
    for clip in ("78687", "42326"):
        video(root / "20bn-something-something-v2" / f"{clip}.webm")
    labels = {name: str(index) for index, name in enumerate(NAMES)}
    (root / "something-something-v2-labels.json").write_text(json.dumps(dict(sorted(labels.items()))))
    entries = [
        {"id": clip, "label": "pushing a pen", "template": TEMPLATES[k], "placeholders": ["a pen"]}
        for clip, k in (("78687", 3), ("42326", 2))
    ]
    (root / "something-something-v2-validation.json").write_text(json.dumps(entries))
    (root / "something-something-v2-test.json").write_text('[{"id": "1"}]')
    return root / "something-something-v2-validation.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    video(tmp_path / "data" / "left" / "a.mp4")
    video(tmp_path / "data" / "right" / "b.mp4", 24)
    frames(tmp_path / "data" / "right" / "c", 5)
    return tmp_path / "data"


def clips(data: Path, count: int = 4, size: int | None = None, **options: Any) -> Clips:
    labelled = read(data)
    return Clips(labelled, labelled.classes, count, size, **options)


class TestFormats:
    def test_something_something_v1(self, v1: Path) -> None:
        labelled = read(v1)
        assert labelled.classes == list(NAMES)
        assert labelled.root == v1.parent / "20bn-something-something-v1"
        assert [row.path for row in labelled.rows] == ["24413", "100218", "7"]
        assert labelled.labels(NAMES[::-1]) == [1, 2, 3]
        item = clips(v1)[1]
        assert item.label == 2
        assert item.frames is not None
        assert item.frames.shape == (1, 4, 32, 48, 3)

    def test_something_something_v2(self, v2: Path) -> None:
        labelled = read(v2.parent)  # one list only has labels
        assert labelled.source == v2
        assert labelled.classes == list(NAMES)
        assert [row.path for row in labelled.rows] == ["78687.webm", "42326.webm"]
        assert labelled.labels(NAMES) == [3, 2]
        item = clips(v2)[0]
        assert item.label == 3
        assert item.frames is not None
        np.testing.assert_array_equal(item.frames[0], read_clip(labelled.root / "78687.webm", 4).frames)

    def test_names_and_folders_of_later_releases(self, v2: Path) -> None:
        root = v2.parent
        (root / "labels").mkdir()
        for old, new in (("something-something-v2-labels.json", "labels.json"), (v2.name, "validation.json")):
            (root / old).rename(root / "labels" / new)
        (root / "labels" / "test-answers.csv").write_text(f"42326;{NAMES[0]}\n")
        assert lists(root) == [root / "labels" / "test-answers.csv", root / "labels" / "validation.json"]
        with pytest.raises(DataError, match=r"2 lists of clips \(test-answers\.csv, validation\.json\): name one of"):
            read(root)
        assert read(root / "labels" / "test-answers.csv").labels(NAMES) == [0]
        assert read(root / "labels" / "validation.json").root == root / "20bn-something-something-v2"

    def test_v1_and_v2_in_one_folder_have_clips_of_the_same_ids(self, v1: Path, v2: Path) -> None:
        for path in v2.parent.iterdir():
            path.rename(v1.parent / path.name)
        video(v1.parent / "20bn-something-something-v2" / "7.webm")
        video(v1.parent / "20bn-something-something-v2" / "100218.webm")
        video(v1.parent / "20bn-something-something-v2" / "24413.webm")
        (v1.parent / "20bn-something-something-v1" / "7" / "00001.jpg").unlink()
        assert read(v1).root.name == "20bn-something-something-v1"
        assert read(v1.parent / v2.name).root.name == "20bn-something-something-v2"

    def test_class_folders_and_a_csv(self, folder: Path) -> None:
        labelled = read(folder)
        assert [(row.path, row.label) for row in labelled.rows] == [
            ("left/a.mp4", "left"), ("right/b.mp4", "right"), ("right/c", "right"),
        ]  # fmt: skip
        assert labelled.classes == ["left", "right"]
        for separator in ",;":
            rows = ("label,path", "Right,right/c", '1,"left/a.mp4"')
            (folder / "list.csv").write_text("\n".join(row.replace(",", separator) for row in rows), "utf-8-sig")
            listed = read(folder / "list.csv")
            assert [row.path for row in listed.rows] == ["right/c", "left/a.mp4"]
            assert listed.labels(["left", "right"]) == [1, 1]

    def test_classes_of_a_list_of_indices(self, tmp_path: Path) -> None:
        (tmp_path / "list.csv").write_text("path,label\na.mp4,0\nb.mp4,11\n")
        assert read(tmp_path / "list.csv").classes == [str(index) for index in range(12)]


class TestWhatIsWrong:
    """One sentence each: what, where, the value seen, the way out."""

    @pytest.mark.parametrize("label", ["99999999999", "9" * 5000])
    def test_an_absurd_index_does_not_take_all_memory(self, tmp_path: Path, label: str) -> None:
        (tmp_path / "list.csv").write_text(f"path,label\na.mp4,{label}\n")
        found = read(tmp_path / "list.csv")
        for ask in (lambda: found.classes, lambda: found.labels(["one"])):
            with pytest.raises(DataError) as error:
                ask()
            assert "999" in str(error.value)
            assert len(str(error.value)) < 300 + len(str(tmp_path))

    def test_fewer_classes_than_the_list(self, v1: Path) -> None:
        with pytest.raises(DataError, match=r"a list of 5 labels, the network knows 2 classes: take a network"):
            read(v1).labels(["a", "b"])

    def test_a_label_that_is_not_in_the_list(self, v1: Path) -> None:
        v1.write_text(f"7;{NAMES[1]}\n24413;Pushing something\n")
        with pytest.raises(
            DataError, match=r"train\.csv, line 2: there is no class 'Pushing something' among the 5: did"
        ):
            clips(v1)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (
                lambda path: (path.parent / "something-something-v1-labels.csv").unlink(),
                "beside it, *labels.csv or *la",
            ),
            (lambda path: path.write_text(";Holding something\n"), "line 1 is ';Holding something', it must be the id"),
            (lambda path: path.write_text("900;Holding something\n"), "lists 1 clips (900, ...), and none is there"),
            (lambda path: (path.parent / "something-something-v1-labels.csv").write_text(""), "has no labels"),
        ],
    )
    def test_v1(self, v1: Path, change: Callable[[Path], None], said: str) -> None:
        change(v1)
        with pytest.raises(DataError) as error:
            read(v1)
        assert said in str(error.value)

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            (
                "something-something-v2-labels.json",
                '{"a": "0", "b": "2"}',
                "has 2 labels, their indices must be 0 to 1",
            ),
            ("something-something-v2-labels.json", "[1]", "is no list of labels"),
            ("something-something-v2-validation.json", "{", "is no JSON"),
            ("something-something-v2-labels.json", '{"a": 1e400}', "is no list of labels: it must be"),
            ("something-something-v2-validation.json", "[" * 100_000, "is no JSON that is read here"),
            ("something-something-v2-validation.json", '[{"id": "\\ud800", "template": "a"}]', "is no JSON"),
            ("something-something-v2-validation.json", "[]", "is no list of clips"),
            (
                "something-something-v2-validation.json",
                '[{"id": "1"}]',
                "entry 1 (id 1) has no template: a list of test",
            ),
            (
                "something-something-v2-validation.json",
                '[{"template": "1"}]',
                "entry 1 is {'template': '1'}, it must ha",
            ),
        ],
    )
    def test_v2(self, v2: Path, name: str, content: str, said: str) -> None:
        (v2.parent / name).write_text(content)
        with pytest.raises(DataError) as error:
            read(v2)
        assert said in str(error.value)

    def test_a_list_of_labels_alone(self, v2: Path) -> None:
        v2.unlink()
        with pytest.raises(DataError, match="but no list of clips with labels"):
            read(v2.parent)

    def test_the_same_clips_in_two_places(self, v2: Path) -> None:
        for name in ("one", "two"):
            video(v2.parent / name / "78687.mp4")
        (v2.parent / "20bn-something-something-v2").rename(v2.parent / "webm")
        assert read(v2).root.name == "webm"
        (v2.parent / "webm").rename(v2.parent.parent.parent / "elsewhere")
        with pytest.raises(DataError, match=r"1 of its clips are in .*one/ID\.mp4.*two/ID\.mp4.*move those"):
            read(v2)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"sampling": "even"}, "`sampling` is 'even'"),
            ({"crop": "left", "size": 8}, "`crop` is 'left'"),
            ({"crop": "centre"}, "it needs a `size`"),
            ({"segments": 0}, "`segments` is 0"),
            ({"flip": 2}, "`flip` is 2"),
            ({"scale": (0, 1)}, r"`scale` is \(0, 1\)"),
        ],
    )
    def test_arguments(self, folder: Path, options: dict[str, Any], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            clips(folder, **options)


class TestClips:
    def test_evaluation_takes_what_read_clip_takes(self, folder: Path) -> None:
        source = clips(folder, size=16, segments=2)
        item = source[1]
        expected = read_clip(folder / "right" / "b.mp4", 8, size=16).frames
        np.testing.assert_array_equal(item.frames, segmented(expected, 2))
        assert segmented(np.arange(6), 2).tolist() == [[0, 2, 4], [1, 3, 5]]

    def test_consecutive_frames_from_the_middle(self, folder: Path) -> None:
        item = clips(folder, sampling="middle")[1]
        np.testing.assert_array_equal(item.frames[0], read_clip(folder / "right" / "b.mp4", [10, 11, 12, 13]).frames)
        halves = clips(folder, sampling="middle", segments=2)[1]
        wanted = [4, 5, 6, 7, 16, 17, 18, 19]  # the middles of 0 to 11 and of 12 to 23
        expected = read_clip(folder / "right" / "b.mp4", wanted).frames
        np.testing.assert_array_equal(halves.frames.reshape(expected.shape), expected)

    @pytest.mark.parametrize("frame_count", [3, 32, 45, 100])
    def test_training_draws_one_frame_of_each_part(self, frame_count: int) -> None:
        chance = np.random.default_rng(0)
        draws = np.array([drawn(frame_count, 32, chance) for _ in range(300)])
        parts = np.arange(33) * frame_count / 32
        assert (draws >= np.floor(parts[:-1])).all()
        assert (draws < np.ceil(parts[1:])).all()
        assert set(draws.ravel()) == set(range(frame_count))

    def test_chance_depends_on_seed_and_number_alone(self, folder: Path) -> None:
        options: dict[str, Any] = {"sampling": "random", "crop": "random", "size": 16, "flip": 0.5}
        one, same = clips(folder, **options), pickle.loads(pickle.dumps(clips(folder, **options)))
        np.testing.assert_array_equal(one[4].frames, same[4].frames)
        assert (one[4].frames != one[1].frames).any()  # the same video in the second epoch
        assert (one[4].frames != clips(folder, **options, seed=1)[4].frames).any()

    def test_a_bad_file_is_named_and_does_not_end_the_epoch(self, folder: Path) -> None:
        from torch.utils.data import DataLoader

        (folder / "left" / "a.mp4").write_bytes(b"")
        source = clips(folder, crop="centre", size=16)
        loader: Any = DataLoader(source, 2, sampler=[0, 1, 2, 3], num_workers=1, collate_fn=collate)  # type: ignore[arg-type]
        first, second = loader
        assert first.numbers == (1,)
        assert first.frames.shape == (1, 1, 4, 16, 16, 3)
        assert first.labels.tolist() == [1]
        [problem] = first.problems
        assert problem == f"{folder / 'left' / 'a.mp4'}: is empty (0 bytes)"
        assert (second.numbers, len(second.problems)) == ((2,), 1)
        nothing = collate([Item(0, 0, None, "gone")])
        assert (len(nothing.frames), len(nothing.labels), nothing.problems) == (0, 0, ("gone",))

    @pytest.mark.parametrize("name", ["a.webm", "a.mp4", "frames"])
    def test_memory_stays_where_it_is(self, tmp_path: Path, name: str) -> None:
        if not os.path.exists("/proc/self/statm"):
            pytest.skip("memory is read from /proc")
        path = tmp_path / "data" / "class" / name
        frames(path) if name == "frames" else video(path, 24)
        source = clips(tmp_path / "data", sampling="random", size=16, crop="random")

        def resident() -> float:
            return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

        for number in range(20):
            assert source[number].frames is not None
        before = resident()
        for number in range(200):
            assert source[number].frames is not None
        assert resident() - before < 4  # MiB; a frame of each read would be 1


class TestAugmentation:
    def test_left_and_right_of_all_174(self) -> None:
        """V1 and V2 have the same names in another order; the indices are those of V2."""
        names = (Path(stabn.data.__file__).parent / "something_something_v2.txt").read_text("utf-8").splitlines()
        assert len(names) == 174
        partners = mirrored(names)
        swapped = {index: partner for index, partner in enumerate(partners) if partner != index}
        assert swapped == {86: 87, 87: 86, 93: 94, 94: 93, 166: 167, 167: 166, 50: None}
        assert names[50] == "Plugging something into something but pulling it right out as you remove your hand"
        reversed_ = mirrored(names[::-1])
        for index, partner in enumerate(partners):
            assert reversed_[173 - index] == (None if partner is None else 173 - partner)

    def test_names_of_other_data_sets(self) -> None:
        names = ["Swiping Left", "swiping right", "turn_left", "TurnRight", "TurnLeft", "Upright", "Clockwise", "left"]
        assert mirrored(names) == [1, 0, None, 4, 3, 5, None, None]
        assert mirrored(["Turning clockwise", "Turning Counterclockwise"]) == [1, 0]
        assert mirrored(["Turning clockwise", "Turning anticlockwise"]) == [None, None]

    def test_a_pixel_moves_in_x_and_the_label_with_it(self, tmp_path: Path) -> None:
        for name in ("left", "right", "nothing", "right away"):
            (tmp_path / name / "clip").mkdir(parents=True)
            for number in range(4):
                picture = np.zeros((8, 10, 3), np.uint8)
                picture[2, 1] = 255
                Image.fromarray(picture).save(tmp_path / name / "clip" / f"{number}.png")
        assert read(tmp_path).classes == ["left", "nothing", "right", "right away"]
        always, never = clips(tmp_path, flip=1.0), clips(tmp_path)
        assert [never[number].label for number in range(4)] == [0, 1, 2, 3]
        assert [always[number].label for number in range(4)] == [2, 1, 0, 3]
        for number, place in enumerate([[2, 8], [2, 8], [2, 8], [2, 1]]):  # a class without a partner stays
            for frame in always[number].frames[0]:
                assert np.argwhere(frame[..., 0]).tolist() == [place]
        assert np.argwhere(never[0].frames[0, 0, ..., 0]).tolist() == [[2, 1]]

    def test_random_boxes_are_inside_and_of_the_asked_area(self) -> None:
        chance = np.random.default_rng(0)
        for _ in range(200):
            top, left, height, width = random_box((240, 320), (0.3, 0.7), chance)
            assert top >= 0 <= left
            assert top + height <= 1 + 1e-9
            assert left + width <= 1 + 1e-9
            assert height * width <= 0.7 + 1e-9
            assert 3 / 4 - 1e-9 <= width * 320 / (height * 240) <= 4 / 3 + 1e-9

    def test_crops(self, folder: Path) -> None:
        whole = clips(folder, size=16)[0].frames
        np.testing.assert_array_equal(clips(folder, size=16, crop="centre")[0].frames, whole[:, :, :, 4:20])
        item = clips(folder, size=20, crop="random", sampling="random", segments=2)[2]
        assert item.frames.shape == (2, 4, 20, 20, 3)
        grid = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(1, 8, 8, 3)
        np.testing.assert_array_equal(resized(grid, (0.25, 0.5, 0.5, 0.5), 4), grid[:, 2:6, 4:8])


class TestCheck:
    def run(self, *options: object) -> int:
        try:
            train.main(["--check", *map(str, options)])
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    def test_all_fine(self, v1: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run("--data", v1, "--workers", 2) == 0
        printed = capsys.readouterr().out
        assert f"{v1}: 3 clips of 3 classes, 1 clips each; videos in" in printed
        assert "odd: " in printed
        assert "2 of 5 classes have no clip ('Holding something', " in printed
        assert "3 videos can be read, of 9 frames" in printed

    def test_everything_that_is_wrong_is_listed(self, v1: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """In the folder both lists are looked at."""
        with v1.open("a") as file:
            file.write("8;Dancing\n9;Dancing\n")
        (v1.parent / "20bn-something-something-v1" / "24413" / "00003.jpg").write_bytes(b"")
        for each in (v1.parent / "20bn-something-something-v1" / "100218").iterdir():
            each.unlink()
        assert self.run("--data", v1.parent, "--workers", 0) == 1
        printed = capsys.readouterr().out
        root = v1.parent / "20bn-something-something-v1"
        assert "line 4: there is no class 'Dancing' among the 5: " in printed
        assert "as for 2 clips in all" in printed
        assert f"odd: 1 are listed more than once, the first is {root / '7'}" in printed
        assert f"bad: {root / '8'}: does not exist" in printed
        assert f"bad: {root / '100218'}: is a folder without images" in printed
        assert f"odd: {root / '24413'}: 1 of its 9 images are empty (0 bytes)" in printed
        assert "3 of 5 videos cannot be read:\n       2 does not exist\n" in printed
        assert printed.endswith("1 labels are in no list\n")

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("--check",), "--check needs --data"),
            (("--check", "--data", "gone"), "--data gone does not exist"),
            (("--check", "--data", "tests"), "tests holds no class folders with videos"),
        ],
    )
    def test_wrong_use(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        options: tuple[str, ...],
        said: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "tests").mkdir()
        with pytest.raises(SystemExit) as stop:
            train.main(list(options))
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {said}")
        assert error.count("\n") == 1


def test_where_a_row_stands_is_told(v2: Path) -> None:
    assert read(v2).rows[1] == Row("42326.webm", NAMES[2], f"{v2}, entry 2")
