"""Models by name: torchvision's and one's own, what is read of their files, and what is refused in one sentence."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from explain import core, models
from explain.models import TORCHVISION, Classifier, open_model, read_classes
from stabn.video import Clip

OWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 4, 3, stride=2, padding=1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3, 4)))

class FramesFirst(Net):
    def forward(self, x):
        if x.shape[2] != 3:
            raise RuntimeError("three channels are needed")
        return super().forward(x.transpose(1, 2))

def wrapped():
    from explain.models import Classifier, resized
    return Classifier(Net(), ["a", "b", "c"], 5, resized((16, 24)))

def fails():
    raise KeyError("no data")

number = 7
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """own(function, **options) opens a model of the module above, which lies in the current folder."""
    (tmp_path / "ownmodels.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("import a_package_that_is_not_there")
    (tmp_path / "names.txt").write_text("one\n\n two \nthree\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("ownmodels", "broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    def call(function: str, **options: Any) -> Classifier:
        names = {} if "classes" in options else {"classes": tmp_path / "names.txt"}
        return open_model(f"ownmodels:{function}", **{"frames": 4, "size": 16, **names, **options})

    return call


def noise(frames: int, height: int = 48, width: int = 64) -> Clip:
    pixels = np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    return Clip.from_array(pixels, fps=10)


class TestOwn:
    def test_it_is_imported_from_the_current_folder_filled_and_explained(self, own: Any, tmp_path: Path) -> None:
        state = own("Net").module.state_dict()
        state = {name: torch.full_like(value, 0.25) for name, value in state.items()}
        torch.save(state, tmp_path / "weights.pth")
        network = own("Net", weights=tmp_path / "weights.pth")
        assert network.classes == ["one", "two", "three"]
        assert not network.module.training
        assert all((value == 0.25).all() for value in network.module.state_dict().values())
        found = core.explain(network, noise(4), "grad_cam", "two")
        assert (found.target, found.spatial.shape[0]) == (1, 4)
        assert tuple(found.view) == (0, 0, 48, 64)

    @pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state, "epoch": 3}])
    def test_files_of_both_kinds_say_the_same(self, own: Any, tmp_path: Path, wrap: Any) -> None:
        state = own("Net").module.state_dict()
        torch.save(wrap({f"module.{name}": value for name, value in state.items()}), tmp_path / "weights.pth")
        save_file(state, tmp_path / "weights.safetensors")
        for name in ("weights.pth", "weights.safetensors"):
            found = own("Net", weights=tmp_path / name).module.state_dict()
            assert all(torch.equal(found[key], state[key]) for key in state)

    def test_frames_first(self, own: Any) -> None:
        network = own("FramesFirst", layout="NTCHW")
        assert network.logits(torch.zeros(2, 3, 4, 16, 16)).shape == (2, 3)
        with pytest.raises(ValueError, match="in the layout NCTHW: RuntimeError: three channels are needed; --frames"):
            own("FramesFirst")

    def test_it_may_come_with_a_preprocessing_of_its_own(self, own: Any) -> None:
        network = own("wrapped", classes=None, frames=None, size=None)
        assert (network.frames, network.classes) == (5, ["a", "b", "c"])
        assert network.clip(noise(5).frames).shape == (1, 3, 5, 16, 24)
        assert own("wrapped", frames=7, size=None).frames == 7
        with pytest.raises(ValueError, match="its own preprocessing"):
            own("wrapped", size=32)

    @pytest.mark.parametrize(
        ("spec", "said"),
        [
            ("ownmodels", "'ownmodels' is neither torchvision:NAME nor package.module:build"),
            ("nowhere.models:build", "there is no module 'nowhere'"),
            ("broken:build", "broken cannot be imported: it needs 'a_package_that_is_not_there'"),
            ("ownmodels:nothing", "has nothing of this name: nothing"),
            ("ownmodels:number", "is a int: number"),
            ("ownmodels:fails", r"ownmodels:fails\(\) failed: KeyError: 'no data'"),
            ("ownmodels:dict", "has nothing of this name"),
            ("collections:Counter", "must give a torch.nn.Module, but gave a Counter"),
            ("torchvision:r3d_81", "there are r3d_18, mc3_18, r2plus1d_18, s3d, mvit_v2_s, swin3d_t"),
        ],
    )
    def test_what_is_no_model(self, own: Any, spec: str, said: str) -> None:
        with pytest.raises(ValueError, match=said):
            open_model(spec, classes=Path("names.txt"))

    def test_options_that_do_not_fit(self, own: Any, tmp_path: Path) -> None:
        (tmp_path / "two.txt").write_text("one\ntwo\n")
        with pytest.raises(ValueError, match=r"logits of shape \(1, 2\).* but gave \(1, 3\)"):
            own("Net", classes=tmp_path / "two.txt")
        with pytest.raises(ValueError, match="pass them with --classes FILE"):
            own("Net", classes=None)
        with pytest.raises(ValueError, match="`frames` is 0"):
            own("Net", frames=0)
        with pytest.raises(ValueError, match="no layer 'convolution': did you mean 'conv'"):
            own("Net", layer="convolution")
        with pytest.raises(ValueError, match="`device` must be"):
            own("Net", device="abacus")

    def test_weights_that_do_not_fit(self, own: Any, tmp_path: Path) -> None:
        state = own("Net").module.state_dict()
        wrong = {
            "it has no 'conv.weight'": {name: state[name] for name in ("fc.weight", "fc.bias", "conv.bias")},
            "it has 'more', which is not in the network": {**state, "more": torch.ones(1)},
            r"it has 'fc.bias' of shape \(5,\), and the network's is \(3,\)": {**state, "fc.bias": torch.ones(5)},
        }
        for said, content in wrong.items():
            torch.save(content, tmp_path / "weights.pth")
            with pytest.raises(ValueError, match=f"weights.pth does not fit the network: {said}"):
                own("Net", weights=tmp_path / "weights.pth")

    def test_files_that_are_no_weights(self, own: Any, tmp_path: Path) -> None:
        torch.save(nn.Linear(1, 1), tmp_path / "code.pth")
        torch.save({"loss": 0.3}, tmp_path / "log.pth")
        (tmp_path / "text.pth").write_text("weights")
        for name, said in {
            "code.pth": "code in such files is never run",
            "log.pth": "no state dict",
            "text.pth": "no weights that can be read",
            "gone.pth": "No such file",
        }.items():
            with pytest.raises(ValueError, match=said):
                own("Net", weights=tmp_path / name)


class TestClasses:
    @pytest.mark.parametrize(
        "text", ["a b\nc\n", '["a b", "c"]', '{"0": "a b", "1": "c"}', '{"c": 1, "a b": 0}', '\ufeff["a b",\n"c"]']
    )
    def test_ways_to_write_them(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "names").write_text(text, "utf-8")
        assert read_classes(tmp_path / "names") == ["a b", "c"]

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "must hold the names"),
            (b"[1, 2]", "must hold the names"),
            (b"[", "begins like JSON and is none"),
            (b'{"0": "a", "2": "b"}', "indices 0 to 1 to its 2 names"),
            (b"\xff\xfe\x00", "not a text file"),
            (None, "No such file"),
        ],
    )
    def test_what_is_refused(self, tmp_path: Path, content: bytes | None, said: str) -> None:
        if content is not None:
            (tmp_path / "names").write_bytes(content)
        with pytest.raises(ValueError, match=said):
            read_classes(tmp_path / "names")


@pytest.fixture(scope="module")
def mc3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from torchvision.models import get_model

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "mc3_18.pth"
    torch.save(get_model("mc3_18").state_dict(), path)
    return path


class TestTorchvision:
    def test_labels_and_frames(self, mc3: Path) -> None:
        network = open_model("torchvision:mc3_18", weights=mc3, frames=4, size=56)
        assert (len(network.classes), network.classes[5]) == (400, "archery")
        assert network.frames == 4

    def test_names_of_ones_own_change_the_last_layer(self, tmp_path: Path) -> None:
        from torchvision.models import get_model

        torch.save(get_model("mc3_18", num_classes=2).state_dict(), tmp_path / "tuned.pth")
        (tmp_path / "names.txt").write_text("up\ndown")
        options = {"weights": tmp_path / "tuned.pth", "frames": 4, "size": 56}
        assert open_model("torchvision:mc3_18", classes=tmp_path / "names.txt", **options).classes == ["up", "down"]
        with pytest.raises(ValueError, match=r"'fc.weight' of shape \(2, 512\), and the network's is \(400, 512\)"):
            open_model("torchvision:mc3_18", **options)

    def test_a_clip_is_what_its_transforms_make(self, mc3: Path) -> None:
        from torchvision.models import get_model_weights

        network = open_model("torchvision:mc3_18", weights=mc3, frames=2)
        frames = noise(2).frames
        transforms = get_model_weights("mc3_18").DEFAULT.transforms()
        expected = transforms(torch.from_numpy(frames).permute(0, 3, 1, 2))
        torch.testing.assert_close(network.clip(frames)[0], expected)

    @pytest.mark.parametrize("name", TORCHVISION)
    @pytest.mark.parametrize("size", [(96, 128), (90, 160), (160, 90)])
    def test_the_view_is_what_the_crop_leaves(
        self, name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(models, "_fill", lambda *args: None)
        monkeypatch.setattr("torchvision.models.get_model", lambda *args, **options: nn.Identity())
        network = models._torchvision("torchvision", name, None, False, 1, None)
        height, width = size
        y, x = np.mgrid[:height, :width]
        ramp = np.stack([y, x, y], -1).astype(np.uint8)[None]  # each pixel says where it is
        clip = network.preprocess(ramp)[0, :, 0]
        scale = (network.preprocess(np.full_like(ramp, 255)) - network.preprocess(np.zeros_like(ramp)))[0, :, 0, 0, 0]
        seen = (clip - network.preprocess(np.zeros_like(ramp))[0, :, 0]) / scale[:, None, None] * 255 + 0.5
        top, left, tall, wide = network.seen(height, width)
        rows, columns = clip.shape[1:]
        expected_rows = top + (torch.arange(rows) + 0.5) / rows * tall
        expected_columns = left + (torch.arange(columns) + 0.5) / columns * wide
        inside = slice(3, -3)  # at the border of a frame there is nothing to interpolate with
        torch.testing.assert_close(seen[0, :, columns // 2][inside], expected_rows[inside], atol=0.6, rtol=0)
        torch.testing.assert_close(seen[1, rows // 2][inside], expected_columns[inside], atol=0.6, rtol=0)

    def test_downloaded_weights_are_taken(self, mc3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from torchvision.models._api import WeightsEnum

        state = torch.load(mc3, weights_only=True)
        monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, *args, **options: state)
        network = open_model("torchvision:mc3_18", frames=4, size=56)
        assert torch.equal(network.module.state_dict()["fc.bias"], state["fc.bias"])

    def test_without_a_network_one_sentence_says_what_to_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import socket

        from torchvision.models._api import WeightsEnum

        from stabn.foreign import PATIENCE

        def fail(self: Any, *args: Any, **options: Any) -> None:
            assert socket.getdefaulttimeout() == PATIENCE  # a silent server is not waited for for ever
            raise OSError("<urlopen error [Errno -2] Name or service not known>")

        monkeypatch.setattr(WeightsEnum, "get_state_dict", fail)
        before = socket.getdefaulttimeout()
        said = r"torchvision:mc3_18 cannot be downloaded from https://\S+mc3_18\S+pth .*Name or service.*--weights FILE"
        with pytest.raises(ValueError, match=said):
            open_model("torchvision:mc3_18")
        assert socket.getdefaulttimeout() == before

    def test_a_clip_too_short_is_said_to_be(self, tmp_path: Path) -> None:
        from torchvision.models import get_model

        torch.save(get_model("s3d").state_dict(), tmp_path / "s3d.pth")
        with pytest.raises(ValueError, match=r"a clip of 8 x 224 x 224 .* is too small for this network"):
            open_model("torchvision:s3d", weights=tmp_path / "s3d.pth", frames=8)
