"""Selection of the patches that matter most, whatever the order in which they are seen.

Source: Bergner, Lippert & Mahendran, "Iterative Patch Selection for High-Resolution Image
Recognition", ICLR 2023; exploration and the sub-salient set after DBPS (CVPR 2025). Where we
differ: the published score is a softmax over the patches at hand, averaged over heads, so that what
is selected depends on the order of the patches. Here a patch's score depends on nothing but the
patch, and keeping the best M chunk by chunk selects exactly the best M of all
(``tests/reference/test_selection.py``).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from foveate.errors import NotFinite, OptionError

_PATCHES = 1 << 14


def attention_scores(query: Tensor, key: Tensor, normaliser: Tensor | None = None) -> Tensor:
    """How much any head of any token attends to each patch, one patch at a time.

    The score is the log-sum-exp over tokens and heads of the logits before their softmax: a patch
    counts if one head asks for it. (The plain sum lets heads cancel each other; it is one linear
    score, however many heads there are.) In float64: at the beginning of a training queries are
    small and scores all but equal, and float32 would make ties of patches that differ. A patch
    scores the same to the last bit in any chunk, so equal patches tie.

    Args:
        query: ``(t, h, dk)``, tokens and heads.
        key: ``(n, h, dk)``, patches.
        normaliser: ``(t, h)``, subtracted from the logits of its token and head, from
            `log_normaliser`. Attention does not change when all logits of one head shift together,
            but the score does, and a head that is high everywhere would decide alone. It has to be
            the same for all patches of an image. With that of all patches, the score is the log
            of the published one, up to a constant, without its dependence on order.

    Returns:
        ``(n,)`` float64, without gradient.
    """
    return pooled_scores(attention_logits(query, key), normaliser)


def pooled_scores(logits: Tensor, normaliser: Tensor | None = None) -> Tensor:
    """The scores ``(n,)`` that `attention_scores` makes of logits ``(n, t, h)``."""
    logits = logits.to(torch.float64)
    if normaliser is not None:
        logits = logits - normaliser.detach().to(logits)
    return logits.flatten(1).logsumexp(1)


def scores_among(logits: Tensor) -> Tensor:
    """Scores ``(n,)`` of patches by their attention over all of them, from logits ``(n, t, h)``.

    Float64, but of a part of the patches at a time: what is held is a few numbers for each.
    """
    parts = torch.split(logits, _PATCHES)
    normaliser = torch.stack([part.double().logsumexp(0) for part in parts]).logsumexp(0)
    return torch.cat([pooled_scores(part, normaliser) for part in parts])


def log_normaliser(query: Tensor, key: Tensor) -> Tensor:
    """Log of the sum over patches that softmax divides by, for each token and head.

    Those of several chunks combine by ``torch.logaddexp``.

    Args:
        query: ``(t, h, dk)``.
        key: ``(n, h, dk)``, a reference that is fixed before selection: all patches, in a pass of
            its own, or the cells of the glimpse.

    Returns:
        ``(t, h)`` float64, without gradient.
    """
    return attention_logits(query, key).logsumexp(0)


def attention_logits(query: Tensor, key: Tensor) -> Tensor:
    """Scaled dot products ``(n, t, h)`` in float64, without gradient.

    Summed term by term: a matrix product adds up in another order where there are more rows.
    """
    q, k = query.detach().to(torch.float64), key.detach().to(torch.float64)
    total = q.new_zeros(len(k), *q.shape[:2])
    for d in range(q.shape[-1]):
        total += q[None, ..., d] * k[:, None, :, d]
    return total / math.sqrt(query.shape[-1])


def ranked(scores: Tensor, index: Tensor | None = None) -> Tensor:
    """Positions of all patches from the highest score to the lowest, equals by index.

    Args:
        scores: ``(n,)``; ``-inf`` marks patches that must not be selected, and are left out.
        index: ``(n,)`` which patch each score belongs to; 0, 1, 2… if not given.

    Returns:
        ``(n',)`` positions in `scores`. The best M are the first M, the sub-salient ones of DBPS
        the next S.

    Raises:
        NotFinite: a score is nan or ``+inf``.
    """
    if not (scores < torch.inf).all():
        raise NotFinite("a patch's score is nan or inf: the network diverged or overflowed")
    order = torch.arange(len(scores), device=scores.device) if index is None else index.argsort()
    order = order[scores[order].sort(descending=True, stable=True).indices]
    return order[~scores[order].isneginf()]


class TopM:
    """The best M of all patches, from scores that arrive in chunks and any order.

    Equal scores go by index, so that neither order nor chunks matter. Memory is that of M scores.

    Args:
        m: patches to select.
        sub_salient: how many of the next best to keep beside them.
    """

    def __init__(self, *, m: int, sub_salient: int = 0) -> None:
        if m < 1 or sub_salient < 0:
            raise OptionError(f"m {m}, sub_salient {sub_salient}: need m >= 1, sub_salient >= 0")
        self.m, self._room = m, m + sub_salient
        self._score: Tensor | None = None
        self._index: Tensor | None = None

    def add(self, score: Tensor, index: Tensor) -> None:
        """Offer patches.

        Args:
            score: ``(c,)``; ``-inf`` marks padding.
            index: ``(c,)`` int64, which patches of the image they are; each is offered once.

        Raises:
            NotFinite: a score is nan or ``+inf``.
        """
        score = score.detach()
        if self._score is not None and self._index is not None:
            score, index = torch.cat([self._score, score]), torch.cat([self._index, index])
        best = ranked(score, index)[: self._room]
        self._score, self._index = score[best], index[best]

    def selected(self) -> Tensor:
        """Indices ``(m',)`` of the best patches, best first; fewer than m if fewer were offered."""
        return self._all()[: self.m]

    def sub_salient(self) -> Tensor:
        """Indices ``(s',)`` of the next best, best first."""
        return self._all()[self.m :]

    def _all(self) -> Tensor:
        return torch.zeros(0, dtype=torch.int64) if self._index is None else self._index


def with_exploration(
    scores: Tensor,
    m: int,
    *,
    explore: float,
    temperature: float = 1.0,
    uniform: float = 0.5,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Select m patches, some of them by chance, so that an overlooked patch gets a gradient too.

    ``ceil(explore * m)`` patches are drawn without replacement from all that are not among the best
    others, with probability ``(1 - uniform) * softmax(scores / temperature)`` plus a share of
    `uniform` that is the same for each.

    Args:
        scores: ``(n,)`` of all patches; ``-inf`` marks padding.
        m: patches to select; all are if there are no more.
        explore: share of them that is drawn, 0…1. At 0 the selection is the best m.
        temperature: of the softmax; high draws evenly.
        uniform: share of the probability that is spread evenly, 0…1.
        generator: of the draws; None for torch's global one.

    Returns:
        Indices ``(min(m, n'),)``: the best, best first, then the drawn ones.

    Raises:
        NotFinite: a score is nan or ``+inf``.
        OptionError: explore or uniform is not in 0…1, or temperature is not positive.
    """
    if not (0 <= explore <= 1 and 0 <= uniform <= 1 and temperature > 0):
        raise OptionError(
            f"explore {explore}, uniform {uniform}, temperature {temperature}: "
            "need 0 <= explore, uniform <= 1 and temperature > 0"
        )
    order = ranked(scores)
    m = min(m, len(order))
    drawn = 0 if m == len(order) else math.ceil(round(explore * m, 9))
    best, others = order[: m - drawn], order[m - drawn :]
    if drawn == 0:
        return best
    logits = scores.detach()[others].to(torch.float64) / temperature
    p = (1 - uniform) * logits.softmax(0) + uniform / len(others)
    # Where uniform is 0, patches far below the best may have to fill the last slots.
    picked = torch.multinomial(p.clamp_min(1e-100).cpu(), drawn, generator=generator)
    return torch.cat([best, others[picked.to(others.device)]])
