"""What the web page costs: from a click to a playing clip, from an edit to new scores, and many people at once.

`python benchmarks/page.py` (about six minutes on two cores; needs playwright and Chromium) starts `stabn-app` with
the bundled weights and drives it as people do: first by a browser, then by `--sessions` visitors at once for
`--seconds`, each with a clip of their own. Every request of theirs must end in a result, and it must be about their
clip, or in "busy, try again". The memory of the server is taken after a warm-up by as many visitors, as long, and again
when all have left. What it prints is Markdown. Exit code 1 if one of these promises is broken.
"""

from __future__ import annotations

import argparse
import collections
import os
import re
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from speed import video

from stabn.synthetic import generate
from stabn.video import write_video

BROWSER = ["--no-sandbox", "--disable-gpu", "--mute-audio", "--disable-background-networking", "--disable-quic"]
SETTLE = 60  # seconds: what closed sessions hold must be let go by then
GROWTH = 1.10  # of the memory, at most

# Both run in the page: the clock starts at the click and stops at the first frame drawn with what came of it.
PLAYING = """() => new Promise((done, fail) => {
  const root = document.querySelector("#player [data-state]"), start = performance.now();
  const look = () => {
    const { state, drawn, playing } = root.dataset;
    if (root.dataset.problem === "true") fail(root.querySelector(".problem").textContent);
    else if (state === "ready" && +drawn > 0 && playing === "true") done((performance.now() - start) / 1000);
    else requestAnimationFrame(look);
  };
  document.querySelector("#run").click();
  look();
})"""
ANSWERED = """(act) => new Promise((done) => {
  const root = document.querySelector("#player [data-state]"), start = performance.now();
  const before = +(root.dataset.answered || 0);
  const look = () => +(root.dataset.answered || 0) > before
    ? done((performance.now() - start) / 1000) : requestAnimationFrame(look);
  if (act === "nudge") root.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowUp", bubbles: true }));
  else root.querySelector(act).click();
  look();
})"""


@contextmanager
def server(folder: Path) -> Iterator[tuple[str, int]]:
    """(URL, process id) of the page, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (folder / "server.log").open("w")
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(folder / "cache")}
    command = [sys.executable, "-m", "app.page", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            if process.poll() is not None:
                raise SystemExit((folder / "server.log").read_text())
            try:
                httpx.get(url, timeout=60).raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.2)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def browse(url: str, clips: dict[str, Path], rounds: int) -> None:
    """Prints the seconds that a person waits, median and slowest, as rows of a table."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=BROWSER)
        for name, clip in clips.items():
            took: dict[str, list[float]] = collections.defaultdict(list)
            for _ in range(rounds):
                page = browser.new_page()
                page.goto(url)
                page.locator("#clip input[type=file]").first.set_input_files(clip)
                page.locator("#clip video").wait_for()
                took["click on Explain to playing"].append(page.evaluate(PLAYING))
                for _ in range(5):
                    took["a toggle to new scores"].append(page.evaluate(ANSWERED, '[data-set="invert_temporal"]'))
                page.locator('[data-set="mode"][data-to="bars"]').click()
                for _ in range(5):
                    took["an edited weight to new scores"].append(page.evaluate(ANSWERED, "nudge"))
                page.close()
            for what, each in took.items():
                print(f"| {what}, {name} | {statistics.median(each):.2f} s | {max(each):.2f} s |", flush=True)
        browser.close()


class Visitor:
    """One person with the page open: what their browser would send."""

    def __init__(self, url: str, clip: Path) -> None:
        self.clip, self.session = clip, secrets.token_hex(8)
        self.http = httpx.Client(base_url=url, timeout=300)
        self.config = self.http.get("/config").json()
        heart = self.http.build_request("GET", f"/gradio_api/heartbeat/{self.session}")
        self.heart = self.http.send(heart, stream=True)  # while it is open, so is the page
        self.file = self.http.post("/gradio_api/upload", files={"files": clip.open("rb")}).raise_for_status().json()[0]
        self.id: str | None = None
        self.scores: list[float] | None = None

    def leave(self) -> None:
        self.heart.close()
        self.http.close()

    def look(self) -> str:
        """Explain; gives "result", "busy", or what else came of it."""
        network = next(each for each in self.config["components"] if each["props"].get("label") == "Network")
        file = {"path": self.file, "orig_name": self.clip.name, "meta": {"_type": "gradio.FileData"}}
        said = self.raises("run", "click", [file, network["props"]["value"], ["stabn"]])
        if '"panels"' not in said:
            return self.judged(said)
        self.id = re.findall(r'"clip": ?"([\w-]+)"', said)[-1]
        return self.checked(said)

    def edit(self) -> str:
        """Give a few frames no weight; as `look`."""
        said = self.raises("player", "edit", [], {"clip": self.id, "seq": 1, "invert_temporal": True})
        return self.checked(said) if '"rows"' in said else self.judged(said)

    def checked(self, said: str) -> str:
        """Whether an answer is about this person's clip."""
        scores = [round(float(old), 4) for old in re.findall(r'"old": ?([\d.e-]+)', said)][:3]
        self.scores = self.scores or scores
        strangers = set(re.findall(r"visitor-\d+", said)) - {self.clip.stem}
        return f"another's data: {strangers or scores}" if strangers or scores != self.scores else "result"

    def judged(self, said: str) -> str:
        return "busy" if "busy, try again" in said or said.startswith("503") else said[-300:]

    def raises(self, place: str, event: str, data: list[Any], about: Any = None) -> str:
        """All that the server answers to an event of the component with this elem_id."""
        target = next(each["id"] for each in self.config["components"] if each["props"].get("elem_id") == place)
        number = next(each["id"] for each in self.config["dependencies"] if [target, event] in each["targets"])
        message = {"data": data, "fn_index": number, "session_hash": self.session, "trigger_id": target}
        joined = self.http.post("/gradio_api/queue/join", json={**message, "event_data": about})
        if joined.status_code != 200:
            return f"{joined.status_code} {joined.text}"
        return self.http.get("/gradio_api/queue/data", params={"session_hash": self.session}).text


def crowd(url: str, clips: list[Path], seconds: float) -> tuple[collections.Counter[str], list[float]]:
    """What the requests of one visitor per clip, all at once, ended in, and how long each took, in seconds."""
    ended: collections.Counter[str] = collections.Counter()
    took: list[float] = []
    until = time.monotonic() + seconds

    def visit(clip: Path) -> None:
        try:
            visitor = Visitor(url, clip)
            turn = 0
            while time.monotonic() < until:
                start = time.monotonic()
                what = "edit" if visitor.id and turn % 4 else "look"
                said = getattr(visitor, what)()
                took.append(time.monotonic() - start)
                ended[f"{what}: {said}"] += 1
                turn += said != "busy"
                if said == "busy":
                    time.sleep(1)
            visitor.leave()
        except Exception as error:  # a broken connection is an answer too
            ended[f"failed: {error!r}"] += 1

    threads = [threading.Thread(target=visit, args=(clip,)) for clip in clips]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ended, took


def memory(process: int) -> float:
    """MiB that a process holds."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


def settled(process: int, goal: float) -> float:
    """The memory once it is down to `goal`, or after `SETTLE` seconds."""
    end = time.monotonic() + SETTLE
    while memory(process) > goal and time.monotonic() < end:
        time.sleep(1)
    return memory(process)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="pages opened for each clip")
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = {"3 s clip": folder / "short.mp4", "10 s of 1080p": folder / "long.mp4"}
        write_video(clips["3 s clip"], generate(38, 36, 224).frames, 12.0)
        video(clips["10 s of 1080p"])
        own = [folder / f"visitor-{k}.mp4" for k in range(options.sessions)]
        for k, clip in enumerate(own):
            write_video(clip, generate(k, 36, 112).frames, 12.0)
        with server(folder) as (url, process):
            print("| | median | slowest |\n| --- | --- | --- |")
            if options.rounds:
                browse(url, clips, options.rounds)
            crowd(url, own, options.seconds)
            warm = settled(process, 0)
            ended, took = crowd(url, own, options.seconds)
            high = memory(process)
            low = settled(process, warm * GROWTH)
        people = f"{options.sessions} people at once, for {options.seconds:g} s"
        print(f"| a request of {people} | {statistics.median(took):.2f} s | {max(took):.2f} s |")
        print(f"\n{people}: " + ", ".join(f"{count} x {what}" for what, count in ended.most_common()) + ".")
        print(f"Memory: {warm:.0f} MiB after warm-up, {high:.0f} at the end, {low:.0f} when all had left.")
    good = {"look: result", "look: busy", "edit: result", "edit: busy"}
    return int(bool(set(ended) - good) or low > warm * GROWTH)


if __name__ == "__main__":
    sys.exit(main())
