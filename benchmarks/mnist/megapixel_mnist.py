"""Megapixel MNIST: five digits, three of them equal, among noise on a black canvas.

Sources: Katharopoulos and Fleuret, "Processing Megapixel Images with Deep Attention-Sampling
Models" (ICML 2019), variant ``ats``; Bergner, Lippert and Mahendran, "Iterative Patch Selection for
High-Resolution Image Recognition" (ICLR 2023), variant ``ips``. They are not comparable: in ``ats``
the noise comes last and damages about one digit in fifteen. Written from the description, with
numpy's own generator: the same distribution, other draws.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from benchmarks.canvas import Canvas
from benchmarks.mnist.base import (
    DIGIT_PX,
    PLAIN,
    Benchmark,
    Bytes,
    Example,
    Ints,
    Mnist,
    Pool,
    Settings,
    Square,
    digit_task,
    place,
    write_dataset,
)
from benchmarks.mnist.tasks import JointTask, PresenceTask
from foveate.batch import View
from foveate.errors import OptionError
from foveate.tasks.base import AbstractTask

Variant = Literal["ips", "ats"]

_N_ALIKE, _N_OTHER = 3, 2
_N_DIGITS = _N_ALIKE + _N_OTHER
_STROKE = 56
_FLIPPED = 0.33


def write(
    folder: Path,
    mnist: Mnist,
    *,
    n_train: int = 5000,
    n_test: int = 1000,
    seed: int = 0,
    variant: Variant = "ips",
    side: int = 1500,
    noise: int = 50,
) -> Path:
    """Write the task; a finished folder of the same settings is reused.

    Label columns: ``majority`` (the digit of which there are three); in ``ips`` also ``max`` (the
    largest), ``top`` (the one highest up) and ``multi`` (all that are there, such as ``1 3 9``).

    Args:
        folder: where to.
        mnist: the digits.
        n_train: canvases of the train split.
        n_test: canvases of the test split.
        seed: of everything.
        variant: ``ips`` lays digits over noise, ``ats`` noise over digits.
        side: of the canvas in pixels. The small variant of ATS has 500 and no noise.
        noise: patches of noise on each canvas, drawn from as many patterns.

    Returns:
        ``labels.csv``.

    Raises:
        OptionError: a value is not allowed, or the folder was written with other settings.
    """
    if variant not in get_args(Variant):
        raise OptionError(f"variant: got '{variant}', allowed: {', '.join(get_args(Variant))}")
    if side < 4 * DIGIT_PX or noise < 0:
        raise OptionError(f"side, noise: got {side}, {noise}, allowed: from {4 * DIGIT_PX}, from 0")
    return write_dataset(
        folder,
        mnist,
        functools.partial(_draw, variant=variant, side=side, noise=noise),
        n_train=n_train,
        n_test=n_test,
        seed=seed,
        recipe={"recipe": "megapixel_mnist", "variant": variant, "side": side, "noise": noise},
    )


def _draw(
    pool: Pool, n: int, rng: np.random.Generator, *, variant: Variant, side: int, noise: int
) -> Iterator[Example]:
    """Draw the digits of all canvases, then their positions, then the noise."""
    sources = [_draw_five(pool, rng) for _ in range(n)]
    corners = [_positions(rng, side) for _ in range(n)]
    patterns = _patterns(rng, noise)
    for source, corner in zip(sources, corners, strict=True):
        spread = rng.random((noise, 2)) * (side - 2 * DIGIT_PX) + DIGIT_PX
        used, ids = np.unique(rng.integers(noise, size=noise), return_inverse=True)
        noise_first = variant == "ips"
        places = [np.floor(spread).astype(np.int64), corner]
        stamp_ids = [_N_DIGITS + ids, np.arange(_N_DIGITS)]
        order = slice(None) if noise_first else slice(None, None, -1)
        canvas = Canvas.from_stamps(
            (side, side),
            [*pool.images[source], *patterns[used]],
            np.concatenate(places[order]),
            stamp_ids=np.concatenate(stamp_ids[order]),
        )
        labels = _labels(pool.labels[source].astype(np.int64), corner)
        if not noise_first:
            labels = {"majority": labels["majority"]}
        yield Example(canvas, labels, np.arange(_N_DIGITS) + noise * noise_first, source)


def _draw_five(pool: Pool, rng: np.random.Generator) -> Ints:
    """Draw pool rows: three of one digit and two of any other, with replacement."""
    digit = int(10 * rng.random())
    same_digit = rng.choice(pool.rows[digit], _N_ALIKE)
    return np.concatenate([same_digit, rng.choice(pool.rows_but[digit], _N_OTHER)])


def _positions(rng: np.random.Generator, side: int) -> Ints:
    """Draw corners ``(5, 2)`` of digits that do not overlap."""

    def propose() -> Square:
        y, x = np.rint(rng.random(2) * (side - DIGIT_PX)).astype(int).tolist()
        return y, x, DIGIT_PX

    placed: list[Square] = []
    for _ in range(_N_DIGITS):
        placed.append(place(placed, propose, side))
    return np.asarray(placed, np.int64)[:, :2]


def _patterns(rng: np.random.Generator, n: int) -> Bytes:
    """Draw strokes ``(n, 28, 28)``: flickering pairs of straight lines, one possibly mirrored.

    A line begins in the corner and rises by ``tan(u π / 2.5)`` to a row.
    """
    last = DIGIT_PX - 0.51
    lines = np.zeros((n, DIGIT_PX, DIGIT_PX), bool)
    for line, u in zip(lines, rng.random(n), strict=True):
        slope = np.tan(u * np.pi / 2.5)
        row = np.linspace(0, min(last, last / max(slope, 1e-9)), _STROKE)
        line[np.rint(row).astype(int), np.rint(slope * row).astype(int)] = True
    second = lines[rng.permutation(n)]
    for axis in (2, 1):
        flipped = rng.random(n) < _FLIPPED
        second[flipped] = np.flip(second[flipped], axis)
    bright = rng.uniform(0.8, 1.0, lines.shape)
    return np.rint(255 * (lines | second) * bright).astype(np.uint8)


def _labels(digits: Ints, corner: Ints) -> dict[str, str]:
    # If two digits start on one row, the left one counts as the upper one.
    """Return the label columns of the digits."""
    top = np.lexsort((corner[:, 1], corner[:, 0]))[0]
    return {
        "majority": str(digits[0]),
        "max": str(digits.max()),
        "top": str(digits[top]),
        "multi": " ".join(map(str, np.unique(digits))),
    }


def _task(recipe: Mapping[str, Any]) -> AbstractTask:
    """Build the task of a recipe."""
    if recipe["variant"] == "ats":
        return digit_task("majority", "sum")
    # Presence is a question that single patches can answer. So is a count, but its loss takes
    # features from presence, and which digit there are three of is left to relations.
    return JointTask(
        {
            "majority": digit_task("majority", "none"),
            "max": digit_task("max", "none"),
            "top": digit_task("top", "none"),
            "multi": PresenceTask(classes=[str(i) for i in range(10)], name="multi"),
        }
    )


def _settings(recipe: Mapping[str, Any]) -> Mapping[str, Settings]:
    """Return the default settings of each method."""
    train = {**PLAIN, "weight_decay": 0.1}
    view = {"patch_px": 36}
    if recipe["variant"] == "ats":
        return {
            "": {"train": {**train, "epochs": 20, "batch_size": 8, "lr": 1e-3}},
            "attention_sampling": {"train": {"epochs": 30, "augment": "none"}},
            "centred_glimpse": {"method": {"locating": 1.0}, "view": view},
        }
    # Every digit counts in every question, and there are 55 things on a canvas.
    thorough = {"patches": 24, "strongest": 56, "eval_patches": 56}
    return {
        "": {"train": {**train, "epochs": 16, "batch_size": 4}},
        "centred_ips": {"method": {"kept": 144, "chunk": 640}, "view": view},
        "centred_glimpse": {"method": thorough, "view": view},
    }


BENCHMARK = Benchmark(
    summary="five digits among noise: majority, largest, topmost and all of them",
    n_train=2000,
    n_test=1000,
    recipe={"variant": "ips", "side": 1500, "noise": 50},
    write=write,
    task=_task,
    view=lambda recipe: View(1.0, 50, 8.0 if recipe["side"] > 1000 else 5.0, unit="px"),
    settings=_settings,
)
