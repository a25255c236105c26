"""Code that the benchmark tasks share: digit pools, free places, and data set folders.

A folder holds ``recipe.json`` (every setting), ``train/`` and ``test/`` with the canvases,
``digits.npz`` (the truth, for audits and for scores of localisation only: no training may read it)
and, written last, ``labels.csv``.
"""

from __future__ import annotations

import csv
import functools
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from benchmarks.canvas import Canvas, write_canvas
from benchmarks.canvas.loading import PlacedCase
from benchmarks.mnist.tasks import DigitTask
from foveate.batch import View
from foveate.errors import OptionError
from foveate.files.atomic import remove_partial_files, write_aside, write_json, write_text
from foveate.files.csvtext import csv_text
from foveate.nn.heads import Head, Pooling
from foveate.tasks.base import AbstractTask

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]
Split = Literal["train", "test"]
Square = tuple[int, int, int]

DIGIT_PX = 28
"""Side of an MNIST picture."""

_VERSION = 1
_MAX_TRIES = 10_000
_VAL_SHARE = 0.08
_NOT_LABELS = {"path", "split", "places"}

Settings = Mapping[str, Mapping[str, Any]]

PLAIN: Mapping[str, Any] = {"augment": "warp", "patience": 0, "warmup": 0.1}
"""Training settings that all these tasks share: small rotations only, no early stopping."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Digits of one split: images ``(n, 28, 28)`` and labels ``(n,)``, 0 to 9, all present.

    Raises:
        OptionError: other shapes or values, or a digit of which there is no image.
    """

    images: Bytes
    labels: Bytes

    def __post_init__(self) -> None:
        n = len(self.labels)
        if self.images.shape != (n, DIGIT_PX, DIGIT_PX) or self.images.dtype != np.uint8:
            raise OptionError(
                f"digits: got {self.images.dtype} of shape {self.images.shape} for {n} labels, "
                f"expected uint8 of shape {(n, DIGIT_PX, DIGIT_PX)}"
            )
        if sorted(set(self.labels.tolist())) != list(range(10)):
            raise OptionError("digits: every label from 0 to 9 is needed, and no other")

    @functools.cached_property
    def rows(self) -> tuple[Ints, ...]:
        """Return the rows of each digit."""
        return tuple(np.flatnonzero(self.labels == digit) for digit in range(10))

    @functools.cached_property
    def rows_but(self) -> tuple[Ints, ...]:
        """Return, for each digit, the rows of all other digits."""
        return tuple(np.flatnonzero(self.labels != digit) for digit in range(10))


@dataclass(frozen=True, eq=False)
class Mnist:
    """MNIST: the train pool and the test pool, which no recipe mixes."""

    train_images: Bytes
    train_labels: Bytes
    test_images: Bytes
    test_labels: Bytes

    def pool(self, split: Split) -> Pool:
        """Return the digits from which canvases of this split are made."""
        if split == "train":
            return Pool(self.train_images, self.train_labels)
        return Pool(self.test_images, self.test_labels)

    @functools.cached_property
    def digest(self) -> str:
        """Return a digest of all pixels and labels."""
        parts = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        return "-".join(f"{zlib.crc32(p.tobytes()):08x}" for p in parts)


@dataclass(frozen=True, eq=False)
class Example:
    """One canvas and its true values.

    Attributes:
        canvas: the image.
        labels: value by column of the table.
        digits: ``(d,)`` which of the canvas' pastes are digits.
        sources: ``(d,)`` rows of the pool that they were taken from.
        places_px0: ``(n, 2)`` centres that methods may be given instead of a lattice, or None.
    """

    canvas: Canvas
    labels: Mapping[str, str]
    digits: Ints
    sources: Ints
    places_px0: NDArray[np.float64] | None = None


Draw = Callable[[Pool, int, np.random.Generator], Iterator[Example]]
"""Draws a number of examples from one pool, with all randomness from the generator."""


def place(
    placed: Sequence[Square],
    propose: Callable[[], Square],
    room: int,
) -> Square:
    """Return the first proposed square ``(top, left, side)`` inside that overlaps no placed one.

    Args:
        placed: squares that are taken.
        propose: draws a candidate.
        room: side of the canvas.

    Raises:
        OptionError: there is no room.
    """
    for _ in range(_MAX_TRIES):
        y, x, side = square = propose()
        inside = min(y, x) >= 0 and max(y, x) + side <= room
        if inside and not any(
            y < top + other and top < y + side and x < left + other and left < x + side
            for top, left, other in placed
        ):
            return square
    raise OptionError(f"a canvas of {room} pixels has no room for one more digit: a larger side")


def write_dataset(
    folder: Path,
    mnist: Mnist,
    draw: Draw,
    *,
    n_train: int,
    n_test: int,
    seed: int,
    recipe: Mapping[str, Any],
) -> Path:
    """Write the canvases of both splits, their truth and the table, or reuse finished ones.

    The generator of the train split is seeded with ``seed + 1``, that of the test split with
    `seed`.

    Args:
        folder: made if need be; a folder that was left half-written is written again.
        mnist: train canvases take digits from its train pool only, test canvases from the other.
        draw: the recipe.
        n_train: canvases of the train split.
        n_test: canvases of the test split.
        seed: of everything.
        recipe: its name and options, noted in ``recipe.json``.

    Returns:
        ``labels.csv`` with columns ``path,split``, ``places`` where there are any, and the labels.

    Raises:
        OptionError: the folder holds something else, or was written with other settings.
    """
    if min(n_train, n_test) < 0 or not n_train + n_test:
        raise OptionError(f"n_train, n_test: got {n_train}, {n_test}, expected canvases to write")
    if seed < 0:
        raise OptionError(f"seed: got {seed}, expected 0 or more")
    numbers = {"n_train": n_train, "n_test": n_test, "seed": seed}
    settings = {"version": _VERSION, **recipe, **numbers, "mnist": mnist.digest}
    table = folder / "labels.csv"
    if _is_complete(folder, table, settings):
        return table
    remove_partial_files(folder)
    write_json(folder / "recipe.json", settings)
    rows: list[dict[str, str]] = []
    sources, boxes = [], []
    splits: tuple[tuple[Split, int, int], ...] = (("train", n_train, 1), ("test", n_test, 0))
    for split, n, more in splits:
        examples = draw(mnist.pool(split), n, np.random.default_rng(seed + more)) if n else ()
        for i, example in enumerate(examples):
            rows.append(_write_example(folder, split, i, example))
            sources.append(example.sources)
            corner = example.canvas.origins[example.digits]
            boxes.append(np.concatenate([corner, example.canvas.ends[example.digits] - corner], 1))
    truth = {
        "counts": np.asarray([len(part) for part in sources], np.int64),
        "sources": np.concatenate(sources).astype(np.int64),
        "boxes_px0": np.concatenate(boxes).astype(np.int64),
    }
    write_aside(folder / "digits.npz", lambda aside: _save(aside, truth))
    write_text(table, csv_text(rows, list(rows[0])))
    return table


def _write_example(folder: Path, split: Split, i: int, example: Example) -> dict[str, str]:
    """Write one canvas and its places, and return its row of the table."""
    row = {"path": f"{split}/{i:05d}.sparse", "split": split}
    write_canvas(folder / row["path"], example.canvas)
    places = example.places_px0
    if places is not None:
        row["places"] = f"places/{split}_{i:05d}.npy"
        write_aside(folder / row["places"], lambda aside: _save(aside, places))
    return {**row, **example.labels}


def _is_complete(folder: Path, table: Path, settings: Mapping[str, Any]) -> bool:
    """Tell whether all files of the table exist and were made with these settings."""
    known = folder / "recipe.json"
    if not known.is_file():
        if folder.is_dir() and any(not p.name.endswith(".part") for p in folder.iterdir()):
            raise OptionError(f"{folder} holds files that are no benchmark: name another folder")
        return False
    try:
        stored = json.loads(known.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OptionError(f"{known} is damaged ({error}): delete {folder}") from error
    expected = json.loads(json.dumps(settings))
    if not isinstance(stored, dict):
        stored = {}
    differs = sorted(k for k in {*stored, *expected} if stored.get(k) != expected.get(k))
    if differs:
        differences = ", ".join(f"{k} {stored.get(k)} (wanted: {expected.get(k)})" for k in differs)
        raise OptionError(
            f"{folder} was written with {differences}: name another folder or delete it"
        )
    if not table.is_file() or not (folder / "digits.npz").is_file():
        return False
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    files = [row[k] for row in rows for k in ("path", "places") if k in row]
    return len(rows) == expected["n_train"] + expected["n_test"] and all(
        (folder / name).is_file() for name in files
    )


def _save(path: Path, arrays: NDArray[Any] | Mapping[str, NDArray[Any]]) -> None:
    # Through an open file, as numpy would add its own suffix to the name.
    """Write arrays to an ``.npz`` file."""
    with path.open("wb") as file:
        if isinstance(arrays, Mapping):
            np.savez(file, allow_pickle=False, **arrays)
        else:
            np.save(file, arrays)


# -- a recipe as a benchmark ----------------------------------------------------------------------


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        summary: one line.
        n_train, n_test: canvases by default.
        recipe: options of the recipe with their defaults; ``side`` among them.
        write: the recipe.
        task: builds the question from the recipe's options.
        view: builds the geometry of reading likewise.
        settings: by method sections ``train``, ``method`` and ``view``, likewise; ``""`` for all.
    """

    summary: str
    n_train: int
    n_test: int
    recipe: Mapping[str, Any]
    write: Callable[..., Path]
    task: Callable[[Mapping[str, Any]], AbstractTask]
    view: Callable[[Mapping[str, Any]], View]
    settings: Callable[[Mapping[str, Any]], Mapping[str, Settings]]

    def defaults(self, method: str, recipe: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the default options of a method on canvases of this recipe."""
        sections: dict[str, dict[str, Any]] = {"train": {}, "method": {}, "view": {}}
        settings = self.settings(recipe)
        for name in ("", method):
            for section, values in settings.get(name, {}).items():
                sections[section] |= values
        return sections


def prepare(
    benchmark: Benchmark,
    folder: Path,
    mnist: Mnist,
    *,
    n_train: int,
    n_test: int,
    seed: int,
    recipe: Mapping[str, Any],
) -> dict[str, list[PlacedCase]]:
    """Write or reuse the canvases; returns the cases of ``train``, ``val`` and ``test``.

    The validation part is 8 % of the training canvases: no further labels are used.
    """
    table = benchmark.write(folder, mnist, n_train=n_train, n_test=n_test, seed=seed, **recipe)
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    cases = {
        part: _cases(folder, [r for r in rows if r["split"] == part]) for part in get_args(Split)
    }
    n_val = max(1, round(_VAL_SHARE * n_train))
    train = cases["train"]
    return {"train": train[:-n_val], "val": train[-n_val:], "test": cases["test"]}


def _cases(folder: Path, rows: Sequence[Mapping[str, str]]) -> list[PlacedCase]:
    """Build cases from rows of the table."""
    cases = []
    for row in rows:
        labels = {k: v for k, v in row.items() if k not in _NOT_LABELS}
        label = next(iter(labels.values()))
        if len(labels) > 1:
            label = ";".join(f"{k}={v}" for k, v in labels.items())
        places = folder / row["places"] if row.get("places") else None
        name = row["path"].replace("/", "_")
        cases.append(PlacedCase(name, name, folder / row["path"], label, places=places))
    return cases


def digit_task(name: str, pooling: Pooling, n: int = 10) -> DigitTask:
    """Build a task with one of n digits or sums as the label."""
    classes = [str(i) for i in range(n)]
    return DigitTask(classes=classes, head=Head(name, n, True, pooling))
