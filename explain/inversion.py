"""The inversion study: what is left of a network's answers when its attention is inverted (equation 5, Table 2 of the
paper), and beside it the controls that tell a changed pattern from a changed gain.

A condition is a row of the table, or one control of that row. For each batch of clips `extract`, `attend` and `mix` run
once, and each condition is one `perceive` on the kept mixture. Attention is changed for each clip by itself, and what
is random depends on the clip's number only, so that neither the batch nor the order matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from explain import metrics
from explain.labelled import Item
from stabn.model import STABN, Attention, Mixture

# Which attentions are inverted, in the order of the paper's Table 2.
ROWS: dict[str, tuple[str, ...]] = {
    "none": (),
    "spatial": ("spatial",),
    "temporal": ("temporal",),
    "both": ("spatial", "temporal"),
}
DRAWS = 5  # of each shuffle
MATCHED, SHUFFLED = "energy-matched inverse", f"shuffled ({DRAWS} seeds)"
CONSTANT, CONSTANT_INVERSE = "constant, own mean", "constant, inverse mean"
CONTROLS = (MATCHED, SHUFFLED, CONSTANT, CONSTANT_INVERSE)
# As printed in Table 2: top-1 in percent, in the order of ROWS.
PUBLISHED: dict[str, tuple[float, ...]] = {
    "Something-Something V1": (53.3, 28.8, 20.0, 6.9),
    "Something-Something V2": (64.1, 32.3, 43.1, 14.2),
}
PUBLISHED_NETWORK = "3D ResNet-50, 32 x 2"
PUBLISHED_SOURCE = "Mitsuhara et al., ST-ABN, arXiv:2110.15574 (2021)"


def rows_of(attention: str) -> tuple[str, ...]:
    """The rows that a variant of the network (`Config.attention`) allows."""
    return tuple(row for row, parts in ROWS.items() if attention == "both" or set(parts) <= {attention})


# ---------------------------------------------------------------------------------------------------- conditions


class Condition(NamedTuple):
    """A row of the table, or one control of it."""

    row: str
    control: str = ""  # "": the row itself
    draw: int = 0  # of a shuffle


def conditions(rows: Sequence[str]) -> list[Condition]:
    """The rows, each followed by its controls; nothing inverted has none."""
    return [
        Condition(row, control, draw)
        for row in rows
        for control in ("", *(CONTROLS if ROWS[row] else ()))
        for draw in range(DRAWS if control == SHUFFLED else 1)
    ]


Key = tuple[int, int]  # a clip's number and its segment: what a shuffle is drawn from


def changed(attention: Attention | None, condition: Condition, keys: Sequence[Key]) -> Attention | None:
    """The attention (of N clips) under a condition; `keys` are those of the N clips.

    The parts of the row are inverted, M -> 1 - M, or replaced by the control: the inverse rescaled to the original's
    mean over the clip, without clipping (0 where the inverse is 0 everywhere); the original's cells shuffled within
    each frame, or its frames shuffled; the mean of the original, or of its inverse, everywhere. Other parts stay.
    """
    parts = ROWS[condition.row]
    if attention is None or not parts:
        return attention
    inverted = attention.invert(**dict.fromkeys(parts, True))
    if not condition.control:
        return inverted
    new = {}
    for part in parts:
        original, inverse = getattr(attention, part), getattr(inverted, part)
        if condition.control == SHUFFLED:
            new[part] = _shuffled(original, keys, condition.draw, frames=part == "temporal")
        elif condition.control == MATCHED:
            energy = _mean(inverse)
            new[part] = inverse * torch.where(energy > 0, _mean(original) / energy, 0.0)
        else:
            new[part] = _mean(original if condition.control == CONSTANT else inverse).expand_as(original)
    return attention._replace(**new)


def _mean(part: Tensor) -> Tensor:
    return part.mean((1, 2, 3, 4), keepdim=True)  # for each clip


def _shuffled(part: Tensor, keys: Sequence[Key], draw: int, frames: bool) -> Tensor:
    """M_s (N, 1, T, h, w) with the cells of each frame in a random order; with `frames`, M_t with its frames so."""
    count, cells = part.shape[2], part.shape[3:].numel()
    lists, length = (1, count) if frames else (count, cells)
    streams = (np.random.default_rng([*key, draw, frames]) for key in keys)
    order = np.stack([stream.random((lists, length)).argsort(1) for stream in streams])
    return part.reshape(-1, lists, length).gather(2, torch.from_numpy(order).to(part.device)).view(part.shape)


@torch.inference_mode()
def answers(
    model: STABN, mixture: Mixture, attention: Attention | None, asked: Sequence[Condition], keys: Sequence[Key]
) -> NDArray[np.float64]:
    """Class probabilities of N clips under each condition: (conditions, N, K). One `perceive` for each condition."""
    logits = torch.stack([model.perceive(mixture, changed(attention, each, keys)) for each in asked])
    return logits.cpu().double().softmax(-1).numpy()  # in float32, hopeless classes tie at 0


def ranks(probabilities: NDArray[np.floating], label: int) -> NDArray[np.int64]:
    """(..., K) -> (...): how many classes stand before the true one; of equals, that of the lower index is first."""
    order = np.argsort(-probabilities, axis=-1, kind="stable")
    return (order == label).argmax(-1)


# ----------------------------------------------------------------------------------------------------- the study


def look(model: STABN, items: Sequence[Item], asked: Sequence[Condition]) -> list[dict[str, Any]]:
    """A record for each clip, ready for JSON: under each condition the predicted class, how many classes stand before
    the true one, and its probability; or why the clip was skipped. Probabilities of segments are averaged."""
    good = [item for item in items if item.frames is not None]
    records: dict[int, dict[str, Any]] = {each.number: {"clip": each.number, "skipped": each.problem} for each in items}
    if good:
        clips = [model.preprocess(segment) for item in good for segment in item.frames]  # type: ignore[union-attr]
        segments = len(clips) // len(good)
        keys = [(item.number, segment) for item in good for segment in range(segments)]
        with torch.inference_mode():
            features = model.extract(torch.cat(clips))
            attention, _ = model.attend(features)
            mixture = model.mix(features)
        seen = answers(model, mixture, attention, asked, keys)  # (conditions, N * segments, K)
        seen = seen.reshape(len(asked), len(good), segments, -1).mean(2)
        for n, item in enumerate(good):
            records[item.number] = {
                "clip": item.number,
                "label": item.label,
                "predicted": seen[:, n].argmax(-1).tolist(),
                "rank": ranks(seen[:, n], item.label).tolist(),
                "probability": seen[:, n, item.label].tolist(),
            }
    return list(records.values())


# --------------------------------------------------------------------------------------------------- the figures


def summarise(records: Sequence[dict[str, Any]], asked: Sequence[Condition], classes: Sequence[str]) -> dict[str, Any]:
    """The study's figures from the records of the clips that were read (one at least), in any order.

    Returns {"rows": [...], "per_class": [...]}. A row has `top1`, `top5` and, where something is inverted, `flips` (the
    share of clips whose prediction changes), `change` (mean change of the true class's probability), its `controls`
    with the same figures, and a `verdict`. Figures are shares in 0..1, means over clips with their bootstrap 95 %
    interval; a shuffle's is first averaged over its seeds for each clip. A class has values only.
    """
    records = sorted((each for each in records if "skipped" not in each), key=lambda each: each["clip"])
    columns: dict[tuple[str, str], list[int]] = {}
    for index, each in enumerate(asked):
        columns.setdefault((each.row, each.control), []).append(index)
    arrays = {name: np.array([each[name] for each in records]) for name in ("predicted", "rank", "probability")}
    first = columns["none", ""]
    measured = {
        "top1": arrays["rank"] < 1,
        "top5": arrays["rank"] < 5,
        "flips": arrays["predicted"] != arrays["predicted"][:, first],
        "change": arrays["probability"] - arrays["probability"][:, first],
    }  # (clips, conditions) each
    figures = {
        key: {name: values[:, of].mean(1) for name, values in measured.items() if key[0] != "none" or name[:3] == "top"}
        for key, of in columns.items()
    }  # (clips,) each
    plain = figures["none", ""]["top1"]
    rows = []
    for row in dict.fromkeys(each.row for each in asked):
        told: dict[str, Any] = {"row": row, **{name: scored(of) for name, of in figures[row, ""].items()}}
        if row != "none":
            told["controls"] = [
                {"control": control, **{name: scored(of) for name, of in figures[row, control].items()}}
                for control in CONTROLS
            ]
            top1 = {control: float(figures[row, control]["top1"].mean()) for control in ("", *CONTROLS)}
            told["fall"] = scored(plain - figures[row, ""]["top1"])
            alone = [each for each in ("temporal", "spatial") if row == "both" and (each, "") in figures]
            as_far = [each for each in alone if _no_less(figures[each, ""]["top1"], figures[row, ""]["top1"])]
            told["verdict"] = verdict(
                row, float(plain.mean()), top1, told["fall"], *(as_far if len(as_far) == 1 else ())
            )
        rows.append(told)
    labels = np.array([each["label"] for each in records])
    per_class = [
        {
            "class": classes[label],
            "clips": int((labels == label).sum()),
            "figures": [
                {
                    "row": row,
                    "control": control,
                    **{k: round(float(v[labels == label].mean()), 6) for k, v in of.items()},
                }
                for (row, control), of in figures.items()
            ],
        }
        for label in np.unique(labels)
    ]
    return {"rows": rows, "per_class": per_class}


def scored(values: NDArray[np.float64]) -> dict[str, float]:
    """The mean over clips with its bootstrap 95 % interval, ready for JSON."""
    return dict(zip(("value", "low", "high"), (round(each, 6) for each in metrics.bootstrap(values)), strict=True))


def _no_less(alone: NDArray[np.float64], both: NDArray[np.float64]) -> bool:
    """Whether one part inverted alone takes as much as both: their top-1 (N,) is not surely lower, paired by clip."""
    return metrics.bootstrap(alone - both)[1] <= 0


def verdict(
    row: str, plain: float, top1: dict[str, float], fall: dict[str, float], alone: str | None = None
) -> dict[str, Any]:
    """Whether the fall of top-1 is about where and when, by rule, with a sentence that says why.

    It is (`about` is True) if the energy-matched inverse falls as far, its top-1 at most 1.25 times the plain
    inverse's, while the constants keep at least 70 % of `plain`, the top-1 with nothing inverted. The rule decides
    nothing (`about` is None) where the fall's interval reaches 0, and where nothing can fail it: 1.25 times the plain
    inverse's top-1, or what the least fall of the interval leaves, is `plain` or more. `top1` has the row's own under
    "" and those of its controls by name; `fall` is paired over clips. `alone` is the part that takes as much when it is
    inverted alone: then both say nothing about the other one.
    """
    limit, kept = 1.25 * top1[""], [top1[each] / plain if plain else 0.0 for each in (CONSTANT, CONSTANT_INVERSE)]
    as_far, keeps = top1[MATCHED] <= limit + 1e-9, min(kept) >= 0.7 - 1e-9
    went = f"top-1 goes from {100 * plain:.1f} to {100 * top1['']:.1f} %"
    energy = f"{100 * top1[MATCHED]:.1f} % with the energy-matched inverse"
    about: bool | None = None
    if fall["low"] <= 0:
        sentence = (
            f"no sure fall: {went}, by {100 * fall['low']:.1f} to {100 * fall['high']:.1f} points with 95 % confidence."
        )
    elif max(limit, 1.25 * (plain - fall["low"])) >= plain - 1e-9:
        constants = " and ".join(f"{100 * top1[each]:.1f}" for each in (CONSTANT, CONSTANT_INVERSE))
        sentence = (
            f"undecided, the fall is small or unsure: {went} ({energy}, {constants} % with the constants). The rule "
            f"allows the energy-matched inverse 1.25 x {100 * top1['']:.1f} %, which no fall at all may pass too."
        )
    else:
        about = as_far and keeps
        about_what = {"spatial": "where", "temporal": "when", "both": "where and when"}
        what = about_what[alone or row]
        sentence = (
            f"the fall is {'' if about else 'not shown to be '}about {what}: {went} and {'' if as_far else 'only '}"
            f"to {energy} (1.25 x {100 * top1['']:.1f} % is allowed), {'and' if as_far == keeps else 'but'} the "
            f"constants keep {'' if keeps else 'only '}{100 * kept[0]:.0f} and {100 * kept[1]:.0f} % of it (70 % is "
            "needed)."
        )
        if alone:
            other = about_what["temporal" if alone == "spatial" else "spatial"]
            sentence += f" {alone.capitalize()} inverted alone takes as much, so that nothing is said about {other}."
    return {"about": about, "falls_as_far": as_far, "constants_keep": keeps, "sentence": sentence}
