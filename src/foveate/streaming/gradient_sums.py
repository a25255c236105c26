"""Sum the gradients of tiles."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor


class GradientSums:
    """Sums of gradients over tiles, in single precision where parameters are in half precision.

    Args:
        parameters: the parameters, then the constants that are computed from them.
    """

    def __init__(self, parameters: Sequence[Shaped[Tensor, " ..."]]) -> None:
        self.parameters = list(parameters)
        self._sums: list[Tensor | None] = [None] * len(parameters)

    def add(self, gradients: Sequence[Shaped[Tensor, " ..."] | None]) -> None:
        """Add the gradients of one tile: for each parameter a tensor of its shape, or None."""
        for k, new in enumerate(gradients):
            if new is None:
                continue
            old = self._sums[k]
            wide = torch.promote_types(new.dtype, torch.float32)
            self._sums[k] = new.to(wide) if old is None else old.add_(new)

    def pass_to_parameters(self, constants: Sequence[Shaped[Tensor, " ..."]]) -> None:
        """Back-propagate the sums of the constants to the parameters they are computed from.

        Args:
            constants: the constants with their graphs, of any shapes, in the order of the last
                sums.
        """
        first = len(self.parameters) - len(constants)
        sums = [(c, s) for c, s in zip(constants, self._sums[first:], strict=True) if s is not None]
        del self.parameters[first:], self._sums[first:]
        if sums and self.parameters:
            outputs, gradients = zip(*((c, s.to(c.dtype)) for c, s in sums), strict=True)
            self.add(torch.autograd.grad(outputs, self.parameters, gradients, allow_unused=True))

    def results(self) -> list[Shaped[Tensor, " ..."]]:
        """Return the sums in the dtypes of the parameters; zeros where nothing was added."""
        return [
            torch.zeros_like(p) if total is None else total.to(p.dtype)
            for total, p in zip(self._sums, self.parameters, strict=True)
        ]
