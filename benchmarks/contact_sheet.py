"""Contact sheets for a person to look through: what the bundled network attends to in one generated clip of each class
(docs/attention_generated.png) and in the two real clips that come with gradio (docs/attention_real.png).

`python benchmarks/contact_sheet.py` (seconds). Eight of the sampled frames of each clip with M_s over them, M_t in the
bar above; of generated clips the outline of what acts in white, and a green line under frames in which the action
happens.
"""

import argparse
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from gradio.media import get_video
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

import stabn
from explain import render
from explain.core import answer, explain
from stabn import synthetic
from stabn.video import Clip, read_clip

DOCS = Path(__file__).parent.parent / "docs"
SHOWN, SIDE = 8, 128  # frames of a clip, pixels of a frame


def sheet(
    network: stabn.STABN, clips: list[tuple[str, Clip, synthetic.Sample | None]], columns: int, path: Path
) -> None:
    """Draws titled clips, those of a generated sample with its evidence, in so many columns."""
    rows = -(-len(clips) // columns)
    cell, gap, head, bar = 0.82, 0.04, 0.3, 0.1  # inches
    picture_height = cell * max(clip.source_size[0] / clip.source_size[1] for _, clip, _ in clips)
    left, block = 0.15, SHOWN * (cell + gap) + 0.15
    tall = head + bar + picture_height + 0.12
    page, height = left + columns * block, 0.1 + rows * tall
    drawing = Figure((page, height), dpi=120, facecolor="white")
    purple = matplotlib.colormaps["Purples"]

    def panel(x: float, y: float, h: float) -> Axes:
        axes = drawing.add_axes((x / page, 1 - (y + h) / height, cell / page, h / height))
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        return axes

    for number, (title, clip, sample) in enumerate(clips):
        found = explain(network, clip)
        column, row = divmod(number, rows)
        x0, y0 = left + column * block, 0.05 + row * tall
        said = answer(found.classes, found.probabilities)
        right = sample is None or found.target == sample.label
        drawing.text(x0 / page, 1 - (y0 + 0.03) / height, title, fontsize=7, va="top", fontweight="bold")
        ink = "0.3" if right else "#b00020"
        drawing.text(x0 / page, 1 - (y0 + 0.16) / height, said, fontsize=7, va="top", color=ink)
        scale = SIDE / min(clip.source_size)
        for k in range(SHOWN):
            t = (2 * k + 1) * len(clip.frames) // (2 * SHOWN)
            x, y = x0 + k * (cell + gap), y0 + head
            panel(x, y, bar).set_facecolor(purple(0.05 + 0.9 * float(found.temporal[t])))
            y += bar
            large = cv2.resize(clip.frames[t], None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
            top, first, high, wide = (scale * part for part in found.view)
            picture = render.blend(large, found.spatial[t], (top, first, high, wide))
            axes = panel(x, y, picture_height)
            axes.imshow(picture)
            if sample is not None and sample.mask[t].any():
                mask = cv2.resize(sample.mask[t].astype(np.float32), large.shape[1::-1])
                axes.contour(mask, [0.5], colors="white", linewidths=0.8)
            if sample is not None and sample.action[t]:
                axes.plot(
                    [0, 1], [-0.03, -0.03], color="#0a8f3c", linewidth=2.5, transform=axes.transAxes, clip_on=False
                )
    drawing.savefig(path)
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)  # a quarter of the size
    print(f"wrote {path.name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--first", type=int, default=36, help="seed of the first generated clip; one of each class follows"
    )
    parser.add_argument("--out", type=Path, default=DOCS, help="the folder for the two pictures")
    options = parser.parse_args()
    network = stabn.load("synthetic")
    config = network.config
    generated = []
    for seed in range(options.first, options.first + len(synthetic.CLASSES)):
        sample = synthetic.generate(seed, config.frames, config.size)
        generated.append((f"{synthetic.CLASSES[sample.label]} (seed {seed})", Clip.from_array(sample.frames), sample))
    sheet(network, generated, 2, options.out / "attention_generated.png")
    real = [(f"gradio's {name}", read_clip(get_video(name), config.frames), None) for name in ("a.mp4", "b.mp4")]
    sheet(network, real, 1, options.out / "attention_real.png")


if __name__ == "__main__":
    main()
