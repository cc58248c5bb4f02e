"""What the page does, without a browser: its actions, its sessions, what it offers to other programs."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from conftest import encode, pattern

from app import actions, guard, saved
from app.actions import Job, Model, Sessions, Stopped
from app.reader import read_upload
from explain import METHODS
from explain.models import classifier
from stabn.checkpoint import save
from stabn.model import STABN, Config
from stabn.video import VideoError

CLASSES = ["up", "down", "left", "right", "still", "none"]


def tiny(attention: str = "both") -> STABN:
    torch.manual_seed(0)
    config = Config(
        classes=len(CLASSES), frames=4, size=32, block="basic", layers=(1, 1, 1, 1), width=4, stem=(3, 3, 3),
        pool=False, attention=attention,  # type: ignore[arg-type]
    )  # fmt: skip
    model = STABN(config, CLASSES)
    torch.nn.init.normal_(model.fc.weight, std=1.0)  # answers that differ
    return model.eval()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(encode(tmp_path_factory.mktemp("clip") / "moving block.mp4", pattern(20)))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save(tiny(), path)
    return path


@pytest.fixture
def model(weights: Path) -> Model:
    return Model(weights.name, classifier(tiny()), str(weights))


@pytest.fixture
def session(model: Model, clip: str, tmp_path: Path) -> actions.Session:
    session = actions.prepare(Job(), model, clip, tmp_path)
    actions.look(Job(), session, ["stabn"])
    return session


def changes(session: actions.Session, **more: Any) -> dict[str, Any]:
    """An edit that changes nothing, as the browser would send it, and `more`."""
    from app.player import as_bytes, encoded

    first = session.explanations["stabn"]
    data = {
        "clip": session.id,
        "spatial": encoded(as_bytes(first.spatial, 0, 1)),
        "temporal": json.loads(json.dumps(first.temporal.astype(float).tolist())),
    }
    return {**data, **more}


class TestEdit:
    def test_nothing_changed_is_the_same_answer_to_the_last_bit_of_the_maps(self, session):
        np.testing.assert_allclose(actions.edit(session, changes(session)), session.first.probabilities, atol=1e-6)
        assert session.edited is None
        actions.edit(session, changes(session, invert_temporal=True))
        np.testing.assert_array_equal(session.edited.spatial, session.first.spatial)

    @pytest.mark.parametrize(("spatial", "temporal"), [(True, False), (False, True), (True, True)])
    def test_inverting_is_that_of_the_study(self, session, model, spatial, temporal):
        network = model.network.module
        with torch.inference_mode():
            features = network.extract(network.preprocess(session.clip.frames))
            attention, _ = network.attend(features)
            wanted = network.perceive(features, attention.invert(spatial, temporal))[0].softmax(0).numpy()
        found = actions.edit(session, changes(session, invert_spatial=spatial, invert_temporal=temporal))
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        assert np.abs(found - session.first.probabilities).max() > 1e-4

    def test_only_the_perception_branch_runs(self, session, model, monkeypatch):
        def never(*arguments: Any) -> None:
            raise AssertionError("the backbone ran again")

        monkeypatch.setattr(STABN, "extract", never)
        monkeypatch.setattr(STABN, "attend", never)
        half = actions.edit(session, changes(session, temporal=[0.5] * 4))
        assert half.sum() == pytest.approx(1, abs=1e-5)

    def test_what_is_painted_reaches_the_network(self, session):
        values = np.zeros(session.first.spatial.shape, np.uint8)
        dark = actions.edit(session, changes(session, spatial=base64.b64encode(values.tobytes()).decode()))
        assert session.edited.spatial.max() < 0.5 / 255  # a value that rounds to what was painted is the network's own
        assert np.abs(dark - session.first.probabilities).max() > 1e-4

    def test_it_needs_no_turn_while_a_method_runs(self, session, model):
        with model.lock:
            actions.edit(session, changes(session))

    def test_another_clip_is_refused(self, session):
        with pytest.raises(guard.EditError, match="no longer open"):
            actions.edit(session, changes(session, clip="somebody else's"))

    @pytest.mark.parametrize("attention", ["spatial", "temporal"])
    def test_a_network_with_one_attention(self, clip, tmp_path, attention):
        session = actions.prepare(Job(), Model("one", classifier(tiny(attention))), clip, tmp_path)
        actions.look(Job(), session, ["stabn"])
        inverted = {f"invert_{attention}": True}
        found = actions.edit(session, {**changes(session), **inverted})
        assert np.abs(found - session.first.probabilities).max() > 1e-4

    def test_interpolated_attention_is_shown_and_cannot_be_changed(self, clip, tmp_path):
        short = STABN(Config(classes=3, frames=4, size=32, width=8, backbone="r3d_18"), ["up", "down", "left"]).eval()
        session = actions.prepare(Job(), Model("short", classifier(short)), clip, tmp_path)
        actions.look(Job(), session, ["stabn"])
        assert "1 moment for 4 frames" in " ".join(session.first.notes)
        with pytest.raises(ValueError, match="There is no attention to change here"):
            actions.edit(session, changes(session))

    def test_without_attention_there_is_nothing_to_change(self, clip, tmp_path):
        plain = Model("plain", classifier(tiny("none")))
        assert plain.first == "grad_cam"
        assert "stabn" not in plain.methods
        session = actions.prepare(Job(), plain, clip, tmp_path)
        actions.look(Job(), session, ["grad_cam"])
        with pytest.raises(ValueError, match="no attention to change"):
            actions.edit(session, {"clip": session.id})


class TestLook:
    def test_methods_explain_the_class_asked_about(self, session):
        actions.look(Job(), session, ["stabn", "grad_cam", "random"], "down")
        assert list(session.explanations) == ["stabn", "grad_cam", "random"]
        assert {each.target for each in session.explanations.values()} == {1}

    def test_one_that_cannot_is_told_beside_the_others(self, session):
        actions.look(Job(), session, ["stabn", "cam", "lrp"])
        assert set(session.explanations) | set(session.refused) == {"stabn", "cam", "lrp"}
        assert "stabn" in session.explanations

    @pytest.mark.parametrize("methods", [["no such"], ["stabn", "cam", "grad_cam", "random", "centre"]])
    def test_unknown_and_too_many_are_refused(self, session, methods):
        with pytest.raises(ValueError, match=r"there is no method|side by side"):
            actions.look(Job(), session, methods)

    def test_stopping_ends_a_method_at_its_next_pass_and_leaves_no_hook(self, session, model):
        job = Job()
        passes = []
        handle = model.network.module.register_forward_pre_hook(
            lambda *_: passes.append(len(passes) == 2 and job.stop.set())
        )
        with pytest.raises(Stopped):
            actions.look(job, session, ["rise"])
        handle.remove()
        assert len(passes) <= 4
        assert not model.lock.locked()
        assert all(not each._forward_hooks and not each._forward_pre_hooks for each in model.network.module.modules())
        assert list(session.explanations) == ["stabn"]  # what was on show stays

    def test_a_stopped_job_does_not_wait_for_the_network(self, session, model):
        job = Job()
        with model.lock:
            threading.Timer(0.2, job.stop.set).start()
            with pytest.raises(Stopped):
                actions.look(job, session, ["stabn"])

    def test_stopping_the_reading_leaves_nothing(self, model, clip, tmp_path):
        job = Job()
        job.stop.set()
        with pytest.raises(Stopped):
            actions.prepare(job, model, clip, tmp_path)
        assert not list(tmp_path.iterdir())

    def test_a_clip_that_is_gone_is_a_sentence(self, model, tmp_path):
        with pytest.raises(VideoError, match=r"^gone.mp4: is not there any more"):
            actions.prepare(Job(), model, str(tmp_path / "gone.mp4"), tmp_path, {"": None})
        assert not list(tmp_path.iterdir())

    def test_the_frames_are_those_that_the_network_takes(self, clip, tmp_path):
        config = Config(len(CLASSES), 4, 32, "basic", (1, 1, 1, 1), width=4, variant="published")
        network = classifier(STABN(config, CLASSES).eval())
        session = actions.prepare(Job(), Model("published", network), clip, tmp_path)
        assert session.clip.frame_indices.tolist() == [8, 9, 10, 11]
        np.testing.assert_array_equal(session.clip.frames, network.read(clip).frames)

    def test_the_page_has_a_short_clip_in_the_order_of_time(self, make_video, tmp_path):
        from app.player import shown

        config = Config(len(CLASSES), 4, 32, "basic", (1, 1, 1, 1), width=4, variant="published")
        network = classifier(STABN(config, CLASSES).eval())
        path = str(make_video("short.mp4", pattern(3)))
        session = actions.prepare(Job(), Model("published", network), path, tmp_path)
        actions.look(Job(), session, ["stabn"])
        first, page = session.first, shown(session)
        assert first.frame_indices.tolist() == [0, 1, 2, 0]
        assert first.temporal[0] != first.temporal[3]
        assert page.facts["times"] == [0, 0, 0.04, 0.08]
        order = [0, 3, 1, 2]
        (panel,) = page.panels
        assert panel["temporal"] == first.temporal[order].tolist()
        given = {"clip": session.id, "spatial": panel["spatial"], "temporal": panel["temporal"]}
        actions.edit(session, given)
        assert session.edited is None  # what is as it was shown is as it was
        actions.edit(session, {**given, "temporal": [1, 0.25, *panel["temporal"][2:]]})
        assert session.edited.temporal.tolist() == [1, *first.temporal[1:3].tolist(), 0.25]
        np.testing.assert_array_equal(session.edited.spatial, first.spatial)

    def test_frames_that_are_asked_for_by_index(self, clip, tmp_path):
        assert read_upload(clip, [3, 1, 7], 32, folder=tmp_path).clip.frame_indices.tolist() == [3, 1, 7]
        assert read_upload(clip, [3, 20], 32, folder=tmp_path).clip.frame_indices.tolist() == [5, 15]

    def test_scores_stand_beside_chance(self, session):
        actions.look(Job(), session, ["stabn", "random"])
        note = actions.score(Job(), session)
        assert set(session.scores) == (
            set() if note else {("stabn", session.first.target), ("random", session.first.target)}
        )
        for score in session.scores.values():
            assert 0 <= score.deletion <= 1
            assert 0 <= score.random_insertion <= 1


class TestSessions:
    def test_nobody_gets_what_is_not_theirs(self, session):
        sessions = Sessions()
        sessions.put("a", session)
        assert sessions.get("a") is session
        assert sessions.get("b") is None

    def test_they_are_let_go_with_their_files(self, session):
        sessions = Sessions(life=0.0)
        sessions.put("a", session)
        time.sleep(0.01)
        sessions.sweep()
        assert len(sessions) == 0
        assert not session.folder.exists()

    def test_a_closed_page_stops_its_work(self, session):
        sessions = Sessions()
        sessions.put("a", session)
        job = sessions.job("a")
        sessions.drop("a")
        assert job.stop.is_set()
        assert sessions.get("a") is None

    def test_the_oldest_goes_when_there_are_too_many(self, model, clip, tmp_path):
        sessions, made = Sessions(most=2), []
        for key in "abc":
            made.append(actions.prepare(Job(), model, clip, tmp_path))
            sessions.put(key, made[-1])
        assert [sessions.get(key) for key in "abc"] == [None, *made[1:]]

    def test_a_new_job_stops_the_last_one(self):
        sessions = Sessions()
        first, second = sessions.job("a"), sessions.job("a")
        assert first.stop.is_set()
        assert not second.stop.is_set()
        sessions.done("a", first)
        assert sessions.stop("a")


class TestKnownEvidence:
    def test_an_upload_of_an_example_is_recognised(self, model, tmp_path):
        made = actions.generated(tmp_path)
        known = {actions.digest(example.path): example for example in made}
        copy = tmp_path / "my upload.mp4"
        copy.write_bytes(made[0].path.read_bytes())
        session = actions.prepare(Job(), model, str(copy), tmp_path, known)
        assert session.example == made[0].key
        assert session.evidence is not None
        assert session.evidence.mask.shape == (4, *session.clip.source_size)
        actions.look(Job(), session, ["stabn"])
        assert actions.evidence_scores(session, session.first)["energy"] > 0

    def test_other_clips_have_none(self, session):
        assert session.evidence is None
        assert actions.evidence_scores(session, session.first) == {}


@pytest.fixture(scope="module")
def taken(weights: Path, clip: str, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What a session of two methods is taken away as."""
    folder = tmp_path_factory.mktemp("saved")
    session = actions.prepare(Job(), Model("tiny", classifier(tiny()), str(weights)), clip, folder)
    actions.look(Job(), session, ["stabn", "grad_cam"])
    actions.edit(session, changes(session, invert_temporal=True))
    return saved.export(Job(), session)


class TestTakeAway:
    def test_the_files_are_those_of_the_command(self, taken):
        names = {path.name for path in taken}
        assert {"moving_block.zip", "overlay.mp4", "figure.png", "manifest.json", "what_if.npz"} <= names
        assert {"stabn-explanation.npz", "grad_cam-explanation.npz"} <= names
        with zipfile.ZipFile(taken[0]) as archive:
            manifest = json.loads(archive.read("moving_block/manifest.json"))
            assert "moving_block/clip/moving_block.mp4" in archive.namelist()
        assert manifest["video"]["path"] == "clip/moving_block.mp4"  # not where this server keeps its uploads
        assert manifest["checkpoint"]["name"] == "tiny"
        assert list(manifest["methods"]) == ["stabn", "grad_cam"]

    def test_no_file_tells_where_things_lie_on_this_machine(self, taken, weights, clip, tmp_path):
        files = [path for path in taken if path.suffix != ".zip"]
        with zipfile.ZipFile(taken[0]) as archive:
            archive.extractall(tmp_path)
        files += [path for path in tmp_path.rglob("*") if path.is_file()]
        assert len(files) > 20
        for path in files:
            content = path.read_bytes()
            for folder in (weights.parent, Path(clip).parent, taken[0].parent, Path.home()):
                assert str(folder).encode() not in content, path.name
            if path.suffix in (".json", ".csv"):
                assert not re.search(r'"(/|[A-Z]:\\)', content.decode()), path.name
            if path.suffix == ".npz":
                with np.load(path) as arrays:
                    texts = [text for each in arrays.values() if each.dtype.kind == "U" for text in each.flat]
                assert not any(Path(text).is_absolute() for text in texts)
        again = saved.open_result(Job(), str(taken[0]), tmp_path)
        assert again.notes[0] == "a saved result of moving_block.mp4, by tiny"

    def test_a_path_in_an_older_result_is_not_told(self, taken, tmp_path):
        def change(name: str, content: bytes) -> bytes:
            return content.replace(b'"name": "tiny"', b'"name": "/a/server/tiny.safetensors"')

        again = saved.open_result(Job(), str(changed(taken[0], tmp_path / "old.zip", change)), tmp_path)
        assert again.notes[0].endswith("by tiny.safetensors")

    def test_the_edit_is_taken_away_with_its_answer(self, session, taken):
        new = actions.edit(session, changes(session, invert_temporal=True))
        with np.load(next(path for path in taken if path.name == "what_if.npz")) as arrays:
            assert set(arrays) == {"spatial", "temporal", "probabilities"}
            np.testing.assert_allclose(arrays["probabilities"], new, atol=1e-5)

    def test_the_command_runs_where_the_page_does(self, session, monkeypatch):
        asked = []

        def apart(function: str, arguments: dict[str, Any], limits: Any, **options: Any) -> None:
            asked.append((arguments["arguments"], limits.memory))
            raise ValueError(f"{session.network.weights} is seen")

        monkeypatch.setattr(saved, "apart", apart)
        for device in ("cpu", "meta"):
            session.model = Model("tiny", classifier(tiny().to(device)), session.network.weights)
            with pytest.raises(ValueError, match=r"^tiny is seen"):  # a sentence that names no folder either
                saved.export(Job(), session)
        assert not list(session.folder.glob("result-*"))
        (on_cpu, bound), (elsewhere, free) = asked
        assert on_cpu[on_cpu.index("--device") + 1] == "cpu"
        assert elsewhere[elsewhere.index("--device") + 1] == "meta"
        assert (bound, free) == (saved.EXPORT.memory, None)

    def test_clips_of_any_name_one_set_of_files_at_a_time(self, model, clip, tmp_path):
        path = tmp_path / "overlay.mp4"
        path.write_bytes(Path(clip).read_bytes())
        session = actions.prepare(Job(), model, str(path), tmp_path)
        actions.look(Job(), session, ["grad_cam"])
        for session.name in ("overlay.mp4", "clip"):  # what stabn-explain makes, and a name without suffix
            whole = saved.export(Job(), session)[0]
            assert [each.name for each in session.folder.glob("result-*")] == [whole.parent.name]
            again = saved.open_result(Job(), str(whole), tmp_path)
            assert (again.heat_in_video, again.name) == (False, session.name)
            assert Path(again.path).read_bytes() == path.read_bytes()

        job = Job()
        job.stop.set()
        with pytest.raises(Stopped):
            saved.export(job, session)
        assert not list(session.folder.glob("result-*"))

    def test_folders_zipped_by_hand_and_zips_with_the_clip_on_top_open(self, taken, tmp_path):
        top = changed(taken[0], tmp_path / "top.zip", name=lambda name: name.replace("clip/", ""))
        assert not saved.open_result(Job(), str(top), tmp_path).heat_in_video
        flat = changed(
            taken[0], tmp_path / "flat.zip", name=lambda name: name.split("/", 1)[1] if "clip/" not in name else ""
        )
        again = saved.open_result(Job(), str(flat), tmp_path)
        assert again.heat_in_video
        assert list(again.explanations) == ["stabn", "grad_cam"]

    def test_the_frames_are_those_that_were_looked_at(self, taken, tmp_path):
        def change(name: str, content: bytes) -> bytes:
            odd = {"frame_indices": np.array([1, 3, 5, 19])}
            return _with(content, odd, tmp_path) if name.endswith("explanation.npz") else content

        again = saved.open_result(Job(), str(changed(taken[0], tmp_path / "odd.zip", change)), tmp_path)
        assert again.clip.frame_indices.tolist() == [1, 3, 5, 19]
        assert again.first.frame_indices.tolist() == [1, 3, 5, 19]

    def test_they_open_again_as_they_were(self, taken, session, tmp_path):
        actions.look(Job(), session, ["stabn", "grad_cam"])
        again = saved.open_result(Job(), str(taken[0]), tmp_path)
        assert again.model is None
        assert not again.heat_in_video
        for method, before in session.explanations.items():
            after = again.explanations[method]
            np.testing.assert_allclose(after.spatial, before.spatial, atol=1e-5)
            np.testing.assert_allclose(after.probabilities, before.probabilities, atol=1e-5)
            assert (after.scale, after.target, after.view) == (before.scale, before.target, before.view)
        with pytest.raises(ValueError, match="saved result"):
            actions.edit(again, {"clip": again.id})

    def test_without_its_clip_the_overlay_is_shown(self, taken, tmp_path):
        smaller = tmp_path / "smaller.zip"
        with zipfile.ZipFile(taken[0]) as old, zipfile.ZipFile(smaller, "w") as new:
            for name in old.namelist():
                if not name.endswith("moving_block.mp4"):
                    new.writestr(name, old.read(name))
        again = saved.open_result(Job(), str(smaller), tmp_path)
        assert again.heat_in_video
        assert Path(again.playable).name == "overlay.mp4"

    @pytest.mark.parametrize("what", ["no zip", "another zip", "a pickle", "other shapes"])
    def test_what_is_no_result_is_refused_and_leaves_nothing(self, taken, tmp_path, what):
        def change(name: str, content: bytes) -> bytes | None:
            if what == "another zip" and name.endswith("manifest.json"):
                return None
            if name.endswith("explanation.npz") and what in ("a pickle", "other shapes"):
                bad = {"spatial": np.array([print], object)} if what == "a pickle" else {"spatial": np.ones(3)}
                return _with(content, bad, tmp_path)
            return content

        path = changed(taken[0], tmp_path / "result.zip", change)
        if what == "no zip":
            path.write_bytes(b"no zip")
        refused(path, tmp_path)

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (r".*", b'{"methods": {"stabn": 3}}'),
            (r".*", b"[" * 100_000),
            (r'"top": [\d.]+', b'"top": "abc"'),
            (r'"high": [\d.]+', b'"high": 1e999'),
            (r'"methods": {', b'"methods": {' + b"".join(b'"%d": {}, ' % number for number in range(100))),
            (r"$", b" " * 1_000_001),
        ],
        ids=["wrong", "deep", "no number", "infinite", "many methods", "long"],
    )
    def test_a_manifest_is_not_believed(self, taken, tmp_path, old, new):
        def change(name: str, content: bytes) -> bytes:
            return (
                re.sub(old.encode(), new, content, count=1, flags=re.S) if name.endswith("manifest.json") else content
            )

        refused(changed(taken[0], tmp_path / "result.zip", change, pack=zipfile.ZIP_DEFLATED), tmp_path)

    @pytest.mark.parametrize("what", ["bzip2", "lzma", "password", "lying size", "damaged"])
    def test_nor_is_a_zip(self, taken, tmp_path, what):
        pack = {"bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}.get(what, zipfile.ZIP_DEFLATED)
        path = changed(taken[0], tmp_path / "result.zip", pack=pack)
        with zipfile.ZipFile(path) as archive:
            local = archive.getinfo("moving_block/manifest.json").header_offset
        content = bytearray(path.read_bytes())
        central = content.rindex(b"moving_block/manifest.json") - 46
        assert content[local : local + 4] == b"PK\3\4"
        assert content[central : central + 4] == b"PK\1\2"
        if what == "password":
            content[local + 6] |= 1
            content[central + 8] |= 1
        if what == "lying size":
            content[central + 24 : central + 28] = (10).to_bytes(4, "little")
        if what == "damaged":
            content[local + 60 : local + 80] = bytes(20)
        path.write_bytes(content)
        refused(path, tmp_path)

    def test_all_methods_are_more_than_stand_side_by_side(self, taken, tmp_path):
        def change(name: str, content: bytes) -> bytes:
            if not name.endswith("manifest.json"):
                return content
            manifest = json.loads(content)
            manifest["methods"] = dict.fromkeys(METHODS, manifest["methods"]["stabn"])
            return json.dumps(manifest).encode()

        path = changed(taken[0], tmp_path / "all.zip", change)
        with zipfile.ZipFile(path, "a") as archive:
            packed = archive.read("moving_block/stabn/explanation.npz")
            for method in METHODS:
                if method not in ("stabn", "grad_cam"):
                    archive.writestr(f"moving_block/{method}/explanation.npz", packed)
        again = saved.open_result(Job(), str(path), tmp_path)
        assert list(again.explanations) == list(METHODS)[: actions.SIDE_BY_SIDE]
        assert f"{len(METHODS) - 4} more methods are in the zip: the first 4 are shown" in again.notes

    @pytest.mark.parametrize("inside", ["the clip", "an array"])
    def test_a_bomb_is_not_unpacked(self, taken, tmp_path, monkeypatch, inside):
        monkeypatch.setattr(saved, "UNPACKED", 2_000_000)

        def change(name: str, content: bytes) -> bytes:
            if name.endswith("moving_block.mp4") and inside == "the clip":
                return bytes(3_000_000)
            if name.endswith("explanation.npz") and inside == "an array":
                bomb = io.BytesIO()
                np.savez_compressed(bomb, spatial=np.zeros(3_000_000, np.uint8))
                return bomb.getvalue()
            return content

        path = changed(taken[0], tmp_path / "result.zip", change, pack=zipfile.ZIP_DEFLATED)
        assert path.stat().st_size < 1_000_000
        refused(path, tmp_path, "more than 2 MB")


def changed(
    whole: Path,
    path: Path,
    change: Callable[[str, bytes], bytes | None] = lambda name, content: content,
    name: Callable[[str], str] = str,
    pack: int = zipfile.ZIP_STORED,
) -> Path:
    """A zip with other contents (None: without the file), other names or packed in another way, at `path`."""
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w", pack) as new:
        for inner in old.namelist():
            content = change(inner, old.read(inner))
            if content is not None and name(inner):
                new.writestr(name(inner), content)
    return path


def refused(path: Path, folder: Path, sentence: str = "no result of stabn-explain") -> None:
    root = folder / "root"
    root.mkdir()
    with pytest.raises(ValueError, match=sentence):
        saved.open_result(Job(), str(path), root)
    assert not list(root.iterdir())


def _with(packed: bytes, changed: Mapping[str, Any], folder: Path) -> bytes:
    path = folder / "changed.npz"
    path.write_bytes(packed)
    with np.load(path) as old:
        arrays = dict(old)
    np.savez(path, **{**arrays, **changed})
    return path.read_bytes()


class TestShown:
    def test_the_bytes_are_the_maps(self, session):
        from app.player import shown

        panel = shown(session).panels[0]
        values = np.frombuffer(base64.b64decode(panel["spatial"]), np.uint8).reshape(session.first.spatial.shape)
        np.testing.assert_allclose(values / 255, session.first.spatial, atol=0.5 / 255 + 1e-6)
        assert np.array_equal(np.array(panel["temporal"], np.float32), session.first.temporal)

    def test_old_and_new_stand_beside_each_other_and_a_new_best_class_is_among_them(self, session):
        from app.player import rows

        new = np.zeros(len(CLASSES), np.float32)
        last = int(session.first.probabilities.argmin())
        new[last] = 1
        found = {row["index"]: row for row in rows(session, new)}
        assert found[last]["new"] == 1
        assert found[int(session.first.probabilities.argmax())]["old"] == pytest.approx(
            session.first.probabilities.max()
        )

    def test_what_must_be_known_is_said(self, session):
        from app.player import notes

        told = " ".join(note["text"] for note in notes(session))
        assert f"knows {len(CLASSES)} motions" in told
        if session.first.probabilities.max() < 0.5:
            assert "not sure" in told


class TestPage:
    def test_a_wrong_command_line_is_one_sentence(self, capsys):
        from app.page import main

        assert main(["--auth", "nobody"]) == 2
        assert capsys.readouterr().err == "error: --auth needs a name and a password, USER:PASSWORD\n"

    def test_the_options_reach_the_server_and_the_default_is_this_machine_only(self, weights, monkeypatch):
        import gradio

        from app.page import main

        given: dict[str, Any] = {}
        monkeypatch.setattr(gradio.Blocks, "launch", lambda self, **options: given.update(options))
        assert main(["--checkpoint", str(weights), "--device", "cpu"]) == 0
        assert (given["server_name"], given["server_port"]) == ("127.0.0.1", None)
        assert (given["share"], given["auth"]) == (False, None)
        opened = ["--host", "0.0.0.0", "--port", "7999", "--share", "--auth", "me:a:secret"]
        assert main(["--checkpoint", str(weights), "--device", "cpu", *opened]) == 0
        assert (given["server_name"], given["server_port"]) == ("0.0.0.0", 7999)
        assert (given["share"], given["auth"]) == (True, ("me", "a:secret"))

    def test_a_password_is_asked_for(self, weights):
        guard.prepare()
        from app.layout import LOOK, build

        demo = build([str(weights)], "cpu")
        options = guard.launch_arguments(actions.LIMITS, auth=("me", "secret"))
        demo.launch(prevent_thread_lock=True, quiet=True, **options, **LOOK)
        try:
            assert httpx.get(demo.local_url + "config").status_code == 401
            assert httpx.post(demo.local_url + "login", data={"username": "me", "password": "no"}).status_code == 400
            with httpx.Client(base_url=demo.local_url) as client:
                client.post("login", data={"username": "me", "password": "secret"}).raise_for_status()
                assert client.get("config").status_code == 200
        finally:
            demo.close()

    def test_the_menu_is_closed(self, weights):
        models = actions.Models({"tiny": str(weights)})
        assert models["tiny"].stabn is not None
        for other in ("/etc/passwd", str(weights)):
            with pytest.raises(ValueError, match="no model"):
                models[other]

    def test_the_menu_does_not_tell_in_which_folder_a_network_lies(self, weights, tmp_path):
        other = tmp_path / weights.name
        other.write_bytes(b"no weights")
        found = actions.menu([str(weights), f"{tmp_path}//{weights.name}", str(other)])
        assert list(found.items())[:2] == [("tiny.safetensors", str(weights)), ("tiny.safetensors (2)", str(other))]
        with pytest.raises(ValueError, match=r"^tiny\.safetensors \(2\)") as refused:
            actions.Models(found, "cpu")["tiny.safetensors (2)"]
        assert str(tmp_path) not in str(refused.value)

    def test_there_is_one_endpoint_and_it_explains(self, served, clip):
        from gradio_client import Client, handle_file

        client = Client(served, verbose=False)
        assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/explain"]
        found = client.predict(handle_file(clip), api_name="/explain")
        assert len(found["temporal"]) == len(found["seconds"]) == 4
        assert np.array(found["spatial"]).shape == (4, 4, 4)
        assert found["top5"][0]["class"] in CLASSES
        with pytest.raises(Exception, match="no method 'magic'"):
            client.predict(handle_file(clip), method="magic", api_name="/explain")


@pytest.fixture(scope="module")
def served(weights: Path) -> Iterator[str]:
    guard.prepare()
    from app.layout import LOOK, build

    demo = build([str(weights)], "cpu")
    demo.launch(prevent_thread_lock=True, quiet=True, **guard.launch_arguments(actions.LIMITS), **LOOK)
    yield demo.local_url
    demo.close()
