"""What methods ask of an encoder: maps at several strides, and one vector per image."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from foveate.nn.base import Standardise

_left_out: ContextVar[bool] = ContextVar("weights are left out", default=False)


@contextmanager
def without_weights() -> Iterator[None]:
    """Encoders that are made inside read and fetch no weights: those of a stored model follow."""
    before = _left_out.set(True)
    try:
        yield
    finally:
        _left_out.reset(before)


def reads_weights() -> bool:
    """Whether an encoder that is made now should read or fetch its pretrained weights."""
    return not _left_out.get()


class AbstractEncoder(nn.Module, abc.ABC):
    """One network for glimpses and patches alike.

    An image becomes maps, maps become features, and features are projected to a vector. Features
    are what a frozen network says of an image; the projection is learnt from the first step on.

    Attributes:
        axes: of the images it reads, 2 or 3.
        dim: length of the vector of `forward`.
        strides: input pixels per cell of each map, fine to coarse.
        map_dims: channels of each map.
        map_centres: where the centre of cell 0 of each map lies, in input pixels; cell ``i`` is
            centred at ``map_centre + i * stride``.
        mean: subtracted from inputs in [0, 1], per channel of RGB.
        std: divides them then.
        feature_groups: lengths of the parts of `features` that say different things (colour and
            texture, spread, what is shown); a linear answer is fitted to each.
        from_scratch: whether weights were initialised at random.
        local: whether a cell sees a neighbourhood only, whatever the size of the image.
        resolved: options that the constructor settled, to be stored with a model.
    """

    axes: ClassVar[int] = 2
    dim: int
    strides: tuple[int, ...]
    map_dims: tuple[int, ...]
    map_centres: tuple[float, ...]
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)
    feature_groups: tuple[int, ...] = ()
    from_scratch: bool = True
    local: bool = True
    resolved: Mapping[str, object] = MappingProxyType({})

    @abc.abstractmethod
    def maps(self, x: Tensor) -> list[Tensor]:
        """Feature maps ``(b, map_dims[i], *ceil(space / strides[i]))`` of ``(b, 3, *space)``."""

    @abc.abstractmethod
    def pool(self, maps: list[Tensor]) -> Tensor:
        """The vector ``(b, dim)`` from the maps."""

    @property
    def n_features(self) -> int:
        """Length of `features`."""
        return self.dim

    def features(self, maps: list[Tensor], weight: Tensor | None = None) -> Tensor:
        """What the network says of an image before anything is projected, ``(b, n_features)``.

        Args:
            maps: as `maps` gives them.
            weight: ``(b, *space)``, not negative, how much each input pixel counts; all alike by
                default. Encoders that cannot weigh pixels ignore it.
        """
        return self.pool(maps)

    def project(self, features: Tensor) -> Tensor:
        """Features as the vector ``(b, dim)``."""
        return features

    def tiers(self) -> list[list[nn.Parameter]]:
        """The parameters of the pretrained part, from its input to its output.

        Early tiers are taught with smaller rates. Empty where nothing is pretrained.
        """
        return []

    def forward(self, x: Tensor) -> Tensor:
        """The vector ``(b, dim)`` of images ``(b, 3, *space)``."""
        return self.pool(self.maps(x))


class Projection(nn.Module):
    """Standardises features, then maps them to a vector; dimensions begin alike, none drowns.

    Args:
        n_features: of the frozen network.
        dim: of the vector.
    """

    def __init__(self, n_features: int, dim: int) -> None:
        super().__init__()
        self.standardise = Standardise(n_features)
        self.linear = nn.Linear(n_features, dim)

    def forward(self, features: Tensor) -> Tensor:
        """``(…, n_features)`` to ``(…, dim)``."""
        vector: Tensor = self.linear(self.standardise(features.float()))
        return vector


class ProjectedEncoder(AbstractEncoder):
    """A pretrained network: features are means of its maps, and what it is taught is projected.

    Subclasses set `mixed`, a `Projection`, and give `features`.
    """

    mixed: Projection
    from_scratch = False

    @property
    def n_features(self) -> int:
        """Length of `features`."""
        return self.mixed.linear.in_features

    def project(self, features: Tensor) -> Tensor:
        """Standardised features through a linear layer, ``(b, dim)``."""
        vector: Tensor = self.mixed(features)
        return vector

    def pool(self, maps: list[Tensor]) -> Tensor:
        """The vector ``(b, dim)`` from the maps."""
        return self.project(self.features(maps))


def weighted_moments(map_: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and spread of a map over its cells, ``(b, c)`` each; by weights of input pixels.

    Args:
        map_: ``(b, c, *cells)``.
        weight: ``(b, *space)``, not negative; an image whose weights are all 0 is weighed evenly,
            and so is every image by default.
    """
    space, exact = tuple(range(2, map_.ndim)), map_.float()
    if weight is None:
        mean = exact.mean(space, keepdim=True)
        variance = (exact - mean).square().mean(space)
    else:
        pixels, cells = weight.float().unsqueeze(1), map_.shape[2:]
        share = functional.interpolate(pixels, cells, mode="area")
        total = share.sum(space, keepdim=True)
        even = torch.full_like(share, 1 / share[0, 0].numel())
        share = torch.where(total > 0, share / total.clamp_min(1e-12), even)
        mean = (exact * share).sum(space, keepdim=True)
        variance = ((exact - mean).square() * share).sum(space)
    # The root's slope at 0 is infinite; maps of one cell have no spread.
    return mean.flatten(1), (variance + 1e-6).sqrt()


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
