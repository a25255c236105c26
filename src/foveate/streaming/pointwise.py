"""Operations on single cells, and operations that move, blend or pad cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor
from torch.nn import functional

from foveate.streaming.base import AbstractOp, Call, Ints, Region


class Pointwise(AbstractOp):
    """An operation whose output cell depends on the same cell of the inputs alone.

    Args:
        mutates: whether it overwrites its first argument.
        fresh: whether its result is new memory.
        work: floating-point operations per output element.
        saved_bytes: bytes that autograd saves per output element, beside the output.
    """

    def __init__(
        self,
        *,
        mutates: bool = False,
        fresh: bool = False,
        work: float = 4.0,
        saved_bytes: float = 0.0,
    ) -> None:
        self.mutates, self.fresh = mutates, fresh or mutates
        self.shares = not fresh or mutates
        self.work, self.saved_bytes = work, saved_bytes

    def needs(self, axis: int, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """Return the spans of the output cells themselves.

        Args:
            axis: spatial axis.
            low: first output cells of n spans, ``(n,)``.
            high: their ends, ``(n,)``.
        """
        return low, high

    def run(self, call: Call) -> Any:
        """Call the layer, on a copy if it overwrites a map that is used elsewhere."""
        if self.mutates and not call.reuse:
            first, *others = call.args
            return call.apply(first.clone(), *others, **call.kwargs)
        return call.apply(*call.args, **call.kwargs)


class Gather(AbstractOp):
    """A copy of one input cell to each output cell: repeated, mirrored or every other cell.

    Args:
        index: per axis, the input cell of every output cell.
        shares: whether the result is a view of the input in the plain stack.
        regular: whether moving the input by whole cells moves the output by whole cells.
    """

    fresh = False

    def __init__(
        self, index: Sequence[Ints], *, shares: bool = False, regular: bool = False
    ) -> None:
        self.index = [np.asarray(cells, np.int64) for cells in index]
        self.shares, self.regular = shares, regular

    def needs(self, axis: int, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """Return the spans from the lowest to the highest input cell.

        Args:
            axis: spatial axis.
            low: first output cells of n spans, ``(n,)``.
            high: their ends, ``(n,)``.
        """
        return _hull(self.index[axis], low, high)

    def run(self, call: Call) -> Shaped[Tensor, "1 c *size"]:
        """Take the input cells, axis by axis."""
        x: Tensor = call.args[0]
        for axis, index in enumerate(self.index):
            low, high = call.output_region[axis]
            x = _take(x, call.dims[axis], index[low:high] - call.input_region[axis][0])
        return x


class Blend(AbstractOp):
    """Linear interpolation between two neighbouring cells, axis after axis.

    Args:
        place: per axis, the coordinate of each of n output cells in input cells, ``(n,)``.
        extent_cell: cells of the input, per axis.
    """

    work = 12.0
    regular = False

    def __init__(
        self, place: Sequence[np.ndarray[Any, np.dtype[np.float64]]], extent_cell: Sequence[int]
    ):
        self.below = [
            np.clip(np.floor(p).astype(np.int64), 0, n - 1)
            for p, n in zip(place, extent_cell, strict=True)
        ]
        self.above = [
            np.minimum(b + 1, n - 1) for b, n in zip(self.below, extent_cell, strict=True)
        ]
        self.share = [p - b for p, b in zip(place, self.below, strict=True)]

    def needs(self, axis: int, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """Return the spans from the lowest cell to the highest neighbour.

        Args:
            axis: spatial axis.
            low: first output cells of n spans, ``(n,)``.
            high: their ends, ``(n,)``.
        """
        return _hull(self.below[axis], low, high)[0], _hull(self.above[axis], low, high)[1]

    def run(self, call: Call) -> Shaped[Tensor, "1 c *size"]:
        """Interpolate the output cells, axis by axis."""
        x: Tensor = call.args[0]
        for axis, dim in enumerate(call.dims):
            cells, begin = slice(*call.output_region[axis]), call.input_region[axis][0]
            share = torch.from_numpy(self.share[axis][cells]).to(x)
            share = share.view(-1, *(1,) * (x.ndim - 1 - dim))
            below = _take(x, dim, self.below[axis][cells] - begin)
            above = _take(x, dim, self.above[axis][cells] - begin)
            x = below * (1 - share) + above * share
        return x


class PixelShuffle(AbstractOp):
    """A rearrangement of the channels of each cell to ``factor x factor`` finer cells.

    Args:
        factor: finer cells along a side of a cell.
    """

    regular = False

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def needs(self, axis: int, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """Return the spans of the coarse cells that contain the fine ones.

        Args:
            axis: spatial axis.
            low: first output cells of n spans, ``(n,)``.
            high: their ends, ``(n,)``.
        """
        return low // self.factor, -(-high // self.factor)

    def run(self, call: Call) -> Shaped[Tensor, "1 c *size"]:
        """Rearrange all coarse cells, and crop to the output cells."""
        fine = functional.pixel_shuffle(call.args[0], self.factor)
        covered = tuple((low * self.factor, high * self.factor) for low, high in call.input_region)
        return crop_and_pad(fine, call.dims, covered, call.output_region, 0.0)


class PixelUnshuffle(AbstractOp):
    """A rearrangement of blocks of ``factor x factor`` cells to the channels of one cell.

    Args:
        factor: cells along a side of a block.
    """

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def needs(self, axis: int, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """Return the spans of all cells of the blocks.

        Args:
            axis: spatial axis.
            low: first output cells of n spans, ``(n,)``.
            high: their ends, ``(n,)``.
        """
        return low * self.factor, high * self.factor

    def run(self, call: Call) -> Shaped[Tensor, "1 c *size"]:
        """Rearrange the cells of the blocks."""
        return functional.pixel_unshuffle(call.args[0], self.factor)


class ConstantPad(AbstractOp):
    """Padding with one value.

    Args:
        left: cells of padding before the first cell, per axis; a negative number crops.
        extent_cell: cells of the input, per axis.
        value: value of the padding.
    """

    def __init__(self, left: Sequence[int], extent_cell: Sequence[int], value: float) -> None:
        self.left, self.extent_cell, self.value = tuple(left), tuple(extent_cell), value

    def needs(self, axis: int, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """Return the spans of the cells that are not padding, with at least one cell.

        Args:
            axis: spatial axis.
            low: first output cells of n spans, ``(n,)``.
            high: their ends, ``(n,)``.
        """
        first = np.clip(low - self.left[axis], 0, self.extent_cell[axis] - 1)
        return first, np.clip(high - self.left[axis], first + 1, self.extent_cell[axis])

    def run(self, call: Call) -> Shaped[Tensor, "1 c *size"]:
        """Pad the input cells where the output cells are padding."""
        covered = tuple(
            (a + n, b + n) for (a, b), n in zip(call.input_region, self.left, strict=True)
        )
        x: Tensor = call.args[0]
        padded = crop_and_pad(x, call.dims, covered, call.output_region, self.value)
        return padded.clone() if padded is x else padded


class Chain(AbstractOp):
    """Two operations, one after the other, such as mirrored padding and a convolution.

    Args:
        first: operation on the input.
        second: operation on the result of the first, with the other arguments.
    """

    def __init__(self, first: AbstractOp, second: AbstractOp) -> None:
        self.first, self.second = first, second
        self.work, self.saved_bytes = second.work, second.saved_bytes

    def needs(self, axis: int, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """Return the spans that the first operation needs for those that the second needs.

        Args:
            axis: spatial axis.
            low: first output cells of n spans, ``(n,)``.
            high: their ends, ``(n,)``.
        """
        return self.first.needs(axis, *self.second.needs(axis, low, high))

    def run(self, call: Call) -> Any:
        """Run the first operation, then the second on its result."""
        between = self.second.input_region(call.output_region)
        x, *others = call.args
        first = replace(call, args=(x,), kwargs={}, output_region=between, reuse=False)
        args = (self.first.run(first), *others)
        return self.second.run(replace(call, args=args, input_region=between, reuse=False))


def crop_and_pad(
    x: Shaped[Tensor, " ..."], dims: Sequence[int], covered: Region, region: Region, value: float
) -> Shaped[Tensor, " ..."]:
    """Crop and pad a part of a map to another region.

    The region may lie completely outside the part, as windows may lie beyond a border: then the
    result is padding alone.

    Args:
        x: part of a map, ``(1, c, *size)`` or with other `dims`.
        dims: spatial dimensions of the part.
        covered: region that the part covers.
        region: region of the result.
        value: value of the padding.

    Returns:
        The map in `region`; elsewhere than in `covered` it is `value`.
    """
    pads = [0] * (2 * x.ndim)
    for dim, (begin, end), (low, high) in zip(dims, covered, region, strict=True):
        first = min(max(low, begin), end)
        last = max(min(high, end), first)
        if (first, last) != (begin, end):
            x = x.narrow(dim, first - begin, last - first)
        before = min(first - low, high - low) if last > first else high - low
        at = 2 * (x.ndim - 1 - dim)
        pads[at], pads[at + 1] = before, high - low - before - (last - first)
    return functional.pad(x, pads, value=value) if any(pads) else x


def border_index(n: int, left: int, right: int, mode: str) -> Ints:
    """Compute the input cell of each cell of a padded map along one axis.

    Args:
        n: cells of the input.
        left: cells of padding before the first.
        right: cells of padding after the last.
        mode: ``replicate`` or ``reflect``.

    Returns:
        The cells ``(left + n + right,)``.
    """
    cells = np.arange(-left, n + right)
    if mode == "replicate":
        return np.clip(cells, 0, n - 1)
    period = max(2 * (n - 1), 1)
    cells = np.abs(cells) % period
    return np.minimum(cells, period - cells)


def _hull(index: Int64[np.ndarray, " cells"], low: Ints, high: Ints) -> tuple[Ints, Ints]:
    """Return the spans ``(n,)`` of the input cells ``index[low:high]`` of n spans ``(n,)``."""
    parts = [index[a:b] for a, b in zip(low, high, strict=True)]
    return (
        np.asarray([part.min() for part in parts], np.int64),
        np.asarray([part.max() + 1 for part in parts], np.int64),
    )


def _take(x: Shaped[Tensor, " ..."], dim: int, index: Ints) -> Shaped[Tensor, " ..."]:
    """Take cells ``index (n,)`` along a dimension: a view if they are neighbours, else a copy."""
    if (np.diff(index) == 1).all():
        return x.narrow(dim, int(index[0]), len(index))
    return x.index_select(dim, torch.from_numpy(index).to(x.device))
