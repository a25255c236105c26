"""Pictures of squares on a grey ground, which a linear model on frozen features can count."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CELLS = 64
"""Places of squares in a picture of 128 pixels a side."""

LINEAR = (
    *("--method", "downsampled", "--epochs", "0", "--heatmaps", "2"),
    *("--split.test-fraction", "0.4"),
)
"""Flags of a linear model on features of a frozen encoder, which trains in seconds."""


def write_squares(
    path: Path, counts: Mapping[tuple[int, int, int], int], rng: np.random.Generator
) -> None:
    """Write a picture of squares.

    Args:
        path: file of the picture.
        counts: number of squares by the shade that is taken off the ground, ``(red, green, blue)``.
        rng: draws the ground and the places.
    """
    pixels = rng.integers(170, 200, (128, 128, 3)).astype(np.int16)
    places = iter(rng.permutation(CELLS))
    for shade, count in counts.items():
        for _ in range(count):
            y, x = divmod(int(next(places)), 8)
            pixels[16 * y + 2 : 16 * y + 12, 16 * x + 2 : 16 * x + 12] -= np.array(shade, np.int16)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """Write a table as CSV, and return its path."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path
