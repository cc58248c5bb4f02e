"""The released weights: what must come out is written here once more, plainly, from their names and shapes alone."""

import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import encode, pattern

import stabn
from explain import explain
from explain.labelled import Videos
from explain.models import classifier
from stabn import read_clip
from stabn.checkpoint import CheckpointError, weights_hash
from stabn.model import DEPTHS, Config, loss

FACTS = Path(__file__).parents[2] / "shared" / "published_checkpoint"
needs_facts = pytest.mark.skipif(not FACTS.is_dir(), reason="the golden outputs are not part of the project")

# ------------------------------------------------------------------------------ a file as it is released


def shapes(depth: int, width: int, classes: int, frames: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of a released network; batch norms by their name alone, with their number of channels."""
    block, counts = DEPTHS[depth]
    wide = 4 if block == "bottleneck" else 1
    found: dict[str, tuple[int, ...]] = {"conv1": (width, 3, 1, 7, 7), "bn1": (width,)}

    def stage(name: str, inputs: int, level: int) -> int:
        planes = width * 2 ** (level - 1)
        for k in range(counts[level - 1]):
            at = f"{name}.{k}"
            if wide == 4:
                found[f"{at}.conv1"] = (planes, inputs, 3 if level > 2 else 1, 1, 1)
                found[f"{at}.conv2"] = (planes, planes, 1, 3, 3)
                found[f"{at}.conv3"] = (4 * planes, planes, 1, 1, 1)
            else:
                found[f"{at}.conv1"] = (planes, inputs, 3, 3, 3)
                found[f"{at}.conv2"] = (planes, planes, 3, 3, 3)
            for n in range(1, 4 if wide == 4 else 3):
                found[f"{at}.bn{n}"] = found[f"{at}.conv{n}"][:1]
            if k == 0 and (level > 1 or wide == 4):
                found[f"{at}.downsample.0"] = (planes * wide, inputs, 1, 1, 1)
                found[f"{at}.downsample.1"] = (planes * wide,)
            inputs = planes * wide
        return inputs

    channels = width
    for level in (1, 2, 3):
        channels = stage(f"layer{level}", channels, level)
    last = stage("layer4", channels, 4)
    stage("layer_att_common", channels, 4)
    found |= {
        "fc": (classes, last),
        "conv_att_common.0": (last,),
        "conv_att_common.1": (classes, last, 1, 1, 1),
        "conv_att_common.2": (classes,),
        "conv_att_out.0": (classes, classes, 1, 1, 1),
        "fc_att_out": (classes, classes * frames),
        "conv_spatial_att.0": (1, classes, 1, 1, 1),
        "conv_spatial_att.1": (1,),
        "conv_temp_att1.0": (1, classes, 3, 3, 3),
        "conv_temp_att1.1": (1,),
        "conv_temp_att2.0": (frames, frames, 1, 1),
        "conv_temp_att3.0": (frames, frames),
        "conv_temp_att3.2": (frames, frames),
        "conv_att_mechanism.0": (channels, 2 * channels, 1, 1, 1),
        "conv_att_mechanism.1": (channels,),
    }
    every: dict[str, tuple[int, ...]] = {}
    for name, shape in found.items():
        every[f"{name}.weight"] = shape
        if len(shape) < 3:  # linear layers and batch norms
            every[f"{name}.bias"] = shape[:1]
        if len(shape) == 1:
            every |= {f"{name}.running_mean": shape, f"{name}.running_var": shape, f"{name}.num_batches_tracked": ()}
    return every


def released(depth: int = 18, width: int = 4, classes: int = 5, frames: int = 4) -> dict[str, torch.Tensor]:
    """A released state dict with values that do something everywhere."""
    chance, state = torch.Generator().manual_seed(depth), {}
    for name, shape in shapes(depth, width, classes, frames).items():
        noise = torch.randn(shape, generator=chance)
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            state[name] = 1 + 0.2 * noise.abs()
        elif len(shape) == 1:
            state[name] = 0.2 * noise
        else:
            state[name] = noise / np.prod(shape[1:]) ** 0.5
    return state


def write(path: Path, state: dict[str, torch.Tensor], **more: object) -> Path:
    """As a data-parallel training leaves it behind."""
    named = {f"module.{name}": tensor for name, tensor in state.items()}
    extra = {"epoch": 3, "iteration": 40, "optimizer_state_dict": {"lr": 0.1}, "scheduler_state_dict": {"best": 1.0}}
    torch.save({"model_state_dict": named, **extra, **more}, path)
    return path


def small(path: Path, size: int = 32) -> stabn.STABN:
    """The network of a file, for small frames: no tensor depends on their size."""
    model = stabn.load(path)
    model.config = replace(model.config, size=size)
    return model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint-best.pt"


# ------------------------------------------------------------------------------ what it computes


def released_forward(s: dict[str, torch.Tensor], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Clips (N, 3 in BGR, T, S, S) -> logits, the attention branch's logits, M_s, M_t."""

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        mean, var, weight, bias = (s[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, weight, bias)

    def conv(name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight = s[f"{name}.weight"]
        return F.conv3d(x, weight, None, (1, stride, stride), [side // 2 for side in weight.shape[2:]])

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, s[f"{name}.weight"], s[f"{name}.bias"])

    def stage(name: str, x: torch.Tensor, stride: int) -> torch.Tensor:
        k = 0
        while f"{name}.{k}.conv1.weight" in s:
            at, step, y = f"{name}.{k}", stride if k == 0 else 1, x
            if f"{at}.conv3.weight" in s:
                y = F.relu(norm(f"{at}.bn1", conv(f"{at}.conv1", y)))
                y = F.relu(norm(f"{at}.bn2", conv(f"{at}.conv2", y, step)))
                y = norm(f"{at}.bn3", conv(f"{at}.conv3", y))
            else:
                y = F.relu(norm(f"{at}.bn1", conv(f"{at}.conv1", y, step)))
                y = norm(f"{at}.bn2", conv(f"{at}.conv2", y))
            if f"{at}.downsample.0.weight" in s:
                x = norm(f"{at}.downsample.1", conv(f"{at}.downsample.0", x, step))
            x, k = F.relu(x + y), k + 1
        return x

    x = F.relu(norm("bn1", conv("conv1", x, 2)))
    x = F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
    x = stage("layer3", stage("layer2", stage("layer1", x, 1), 2), 2)
    maps = norm("conv_att_common.0", stage("layer_att_common", x, 1))
    maps = F.relu(norm("conv_att_common.2", conv("conv_att_common.1", maps)))  # (N, K, T, h, w)
    scores = conv("conv_att_out.0", maps).mean(4).mean(3)  # (N, K, T)
    scores = linear("fc_att_out", scores.reshape(len(x), -1))
    spatial = torch.sigmoid(norm("conv_spatial_att.1", conv("conv_spatial_att.0", maps)))
    frames = F.relu(norm("conv_temp_att1.1", conv("conv_temp_att1.0", maps)))[:, 0]  # (N, T, h, w)
    frames = F.relu(F.conv2d(frames, s["conv_temp_att2.0.weight"])).mean((2, 3))
    frames = torch.sigmoid(linear("conv_temp_att3.2", F.relu(linear("conv_temp_att3.0", frames))))
    temporal = frames[:, None, :, None, None]
    x = norm("conv_att_mechanism.1", conv("conv_att_mechanism.0", torch.cat([x * (1 + spatial), x * temporal], 1)))
    return linear("fc", stage("layer4", x, 2).mean((2, 3, 4))), scores, spatial, temporal


@pytest.mark.parametrize(("depth", "frames"), [(18, 4), (34, 3), (50, 8), (101, 4)])
def test_the_network_computes_what_the_released_one_does(path: Path, depth: int, frames: int) -> None:
    state = released(depth, frames=frames)
    model = small(write(path, state))
    block, layers = DEPTHS[depth]
    wanted = Config(5, frames, 32, block, layers, width=4, variant="published")  # type: ignore[arg-type]
    assert model.config == wanted
    clips = torch.randn(2, 3, frames, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output, expected = model(clips), released_forward(state, clips)
        found = (output.logits, output.attention_logits, *output.attention)
        for each, other in zip(found, expected, strict=True):
            torch.testing.assert_close(each, other, rtol=1e-4, atol=1e-5)
        assert min(each.std() for each in expected) > 0.01  # nothing was tested on zeros
        inverse = output.attention.invert(temporal=True)
        assert not torch.allclose(model.perceive(model.extract(clips), inverse), output.logits, atol=1e-3)


@needs_facts
@pytest.mark.parametrize("depth", [18, 50])
def test_golden_outputs(path: Path, depth: int) -> None:
    spec = importlib.util.spec_from_file_location("fill", FACTS / "fill.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    known = json.loads((FACTS / "state_dict_shapes.json").read_text())[f"abn_resnet{depth}"]
    assert {name: tuple(shape) for name, shape in known.items()} == shapes(depth, 64, 174, 8)
    model = small(write(path, {name: torch.from_numpy(each) for name, each in fill.fill(known).items()}), 64)
    with torch.inference_mode():
        output = model(torch.from_numpy(fill.clip(8, 64)))
    golden = np.load(FACTS / f"abn_resnet{depth}_t8_s64.npz")
    found = (output.logits, output.attention_logits, *output.attention)
    for name, each in zip(("perception", "attention", "spatial", "temporal"), found, strict=True):
        np.testing.assert_allclose(each.numpy(), golden[name], rtol=0, atol=1e-4)


def test_clips_are_normalised_bgr(path: Path) -> None:
    model = small(write(path, released()))
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    bgr = (frames[..., ::-1] - np.array([103.53, 116.28, 123.675])) / np.array([57.375, 57.12, 58.395])
    np.testing.assert_allclose(model.preprocess(frames)[0].permute(1, 2, 3, 0).numpy(), bgr, atol=1e-5)


def test_its_class_scores_are_trained_too(path: Path) -> None:
    model = small(write(path, released())).train()
    loss(model(torch.randn(2, 3, 4, 32, 32)), torch.tensor([0, 1])).total.backward()
    head = (model.attention.scores.weight, *model.attention.gather.parameters())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head)


# ------------------------------------------------------------------------------ what it looks at


@pytest.mark.parametrize(
    ("frames", "window", "indices", "notes"),
    [
        (4, None, [4, 5, 6, 7], ["looked at 4 frames in a row only, 0.16 to 0.28 s"]),
        (5, None, [3, 4, 5, 6, 7], ["looked at 5 frames in a row only, 0.12 to 0.28 s"]),
        (12, None, list(range(12)), []),
        (15, None, [*range(12), 0, 0, 0], ["the video has fewer than 15 frames: its first is repeated"]),
        (2, (0.2, 0.4), [6, 7], ["looked at 2 frames in a row only, in the middle of each window"]),
        (4, (0.4, 9.0), [10, 11, 10, 10], ["a window has fewer than 4 frames: its first is repeated"]),
        ([3, 1], None, [3, 1], []),
    ],
)
def test_consecutive_frames_from_the_middle(make_video, frames, window, indices, notes) -> None:
    file = make_video("twelve.mp4")  # at 25 frames/s
    clip = read_clip(file, frames, window=window, sampling="middle")
    assert clip.frame_indices.tolist() == indices
    assert list(clip.notes) == notes
    assert np.array_equal(clip.frames, read_clip(file, indices).frames)
    np.testing.assert_allclose(clip.timestamps, np.array(indices) / 25, atol=1e-4)


def test_a_wrong_sampling_is_refused(make_video) -> None:
    with pytest.raises(ValueError, match="`sampling` is 'dense', it must be spread or middle"):
        read_clip(make_video("a.mp4"), 4, sampling="dense")  # type: ignore[arg-type]


def test_the_network_is_given_these_frames_everywhere(path: Path, tmp_path: Path) -> None:
    network = classifier(small(write(path, released())))
    (tmp_path / "data" / "class 3").mkdir(parents=True)
    file = encode(tmp_path / "data" / "class 3" / "a.mp4", pattern(12))
    clip = network.read(file)
    assert clip.frame_indices.tolist() == [4, 5, 6, 7]
    spread = explain(network, read_clip(file, 4), "centre")
    assert [note for note in spread.notes if note not in explain(network, clip, "centre").notes] == [
        "this network takes consecutive frames, and these are spread: read them with sampling='middle'"
    ]
    for segments, indices in ((1, [[4, 5, 6, 7]]), (2, [[1, 2, 3, 4], [7, 8, 9, 10]])):
        item = Videos(network, tmp_path / "data", None, segments)[0]
        assert item.label == 3
        assert np.array_equal(item.frames, [read_clip(file, each, size=32).frames for each in indices])


# ------------------------------------------------------------------------------ from file to file


@pytest.mark.parametrize("prefix", ["module.", ""])
@pytest.mark.parametrize("bare", [True, False])
def test_every_form_of_the_file_is_the_same_network(path: Path, tmp_path: Path, prefix: str, bare: bool) -> None:
    expected = weights_hash(write(path, released()))
    state = {f"{prefix}{name}": tensor for name, tensor in released().items()}
    torch.save(state if bare else {"model_state_dict": state}, tmp_path / "other.pt")
    assert weights_hash(tmp_path / "other.pt") == expected == weights_hash(stabn.load(tmp_path / "other.pt"))


@pytest.mark.parametrize("score", [61.5, np.float64(61.5), np.float32(61.5), torch.tensor(61.5)])
def test_saved_it_is_a_file_of_ours(path: Path, tmp_path: Path, score: object) -> None:
    model = stabn.load(write(path, released(), best_score=score))
    assert model.config.size == 224
    assert model.metadata["best_score"] == 61.5
    assert (model.metadata["epoch"], model.metadata["iteration"]) == (3, 40)
    stabn.save(model, tmp_path / "ours.safetensors")
    loaded = stabn.load(tmp_path / "ours.safetensors")
    assert (loaded.config, loaded.classes, loaded.metadata) == (model.config, model.classes, model.metadata)
    assert weights_hash(loaded) == weights_hash(path)


def test_class_names(path: Path) -> None:
    assert stabn.load(write(path, released(classes=3))).classes == ["class 0", "class 1", "class 2"]
    names = stabn.load(write(path, released(classes=174))).classes
    assert len(set(names)) == 174
    assert names == sorted(names)
    assert set(stabn.synthetic.CLASSES) < set(names)
    assert (names[0], names[173]) == ("Approaching something with your camera", "Wiping something off of something")


def changed(name: str, value: torch.Tensor | None) -> dict[str, torch.Tensor]:
    state = {**released(), name: value}
    return {key: tensor for key, tensor in state.items() if tensor is not None}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (
            changed("fc_att_out.bias", None),
            r"does not fit the published ST-ABN of 18 layers: it lacks .*fc_att_out.bias",
        ),
        (changed("fc_att_in.bias", torch.zeros(1)), r"it has unknown 1 tensor \(fc_att_in.bias\)"),
        (
            changed("fc_att_out.weight", torch.zeros(5, 15)),
            r"`fc_att_out.weight` is .* \(5, 15\), .* \(5, 20\) is needed",
        ),
        (
            changed("conv_temp_att2.0.weight", torch.zeros(4, 3, 1, 1)),
            r"`conv_temp_att2.0.weight` is .* \(4, 3, 1, 1, 1\)",
        ),
        (changed("conv_temp_att2.0.weight", None), "it has no `conv_temp_att2.0.weight`, .* number of frames"),
        (changed("fc.weight", torch.tensor(1.0)), "it has no `fc.weight`, which tells the number of classes"),
        (changed("fc.weight", torch.zeros(0, 32)), "wrong config: `classes` takes numbers of 1 or more"),
        (changed("bn1.bias", torch.full((4,), np.nan)), "is damaged: `bn1.bias` has values that are not finite"),
        (
            changed("layer1.2.conv1.weight", torch.zeros(1)),
            r"\(3, 2, 2, 2\) basic blocks, which is no ResNet of 18, 34",
        ),
        (changed("stem.1.bias", torch.zeros(4)), "it has two tensors for one place"),
        (changed("fc.bias", "five"), "has a wrong `state_dict`: it must hold dense tensors by name"),
        ({"conv1.weight": torch.zeros(4, 3, 1, 7, 7)}, "without the tensors of the ST-ABN weights that the paper's"),
    ],
)
def test_a_file_that_does_not_fit_is_one_clear_sentence(path: Path, state: dict, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        stabn.load(write(path, state))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hostile",)


def test_a_cut_or_a_hostile_file_runs_nothing(path: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(path, released(), best_score=Hostile())
    with pytest.raises(CheckpointError, match="code in checkpoints is never run"):
        stabn.load(path)
    assert not Path("hostile").exists()
    data = write(path, released()).read_bytes()
    for share in (0.1, 0.5, 0.999):
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(CheckpointError, match="cannot be read: it is damaged"):
            stabn.load(path)


# ------------------------------------------------------------------------------ the commands


def test_stabn_explain_takes_the_file(path: Path, tmp_path: Path, capsys) -> None:
    from explain.cli import main

    write(path, released(classes=174, frames=6))
    video = encode(tmp_path / "short.mp4", pattern(5))  # fewer frames than the network takes
    options = ["--checkpoint", str(path), "--device", "cpu", "--out", str(tmp_path / "viz"), "--json"]
    assert main([str(video), *options, "--method", "stabn,random"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["knows"].startswith("knows 174 motions")
    assert {each["class"] for each in told["top5"]} < set(stabn.load(path).classes)
    assert "the video has fewer than 6 frames: its first is repeated" in told["notes"]
    arrays = np.load(tmp_path / "viz" / "short" / "stabn" / "explanation.npz")
    assert arrays["frame_indices"].tolist() == [0, 1, 2, 3, 4, 0]
    assert arrays["spatial"].shape == (6, 14, 14)


def test_stabn_ablate_takes_the_file(path: Path, tmp_path: Path, capsys) -> None:
    from explain.ablate import main

    write(path, released(classes=174))
    for name in ("Holding something", "Moving something up"):
        (tmp_path / "data" / name).mkdir(parents=True)
        encode(tmp_path / "data" / name / "a.mp4", pattern(9))
    where = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "ablation")]
    assert main([*where, "--checkpoint", str(path), "--device", "cpu", "--workers", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["row"] for row in found["rows"]] == ["none", "spatial", "temporal", "both"]
    assert (found["clips"], found["study"]["weights"]) == (2, weights_hash(path))
