"""Volumes slice by slice, through an encoder of pictures and its pretrained weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from foveate.encoders._build import build_encoder
from foveate.encoders.base import ProjectedEncoder, Projection
from foveate.errors import OptionError
from foveate.parts import Within

_AT_ONCE = 32
"""Slices that go through the picture encoder together."""


class SlicesEncoder(ProjectedEncoder):
    """Slices of a volume through a picture encoder, their maps laid back into the volume.

    Slices are taken along one axis or all three. Maps of slices are averaged along their axis into
    cells that are cubes; those of the three planes stand beside each other as channels. Where a
    slice ends its border goes on, so that the size of a crop is not what the network sees. Features
    are the means and the spreads of the maps, each plane for itself.

    Args:
        picture: the encoder of slices, one with pretrained weights.
        planes: ``axial`` slices only, or those of all ``three`` planes.
        step: every how many voxels a slice is taken.
        thinning: training takes one slice of so many of these, another one every time.
        enlarge: slices, by how much, a power of 2. It costs its square and has not paid for
            volumes of 50 and 64 voxels.
        dim: length of the vector that features are projected to.
        taught: blocks of the picture encoder that are taught, from its last, where it has this
            option.
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
        dim: int = 256,
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
        # Cells are no smaller than the distance of slices.
        self.kept = tuple(
            i
            for i, s in enumerate(self.picture.strides)
            if s % enlarge == 0 and s >= step * enlarge
        )
        if not self.kept:
            raise OptionError(
                f"encoder.step: {step} voxels are more than the coarsest cell: take a smaller step"
            )
        # A cell of border before every slice: beyond it zeros are all that a network sees.
        self.before = self.picture.strides[-1]
        self.strides = tuple(self.picture.strides[i] // enlarge for i in self.kept)
        self.map_dims = tuple(len(self.along) * self.picture.map_dims[i] for i in self.kept)
        self.map_centres = tuple(self._first(i)[1] / enlarge for i in self.kept)
        self.mean, self.std = self.picture.mean, self.picture.std
        self.from_scratch = self.picture.from_scratch
        self.dim = dim
        self.feature_groups = (sum(self.map_dims),) * 2
        self.mixed = Projection(sum(self.feature_groups), dim)
        for part in (getattr(self.picture, name, None) for name in ("mixed", "mix", "last")):
            if isinstance(part, nn.Module):  # what only vectors of pictures need
                part.requires_grad_(False)

    def _first(self, i: int) -> tuple[int, float]:
        """The first cell of map i that lies in the slice, and its centre in enlarged pixels."""
        stride, centre = self.picture.strides[i], self.picture.map_centres[i] - self.before
        first = max(0, math.ceil(-centre / stride))
        return first, centre + first * stride

    def maps(self, x: Tensor) -> list[Tensor]:
        """Maps ``(b, planes * c, *ceil(space / stride))``, cells of which are cubes."""
        planes = [self._plane(x, axis) for axis in self.along]
        return [torch.cat(maps, 1) for maps in zip(*planes, strict=True)]

    def _plane(self, x: Tensor, axis: int) -> list[Tensor]:
        """Maps of slices across this axis ``(b, c, *cells)``."""
        n, places = x.shape[2 + axis], self._places(x.shape[2 + axis])
        slices = x.movedim(2 + axis, 1)[:, places]
        flat = [self._of_slices(part) for part in torch.split(slices.flatten(0, 1), _AT_ONCE)]
        found = []
        for k, maps in enumerate(zip(*flat, strict=True)):
            map_ = torch.cat(maps).view(*slices.shape[:2], *maps[0].shape[1:])
            weights = _weights(places, n, self.strides[k], self.map_centres[k]).to(map_)
            found.append(torch.einsum("jn,bnchw->bcjhw", weights, map_).movedim(2, 2 + axis))
        return found

    def _places(self, n: int) -> list[int]:
        """The slices that are looked at; in training some of them, by the global generator."""
        every = self.step
        if self.training:
            every *= self.thinning
        begin = int(torch.randint(every, ())) if self.training else every // 2
        return list(range(min(begin, n - 1), n, every))

    def _of_slices(self, slices: Tensor) -> list[Tensor]:
        """Maps of slices ``(m, 3, h, w)``, cells that lie in the slice."""
        if self.enlarge > 1:
            slices = functional.interpolate(slices, scale_factor=self.enlarge, mode="bilinear")
        shape, coarsest = slices.shape[-2:], self.picture.strides[-1]
        behind = [-(-n // coarsest) * coarsest - n for n in shape]
        pad = (self.before, behind[1], self.before, behind[0])
        padded = functional.pad(slices, pad, "replicate")
        maps, found = self.picture.maps(padded.contiguous(memory_format=torch.channels_last)), []
        for i in self.kept:
            first, (h, w) = self._first(i)[0], (-(-n // self.picture.strides[i]) for n in shape)
            found.append(maps[i][..., first : first + h, first : first + w])
        return found

    def features(self, maps: list[Tensor], weight: Tensor | None = None) -> Tensor:
        """Means and spreads of the maps; what each cell weighs is what of the volume is nearest."""
        # To within the finest cell.
        space = [n * self.strides[0] for n in maps[0].shape[2:]]
        means, spreads = [], []
        for map_, stride, centre in zip(maps, self.strides, self.map_centres, strict=True):
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
        """Those of the picture encoder."""
        return self.picture.tiers()


def _check(enlarge: int) -> None:
    if enlarge not in (1, 2, 4, 8):
        raise OptionError(f"encoder.enlarge: got {enlarge}, expected 1, 2, 4 or 8")


def _edges(n: int, cells: int, stride: int, centre: float) -> list[float]:
    """Where what is nearest to a cell begins and ends, cells + 1 places from 0 to n voxels."""
    between = (min(max(centre + (j + 0.5) * stride, 0.0), float(n)) for j in range(cells - 1))
    return [0.0, *between, float(n)]


def _weights(places: Sequence[int], n: int, stride: int, centre: float) -> Tensor:
    """What each slice weighs in each cell ``(cells, slices)``: what they share; rows sum to 1.

    A slice stands for what is nearest to it, so that slices that were drawn weigh as all would. A
    cell of which nothing lies in the volume takes the last slice.
    """
    cells = torch.tensor(_edges(n, -(-n // stride), stride, centre))
    middles = torch.tensor(places, dtype=torch.float32) + 0.5
    bounds = torch.cat([torch.zeros(1), (middles[1:] + middles[:-1]) / 2, torch.full((1,), n)])
    low = torch.maximum(cells[:-1, None], bounds[:-1])
    shared = (torch.minimum(cells[1:, None], bounds[1:]) - low).clamp_min(0)
    total = shared.sum(1, keepdim=True)
    last = functional.one_hot(torch.tensor(len(places) - 1), len(places)).float()
    return torch.where(total > 0, shared / total.clamp_min(1e-12), last)
