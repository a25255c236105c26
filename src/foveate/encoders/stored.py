"""Vectors that another program has computed of patches: nothing is encoded here."""

from __future__ import annotations

from typing import Annotated

from jaxtyping import Float
from torch import Tensor

from foveate.encoders.base import ProjectedEncoder, Projection
from foveate.errors import ArrayError
from foveate.parts.options import Width, Within


class StoredEncoder(ProjectedEncoder):
    """The encoder of files of features: it projects their vectors, and sees no pixels.

    Chosen by itself where the table names files of features.

    Args:
        stored_dim: how many numbers a vector has; follows the files.
        dim: length of the vector that features are projected to.
    """

    reads_pixels = False

    def __init__(
        self, *, stored_dim: Annotated[int, Within(1, 1 << 16)] = 1, dim: Width = 256
    ) -> None:
        super().__init__()
        self.strides, self.map_dims, self.map_centres_px = (1,), (stored_dim,), (0.5,)
        self.dim = dim
        self.feature_groups = (stored_dim,)
        self.mixed = Projection(stored_dim, dim)

    def maps(self, x: Float[Tensor, "b 3 y x"]) -> list[Float[Tensor, "b _c *_cells"]]:
        """Refuse pixels.

        Raises:
            ArrayError: always.
        """
        raise ArrayError(
            f"{x.shape[-2]} x {x.shape[-1]} pixels: encoder 'stored' has no network for them; give "
            "files of features"
        )
