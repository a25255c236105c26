"""Selection of the patches of highest score, independent of the order in which they are read.

Source: Bergner, Lippert & Mahendran, "Iterative Patch Selection for High-Resolution Image
Recognition", ICLR 2023; exploration and the sub-salient set after DBPS (CVPR 2025). Where we
differ: the published score is a softmax over the patches of a chunk, averaged over heads, so that
the selection depends on the order of the patches. Here the score of a patch depends on that patch
alone, and keeping the best M chunk by chunk selects exactly the best M of all
(``tests/reference/test_selection.py``).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from foveate.errors import NotFinite, OptionError

_PATCHES = 1 << 14
"""Patches that are scored at a time."""


def attention_scores(query: Tensor, key: Tensor, normaliser: Tensor | None = None) -> Tensor:
    """Score each patch by how much any attention head of any query token attends to it.

    The score is the log-sum-exp over tokens and heads of the logits before their softmax: it is
    high if one head attends to the patch. (In a plain sum heads could cancel each other; it would
    be one linear score, however many heads there are.) Scores are in float64: when a training
    begins, queries are small and scores nearly equal, and float32 would make ties of different
    patches. A patch has the same score to the last bit in any chunk, so equal patches tie.

    Args:
        query: queries of tokens, ``(t, h, dk)``.
        key: keys of patches, ``(n, h, dk)``.
        normaliser: logarithms from `log_normaliser`, ``(t, h)``, to subtract from the logits of
            each token and head; None subtracts nothing. Attention does not change when all logits
            of one head shift together, but the score does, and a head that is high everywhere would
            decide alone. All patches of an image need the same normaliser. With that of all
            patches, the score is the log of the published one, up to a constant, without its
            dependence on order.

    Returns:
        Scores ``(n,)`` in float64, without gradient.
    """
    return pool_scores(attention_logits(query, key), normaliser)


def pool_scores(logits: Tensor, normaliser: Tensor | None = None) -> Tensor:
    """Compute the scores of `attention_scores` from logits.

    Args:
        logits: attention logits of patches, ``(n, t, h)``.
        normaliser: logarithms to subtract, ``(t, h)``; None subtracts nothing.

    Returns:
        Scores ``(n,)`` in float64.
    """
    logits = logits.to(torch.float64)
    if normaliser is not None:
        logits = logits - normaliser.detach().to(logits)
    return logits.flatten(1).logsumexp(1)


def normalised_scores(logits: Tensor) -> Tensor:
    """Compute the scores of patches, normalised over all of them.

    The patches are converted to float64 a block at a time, to bound memory.

    Args:
        logits: attention logits of all patches of an image, ``(n, t, h)``.

    Returns:
        Scores ``(n,)`` in float64.
    """
    parts = torch.split(logits, _PATCHES)
    normaliser = torch.stack([part.double().logsumexp(0) for part in parts]).logsumexp(0)
    return torch.cat([pool_scores(part, normaliser) for part in parts])


def log_normaliser(query: Tensor, key: Tensor) -> Tensor:
    """Compute the log of the softmax's denominator over patches, for each token and head.

    Those of several chunks combine by ``torch.logaddexp``.

    Args:
        query: queries of tokens, ``(t, h, dk)``.
        key: keys of reference patches, ``(n, h, dk)``, which are fixed before selection: all
            patches, in a pass of its own, or the cells of the glimpse.

    Returns:
        Logarithms ``(t, h)`` in float64, without gradient.
    """
    return attention_logits(query, key).logsumexp(0)


def attention_logits(query: Tensor, key: Tensor) -> Tensor:
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


def rank_patches(scores: Tensor, index: Tensor | None = None) -> Tensor:
    """Sort patches from the highest score to the lowest, and those of equal score by index.

    Args:
        scores: scores of patches, ``(n,)``; ``-inf`` marks patches that are left out.
        index: number of each score's patch, ``(n,)``; 0, 1, 2… by default.

    Returns:
        Positions in `scores`, ``(n',)``. The first M are the best, the next S the sub-salient ones
        of DBPS.

    Raises:
        NotFinite: a score is nan or ``+inf``.
    """
    if not (scores < torch.inf).all():
        raise NotFinite("a patch's score is nan or inf: the network diverged or overflowed")
    order = torch.arange(len(scores), device=scores.device) if index is None else index.argsort()
    order = order[scores[order].sort(descending=True, stable=True).indices]
    return order[~scores[order].isneginf()]


class TopM:
    """A running selection of the best M patches, from scores that arrive in chunks, in any order.

    Equal scores are sorted by index, so that neither order nor chunks matter. Memory is that of M
    scores.

    Args:
        m: number of patches to select.
        sub_salient: number of the next best patches to select beside them.
    """

    def __init__(self, *, m: int, sub_salient: int = 0) -> None:
        if m < 1 or sub_salient < 0:
            raise OptionError(f"m {m}, sub_salient {sub_salient}: need m >= 1, sub_salient >= 0")
        self.m, self._capacity = m, m + sub_salient
        self._score: Tensor | None = None
        self._index: Tensor | None = None

    def add(self, score: Tensor, index: Tensor) -> None:
        """Add a chunk of patches to the candidates.

        Args:
            score: scores of the chunk, ``(c,)``; ``-inf`` marks padding.
            index: numbers of its patches in the image, ``(c,)`` int64; each is added once.

        Raises:
            NotFinite: a score is nan or ``+inf``.
        """
        score = score.detach()
        if self._score is not None and self._index is not None:
            score, index = torch.cat([self._score, score]), torch.cat([self._index, index])
        best = rank_patches(score, index)[: self._capacity]
        self._score, self._index = score[best], index[best]

    def selected(self) -> Tensor:
        """Return the indices of the best patches, ``(m',)``, best first; m' < m if fewer came."""
        return self._all()[: self.m]

    def sub_salient(self) -> Tensor:
        """Return the indices of the next best patches, ``(s',)``, best first."""
        return self._all()[self.m :]

    def _all(self) -> Tensor:
        return torch.zeros(0, dtype=torch.int64) if self._index is None else self._index


def select_with_exploration(
    scores: Tensor, m: int, *, explore: float, temperature: float = 1.0, uniform: float = 0.5
) -> Tensor:
    """Select the best patches and some at random, so that an overlooked patch gets a gradient too.

    The best ``m - ceil(explore * m)`` are selected. The others are drawn without replacement from
    the remaining patches: with probability `uniform` evenly, else by ``softmax(scores /
    temperature)``. Draws come from torch's global generator.

    Args:
        scores: scores of all patches, ``(n,)``; ``-inf`` marks padding.
        m: number of patches to select; all n' valid ones if there are no more.
        explore: share of the selected patches that is drawn, from 0 to 1. With 0 they are the best.
        temperature: temperature of the softmax; a high one draws evenly.
        uniform: share of the probability that is spread evenly, from 0 to 1.

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
    return torch.cat([best, others[torch.multinomial(p.clamp_min(1e-100), drawn)]])
