"""What streaming shares: spans of cells, local operations, where an image comes from."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.errors import FoveateError

Ints = NDArray[np.int64]
Region = tuple[tuple[int, int], ...]
"""Cells ``low <= i < high`` of a map, per spatial axis."""
Span = tuple[Ints, Ints]
"""Ends ``low, high`` of many spans along one axis."""
Flags = NDArray[np.bool_]


class NotLocal(FoveateError, ValueError):
    """A layer whose output cell looks at more than a neighbourhood: it cannot be streamed."""


class TooLittleMemory(FoveateError, MemoryError):
    """Not even the smallest tile fits into the memory that was allowed."""


@dataclass(frozen=True)
class Call:
    """One use of an operation on a part of a map.

    Attributes:
        apply: the layer or function itself, on whole arguments.
        args, kwargs: its arguments, pieces of maps in their places.
        dims: which dimensions of the pieces are spatial.
        given: the cells that the pieces hold, in input cells.
        wanted: the cells to give, in output cells.
        reuse: whether the first argument may be overwritten.
        drawn: what `AbstractOp.draw` gave for this image.
    """

    apply: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dims: tuple[int, ...]
    given: Region
    wanted: Region
    reuse: bool
    drawn: Tensor | None = None


class AbstractOp(abc.ABC):
    """A local operation: which cells it needs, and how it computes a part.

    Attributes:
        fresh: its result is new memory that nobody else holds.
        regular: moving its input by whole cells moves its output by whole cells.
        shares: in the plain stack, its result is a view of its first argument.
        work: floating-point operations per element of its output.
        held: bytes that autograd holds for each element of its output, beside that output.
    """

    fresh: bool = True
    regular: bool = True
    shares: bool = False
    work: float = 4.0
    held: float = 0.0

    @abc.abstractmethod
    def needs(self, axis: int, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """Input cells for output cells ``low <= i < high``, clipped to the map; many at once."""

    @abc.abstractmethod
    def run(self, call: Call) -> Any:
        """The wanted cells."""

    def draw(self, channels: int, like: Tensor) -> Tensor | None:
        """What holds for a whole image, drawn once per step; None where nothing is dropped."""
        return None


class AbstractSource(abc.ABC):
    """An image that is read region by region; it may be larger than memory.

    Attributes:
        shape: ``(c, *space)``.
        device, dtype: of what it gives.
        has_blank: whether `blank` may ever say yes.
    """

    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype = torch.float32

    has_blank: bool = False

    @abc.abstractmethod
    def crops(self, regions: Sequence[Region]) -> Iterator[Tensor]:
        """The regions, each ``(1, c, *size)``, in this order; read ahead of use."""

    def blank(self, spans: Sequence[Span]) -> Flags:
        """Which blocks hold nothing but background: `background` stands for them, unread.

        Args:
            spans: per axis, the cells ``low <= i < high`` of each row of blocks.

        Returns:
            An answer per block, ``(blocks of the first axis, …)``.
        """
        return np.zeros([len(low) for low, _ in spans], np.bool_)

    def background(self) -> Tensor:
        """The value of background, ``(c,)``."""
        raise NotImplementedError
