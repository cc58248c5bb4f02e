"""`stabn-train`: trains on Synthetic-Something (here) or on labelled videos (`stabn.engine`), saves as it goes, resumes
where it stopped."""

from __future__ import annotations

import glob
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from stabn import opencv_advice, unwritable
from stabn.command import UsageError, alone, command

if TYPE_CHECKING:
    import torch

    from stabn.model import STABN, Config

Backbone = Literal["compact", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
Foreign = Literal["c3d", "i3d", "r3d_18", "mc3_18", "r2plus1d_18", "s3d", "tsn", "tsm"]


@dataclass(frozen=True)
class Options:
    """Train the compact network on generated clips, or with --data a 3D ResNet on labelled videos as the paper does.

    Stopped and started again with the same --out, it goes on. `stabn-train --data DATA --help` shows the defaults of
    --data. On eight GPUs: torchrun --nproc-per-node 8 -m stabn.train --data DATA, or accelerate launch -m stabn.train.
    """

    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("runs/synthetic.safetensors")
    """The weights to write; FILE.log.jsonl and, until the end, FILE.resume are kept beside them. With --data these are
    the best of all epochs, and FILE with .last before its ending are those of the last one."""
    steps: int = 2400
    """Optimiser steps in all, on generated clips; with --data see --epochs."""
    batch: int = 32
    """Clips per step, of all processes together. A generated clip is never seen again; with --data each is seen once in
    an epoch."""
    rate: float = 3e-3
    """Peak learning rate of AdamW: warmed up over 100 steps, held, and taken to zero over the last third. With --data
    the first one of SGD (momentum 0.9), see --patience."""
    decay: float = 0.05
    """Weight decay."""
    freeze_norm: float = 0.0
    """Share of the steps, at the end, in which batch norm works as at inference: an answer then depends on no other
    clip of its batch. With --data it is not used."""
    init: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Weights to start from, every tensor that fits: the extractor and the perception branch of a trained backbone. Or
    `imagenet`, which downloads torchvision's 2D ResNet of the same depth, or a file of torchvision's weights; both are
    inflated to 3D and need --width 64. Or `none`."""
    seed: int = 0
    """Fixes the initial weights and the clips, those of seeds 10**9 * (1 + SEED) and more; not the rounding of bf16."""
    frames: int = 16
    """Frames of a clip."""
    size: int = 64
    """Height and width of a clip in pixels; the attention maps of the compact network have an eighth of it."""
    backbone: Backbone | Foreign = "compact"
    """The network under the attention: compact, or 3D ResNets and others by name, a quarter as wide as their sources
    unless --width says otherwise (64 is full, and the default with --data)."""
    width: int = 16
    """Planes of the first residual layer: the network's size grows with its square."""
    attention: Literal["both", "spatial", "temporal", "none"] = "both"
    """The attention of the paper, one of its parts, or the same backbone without the branch."""
    keep: float = 0.0
    """Faithful attention: weight of the loss of the clip in which only what is attended moves."""
    erase: float = 0.0
    """Faithful attention: weight of the loss of the clip in which what is attended stands still; it must lose."""
    price: tuple[float, float] = (0.0, 0.0)
    """Faithful attention: prices of the means of M_s and of M_t."""
    invert: float = 0.0
    """Faithful attention: weight of the losses under inverted (it must lose) and constant attention (it must not)."""
    answer: float = 0.0
    """Faithful attention: weight of the perception branch's cross-entropy beside the paper's 1."""
    lower: float = 0.0
    """Faithful attention: how much lower the logits of M_s start than in --init, so that M_s shows less, and what it
    shows lies more on what acts. A price takes thousands of steps to do that."""
    masks: float = 0.0
    """Weight of the loss between the attention and the known evidence of generated clips. A comparison: such attention
    shows what it was shown, not what the network needs."""
    backgrounds: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """A folder of pictures to use as backgrounds beside the drawn ones."""
    device: str = "auto"
    """Where to train: auto, cpu, cuda."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """bfloat16 (or float16, with --data) where PyTorch's autocast allows it, or float32 throughout."""
    threads: int = 0
    """Processor threads for the network; 0 leaves it to PyTorch."""
    workers: int = 1
    """Processes that generate or read clips, for each process that trains."""
    save_every: int = 100
    """Steps between two saves of the state that resuming needs."""
    check: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Train nothing: read the headers of all videos of --data, in --workers processes, and list what is wrong."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER|LIST")] = None
    """Labelled videos to train on or to --check: a folder of class folders, a CSV of path and label, or
    Something-Something V1 or V2."""
    validation: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER|LIST")] = None
    """With --data: other labelled videos of the same classes, whose loss decides about the learning rate, and whose
    top-1 about which weights are best. Without it the training loss decides about the rate, and the last are best."""
    epochs: int = 60
    """With --data: how often each clip is seen."""
    patience: int = 5
    """With --data: epochs in a row that may pass without a lower loss; after one more the learning rate is divided by
    10."""
    accumulate: int = 1
    """With --data: parts that each process cuts its clips of a step into, one after the other through the network, when
    all at once do not fit into memory. Batch norm sees a part at a time: its clips are --batch over processes x N."""
    channels_last: bool = True
    """With --data: tensors in the order of memory that convolutions of bf16 and fp16 are fastest with."""
    compile: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """With --data: run torch.compile over the network first, which takes minutes and may pay in a long training."""


# What --data has in place of the defaults: the paper's recipe.
RECIPE = Options(
    out=Path("runs/videos.safetensors"),
    batch=64,
    rate=0.01,
    decay=5e-4,
    frames=32,
    size=224,
    backbone="resnet50",
    init="imagenet",
    width=64,
    workers=4,
)


def rate_at(step: int, options: Options) -> float:
    """Learning rate of a step: linear warm-up, constant, linear to zero over the last third."""
    rise = (step + 1) / min(100, options.steps)
    fall = 3 * (options.steps - step) / options.steps
    return options.rate * min(1.0, rise, fall)


class Clips:
    """The training clips as a map-style data set: item i is generated from the i-th training seed of this run."""

    def __init__(self, options: Options) -> None:
        from stabn.synthetic import TRAINING_SEEDS

        self.options, self.first = options, TRAINING_SEEDS * (1 + options.seed)
        self.backgrounds = read_pictures(options.backgrounds) if options.backgrounds else None

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        from stabn.synthetic import generate

        o = self.options
        sample = generate(self.first + index, o.frames, o.size, self.backgrounds)
        return (sample.frames, sample.label, sample.mask, sample.action)[: 4 if o.masks else 2]


def write_state(state: dict[str, Any], path: Path) -> None:
    """Writes what resuming needs, whole or not at all. Raises OSError; what was there before stays."""
    import torch

    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch makes one of the other
        partial.unlink(missing_ok=True)
        raise OSError(f"cannot write {path}: {' '.join(str(error).split())[:200]}") from None


DAMAGED = "{} is damaged, or no state of stabn-train: remove it to train from the start"


def read_state(path: Path, device: Any, recipe: dict[str, Any]) -> dict[str, Any]:
    """What a stopped run left to resume from. Raises ValueError if the file is something else, or of another recipe."""
    from stabn.checkpoint import unpickled

    try:
        state = unpickled(path, device)
    except Exception:  # the reader of pickles raises whatever the damaged bytes lead it to
        state = None
    parts = {"recipe": dict, "network": dict, "optimizer": dict}
    if not isinstance(state, dict) or not all(isinstance(state.get(name), kind) for name, kind in parts.items()):
        raise ValueError(DAMAGED.format(path))
    was = state["recipe"]
    if changed := [k for k in {**recipe, **was} if was.get(k) != recipe.get(k)]:
        told = ", ".join(f"{k} {was.get(k)} (now {recipe.get(k)})" for k in changed)
        raise ValueError(f"{path}: this run was started with other options: {told}. Use these, or another --out")
    return state


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """What is inside takes parts of a state from a file: whatever a wrong one raises becomes a ValueError."""
    try:
        yield
    except Exception:
        raise ValueError(DAMAGED.format(path)) from None


def read_pictures(folder: Path) -> list[Any]:
    """The pictures of a folder, uint8 RGB, their short side scaled down to 256 pixels.

    Raises:
        ValueError: the folder holds none.
    """
    import cv2

    pictures = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if picture is not None and min(picture.shape[:2]) >= 16:
            scale = min(1.0, 256 / min(picture.shape[:2]))
            small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            pictures.append(small[..., ::-1].copy())
    if not pictures:
        raise ValueError(f"{folder}: no picture of at least 16 x 16 pixels to use as a background")
    return pictures


def config_of(options: Options, classes: int) -> Config:
    """The network that is asked for. Raises UsageError: it cannot be."""
    from stabn.backbones import shapes
    from stabn.model import Config

    asked: dict[str, Any] = {name: getattr(options, name) for name in ("frames", "size", "width", "attention")}
    asked |= {"classes": classes, "crop": options.data is not None}  # generated clips are squares
    try:
        if options.backbone == "compact":
            return Config(layers=(1, 1, 1, 1), stem=(5, 5, 5), pool=False, **asked)
        if options.backbone.startswith("resnet"):
            return Config.resnet(int(options.backbone.removeprefix("resnet")), **asked)
        config = Config(backbone=options.backbone, **asked)
    except ValueError as error:
        raise UsageError(str(error)) from None
    # The last step of an epoch, or a part of one whose other clips cannot be read, may have one clip.
    if options.data is not None and shapes(config)[1][1:].numel() == 1:
        raise UsageError(
            f"the last stage of {options.backbone} leaves one value for each channel of a clip of {options.frames} "
            f"frames of {options.size} x {options.size} pixels, and batch norm needs two where a clip is alone: pass "
            "more --frames or a larger --size"
        )
    return config


def device_of(options: Options) -> torch.device:
    """Where to train. Raises UsageError: this machine has no such device."""
    from stabn import checkpoint

    try:
        return checkpoint.pick_device(options.device)
    except ValueError as error:
        raise UsageError(f"--device: {error}") from None


def initialised(network: STABN, init: str | None) -> tuple[STABN | None, str | None]:
    """Copies the weights of --init into a network. Returns the network they are from, if it is one of ours, and what to
    call them: by what they hold, for where a file lies says nothing to others.

    Raises UsageError: there is no such file; ValueError: none fits, or they cannot be read or downloaded.
    """
    from stabn import checkpoint, foreign

    trained, state = None, None
    if init in (None, "none"):
        return None, None
    if init == "imagenet":
        try:
            foreign.inflate(network, state := foreign.imagenet(network))
        except ValueError as error:
            raise ValueError(f"--init imagenet: {error}; --init none begins with random weights") from None
    else:
        try:
            start_from(network, trained := checkpoint.load(init))
        except checkpoint.CheckpointError as error:
            if not Path(init).exists():
                raise UsageError(f"--init: {error}") from None
            try:  # no file of ours: perhaps one of torchvision's
                state = foreign.read_state(Path(init))
            except ValueError:
                raise error from None
            foreign.inflate(network, state)
    return trained, f"{Path(init).stem} {checkpoint.weights_hash(state or init)[:16]}"


def start_from(network: Any, trained: Any) -> None:
    """Copies every tensor that both networks have in the same shape into `network`.

    Raises:
        ValueError: none fits.
    """
    own, found = network.state_dict(), trained.state_dict()
    if network.config.variant != trained.config.variant:  # one of them takes BGR
        found["stem.0.weight"] = found["stem.0.weight"].flip(1)
    if trained.attention is None:  # the branch begins with a layer4 of its own
        found |= {f"attention.blocks.{k[7:]}": tensor for k, tensor in found.items() if k.startswith("layer4.")}
    fitting = {k: v for k, v in found.items() if k in own and own[k].shape == v.shape}
    if (first := next(iter(own))) not in fitting:
        theirs = next(iter(found.values()))
        raise ValueError(
            f"--init: not even the first convolution fits, {tuple(theirs.shape)} of the weights and "
            f"{tuple(own[first].shape)} of the network: they are of another kind or --width, choose the --backbone and "
            "the --width of the weights"
        )
    network.load_state_dict(own | fitting)


def check(options: Options) -> None:
    """Everything about the options that can be known before any work.

    Raises:
        UsageError: one of them is out of range, or --out cannot be a file.
    """
    least = {"steps": 1, "batch": 2, "seed": 0, "frames": 2, "size": 16, "width": 1, "threads": 0, "workers": 0}
    for name, lowest in (least | {"save_every": 1, "epochs": 1, "patience": 0, "accumulate": 1}).items():
        if getattr(options, name) < lowest:
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} is {getattr(options, name)}: it must be at least {lowest}")
    if not 0 <= options.rate < 1:
        raise UsageError(f"--rate is {options.rate}: it must be at least 0 and below 1")
    if not 0 <= options.freeze_norm <= 1:
        raise UsageError(f"--freeze-norm is {options.freeze_norm}: it is a share of the steps, from 0 to 1")
    asked = (options.keep, options.erase, *options.price, options.invert, options.answer, options.masks, options.lower)
    flags = "--keep, --erase, --price, --invert, --answer, --masks and --lower"
    if min(asked) < 0:
        raise UsageError(f"{flags} must be at least 0, got {min(asked)}")
    if any(asked) and options.attention != "both":
        raise UsageError(
            f"{flags} need spatial and temporal attention: leave them out, or --attention {options.attention}"
        )
    if options.check and options.data is None:
        raise UsageError("--check needs --data: the folder or the list of labelled videos to look at")
    for name in ("data", "validation"):
        if (data := getattr(options, name)) is not None and not data.exists():
            raise UsageError(f"--{name} {data} does not exist")
    given = [name for name in _GENERATED if getattr(options, name) != getattr(RECIPE, name)]
    if options.data is not None and given and not options.check:
        raise UsageError(f"--{given[0]} is for training on generated clips: leave it out, or leave out --data")
    given = [name for name in _VIDEOS if getattr(options, name) != getattr(RECIPE, name)]
    if options.data is None and (given or options.precision == "fp16"):
        flag = given[0].replace("_", "-") if given else "precision fp16"
        raise UsageError(f"--{flag} is for training on labelled videos: pass --data too")
    if options.data is not None and options.device not in ("auto", "cpu", "cuda"):
        raise UsageError(
            f"--device is {options.device}: with --data it must be auto, cpu or cuda (see CUDA_VISIBLE_DEVICES)"
        )
    if options.out.is_dir():
        raise UsageError(
            f"--out {options.out} is a folder: name the file to write, for example {options.out}/mine.safetensors"
        )
    if not options.check and (above := unwritable(options.out.parent)):
        raise UsageError(f"--out {options.out} cannot be written: {above} is a file or is write-protected")


def check_data(options: Options) -> int:
    """The exit code of `--check`. Raises UsageError: --data is no labelled videos, or could be several lists."""
    check(options)
    from stabn import check as checking
    from stabn.data import DataError

    try:
        return checking.check(options.data or Path(), options.workers)
    except DataError as error:
        raise UsageError(str(error)) from None


def train(options: Options) -> None:
    """Trains, logs a JSON line every 20 steps, saves; see Options.

    Raises:
        ValueError: an option is out of range, the folder of backgrounds is of no use, the state to resume from was
            made with other options, or another run is writing there.
    """
    check(options)
    with writing(options.out):
        _train(options)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """This process alone trains to `out`, and what a killed one left half written is removed. Raises ValueError."""
    new = not out.parent.exists()
    try:
        with alone(out.with_name(f"{out.name}.lock"), out):
            names = (out.name, f"{out.stem}.last{out.suffix}")
            left = [each for name in names for each in out.parent.glob(f".{glob.escape(name)}.*.tmp")]
            for each in (*left, out.with_name(f"{out.name}.resume.partial")):
                each.unlink(missing_ok=True)
            yield
    finally:
        if new:
            with suppress(OSError):  # there is something in it
                out.parent.rmdir()


def _train(options: Options) -> None:
    import cv2
    import torch
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    from stabn import backbones, checkpoint, faithful, model, synthetic

    if options.threads:
        torch.set_num_threads(options.threads)
    cv2.setNumThreads(1)
    torch.manual_seed(options.seed)
    device = device_of(options)
    config = config_of(options, len(synthetic.CLASSES))
    network = model.STABN(config, synthetic.CLASSES).to(device)
    backbones.channels_last(network)
    weights = faithful.Weights(
        options.keep, options.erase, *options.price, options.invert, options.answer, options.masks
    )
    trained, origin = initialised(network, options.init)
    if any(weights) and (trained is None or trained.attention is None):
        faithful.prepare(network)
    if options.lower:
        faithful.lower(network, options.lower)
    optimizer = torch.optim.AdamW(network.parameters(), options.rate, weight_decay=options.decay)

    # What decides the weights; the rest (threads, workers, where to write) may change between two runs.
    recipe = decisive(options) | {"init": origin, "generator": synthetic.VERSION}
    if options.backgrounds:
        recipe["backgrounds"] = options.backgrounds.name
    state_file = options.out.with_name(options.out.name + ".resume")
    log_file = options.out.with_name(options.out.name + ".log.jsonl")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    step, seconds = 0, 0.0
    if options.out.exists():
        raise ValueError(f"{options.out} is finished already: name another --out, or move it away")
    if state_file.exists():
        state = read_state(state_file, device, recipe)
        with whole(state_file):
            network.load_state_dict(state["network"])
            optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["random"].cpu())
            step, seconds = int(state["step"]), float(state["seconds"])
            if not 0 <= step <= options.steps:
                raise ValueError
    keep_log(log_file, step)

    loader: DataLoader[Any] = DataLoader(
        Clips(options),  # type: ignore[arg-type]
        batch_size=options.batch,
        sampler=range(step * options.batch, options.steps * options.batch),
        num_workers=options.workers,
        prefetch_factor=4 if options.workers else None,
        worker_init_fn=one_thread,
        generator=torch.Generator(),  # else it draws from the stream of chance that dropout resumes
    )
    network.train()
    begun, sums = time.perf_counter() - seconds, defaultdict[str, list[float]](list)
    progress = tqdm(loader, total=options.steps, initial=step, unit="step", disable=None)
    for frames, labels, *evidence in progress:
        clips = network.normalise(frames.to(device).permute(0, 4, 1, 2, 3).float())
        clips, labels = clips.contiguous(memory_format=torch.channels_last_3d), labels.to(device)
        if step >= options.steps * (1 - options.freeze_norm):
            for layer in backbones.batch_norms(network):
                layer.eval()
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, options)
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
            features = network.extract(clips)
            attention, attention_logits = network.attend(features)
            output = model.Output(network.perceive(features, attention), attention_logits, attention)
            paper = model.loss(output, labels)
            losses = {"loss": paper.total, "perception": paper.perception, "attention": paper.attention}
            if attention is not None and any(weights):
                losses |= faithful.losses(network, clips, features, attention, labels, weights)
                if evidence:
                    losses["masks"] = faithful.supervised(attention, *(each.to(device) for each in evidence))
        optimizer.zero_grad()
        (paper.total + weights.total(losses)).backward()
        # bfloat16 convolutions on a CPU now and then give a gradient that is not finite: such a step is left out.
        if torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0).isfinite():
            optimizer.step()
        step += 1

        losses["top1"] = (output.logits.argmax(1) == labels).float().mean()
        for name, value in losses.items():
            sums[name].append(value.item())
        if step % 20 == 0 or step == options.steps:
            line = {name: round(sum(values) / len(values), 4) for name, values in sums.items()}
            if not all(v == v for v in line.values()):
                raise ValueError(f"the loss became NaN at step {step}: train with a lower --rate than {options.rate:g}")
            seconds = time.perf_counter() - begun
            sums.clear()
            progress.set_postfix({k: f"{v:.2f}" for k, v in line.items()})
            with log_file.open("a") as log:
                log.write(json.dumps({"step": step, "seconds": round(seconds, 1), **line}) + "\n")
        if step % options.save_every == 0 and step < options.steps:
            state = {"recipe": recipe, "network": network.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"random": torch.get_rng_state(), "step": step, "seconds": time.perf_counter() - begun}
            write_state(state, state_file)

    network.metadata["trained"] = {
        **recipe,
        "clips": options.steps * options.batch,
        "seconds": round(time.perf_counter() - begun),
        "torch": torch.__version__,
    }
    checkpoint.save(network.eval(), options.out)
    state_file.unlink(missing_ok=True)


# Options that decide nothing about the weights, and those of one kind of data only.
_FREE = {"out", "device", "threads", "workers", "save_every", "check", "data"}
_GENERATED = ("steps", "keep", "erase", "price", "invert", "answer", "lower", "freeze_norm", "masks", "backgrounds")
_VIDEOS = ("validation", "epochs", "patience", "accumulate", "channels_last", "compile")


def decisive(options: Options) -> dict[str, Any]:
    """The options that decide the weights, ready for JSON but for --init and --backgrounds; the rest may change between
    two runs."""
    unused = {*_FREE, *(_GENERATED if options.data is not None else ()), *_VIDEOS}
    return {k: v for k, v in asdict(options).items() if k not in unused}


def train_on_videos(options: Options) -> None:
    """Training with --data, see `stabn.engine.train`. Raises UsageError, ValueError and OSError."""
    check(options)
    from stabn.data import DataError

    try:
        from stabn import engine
    except ModuleNotFoundError as error:
        if error.name != "accelerate":
            raise
        raise UsageError("--data needs Hugging Face Accelerate: pip install 'stabn[train]'") from None
    try:
        engine.train(options)
    except DataError as error:
        raise UsageError(str(error)) from None


def keep_log(log_file: Path, step: int) -> None:
    """Cuts the log back to the step that is resumed from, so that no step stands in it twice."""
    if not log_file.exists():
        return
    kept = 0  # bytes; cut off in place, so that nothing is lost whenever this is killed
    with log_file.open("r+b") as file:
        for line in file:
            try:
                if json.loads(line)["step"] > step or not line.endswith(b"\n"):
                    break
            except (ValueError, KeyError, TypeError):  # cut off while it was written
                break
            kept += len(line)
        file.truncate(kept)


def one_thread(_: int) -> None:
    import cv2

    cv2.setNumThreads(1)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `stabn-train`. Exit code 0: the weights are written, or all videos are fine; 1: training failed,
    or a video or label is bad; and those of `stabn.command`."""
    given = sys.argv[1:] if arguments is None else arguments
    videos = any(each == "--data" or each.startswith("--data=") for each in given)
    out = Path()

    def run() -> int:
        nonlocal out
        options = tyro.cli(Options, prog="stabn-train", args=arguments, default=RECIPE if videos else Options())
        out = options.out
        if options.check:
            return check_data(options)
        try:
            (train if options.data is None else train_on_videos)(options)
        except ImportError as error:
            if (advice := opencv_advice(error)) is None:
                raise
            raise ImportError(advice) from None
        if os.environ.get("RANK", "0") == "0":  # of several processes one says it
            print(f"wrote {options.out}")
        return 0

    def interrupted() -> str:
        saved = (state := Path(f"{out}.resume")).exists() and state.stat().st_size
        return "the same command goes on from the last save" if saved else "nothing was saved yet"

    if code := command(run, interrupted):
        sys.exit(code)


if __name__ == "__main__":
    main()
