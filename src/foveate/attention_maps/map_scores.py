"""Scores of cells from the maps of an encoder, and the lattices of such maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from foveate.encoders.base import AbstractEncoder
from foveate.geometry import length_um_from_px
from foveate.geometry.lattice import Lattice, lattice_um_from_map

CONVOLUTIONS: Mapping[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
"""Convolution layer for images of 2 and of 3 axes."""


def lay_pixel_lattice(shape: Sequence[int], spacing_um: float) -> Lattice:
    """Return the lattice whose cells are the pixels of an image of a shape and spacing.

    Args:
        shape: pixels per axis.
        spacing_um: side of a pixel.
    """
    n = len(shape)
    return Lattice((0.0,) * n, (spacing_um,) * n, tuple(shape))


def lay_map_lattice(
    encoder: AbstractEncoder, stage: int, shape: Sequence[int], spacing_um: float
) -> Lattice:
    """Return the lattice of the cells of an encoder's map, from the corner of the image.

    Args:
        encoder: the encoder that made the map.
        stage: index of the map, from fine to coarse.
        shape: cells of the map along each axis.
        spacing_um: spacing of the image that the encoder was given.
    """
    return lattice_um_from_map(
        shape,
        stride_px=encoder.strides[stage],
        centre_px=encoder.map_centres_px[stage],
        spacing_um=spacing_um,
    )


def choose_stage(encoder: AbstractEncoder, spacing_um: float, side_um: float) -> int:
    """Return the index of the coarsest map whose cells are no larger than a side.

    Where no map has such small cells, the finest is chosen.

    Args:
        encoder: the encoder that makes the maps.
        spacing_um: spacing of the encoder's input.
        side_um: largest side of a cell.
    """
    largest_um = side_um * (1 + 1e-6)
    cells_um = [length_um_from_px(float(s), spacing_um) for s in encoder.strides]
    fitting = [i for i, cell_um in enumerate(cells_um) if cell_um <= largest_um]
    return fitting[-1] if fitting else 0


class MapScores(nn.Module):
    """A network that scores each cell by a chosen map of the encoder and all coarser maps.

    All scores are 0 at the beginning, so that attention begins at its prior.

    Args:
        dims: channels of the encoder's maps, from fine to coarse.
        axes: axes of the images.
        hidden: channels in which maps are added up.
        levels: number of magnifications, which have a score layer each.
    """

    def __init__(
        self, dims: Sequence[int], *, axes: int = 2, hidden: int = 32, levels: int = 1
    ) -> None:
        super().__init__()
        conv = CONVOLUTIONS[axes]
        self.project = nn.ModuleList(conv(d, hidden, 1) for d in dims)
        self.score = nn.ModuleList(conv(hidden, 1, 1) for _ in range(levels))
        for parameter in self.score.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, maps: list[Float[Tensor, "b _c *_cells"]], stage: int, level: int = 0
    ) -> Float[Tensor, " b *space"]:
        """Score the cells of one map.

        Args:
            maps: the encoder's maps ``(b, c, *space)``, from fine to coarse.
            stage: index of the map whose cells are scored.
            level: index of the magnification that cells are scored for.

        Returns:
            scores ``(b, *space)`` in float32.
        """
        # From coarse to fine, so that only one map is enlarged to the finest size.
        mixed = self.project[-1](maps[-1])
        for i in reversed(range(stage, len(maps) - 1)):
            fine = self.project[i](maps[i])
            mixed = fine + functional.interpolate(mixed, fine.shape[2:], mode="nearest")
        score: Tensor = self.score[level](functional.relu(mixed))[:, 0]
        return score.float()
