"""Estimate what a training will cost, from the times of reading and of encoding one glimpse.

The number of patches follows from the plan of a training. The check has measured how long reading
takes, in all images; how long encoding takes is measured here.
Steps end to end are counted as three times the encoding of what they read, as gradients cost
about twice the values. So the estimate is rough, and the page says what it rests on; training
itself measures steps, and prints time and memory before each stage.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate import defaults
from foveate.batch import View
from foveate.checks.images import list_plan_facts
from foveate.checks.probe import GLIMPSE_PX, REGION_PX
from foveate.checks.records import ImageRecord
from foveate.encoders import build_encoder
from foveate.encoders.base import AbstractEncoder
from foveate.errors import FoveateError, converting
from foveate.geometry import shape_from_size_um, size_um_from_shape
from foveate.images.likeness import ImageFacts
from foveate.loading.scan import ViewOptions, choose_view
from foveate.messages.display import Display
from foveate.methods.base import AbstractMethod
from foveate.parts import find, names
from foveate.parts.options import options as list_options
from foveate.presentation import write_duration, write_memory
from foveate.runs.schedule import TrainOptions, settle_schedule
from foveate.table import Case

_PATCHES = 8
"""Patches that are encoded together."""
_STEP = 3.0
"""Cost of a training step, in encodings without gradients."""
_TRAINING_PART = 0.75 * 0.8
"""Share of the images in the training part with the default split."""


@dataclass(frozen=True)
class MethodCost:
    """The cost of one method, as texts for readers.

    Attributes:
        method: its name.
        patches: patches of an image that a training step reads.
        frozen: time of the frozen start.
        end_to_end: time of the stage end to end.
        memory: memory of the stored features of the frozen start.
    """

    method: str
    patches: str
    frozen: str
    end_to_end: str
    memory: str


@dataclass(frozen=True)
class Cost:
    """What a training will cost.

    Attributes:
        rows: the methods whose patches can be counted.
        basis: what the estimate rests on, or why there is none.
    """

    rows: tuple[MethodCost, ...]
    basis: str


@dataclass(frozen=True)
class Speed:
    """What was measured on this machine.

    Attributes:
        read_glimpse_s, read_patch_s: seconds to read a glimpse and a patch.
        glimpse_s, patch_s: seconds to encode them.
        n_features: number of features of a patch.
    """

    read_glimpse_s: float
    read_patch_s: float
    glimpse_s: float
    patch_s: float
    n_features: int


def estimate_cost(
    cases: Sequence[Case],
    records: Mapping[str, ImageRecord],
    assume_spacing_um: float | None,
    display: Display,
) -> Cost:
    """Estimate the time of a training by method.

    Args:
        cases: the images.
        records: facts about those that were read, by image id.
        assume_spacing_um: spacing of images that state none.
        display: shows what is measured.
    """
    display.say("estimating what a training will cost")
    try:
        by_id = list_plan_facts(cases, records, assume_spacing_um)
        usable, facts = [case for case in cases if case.image_id in by_id], list(by_id.values())
        if not facts:
            return Cost((), "No estimate: no image can be used.")
        view = choose_view(facts, ViewOptions(assume_spacing_um=assume_spacing_um))
        if view.recipe is not None:
            return Cost(
                (), "No estimate: files of features need no encoding, which takes most time."
            )
        name = defaults.ENCODER_BY_AXES[view.axes]
        with converting("the estimate of costs"):
            encoder = build_encoder(name, pretrained=False).eval()
            known = [records[case.image_id] for case in usable]
            speed = _measure(known, view, encoder)
    except FoveateError as error:
        return Cost((), f"No estimate: {error}")
    shares = [records[case.image_id].foreground or 1.0 for case in usable]
    rows = [
        row
        for method in names("methods")
        if (row := _estimate_method(method, view, facts, shares, speed)) is not None
    ]
    gpu = torch.cuda.is_available()
    device = "a GPU, which training would use, is faster" if gpu else "no GPU was found"
    return Cost(
        tuple(rows),
        f"For one fold, encoder {name}, patches of {view.patch_px} pixels, "
        f"{round(_TRAINING_PART * len(usable))} of {len(usable)} images in the training part. "
        f"Measured on the CPU ({device}): {write_duration(speed.read_glimpse_s)} to read a "
        f"glimpse, {write_duration(speed.read_patch_s)} a patch, "
        f"{write_duration(speed.glimpse_s)} and {write_duration(speed.patch_s)} to encode them. A "
        "step is counted as three encodings. Memory of a step is not estimated: training measures "
        "it, and prints it before each stage. Methods that choose their patches level by level are "
        "left out.",
    )


# -- measuring ------------------------------------------------------------------------------------


def _measure(records: Sequence[ImageRecord], view: View, encoder: AbstractEncoder) -> Speed:
    """Take the times of reading from the check, and encode a glimpse and a few patches."""
    space = (view.patch_px,) * view.axes
    scale = view.patch_px**view.axes / REGION_PX[view.axes] ** view.axes
    middle = sorted(records, key=lambda r: math.prod(r.shape))[len(records) // 2]
    shrink = max(1.0, max(middle.shape) / GLIMPSE_PX[view.axes])
    whole = torch.zeros(1, 3, *(max(32, round(n / shrink)) for n in middle.shape))
    patches = torch.zeros(_PATCHES, 3, *space)
    return Speed(
        read_glimpse_s=statistics.median(r.glimpse_s for r in records),
        read_patch_s=statistics.median(r.region_s for r in records) * scale,
        glimpse_s=_time(lambda: _encode(encoder, whole)),
        patch_s=_time(lambda: _encode(encoder, patches)) / _PATCHES,
        n_features=encoder.n_features,
    )


def _time(work: Callable[[], object]) -> float:
    """Return the seconds of some work: the shorter of two times, as the first warms up."""
    seconds = []
    for _ in range(2):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def _encode(encoder: AbstractEncoder, pixels: Tensor) -> None:
    with torch.inference_mode():
        encoder(pixels)


# -- counting -------------------------------------------------------------------------------------


def _estimate_method(
    name: str, view: View, facts: Sequence[ImageFacts], shares: Sequence[float], speed: Speed
) -> MethodCost | None:
    """Estimate the cost of a method; None where its patches cannot be counted."""
    part: type[AbstractMethod] = find("methods", name)
    if view.axes not in part.axes:
        return None
    counts = _count_patches(part, view, facts, shares)
    if counts is None:
        return None
    patches, surveyed = counts
    n = max(1, round(_TRAINING_PART * len(facts)))
    schedule = settle_schedule(TrainOptions(), n, pretrained=True, learns_frozen=True)
    look_s = speed.read_glimpse_s + speed.glimpse_s
    patch_s = speed.read_patch_s + speed.patch_s
    step_s = (
        speed.read_glimpse_s
        + patches * speed.read_patch_s
        + _STEP * (speed.glimpse_s + patches * speed.patch_s)
    )
    stored = len(facts) * surveyed * speed.n_features * 4 / 2**20
    return MethodCost(
        name,
        "none" if not patches else f"{patches:.0f}",
        f"about {write_duration(len(facts) * (look_s + surveyed * patch_s))}",
        f"about {write_duration(schedule.epochs * n * step_s)}",
        write_memory(stored) if surveyed else "–",
    )


def _count_patches(
    part: type[AbstractMethod], view: View, facts: Sequence[ImageFacts], shares: Sequence[float]
) -> tuple[float, float] | None:
    """Count the patches of an image in a step and in the frozen start; None where unknown."""
    if "whole" in part.reads:
        return None
    options: dict[str, Any] = {k: option.default for k, option in list_options(part).items()}
    chosen = options | part.choose_options(options, view, facts)
    if "bag" in part.reads:
        sizes_um = [size_um_from_shape(fact.shape, fact.spacing_um) for fact in facts]
        cells = [math.prod(shape_from_size_um(size_um, view.patch_um)) for size_um in sizes_um]
        covering = statistics.mean(c * share for c, share in zip(cells, shares, strict=True))
        kept = float(chosen.get("kept", covering))
        return min(covering, kept), covering
    if "crops" not in part.reads:
        return 0, 0
    if "patches" not in chosen:
        return None
    return float(chosen["patches"]), float(chosen.get("survey", chosen["patches"]))
