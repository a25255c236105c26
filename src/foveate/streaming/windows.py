"""Convolution and pooling on parts of maps, with padding at the true border of a map only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from foveate.streaming.base import AbstractOp, Call, Ints
from foveate.streaming.padded import kernel_padding
from foveate.streaming.pointwise import crop_and_pad

PerAxis = int | Sequence[int]
"""One number for all axes, or one per axis."""

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
_MAX_POOLS = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_MEAN_POOLS = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


@dataclass(frozen=True)
class SlidingWindow:
    """A sliding window along one axis; that of output cell i begins at ``i * stride - left``.

    Attributes:
        kernel: number of input cells in a window.
        stride: input cells from one window to the next.
        dilation: input cells from one cell of a window to the next.
        left: cells of padding before the first input cell.
        right: cells of padding after the last input cell, where they count (`WindowMean`).
        n: cells of the input map.
    """

    kernel: int
    stride: int
    dilation: int
    left: int
    right: int
    n: int

    def reach(self, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """Compute the spans of cells under n spans of windows ``low <= i < high``, each ``(n,)``.

        They may extend beyond the map.

        Args:
            low: first window of each span ``(n,)``.
            high: end of each span ``(n,)``.
        """
        first = low * self.stride - self.left
        span = self.dilation * (self.kernel - 1) + 1
        return first, (high - 1) * self.stride - self.left + span


class AbstractWindowed(AbstractOp):
    """An operation that slides windows over a map.

    Args:
        windows: the sliding window of each axis.
    """

    def __init__(self, windows: Sequence[SlidingWindow]) -> None:
        self.windows = tuple(windows)

    def needs(self, axis: int, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """Return the spans of cells under the windows and inside the map; at least one cell.

        Args:
            axis: spatial axis.
            low: first output cells of n spans, ``(n,)``.
            high: their ends, ``(n,)``.
        """
        window = self.windows[axis]
        first, last = window.reach(low, high)
        first = np.clip(first, 0, window.n - 1)
        return first, np.clip(last, first + 1, window.n)

    def padded(
        self, x: Float[Tensor, "1 c *size"], call: Call, value: float
    ) -> Float[Tensor, "1 c *padded"]:
        """Pad a part of the map ``(1, c, *size)`` where windows extend beyond the map's borders.

        Args:
            x: part of the map ``(1, c, *size)``.
            call: the call, with the cells of its output.
            value: value of the padding.
        """
        spans = []
        for window, (low, high) in zip(self.windows, call.output_region, strict=True):
            first, last = window.reach(np.asarray(low), np.asarray(high))
            spans.append((int(first), int(last)))
        return crop_and_pad(x, call.dims, call.input_region, tuple(spans), value)

    def _sides(self, name: str) -> tuple[int, ...]:
        """Return an attribute of the windows, per axis."""
        return tuple(getattr(w, name) for w in self.windows)


class Convolution(AbstractWindowed):
    """Convolution with any stride, dilation and groups, and padding with zeros.

    Args:
        windows: the sliding window of each axis.
        groups: number of groups of channels.
        work: floating-point operations per output element.
    """

    def __init__(self, windows: Sequence[SlidingWindow], *, groups: int, work: float) -> None:
        super().__init__(windows)
        self.groups, self.work = groups, work

    def run(self, call: Call) -> Float[Tensor, "1 k *size"]:
        """Convolve the padded part of the map."""
        x, weight, bias = call.args
        run = _CONVOLUTIONS[len(self.windows)]
        options = self._sides("stride"), 0, self._sides("dilation")
        out: Tensor = run(self.padded(x, call, 0.0), weight, bias, *options, self.groups)
        return out


class WindowMax(AbstractWindowed):
    """Maximum pooling, with or without ceil mode: padding never is the maximum.

    Args:
        windows: the sliding window of each axis.
    """

    saved_bytes = 8.0

    def run(self, call: Call) -> Float[Tensor, "1 c *size"]:
        """Compute the maxima of the padded part of the map."""
        x = call.args[0]
        run = _MAX_POOLS[len(self.windows)]
        x = self.padded(x, call, -math.inf)
        out: Tensor = run(
            x, self._sides("kernel"), self._sides("stride"), 0, self._sides("dilation")
        )
        return out


class WindowMean(AbstractWindowed):
    """Mean pooling, which at borders divides by the number of cells that the layer counts.

    Args:
        windows: the sliding window of each axis.
        count_pad: whether padding counts; cells that ceil mode adds beyond it never count.
        divisor: a fixed divisor instead of the number of cells; None without.
    """

    def __init__(
        self, windows: Sequence[SlidingWindow], *, count_pad: bool, divisor: int | None = None
    ) -> None:
        super().__init__(windows)
        self.count_pad, self.divisor = count_pad, divisor

    def run(self, call: Call) -> Float[Tensor, "1 c *size"]:
        """Divide the sum of each window by its number of cells."""
        x = self.padded(call.args[0], call, 0.0)
        kernel = self._sides("kernel")
        mean: Tensor = _MEAN_POOLS[len(self.windows)](x, kernel, self._sides("stride"))
        if self.divisor is not None:
            return mean * (math.prod(kernel) / self.divisor)
        for axis, window in enumerate(self.windows):
            count = self._count(axis, call.output_region[axis])
            if (count == window.kernel).all():
                continue
            ratio = torch.from_numpy(window.kernel / count).to(mean)
            mean = mean * ratio.view(-1, *(1,) * (len(self.windows) - 1 - axis))
        return mean

    def _count(self, axis: int, span: tuple[int, int]) -> Ints:
        """Count the cells of each window of a span of output cells along an axis, ``(cells,)``."""
        window = self.windows[axis]
        low = np.arange(*span) * window.stride - window.left
        high = np.minimum(low + window.kernel, window.n + window.right)
        if not self.count_pad:
            low, high = np.maximum(low, 0), np.minimum(high, window.n)
        count: Ints = high - low
        return count


class TransposedConvolution(AbstractWindowed):
    """Transposed convolution with any stride, padding, dilation and groups.

    Input cell i contributes to output cells from ``i * stride - left`` on.

    Args:
        windows: the window of each axis, in output cells.
        groups: number of groups of channels.
        work: floating-point operations per output element.
    """

    regular = False

    def __init__(self, windows: Sequence[SlidingWindow], *, groups: int, work: float) -> None:
        super().__init__(windows)
        self.groups, self.work = groups, work

    def needs(self, axis: int, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """Return the spans of input cells that contribute, with at least one cell.

        Args:
            axis: spatial axis.
            low: first output cells of n spans, ``(n,)``.
            high: their ends, ``(n,)``.
        """
        w = self.windows[axis]
        span = w.dilation * (w.kernel - 1)
        first = np.clip(-((-(low + w.left - span)) // w.stride), 0, w.n - 1)
        return first, np.clip((high - 1 + w.left) // w.stride + 1, first + 1, w.n)

    def run(self, call: Call) -> Float[Tensor, "1 k *size"]:
        """Compute the contributions of the input cells, cropped or padded to the output cells."""
        x, weight, bias = call.args
        run = _TRANSPOSED[len(self.windows)]
        stride, dilation = self._sides("stride"), self._sides("dilation")
        out: Tensor = run(x, weight, None, stride, 0, 0, self.groups, dilation)
        covered = []
        for (low, _), w, size in zip(call.input_region, self.windows, out.shape[2:], strict=True):
            begin = low * w.stride - w.left
            covered.append((begin, begin + size))
        out = crop_and_pad(out, call.dims, tuple(covered), call.output_region, 0.0)
        return out if bias is None else out + bias.view(-1, *(1,) * len(self.windows))


def make_windows(
    kernel: PerAxis, stride: PerAxis, padding: Any, dilation: PerAxis, extent_cell: Sequence[int]
) -> list[SlidingWindow]:
    """Make the sliding window of each axis from the options of a layer.

    Args:
        kernel: side of the kernel, one number or one per axis.
        stride: stride, one number or one per axis.
        padding: cells of padding on both sides, one number or one per axis; PyTorch's ``same`` or
            ``valid``; ``tensorflow``, with which there are ``ceil(n / stride)`` windows over n
            cells; or ``kernel``, as in `PaddedConv2d`.
        dilation: dilation, one number or one per axis.
        extent_cell: cells of the map per axis.
    """
    d = len(extent_cell)
    sides = zip(
        per_axis(kernel, d), per_axis(stride, d), per_axis(dilation, d), extent_cell, strict=True
    )
    windows = []
    for axis, (k, s, dil, n) in enumerate(sides):
        total = 0
        if padding == "same":
            total = dil * (k - 1)
        elif padding == "tensorflow":
            total = max((math.ceil(n / s) - 1) * s + dil * (k - 1) + 1 - n, 0)
        left, right = total // 2, total - total // 2
        if padding == "kernel":
            left, right = kernel_padding(k, s, n)
        elif not isinstance(padding, str):
            left = right = per_axis(padding, d)[axis]
        windows.append(SlidingWindow(k, s, dil, left, right, n))
    return windows


def per_axis(value: PerAxis, d: int) -> tuple[int, ...]:
    """Return one number for each of `d` axes, from one number or one per axis.

    Args:
        value: one number, or one per axis.
        d: number of axes.
    """
    if isinstance(value, int):
        return (value,) * d
    numbers = tuple(int(v) for v in value)
    return numbers * d if len(numbers) == 1 else numbers
