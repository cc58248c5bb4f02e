"""`stabn-explain`: videos in, a folder for each with where and when the network looked.

tyro builds the command line from the dataclass below: `--help` took 0.19 to 0.27 s (argparse alone 0.05 s),
within the half second it may take, and one declaration gives options, types and help. Nothing heavy is
imported before it.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from explain import METHODS
from stabn import opencv_advice, unwritable
from stabn.command import UsageError, command, in_words
from stabn.data import VIDEOS

if TYPE_CHECKING:
    from explain.models import Classifier


def _option(metavar: str, default: str) -> Any:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"({default})")


_Flag = tyro.conf.FlagCreatePairsOff


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Which network, for every command that takes any."""

    checkpoint: Annotated[str, _option("NAME|FILE", "default: synthetic")] = "synthetic"
    """The network: the name of a bundled one, or a file."""
    model: Annotated[str | None, _option("torchvision:NAME|MODULE:FUNCTION", "default: the checkpoint")] = None
    """Another network: torchvision's r3d_18, mc3_18, r2plus1d_18, s3d, mvit_v2_s or swin3d_t, or what a function of
    yours without arguments builds, for example package.module:build."""
    weights: Annotated[Path | None, _option("FILE", "default: torchvision's, or as built")] = None
    """The model's state dict, a file of safetensors or torch.save."""
    classes: Annotated[Path | None, _option("FILE", "default: torchvision's")] = None
    """The names of the model's classes: one on each line, or a list in JSON."""
    layout: Annotated[Literal["NCTHW", "NTCHW"] | None, _option("NCTHW|NTCHW", "default: NCTHW")] = None
    """The order of axes in the clips (N, 3, T, H, W) or (N, T, 3, H, W) that the model takes."""
    frames: Annotated[int | None, _option("T", "default: 16, or torchvision's")] = None
    """The number of frames that the model takes."""
    size: Annotated[int | None, _option("PIXELS", "default: 112, or torchvision's")] = None
    """The side of the square pictures that the model takes."""
    layer: Annotated[str | None, _option("NAME", "default: the last with a grid")] = None
    """The layer that the CAM methods look at."""
    device: Annotated[str, _option("NAME", "default: auto")] = "auto"
    """Where the network runs: auto, cpu, cuda, cuda:1, mps."""


@dataclass(frozen=True, kw_only=True)
class Options(NetworkOptions):
    """Show where and when a video network looked, in a folder of results for each video.

    The bundled network knows a few motions; a clip may show none of them. --model takes any other classifier.
    """

    videos: Annotated[tuple[str, ...], tyro.conf.Positional, _option("VIDEO ...", "required")]
    """Video files, folders of videos, folders of frames (images), or globs in quotes."""
    out: Annotated[Path, _option("FOLDER", "default: viz")] = Path("viz")
    """The results of a.mp4 go into the folder a in this one."""
    method: Annotated[str | None, _option("|".join(METHODS), "default: stabn, or grad_cam with --model")] = None
    """How to explain; stabn shows the attention that the network itself applied. Several, with commas between them, or
    all stand side by side."""
    layers: Annotated[bool, _Flag] = False
    """Only list the layers that can be looked at in the first video, with their grids of time x height x width."""
    score: Annotated[bool, _Flag] = False
    """Also measure how far the answer follows the map (deletion, insertion, ...), beside a random map."""
    target: Annotated[str | None, _option("CLASS", "default: the predicted class")] = None
    """The class to ask about, by name or index."""
    overwrite: Annotated[bool, _Flag] = False
    """Make results anew, and replace finished ones of other inputs or options."""
    window: Annotated[float, _option("SECONDS", "default: the whole video in one look")] = 0.0
    """For long videos: look at windows of this length and merge them."""
    stride: Annotated[float, _option("SECONDS", "default: half a window")] = 0.0
    """From the start of one window to that of the next."""
    frames_png: Annotated[bool, _Flag] = False
    """Also write a picture with heat for each sampled frame, into frames/."""
    maps_at_source_size: Annotated[bool, _Flag] = False
    """Also write the maps at the source's size: spatial_source (T, H, W) in explanation.npz."""
    top: Annotated[int, _option("K", "default: 1")] = 1
    """The summary line names the K best classes, 1 to 5."""
    processes: Annotated[int, _option("N", "default: 1")] = 1
    """Processes that each run a network on videos of their own, on the GPUs in turn."""
    quiet: Annotated[bool, _Flag] = False
    """No summary lines and no progress; errors are still written to stderr."""
    json: Annotated[bool, _Flag] = False
    """One line of JSON for each video on stdout, and nothing else there."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 all done or done before, 1 a video failed, and those of `stabn.command`."""

    def parsed() -> int:
        options = tyro.cli(Options, prog="stabn-explain", args=arguments)
        with contextlib.suppress(ValueError):  # outside the main thread signals belong to somebody else
            signal.signal(signal.SIGTERM, terminated)  # so that an unfinished result is removed then too
        return run(options)

    return command(parsed, lambda: "the unfinished result was removed")


def run(options: Options) -> int:
    """All videos of a command line; gives the exit code. Raises UsageError, and RuntimeError if a process cannot
    begin."""
    videos = _checked(options)
    try:
        from tqdm import tqdm

        from explain.many import Work, explained
        from explain.result import Request
    except ImportError as error:
        if (advice := opencv_advice(error)) is None:
            raise
        print(f"error: {advice}", file=sys.stderr)
        return 1
    from explain.core import class_index, knows

    try:
        network, checkpoint = open_network(options)
        target = None if options.target is None else network.classes[class_index(network.classes, options.target)]
    except ValueError as error:
        raise UsageError(str(error)) from None
    request = Request(
        method=",".join(_methods(options)),
        target=target,
        window=options.window or None,
        stride=(options.stride or options.window / 2) or None,
        frames_png=options.frames_png,
        maps_at_source_size=options.maps_at_source_size,
        score=options.score,
        layer=options.layer,
        layout=options.layout,
        frames=options.frames,
        size=options.size,
    )
    say = _nothing if options.quiet or options.json else lambda line: tqdm.write(line, file=sys.stdout)

    def progress(items: Iterable[Any], count: int, label: str) -> Iterable[Any]:
        # disable=None: only on a terminal
        return tqdm(items, label, count, leave=False, disable=options.quiet or None)

    if options.layers:
        try:
            return _show_layers(videos[0], network, options.json)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            print(f"error: {sentence(error, videos[0])}", file=sys.stderr)
            return 1
    say(f"{checkpoint['name']} {knows(network.classes)}")
    folders = [options.out / name for name in folder_names(videos)]
    work = Work(videos, folders, checkpoint, request, options.overwrite)
    with contextlib.closing(explained(work, network, options, options.processes, progress)) as records:
        each = zip(videos, folders, records, strict=True)
        done = [_tell(options, path, folder, found, say) for path, folder, found in each]
    return int(not all(done))


def _tell(options: Options, path: Path, folder: Path, found: dict[str, Any], say: Callable[[str], None]) -> bool:
    """Says what `explain.many` found about a video; gives whether all that was asked for is there."""
    from tqdm import tqdm

    record = {"video": str(path), "folder": str(folder)}
    done = "error" not in found
    if done:
        manifest, made = found["manifest"], found["made"]
        record |= {"status": "done" if made else "skipped", "overlay": str(folder / "overlay.mp4")}
        keys = ("top5", "knows", "notes", "temporal", "scores", "methods", "refused", "timings")
        record |= {key: manifest[key] for key in keys if key in manifest}
        refused = manifest.get("refused", {})
        unasked = options.method == "all"  # nobody asked for these by name
        done = unasked or not refused
        for method, reason in {} if unasked and options.quiet else refused.items():
            label = "left out" if unasked else "error"
            tqdm.write(f"{label}: {path}: {method}: {reason}", file=sys.stderr)
        say(_summary(path, folder, manifest, made, options.top))
    else:
        record |= {"status": "failed", "error": found["error"]}
        tqdm.write(f"error: {found['error']}", file=sys.stderr)
    if options.json:
        tqdm.write(json.dumps(record, ensure_ascii=False), file=sys.stdout)
    return done


def open_network(options: NetworkOptions) -> tuple[Classifier, dict[str, str]]:
    """The network, and what identifies it in a manifest. Raises ValueError."""
    from explain.models import classifier, open_model, try_out
    from stabn.checkpoint import load, weights_hash

    name, names = options.checkpoint, {}
    if options.model is None:
        network = replace(classifier(load(name, options.device)), layer=options.layer)
        if options.layer:
            try_out(network, name)
    else:
        network = open_model(
            options.model,
            weights=options.weights,
            classes=options.classes,
            layout=options.layout,
            frames=options.frames,
            size=options.size,
            layer=options.layer,
            device=options.device,
        )
        name = options.model
        names = {"classes": hashlib.sha256("\n".join(network.classes).encode()).hexdigest()}
    return network, {"name": name, "sha256": weights_hash(network.module), **names}


def check_network(options: NetworkOptions) -> None:
    """Raises UsageError for options that contradict each other."""
    foreign = {name: getattr(options, name) for name in ("weights", "classes", "layout", "frames", "size")}
    if options.model is None and (given := [name for name, value in foreign.items() if value is not None]):
        raise UsageError(f"--{given[0]} is for another network: give --model too")
    if options.model is not None and options.checkpoint != "synthetic":
        raise UsageError("--model and --checkpoint are two networks: give one of them")


def _show_layers(path: Path, network: Classifier, as_json: bool) -> int:
    """Prints the layers that give a grid for this video's clip, in the order of their last call."""
    from explain.models import cam_layer, layers, undisturbed

    with undisturbed(network.module):
        clip = network.clip(network.read(path).frames)
        found = {name: " x ".join(map(str, size)) for name, size in layers(network, clip).items()}
        taken = cam_layer(network, clip)
    if as_json:
        print(json.dumps({"video": str(path), "layers": found, "taken": taken}, ensure_ascii=False))
        return 0
    size = " x ".join(map(str, clip.shape[2:]))
    wide = max(map(len, found))
    print(f"{path.name}: layers for a clip of {size} (time x height x width), in the order of their last call")
    for name, cells in found.items():
        print(f"  {name:{wide}}  {cells}" + ("  <- the CAM methods look here" if name == taken else ""))
    return 0


def find_videos(arguments: Sequence[str]) -> list[Path]:
    """The videos that arguments mean (files, folders of videos or of frames, globs), each once, in order.

    What is neither there nor a glob stays in the list, so that reading it says what is wrong with it. Raises
    UsageError for a glob that matches nothing.
    """
    found: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        matches = [path]
        if not path.exists() and glob.has_magic(argument):
            matches = [Path(name) for name in sorted(glob.glob(argument, recursive=True))]
            if not matches:
                raise UsageError(f"nothing matches {argument!r}")
        for match in matches:
            inside = []
            if match.is_dir():
                inside = sorted(file for file in match.iterdir() if file.suffix.lower() in VIDEOS and file.is_file())
            found += inside or [match]  # a folder without videos is one of frames
    each: dict[str, Path] = {}
    for path in found:
        each.setdefault(os.path.realpath(path), path)
    return list(each.values())


def folder_names(videos: Sequence[Path]) -> list[str]:
    """A name for each video's folder: its stem; its name where stems collide; where these do too, the
    parent's name before it, and a number in the end.

    Names are compared without case, for file systems that do not tell it apart.
    """
    whole = [Path(os.path.abspath(path)) for path in videos]
    choices = [(path.stem, path.name, f"{path.parent.name}-{path.name}") for path in whole]
    often = [Counter(names[level].casefold() for names in choices) for level in range(3)]
    used: set[str] = set()
    result = []
    for names in choices:
        name = next((n for n, counts in zip(names, often, strict=True) if counts[n.casefold()] == 1), names[2])
        number, unique = 2, name
        while unique.casefold() in used:
            unique, number = f"{name}-{number}", number + 1
        used.add(unique.casefold())
        result.append(unique)
    return result


def _checked(options: Options) -> list[Path]:
    """The videos, after everything that can be checked before heavy work; raises UsageError."""
    from explain.core import check_method, check_window

    methods = _methods(options)
    if not methods:
        raise UsageError("--method is empty, it must be one name or more, with commas between them")
    try:
        for method in methods:
            check_method(method)
        if options.window:
            check_window(options.window, options.stride or options.window / 2)
    except ValueError as error:
        raise UsageError(str(error)) from None
    check_network(options)
    if options.score and options.window:
        raise UsageError("--score is for one look at the whole video: it cannot be combined with --window")
    if options.stride and not options.window:
        raise UsageError("--stride is for windows: give --window SECONDS too")
    if options.processes < 1:
        raise UsageError(f"--processes is {options.processes}, it must be 1 or more")
    if not 1 <= options.top <= 5:
        raise UsageError(f"--top is {options.top}, it must be 1 to 5")
    if above := unwritable(options.out):
        raise UsageError(f"--out {options.out} cannot be written: {above} is a file or is write-protected")
    try:
        videos = find_videos(options.videos)
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from None
    if not videos:
        raise UsageError("no video is given: name files, folders or globs in quotes")
    return videos


def _methods(options: Options) -> list[str]:
    """The methods asked for, each once."""
    default = "stabn" if options.model is None else "grad_cam"
    return listed_methods(options.method or default)


def listed(names: str) -> list[str]:
    """The names of a list with commas, each once."""
    return list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))


def listed_methods(names: str) -> list[str]:
    """The methods of a list with commas; `all` in it stands for all, in the order of METHODS."""
    found = listed(names)
    return list(METHODS) if "all" in found else found


def _summary(path: Path, folder: Path, manifest: dict[str, Any], made: bool, count: int) -> str:
    from explain.core import SURE, percent

    best = manifest["top5"][:count]
    answer = ", ".join(f"{each['class']} {percent(each['probability'])}" for each in best)
    if best[0]["probability"] < SURE:
        answer += " (not sure)"
    peak = manifest.get("temporal", {}).get("looked_most")
    if "methods" in manifest:
        when = f"{len(manifest['methods'])} methods"
    elif peak is None:
        when = "no moment stands out"
    else:
        start, end = (f"{seconds:.1f}" for seconds in peak)
        when = f"looked most at {start}" + (f"-{end} s" if end != start else " s")
    parts = [answer, when, str(folder / "overlay.mp4")]
    return f"{path.name or path}: " + " · ".join(parts if made else [*parts, "finished before, skipped"])


def sentence(error: Exception, path: Path) -> str:
    """What went wrong with a video, in a sentence that names it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or path}: {error.strerror}"
    if isinstance(error, ValueError):
        return str(error)
    return f"{path}: {in_words(error)}"


def terminated(number: int, frame: object) -> None:
    """Ends the process so that `finally` can remove what is unfinished, undisturbed by a second signal."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def _nothing(line: str) -> None:
    pass


if __name__ == "__main__":
    sys.exit(main())
