import json
import os
import pickle
import struct
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch

from stabn import checkpoint, foreign
from stabn.checkpoint import CheckpointError, load, locate, pick_device, save, weights_hash
from stabn.model import STABN, Config

CLASSES = ["Moving something up", "Moving something down", "Spinning something"]
METADATA = {"trained": {"steps": 3}, "measured": {"top1": 0.5}, "note": "größer"}


def build(**changes) -> STABN:
    torch.manual_seed(0)
    defaults = {"classes": 3, "frames": 4, "size": 16, "layers": (1, 1, 1, 1), "width": 2, "stem": (3, 3, 3)}
    return STABN(Config(**{**defaults, **changes}), CLASSES, METADATA)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.safetensors"


def rewrite(path, change) -> None:
    """Change the header (a dictionary) of a safetensors file, the data stays."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    new = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(new)) + new + data[8 + length :])


def set_header(key, value):
    return lambda header: header["__metadata__"].__setitem__(key, value)


def set_config(**changes):
    def change(header):
        config = json.loads(header["__metadata__"]["config"])
        header["__metadata__"]["config"] = json.dumps({**config, **changes})

    return change


# ------------------------------------------------------------------------------ there and back


@pytest.mark.parametrize("attention", ["both", "none"])
def test_a_network_comes_back_as_it_was(path, attention):
    model = build(attention=attention, mean=(0.1, 0.2, 0.3), pool=False)
    clips = torch.randn(2, 3, 4, 16, 16)
    model.train()(clips)  # moves the running statistics
    save(model, path)
    loaded = load(path)
    assert not loaded.training
    assert (loaded.config, loaded.classes, loaded.metadata) == (model.config, CLASSES, METADATA)
    state, expected = loaded.state_dict(), model.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert state["stem.1.num_batches_tracked"] == 1
    assert all(p.requires_grad for p in loaded.parameters())
    torch.testing.assert_close(loaded(clips).logits, model.eval()(clips).logits)
    assert os.listdir(path.parent) == [path.name]


def test_what_is_loaded_does_not_live_in_the_file(path):
    save(build(), path)
    loaded = load(path)
    before = loaded.fc.weight.clone()
    with open(path, "r+b") as file:
        file.seek(-4096, os.SEEK_END)
        file.write(b"\xff" * 4096)
    assert torch.equal(loaded.fc.weight, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_storage_halves_the_file_and_loads_as_float32(tmp_path, dtype):
    model = build(width=8)
    save(model, tmp_path / "full")
    save(model, tmp_path / "half", dtype)
    assert (tmp_path / "half").stat().st_size < 0.6 * (tmp_path / "full").stat().st_size
    state = load(tmp_path / "half").state_dict()
    for name, tensor in model.state_dict().items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor.to(dtype).to(tensor.dtype) if tensor.is_floating_point() else tensor)


def test_memory_formats_and_compiled_networks_make_the_same_file(tmp_path):
    model = build()
    save(model, tmp_path / "plain")
    save(torch.compile(model), tmp_path / "compiled")
    save(model.to(memory_format=torch.channels_last_3d), tmp_path / "last")
    hashes = {weights_hash(tmp_path / name) for name in ("plain", "compiled", "last")}
    assert hashes == {weights_hash(model)}
    assert weights_hash(torch.compile(model)) == weights_hash(model)


def test_torch_files_with_plain_values_are_read(tmp_path):
    model = build()
    file = tmp_path / "net.pt"
    content = {
        "config": {
            "classes": 3,
            "frames": 4,
            "size": 16,
            "layers": [1, 1, 1, 1],
            "width": 2,
            "stem": (3, 3, 3),
        },
        "classes": CLASSES,
        "state_dict": model.state_dict(),
        "step": 7,
    }
    torch.save(content, file)
    loaded = load(file)
    assert (loaded.config, loaded.classes, loaded.metadata) == (model.config, CLASSES, {})
    assert weights_hash(loaded) == weights_hash(model)


# ------------------------------------------------------------------------------ the hash


def test_the_hash_is_of_the_weights_alone(tmp_path):
    model = build()
    save(model, tmp_path / "a")
    model.metadata["note"] = "corrected"
    model.classes[0] = "Moving it up"
    save(model, tmp_path / "b")
    digest = weights_hash(tmp_path / "a")
    assert len(digest) == 64
    assert digest == weights_hash(tmp_path / "b") == weights_hash(model) == weights_hash(load(tmp_path / "b"))
    model.fc.bias.data[0] += 1e-6
    assert weights_hash(model) != digest


def test_the_hash_by_hand():
    import hashlib

    model = torch.nn.Linear(1, 2)
    model.weight.data = torch.tensor([[1.0], [2.0]])
    model.bias.data = torch.tensor([0.0, 4.0])
    text = b"bias (2,) torch.float32\n" + struct.pack("<2f", 0, 4)
    text += b"weight (2, 1) torch.float32\n" + struct.pack("<2f", 1, 2)
    assert weights_hash(model) == hashlib.sha256(text).hexdigest()


# ------------------------------------------------------------------------------ writing


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(path, monkeypatch, step, error):
    save(build(), path)
    old = path.read_bytes()

    def fail(*arguments):
        raise error

    monkeypatch.setattr(checkpoint.os, step, fail)
    if isinstance(error, OSError):
        with pytest.raises(CheckpointError, match=r"cannot write .*net.safetensors: No space left on device"):
            save(build(width=4), path)
    else:
        with pytest.raises(KeyboardInterrupt):
            save(build(width=4), path)
    assert os.listdir(path.parent) == [path.name]
    assert path.read_bytes() == old


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot write .*no[\\/]net: No such file or directory"):
        save(build(), tmp_path / "no" / "net")


def test_weights_that_cannot_be_used_again_are_not_written(path):
    model = build()
    with pytest.raises(CheckpointError, match=r"`dtype` must be one of torch.float32, .*; got torch.int8"):
        save(model, path, torch.int8)
    model.stem[1].running_var.fill_(1e6)
    with pytest.raises(CheckpointError, match=r"`stem.1.running_var` has values .* not finite in torch.float16"):
        save(model, path, torch.float16)
    model.stem[1].running_var.fill_(float("nan"))
    with pytest.raises(CheckpointError, match=r"`stem.1.running_var` has values .* not finite in torch.float32"):
        save(model, path)
    model = build()
    for value in (float("nan"), object()):
        model.metadata["top1"] = value
        with pytest.raises(CheckpointError, match="`metadata` cannot be JSON"):
            save(model, path)
    assert not os.listdir(path.parent)


# ------------------------------------------------------------------------------ bad files


def spoil_weights(path, change):
    model = build()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    change(state)
    model.state_dict = lambda: state  # type: ignore[method-assign]
    save(model, path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("fc.bias"), r"lacks 1 tensor \(fc.bias\)"),
        (lambda s: s.update(other=torch.zeros(1)), r"has unknown 1 tensor \(other\)"),
        (
            lambda s: s.update({"fc.bias": torch.zeros(4)}),
            r"`fc.bias` is torch.float32 of shape \(4,\), .* \(3,\)",
        ),
        (
            lambda s: s.update({"fc.bias": torch.zeros(3, dtype=torch.int64)}),
            "`fc.bias` is torch.int64 .* torch.float32",
        ),
        (lambda s: [s.pop(k) for k in list(s) if "layer4" in k], r"lacks \d+ tensors \(layer4.*, \.\.\.\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(path, change, words):
    spoil_weights(path, change)
    with pytest.raises(CheckpointError, match=f"net.safetensors does not fit its config: .*{words}"):
        load(path)


def test_not_a_number_in_a_file_is_named(path):
    save(build(), path)
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    begin, _ = json.loads(data[8 : 8 + length])["fc.bias"]["data_offsets"]
    data[8 + length + begin : 12 + length + begin] = struct.pack("<f", float("nan"))
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"is damaged: `fc.bias` has values that are not finite"):
        load(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_header("format", "other"), "is a safetensors file, but not one of stabn"),
        (set_header("version", "2"), "has format version 2, this program reads 1: update stabn"),
        (set_header("config", "{"), "has a wrong header: `config` is missing or not JSON"),
        (lambda h: h["__metadata__"].pop("classes"), "has a wrong header: `classes` is missing or not JSON"),
        (lambda h: h.pop("__metadata__"), "is a safetensors file, but not one of stabn"),
        (set_header("config", "[1]"), "`config` and `metadata` must be dictionaries"),
        (set_header("metadata", "3"), "`config` and `metadata` must be dictionaries"),
        (set_header("classes", '{"0": "up"}'), "`classes` must be a list of names"),
        (set_header("classes", '["up", "down"]'), "`classes` has 2 names, the config says 3 classes"),
        (set_header("config", "{}"), "has a wrong config: no number of `classes`"),
        (set_config(depth=50), "has a wrong config: unknown `depth`"),
        (set_config(size="big"), "has a wrong config: `size` takes whole numbers, got 'big'"),
        (set_config(layers=[1, 1, 1, 10**9]), "cannot be loaded: .* too few for"),
        (set_config(width=10**12), "net.safetensors"),
        (set_config(width=4), "does not fit its config: `.*` is torch.float32 of shape"),
        (set_config(attention="none"), "does not fit its config: it has unknown .*attention"),
    ],
)
def test_a_wrong_header_is_one_clear_sentence(path, change, words):
    save(build(), path)
    rewrite(path, change)
    with pytest.raises(CheckpointError, match=words) as caught:
        load(path)
    assert "net.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.2, 0.9, 0.9999])
def test_a_truncated_file_is_one_clear_sentence(path, share):
    save(build(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match=r"net.safetensors is (empty|not a whole safetensors file)") as caught:
        load(path)
    assert "\n" not in str(caught.value)


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hostile",)


def broken_files(folder):
    (folder / "text.pt").write_text("hello, this is no checkpoint at all")
    (folder / "pickle.pt").write_bytes(pickle.dumps({"config": Hostile()}, protocol=2))
    torch.save({"config": Hostile()}, folder / "hostile.pt")
    torch.save({"model_state_dict": {}}, folder / "other.pt")
    torch.save([1], folder / "list.pt")
    torch.save({"config": {}, "classes": [], "state_dict": [1]}, folder / "state.pt")
    data = (folder / "other.pt").read_bytes()
    (folder / "cut.pt").write_bytes(data[: len(data) // 2])
    return {
        "text.pt": "is not a whole safetensors file",
        "pickle.pt": "code in checkpoints is never run",
        "hostile.pt": "code in checkpoints is never run",
        "other.pt": "without the dictionary of config, classes, state_dict",
        "list.pt": "without the dictionary of config, classes, state_dict",
        "state.pt": "has a wrong `state_dict`",
        "cut.pt": "cannot be read: it is damaged",
    }


def test_other_files_are_refused_and_run_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, words in broken_files(tmp_path).items():
        with pytest.raises(CheckpointError, match=words) as caught:
            load(name)
        assert str(caught.value).startswith(name)
    assert not (tmp_path / "hostile").exists()


# ------------------------------------------------------------------------------ names and devices


def test_bundled_names_and_unknown_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_FOLDERS", (tmp_path / "none", tmp_path))
    with pytest.raises(CheckpointError, match=r"nothing is neither a file .* \(none is installed\)"):
        load("nothing")
    save(build(), tmp_path / "small.safetensors")
    assert locate("small") == tmp_path / "small.safetensors"
    assert weights_hash("small") == weights_hash(load("small"))
    with pytest.raises(CheckpointError, match=r"^large is neither a file nor the name .* \(small\)$"):
        load("large")
    with pytest.raises(CheckpointError, match="is a folder, a checkpoint is a file"):
        load(tmp_path)


def test_loading_imports_no_compiler():
    """It would take longer than all the rest of the start."""
    program = "import stabn, sys; stabn.load('synthetic'); print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_devices_are_checked(path):
    save(build(), path)
    assert load(path, torch.device("cpu")).fc.weight.device.type == "cpu"
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    for wrong in ("gpu", "meta", "", None):
        with pytest.raises(CheckpointError, match="`device` must be auto, cpu, cuda, cuda:N or mps; got"):
            load(path, wrong)
    count = torch.cuda.device_count()
    with pytest.raises(
        CheckpointError, match=f"`device` is cuda:{count}, but this machine has {count} cuda devices?: "
    ):
        load(path, f"cuda:{count}")


def test_a_small_file_cannot_ask_for_much_memory(tmp_path):
    """A pickle can spread one number over any shape, and a header can ask for any size of pictures."""
    model = build()
    state = model.state_dict()
    first = next(iter(state))
    state[first] = torch.zeros(1).expand(10**6, 10**5)
    torch.save({"state_dict": state, "config": asdict(model.config), "classes": model.classes}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="it must hold dense tensors by name, with all of their values"):
        load(tmp_path / "a.pt")
    torch.save(state, tmp_path / "b.pt")
    with pytest.raises(ValueError, match="dense tensors by name, with all of their values"):
        foreign.read_state(tmp_path / "b.pt")
    for odd in (torch.zeros(2, device="meta"), torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])):
        torch.save({**state, first: odd}, tmp_path / "c.pt")
        with pytest.raises(ValueError, match="dense tensors by name, with all of their values"):
            foreign.read_state(tmp_path / "c.pt")
    with pytest.raises(ValueError, match="1000000 x 1000000 pixels, more than the 134,217,728 that a clip may have"):
        Config(classes=3, size=10**6)
