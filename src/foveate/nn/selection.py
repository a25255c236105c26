"""Selection of the patches of highest score, independent of the order in which they are read.

Source: Bergner, Lippert & Mahendran, "Iterative Patch Selection for High-Resolution Image
Recognition", ICLR 2023; exploration and the sub-salient set after DBPS (CVPR 2025). Where we
differ: the published score is a softmax over the patches at hand, averaged over heads, so that what
is selected depends on the order of the patches. Here a patch is scored by its attention over all
patches of its image, whatever their order (``tests/reference/test_selection.py``).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from foveate.errors import NotFinite, OptionError

_PATCHES = 1 << 14
"""Patches that are scored at a time."""


def normalised_scores(logits: Float[Tensor, "n t h"]) -> Float[Tensor, " n"]:
    """Score patches by their attention over all of them, of any token and head.

    The score is the log of the attention of all tokens and heads together: a patch counts if one
    head asks for it. (The plain sum of logits lets heads cancel each other; it is one linear score,
    however many heads there are.) A head whose logits are high everywhere does not decide alone.

    The sum is in float64: at the beginning of a training scores are nearly equal, and float32 would
    make ties of patches that differ. Memory grows by a few numbers for each patch.

    Args:
        logits: ``(n, t, h)`` of n patches, t tokens and h heads, before their softmax.

    Returns:
        ``(n,)`` float64.
    """
    parts = torch.split(logits, _PATCHES)
    normaliser = torch.stack([part.double().logsumexp(0) for part in parts]).logsumexp(0)
    return torch.cat([(part.double() - normaliser).flatten(1).logsumexp(1) for part in parts])


def attention_logits(
    query: Float[Tensor, "t h dk"], key: Float[Tensor, "n h dk"]
) -> Float[Tensor, "n t h"]:
    """Compute the scaled dot products of queries and keys, bit by bit the same in any chunk.

    They are summed term by term, as the order of summation in a matrix product depends on the
    number of rows.

    Args:
        query: queries of tokens, ``(t, h, dk)``.
        key: keys of patches, ``(n, h, dk)``.

    Returns:
        Logits ``(n, t, h)`` in float64, without gradient.
    """
    q, k = query.detach().to(torch.float64), key.detach().to(torch.float64)
    total = q.new_zeros(len(k), *q.shape[:2])
    for d in range(q.shape[-1]):
        total += q[None, ..., d] * k[:, None, :, d]
    return total / math.sqrt(query.shape[-1])


def rank_patches(scores: Float[Tensor, " n"]) -> Int[Tensor, " m"]:
    """Sort patches from the highest score to the lowest, and those of equal score by index.

    Args:
        scores: scores of patches, ``(n,)``; ``-inf`` marks patches that are left out.

    Returns:
        Positions in `scores`, ``(n',)``. The first M are the best, the next S the sub-salient ones
        of DBPS.

    Raises:
        NotFinite: a score is nan or ``+inf``.
    """
    if not (scores < torch.inf).all():
        raise NotFinite(
            "a patch's score is nan or inf: the network diverged or overflowed; train with a lower "
            "--train.lr, or with --train.precision 32-true"
        )
    order = scores.sort(descending=True, stable=True).indices
    return order[~scores[order].isneginf()]


def select_with_exploration(
    scores: Float[Tensor, " n"],
    m: int,
    *,
    explore: float,
    temperature: float = 1.0,
    uniform: float = 0.5,
    generator: torch.Generator | None = None,
) -> Int[Tensor, " selected"]:
    """Select the best patches and some at random, so that an overlooked patch gets a gradient too.

    The best ``m - ceil(explore * m)`` are selected. The others are drawn without replacement from
    the remaining patches: with probability `uniform` evenly, else by ``softmax(scores /
    temperature)``.

    Args:
        scores: scores of all patches, ``(n,)``; ``-inf`` marks padding.
        m: number of patches to select; all n' valid ones if there are no more.
        explore: share of the selected patches that is drawn, from 0 to 1. With 0 they are the best.
        temperature: temperature of the softmax; a high one draws evenly.
        uniform: share of the probability that is spread evenly, from 0 to 1.
        generator: source of the draws; None for torch's global one.

    Returns:
        Indices ``(min(m, n'),)``: the best patches, best first, then the drawn ones.

    Raises:
        NotFinite: a score is nan or ``+inf``.
        OptionError: explore or uniform is not in 0…1, or temperature is not positive.
    """
    if not (0 <= explore <= 1 and 0 <= uniform <= 1 and temperature > 0):
        raise OptionError(
            f"explore {explore}, uniform {uniform}, temperature {temperature}: "
            "need 0 <= explore, uniform <= 1 and temperature > 0"
        )
    order = rank_patches(scores)
    m = min(m, len(order))
    drawn = 0 if m == len(order) else math.ceil(round(explore * m, 9))
    best, others = order[: m - drawn], order[m - drawn :]
    if drawn == 0:
        return best
    logits = scores.detach()[others].to(torch.float64) / temperature
    p = (1 - uniform) * logits.softmax(0) + uniform / len(others)
    # Where uniform is 0, the probability of patches far below the best may round to 0, but they may
    # be needed to fill the last places.
    picked = torch.multinomial(p.clamp_min(1e-100).cpu(), drawn, generator=generator)
    return torch.cat([best, others[picked.to(others.device)]])
