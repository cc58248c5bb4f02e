"""What `soak.py` does to runs from outside: kills them, fills the disk, takes folders and rights away, lets two meet,
and sends visitors to the web page.

Each time what looks finished must be whole, what was finished must be as it was, and the same command started again
must come to its end and leave nothing else behind."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import attacks
from attacks import TRAIN, Stage
from numpy.random import Generator
from soak import ROUNDS, Case, Forked, Outcome, attack, judged, place, where

import stabn.train
from app import reader
from explain import ablate, cli, evaluate

MOMENTS = 50 // ROUNDS  # of each job in a round
SLOW = 300.0  # seconds of processor time that a job may take


class Job(NamedTuple):
    """A command that makes something in `out`, and what of it looks finished, by name."""

    name: str
    run: Callable[[Path], Any]
    whole: Callable[[Path], dict[str, str]]  # raises if something looks finished and is not
    made: int  # things that it makes


def jobs(stage: Stage) -> list[Job]:
    _ = stage.torch
    videos, labelled, weights = stage.folder / "three", stage.labelled, str(stage.checkpoint)
    if not videos.exists():
        videos.mkdir()
        for name in "abc":
            shutil.copy(stage.clip, videos / f"{name}.mp4")
    study = ["--data", str(labelled), "--checkpoint", weights, "--batch", "1", "--workers", "1", "--device", "cpu"]
    train = [*TRAIN[:1], "12", *TRAIN[2:]]
    return [
        Job("stabn-explain", lambda folder: cli.main([str(videos), "--checkpoint", weights, "--out", "."]), results, 3),
        Job("stabn-eval", lambda folder: evaluate.main([*study, "--out", "."]), partial(studied, "evaluation"), 1),
        Job("stabn-ablate", lambda folder: ablate.main([*study, "--out", "."]), partial(studied, "ablation"), 1),
        Job("stabn-train", lambda folder: stabn.train.main(["--out", "a.safetensors", *train]), trained, 1),
        Job("export", partial(exported, stage), packed, 1),
    ]


def results(out: Path) -> dict[str, str]:
    return {name: _digest(out / name / "manifest.json") for name in attacks.finished(out)}


def studied(name: str, out: Path) -> dict[str, str]:
    if not (out / f"{name}.json").exists():
        return {}
    found = json.loads((out / f"{name}.json").read_text("utf-8"))
    assert found["clips"] == 6
    for file in (f"{name}.csv", f"{name}.png"):
        assert (out / file).stat().st_size
    return {name: str({key: found[key] for key in found if key in ("branches", "rows", "confusion")})}


def trained(out: Path) -> dict[str, str]:
    from stabn import checkpoint

    file = out / "a.safetensors"
    if not file.exists():
        return {}
    steps = [json.loads(line)["step"] for line in (out / "a.safetensors.log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)), f"its log has the steps {steps}"
    return {"weights": checkpoint.weights_hash(checkpoint.load(file))}


def exported(stage: Stage, folder: Path) -> None:
    """The page's export, its worker and the page in one process."""
    from app import actions, saved

    saved.apart = reader.apart = attacks._inside  # type: ignore[assignment]
    model = actions.Model("tiny", actions._opened(str(stage.checkpoint), "cpu"), str(stage.checkpoint))
    session = actions.prepare(actions.Job(), model, str(stage.clip), folder / "out")
    actions.look(actions.Job(), session, ["stabn"])
    saved.export(actions.Job(), session)


def packed(out: Path) -> dict[str, str]:
    found = list(out.glob("clip-*/result-*/*.zip"))
    for each in found:
        with zipfile.ZipFile(each) as archive:
            assert archive.testzip() is None
            assert any(name.endswith("manifest.json") for name in archive.namelist())
    return {"zip": "whole"} if found else {}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# -------------------------------------------------------------------------------------- harm, and what follows from it


def harmed(job: Job, harm: Callable[[Path, Forked], bool], before: Callable[[], Any] | None = None) -> Outcome:
    """Starts a job, does harm to it (gives whether it was killed), looks at what stands, and starts it again."""
    with place() as folder:

        def begin() -> Any:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored where this was started
            if before is not None:
                before()
            return job.run(folder)

        process = Forked(begin, folder, SLOW)
        killed = harm(folder, process)
        first = judged(process, killed=killed)
        if first.kind == "fault":
            return first
        return again(job, folder, first)


def again(job: Job, folder: Path, first: Outcome) -> Outcome:
    """The same command in the same folder: it comes to its end, keeps what was finished and leaves nothing else."""
    if not (folder / "out").exists():
        (folder / "out").mkdir()
    if trouble := _unwhole(job, folder / "out"):
        return first._replace(kind="fault", said=f"half made: {trouble} (it ended as: {first.said})")
    kept = job.whole(folder / "out")
    finished = len(kept) == job.made
    second = judged(Forked(lambda: job.run(folder), folder, SLOW))
    if second.kind == "fault":
        return second._replace(said=f"started again: {second.said}")
    if second.kind == "refusal" and not (finished and "finished already" in second.said):
        return second._replace(kind="fault", said=f"started again: {second.said}")
    if trouble := _unwhole(job, folder / "out"):
        return second._replace(kind="fault", said=f"half made by the second run: {trouble}")
    made = job.whole(folder / "out")
    if len(made) != job.made or any(made[name] != kept[name] for name in kept):
        return second._replace(
            kind="fault", said=f"finished before: {sorted(kept)}, after: {sorted(made)}; not the same"
        )
    left = [str(each.relative_to(folder)) for each in (folder / "out").rglob(".*")]
    left += [str(each.relative_to(folder)) for each in (folder / "out").rglob("*.part*")]
    if left and job.name != "export":  # a killed page leaves its own temporary folder, which no other page opens
        return second._replace(kind="fault", said=f"left behind: {', '.join(sorted(left)[:3])}")
    return first


def _unwhole(job: Job, out: Path) -> str:
    try:
        job.whole(out)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


_TOOK: dict[str, float] = {}


def took(job: Job) -> float:
    """Seconds of the job without harm; raises if it does not come to its end."""
    if job.name not in _TOOK:
        with place() as folder:
            outcome = judged(Forked(lambda: job.run(folder), folder, SLOW))
            assert outcome.kind == "result", outcome
            assert len(job.whole(folder / "out")) == job.made
            _TOOK[job.name] = outcome.seconds
    return _TOOK[job.name]


def _each(what: str, number: int = 5) -> Any:
    """An attack for each of the first jobs."""

    def put(make: Callable[[Stage, Job, int, Generator], Iterator[Outcome]]) -> Any:
        for turn, name in enumerate(("stabn-explain", "stabn-eval", "stabn-ablate", "stabn-train", "export")):
            if turn < number:

                def cases(stage: Stage, round: int, chance: Generator, turn: int = turn) -> Iterator[Outcome]:
                    return make(stage, jobs(stage)[turn], round, chance)

                attack("faults", f"{name}: {what}", SLOW)(cases)
        return make

    return put


@_each("killed at any moment")
def _(stage: Stage, job: Job, number: int, chance: Generator) -> Iterator[Outcome]:
    for _ in range(MOMENTS):

        def harm(folder: Path, process: Forked) -> bool:
            time.sleep(chance.uniform(0, took(job)))
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            return True

        took(job)
        yield harmed(job, harm)


@attack("faults", "stabn-explain --overwrite: killed at any moment, the old result or the new one is there", SLOW)
def _(stage: Stage, number: int, chance: Generator) -> Iterator[Outcome]:
    job = jobs(stage)[0]
    weights = str(stage.checkpoint)
    over = [str(stage.folder / "three"), "--checkpoint", weights, "--out", ".", "--overwrite"]
    for _ in range(MOMENTS):
        with place() as folder:
            for each in "abc":
                cli_once(stage, folder / "out", each)
            process = Forked(lambda folder=folder: cli.main(over), folder, SLOW)
            time.sleep(chance.uniform(0, took(job)))
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            first = judged(process, killed=True)
            yield again(job, folder, first) if first.kind != "fault" else first


def cli_once(stage: Stage, out: Path, name: str) -> None:
    """A finished result of a video, made once and copied."""
    kept = stage.folder / "made"
    if not kept.exists():
        code = cli.main(
            [str(stage.folder / "three"), "--checkpoint", str(stage.checkpoint), "--out", str(kept), "--quiet"]
        )
        assert code == 0
    shutil.copytree(kept / name, out / name)


@_each("Ctrl-C at any moment", 4)
def _(stage: Stage, job: Job, number: int, chance: Generator) -> Iterator[Outcome]:
    for _ in range(2):

        def harm(folder: Path, process: Forked) -> bool:
            time.sleep(0.05 + chance.uniform(0, took(job)))
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGINT)
            return False

        took(job)
        yield harmed(job, harm)


@_each("the disk is full")
def _(stage: Stage, job: Job, number: int, chance: Generator) -> Iterator[Outcome]:
    took(job)
    for _ in range(MOMENTS):
        kilobytes = int(2 ** chance.uniform(3, 11))
        with place() as folder:
            mounted = not subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(folder / "out")], capture_output=True
            ).returncode

            def limited(kilobytes: int = kilobytes, folder: Path = folder, mounted: bool = mounted) -> Any:
                if not mounted:  # the right to mount is missing: no file may grow beyond it
                    resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * kilobytes,) * 2)
                return job.run(folder)

            try:
                first = judged(Forked(limited, folder, SLOW))
                if first.kind == "fault":
                    yield first
                    continue
                if mounted:
                    subprocess.run(["mount", "-o", "remount,size=1g", str(folder / "out")], check=True)
                yield again(job, folder, first)
            finally:
                if mounted:
                    subprocess.run(["umount", "-l", str(folder / "out")], check=True)


@_each("the output folder disappears")
def _(stage: Stage, job: Job, number: int, chance: Generator) -> Iterator[Outcome]:
    for _ in range(MOMENTS):

        def harm(folder: Path, process: Forked) -> bool:
            time.sleep(chance.uniform(0, took(job)))
            for each in (folder / "out").iterdir():  # the folder itself is where the process is
                shutil.rmtree(each, ignore_errors=True) if each.is_dir() else each.unlink(missing_ok=True)
            return False

        took(job)
        yield harmed(job, harm)


@_each("a process that reads or explains is killed", 4)
def _(stage: Stage, job: Job, number: int, chance: Generator) -> Iterator[Outcome]:
    if job.name == "stabn-explain":  # the others read in a process of their own anyway
        arguments = [
            str(stage.folder / "three"),
            "--checkpoint",
            str(stage.checkpoint),
            "--out",
            ".",
            "--processes",
            "2",
        ]
        job = job._replace(run=lambda folder: cli.main(arguments))
    elif job.name == "stabn-train":
        train = [*TRAIN[:1], "12", *TRAIN[2:], "--workers", "1"]
        job = job._replace(run=lambda folder: stabn.train.main(["--out", "a.safetensors", *train]))

    def harm(folder: Path, process: Forked) -> bool:
        end = time.monotonic() + SLOW
        while time.monotonic() < end and os.path.exists(f"/proc/{process.pid}/exe"):
            begun = job.name != "stabn-explain" or any((folder / "out").glob(".*.partial-*"))
            if begun and (children := _children(process.pid)):
                with contextlib.suppress(OSError):
                    os.kill(children[int(chance.integers(len(children)))], signal.SIGKILL)
                break
            time.sleep(0.01)
        return False

    yield harmed(job, harm)


def _children(pid: int) -> list[int]:
    """The processes that a process started in Python, but for the one that only keeps count of semaphores."""
    with contextlib.suppress(OSError):
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(each) for each in found if b"resource_tracker" not in Path(f"/proc/{each}/cmdline").read_bytes()]
    return []


@attack("faults", "two runs share one output folder", SLOW)
def _(stage: Stage, number: int, chance: Generator) -> Iterator[Outcome]:
    for job in jobs(stage)[:4]:
        with place() as folder:
            both = [Forked(lambda job=job, folder=folder: job.run(folder), folder, SLOW)]
            time.sleep(chance.uniform(0, took(job)))
            both.append(Forked(lambda job=job, folder=folder: job.run(folder), folder, SLOW))
            ended = [judged(each) for each in both]
            worst = next((each for each in ended if each.kind == "fault"), None)
            made = job.whole(folder / "out")  # each may leave to the other what that one is making
            if worst is None and len(made) != job.made:
                worst = ended[0]._replace(kind="fault", said=f"together they made {sorted(made)}: {ended[0].said}")
            yield worst or again(job, folder, ended[1])


@attack("faults", "no permission", SLOW)
def _(stage: Stage, number: int, chance: Generator) -> Iterator[Case | Outcome]:
    """As nobody, without any right that root has."""
    stage.folder.chmod(0o755)

    def nobody(act: Callable[[Path], Any], modes: dict[str, int], folder: Path) -> Any:
        folder.chmod(0o755)
        (folder / "tmp").chmod(0o777)
        for name, mode in modes.items():
            (folder / name).chmod(mode)
        if os.getuid() == 0:
            "".encode("utf-8-sig")  # Python reads a codec when it first needs it, and nobody may read this Python
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        return act(folder)

    video, weights = stage.clip.read_bytes(), stage.checkpoint.read_bytes()
    files = {"a.mp4": video, "b.mp4": video, "tiny.safetensors": weights, "list.csv": b"path,label\na.mp4,left\n"}
    given = ["../in/a.mp4", "--checkpoint", "../in/tiny.safetensors", "--quiet"]
    study = [
        "--data",
        "../in/list.csv",
        "--checkpoint",
        "../in/tiny.safetensors",
        "--workers",
        "0",
        "--quiet",
        "--device",
        "cpu",
    ]
    commands = {
        "stabn-explain": lambda folder: cli.main(given),
        "stabn-eval": lambda folder: evaluate.main(study),
        "stabn-ablate": lambda folder: ablate.main(study),
        "stabn-train": lambda folder: stabn.train.main(["--out", "a.safetensors", *TRAIN]),
        "stabn-train --data": lambda folder: stabn.train.main(["--check", "--data", "../in", "--workers", "0"]),
    }
    kinds = {
        "the output folder": {"out": 0o555},
        "the output folder, not even to look": {"out": 0o000},
        "the video": {"out": 0o777, "in/a.mp4": 0},
        "the checkpoint": {"out": 0o777, "in/tiny.safetensors": 0},
        "the list": {"out": 0o777, "in/list.csv": 0},
        "the folder of it all": {"out": 0o777, "in": 0},
    }
    for kind, modes in kinds.items():
        for name, act in commands.items():
            yield Case(f"{name}: {kind}", partial(nobody, act, modes), files)


@attack("faults", "who reads the output leaves")
def _(stage: Stage, number: int, chance: Generator) -> Iterator[Case]:
    def unheard(act: Callable[[], Any], folder: Path) -> Any:
        end, pipe = os.pipe()
        os.close(end)
        os.dup2(pipe, 1)
        try:
            return act()
        finally:
            sys.stdout.flush()

    weights = str(stage.checkpoint)
    for command, main in attacks.COMMANDS.items():
        yield Case(f"{command} --help", partial(unheard, lambda main=main: main(["--help"])))
    study = ["--data", str(stage.labelled), "--checkpoint", weights, "--out", "made", "--workers", "0"]
    yield Case("stabn-eval", partial(unheard, lambda: evaluate.main(study)))
    yield Case("stabn-ablate", partial(unheard, lambda: ablate.main(study)))
    yield Case("stabn-ablate --json", partial(unheard, lambda: ablate.main([*study, "--json"])))
    yield Case("stabn-explain", partial(unheard, lambda: cli.main([str(stage.clip), "--checkpoint", weights])))
    yield Case("stabn-train", partial(unheard, lambda: stabn.train.main(["--out", "a.safetensors", *TRAIN])))


# ------------------------------------------------------------------------------------------------------ the web page

VISITORS = 20


@attack(
    "page",
    f"twice {VISITORS} visitors at once, good, bad and hostile; the second time adds 10 % of memory at most",
    rounds=1,
)
def _(stage: Stage, number: int, chance: Generator) -> Iterator[Outcome]:
    import httpx
    import page

    own = [stage.folder / f"visitor-{k}.mp4" for k in range(VISITORS)]
    for k, clip in enumerate(own):
        page.write_video(clip, page.generate(k, 36, 112).frames, 12.0)
    ends: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    held: list[float] = []  # MiB, when all had left
    with page.server(stage.folder) as (url, process):

        def visit(turn: int, until: float, chance: Generator) -> None:
            while time.monotonic() < until:
                began, kind = time.monotonic(), (good, bad, hostile)[turn % 3]
                try:
                    said = kind(stage, page.Visitor(url, own[turn]), chance)
                except httpx.TimeoutException as error:
                    said = f"fault: hang: {error!r}"
                except httpx.HTTPError as error:  # the server closed the connection: so it may
                    said = f"refusal: {type(error).__name__}"
                outcome, _, words = said.partition(": ")
                ends.put(Outcome(outcome, f"{kind.__name__}: {words}", time.monotonic() - began, 0))

        for _ in range(2):
            until = time.monotonic() + 30 * min(stage.minutes, 10.0)
            threads = [
                threading.Thread(target=visit, args=(turn, until, own_chance))
                for turn, own_chance in enumerate(chance.spawn(VISITORS))
            ]
            for each in threads:
                each.start()
            for each in threads:
                each.join()
            held.append(page.settled(process, page.GROWTH * held[0] if held else 0))
        alive = httpx.get(url, timeout=60).status_code == 200
    while not ends.empty():
        yield ends.get()
    log = (stage.folder / "server.log").read_text(errors="replace")
    if not alive or "Traceback" in log:
        yield Outcome("fault", f"the server: {'traceback: ' + where(log) if alive else 'does not answer'}", 0, 0)
    first, second = held
    kind = "fault" if second > first * page.GROWTH else "result"
    said = f"memory: {first:.0f} MiB when the first had left, {second:.0f} when the second had"
    yield Outcome(kind, said, 0, max(0, round((second - first) * 2**20)))


def good(stage: Stage, visitor: Any, chance: Generator) -> str:
    """Explains a clip and edits it a few times."""
    said = visitor.look()
    for _ in range(3):
        if said == "result":
            said = visitor.edit()
    visitor.leave()
    return {"result": "result: ", "busy": "refusal: busy"}.get(said, f"fault: {said}")


def bad(stage: Stage, visitor: Any, chance: Generator) -> str:
    """Uploads what is damaged, and opens it as a clip or as a saved result."""
    name, content = "a.zip", stage.saved
    if clip := chance.random() < 0.7:
        name = list(stage.videos)[chance.integers(len(stage.videos))]
        content = stage.videos[name]
    content = content[: chance.integers(len(content))] if chance.random() < 0.3 else attacks.flipped(content, chance)
    found = visitor.http.post("/gradio_api/upload", files={"files": (name, content)})
    if found.status_code != 200:
        return f"refusal: {found.status_code}"
    file = {"path": found.json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}
    given = [file, "synthetic", ["stabn"]] if clip else [file]
    said = visitor.raises("run", "click", given) if clip else visitor.raises("again", "upload", given)
    visitor.leave()
    if '"panels"' in said:
        return "result: "
    told = re.findall(r'"error": ?true, ?"text": ?"([^"]*)', said)
    if told:
        return f"{'fault' if 'went wrong on the server' in told[-1] else 'refusal'}: {told[-1][:100]}"
    return "refusal: busy" if visitor.judged(said) == "busy" else f"fault: {said[-300:]}"


def hostile(stage: Stage, visitor: Any, chance: Generator) -> str:
    """Sends what no browser would."""
    wild = partial(attacks._wild, chance)
    number = int(chance.integers(20))
    message = {
        "data": [wild(), wild(), wild()],
        "fn_index": number,
        "session_hash": visitor.session,
        "event_data": wild(),
    }

    def posted(path: str, content: dict[str, Any]) -> Any:
        """JSON that says NaN and half characters, which no client sends by itself."""
        kind = {"content-type": "application/json"}
        return visitor.http.post(path, content=json.dumps(content).encode(), headers=kind)

    turn = chance.integers(7)
    if turn == 0:
        paths = ("/gradio_api/file=/etc/passwd", "/gradio_api/file=../../../etc/passwd", "/proxy=http://127.0.0.1:1/")
        found = visitor.http.get(paths[chance.integers(3)])
    elif turn == 1:
        found = visitor.http.post("/gradio_api/upload", files={"files": ("../../" + "x" * 300, b"x" * 1000)})
    elif turn == 2:
        found = visitor.http.post(
            "/gradio_api/queue/join", content=attacks.flipped(json.dumps(message).encode(), chance)
        )
    elif turn == 3:
        about = {"clip": wild(), "seq": wild(), "spatial": wild(), "temporal": wild(), "index": wild()}
        found = posted("/gradio_api/queue/join", {**message, "data": [], "event_data": about})
    elif turn == 4:
        found = visitor.http.post("/gradio_api/queue/join", content=b"[" * 3_000_000)
    elif turn == 5:
        found = posted(f"/gradio_api/run/{['predict', 'explain', 'x' * 5000][chance.integers(3)]}", message)
    else:
        found = visitor.http.request("PATCH", "/gradio_api/queue/data", content=os.urandom(1000))
    said = found.text
    if found.status_code == 200 and "event_id" in said:
        said = visitor.http.get("/gradio_api/queue/data", params={"session_hash": visitor.session}, timeout=120).text
    visitor.leave()
    if "root:" in said or "Traceback" in said or said == "Internal Server Error":
        return f"fault: it told {said[:200]}"
    return f"{'result' if found.status_code == 200 else 'refusal'}: {found.status_code}"
