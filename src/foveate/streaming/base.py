"""Types of streaming: spans of cells, local operations, and sources of images."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from foveate.errors import FoveateError

Ints = Int64[np.ndarray, " _n"]
"""Whole numbers, one for each span or cell along one axis; axes differ in their number."""
Region = tuple[tuple[int, int], ...]
"""Cells ``low <= i < high`` of a map, per spatial axis."""
Span = tuple[Ints, Ints]
"""First cells ``low`` and ends ``high`` of many spans along one axis."""
StepSpans = tuple[Int64[np.ndarray, "steps blocks"], Int64[np.ndarray, "steps blocks"]]
"""First cells and ends of blocks along one axis, in the map of each step."""
Flags = Bool[np.ndarray, "*tiles"]


class NotLocal(FoveateError, ValueError):
    """A layer cannot be streamed: its output cells depend on more than a neighbourhood."""

    stops_command = True


class TooLittleMemory(FoveateError, MemoryError):
    """Not even the smallest tile fits into the budget of memory."""


@dataclass(frozen=True)
class Call:
    """One use of an operation on a part of a map.

    Attributes:
        apply: the layer or function itself, which takes `args` and `kwargs`.
        args: its positional arguments, with parts of maps in place of the maps.
        kwargs: its keyword arguments, with parts of maps in place of the maps.
        dims: spatial dimensions of these parts.
        input_region: region of the input maps that the parts cover, in input cells.
        output_region: region of the output map to compute, in output cells.
        reuse: whether the first argument may be overwritten.
        drawn: result of `AbstractOp.draw` for this image.
    """

    apply: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dims: tuple[int, ...]
    input_region: Region
    output_region: Region
    reuse: bool
    drawn: Shaped[Tensor, " ..."] | None = None


class AbstractOp(abc.ABC):
    """A local operation: it computes a part of its output from a part of its input.

    Attributes:
        fresh: whether the result is new memory without any other reference.
        regular: whether moving the input by whole cells moves the output by whole cells.
        shares: whether, in the plain stack, the result is a view of the first argument.
        work: floating-point operations per output element.
        saved_bytes: bytes that autograd saves per output element, beside the output itself.
    """

    fresh: bool = True
    regular: bool = True
    shares: bool = False
    work: float = 4.0
    saved_bytes: float = 0.0

    @abc.abstractmethod
    def needs(self, axis: int, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """Compute the spans of input cells that spans of output cells depend on.

        Args:
            axis: spatial axis.
            low: first output cells of n spans, ``(n,)``.
            high: their ends, ``(n,)``.

        Returns:
            First input cells and ends ``(n,)``, inside the map.
        """

    @final
    def input_region(self, output_region: Region) -> Region:
        """Return the region of the input that a region of the output depends on."""
        ends = [
            self.needs(axis, np.asarray([low]), np.asarray([high]))
            for axis, (low, high) in enumerate(output_region)
        ]
        return tuple((int(low[0]), int(high[0])) for low, high in ends)

    @abc.abstractmethod
    def run(self, call: Call) -> Any:
        """Compute the output region of a call."""

    def draw(self, channels: int, like: Shaped[Tensor, " ..."]) -> Shaped[Tensor, " ..."] | None:
        """Draw the random numbers of one image and step; None where nothing is dropped.

        Args:
            channels: number of channels of the output.
            like: a tensor of any shape, of the device and dtype of the result.

        Returns:
            A tensor whose shape each operation chooses.
        """
        return None


class AbstractSource(abc.ABC):
    """An image that is read region by region; it may be larger than memory.

    Attributes:
        shape: shape of the image, ``(c, *space)``.
        device: device of its tensors.
        dtype: dtype of its tensors.
        has_blank: whether `blank` may find background at all.
    """

    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype = torch.float32

    has_blank: bool = False

    @abc.abstractmethod
    def crops(self, regions: Sequence[Region]) -> Iterator[Float[Tensor, "1 c *size"]]:
        """Read regions in this order, each ``(1, c, *size)``; they may be read ahead of use."""

    def blank(self, spans: Sequence[Span]) -> Flags:
        """Find the blocks that contain background only; they are not read.

        Args:
            spans: per axis, the spans of cells that the blocks cover.

        Returns:
            True for a block of background, ``(blocks of the first axis, …)``.
        """
        return np.zeros([len(low) for low, _ in spans], np.bool_)

    def background(self) -> Float[Tensor, " c"]:
        """Return the value of background per channel, ``(c,)``.

        Raises:
            NotImplementedError: the source knows no background.
        """
        raise NotImplementedError
