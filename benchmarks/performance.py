"""What whole jobs cost a user, beside what would be used instead: measures, and writes `docs/performance.md`.

`python benchmarks/performance.py` (about half an hour on two idle cores; `pip install -e '.[benchmarks]'` brings the
peer). What was measured stays in `docs/performance.json`; `--only start memory` measures these sections anew, and
`--only` alone just writes the document again. Candidates take turns in each round, ratios are of one round, medians are
told. Inputs are made here: a generated scene, noisy as a camera's picture. Weights are random: they change no cost.

The peer is the usual parts put together: OpenCV reads all frames, pytorch-grad-cam explains r3d_18, its
`show_cam_on_image` draws, OpenCV writes. It gets the frames, the window, the network and the output size of ours.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
KEPT, DOCUMENT = ROOT / "docs" / "performance.json", ROOT / "docs" / "performance.md"
BELOW = 340  # pixels that the peer adds below the picture at 1080p: as many as ours does, for its text and bars
MIB = 2**20

Found = dict[str, Any]
INPUTS: Path | None = None


class Job(NamedTuple):
    name: str
    seconds: float
    fps: float
    width: int
    height: int
    rounds: int  # unless --rounds says more


JOBS = {
    "short": Job("3 s of 240p", 3, 30, 426, 240, 3),
    "hd": Job("10 s of 1080p", 10, 30, 1920, 1080, 2),
    "long": Job("10 min of 720p, 5 frames/s", 600, 5, 1280, 720, 1),
}


# ----------------------------------------------------------------------------------------------------- measuring


class Cost(NamedTuple):
    """Of a process with its children."""

    seconds: float
    cpu: float  # seconds
    peak: float  # MiB
    said: str


def process(*command: object) -> Cost:
    """Runs `python COMMAND`; RuntimeError if it fails."""
    # From a small process: the peak of a child begins with the memory of the process that starts it.
    launch = [sys.executable, __file__, "--cost", *map(str, command)]
    done = subprocess.run(launch, stdout=subprocess.PIPE, cwd=ROOT, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed")
    return Cost(**json.loads(done.stdout))


def cost(command: list[str]) -> int:
    """Prints the `Cost` of `python COMMAND`, gives its exit code."""
    with tempfile.TemporaryFile("w+") as out:
        start = time.perf_counter()
        child = subprocess.Popen([sys.executable, *command], stdout=out)
        _, status, usage = os.wait4(child.pid, 0)
        took = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        unit = 1024 if sys.platform != "darwin" else MIB
        print(json.dumps(Cost(took, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit, out.read())._asdict()))
    return child.returncode


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def prose(*parts: str) -> list[str]:
    return textwrap.wrap(" ".join(parts), 118)


def machine() -> Found:
    import torch

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next((x.split(":")[1].strip() for x in cpuinfo.read_text().splitlines() if "model name" in x), model)
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "when": datetime.now(UTC).isoformat(timespec="minutes"),
    }


@contextmanager
def inputs() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def made(folder: Path, job: Job) -> Path:
    """The job's video: at most 10 s are encoded, a longer one repeats their packets. Those of `--inputs` stay."""
    import av
    from speed import video

    path, first = (INPUTS or folder) / f"{job.width}x{job.height}-{job.seconds:g}.mp4", folder / "first.mp4"
    if path.exists():
        return path
    part = min(job.seconds, 10.0)
    video(first, part, job.fps, job.width, job.height)
    with av.open(str(first)) as source, av.open(str(path), "w") as output:
        stream = source.streams.video[0]
        copy = output.add_stream_from_template(stream)
        for number in range(round(job.seconds / part)):
            source.seek(0)
            for packet in source.demux(stream):
                if packet.size and packet.pts is not None and packet.dts is not None:
                    shift = round(number * part / stream.time_base)
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copy
                    output.mux(packet)
    return path


def weights(folder: Path) -> Path:
    import torch
    from safetensors.torch import save_file
    from torchvision.models.video import r3d_18

    torch.manual_seed(0)
    save_file(r3d_18().state_dict(), path := folder / "r3d_18.safetensors")
    return path


def ours(source: Path, out: Path, *options: object) -> tuple[object, ...]:
    return ("-m", "explain.cli", source, "--out", out, "--quiet", "--overwrite", *options)


# ------------------------------------------------------------------------------------------ a video, end to end


def peer(source: str, target: str, weights: str, codec: str) -> None:
    """The usual parts. A video whose frames would take more than 4 GiB is read twice, as nobody could hold it."""
    import cv2
    import numpy as np
    import torch
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.image import show_cam_on_image
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    from safetensors.torch import load_file
    from torchvision.models.video import R3D_18_Weights, r3d_18

    network = r3d_18()
    network.load_state_dict(load_file(weights))
    network.eval()
    began = time.perf_counter()

    def read() -> Iterator[Any]:
        video = cv2.VideoCapture(source)
        while (item := video.read())[0]:
            yield cv2.cvtColor(item[1], cv2.COLOR_BGR2RGB)

    facts = cv2.VideoCapture(source)
    count, fps, wide, tall = (
        facts.get(each)
        for each in (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
    )
    count, wide, tall = int(count), int(wide), int(tall)
    held = list(read()) if count * wide * tall * 3 < 4 * 2**30 else None
    indices = (2 * np.arange(16) + 1) * count // 32
    chosen = set(indices.tolist())
    seen = {k: frame for k, frame in enumerate(held or read()) if k in chosen}
    clip = torch.from_numpy(np.stack([seen[k] for k in indices])).permute(0, 3, 1, 2)
    clip = R3D_18_Weights.DEFAULT.transforms()(clip)[None]
    with torch.no_grad():
        best = int(network(clip).argmax())
    with GradCAM(network, [network.layer4]) as method:
        maps = method(clip, [ClassifierOutputTarget(best)])[0]  # (T, 112, 112)

    # What the network saw: the centre of a picture squeezed to 128 x 171.
    rows, columns = slice(tall * 8 // 128, tall * 120 // 128), slice(wide * 30 // 171, wide * 142 // 171)
    below = round(BELOW * wide / 1920) + tall % 2
    below += (tall + below) % 2
    size = wide + wide % 2, tall + below
    if codec == "mp4v":
        writer = cv2.VideoWriter(target, cv2.VideoWriter_fourcc(*"mp4v"), fps, size)
    else:  # the wheels of OpenCV bring no H.264
        from stabn.video import VideoWriter

        writer = VideoWriter(target, *size).__enter__()
    for k, frame in enumerate(held or read()):
        heat = np.zeros((tall, wide), np.float32)
        heat[rows, columns] = cv2.resize(
            maps[np.abs(indices - k).argmin()], (columns.stop - columns.start, rows.stop - rows.start)
        )
        drawn = show_cam_on_image(np.float32(frame) / 255, heat, use_rgb=True)
        drawn = cv2.copyMakeBorder(drawn, 0, below, 0, wide % 2, cv2.BORDER_CONSTANT)
        cv2.putText(drawn, f"class {best}", (10, tall + below // 2), cv2.FONT_HERSHEY_SIMPLEX, 1, (255, 255, 255))
        if codec == "mp4v":
            writer.write(cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
        else:
            writer.write(drawn, k / fps)
    writer.release() if codec == "mp4v" else writer.__exit__(None, None, None)
    print(json.dumps({"total": time.perf_counter() - began}))


def end_to_end(jobs: list[str], rounds: int | None) -> Found:
    found: Found = {}
    for key in jobs:
        job = JOBS[key]
        with inputs() as folder:
            source, state = made(folder, job), weights(folder)
            r3d = ("--model", "torchvision:r3d_18", "--weights", state)
            candidates = {
                "`stabn-explain`, Grad-CAM on r3d_18": ours(source, folder / "a", *r3d),
                "the usual parts, H.264 as ours": (__file__, "--peer", source, folder / "b.mp4", state, "h264"),
                "the usual parts, MPEG-4 by OpenCV": (__file__, "--peer", source, folder / "c.mp4", state, "mp4v"),
                "`stabn-explain`, the bundled network": ours(source, folder / "d"),
            }
            if key == "long":  # it takes minutes, and the short ones tell the rest
                candidates = dict(list(candidates.items())[:2])
            costs: dict[str, list[Found]] = {name: [] for name in candidates}
            for number in range(rounds or job.rounds):
                order = list(candidates.items())
                for name, command in order[number % len(order) :] + order[: number % len(order)]:
                    cost = process(*command)
                    own = folder / {"-m": "a" if r3d[0] in command else "d"}.get(str(command[0]), "") / source.stem
                    told = json.loads(cost.said) if cost.said else json.loads((own / "manifest.json").read_text())
                    timings = told.get("timings", told)
                    costs[name].append({**cost._asdict(), "said": "", "open": timings["total"], "timings": timings})
            found[key] = costs
    return found


def tell_end_to_end(found: Found) -> list[str]:
    lines = [
        *prose(
            "The whole process, from start to exit; in brackets what a video takes once the network is open, as all",
            "but the first of many do. Ours also writes `figure.png`, `temporal.png`, `explanation.npz` and more.",
        ),
        "",
        "| | seconds | the usual parts over ours | CPU seconds | peak, MiB |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for key, costs in found.items():
        first = next(iter(costs.values()))
        lines.append(f"| **{JOBS[key].name}**, {rounds_of(len(first))} | | | | |")
        for name, each in costs.items():
            whole, inside = (median(one[what] for one in each) for what in ("seconds", "open"))
            ratio = ""
            if name.startswith("the usual"):
                pairs = list(zip(each, first, strict=True))
                over = [median(a[what] / b[what] for a, b in pairs) for what in ("seconds", "open")]
                ratio = f"{over[0]:.1f} ({over[1]:.1f})"
            cpu, peak = (median(one[what] for one in each) for what in ("cpu", "peak"))
            lines.append(f"| {name} | {whole:.1f} ({inside:.1f}) | {ratio} | {cpu:.1f} | {peak:,.0f} |")
    starts = [one["seconds"] - one["open"] for costs in found.values() for one in next(iter(costs.values()))]
    said = [
        f"The aim was 2. In whole processes the start weighs most where a video is short, {median(starts):.1f} s of",
        "ours here and much the same on the other side: PyTorch and torchvision are imported, the network is built,",
        "filled and tried with one pass, which finds the layer for Grad-CAM as well.",
    ]
    if "long" in found:
        ours = next(iter(found["long"].values()))
        encode, whole = (median(one["timings"][what] for one in ours) for what in ("encode", "total"))
        said.append(f"Of a long one the encoder decides, alike on both sides: busy for {encode:.0f} of {whole:.0f} s.")
    lines += ["", *prose(*said)]
    return lines


def rounds_of(count: int) -> str:
    return "one round" if count == 1 else f"median of {count} rounds"


# --------------------------------------------------------------------------------------------- stages of the overlay


def stages(rounds: int) -> Found:
    """The stages of the overlay alone and together, on 10 s of 1080p; the encoder's work once more by settings."""
    import stabn
    from explain import render
    from explain.core import explain
    from explain.models import classifier
    from explain.result import Request, explain_video
    from stabn.video import VideoWriter, iter_frames, probe

    found: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    network = classifier(stabn.load("synthetic"))

    @contextmanager
    def counted(name: str) -> Iterator[None]:
        wall, used = time.perf_counter(), time.process_time()
        yield
        found.setdefault(name, []).append(time.perf_counter() - wall)
        cpu.setdefault(name, []).append(time.process_time() - used)

    with inputs() as folder:
        source = made(folder, JOBS["hd"])
        info = probe(source)
        explanation = explain(network, network.read(info))
        overlay = render.Overlay([explanation], info.duration)
        canvases = [(seconds, overlay.draw(frame, seconds)) for seconds, frame in iter_frames(info)]
        _, picture = next(iter_frames(info))

        def timed(items: Iterable[Any], count: int, label: str) -> Iterable[Any]:
            with counted("together"):
                yield from items

        for _ in range(rounds):
            with counted("decode"):
                for _ in iter_frames(info):
                    pass
            with counted("network, with what it reads"):
                explain(network, network.read(info))
            with counted("render"):
                for seconds, _ in canvases:
                    overlay.draw(picture, seconds)
            with VideoWriter(folder / "out.mp4", overlay.width, overlay.height) as writer, counted("encode"):
                for seconds, canvas in canvases:
                    writer.write(canvas, seconds)
            explain_video(
                source, folder / "out", network, {"name": "", "sha256": ""}, Request(), overwrite=True, progress=timed
            )
    return {"frames": info.frame_count, "seconds": found, "cpu": cpu}


def tell_stages(found: Found) -> list[str]:
    seconds, cpu = ({k: median(v) for k, v in found[what].items()} for what in ("seconds", "cpu"))
    parts = ("decode", "render", "encode")
    slowest = max(parts, key=lambda name: seconds[name])
    apart, cores = sum(seconds[name] for name in parts) / seconds[slowest], found["machine"]["cores"]
    least = max(seconds[slowest], sum(cpu[name] for name in parts) / cores)
    lines = [
        *prose(
            f"The overlay of 10 s of 1080p ({found['frames']} frames), each stage alone, then all of them together as",
            f"`stabn-explain` runs them, each in a thread; {rounds_of(len(found['seconds']['decode']))}.",
        ),
        "",
        "| | seconds | CPU seconds |",
        "| --- | ---: | ---: |",
        *(f"| {name} | {seconds[name]:.2f} | {cpu[name]:.2f} |" for name in seconds),
        "",
        *prose(
            f"Together they take {seconds['together'] / seconds[slowest]:.2f} times the slowest stage, {slowest} (the",
            f"aim was 1.3); one after the other they would take {apart:.2f} times. {cores} cores cannot do that much",
            f"work in less than {least:.2f} s: together takes {seconds['together'] / least:.2f} times that.",
        ),
    ]
    return lines


SETTINGS = [
    (preset, crf) for preset in ("ultrafast", "superfast", "veryfast", "faster", "medium") for crf in (20, 23, 26)
]


def encoder() -> Found:
    """CPU seconds, bytes and PSNR of the overlay of 3 s of 1080p under settings of x264."""
    import cv2
    import numpy as np

    import stabn
    from explain import render
    from explain.core import explain
    from explain.models import classifier
    from stabn.video import VideoWriter, iter_frames, probe

    network = classifier(stabn.load("synthetic"))
    found = []
    with inputs() as folder:
        job = JOBS["hd"]._replace(seconds=2)
        info = probe(made(folder, job))
        overlay = render.Overlay([explain(network, network.read(info))], info.duration)
        canvases = [(seconds, overlay.draw(frame, seconds)) for seconds, frame in iter_frames(info)]
        for preset, crf in SETTINGS:
            wall, used = time.perf_counter(), time.process_time()
            target = folder / "out.mp4"
            with VideoWriter(target, overlay.width, overlay.height, crf=crf, preset=preset) as writer:
                for seconds, canvas in canvases:
                    writer.write(canvas, seconds)
            took, cpu = time.perf_counter() - wall, time.process_time() - used
            pairs = zip((canvas for _, canvas in canvases[::10]), list(iter_frames(target))[::10], strict=True)
            noise = np.mean([np.mean((cv2.absdiff(one, two[1]).astype(np.float32)) ** 2) for one, two in pairs])
            found.append(
                {
                    "preset": preset,
                    "crf": crf,
                    "seconds": took,
                    "cpu": cpu,
                    "bytes": target.stat().st_size,
                    "psnr": float(10 * np.log10(255**2 / noise)),
                }
            )
    return {"rows": found, "frames": len(canvases)}


def tell_encoder(found: Found) -> list[str]:
    lines = [
        *prose(
            f"The overlay of 2 s of 1080p ({found['frames']} frames) by settings of x264, conversion to YUV included,",
            "one run each; PSNR in RGB against what was drawn. In bold the default.",
        ),
        "",
        "| preset | crf | CPU ms a frame | KiB | PSNR, dB |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for each in found["rows"]:
        row = (
            each["preset"],
            f"{each['crf']}",
            f"{1e3 * each['cpu'] / found['frames']:.1f}",
            f"{each['bytes'] / 1024:,.0f}",
            f"{each['psnr']:.1f}",
        )
        chosen = (each["preset"], each["crf"]) == ("superfast", 26)
        lines.append("| " + " | ".join(f"**{cell}**" if chosen else cell for cell in row) + " |")
    return lines


# ---------------------------------------------------------------------------------------------------- many videos


def many(count: int, single: int) -> Found:
    found: Found = {"count": count, "single": single}
    with inputs() as folder:
        clips = folder / "clips"
        clips.mkdir()
        first = made(folder, Job("", 2, 12, 160, 120, 1))
        for k in range(count):
            (clips / f"{k:03d}.mp4").write_bytes(first.read_bytes())
        for processes in sorted({1, 2, os.cpu_count() or 1}):
            cost = process(*ours(clips, folder / f"out{processes}", "--processes", processes))
            found[f"{processes}"] = cost._asdict()
        costs = [process(*ours(clips / f"{k:03d}.mp4", folder / "alone")) for k in range(single)]
        found["alone"] = {key: sum(getattr(cost, key) for cost in costs) for key in ("seconds", "cpu")}
        found["alone"]["peak"] = max(cost.peak for cost in costs)
    return found


def tell_many(found: Found) -> list[str]:
    alone = found["single"] / found["alone"]["seconds"]

    def busy(key: str) -> str:
        return f"{found[key]['cpu'] / found[key]['seconds']:.1f} of {found['machine']['cores']}"

    lines = [
        *prose(
            f"A folder of {found['count']} clips of 2 s (160 x 120, 24 frames) with the bundled network, all files of",
            f"each; a process for each clip was measured on {found['single']} of them. One round.",
        ),
        "",
        "| | clips/s | over one process a clip | cores kept busy | peak of a process, MiB |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for key in (key for key in found if key.isdecimal()):
        rate = found["count"] / found[key]["seconds"]
        lines.append(
            f"| `--processes {key}` | {rate:.2f} | {rate / alone:.1f} | {busy(key)} | {found[key]['peak']:,.0f} |"
        )
    lines.append(f"| a process for each clip | {alone:.2f} | 1 | {busy('alone')} | {found['alone']['peak']:,.0f} |")
    return lines


# ------------------------------------------------------------------------------------------------------- start-up

PROGRAMS = {
    "stabn-explain": "explain.cli",
    "stabn-ablate": "explain.ablate",
    "stabn-benchmark": "explain.benchmark",
    "stabn-eval": "explain.evaluate",
    "stabn-train": "stabn.train",
    "stabn-app": "app.page",
}


def start(rounds: int) -> Found:
    found: dict[str, list[float]] = {}
    with inputs() as folder:
        source = made(folder, JOBS["short"])
        commands: dict[str, tuple[object, ...]] = {
            f"`{name} --help`": ("-m", module, "--help") for name, module in PROGRAMS.items()
        }
        commands["`import torch`"] = ("-c", "import torch")
        commands["`stabn-explain`, 3 s of 240p"] = ours(source, folder / "out")
        for _ in range(rounds):
            for name, command in commands.items():
                found.setdefault(name, []).append(process(*command).seconds)
    return {"seconds": found}


def tell_start(found: Found) -> list[str]:
    seconds = found["seconds"]
    *_, torch, first = seconds
    beyond = median(a - b for a, b in zip(seconds[first], seconds[torch], strict=True))
    return [
        f"Whole processes, {rounds_of(len(seconds[first]))}; the slowest in brackets.",
        "",
        "| | seconds |",
        "| --- | ---: |",
        *(f"| {name} | {median(each):.2f} ({max(each):.2f}) |" for name, each in seconds.items()),
        "",
        *prose(
            f"The first result takes {beyond:.2f} s more than `import torch` (the aim was 2 s), the overlay and all",
            "other files of the video included.",
        ),
    ]


# -------------------------------------------------------------------------------------------------------- network


def network(rounds: int) -> Found:
    """Forward passes in the forms that PyTorch offers, with what they do to the answer; then the sizes of the clip."""
    import numpy as np
    import torch
    from speed import ratios
    from torchvision.models.video import r3d_18

    import stabn
    from explain.core import explain
    from explain.models import Classifier, classifier, resized
    from stabn.backbones import channels_last
    from stabn.synthetic import TRAINING_SEEDS, generate
    from stabn.video import Clip

    torch.manual_seed(0)
    torch.set_num_threads(1)  # so that CPU seconds, which other work hardly changes, are those that pass
    r3d = r3d_18().eval()
    found: Found = {"ways": {}, "sizes": {}}

    def sized(frames: int, size: int) -> tuple[Classifier, Clip]:
        made = Classifier(r3d, [str(k) for k in range(400)], frames, resized((size, size)))
        return made, Clip.from_array(generate(0, frames, size).frames)

    def forward(module: Any, clip: torch.Tensor, half: bool) -> Callable[[], Any]:
        def run() -> Any:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
                return module(clip)

        return run

    def probabilities(answer: Any) -> torch.Tensor:
        return getattr(answer, "logits", answer).float().softmax(1)

    bundled = classifier(stabn.load("synthetic"))
    own = bundled, Clip.from_array(generate(0, bundled.frames, 64).frames)
    for name, (taken, sample) in {"`synthetic`, 16 x 64 x 64": own, "r3d_18, 16 x 112 x 112": sized(16, 112)}.items():
        given, last, plain = taken.clip(sample.frames), copy.deepcopy(taken.module), copy.deepcopy(taken.module)
        for each in plain.parameters():
            each.data = each.data.contiguous()
        channels_last(last)  # which `stabn.load` does; of r3d_18 and others nobody but their owner decides it
        ways = {
            "fp32, contiguous": forward(plain, given, False),
            "fp32, channels last": forward(last, given, False),
            "bf16, contiguous": forward(plain, given, True),
            "bf16, channels last": forward(last, given, True),
        }
        if taken is bundled:  # a larger one takes minutes to compile
            folded = torch.compile(last, dynamic=False)
            ways["fp32, channels last, torch.compile"] = forward(folded, given, False)
            ways["bf16, channels last, torch.compile"] = forward(folded, given, True)
            ways["fp32, ONNX Runtime"] = onnx_runtime(plain, given)
            others = range(TRAINING_SEEDS, TRAINING_SEEDS + len(bundled.classes))
            known = [taken.clip(generate(seed, bundled.frames, 64).frames) for seed in others]
            ways["int8, ONNX Runtime"] = onnx_runtime(plain, given, known)
        first: dict[str, float] = {}
        answers = {}
        for way, run in ways.items():
            began = time.process_time()
            answers[way] = run()
            first[way] = time.process_time() - began
        cost = ratios(ways, rounds, time.process_time)
        exact = next(iter(answers.values()))
        found["ways"][name] = {}
        for way, answer in answers.items():
            row = {"seconds": cost[way][0], "ratio": cost[way][1], "first": first[way]}
            row["probability"] = float((probabilities(answer) - probabilities(exact)).abs().max())
            if getattr(answer, "attention", None) is not None:
                pairs = zip(answer.attention, exact.attention, strict=True)
                row["maps"] = max(float((a.float() - b.float()).abs().max()) for a, b in pairs)
            found["ways"][name][way] = row

    for frames, size in ((4, 112), (8, 112), (16, 112), (32, 112), (16, 56), (16, 168), (16, 224)):
        taken, sample = sized(frames, size)
        runs = []
        for _ in range(3):
            began = time.process_time()
            explain(taken, sample, "grad_cam", 0)
            runs.append(time.process_time() - began)
        found["sizes"][f"{frames} x {size} x {size}"] = {"seconds": float(np.median(runs)), "pixels": frames * size**2}
    return found


def onnx_runtime(network: Any, given: Any, known: Sequence[Any] = ()) -> Callable[[], Any]:
    """A forward pass of an ST-ABN in ONNX Runtime, in one thread; with clips to set the ranges by, its convolutions in
    int8. The first call exports the network."""
    import onnxruntime
    import torch
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from stabn.model import Attention, Output

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, clip: Any) -> tuple[Any, ...]:
            output = self.network(clip)
            return output.logits, output.attention.spatial, output.attention.temporal

    class Known(CalibrationDataReader):
        clips = iter(known)

        def get_next(self) -> dict[str, Any] | None:
            clip = next(self.clips, None)
            return None if clip is None else {"clip": clip.numpy()}

    @cache
    def session() -> Any:
        with tempfile.TemporaryDirectory() as name:
            files = [str(Path(name) / f"{step}.onnx") for step in ("exported", "prepared", "int8")]
            torch.onnx.export(Flat().eval(), (given,), files[0], input_names=["clip"], dynamo=True, verbose=False)
            if known:
                quant_pre_process(*files[:2])
                kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
                quantize_static(*files[1:], Known(), op_types_to_quantize=["Conv"], **kinds)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            return onnxruntime.InferenceSession(files[2 if known else 0], options, ["CPUExecutionProvider"])

    def run() -> Any:
        logits, spatial, temporal = map(torch.from_numpy, session().run(None, {"clip": given.numpy()}))
        return Output(logits, None, Attention(spatial, temporal))

    return run


def tell_network(found: Found) -> list[str]:
    lines = [
        *prose(
            "One forward pass in one thread, CPU time, medians of interleaved runs. Beside each how far its answer is",
            "from that of the first row: the largest difference of a probability, and of a value of M_s or M_t.",
            "Explanations are made in fp32, our networks channels last. bf16 is not the default: it moves what a",
            "network answers and shows by up to the differences below; so does int8, which is slower still. Nor are",
            "torch.compile and ONNX Runtime: the first call, which compiles or exports, costs more than one video can",
            "give back, and what they save of it is little beside decoding, drawing and encoding.",
        ),
        "",
        "| | ms | over the first | first call, s | probability | maps |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, ways in found["ways"].items():
        lines.append(f"| **{name}** | | | | | |")
        for way, row in ways.items():
            maps = f"{row['maps']:.1e}" if "maps" in row else ""
            lines.append(
                f"| {way} | {1e3 * row['seconds']:.1f} | {row['ratio']:.2f} | {row['first']:.1f} | "
                f"{row['probability']:.1e} | {maps} |"
            )
    sizes = found["sizes"]
    base = sizes["16 x 112 x 112"]
    lines += [
        "",
        "Grad-CAM on r3d_18 by the size of the clip (T x height x width), CPU time in one thread, median of 3:",
        "",
        "| | seconds | time | pixels |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| {size} | {each['seconds']:.2f} | {each['seconds'] / base['seconds']:.2f} | "
            f"{each['pixels'] / base['pixels']:.2f} |"
            for size, each in sizes.items()
        ),
    ]
    return lines


# --------------------------------------------------------------------------------------------------------- memory


def leak(count: int) -> None:
    """Prints the resident MiB after 100 explanations, and after `count`."""
    import stabn
    from explain.core import explain
    from stabn.synthetic import generate
    from stabn.video import Clip

    model = stabn.load("synthetic")
    clip = Clip.from_array(generate(0, model.config.frames, model.config.size).frames)
    found = {}
    for number in range(1, count + 1):
        explain(model, clip).saliency.sum()  # it is made when it is asked for
        if number in (100, count):
            found[number] = resident()
    print(json.dumps(found))


def leak_of_videos(source: str, count: int) -> None:
    """Prints the resident MiB after a tenth, half and all of `count` videos, explained with all their files."""
    import stabn
    from explain.models import classifier
    from explain.result import Request, explain_video

    network, found = classifier(stabn.load("synthetic")), {}
    with inputs() as folder:
        for number in range(1, count + 1):
            explain_video(Path(source), folder / "out", network, {"name": "", "sha256": ""}, Request(), overwrite=True)
            if number in (count // 10, count // 2, count):
                found[number] = resident()
    print(json.dumps(found))


def resident() -> float:
    """MiB, of this process."""
    import psutil

    return psutil.Process().memory_info().rss / MIB


def memory(explanations: int, videos: int) -> Found:
    found: Found = {}
    with inputs() as folder:
        for minutes in (1, 60):
            source = made(folder, Job("", 60 * minutes, 2, 128, 72, 1))
            cost = process(*ours(source, folder / f"out{minutes}"))
            windows = process(*ours(source, folder / f"windows{minutes}", "--window", 30)) if minutes == 1 else None
            found[f"{minutes} min"] = {"peak": cost.peak, "cpu": cost.cpu, "windows": windows and windows.peak}
        found["explanations"] = json.loads(process(__file__, "--leak", explanations).said)
        short = made(folder, Job("", 0.5, 12, 64, 48, 1))
        found["videos"] = json.loads(process(__file__, "--leak-of-videos", short, videos).said)
    return found


def tell_memory(found: Found) -> list[str]:
    short, long = (found[f"{minutes} min"]["peak"] for minutes in (1, 60))
    lines = [
        "Resident memory of the process at its peak; that of each job above stands with it.",
        "",
        "| | MiB |",
        "| --- | ---: |",
        f"| a 1 min video (128 x 72, 2 frames/s) | {short:,.0f} |",
        f"| a 60 min one | {long:,.0f} ({long / short:.3f} times) |",
    ]
    for what, words in (("explanations", "explanations in a row"), ("videos", "videos in a row, with all their files")):
        (few, before), *later = found[what].items()
        lines.append(f"| after {few} {words} | {before:,.0f} |")
        lines += [f"| after {int(count):,} | {after:,.0f} ({after - before:+.1f}) |" for count, after in later]
    return lines


# ------------------------------------------------------------------------------------------------------- sections


class Section(NamedTuple):
    title: str
    measure: Callable[[argparse.Namespace], Found]
    tell: Callable[[Found], list[str]]


SECTIONS = {
    "video": Section("A video, end to end", lambda o: end_to_end(o.jobs, o.rounds), tell_end_to_end),
    "stages": Section("The stages of the overlay", lambda o: stages(o.rounds or 5), tell_stages),
    "encoder": Section("The encoder", lambda o: encoder(), tell_encoder),
    "many": Section("Many videos", lambda o: many(o.clips, 5), tell_many),
    "start": Section("Start", lambda o: start(o.rounds or 5), tell_start),
    "network": Section("The network", lambda o: network(o.rounds or 7), tell_network),
    "memory": Section("Memory", lambda o: memory(1000, o.videos), tell_memory),
}


def document(kept: Found) -> str:
    lines = ["# What whole jobs cost", "", "Made by `python benchmarks/performance.py`, figures and text.", ""]
    for name, section in SECTIONS.items():
        if name not in kept:
            continue
        found = kept[name]
        where = found["machine"]
        told = section.tell({**found["found"], "machine": where} if name in ("stages", "many") else found["found"])
        gpu = where["gpu"] or "no GPU"
        lines += [
            f"## {section.title}",
            "",
            *told,
            "",
            f"<sub>{where['cores']} cores of an {where['processor']}, {gpu}, load {where['load']} at the start, Python "
            f"{where['python']}, torch {where['torch']}, {where['when'][:10]}</sub>",
            "",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(SECTIONS), help="measure these sections (none: only write)")
    parser.add_argument("--jobs", nargs="*", default=list(JOBS), choices=list(JOBS), help="of the section video")
    parser.add_argument("--rounds", type=int, help="default: what each section can afford")
    parser.add_argument("--clips", type=int, default=200, help="of the section many")
    parser.add_argument("--videos", type=int, default=100, help="in a row, of the section memory")
    parser.add_argument("--inputs", type=Path, help="keep the videos in this folder, for the next time")
    parser.add_argument("--peer", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--leak", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--leak-of-videos", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--cost", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cost:
        sys.exit(cost(options.cost))
    global INPUTS
    INPUTS = options.inputs
    if options.peer:
        peer(*options.peer)
    elif options.leak:
        leak(options.leak)
    elif options.leak_of_videos:
        leak_of_videos(options.leak_of_videos[0], int(options.leak_of_videos[1]))
    else:
        for name in SECTIONS if options.only is None else options.only:
            where, began = machine(), time.perf_counter()
            found = SECTIONS[name].measure(options)
            kept = json.loads(KEPT.read_text("utf-8")) if KEPT.exists() else {}
            if name == "video":  # job by job
                found = {**kept.get(name, {}).get("found", {}), **found}
                found = {key: found[key] for key in JOBS if key in found}
            kept[name] = {"machine": where, "found": found}
            KEPT.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
            print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
        DOCUMENT.write_text(document(json.loads(KEPT.read_text("utf-8"))), "utf-8")
        print(f"wrote {DOCUMENT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
