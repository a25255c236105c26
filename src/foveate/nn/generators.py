"""Random numbers from a generator for each image, so that its draws depend on no other image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from foveate.errors import ArrayError

Generators = Sequence[torch.Generator]
"""One for each image of a batch, or for each row of a tensor; the same one may stand for several
rows, which then draw in turn."""


def seeded(seeds: Sequence[int]) -> list[torch.Generator]:
    """Make a generator for each seed."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def spawned(generators: Generators) -> list[torch.Generator]:
    """Make one more generator of each, for draws of another kind."""
    return seeded([int(torch.randint(1 << 62, (), generator=each)) for each in generators])


def uniform(
    shape: tuple[int, int],
    generators: Generators | None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Float[Tensor, "r n"]:
    """Draw numbers from [0, 1), row by row.

    A row is the beginning of a longer row that its generator would give, and takes as much from it
    however long it is: how far rows are padded changes nothing.

    Args:
        shape: ``(r, n)``.
        generators: one per row; None for torch's global one.
        dtype: dtype of the numbers.
        device: device of the numbers.

    Returns:
        The numbers ``(r, n)``.

    Raises:
        ArrayError: the number of generators is not r.
    """
    if generators is None:
        return torch.rand(*shape, dtype=dtype, device=device)
    if len(generators) != shape[0]:
        raise ArrayError(f"{len(generators)} generators for {shape[0]} rows, expected one each")
    rows = [torch.rand(shape[1], dtype=dtype, generator=each) for each in spawned(generators)]
    return torch.stack(rows).to(device) if rows else torch.empty(shape, dtype=dtype, device=device)


def hidden_share(
    valid: Bool[Tensor, "r n"], generators: Generators | None, *, min_share: float = 0.5
) -> Bool[Tensor, "r n"]:
    """Hide a random part of the valid entries of each row.

    Args:
        valid: ``(r, n)`` bool; what follows the last valid entry of a row changes nothing.
        generators: one per row; None for torch's global one.
        min_share: share that stays; how much does is drawn between it and 1.

    Returns:
        ``(r, n)`` bool, True on entries that stay: at least one where one is valid.
    """
    r, n = valid.shape
    numbers = uniform((r, n + 1), generators, dtype=torch.float64, device=valid.device)
    order = numbers[:, 1:].masked_fill(~valid, 2.0).argsort(1).argsort(1)
    count = valid.sum(1, keepdim=True)
    stay = (count * (min_share + (1 - min_share) * numbers[:, :1])).round().clamp_min(1)
    return valid & (order < stay)
