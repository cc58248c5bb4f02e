"""Training on a tiny network: it saves, resumes as if it had never stopped, and says what is wrong."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import stabn
from stabn import synthetic, train
from stabn.backbones import batch_norms
from stabn.train import Options


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(
        out=tmp_path / "run" / "tiny.safetensors",
        steps=4,
        batch=2,
        frames=4,
        size=16,
        width=2,
        precision="fp32",
        threads=1,
        workers=0,
    )


class Stop(Exception):
    """A run that is killed."""


def killed_after(monkeypatch: pytest.MonkeyPatch, step: int, options: Options) -> None:
    """Starts a run that dies in the step after `step`."""
    honest = train.rate_at

    def dying(at: int, options: Options) -> float:
        if at == step:
            raise Stop
        return honest(at, options)

    with monkeypatch.context() as patch:
        patch.setattr(train, "rate_at", dying)
        with pytest.raises(Stop):
            train.train(options)


def test_training_writes_weights_that_load_and_say_how_they_were_made(options):
    train.train(options)
    model = stabn.load(options.out)
    assert model.classes == list(synthetic.CLASSES)
    assert model.metadata["trained"]["clips"] == 8
    assert model.metadata["trained"]["generator"] == synthetic.VERSION
    assert not options.out.with_name("tiny.safetensors.resume").exists()
    log = [json.loads(line) for line in options.out.with_name("tiny.safetensors.log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [4]
    assert log[0]["loss"] == pytest.approx(log[0]["perception"] + log[0]["attention"], rel=1e-4)


FAITHFUL = {"keep": 1.0, "erase": 1.0, "price": (6.0, 1.0), "invert": 0.5}


@pytest.mark.parametrize("more", [{}, FAITHFUL | {"masks": 1.0, "freeze_norm": 0.5}])
def test_a_killed_run_goes_on_to_the_same_weights(options, tmp_path, monkeypatch, more):
    options = replace(options, **more)
    train.train(options)
    killed = replace(options, out=tmp_path / "killed" / "tiny.safetensors", save_every=2)
    killed_after(monkeypatch, 3, killed)
    assert not killed.out.exists()
    train.train(killed)
    whole, resumed = stabn.load(options.out).state_dict(), stabn.load(killed.out).state_dict()
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, resumed[name], rtol=0, atol=0)


def test_batch_norm_is_frozen_for_a_share_of_the_steps(options):
    train.train(replace(options, steps=5, freeze_norm=0.5, **FAITHFUL))
    trained = stabn.load(options.out)
    assert {layer.num_batches_tracked.item() for layer in batch_norms(trained)} == {3}  # of steps 0 to 2, not 3 and 4


def test_m_s_starts_as_much_lower_as_asked_and_nothing_else_changes(options):
    train.train(replace(options, **FAITHFUL))
    lowered = replace(options, init=str(options.out), out=options.out.with_name("lowered"), lower=4.0)
    train.train(replace(lowered, steps=1, rate=0.0, freeze_norm=1.0, **FAITHFUL))
    before, after = (stabn.load(each.out).state_dict() for each in (options, lowered))
    before["attention.spatial.1.bias"] -= 4
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_a_run_is_not_resumed_with_other_options(options, monkeypatch):
    killed_after(monkeypatch, 2, replace(options, save_every=1))
    with pytest.raises(ValueError, match=r"other options: batch 2 \(now 3\)"):
        train.train(replace(options, batch=3))


def test_training_starts_from_a_backbone(options, tmp_path):
    backbone = replace(options, attention="none", out=tmp_path / "backbone.safetensors", steps=1)
    train.train(backbone)
    started = replace(options, init=str(backbone.out), steps=1, rate=0.0)
    train.train(started)
    before, after = stabn.load(backbone.out), stabn.load(options.out)
    assert after.metadata["trained"]["init"] == f"backbone {stabn.checkpoint.weights_hash(before)[:16]}"
    torch.testing.assert_close(
        before.layer3.state_dict()["0.conv1.weight"], after.layer3.state_dict()["0.conv1.weight"]
    )
    other = replace(options, init=str(backbone.out), width=3)
    with pytest.raises(ValueError, match="first convolution"):
        train.train(other)


def test_weights_for_bgr_are_turned_for_a_network_that_takes_rgb():
    config = stabn.Config(classes=2, frames=2, size=16, layers=(1, 1, 1, 1), width=2, pool=False)
    network, published = stabn.STABN(config), stabn.STABN(replace(config, variant="published"))
    train.start_from(network, published)
    torch.testing.assert_close(network.stem[0].weight, published.stem[0].weight.flip(1))
    torch.testing.assert_close(network.layer2.state_dict(), published.layer2.state_dict())


def test_the_branch_begins_with_the_last_stage_of_a_backbone_and_never_with_that_of_another_branch():
    config = stabn.Config(classes=2, frames=2, size=16, layers=(1, 1, 1, 1), width=2, pool=False)
    backbone, network = stabn.STABN(replace(config, attention="none")), stabn.STABN(config)
    train.start_from(network, backbone)
    torch.testing.assert_close(network.attention.blocks.state_dict(), backbone.layer4.state_dict())
    other = stabn.STABN(config)
    train.start_from(other, network)
    torch.testing.assert_close(other.state_dict(), network.state_dict())
    with torch.no_grad():
        network.attention.blocks[0].conv1.weight.zero_()
    train.start_from(other, network)
    assert not other.attention.blocks[0].conv1.weight.any()


def test_the_rate_rises_holds_and_falls():
    options = Options(steps=600, rate=1.0)
    rates = [train.rate_at(step, options) for step in range(600)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[100] == rates[399] == 1
    assert rates[500] == pytest.approx(0.5)
    assert 0 < rates[599] < 0.01


def test_pictures_of_a_folder_are_read_as_rgb(tmp_path):
    cv2.imwrite(str(tmp_path / "red.png"), np.full((20, 600, 3), (0, 0, 255), np.uint8))
    (tmp_path / "notes.txt").write_text("no picture")
    pictures = train.read_pictures(tmp_path)
    assert [p.shape for p in pictures] == [(20, 600, 3)]
    assert pictures[0][0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("folder", ["empty", "missing"])
def test_a_folder_without_pictures_is_named(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=f"{folder}: no picture"):
        train.read_pictures(tmp_path / folder)


def test_a_finished_run_is_not_trained_over(options):
    train.train(options)
    before = options.out.read_bytes()
    with pytest.raises(ValueError, match="finished already"):
        train.train(options)
    assert options.out.read_bytes() == before
    assert options.out.with_name("tiny.safetensors.log.jsonl").read_text()


@pytest.mark.parametrize("content", ["garbage", "another"])
def test_a_state_that_is_none_is_refused_in_one_sentence(options, content):
    state = options.out.with_name("tiny.safetensors.resume")
    state.parent.mkdir()
    if content == "garbage":
        state.write_bytes(b"garbage")
    else:
        torch.save({"step": 3}, state)
    with pytest.raises(ValueError, match=r"tiny\.safetensors\.resume is damaged, or no state"):
        train.train(options)


def test_a_log_that_was_cut_off_is_kept_up_to_there(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 20}\n{"step": 40}\n{"step": 6')
    train.keep_log(log, 20)
    assert log.read_text() == '{"step": 20}\n'


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--steps", "0"], "error: --steps is 0: it must be at least 1"),
        (["--seed", "-1"], "error: --seed is -1: it must be at least 0"),  # else evaluation clips were trained on
        (["--freeze-norm", "2"], "error: --freeze-norm is 2.0: it is a share of the steps, from 0 to 1"),
        (["--rate", "nan"], "error: --rate is nan: it must be at least 0 and below 1"),
        (
            ["--price", "-1", "0"],
            "error: --keep, --erase, --price, --invert, --answer, --masks and --lower must be at least 0, got -1.0",
        ),
        (
            ["--keep", "1", "--attention", "none"],
            "error: --keep, --erase, --price, --invert, --answer, --masks and --lower need spatial and temporal "
            "attention: leave them out, or --attention none",
        ),
    ],
)
def test_the_command_says_what_is_wrong_in_one_sentence(options, capsys, arguments, sentence):
    with pytest.raises(SystemExit) as stop:
        train.main(["--out", str(options.out), *arguments])
    assert stop.value.code == 2
    assert capsys.readouterr().err.strip() == sentence


def test_an_unknown_option_is_wrong_use():
    with pytest.raises(SystemExit) as stop:
        train.main(["--setps", "3"])
    assert stop.value.code == 2


def test_a_missing_file_of_weights_is_wrong_use(options, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--out", str(options.out), "--init", "gone.safetensors"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: --init: gone.safetensors is neither a file nor the name of")


def test_the_log_is_cut_back_in_place(tmp_path):
    log = tmp_path / "log.jsonl"
    whole = '{"step": 20}\n{"step": 40}\n'
    for rest in ("", '{"step": 60}\n{"step": 80}\n', '{"step": 4', "rubbish\n", '{"step": 40}'):
        log.write_text(whole + rest)
        train.keep_log(log, 40)
        assert log.read_text() == whole


@pytest.mark.parametrize(
    "changed", [{"network": {}}, {"optimizer": {"state": {}}}, {"random": None}, {"step": 10**9}, {"seconds": "x"}]
)
def test_a_state_that_does_not_fit_is_a_sentence(options, monkeypatch, changed):
    state_file = options.out.with_name(f"{options.out.name}.resume")
    options = replace(options, save_every=1)
    killed_after(monkeypatch, 1, options)
    state = torch.load(state_file, weights_only=True)
    torch.save(state | changed, state_file)
    with pytest.raises(ValueError, match="is damaged, or no state of stabn-train: remove it"):
        train.train(options)


def test_what_a_killed_run_left_half_written_is_removed(options):
    options.out.parent.mkdir(exist_ok=True)
    left = [options.out.with_name(f".{options.out.name}.01234567.tmp"), Path(f"{options.out}.resume.partial")]
    other = options.out.with_name(".other.safetensors.01234567.tmp")
    for each in (*left, other):
        each.touch()
    with train.writing(options.out):
        assert not any(each.exists() for each in left)
    assert other.exists()
