"""Patches of one constant colour are embedded once: exact, and most of a sparse image is ground."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class EmbedOnce:
    """An encoder that meets each constant patch once.

    Within a call, all constant patches of one colour share one row, so gradients are those of
    embedding each (for an encoder that treats patches independently and draws nothing at random).
    Without gradient the rows are kept from call to call as well. Build one per forward pass.

    Args:
        encoder: maps ``(m, c, h, w)`` to ``(m, d)``.
    """

    def __init__(self, encoder: Callable[[Tensor], Tensor]) -> None:
        self._encoder = encoder
        self._known: dict[tuple[float, ...], Tensor] = {}
        self.n_embedded = 0

    def __call__(self, patches: Tensor) -> Tensor:
        """Embeddings ``(m, d)`` of patches ``(m, c, h, w)``."""
        flat = patches.flatten(2)
        constant = (flat.amax(-1) == flat.amin(-1)).all(1)
        if int(constant.sum()) < (2 if torch.is_grad_enabled() else 1):
            return self._embed(patches)
        colours, of_colour = torch.unique(flat[constant, :, 0], dim=0, return_inverse=True)
        first = torch.stack([(of_colour == j).nonzero()[0, 0] for j in range(len(colours))])
        ground = self._grounds(patches[constant][first], colours)
        f = ground.new_zeros(len(patches), ground.shape[1])
        f = f.index_put((constant.nonzero()[:, 0],), ground[of_colour])
        if bool(constant.all()):
            return f
        varied = (~constant).nonzero()[:, 0]
        return f.index_put((varied,), self._embed(patches[varied]).to(f.dtype))

    def _grounds(self, patches: Tensor, colours: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return self._embed(patches)
        keys = [tuple(colour) for colour in colours.tolist()]
        new = [j for j, key in enumerate(keys) if key not in self._known]
        if new:
            for j, row in zip(new, self._embed(patches[new]), strict=True):
                self._known[keys[j]] = row
        return torch.stack([self._known[key] for key in keys])

    def _embed(self, patches: Tensor) -> Tensor:
        self.n_embedded += len(patches)
        return self._encoder(patches)
