"""What methods ask of an encoder: maps at several strides, and one vector per image."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor, nn


class AbstractEncoder(nn.Module, abc.ABC):
    """One network for glimpses and patches alike.

    Attributes:
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
        """Feature maps ``(b, map_dims[i], ceil(h / strides[i]), ceil(w / strides[i]))``."""

    @abc.abstractmethod
    def pool(self, maps: list[Tensor]) -> Tensor:
        """The vector ``(b, dim)`` from the maps."""

    def forward(self, x: Tensor) -> Tensor:
        """The vector ``(b, dim)`` of images ``(b, 3, h, w)``."""
        return self.pool(self.maps(x))


BASE = AbstractEncoder
