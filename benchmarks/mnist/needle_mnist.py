"""Needle MNIST: is there a three among all the other digits?

Source: Pawlowski et al., "Needles in Haystacks: On Classifying Tiny Objects in Large Images"
(arXiv 1908.06037), written from the description: the digit keeps its size, the canvas grows.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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
    write_dataset,
)
from foveate.batch import View
from foveate.errors import OptionError
from foveate.tasks.base import AbstractTask
from foveate.tasks.binary import BinaryTask

CLUTTER = {64: 2, 128: 6, 256: 25, 512: 100, 1024: 400, 2048: 1600, 4096: 6400, 6144: 14_400}
"""Number of other digits, by side of the canvas."""

NEEDLE = 3


def write(
    folder: Path,
    mnist: Mnist,
    *,
    n_train: int,
    n_test: int,
    seed: int = 0,
    side: int = 1024,
    clutter: int | None = None,
) -> Path:
    """Write the task; a finished folder of the same settings is reused.

    Label column: ``label``, ``present`` for one half and ``absent`` for the other, which holds one
    more of the other digits instead. Every three is used twice; digits lie anywhere, also over one
    another, and add up to white.

    Args:
        folder: where to.
        mnist: the digits.
        n_train: canvases of the train split; at most four for every three in its pool.
        n_test: canvases of the test split, likewise.
        seed: of everything.
        side: of the canvas in pixels.
        clutter: other digits; by default as published for this side.

    Returns:
        ``labels.csv``.

    Raises:
        OptionError: a value is not allowed, or the folder was written with other settings.
    """
    if clutter is None and side not in CLUTTER:
        raise OptionError(f"side: published are {', '.join(map(str, CLUTTER))}; else give clutter")
    n_other = CLUTTER[side] if clutter is None else clutter
    if side < DIGIT_PX or n_other < 0:
        raise OptionError(f"side, clutter: got {side}, {n_other}, allowed: from {DIGIT_PX}, from 0")
    for split, n, labels in (
        ("train", n_train, mnist.train_labels),
        ("test", n_test, mnist.test_labels),
    ):
        most = 4 * int((labels == NEEDLE).sum())
        if n > most:
            raise OptionError(f"n_{split}: got {n}; every three is used twice, so at most {most}")
    return write_dataset(
        folder,
        mnist,
        functools.partial(_draw, side=side, clutter=n_other),
        n_train=n_train,
        n_test=n_test,
        seed=seed,
        recipe={"recipe": "needle_mnist", "side": side, "clutter": n_other},
    )


def _draw(
    pool: Pool, n: int, rng: np.random.Generator, *, side: int, clutter: int
) -> Iterator[Example]:
    """Draw the canvases of a split."""
    n_present = n // 2
    threes = rng.permutation(pool.rows[NEEDLE])[: (n_present + 1) // 2]
    needles = iter(rng.permutation(np.tile(threes, 2)[:n_present]).tolist())
    for present in rng.permutation(np.arange(n) < n_present).tolist():
        sources = rng.choice(pool.rows_but[NEEDLE], clutter + 1)
        if present:
            sources[rng.integers(clutter + 1)] = next(needles)
        corners = rng.integers(side - DIGIT_PX + 1, size=(clutter + 1, 2))
        canvas = _sum_digits(pool.images, sources, corners, side)
        label = {"label": "present" if present else "absent"}
        yield Example(canvas, label, np.arange(clutter + 1), sources)


def _sum_digits(images: Bytes, sources: Ints, corners: Ints, side: int) -> Canvas:
    """Build a canvas of summed digits; each picture is stored once, without its black margin."""
    used, ids = np.unique(sources, return_inverse=True)
    stamps, margins = zip(*(_crop_to_ink(image) for image in images[used]), strict=True)
    origins = corners + np.asarray(margins)[ids]
    return Canvas.from_stamps((side, side), stamps, origins, stamp_ids=ids, blend="add")


def _crop_to_ink(image: Bytes) -> tuple[Bytes, tuple[int, int]]:
    """Return the part with ink and its corner; a black picture is returned unchanged."""
    rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
    if not len(rows):
        return image, (0, 0)
    top, left = int(rows[0]), int(columns[0])
    return image[top : rows[-1] + 1, left : columns[-1] + 1], (top, left)


def _task(_: Mapping[str, Any]) -> AbstractTask:
    """Build the task."""
    return BinaryTask(classes=("absent", "present"), positive="present", smoothing=0.0)


def _view(recipe: Mapping[str, Any]) -> View:
    """Return the view for canvases of a recipe."""
    return View(1.0, 48, max(1.0, recipe["side"] / 128), unit="px")


BENCHMARK = Benchmark(
    summary="is there a three among other digits; its share falls as the canvas grows",
    n_train=2000,
    n_test=1000,
    recipe={"side": 256, "clutter": None},
    write=write,
    task=_task,
    view=_view,
    settings=lambda recipe: {"": {"train": {**PLAIN, "epochs": 20, "batch_size": 4}}},
)
