"""What looks at one cell at a time, and what only moves cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from foveate.streaming.base import AbstractOp, Call, Ints, Region


class Pointwise(AbstractOp):
    """Every output cell from the same cell of the inputs, whatever happens to the channels.

    Args:
        mutates: it overwrites its first argument.
        fresh: its result is new memory.
        work: floating-point operations per element of its output.
        held: bytes that autograd holds per element, beside its output.
    """

    def __init__(
        self,
        *,
        mutates: bool = False,
        fresh: bool = False,
        work: float = 4.0,
        held: float = 0.0,
    ) -> None:
        self.mutates, self.fresh = mutates, fresh or mutates
        self.shares = not fresh or mutates
        self.work, self.held = work, held

    def needs(self, axis: int, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """The same cells."""
        return low, high

    def run(self, call: Call) -> Any:
        """The layer itself; what may not be overwritten is copied before."""
        if self.mutates and not call.reuse:
            first, *others = call.args
            return call.apply(first.clone(), *others, **call.kwargs)
        return call.apply(*call.args, **call.kwargs)


class Gather(AbstractOp):
    """Each output cell is one input cell, per axis: repeats, mirrored borders, every other cell.

    Args:
        index: per axis, the input cell of every output cell.
        shares, regular: see `AbstractOp`.
    """

    fresh = False

    def __init__(
        self, index: Sequence[Ints], *, shares: bool = False, regular: bool = False
    ) -> None:
        self.index = [np.asarray(each, np.int64) for each in index]
        self.shares, self.regular = shares, regular

    def needs(self, axis: int, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """From the lowest to the highest of the cells."""
        return _hull(self.index[axis], low, high)

    def run(self, call: Call) -> Tensor:
        """Cut where cells are neighbours, else picked."""
        x: Tensor = call.args[0]
        for axis, index in enumerate(self.index):
            low, high = call.wanted[axis]
            x = _picked(x, call.dims[axis], index[low:high] - call.given[axis][0])
        return x


class Blend(AbstractOp):
    """Linear interpolation: each output cell between two neighbours, axis after axis.

    Args:
        place: per axis, where every output cell lies among the input cells.
        extent: cells of the input, per axis.
    """

    work = 12.0
    regular = False

    def __init__(
        self, place: Sequence[np.ndarray[Any, np.dtype[np.float64]]], extent: Sequence[int]
    ):
        self.below = [
            np.clip(np.floor(p).astype(np.int64), 0, n - 1)
            for p, n in zip(place, extent, strict=True)
        ]
        self.above = [np.minimum(b + 1, n - 1) for b, n in zip(self.below, extent, strict=True)]
        self.share = [p - b for p, b in zip(place, self.below, strict=True)]

    def needs(self, axis: int, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """From the first cell to the last neighbour."""
        return _hull(self.below[axis], low, high)[0], _hull(self.above[axis], low, high)[1]

    def run(self, call: Call) -> Tensor:
        """Of the wanted cells."""
        x: Tensor = call.args[0]
        for axis, dim in enumerate(call.dims):
            cut, begin = slice(*call.wanted[axis]), call.given[axis][0]
            share = torch.from_numpy(self.share[axis][cut]).to(x)
            share = share.view(-1, *(1,) * (x.ndim - 1 - dim))
            below = _picked(x, dim, self.below[axis][cut] - begin)
            above = _picked(x, dim, self.above[axis][cut] - begin)
            x = below * (1 - share) + above * share
        return x


class PixelShuffle(AbstractOp):
    """Each cell becomes ``factor x factor`` finer ones, made of its channels.

    Args:
        factor: finer cells a side.
    """

    regular = False

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def needs(self, axis: int, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """The coarse cells that the fine ones lie in."""
        return low // self.factor, -(-high // self.factor)

    def run(self, call: Call) -> Tensor:
        """All fine cells of the coarse ones, cut to those wanted."""
        found = functional.pixel_shuffle(call.args[0], self.factor)
        held = tuple((low * self.factor, high * self.factor) for low, high in call.given)
        return framed(found, call.dims, held, call.wanted, 0.0)


class PixelUnshuffle(AbstractOp):
    """The ``factor x factor`` cells of a block become the channels of one.

    Args:
        factor: cells a side of a block.
    """

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def needs(self, axis: int, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """All cells of the blocks."""
        return low * self.factor, high * self.factor

    def run(self, call: Call) -> Tensor:
        """Of the blocks asked for."""
        return functional.pixel_unshuffle(call.args[0], self.factor)


class ConstantPad(AbstractOp):
    """A border of one value.

    Args:
        left: cells before the first, per axis; negative cuts.
        extent: cells of the input, per axis.
        value: of the border.
    """

    def __init__(self, left: Sequence[int], extent: Sequence[int], value: float) -> None:
        self.left, self.extent, self.value = tuple(left), tuple(extent), value

    def needs(self, axis: int, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """The cells that are not border; at least one."""
        first = np.clip(low - self.left[axis], 0, self.extent[axis] - 1)
        return first, np.clip(high - self.left[axis], first + 1, self.extent[axis])

    def run(self, call: Call) -> Tensor:
        """The piece with the part of the border that is wanted."""
        held = tuple((a + n, b + n) for (a, b), n in zip(call.given, self.left, strict=True))
        x: Tensor = call.args[0]
        found = framed(x, call.dims, held, call.wanted, self.value)
        return found.clone() if found is x else found


class Chain(AbstractOp):
    """Two operations, one after the other: a convolution that mirrors its borders."""

    def __init__(self, first: AbstractOp, second: AbstractOp) -> None:
        self.first, self.second = first, second
        self.work, self.held = second.work, second.held

    def needs(self, axis: int, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """Of the first for what the second needs."""
        return self.first.needs(axis, *self.second.needs(axis, low, high))

    def run(self, call: Call) -> Any:
        """Of both."""
        between = []
        for axis, (low, high) in enumerate(call.wanted):
            a, b = self.second.needs(axis, np.asarray([low]), np.asarray([high]))
            between.append((int(a[0]), int(b[0])))
        x, *others = call.args
        inner = Call(call.apply, (x,), {}, call.dims, call.given, tuple(between), False)
        x = self.first.run(inner)
        return self.second.run(
            Call(
                call.apply, (x, *others), call.kwargs, call.dims, tuple(between), call.wanted, False
            )
        )


def framed(x: Tensor, dims: Sequence[int], held: Region, wanted: Region, value: float) -> Tensor:
    """A piece that holds the cells `held`, cut and padded to those `wanted`.

    Windows may lie wholly beyond a border: then nothing of the piece is left.
    """
    pads = [0] * (2 * x.ndim)
    for dim, (begin, end), (low, high) in zip(dims, held, wanted, strict=True):
        first = min(max(low, begin), end)
        last = max(min(high, end), first)
        if (first, last) != (begin, end):
            x = x.narrow(dim, first - begin, last - first)
        before = min(first - low, high - low) if last > first else high - low
        at = 2 * (x.ndim - 1 - dim)
        pads[at], pads[at + 1] = before, high - low - before - (last - first)
    return functional.pad(x, pads, value=value) if any(pads) else x


def border_index(n: int, left: int, right: int, mode: str) -> Ints:
    """The cell of a map of n cells that stands at each cell of the padded map."""
    cells = np.arange(-left, n + right)
    if mode == "replicate":
        return np.clip(cells, 0, n - 1)
    period = max(2 * (n - 1), 1)
    cells = np.abs(cells) % period
    return np.minimum(cells, period - cells)


def _hull(index: Ints, low: Ints, high: Ints) -> tuple[Ints, Ints]:
    parts = [index[a:b] for a, b in zip(low, high, strict=True)]
    return (
        np.asarray([part.min() for part in parts], np.int64),
        np.asarray([part.max() + 1 for part in parts], np.int64),
    )


def _picked(x: Tensor, dim: int, index: Ints) -> Tensor:
    if (np.diff(index) == 1).all():
        return x.narrow(dim, int(index[0]), len(index))
    return x.index_select(dim, torch.from_numpy(index).to(x.device))
