"""Networks as files: safetensors, with all that rebuilds the network in the file's own header.

A file holds the state dict and, as JSON strings in the header, `config` (which includes the preprocessing),
`classes` and the free `metadata`: how the weights were trained, what was measured. The weights that the paper's
authors released are read too; `stabn.published` knows their names.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.overrides import TorchFunctionMode

from stabn import backbones, published
from stabn.model import STABN, Config

FORMAT = "stabn"
VERSION = 1
STORAGE = (torch.float32, torch.float16, torch.bfloat16)

# What numpy's numbers are pickled with: released files hold a score, which may be one.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMBERS: list[Any] = [
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(np.dtype, *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8"))),
]

_HERE = Path(__file__).resolve().parent
_FOLDERS = (_HERE / "checkpoints", _HERE.parent / "checkpoints")  # in a wheel, in a checkout


class CheckpointError(ValueError):
    """One sentence that names the file (or the argument) and the reason."""


def save(model: STABN, path: str | os.PathLike[str], dtype: torch.dtype | None = None) -> None:
    """Write a network, whole or not at all: a file that was there before stays until the new one is complete.

    `dtype` float16 or bfloat16 stores the floating weights in half the bytes; None keeps them as they are.
    `load` gives float32 in any case. `model.metadata` must be what JSON can hold. Raises CheckpointError.
    """
    path = Path(path)
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    if dtype is not None and dtype not in STORAGE:
        raise CheckpointError(f"`dtype` must be one of {', '.join(map(str, STORAGE))}; got {dtype}")
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        stored = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
        if not torch.isfinite(stored).all():
            raise CheckpointError(f"{path} is not written: `{name}` has values that are not finite in {stored.dtype}")
        tensors[name] = stored
    header = {"format": FORMAT, "version": str(VERSION)}
    parts = {"config": asdict(model.config), "classes": model.classes, "metadata": model.metadata}
    for key, part in parts.items():
        try:
            header[key] = json.dumps(part, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is not written: `{key}` cannot be JSON ({error})") from None

    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(to_bytes(tensors, header))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)  # gone already when all went well


class _Unfilled(TorchFunctionMode):
    """Networks are built without their first weights. To fill those on the meta device, where there is nothing to fill,
    PyTorch would import its compiler: 2 s and 160 MB."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        fills = function in (Tensor.normal_, Tensor.uniform_, torch.eye)
        if fills or getattr(function, "__module__", "") == "torch.nn.init":
            for each in (*args, *options.values()):
                if isinstance(each, Tensor):
                    return each
        return function(*args, **options)


def load(name_or_path: str | os.PathLike[str], device: str | torch.device = "cpu") -> STABN:
    """A bundled network by name ("synthetic") or one from a file, in eval mode and float32.

    `device` is "cpu", "cuda", "cuda:1", "mps", or "auto": the first of cuda, mps and cpu that is there.
    Files of `torch.save` are read without running their code (`weights_only`) if they hold a dictionary of
    `config`, `classes`, `state_dict` and perhaps `metadata`, or the weights of the paper's authors, as released or
    their state dict alone: those give `Config(variant="published")` for 224 x 224 pixels, and Something-Something
    V2's class names if there are 174. Raises CheckpointError.
    """
    target = pick_device(device)
    path = locate(name_or_path)
    content = _read(path)
    config, state = content.config, content.state
    try:
        if sum(config.layers) > len(state):  # before a wrong number builds a million layers
            raise ValueError(f"{len(state)} tensors are too few for {config.layers} blocks")
        with torch.device("meta"), _Unfilled():  # shapes only: nothing is allocated before they are known to fit
            model = STABN(config, content.classes, content.metadata)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{path} cannot be loaded: {_line(error)}") from None

    expected = model.state_dict()
    for problem, names in (
        ("lacks", expected.keys() - state.keys()),
        ("has unknown", state.keys() - expected.keys()),
    ):
        if names:
            some = ", ".join(sorted(map(content.called, names))[:3]) + (", ..." if len(names) > 3 else "")
            raise CheckpointError(
                f"{path} does not fit {content.plan}: it {problem} {_count(len(names), 'tensor')} ({some})"
            )
    for name, tensor in state.items():
        shape, needed = tuple(tensor.shape), tuple(expected[name].shape)
        if shape != needed or tensor.dtype != expected[name].dtype:
            raise CheckpointError(
                f"{path} does not fit {content.plan}: `{content.called(name)}` is {tensor.dtype} of shape {shape}, "
                f"{expected[name].dtype} of shape {needed} is needed"
            )
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path} is damaged: `{content.called(name)}` has values that are not finite")
    model.load_state_dict(state, assign=True)
    backbones.channels_last(model)  # faster on a CPU, most of all where gradients are asked for
    return model.to(target).eval()


def weights_hash(source: torch.nn.Module | Mapping[str, Tensor] | str | os.PathLike[str]) -> str:
    """The identity of weights: sha256 (hex) over names, shapes, types and bytes of the tensors in name order.

    `source` is a network, a state dict, a file or a bundled name; a file and the network loaded from it have the same
    hash, for floating tensors count as float32. Corrected metadata does not change it. Raises CheckpointError.
    """
    if isinstance(source, torch.nn.Module):
        source = source.state_dict()
    state = _as_loaded(source) if isinstance(source, Mapping) else _read(locate(source)).state
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{name.removeprefix('_orig_mod.')} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def locate(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a bundled name or of a path; a bundled name wins. Raises CheckpointError."""
    bundled = {file.stem: file for folder in reversed(_FOLDERS) for file in sorted(folder.glob("*.safetensors"))}
    if str(name_or_path) in bundled:
        return bundled[str(name_or_path)]
    path = Path(name_or_path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, a checkpoint is a file")
    if not path.exists():
        names = ", ".join(sorted(bundled)) or "none is installed"
        raise CheckpointError(f"{path} is neither a file nor the name of a bundled checkpoint ({names})")
    return path


def pick_device(device: str | torch.device) -> torch.device:
    """A device that this machine has; "auto" is the first of cuda, mps and cpu. Raises CheckpointError."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if str(device) == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        target = torch.device(device)
    except (RuntimeError, TypeError):
        raise CheckpointError(f"`device` must be auto, cpu, cuda, cuda:N or mps; got {device!r}") from None
    count = {"cpu": 1, "cuda": torch.cuda.device_count() if cuda else 0, "mps": int(mps)}.get(target.type)
    if count is None:
        raise CheckpointError(f"`device` must be auto, cpu, cuda, cuda:N or mps; got {str(device)!r}")
    if (target.index or 0) >= count:
        raise CheckpointError(
            f"`device` is {target}, but this machine has {_count(count, f'{target.type} device')}: use auto"
        )
    return target


class _Content(NamedTuple):
    config: Config
    classes: list[str]
    metadata: dict[str, Any]
    state: dict[str, Tensor]  # float32 where floating, on the CPU, not shared with the file
    plan: str = "its config"  # what the tensors have to fit
    called: Callable[[str], str] = str  # a tensor's name in our network -> its name in the file


START = 9  # bytes of a file that `pickled` needs


def pickled(start: bytes) -> bool:
    """Whether a file of weights that begins so is one of torch.save, now or long ago; else it is one of safetensors,
    the length of whose header may begin alike, but then comes a brace."""
    return start.startswith((b"PK\x03\x04", b"\x80")) and start[8:] != b"{"


def _read(path: Path) -> _Content:
    """What a file says, its parts checked one by one, not yet against each other."""
    try:
        with open(path, "rb") as file:
            start = file.read(START)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    if not start:
        raise CheckpointError(f"{path} is empty, not a checkpoint")
    parts, state = _read_pickle(path) if pickled(start) else _read_safetensors(path)
    config, classes, metadata = (parts[key] for key in ("config", "classes", "metadata"))
    if not isinstance(config, dict) or not isinstance(metadata, dict):
        raise CheckpointError(f"{path} has a wrong header: `config` and `metadata` must be dictionaries")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise CheckpointError(f"{path} has a wrong header: `classes` must be a list of names")
    unknown = {str(key) for key in config} - {field.name for field in fields(Config)}
    if unknown or "classes" not in config:
        what = f"unknown `{min(unknown)}`" if unknown else "no number of `classes`"
        raise CheckpointError(f"{path} has a wrong config: {what}")
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in config.items()}
    try:
        built = Config(**values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} has a wrong config: {_line(error)}") from None
    if "plan" in parts:
        return _Content(built, classes, metadata, _as_loaded(state), parts["plan"], published.called)
    return _Content(built, classes, metadata, _as_loaded(state))


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {_line(error)}") from None
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path} is a safetensors file, but not one of stabn: write it with stabn.save")
    if header.get("version") != str(VERSION):
        version = header.get("version")
        raise CheckpointError(f"{path} has format version {version}, this program reads {VERSION}: update stabn")
    parts: dict[str, Any] = {}
    for key in ("config", "classes", "metadata"):
        try:
            parts[key] = json.loads(header[key])
        except (KeyError, ValueError, RecursionError):
            raise CheckpointError(f"{path} has a wrong header: `{key}` is missing or not JSON") from None
    return parts, state


def _read_pickle(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        content = unpickled(path)
    except Exception:
        raise CheckpointError(
            f"{path} cannot be read: it is damaged or holds more than tensors and plain values, "
            "and code in checkpoints is never run"
        ) from None
    keys = ("config", "classes", "state_dict")
    ours = isinstance(content, dict) and all(key in content for key in keys)
    state = content["state_dict"] if ours else published.found(content)
    if state is None:
        raise CheckpointError(
            f"{path} is a torch.save file without the dictionary of {', '.join(keys)}, and without the tensors of "
            "the ST-ABN weights that the paper's authors released"
        )
    if not isinstance(state, dict) or not plain(state, path):
        raise CheckpointError(
            f"{path} has a wrong `state_dict`: it must hold dense tensors by name, with all of their values"
        )
    if ours:
        return {"metadata": {}, **content}, state
    try:
        return published.read(state, content)
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be loaded: {error}") from None


def unpickled(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Any:
    """What a file of torch.save holds, without running its code. A damaged or hostile one can raise anything."""
    with torch.serialization.safe_globals(_NUMBERS), warnings.catch_warnings(action="ignore"):
        return torch.load(path, map_location=device, weights_only=True)


def plain(state: Mapping[Any, Any], path: Path) -> bool:
    """Whether these are dense tensors of real numbers by name, not much larger than the file that they were read from:
    a pickle can spread one number over any shape."""
    return (
        all(
            isinstance(name, str)
            and isinstance(each, Tensor)
            and each.layout == torch.strided
            and not (each.is_meta or each.is_nested or each.is_quantized or each.is_complex())
            for name, each in state.items()
        )
        and sum(each.numel() * each.element_size() for each in state.values()) <= 4 * path.stat().st_size
    )


def _as_loaded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies (no tensor lives in a mapped file) on the CPU, floating ones in float32."""
    return {
        name: tensor.detach()
        .to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
        .contiguous()
        for name, tensor in state.items()
    }


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
