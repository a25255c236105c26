"""Encode volumes slice by slice with an encoder of pictures and its pretrained weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from foveate.encoders._build import build_encoder
from foveate.encoders.base import ProjectedEncoder, Projection
from foveate.errors import OptionError
from foveate.geometry.lattice import points_px_from_cell
from foveate.parts.options import Width, Within

_AT_ONCE = 32
"""How many slices the picture encoder encodes at once."""


class SlicesEncoder(ProjectedEncoder):
    """A picture encoder that reads the slices of a volume; their maps form maps of the volume.

    Slices are taken along one axis or all three. Maps of slices are averaged along their axis into
    cells that are cubes; the maps of the three planes are concatenated as channels. Slices are
    padded by repeating their border, so that the network does not see where a crop ends. Features
    are the means and the spreads of the maps, per plane.

    Args:
        picture: name of the encoder of slices, one with pretrained weights.
        planes: ``axial`` slices only, or those of all ``three`` planes.
        step: distance of slices in voxels.
        thinning: training takes one of this many slices, drawn anew in each step.
        enlarge: by how much slices are enlarged, a power of 2. The cost grows with its square, and
            it did not improve results for volumes of 50 and 64 voxels.
        dim: length of the vector that features are projected to.
        taught: how many blocks of the picture encoder are trained, from its last, where it has
            this option.
        pretrained: take the picture encoder's weights.

    Raises:
        OptionError: `picture` reads volumes itself, or `step`, `thinning` or `enlarge` is out of
            range.
    """

    axes: ClassVar[int] = 3

    def __init__(
        self,
        *,
        picture: str = "lite0",
        planes: Literal["axial", "three"] = "three",
        step: Annotated[int, Within(1, 64)] = 2,
        thinning: Annotated[int, Within(1, 64)] = 2,
        enlarge: int = 1,
        dim: Width = 256,
        taught: int = 4,
        pretrained: bool = True,
    ) -> None:
        super().__init__()
        _check(enlarge)
        self.picture = build_encoder(
            picture, {}, {"taught": taught, "pretrained": pretrained, "dim": dim}
        )
        if self.picture.axes != 2:
            raise OptionError(f"encoder.picture: '{picture}' reads volumes, take lite0")
        self.along = (0,) if planes == "axial" else (0, 1, 2)
        self.step, self.thinning, self.enlarge = step, thinning, enlarge
        # Cells must not be smaller than the distance of slices.
        self.map_indices = tuple(
            i
            for i, s in enumerate(self.picture.strides)
            if s % enlarge == 0 and s >= step * enlarge
        )
        if not self.map_indices:
            raise OptionError(
                f"encoder.step: {step} voxels are more than the coarsest cell: take a smaller step"
            )
        # A cell of border before every slice: beyond it zeros are all that a network sees.
        self.before = self.picture.strides[-1]
        self.strides = tuple(self.picture.strides[i] // enlarge for i in self.map_indices)
        self.map_dims = tuple(len(self.along) * self.picture.map_dims[i] for i in self.map_indices)
        self.map_centres_px = tuple(self._first_cell(i)[1] / enlarge for i in self.map_indices)
        self.mean, self.std = self.picture.mean, self.picture.std
        self.from_scratch = self.picture.from_scratch
        self.dim = dim
        self.feature_groups = (sum(self.map_dims),) * 2
        self.mixed = Projection(sum(self.feature_groups), dim)
        for part in (getattr(self.picture, name, None) for name in ("mixed", "mix", "last")):
            if isinstance(part, nn.Module):  # used only for vectors of pictures
                part.requires_grad_(False)

    def _first_cell(self, i: int) -> tuple[int, float]:
        """Return the first cell of map i that lies in the slice, and its centre in enlarged px."""
        stride, centre = self.picture.strides[i], self.picture.map_centres_px[i] - self.before
        first = max(0, math.ceil(-centre / stride))
        return first, centre + first * stride

    def maps(self, x: Float[Tensor, "b 3 z y x"]) -> list[Float[Tensor, "b _c *_cells"]]:
        """Compute maps ``(b, planes * c, *ceil(space / stride))`` of volumes ``(b, 3, z, y, x)``.

        Cells are cubes.
        """
        planes = [self._plane_maps(x, axis) for axis in self.along]
        return [torch.cat(maps, 1) for maps in zip(*planes, strict=True)]

    def _plane_maps(
        self, x: Float[Tensor, "b 3 z y x"], axis: int
    ) -> list[Float[Tensor, "b _c *_cells"]]:
        """Compute maps ``(b, c, *cells)`` of the slices across an axis of ``(b, 3, z, y, x)``."""
        n, places = x.shape[2 + axis], self._choose_slices(x.shape[2 + axis])
        slices = x.movedim(2 + axis, 1)[:, places]
        flat = [self._slice_maps(part) for part in torch.split(slices.flatten(0, 1), _AT_ONCE)]
        volume_maps = []
        for k, maps in enumerate(zip(*flat, strict=True)):
            map_ = torch.cat(maps).view(*slices.shape[:2], *maps[0].shape[1:])
            weights = _weights(places, n, self.strides[k], self.map_centres_px[k]).to(map_)
            volume_maps.append(torch.einsum("jn,bnchw->bcjhw", weights, map_).movedim(2, 2 + axis))
        return volume_maps

    def _choose_slices(self, n: int) -> list[int]:
        """Choose slices along an axis of `n` voxels; training draws from the global generator."""
        step = self.step
        if self.training:
            step *= self.thinning
        begin = int(torch.randint(step, ())) if self.training else step // 2
        return list(range(min(begin, n - 1), n, step))

    def _slice_maps(self, slices: Float[Tensor, "m 3 h w"]) -> list[Float[Tensor, "m _c *_cells"]]:
        """Compute maps ``(m, c, *cells)`` of slices ``(m, 3, h, w)``, without cells of padding."""
        if self.enlarge > 1:
            slices = functional.interpolate(slices, scale_factor=self.enlarge, mode="bilinear")
        shape, coarsest = slices.shape[-2:], self.picture.strides[-1]
        behind = [-(-n // coarsest) * coarsest - n for n in shape]
        pad = (self.before, behind[1], self.before, behind[0])
        padded = functional.pad(slices, pad, "replicate")
        maps = self.picture.maps(padded.contiguous(memory_format=torch.channels_last))
        cropped = []
        for i in self.map_indices:
            first, (h, w) = (
                self._first_cell(i)[0],
                (-(-n // self.picture.strides[i]) for n in shape),
            )
            cropped.append(maps[i][..., first : first + h, first : first + w])
        return cropped

    def features(
        self,
        maps: list[Float[Tensor, "b _c *_cells"]],
        weight: Float[Tensor, "b z y x"] | None = None,
    ) -> Float[Tensor, "b n_features"]:
        """Compute means and spreads of the maps, ``(b, n_features)``.

        A cell counts by the share of the volume that is nearest to it. Weights of input pixels are
        ignored.

        Args:
            maps: the maps that `maps` returns.
            weight: weights of the input pixels, ``(b, z, y, x)``; ignored.
        """
        # The size of the volume is known only up to the finest cell.
        space = [n * self.strides[0] for n in maps[0].shape[2:]]
        means, spreads = [], []
        for map_, stride, centre in zip(maps, self.strides, self.map_centres_px, strict=True):
            exact, share = map_.float(), torch.ones((), device=map_.device)
            for n, cells in zip(space, map_.shape[2:], strict=True):
                length = torch.tensor(_edges(n, cells, stride, centre)).diff()
                share = share.unsqueeze(-1) * (length / n).to(share)
            mean = (exact * share).flatten(2).sum(-1)
            variance = (exact - mean[..., None, None, None]).square() * share
            means.append(mean)
            spreads.append((variance.flatten(2).sum(-1) + 1e-6).sqrt())
        return torch.cat([*means, *spreads], 1)

    def tiers(self) -> list[list[nn.Parameter]]:
        """Return the tiers of the picture encoder."""
        return self.picture.tiers()


def _check(enlarge: int) -> None:
    """Raise `OptionError` unless `enlarge` is a power of 2 up to 8."""
    if enlarge not in (1, 2, 4, 8):
        raise OptionError(f"encoder.enlarge: got {enlarge}, expected 1, 2, 4 or 8")


def _edges(n: int, cells: int, stride: int, centre: float) -> list[float]:
    """Compute the borders between the regions nearest to cells: cells + 1 places, 0 to n voxels."""
    borders = (
        points_px_from_cell(j + 0.5, stride_px=stride, centre_px=centre) for j in range(cells - 1)
    )
    between = (min(max(border_px, 0.0), float(n)) for border_px in borders)
    return [0.0, *between, float(n)]


def _weights(
    places: Sequence[int], n: int, stride: int, centre: float
) -> Float[Tensor, "cells slices"]:
    """Compute the weights of slices in cells, ``(cells, slices)``, by their overlap; rows sum to 1.

    A slice represents all voxels that are nearest to it, so that the slices of a draw have together
    the weight of all. A cell outside the volume takes the last slice.

    Args:
        places: the slices that were chosen.
        n: voxels along the axis.
        stride: voxels per cell.
        centre: centre of cell 0 in voxels.
    """
    cells = torch.tensor(_edges(n, -(-n // stride), stride, centre))
    middles = torch.tensor(places, dtype=torch.float32) + 0.5
    bounds = torch.cat([torch.zeros(1), (middles[1:] + middles[:-1]) / 2, torch.full((1,), n)])
    low = torch.maximum(cells[:-1, None], bounds[:-1])
    shared = (torch.minimum(cells[1:, None], bounds[1:]) - low).clamp_min(0)
    total = shared.sum(1, keepdim=True)
    last = functional.one_hot(torch.tensor(len(places) - 1), len(places)).float()
    return torch.where(total > 0, shared / total.clamp_min(1e-12), last)
