"""What methods ask of an encoder: maps at several strides, and one vector per image."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from torch import Tensor, nn


class AbstractEncoder(nn.Module, abc.ABC):
    """One network for glimpses and patches alike.

    Attributes:
        axes: of the images it reads, 2 or 3.
        dim: length of the vector of `embed`.
        strides: input pixels per cell of each map, fine to coarse.
        map_dims: channels of each map.
        map_centres: where the centre of cell 0 of each map lies, in input pixels; cell ``i`` is
            centred at ``map_centre + i * stride``.
        mean: subtracted from inputs in [0, 1], per channel of RGB.
        std: divides them then.
        from_scratch: whether weights were initialised at random.
        resolved: options that the constructor settled, to be stored with a model.
    """

    axes: ClassVar[int] = 2
    dim: int
    strides: tuple[int, ...]
    map_dims: tuple[int, ...]
    map_centres: tuple[float, ...]
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)
    from_scratch: bool = True
    resolved: Mapping[str, object] = MappingProxyType({})

    @abc.abstractmethod
    def maps(self, x: Tensor) -> list[Tensor]:
        """Feature maps ``(b, map_dims[i], *ceil(space / strides[i]))`` of ``(b, 3, *space)``."""

    @abc.abstractmethod
    def pool(self, maps: list[Tensor]) -> Tensor:
        """The vector ``(b, dim)`` from the maps."""

    def forward(self, x: Tensor) -> Tensor:
        """The vector ``(b, dim)`` of images ``(b, 3, *space)``."""
        return self.pool(self.maps(x))


class CellMap(nn.Module):
    """The last map of an encoder, small groups of its cells averaged: what is streamed.

    Args:
        encoder: whose map.
        group: cells a side.
    """

    def __init__(self, encoder: AbstractEncoder, group: int) -> None:
        super().__init__()
        self.encoder, self.group = encoder, group
        self.mean = (nn.AvgPool2d if encoder.axes == 2 else nn.AvgPool3d)(group)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, 3, *space)`` to ``(b, d, *cells)``."""
        last = self.encoder.maps(x)[-1]
        if self.group == 1:
            return last
        # Groups are whole, however few cells there are along an axis: the last cell is repeated.
        beyond = (0, self.group - 1) * self.encoder.axes
        found: Tensor = self.mean(nn.functional.pad(last, beyond, "replicate"))
        return found


BASE = AbstractEncoder
