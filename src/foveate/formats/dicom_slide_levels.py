"""Index the levels of a DICOM slide.

Part of the reader `dicom_slide`. The levels of a slide lie in files of their own, and a level may
be cut into several files (a concatenation).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveate.errors import AGAIN, UnreadableImage, UnsupportedFormat
from foveate.formats.dicom_slide_file import SlideFile, read_facts
from foveate.formats.dicom_slide_folder import find_volumes
from foveate.formats.dicom_slide_frames import locate_frames, make_stack_error
from foveate.formats.stored_bytes import first_bytes
from foveate.formats.tiff_grid import BlockGrid, bound_blocks, count_blocks
from foveate.geometry import Vector
from foveate.images.stated import could_be_shrunk


@dataclass(frozen=True)
class SlideIndex:
    """The pyramid of one slide.

    Attributes:
        levels: the blocks of each level, finest first; offsets count from `paths` on as
            `StoredBytes` lays them.
        paths: the files of the levels.
        spacing_um: micrometres per pixel of level 0, ``(y, x)``; None where not known.
    """

    levels: tuple[BlockGrid, ...]
    paths: tuple[Path, ...]
    spacing_um: Vector | None


def read_slide(path: Path) -> SlideIndex:
    """Index the slide in a folder, or the one that a file belongs to.

    Args:
        path: the folder, or any file of a level; the other files lie beside it.

    Raises:
        UnreadableImage: a file is damaged, or a part of a level or the full resolution is missing.
        UnsupportedFormat: the file shows a label or overview, or the slide is a stack, or its
            coding is not read.
        ImageTooLarge: the number of blocks, or a block, is beyond the limits.
    """
    files = [read_facts(member.path) for member in find_volumes(path)]
    if all(file.resampled for file in files):
        raise UnreadableImage(
            f"{path}: only smaller versions of the slide are here, its full resolution is missing; "
            "copy all files of the slide into one folder"
        )
    paths = tuple(file.path for file in files)
    begins = dict(zip(paths, first_bytes([p.stat().st_size for p in paths]), strict=True))
    groups = itertools.groupby(
        sorted(files, key=lambda f: (f.concatenation, f.part)), key=lambda f: f.concatenation
    )
    parts = sorted(
        ([*group] for _, group in groups), key=lambda p: math.prod(p[0].shape), reverse=True
    )
    full = parts[0][0]
    for one, other in itertools.pairwise(parts):
        _check_pair(path, full, one[0], other[0])
    levels = tuple(_build_grid(part, begins) for part in parts)
    return SlideIndex(levels, paths, full.spacing_um)


def _check_pair(path: Path, full: SlideFile, finer: SlideFile, level: SlideFile) -> None:
    """Check that a level may be a smaller version of the slide, and is not there twice."""
    if level.shape == finer.shape:
        raise make_stack_error(path, 2, "pictures of one size, in separate files")
    same = level.coding.samples == full.coding.samples and level.coding.dtype == full.coding.dtype
    if not same or not could_be_shrunk(full.shape, level.shape):
        raise UnsupportedFormat(
            f"{path}: its levels of {full.shape} and {level.shape} pixels differ in proportions or "
            "in the kind of their samples, as if of two slides; give each slide a folder of its own"
        )


def _build_grid(parts: Sequence[SlideFile], begins: dict[Path, int]) -> BlockGrid:
    """Build the grid of blocks of a level from the files that it consists of.

    Args:
        parts: the files, in order.
        begins: the byte of `StoredBytes` at which each file begins.
    """
    first = parts[0]
    _check_parts(parts)
    grid = count_blocks(first.path, first.shape, first.block)
    offsets, counts = np.zeros(math.prod(grid), np.int64), np.zeros(math.prod(grid), np.int64)
    n_frames = sum(part.n_frames for part in parts)
    for part in parts:
        frames = locate_frames(part)
        if frames.corner_px is None:
            index = _count_up(part, n_frames, len(offsets))
        else:
            index = _index_corners(part, frames.corner_px, grid)
        if offsets[index].any() or len(np.unique(index)) < len(index):
            raise make_stack_error(part.path, 2, "pictures in one place")
        offsets[index], counts[index] = frames.offsets + begins[part.path], frames.counts
    planes = _split_planes(first, offsets, counts)
    level = BlockGrid(first.shape, first.block, grid, *planes, tiled=True, coding=first.coding)
    return bound_blocks(first.path, level, sum(part.path.stat().st_size for part in parts))


def _check_parts(parts: Sequence[SlideFile]) -> None:
    """Check that the files of a level agree, and that none is missing."""
    first = parts[0]
    if first.planes > 1:
        raise make_stack_error(first.path, first.planes, "focal planes or channels")
    numbers = [part.part for part in parts]
    n = max([part.n_parts for part in parts] + numbers)
    if len(numbers) != n or numbers != list(range(1, n + 1)):
        raise UnreadableImage(
            f"{first.path}: of a level in {n} parts, {len(parts)} are here; copy all files of the "
            "slide into one folder"
        )
    if any((p.shape, p.block, p.coding) != (first.shape, first.block, first.coding) for p in parts):
        raise UnreadableImage(f"{first.path}: the parts of a level contradict each other{AGAIN}")


def _count_up(part: SlideFile, n_frames: int, n_blocks: int) -> NDArray[np.int64]:
    """Return the index of the block of each frame where frames are stored row by row, ``(n,)``.

    Args:
        part: the file.
        n_frames: number of frames of all parts of the level.
        n_blocks: number of blocks of the level.
    """
    if n_frames > n_blocks and n_frames % n_blocks == 0:
        raise make_stack_error(part.path, n_frames // n_blocks, "focal planes or channels")
    end = part.first_frame + part.n_frames
    if n_frames != n_blocks or part.first_frame < 0 or end > n_blocks:
        raise UnreadableImage(
            f"{part.path}: {part.shape} pixels need {n_blocks:,} frames, there are {n_frames:,}"
            f"{AGAIN}"
        )
    return np.arange(part.first_frame, end, dtype=np.int64)


def _index_corners(
    part: SlideFile, corner_px: NDArray[np.int64], grid: tuple[int, int]
) -> NDArray[np.int64]:
    """Return the index of the block of each frame by its first row and column, ``(n,)``.

    Args:
        part: the file.
        corner_px: first row and column of each frame, ``(n, 2)``.
        grid: number of blocks, ``(y, x)``.
    """
    cell, rest = np.divmod(corner_px, part.block)
    if rest.any():
        raise UnsupportedFormat(
            f"{part.path}: its frames overlap or lie on no grid; export it as one tiled image"
        )
    if (corner_px < 0).any() or (cell >= grid).any():
        raise UnreadableImage(f"{part.path}: a frame lies outside of the slide{AGAIN}")
    return np.asarray(cell[:, 0] * grid[1] + cell[:, 1])


def _split_planes(
    part: SlideFile, offsets: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the places of the planes of each frame, plane after plane, where samples have some."""
    coding = part.coding
    if not coding.planar:
        return offsets, counts
    plane_bytes = part.block[0] * part.block[1] * coding.dtype.itemsize
    places = [np.where(counts > 0, offsets + i * plane_bytes, 0) for i in range(coding.samples)]
    sizes = np.where(counts > 0, plane_bytes, 0)
    return np.concatenate(places), np.tile(sizes, coding.samples)
