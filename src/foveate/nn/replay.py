"""Two-pass replay: the exact gradient over any number of patches in the memory of one chunk.

Pass one encodes chunk after chunk without storing activations. When the gradient with respect to
the features arrives, pass two encodes each chunk again, with gradient, and back-propagates its
part. Parameters receive their gradients through autograd, so any loop, optimiser, accumulation and
DDP work. Random layers (dropout, stochastic depth, augmentation inside `load`) draw the same again:
the state of the generator is stored for each chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn


def replay(
    encoder: Callable[[Float[Tensor, "m c *space"]], Float[Tensor, "m d"]],
    parameters: Sequence[nn.Parameter],
    load: Callable[[int], Float[Tensor, "m c *space"]],
    n_chunks: int,
) -> Float[Tensor, "rows d"]:
    """Encode ``load(0) … load(n_chunks - 1)`` and concatenate, in bounded memory.

    Args:
        encoder: function from patches ``(m, c, *space)`` to embeddings ``(m, d)``; it must treat
            patches independently of each other (no batch norm in training mode).
        parameters: all parameters that `encoder` learns.
        load: function that returns the i-th chunk, ``(m, c, *space)``. It is called twice, and must
            return the same chunk where the generator is in the same state.
        n_chunks: number of chunks, at least 1.

    Returns:
        Embeddings ``(sum of m, d)``, with the gradient that one pass over all chunks would have.
    """
    learnt = [p for p in parameters if p.requires_grad]
    result: Tensor = _Replay.apply(encoder, load, n_chunks, *learnt)
    return result


class _Replay(torch.autograd.Function):
    """Encode chunks without activations in `forward`, and again with them in `backward`."""

    @staticmethod
    def forward(
        ctx: Any,
        encoder: Callable[[Float[Tensor, "m c *space"]], Float[Tensor, "m d"]],
        load: Callable[[int], Float[Tensor, "m c *space"]],
        n_chunks: int,
        *parameters: Shaped[Tensor, " ..."],
    ) -> Float[Tensor, "rows d"]:
        ctx.encoder, ctx.load, ctx.parameters = encoder, load, parameters
        ctx.states, ctx.lengths = [], []
        device = parameters[0].device.type if parameters else "cpu"
        ctx.device = device
        ctx.autocast = (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        outputs = []
        for i in range(n_chunks):
            ctx.states.append(_generator_states(device))
            output = encoder(load(i))
            ctx.lengths.append(len(output))
            outputs.append(output)
        return torch.cat(outputs)

    @staticmethod
    def backward(
        ctx: Any, gradient: Float[Tensor, "rows d"]
    ) -> tuple[Shaped[Tensor, " ..."] | None, ...]:
        totals: list[Tensor | None] = [None] * len(ctx.parameters)
        enabled, dtype = ctx.autocast
        outside = _generator_states(ctx.device)
        parts = torch.split(gradient, ctx.lengths)
        try:
            for i, part in enumerate(parts):
                if not part.any():
                    continue
                _restore(ctx.states[i], ctx.device)
                with torch.enable_grad(), torch.autocast(ctx.device, dtype, enabled=enabled):
                    output = ctx.encoder(ctx.load(i))
                gradients = torch.autograd.grad(output, ctx.parameters, part, allow_unused=True)
                totals = [_add(total, new) for total, new in zip(totals, gradients, strict=True)]
        finally:
            _restore(outside, ctx.device)
        return (None, None, None, *totals)


def _add(
    total: Float[Tensor, " *shape"] | None, new: Float[Tensor, " *shape"] | None
) -> Float[Tensor, " *shape"] | None:
    """Add a gradient to a sum of the same shape, in place; None stands for zeros."""
    if total is None or new is None:
        return new if total is None else total
    return total.add_(new)


def _generator_states(
    device: str,
) -> tuple[Shaped[Tensor, " _bytes"], Shaped[Tensor, " _bytes"] | None]:
    """Read the states of the generators of the CPU and of the GPU, each ``(bytes,)``."""
    on_device = torch.cuda.get_rng_state() if device == "cuda" else None
    return torch.get_rng_state(), on_device


def _restore(
    states: tuple[Shaped[Tensor, " _bytes"], Shaped[Tensor, " _bytes"] | None], device: str
) -> None:
    """Set the generators to states from `_generator_states`."""
    torch.set_rng_state(states[0])
    if device == "cuda" and states[1] is not None:
        torch.cuda.set_rng_state(states[1])
