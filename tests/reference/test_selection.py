"""Selecting chunk by chunk, in any order, equals selecting from all patches at once."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from foveate.errors import NotFinite, OptionError
from foveate.nn.selection import (
    attention_logits,
    normalised_scores,
    rank_patches,
    select_with_exploration,
)

N, M, TOKENS, HEADS, DK = 300, 40, 4, 8, 16
CHUNKS = (1, 7, 64, N)


def _patches() -> tuple[Tensor, Tensor]:
    """Draw queries, and keys of which each occurs up to three times, so that scores tie."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(TOKENS, HEADS, DK, generator=generator)
    key = torch.randn(N, HEADS, DK, generator=generator)
    again = torch.randint(N, (N // 2,), generator=generator)
    key[torch.randperm(N, generator=generator)[: N // 2]] = key[again]
    return query, key


def _scores(query: Tensor, key: Tensor, chunk: int = N) -> Tensor:
    """Return the scores of all patches from logits that are computed in chunks."""
    return normalised_scores(
        torch.cat([attention_logits(query, part) for part in key.split(chunk)])
    )


def _ours(query: Tensor, key: Tensor, order: Tensor, chunk: int) -> list[int]:
    """Select as the product does, from patches that arrive in any order."""
    back = order.argsort()
    scores = _scores(query, key[order], chunk)[back]
    return rank_patches(scores)[:M].tolist()


def _published(query: Tensor, key: Tensor, order: Tensor, chunk: int) -> list[int]:
    """Select by a softmax over the buffer and the chunk, averaged over heads and tokens."""
    buffer = order[:M]
    for part in order[M:].split(chunk):
        buffer = torch.cat([buffer, part])
        logits = torch.einsum("thd,nhd->thn", query, key[buffer]) / math.sqrt(DK)
        buffer = buffer[logits.softmax(-1).mean((0, 1)).topk(M).indices]
    return buffer.tolist()


def _outcomes(select: Callable[..., list[int]]) -> set[tuple[int, ...]]:
    """Return the selections of ten shuffles and several chunk sizes."""
    query, key = _patches()
    selected = set()
    for seed in range(10):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
        selected |= {tuple(select(query, key, order, chunk)) for chunk in CHUNKS}
    return selected


def test_any_order_and_chunks_select_the_best_of_all() -> None:
    query, key = _patches()
    scores = _scores(query, key).tolist()
    best = sorted(range(N), key=lambda i: (-scores[i], i))[:M]
    assert len(set(scores)) < N
    assert _outcomes(_ours) == {tuple(best)}


@pytest.mark.slow
def test_nearly_tied_patches_are_selected_in_any_order() -> None:
    """Initial scores differ by 1e-8; the test makes 300 selections."""
    _, key = _patches()
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        query = 1e-7 * torch.randn(TOKENS, HEADS, DK, generator=generator)
        exact = torch.einsum("thd,nhd->nth", query.double(), key.double()) / math.sqrt(DK)
        scores = exact.flatten(1).logsumexp(1)
        kinds = key.flatten(1).unique(dim=0, return_inverse=True)[1]
        order = sorted(range(N), key=lambda i: -float(scores[i]))
        best = {int(kinds[i]) for i in order[:M]}
        selected = set()
        for turn in range(10):
            order = torch.randperm(N, generator=generator)
            selected.add(tuple(_ours(query, key, order, CHUNKS[turn % len(CHUNKS)])))
        assert len(selected) == 1
        assert {int(kinds[i]) for i in selected.pop()} == best


def test_the_published_rule_depends_on_order() -> None:
    """The published rule fails the order test, even if only sets of distinct patches count."""
    _, key = _patches()
    value = key.flatten(1).unique(dim=0, return_inverse=True)[1].tolist()
    sets = {tuple(sorted(value[i] for i in selected)) for selected in _outcomes(_published)}
    assert len(sets) > 10


def test_ties_are_broken_by_index_and_padding_is_ignored() -> None:
    scores = torch.tensor([1.0, 2.0, 1.0, -torch.inf, 1.0, 2.0, 1.0, 0.0])
    assert rank_patches(scores).tolist() == [1, 5, 0, 2, 4, 6, 7]
    for broken in (torch.nan, torch.inf):
        with pytest.raises(NotFinite):
            rank_patches(torch.tensor([0.0, broken]))


def test_scores_are_the_log_of_the_published_scores() -> None:
    query, key = _patches()
    logits = torch.einsum("thd,nhd->thn", query, key) / math.sqrt(DK)
    expected = logits.softmax(-1).mean((0, 1))
    scores = _scores(query, key)
    torch.testing.assert_close(scores.softmax(0).float(), expected, atol=1e-6, rtol=1e-4)
    assert _scores(100 * query, key).isfinite().all()


def test_logits_are_bitwise_independent_of_other_images() -> None:
    query, key = _patches()
    logits = attention_logits(query, key)
    exact = torch.einsum("thd,nhd->nth", query.double(), key.double()) / math.sqrt(DK)
    torch.testing.assert_close(logits, exact)
    for chunk in CHUNKS:
        parts = [attention_logits(query, part) for part in key.split(chunk)]
        assert torch.equal(torch.cat(parts), logits)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention_logits(query, key), logits)


def test_a_constant_shift_of_one_head_does_not_change_the_selection() -> None:
    """A shift of one head's keys changes neither attention nor selection."""
    query, key = _patches()
    shift = torch.zeros(HEADS, DK)
    shift[0] = query[0, 0]
    torch.testing.assert_close(_scores(query, key + shift), _scores(query, key), atol=1e-5, rtol=0)


# -- exploration ------------------------------------------------------------------------------


@pytest.mark.parametrize("explore", [0.0, 0.25, 0.7, 1.0])
def test_exploration_keeps_the_best_and_draws_the_rest(explore: float) -> None:
    torch.manual_seed(0)
    scores = torch.randn(50)
    scores[40:] = -torch.inf
    selected = select_with_exploration(scores, 10, explore=explore)
    drawn = math.ceil(round(10 * explore, 9))
    assert len(set(selected.tolist())) == 10
    assert (selected < 40).all()
    assert selected[: 10 - drawn].tolist() == rank_patches(scores)[: 10 - drawn].tolist()
    again = select_with_exploration(scores, 10, explore=explore)
    assert torch.equal(selected, again) == (explore == 0)


def test_rounding_does_not_add_a_patch() -> None:
    """0.07 * 100 is a little more than 7 in floating point."""
    scores = torch.randn(300)
    selected = select_with_exploration(scores, 100, explore=0.07)
    assert torch.equal(selected[:93], rank_patches(scores)[:93])


def test_no_exploration_draws_nothing() -> None:
    scores, before = torch.randn(30), torch.get_rng_state()
    assert torch.equal(select_with_exploration(scores, 5, explore=0), rank_patches(scores)[:5])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("temperature", "uniform"), [(1.0, 0.0), (0.5, 0.3), (2.0, 1.0)])
def test_explored_patches_follow_their_probability(temperature: float, uniform: float) -> None:
    torch.manual_seed(1)
    scores = torch.tensor([3.0, 1.0, 2.5, 0.0, 0.5])
    times = 4000
    drawn = torch.stack(
        [
            select_with_exploration(
                scores, 3, explore=0.5, temperature=temperature, uniform=uniform
            )
            for _ in range(times)
        ]
    )
    assert (drawn[:, 0] == 0).all()
    others = [1, 2, 3, 4]
    p = (1 - uniform) * (scores[others] / temperature).double().softmax(0) + uniform / 4
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    expected = [float(p[i] * p[j] / (1 - p[i])) * times for i, j in pairs]
    counts = [
        int(((drawn[:, 1] == others[i]) & (drawn[:, 2] == others[j])).sum()) for i, j in pairs
    ]
    assert chisquare(counts, expected).pvalue > 1e-3


def test_a_patch_with_a_very_low_score_can_fill_a_slot() -> None:
    scores = torch.tensor([0.0, -2000.0, -3000.0, 1.0])
    selected = [
        select_with_exploration(scores, 3, explore=1.0, uniform=0.0).tolist() for _ in range(40)
    ]
    assert {frozenset(f) for f in selected} == {frozenset({0, 3, 1}), frozenset({0, 3, 2})}
    assert select_with_exploration(scores, 9, explore=0.5).tolist() == [3, 0, 1, 2]


@pytest.mark.parametrize(
    "options",
    [{"explore": 1.1}, {"explore": 0.5, "temperature": 0}, {"explore": 0.5, "uniform": 2}],
)
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(OptionError, match="explore"):
        select_with_exploration(torch.zeros(4), 2, **options)
