"""Patches of one constant colour are embedded once: exact, and black borders cost nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_MOST_COLOURS = 4096


class EmbedOnce:
    """An encoder that meets each constant patch once.

    Within a call, all constant patches of one colour share one row, so gradients are those of
    embedding each (for an encoder that treats patches independently and draws nothing at random).
    Without gradient the rows of up to 4,096 colours are kept from call to call as well. Build one
    per forward pass.

    Args:
        encoder: maps ``(m, c, *space)`` to ``(m, d)``.
    """

    def __init__(self, encoder: Callable[[Tensor], Tensor]) -> None:
        self._encoder = encoder
        self._known: dict[tuple[float, ...], Tensor] = {}
        self.n_embedded = 0

    def __call__(self, patches: Tensor) -> Tensor:
        """Embeddings ``(m, d)`` of patches ``(m, c, *space)``."""
        # Not flattened: of channels that lie last, that is a copy.
        space = tuple(range(2, patches.ndim))
        constant = (patches.amax(space) == patches.amin(space)).all(1)
        if int(constant.sum()) < (2 if torch.is_grad_enabled() else 1):
            return self._embed(patches)
        corner = patches
        for _ in space:
            corner = corner[..., 0]
        colours, of_colour = torch.unique(corner[constant], dim=0, return_inverse=True)
        where = constant.nonzero()[:, 0]
        first = torch.stack([where[of_colour == j][0] for j in range(len(colours))])
        ground = self._grounds(patches[first], colours)
        f = ground.new_zeros(len(patches), ground.shape[1])
        f = f.index_put((where,), ground[of_colour])
        if bool(constant.all()):
            return f
        varied = (~constant).nonzero()[:, 0]
        return f.index_put((varied,), self._embed(patches[varied]).to(f.dtype))

    def _grounds(self, patches: Tensor, colours: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return self._embed(patches)
        keys = [tuple(colour) for colour in colours.tolist()]
        rows = {key: self._known[key] for key in keys if key in self._known}
        new = [j for j, key in enumerate(keys) if key not in rows]
        if new:
            rows |= {keys[j]: row for j, row in zip(new, self._embed(patches[new]), strict=True)}
            if len(self._known) + len(new) <= _MOST_COLOURS:
                self._known |= rows
        return torch.stack([rows[key] for key in keys])

    def _embed(self, patches: Tensor) -> Tensor:
        self.n_embedded += len(patches)
        return self._encoder(patches)
