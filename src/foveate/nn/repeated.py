"""Patches of one constant colour are embedded once: exact, and black borders cost nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

_MAX_COLOURS = 4096
"""Colours whose embeddings are stored from call to call."""


class EmbedOnce:
    """An encoder that embeds all patches of one constant colour once.

    Within a call, all constant patches of one colour share one embedding. Gradients are those of
    embedding each patch, if the encoder treats patches independently and draws nothing at random.
    Without gradient the embeddings of up to 4,096 colours are stored from call to call as well.
    Make one object per forward pass.

    Args:
        encoder: function from patches ``(m, c, *space)`` to embeddings ``(m, d)``.

    Attributes:
        n_embedded: number of patches that the encoder has embedded.
    """

    def __init__(
        self, encoder: Callable[[Float[Tensor, "m c *space"]], Float[Tensor, "m d"]]
    ) -> None:
        self._encoder = encoder
        self._cache: dict[tuple[float, ...], Tensor] = {}
        self.n_embedded = 0

    def __call__(self, patches: Float[Tensor, "m c *space"]) -> Float[Tensor, "m d"]:
        """Compute the embeddings ``(m, d)`` of patches ``(m, c, *space)``."""
        # Not flattened: in the memory format channels-last, flattening would copy.
        space = tuple(range(2, patches.ndim))
        constant = (patches.amax(space) == patches.amin(space)).all(1)
        if int(constant.sum()) < (2 if torch.is_grad_enabled() else 1):
            return self._embed(patches)
        corner = patches
        for _ in space:
            corner = corner[..., 0]
        colours, colour_index = torch.unique(corner[constant], dim=0, return_inverse=True)
        constant_rows = constant.nonzero()[:, 0]
        first = torch.stack([constant_rows[colour_index == j][0] for j in range(len(colours))])
        by_colour = self._embed_colours(patches[first], colours)
        f = by_colour.new_zeros(len(patches), by_colour.shape[1])
        f = f.index_put((constant_rows,), by_colour[colour_index])
        if bool(constant.all()):
            return f
        other_rows = (~constant).nonzero()[:, 0]
        return f.index_put((other_rows,), self._embed(patches[other_rows]).to(f.dtype))

    def _embed_colours(
        self, patches: Float[Tensor, "u c *space"], colours: Float[Tensor, "u c"]
    ) -> Float[Tensor, "u d"]:
        """Embed one patch ``(u, c, *space)`` of each colour ``(u, c)``, or look it up."""
        if torch.is_grad_enabled():
            return self._embed(patches)
        keys = [tuple(colour) for colour in colours.tolist()]
        rows = {key: self._cache[key] for key in keys if key in self._cache}
        new = [j for j, key in enumerate(keys) if key not in rows]
        if new:
            rows |= {keys[j]: row for j, row in zip(new, self._embed(patches[new]), strict=True)}
            if len(self._cache) + len(new) <= _MAX_COLOURS:
                self._cache |= rows
        return torch.stack([rows[key] for key in keys])

    def _embed(self, patches: Float[Tensor, "m c *space"]) -> Float[Tensor, "m d"]:
        """Embed patches ``(m, c, *space)`` to ``(m, d)``, and count them."""
        self.n_embedded += len(patches)
        return self._encoder(patches)
