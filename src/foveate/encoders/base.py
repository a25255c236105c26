"""The base class of encoders: maps at several strides, features, and one vector per image."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from foveate.nn.base import Standardise

_left_out: ContextVar[bool] = ContextVar("weights are left out", default=False)


@contextmanager
def without_weights() -> Iterator[None]:
    """Let encoders that are built in this context read and fetch no weights.

    For a stored model, whose weights are loaded afterwards.
    """
    before = _left_out.set(True)
    try:
        yield
    finally:
        _left_out.reset(before)


def reads_weights() -> bool:
    """Return whether an encoder that is built now reads or fetches its pretrained weights."""
    return not _left_out.get()


class AbstractEncoder(nn.Module, abc.ABC):
    """A network that encodes both glimpses and patches.

    An image becomes maps, maps become features, and features are projected to a vector. Features
    are the output of a frozen network; the projection is learnt from the first step on.

    Attributes:
        axes: number of axes of the images that it reads, 2 or 3.
        reads_pixels: whether it computes from pixels; False for vectors that files store.
        dim: length of the vector that `forward` returns.
        strides: input pixels per cell of each map, from fine to coarse.
        map_dims: channels of each map.
        map_centres_px: centre of cell 0 of each map, in input pixels; cell ``i`` is centred at
            ``map_centres_px[j] + i * strides[j]`` in map j.
        mean: mean of the RGB channels, which is subtracted from inputs in [0, 1].
        std: standard deviation of the RGB channels, by which inputs are then divided.
        feature_groups: lengths of the groups of `features` of different meaning (means, spreads,
            the class token, say); a linear answer is fitted to each group.
        from_scratch: whether weights were initialised at random.
        local: whether a cell's receptive field is bounded, whatever the size of the image.
        resolved: values of options that the constructor resolved, to be stored with a model.
    """

    axes: ClassVar[int] = 2
    reads_pixels: ClassVar[bool] = True
    dim: int
    strides: tuple[int, ...]
    map_dims: tuple[int, ...]
    map_centres_px: tuple[float, ...]
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)
    feature_groups: tuple[int, ...] = ()
    from_scratch: bool = True
    local: bool = True
    resolved: Mapping[str, object] = MappingProxyType({})

    @abc.abstractmethod
    def maps(self, x: Float[Tensor, "b 3 *space"]) -> list[Float[Tensor, "b _c *_cells"]]:
        """Compute maps ``(b, map_dims[i], *ceil(space / strides[i]))`` of ``(b, 3, *space)``."""

    @abc.abstractmethod
    def pool(self, maps: list[Float[Tensor, "b _c *_cells"]]) -> Float[Tensor, "b dim"]:
        """Compute the vector ``(b, dim)`` from the maps that `maps` returns."""

    @property
    def n_features(self) -> int:
        """Number of features of an image."""
        return self.dim

    def features(
        self,
        maps: list[Float[Tensor, "b _c *_cells"]],
        weight: Float[Tensor, " b *space"] | None = None,
    ) -> Float[Tensor, "b n_features"]:
        """Compute the features of images, ``(b, n_features)``, before their projection.

        Args:
            maps: the maps that `maps` returns.
            weight: weights of the input pixels, ``(b, *space)``, at least 0; equal by default.
                Encoders that cannot weigh pixels ignore it.
        """
        return self.pool(maps)

    def project(self, features: Float[Tensor, "b n_features"]) -> Float[Tensor, "b dim"]:
        """Project features ``(b, n_features)`` to the vector ``(b, dim)``."""
        return features

    def fit_start(self, features: Float[Tensor, "n n_features"]) -> None:
        """Adapt to the features of a sample of images or patches, before the first step.

        Args:
            features: features of the frozen network, ``(n, n_features)``.
        """

    def tiers(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the pretrained part in groups, from its input to its output.

        Early tiers are trained at smaller rates. Empty where nothing is pretrained.
        """
        return []

    def forward(self, x: Float[Tensor, "b 3 *space"]) -> Float[Tensor, "b dim"]:
        """Encode images ``(b, 3, *space)`` to vectors ``(b, dim)``."""
        return self.pool(self.maps(x))


class Projection(nn.Module):
    """Standardises features, then projects them linearly to a vector.

    Standardised, no feature outweighs the others at the start because of its scale.

    Args:
        n_features: number of features of the frozen network.
        dim: length of the vector.
    """

    def __init__(self, n_features: int, dim: int) -> None:
        super().__init__()
        self.standardise = Standardise(n_features)
        self.linear = nn.Linear(n_features, dim)

    def forward(self, features: Float[Tensor, "*b n_features"]) -> Float[Tensor, "*b dim"]:
        """Project features ``(…, n_features)`` to vectors ``(…, dim)``."""
        vector: Tensor = self.linear(self.standardise(features.float()))
        return vector


class ProjectedEncoder(AbstractEncoder):
    """An encoder with a pretrained network, whose features are projected to the vector.

    Subclasses set `mixed`, a `Projection`, and implement `features`.

    Attributes:
        mixed: the projection from features to the vector.
    """

    mixed: Projection
    from_scratch = False

    @property
    def n_features(self) -> int:
        """Number of features of an image."""
        return self.mixed.linear.in_features

    def project(self, features: Float[Tensor, "b n_features"]) -> Float[Tensor, "b dim"]:
        """Standardise features ``(b, n_features)`` and project them to the vector ``(b, dim)``."""
        vector: Tensor = self.mixed(features)
        return vector

    def fit_start(self, features: Float[Tensor, "n n_features"]) -> None:
        """Standardise features by the mean and spread of these, ``(n, n_features)``."""
        self.mixed.standardise.fit(features)

    def pool(self, maps: list[Float[Tensor, "b _c *_cells"]]) -> Float[Tensor, "b dim"]:
        """Compute the vector ``(b, dim)`` as the projection of the maps' features."""
        return self.project(self.features(maps))


def weighted_moments(
    map_: Float[Tensor, "b c *cells"], weight: Float[Tensor, " b *space"] | None = None
) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b c"]]:
    """Compute the mean and the standard deviation of a map over its cells.

    Args:
        map_: the map, ``(b, c, *cells)``.
        weight: weights of the input pixels, ``(b, *space)``, at least 0; equal by default, and for
            images whose weights are all 0.

    Returns:
        mean and standard deviation, ``(b, c)`` each.
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
    # The slope of the root at 0 is infinite, and the variance of a map of one cell is 0.
    return mean.flatten(1), (variance + 1e-6).sqrt()


class CellMap(nn.Module):
    """The part of an encoder that is streamed: its last map, averaged over groups of cells.

    Args:
        encoder: the encoder.
        group: cells along a side of a group.
    """

    def __init__(self, encoder: AbstractEncoder, group: int) -> None:
        super().__init__()
        self.encoder, self.group = encoder, group
        self.mean = (nn.AvgPool2d if encoder.axes == 2 else nn.AvgPool3d)(group)

    def forward(self, x: Float[Tensor, "b 3 *space"]) -> Float[Tensor, "b d *cells"]:
        """Compute the averaged map ``(b, d, *cells)`` of images ``(b, 3, *space)``."""
        last = self.encoder.maps(x)[-1]
        if self.group == 1:
            return last
        # The last cell is repeated so that the last group of an axis is complete.
        beyond = (0, self.group - 1) * self.encoder.axes
        averaged: Tensor = self.mean(nn.functional.pad(last, beyond, "replicate"))
        return averaged


BASE = AbstractEncoder
