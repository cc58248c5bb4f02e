"""What a network's attention is worth on Synthetic-Something, where the evidence is known.

`python -m explain.evidence --checkpoint FILE` prints the figures and writes them into the file's metadata
(`measured`), beside the hash of the weights that they belong to.
"""

import argparse
import json
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from explain import methods, metrics
from explain.inversion import answers, conditions, ranks, rows_of
from explain.labelled import check_evaluation
from stabn import checkpoint, synthetic
from stabn.model import STABN, Attention


def clip_scores(model: STABN, seed: int) -> dict[str, float]:
    """One evaluation clip: right answers (0 or 1; the mean over the seeds of a shuffle) of both branches, under each
    inversion and under its controls, and, where the network has them, the scores of its maps and of their controls. A
    score that is not defined for the clip is NaN."""
    config = model.config
    sample = synthetic.generate(seed, config.frames, config.size)
    with torch.inference_mode():
        features = model.extract(model.preprocess(sample.frames))
        attention, attention_logits = model.attend(features)
        mixture = model.mix(features)
    asked = conditions(rows_of(config.attention))
    seen = answers(model, mixture, attention, asked, [(seed, 0)])  # (conditions, 1, K)
    before = ranks(seen[:, 0], sample.label)
    scores = {"top1": float(before[0] < 1), "top5": float(before[0] < 5)}
    if attention is None or attention_logits is None:
        return scores
    scores["top1 of the attention branch"] = float(int(attention_logits[0].argmax()) == sample.label)
    right = defaultdict(list)
    for condition, rank in zip(asked[1:], before[1:], strict=True):
        right[f"top1 with {condition.row} {condition.control or 'inverted'}"].append(float(rank < 1))
    scores |= {name: float(np.mean(values)) for name, values in right.items()}
    return scores | _localisation(attention, sample, seed)


def _localisation(attention: Attention, sample: synthetic.Sample, seed: int) -> dict[str, float]:
    """Energy in the mask over its share, pointing, and AUC over action frames, of the attention and of the controls."""
    frames, rng = len(sample.frames), np.random.default_rng(seed)
    difference = metrics.frame_difference(sample.frames)
    scores = {}
    if attention.spatial is not None:
        h, w = attention.spatial.shape[-2:]
        maps = {
            "M_s": methods.in_time(attention.spatial[0, 0], frames).numpy(),
            "random": rng.random((frames, h, w)),
            "centre": methods.centre_maps(frames, h, w),
            "frame difference": difference,
            "perfect mask": metrics.perfect_maps(sample.mask, h, w),
        }
        near = metrics.within_reach(sample.mask, metrics.REACH * sample.mask.shape[1])
        for name, spatial in maps.items():
            scores[f"energy {name}"] = metrics.energy_in_mask(spatial, sample.mask, sample.action)
            scores[f"pointing {name}"] = metrics.pointing(spatial, near, sample.action)
    if attention.temporal is not None:
        weights = {
            "M_t": methods.in_time(attention.temporal[0, 0], frames)[:, 0, 0].numpy(),
            "random": rng.random(frames),
            "centre": methods.centre_maps(1, 1, frames)[0, 0],
            "frame difference": difference.sum((1, 2)),
        }
        for name, temporal in weights.items():
            scores[f"auc {name}"] = metrics.temporal_auc(temporal, sample.action)
    return scores


def measure(model: STABN, clips: int = 2000, first: int = 0, progress: bool = True) -> dict[str, Any]:
    """Scores `clips` evaluation clips of the seeds from `first` on.

    Returns a dictionary ready for JSON: for each score its value and 95 % interval (mean over clips; for the energy
    the median, as the mean over ratios would follow the clips with the smallest masks) and the number of clips that
    it is defined for.

    Raises:
        ValueError: the network does not know the classes of this generator, or the seeds are training seeds.
    """
    check_evaluation(model.classes, first, clips)
    table = defaultdict(list)
    for seed in tqdm(range(first, first + clips), unit="clip", disable=None if progress else True):
        for name, value in clip_scores(model, seed).items():
            table[name].append(value)
    scores = {}
    for name, values in table.items():
        if not np.isfinite(values).any():
            continue  # camera turns only, say: nothing acts in any of these clips
        value, low, high = metrics.bootstrap(np.array(values), np.median if name.startswith("energy") else np.mean)
        defined = int(np.isfinite(values).sum())
        scores[name] = {"value": round(value, 4), "low": round(low, 4), "high": round(high, 4), "clips": defined}
    return {
        "data": f"Synthetic-Something version {synthetic.VERSION}, seeds {first} to {first + clips - 1}",
        "weights": checkpoint.weights_hash(model),
        "scores": scores,
    }


def main() -> None:
    """Measures a checkpoint and writes what was measured into its metadata."""
    parser = argparse.ArgumentParser(prog="python -m explain.evidence", description=main.__doc__)
    parser.add_argument("--checkpoint", default="synthetic", help="a bundled name or a file")
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="the first seed; those below 10**9 are never trained on")
    parser.add_argument("--dry", action="store_true", help="print only, leave the file as it is")
    options = parser.parse_args()
    try:
        model = checkpoint.load(options.checkpoint)
        measured = measure(model, options.clips, options.first)
    except ValueError as error:
        parser.exit(1, f"error: {error}\n")
    if not options.dry:
        model.metadata["measured"] = measured
        checkpoint.save(model, checkpoint.locate(options.checkpoint))
    print(json.dumps({k: v for k, v in measured.items() if k != "scores"}, indent=1))
    for name, score in measured["scores"].items():
        print(f"{name:45s} {score['value']:8.4f}  [{score['low']:.4f}, {score['high']:.4f}]  {score['clips']} clips")


if __name__ == "__main__":
    main()
