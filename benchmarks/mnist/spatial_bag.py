"""Spatial MNIST bags: fifty digits whose kinds (A) or whose layout (B, C) give the label.

Source of A and B: the spatial-MNIST-bag task of arXiv 2605.17449, there with frozen embeddings and
coordinates in the unit square. Here the bags are real canvases: the unit square is the range of a
digit's corner, and digits do not overlap, so that each is whole. What the paper leaves open is
settled thus: a positive bag of task A holds exactly one nine; the 45 even digits of task B are nine
of each; scattered means uniform.

Task C is ours. In task B positive bags hold a clump of digits that negative ones lack, so places
alone, with no look at the digits, tell much of the answer, and a layout audit, which leaves the
places as they are, cannot bring the score down to chance. In task C five even digits lie close
together in every negative bag: where digits lie tells nothing, what they are tells nothing, and
only which of them cluster decides.
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
    Example,
    Ints,
    Mnist,
    Pool,
    Square,
    place,
    write_dataset,
)
from foveate.batch import View
from foveate.errors import OptionError
from foveate.nn.heads import Pooling
from foveate.tasks.base import AbstractTask
from foveate.tasks.binary import BinaryTask

Task = Literal["A", "B", "C"]

N_DIGITS = 50
ODD = (1, 3, 5, 7, 9)
EVEN = (0, 2, 4, 6, 8) * 9
CENTRE = (0.2, 0.8)
SPREAD = 0.05


def write(
    folder: Path,
    mnist: Mnist,
    *,
    n_train: int,
    n_test: int,
    seed: int = 0,
    task: Task = "B",
    side: int = 4096,
) -> Path:
    """Write the task; a finished folder of the same settings is reused.

    Label column: ``label``, ``positive`` for one half. In task A these hold a nine. In tasks B and
    C all bags hold the same digits, and in positive ones the five odd digits lie close together; in
    negative ones of task C one of each even digit do. The column ``places`` names files of the
    centres ``(50, 2)`` of all digits, in random order, for methods that are given the places and
    need no lattice.

    Args:
        folder: where to.
        mnist: the digits.
        n_train: canvases of the train split.
        n_test: canvases of the test split.
        seed: of everything.
        task: ``A`` (appearance), ``B`` (layout) or ``C`` (layout of what is what).
        side: of the canvas in pixels, at least 1024.

    Returns:
        ``labels.csv``.

    Raises:
        OptionError: a value is not allowed, or the folder was written with other settings.
    """
    if task not in get_args(Task):
        raise OptionError(f"task: got '{task}', allowed: {', '.join(get_args(Task))}")
    if side < 1024:
        raise OptionError(f"side: got {side}, allowed: from 1024")
    return write_dataset(
        folder,
        mnist,
        functools.partial(_draw, task=task, side=side),
        n_train=n_train,
        n_test=n_test,
        seed=seed,
        recipe={"recipe": "spatial_bag", "task": task, "side": side},
    )


def _draw(
    pool: Pool, n: int, rng: np.random.Generator, *, task: Task, side: int
) -> Iterator[Example]:
    """Draw the canvases of a split."""
    for positive in rng.permutation(np.arange(n) < n // 2).tolist():
        if task == "A":
            digits = rng.integers(9, size=N_DIGITS).tolist()
            if positive:
                digits[0] = 9
            corners = _corners(rng, side, n_clustered=0)
        elif task == "B":
            digits = [*ODD, *EVEN]
            corners = _corners(rng, side, n_clustered=len(ODD) * positive)
        else:
            near, rest = (ODD, EVEN[:5]) if positive else (EVEN[:5], ODD)
            digits = [*near, *rest, *EVEN[5:]]
            corners = _corners(rng, side, n_clustered=len(near))
        # The order of the pastes must not give away which digits were placed first.
        order = rng.permutation(N_DIGITS)
        sources = np.asarray([rng.choice(pool.rows[d]) for d in digits])[order]
        corners = corners[order]
        canvas = Canvas.from_stamps((side, side), list(pool.images[sources]), corners)
        yield Example(
            canvas,
            {"label": "positive" if positive else "negative"},
            np.arange(N_DIGITS),
            sources,
            corners.astype(np.float64) + DIGIT_PX / 2,
        )


def _corners(rng: np.random.Generator, side: int, *, n_clustered: int) -> Ints:
    """Draw corners ``(50, 2)`` of digits that do not overlap; the first ones around one centre."""
    centre = rng.uniform(*CENTRE, 2)

    def square(at: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Square:
        y, x = np.rint(at * (side - DIGIT_PX)).astype(int).tolist()
        return y, x, DIGIT_PX

    def near() -> Square:
        return square(centre + SPREAD * rng.standard_normal(2))

    def anywhere() -> Square:
        return square(rng.random(2))

    placed: list[Square] = []
    for i in range(N_DIGITS):
        placed.append(place(placed, near if i < n_clustered else anywhere, side))
    return np.asarray(placed, np.int64)[:, :2]


def _task(recipe: Mapping[str, Any]) -> AbstractTask:
    """Build the task."""
    pooling: Pooling = "max" if recipe["task"] == "A" else "none"
    return BinaryTask(
        classes=("negative", "positive"), positive="positive", smoothing=0.0, patches=pooling
    )


BENCHMARK = Benchmark(
    summary="50 digits; only how they lie decides (tasks B and C), or which they are (task A)",
    n_train=2000,
    n_test=1000,
    recipe={"task": "B", "side": 4096},
    write=write,
    task=_task,
    view=lambda recipe: View(1.0, DIGIT_PX, recipe["side"] / 256, unit="px"),
    settings=lambda recipe: {"": {"train": {**PLAIN, "epochs": 20, "batch_size": 8}}},
)
