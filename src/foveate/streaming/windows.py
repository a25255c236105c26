"""Convolution and pooling on a part of a map: explicit padding at true borders, none elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from foveate.streaming.base import AbstractOp, Call, Ints
from foveate.streaming.pointwise import framed

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
_MAX_POOLS = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_MEAN_POOLS = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


@dataclass(frozen=True)
class Window:
    """A sliding window along one axis: output cell ``i`` begins at ``i * stride - left``.

    Attributes:
        kernel, stride, dilation: in cells.
        left: cells of padding before the first.
        right: cells of padding after the last, where they count (`MeanPool`).
        n: cells of the map.
    """

    kernel: int
    stride: int
    dilation: int
    left: int
    right: int
    n: int

    def reach(self, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """Cells under the windows ``low <= i < high``; they may lie outside the map."""
        first = low * self.stride - self.left
        span = self.dilation * (self.kernel - 1) + 1
        return first, (high - 1) * self.stride - self.left + span


class AbstractWindowed(AbstractOp):
    """What slides windows over a map."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self.windows = tuple(windows)

    def needs(self, axis: int, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """The cells under the windows that lie inside the map; at least one."""
        window = self.windows[axis]
        first, last = window.reach(low, high)
        first = np.clip(first, 0, window.n - 1)
        return first, np.clip(last, first + 1, window.n)

    def padded(self, x: Tensor, call: Call, value: float) -> Tensor:
        """The piece with what windows see beyond the borders of the map."""
        seen = []
        for window, (low, high) in zip(self.windows, call.wanted, strict=True):
            first, last = window.reach(np.asarray(low), np.asarray(high))
            seen.append((int(first), int(last)))
        return framed(x, call.dims, call.given, tuple(seen), value)

    def _sides(self, name: str) -> tuple[int, ...]:
        return tuple(getattr(w, name) for w in self.windows)


class Convolution(AbstractWindowed):
    """Convolution with any stride, dilation, groups and padding with zeros."""

    def __init__(self, windows: Sequence[Window], *, groups: int, work: float) -> None:
        super().__init__(windows)
        self.groups, self.work = groups, work

    def run(self, call: Call) -> Tensor:
        """Without padding of its own."""
        x, weight, bias = call.args
        run = _CONVOLUTIONS[len(self.windows)]
        steps = self._sides("stride"), 0, self._sides("dilation")
        found: Tensor = run(self.padded(x, call, 0.0), weight, bias, *steps, self.groups)
        return found


class MaxPool(AbstractWindowed):
    """Maximum, with or without ceil mode: what lies outside never wins."""

    held = 8.0

    def run(self, call: Call) -> Tensor:
        """Of the windows asked for."""
        x = call.args[0]
        run = _MAX_POOLS[len(self.windows)]
        x = self.padded(x, call, -math.inf)
        found: Tensor = run(
            x, self._sides("kernel"), self._sides("stride"), 0, self._sides("dilation")
        )
        return found


class MeanPool(AbstractWindowed):
    """Mean; at borders it divides by what the layer counts.

    Args:
        windows: per axis.
        count_pad: whether padding counts; what ceil mode adds beyond it never does.
        divisor: a fixed one instead.
    """

    def __init__(
        self, windows: Sequence[Window], *, count_pad: bool, divisor: int | None = None
    ) -> None:
        super().__init__(windows)
        self.count_pad, self.divisor = count_pad, divisor

    def run(self, call: Call) -> Tensor:
        """Sum of each window over its count."""
        x = self.padded(call.args[0], call, 0.0)
        kernel = self._sides("kernel")
        mean: Tensor = _MEAN_POOLS[len(self.windows)](x, kernel, self._sides("stride"))
        if self.divisor is not None:
            return mean * (math.prod(kernel) / self.divisor)
        for axis, window in enumerate(self.windows):
            count = self._count(axis, call.wanted[axis])
            if (count == window.kernel).all():
                continue
            ratio = torch.from_numpy(window.kernel / count).to(mean)
            mean = mean * ratio.view(-1, *(1,) * (len(self.windows) - 1 - axis))
        return mean

    def _count(self, axis: int, span: tuple[int, int]) -> Ints:
        window = self.windows[axis]
        low = np.arange(*span) * window.stride - window.left
        high = np.minimum(low + window.kernel, window.n + window.right)
        if not self.count_pad:
            low, high = np.maximum(low, 0), np.minimum(high, window.n)
        count: Ints = high - low
        return count


@dataclass(frozen=True)
class Spread:
    """A transposed window along an axis: input ``i`` reaches outputs from ``i * stride - left``."""

    kernel: int
    stride: int
    dilation: int
    left: int
    n: int


class TransposedConvolution(AbstractOp):
    """Transposed convolution with any stride, padding, dilation and groups."""

    regular = False

    def __init__(self, spreads: Sequence[Spread], *, groups: int, work: float) -> None:
        self.spreads = tuple(spreads)
        self.groups, self.work = groups, work

    def needs(self, axis: int, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """The inputs that reach any of these outputs; at least one, which may add nothing."""
        s = self.spreads[axis]
        span = s.dilation * (s.kernel - 1)
        first = np.clip(-((-(low + s.left - span)) // s.stride), 0, s.n - 1)
        return first, np.clip((high - 1 + s.left) // s.stride + 1, first + 1, s.n)

    def run(self, call: Call) -> Tensor:
        """Everything the pieces reach, cut to what is wanted; 0 where nothing reaches."""
        x, weight, bias = call.args
        sides: dict[str, Any] = {
            name: tuple(getattr(s, name) for s in self.spreads) for name in ("stride", "dilation")
        }
        run = _TRANSPOSED[len(self.spreads)]
        full: Tensor = run(x, weight, None, sides["stride"], 0, 0, self.groups, sides["dilation"])
        held = []
        for (low, _), s, size in zip(call.given, self.spreads, full.shape[2:], strict=True):
            begin = low * s.stride - s.left
            held.append((begin, begin + size))
        full = framed(full, call.dims, tuple(held), call.wanted, 0.0)
        return full if bias is None else full + bias.view(-1, *(1,) * len(self.spreads))


def windows(
    kernel: Any, stride: Any, padding: Any, dilation: Any, extent: Sequence[int]
) -> list[Window]:
    """Windows of a layer's options over a map of this extent.

    Args:
        kernel, stride, dilation: a number, or one per axis.
        padding: likewise, or ``same`` or ``valid``.
        extent: cells of the map per axis.
    """
    d = len(extent)
    sides, steps, spread = each(kernel, d), each(stride, d), each(dilation, d)
    found = []
    for axis in range(d):
        reach = spread[axis] * (sides[axis] - 1)
        if padding == "same":
            left, right = reach // 2, reach - reach // 2
        elif padding == "valid":
            left = right = 0
        else:
            left = right = each(padding, d)[axis]
        found.append(Window(sides[axis], steps[axis], spread[axis], left, right, extent[axis]))
    return found


def same_windows(kernel: Any, stride: Any, dilation: Any, extent: Sequence[int]) -> list[Window]:
    """Windows padded as TensorFlow does: so that there are ``ceil(n / stride)`` of them."""
    d = len(extent)
    found = []
    for k, s, dil, n in zip(
        each(kernel, d), each(stride, d), each(dilation, d), extent, strict=True
    ):
        total = max((math.ceil(n / s) - 1) * s + (k - 1) * dil + 1 - n, 0)
        found.append(Window(k, s, dil, total // 2, total - total // 2, n))
    return found


def each(value: Any, d: int) -> tuple[int, ...]:
    """One number per axis."""
    if isinstance(value, int):
        return (value,) * d
    numbers = tuple(int(v) for v in value)
    return numbers * d if len(numbers) == 1 else numbers
