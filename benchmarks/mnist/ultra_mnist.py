"""UltraMNIST: three to five digits of very different size, whose sum is the class.

Sources: Gupta et al., "UltraMNIST Classification: A Benchmark to Train CNNs for Very Large Images"
(Scientific Data, 2024); Gupta et al., "Patch Gradient Descent" (TMLR 2024) for the variant of 512
pixels. Differs on purpose: the published generator takes the digits of both splits from MNIST's
train pool, here each split has its own.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.canvas import Canvas
from benchmarks.mnist.base import (
    DIGIT_PX,
    PLAIN,
    Benchmark,
    Example,
    Mnist,
    Pool,
    Square,
    digit_task,
    place,
    write_dataset,
)
from foveate.batch import View
from foveate.errors import OptionError

SCALES_AND_SUMS = {4000: (75, 27), 512: (9, 9)}
"""The largest size factor and the largest sum, by side of the canvas."""

_N_DIGITS = (3, 4, 5)


def write(
    folder: Path,
    mnist: Mnist,
    *,
    n_train: int = 28_000,
    n_test: int = 28_000,
    seed: int = 0,
    side: int = 4000,
) -> Path:
    """Write the task; a finished folder of the same settings is reused.

    Label column: ``label``, the sum of the digits, as balanced as the numbers allow. Given the sum,
    all sets of three to five digits are equally likely. Factors are drawn from a distribution in
    the shape of a V (many tiny, many huge); half of the digits of factor 1 are shrunk to 14 pixels.

    Args:
        folder: where to.
        mnist: the digits.
        n_train: canvases of the train split.
        n_test: canvases of the test split.
        seed: of everything.
        side: 4000, factors up to 75 and 28 classes; or 512, factors up to 9 and 10 classes.

    Returns:
        ``labels.csv``.

    Raises:
        OptionError: a value is not allowed, or the folder was written with other settings.
    """
    if side not in SCALES_AND_SUMS:
        raise OptionError(f"side: got {side}, allowed: {', '.join(map(str, SCALES_AND_SUMS))}")
    return write_dataset(
        folder,
        mnist,
        functools.partial(_draw, side=side),
        n_train=n_train,
        n_test=n_test,
        seed=seed,
        recipe={"recipe": "ultra_mnist", "side": side},
    )


def _draw(pool: Pool, n: int, rng: np.random.Generator, *, side: int) -> Iterator[Example]:
    """Draw the canvases of a split."""
    most_scale, most_sum = SCALES_AND_SUMS[side]
    sums = rng.permutation(np.arange(n) % (most_sum + 1))
    for total in sums.tolist():
        sets = _sets(total)
        digits = rng.permutation(sets[rng.integers(len(sets))])
        sources = np.asarray([rng.choice(pool.rows[digit]) for digit in digits])
        squares = _squares(rng, len(digits), side, most_scale)
        stamps = [
            image[::2, ::2] if size < DIGIT_PX else image
            for image, (_, _, size) in zip(pool.images[sources], squares, strict=True)
        ]
        canvas = Canvas.from_stamps(
            (side, side),
            stamps,
            [(y, x) for y, x, _ in squares],
            scales=[max(1, size // DIGIT_PX) for _, _, size in squares],
            blend="add",
        )
        yield Example(canvas, {"label": str(total)}, np.arange(len(digits)), sources)


@functools.cache
def _sets(total: int) -> tuple[tuple[int, ...], ...]:
    """Return every set of three to five digits with this sum, repeats allowed."""
    digit_sets = (
        digits
        for n in _N_DIGITS
        for digits in itertools.combinations_with_replacement(range(10), n)
    )
    return tuple(digits for digits in digit_sets if sum(digits) == total)


def _squares(rng: np.random.Generator, n: int, side: int, most_scale: int) -> list[Square]:
    """Draw squares that do not overlap; overlapping ones are drawn again, as published."""
    scales = np.arange(1, most_scale + 1)
    weight = np.abs(scales - (most_scale + 1) / 2) + 0.5
    share = weight / weight.sum()

    def propose() -> Square:
        scale = int(rng.choice(scales, p=share))
        size = DIGIT_PX * scale
        if scale == 1 and rng.random() < 0.5:
            size = DIGIT_PX // 2
        y, x = rng.integers(side - size + 1, size=2).tolist()
        return y, x, size

    placed: list[Square] = []
    for _ in range(n):
        placed.append(place(placed, propose, side))
    return placed


def _view(recipe: Mapping[str, Any]) -> View:
    """Return the view for canvases of a recipe."""
    return View(1.0, 48, recipe["side"] / 128, unit="px")


BENCHMARK = Benchmark(
    summary="three to five digits of sizes 14 to 2,100 pixels; the label is their sum",
    n_train=2000,
    n_test=1000,
    recipe={"side": 512},
    write=write,
    task=lambda recipe: digit_task("sum", "none", 1 + SCALES_AND_SUMS[recipe["side"]][1]),
    view=_view,
    settings=lambda recipe: {"": {"train": {**PLAIN, "epochs": 30, "batch_size": 4}}},
)
