import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import with_and_without as study
from torchvision.models import get_model
from torchvision.models._api import WeightsEnum

import stabn
from explain import explain
from explain.inversion import Condition, changed
from stabn import faithful, foreign, train
from stabn.backbones import BACKBONES, FLAT, Shift
from stabn.model import STABN, Attention, Config, loss
from stabn.video import Clip

MOMENTS = {"c3d": 2, "i3d": 2, "r3d_18": 2, "mc3_18": 8, "r2plus1d_18": 2, "s3d": 2, "tsn": 8, "tsm": 8}
CELLS = {"i3d": 2, "s3d": 2, "tsn": 4, "tsm": 4}  # of 32 pixels; 4 elsewhere
RESNET = Config.resnet(18, classes=5, frames=8, size=32, width=4, pool=False)


def config(backbone: str, **changes) -> Config:
    if backbone == "resnet":
        return replace(RESNET, **changes)
    flat = {"pool": False} if backbone in FLAT else {}
    return Config(**{"classes": 5, "frames": 8, "size": 32, "width": 8, "backbone": backbone, **flat, **changes})


def lively(network: torch.nn.Module) -> torch.nn.Module:
    """Batch norms that do something in eval mode."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d | torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
    return network.eval()


def clips(n: int = 2, frames: int = 8) -> torch.Tensor:
    return torch.randn(n, 3, frames, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=["resnet", *BACKBONES])
def network(request) -> STABN:
    """Trained for a step, as a user's would be."""
    torch.manual_seed(0)
    model = STABN(config(request.param, dropout=0.1))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    loss(model.train()(clips(4)), torch.tensor([0, 1, 2, 3])).total.backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not still
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer.step()
    moved = {name.split(".")[0] for name, new in model.named_parameters() if not torch.equal(before[name], new)}
    assert moved == {name for name, _ in model.named_children()} - {"dropout"}
    return lively(model)


# ------------------------------------------------------------------------------------------- every backbone


def test_shapes_are_derived(network):
    settings = network.config
    features = network.extract(clips())
    attention, attention_logits = network.attend(features)
    moments, cells = MOMENTS.get(settings.backbone, 8), CELLS.get(settings.backbone, 4)
    assert features.shape == (2, *settings.grid)
    assert (settings.moments, settings.map_size, settings.frames) == (moments, cells, 8)
    assert attention.spatial.shape == (2, 1, moments, cells, cells)
    assert attention.temporal.shape == (2, 1, moments, 1, 1)
    assert attention_logits.shape == (2, 5)
    assert network.layer4(features).shape[1] == settings.outputs


def test_mix_and_perceive_are_forward(network):
    with torch.inference_mode():
        output = network(clips())
        mixture = network.mix(network.extract(clips()))
        torch.testing.assert_close(network.perceive(mixture, output.attention), output.logits)
        other = network.perceive(mixture, output.attention.invert(spatial=True, temporal=True))
    assert not torch.allclose(other, output.logits)


def test_inverting_twice_is_the_identity(network):
    with torch.inference_mode():
        features = network.extract(clips())
        attention, _ = network.attend(features)
        once = changed(attention, Condition("both"), [(0, 0), (1, 0)])
        twice = changed(once, Condition("both"), [(0, 0), (1, 0)])
        torch.testing.assert_close(network.perceive(features, twice), network.perceive(features, attention))
    assert isinstance(twice, Attention)


def test_saved_and_loaded_it_answers_the_same(network, tmp_path):
    network.save_pretrained(tmp_path / "folder")
    stabn.save(network, tmp_path / "network.safetensors")
    with torch.inference_mode():
        expected = network(clips())
        for loaded in (STABN.from_pretrained(tmp_path / "folder"), stabn.load(tmp_path / "network.safetensors")):
            assert loaded.config == network.config
            output = loaded(clips())
            torch.testing.assert_close(output.logits, expected.logits)
            torch.testing.assert_close(tuple(output.attention), tuple(expected.attention))


def test_an_explanation_has_all_frames_and_says_where_it_is_interpolated(network):
    rng = np.random.default_rng(0)
    clip = Clip.from_array(rng.integers(0, 256, (8, 40, 40, 3), dtype=np.uint8))
    found = explain(network, clip)
    moments, cells = network.config.moments, network.config.map_size
    assert found.spatial.shape == (8, cells, cells)
    assert found.temporal.shape == (8,)
    with torch.inference_mode():
        attention = network(network.preprocess(clip.frames)).attention
    own = attention.temporal.flatten().numpy()
    said = [note for note in found.notes if "interpolated" in note]
    if moments == 8:
        assert not said
        np.testing.assert_array_equal(found.temporal, own)
    else:  # two moments, whose centres lie in the middle of the clip's halves
        assert said == ["this network's attention has 2 moments for 8 frames: between them it is interpolated"]
        shares = np.clip((np.arange(8) + 0.5) / 4 - 0.5, 0, 1)
        np.testing.assert_allclose(found.temporal, (1 - shares) * own[0] + shares * own[1], rtol=1e-5)
    cam = explain(network, clip, "grad_cam")
    assert len(cam.spatial) == 8


def test_losses_of_faithful_attention_take_fewer_moments(network):
    weights = faithful.Weights(keep=1.0, erase=1.0, invert=1.0)
    x, labels = clips(), torch.tensor([0, 1])
    features = network.extract(x)
    attention, _ = network.attend(features)
    found = faithful.losses(network, x, features, attention, labels, weights)
    network.eval()
    assert weights.total(found).isfinite()


@pytest.mark.parametrize("attention", ["none", "spatial", "temporal"])
@pytest.mark.parametrize("backbone", ["c3d", "tsm"])
def test_parts_of_the_attention_can_be_left_out(backbone, attention):
    model = STABN(config(backbone, attention=attention)).eval()
    output = model(clips())
    assert output.logits.shape == (2, 5)
    assert (output.attention is None) == (attention == "none")


# ------------------------------------------------------------------------------------------ what they are


@pytest.mark.parametrize("name", ["r3d_18", "mc3_18", "r2plus1d_18"])
def test_torchvisions_networks_are_cut_and_nothing_else(name):
    """Its weights under our names, without the branch: its logits."""
    torch.manual_seed(0)
    theirs = lively(get_model(name, num_classes=5))
    ours = STABN(config(name, width=64, attention="none")).eval()
    ours.load_state_dict({key: value for key, value in theirs.state_dict().items() if not key.startswith("avgpool")})
    with torch.inference_mode():
        torch.testing.assert_close(ours(clips(1)).logits, theirs(clips(1)), rtol=1e-4, atol=1e-5)


def test_s3d_is_torchvisions_features():
    torch.manual_seed(0)
    theirs = lively(get_model("s3d"))
    ours = STABN(config("s3d", width=64, attention="none")).eval()
    foreign.inflate(ours, theirs.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(ours.layer4(ours.extract(clips(1))), theirs.features(clips(1)))


def test_i3d_is_inception_in_3d():
    kernels = {m.kernel_size for m in STABN(config("i3d")).modules() if isinstance(m, torch.nn.Conv3d)}
    assert kernels == {(7, 7, 7), (3, 3, 3), (1, 1, 1)}


def test_the_papers_depth_of_c3d():
    with torch.device("meta"):
        model = STABN(Config(classes=487, frames=16, size=112, backbone="c3d", attention="none"))
    shapes = [tuple(m.weight.shape) for m in model.modules() if isinstance(m, torch.nn.Conv3d)]
    plan = ((3, 64), (64, 128), (128, 256), (256, 256), (256, 512), (512, 512), (512, 512), (512, 512))
    assert shapes == [(outputs, inputs, 3, 3, 3) for inputs, outputs in plan]
    assert model.config.grid == (512, 4, 14, 14)


def test_tsn_averages_frames_whatever_their_order_and_tsm_does_not():
    torch.manual_seed(0)
    x = clips(1)
    for name, same in (("tsn", True), ("tsm", False)):
        model = lively(STABN(config(name, attention="none")))
        with torch.inference_mode():
            assert torch.allclose(model(x).logits, model(x.flip(2)).logits, atol=1e-6) == same


def test_the_shift_by_hand():
    x = torch.arange(1.0, 4.0)[:, None, None, None].expand(3, 16, 1, 1)  # three frames of 1, 2 and 3
    shifted = Shift(3)(x)[:, :, 0, 0]
    assert shifted[:, 0].tolist() == shifted[:, 1].tolist() == [2, 3, 0]
    assert shifted[:, 2].tolist() == shifted[:, 3].tolist() == [0, 1, 2]
    assert shifted[:, 4:].tolist() == x[:, 4:, 0, 0].tolist()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone": "vgg"}, "`backbone` must be one of resnet, c3d, .*; got 'vgg'"),
        ({"backbone": "c3d", "stem": (1, 3, 3)}, "`stem` is for the backbone resnet, leave it out for c3d"),
        ({"backbone": "s3d", "pool": False}, "`pool` is for the backbone resnet, leave it out for s3d"),
        ({"backbone": "i3d", "variant": "published"}, "`variant` is for the backbone resnet"),
        ({"backbone": "s3d", "width": 20}, "`width` must be a multiple of 8 for the backbone s3d, got 20"),
        ({"backbone": "c3d", "frames": 4}, "a clip of 4 frames of 32 x 32 pixels is too small for the backbone c3d"),
        ({"backbone": "s3d", "size": 16}, "a clip of 8 frames of 16 x 16 pixels is too small for the backbone s3d"),
    ],
)
def test_a_wrong_backbone_is_named(changes, words):
    with pytest.raises(ValueError, match=words):
        Config(**{"classes": 5, "frames": 8, "size": 32, "width": 8, **changes})


def test_a_config_takes_nothing_from_the_stream_of_chance():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    config("mc3_18", frames=10)
    assert torch.equal(torch.rand(3), expected)


# ------------------------------------------------------------------------------------------------- inflating


@pytest.fixture(scope="module")
def flat() -> torch.nn.Module:
    """torchvision's 2D ResNet-18 as if it were trained."""
    torch.manual_seed(0)
    return lively(get_model("resnet18"))


def features_of(flat: torch.nn.Module, picture: torch.Tensor) -> torch.Tensor:
    x = flat.maxpool(flat.relu(flat.bn1(flat.conv1(picture))))
    return flat.layer3(flat.layer2(flat.layer1(x)))


def test_an_inflated_network_sees_a_repeated_picture_as_the_2d_network_does(flat):
    """Zeros before and after the clip reach one frame further with each of the extractor's 12 convolutions along time,
    so that of 25 frames the middle one is free of them."""
    model = STABN(Config.resnet(18, classes=5, frames=25, size=32)).eval()
    foreign.inflate(model, flat.state_dict())
    picture = clips(1)[:, :, 0]
    with torch.inference_mode():
        found = model.extract(picture[:, :, None].expand(-1, -1, 25, -1, -1))
        expected = features_of(flat, picture)
        torch.testing.assert_close(found[:, :, 12], expected, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(found[:, :, 0], expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(model.layer4[1].conv2.weight, model.attention.blocks[1].conv2.weight)


def test_a_bottleneck_is_inflated_too():
    torch.manual_seed(0)
    flat = lively(get_model("resnet50"))
    model = STABN(Config.resnet(50, classes=5, frames=13, size=32, attention="none")).eval()
    foreign.inflate(model, flat.state_dict())
    picture = clips(1)[:, :, 0]
    with torch.inference_mode():  # six convolutions along time, those of layer3
        found = model.extract(picture[:, :, None].expand(-1, -1, 13, -1, -1))[:, :, 6]
        torch.testing.assert_close(found, features_of(flat, picture), rtol=1e-3, atol=1e-4)


def test_tsn_takes_the_2d_weights_as_they_are(flat):
    model = STABN(Config(classes=5, frames=8, size=32, backbone="tsn")).eval()
    foreign.inflate(model, flat.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(model.extract(clips(1))[:, :, 3], features_of(flat, clips(1)[:, :, 3]))
    foreign.inflate(STABN(Config(classes=5, frames=8, size=32, backbone="tsm")), flat.state_dict())


def test_weights_that_do_not_fit_change_nothing(flat):
    for settings, words in (
        (RESNET, r"those for `stem.0.weight`, \(4, 3, 1, 7, 7\), have the shape \(64, 3, 1, 7, 7\)"),
        (Config.resnet(34, classes=5, frames=8, size=32), "`layer1.2.conv1.weight`, .* are not there"),
    ):
        model = STABN(settings)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(ValueError, match=f"these weights do not fit the network: .*{words}"):
            foreign.inflate(model, flat.state_dict())
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


OPTIONS = train.Options(
    **{"steps": 1, "batch": 2, "frames": 2, "size": 16, "workers": 0, "threads": 1, "precision": "fp32", "rate": 0.0},
    **{"width": 64, "backbone": "tsn", "attention": "none"},
)


def test_training_starts_from_a_file_of_torchvision(flat, tmp_path):
    torch.save(flat.state_dict(), tmp_path / "resnet18.pth")
    out = tmp_path / "mine.safetensors"
    train.train(replace(OPTIONS, out=out, init=str(tmp_path / "resnet18.pth")))
    trained = stabn.load(out)
    assert torch.equal(trained.stem[0].weight, flat.conv1.weight)
    assert trained.metadata["trained"]["init"].startswith("resnet18 ")
    assert trained.metadata["trained"]["backbone"] == "tsn"


def test_training_starts_from_a_network_of_ours_on_the_same_backbone():
    trained, other = (STABN(config("s3d", attention=attention)) for attention in ("none", "both"))
    train.start_from(other, trained)
    assert torch.equal(next(iter(other.parameters())), next(iter(trained.parameters())))
    with pytest.raises(
        ValueError, match=r"fits, \(8, 3, 7, 7, 7\) of the weights and \(8, 3, 1, 7, 7\) of the network"
    ):
        train.start_from(other, STABN(config("i3d")))


def test_imagenets_weights_are_downloaded_or_one_sentence_says_why_not(flat, tmp_path, monkeypatch, capsys):
    def fail(self, *args, **options):
        raise OSError("no network")

    out = tmp_path / "mine.safetensors"
    arguments = ["--out", str(out), "--init", "imagenet", "--width", "64", "--steps", "1"]
    monkeypatch.setattr(WeightsEnum, "get_state_dict", fail)
    with pytest.raises(SystemExit):
        train.main([*arguments, "--backbone", "resnet18"])
    said = capsys.readouterr().err
    assert "resnet18 cannot be downloaded from https://" in said
    assert "--init FILE" in said
    with pytest.raises(SystemExit):
        train.main([*arguments, "--backbone", "c3d"])
    assert re.search(r"ImageNet weights are there for ResNets of 18, .* choose one of them", capsys.readouterr().err)
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, *args, **options: flat.state_dict())
    train.train(replace(OPTIONS, out=out, init="imagenet"))
    assert torch.equal(stabn.load(out).stem[0].weight, flat.conv1.weight)


# ---------------------------------------------------------------------------------------------------- the Hub


def test_a_folder_for_the_hub_holds_one_file_of_ours(tmp_path):
    model = STABN(config("tsn"), ["a", "b", "c", "d", "e"], {"trained": "here"})
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert json.loads((tmp_path / "config.json").read_text())["backbone"] == "tsn"
    assert "library_name: stabn" in (tmp_path / "README.md").read_text()
    (tmp_path / "config.json").unlink()  # the weights' own header is enough
    loaded = STABN.from_pretrained(str(tmp_path))
    assert (loaded.classes, loaded.metadata, loaded.training) == (model.classes, model.metadata, False)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(stabn.checkpoint.CheckpointError, match=r"model.safetensors is neither a file nor"):
        STABN.from_pretrained(str(tmp_path))


def test_pushed_is_what_is_saved_and_pulled_is_what_was_pushed(tmp_path, monkeypatch):
    import shutil

    from huggingface_hub import HfApi, hub_mixin

    def create_repo(self, repo_id, **options):
        return type("Repository", (), {"repo_id": repo_id})

    def upload_folder(self, *, repo_id, folder_path, **options):
        shutil.copytree(folder_path, tmp_path / repo_id)
        return "https://hub/commit"

    def download(repo_id, filename, **options):
        return str(tmp_path / repo_id / filename)

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(hub_mixin, "hf_hub_download", lambda **options: download(**options))
    monkeypatch.setattr("stabn.model.hf_hub_download", download)
    model = STABN(config("resnet")).eval()
    assert model.push_to_hub("someone/motions") == "https://hub/commit"
    assert Path(tmp_path, "someone/motions/model.safetensors").exists()
    pulled = STABN.from_pretrained("someone/motions")
    assert torch.equal(pulled(clips(1)).logits, model(clips(1)).logits)


# ------------------------------------------------------------------------------------------- with and without


def test_the_study_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    budget = {**study.BUDGET, "steps": 3, "batch": 2, "clips": 18}
    monkeypatch.setattr(study, "SAVE_EVERY", 2)
    whole = study.run("tsm-none", 1, tmp_path, budget)
    assert len(whole["right"]["logits"]) == 18
    assert (tmp_path / "tsm-none-1.resume").exists()  # from step 2 on: the run ends without taking it away
    rest = study.run("tsm-none", 1, tmp_path, budget)
    assert rest | {"processor_seconds": 0} == whole | {"processor_seconds": 0}
    with pytest.raises(ValueError, match="was started with another budget"):
        study.run("tsm-none", 1, tmp_path, {**budget, "rate": 1.0})


def test_the_studys_table_by_hand(tmp_path):
    for network, attention, seed, right in (
        ("C3D", "none", 0, "0011"),
        ("C3D", "both", 0, "0111"),
        ("C3D", "none", 1, "0000"),
        ("C3D", "both", 1, "1111"),
    ):
        answers = {"logits": right} | ({"attention_logits": "1000"} if attention == "both" else {})
        run = {"network": network, "attention": attention, "seed": seed, "right": answers, "budget": study.BUDGET}
        run |= {"parameters": 1_500_000, "multiply_adds": 2_000_000, "processor_seconds": 3.0}
        (tmp_path / f"{attention}-{seed}.json").write_text(json.dumps(run))
    lines = study.table(tmp_path).splitlines()
    without, with_branch = (next(line for line in lines if f"| {kind} |" in line) for kind in ("without", "with"))
    assert "| 25.0 (0.0 to " in without
    assert "| 50.0, 0.0 |" in without
    assert "| 87.5 (" in with_branch
    assert "| +62.5 (" in with_branch
    assert "| 25.0 (0.0 to " in with_branch  # of the branch itself
    assert "| 1.50 M | 2 M | 3 |" in with_branch
    assert lines[-1] == "20 runs are still missing."
