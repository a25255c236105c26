"""Selection chunk by chunk against selection from all patches at once, in any order."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from foveate.errors import NotFinite, OptionError
from foveate.nn.selection import attention_logits, ranked, scores_among, with_exploration

N, M, TOKENS, HEADS, DK = 300, 40, 4, 8, 16
CHUNKS = (1, 7, 64, N)


def _patches() -> tuple[Tensor, Tensor]:
    """Queries, and keys of which each occurs up to three times: background makes exact ties."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(TOKENS, HEADS, DK, generator=generator)
    key = torch.randn(N, HEADS, DK, generator=generator)
    again = torch.randint(N, (N // 2,), generator=generator)
    key[torch.randperm(N, generator=generator)[: N // 2]] = key[again]
    return query, key


def _scores(query: Tensor, key: Tensor, chunk: int = N) -> Tensor:
    """Scores of all patches, whose logits come chunk by chunk."""
    return scores_among(torch.cat([attention_logits(query, part) for part in key.split(chunk)]))


def _ours(query: Tensor, key: Tensor, order: Tensor, chunk: int) -> list[int]:
    """Patches as the scan has them: in the order of their places, whatever that they came in."""
    back = order.argsort()
    scores = _scores(query, key[order], chunk)[back]
    return ranked(scores)[:M].tolist()


def _published(query: Tensor, key: Tensor, order: Tensor, chunk: int) -> list[int]:
    """Softmax over the buffer and the chunk at hand, mean over heads and tokens."""
    kept = order[:M]
    for part in order[M:].split(chunk):
        kept = torch.cat([kept, part])
        logits = torch.einsum("thd,nhd->thn", query, key[kept]) / math.sqrt(DK)
        kept = kept[logits.softmax(-1).mean((0, 1)).topk(M).indices]
    return kept.tolist()


def _outcomes(select: Callable[..., list[int]]) -> set[tuple[int, ...]]:
    """What is selected in ten shuffles and several chunk sizes."""
    query, key = _patches()
    found = set()
    for seed in range(10):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
        found |= {tuple(select(query, key, order, chunk)) for chunk in CHUNKS}
    return found


def test_any_order_and_chunks_select_the_best_of_all() -> None:
    query, key = _patches()
    scores = _scores(query, key).tolist()
    best = sorted(range(N), key=lambda i: (-scores[i], i))[:M]
    assert len(set(scores)) < N
    assert _outcomes(_ours) == {tuple(best)}


def test_patches_that_all_but_tie_are_selected_in_any_order() -> None:
    """As at the beginning of a training: 300 selections, of scores that differ by 1e-8."""
    _, key = _patches()
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        query = 1e-7 * torch.randn(TOKENS, HEADS, DK, generator=generator)
        exact = torch.einsum("thd,nhd->nth", query.double(), key.double()) / math.sqrt(DK)
        scores = exact.flatten(1).logsumexp(1)
        kinds = key.flatten(1).unique(dim=0, return_inverse=True)[1]
        order = sorted(range(N), key=lambda i: -float(scores[i]))
        best = {int(kinds[i]) for i in order[:M]}
        found = set()
        for turn in range(10):
            order = torch.randperm(N, generator=generator)
            found.add(tuple(_ours(query, key, order, CHUNKS[turn % len(CHUNKS)])))
        assert len(found) == 1
        assert {int(kinds[i]) for i in found.pop()} == best


def test_the_published_rule_depends_on_order() -> None:
    """The check above has teeth, even where only the set counts and equal patches are one."""
    _, key = _patches()
    value = key.flatten(1).unique(dim=0, return_inverse=True)[1].tolist()
    sets = {tuple(sorted(value[i] for i in found)) for found in _outcomes(_published)}
    assert len(sets) > 10


def test_ties_go_by_index_and_padding_is_left_out() -> None:
    scores = torch.tensor([1.0, 2.0, 1.0, -torch.inf, 1.0, 2.0, 1.0, 0.0])
    assert ranked(scores).tolist() == [1, 5, 0, 2, 4, 6, 7]
    for broken in (torch.nan, torch.inf):
        with pytest.raises(NotFinite):
            ranked(torch.tensor([0.0, broken]))


def test_scores_are_the_log_of_the_published_ones_of_all_patches() -> None:
    query, key = _patches()
    logits = torch.einsum("thd,nhd->thn", query, key) / math.sqrt(DK)
    expected = logits.softmax(-1).mean((0, 1))
    scores = _scores(query, key)
    torch.testing.assert_close(scores.softmax(0).float(), expected, atol=1e-6, rtol=1e-4)
    assert _scores(100 * query, key).isfinite().all()


def test_logits_are_the_same_to_the_last_bit_in_any_company() -> None:
    query, key = _patches()
    logits = attention_logits(query, key)
    exact = torch.einsum("thd,nhd->nth", query.double(), key.double()) / math.sqrt(DK)
    torch.testing.assert_close(logits, exact)
    for chunk in CHUNKS:
        parts = [attention_logits(query, part) for part in key.split(chunk)]
        assert torch.equal(torch.cat(parts), logits)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention_logits(query, key), logits)


def test_one_head_that_is_high_everywhere_does_not_decide_alone() -> None:
    """A shift of one head's keys leaves attention, and with it the selection, as it was."""
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
    found = with_exploration(scores, 10, explore=explore)
    drawn = math.ceil(round(10 * explore, 9))
    assert len(set(found.tolist())) == 10
    assert (found < 40).all()
    assert found[: 10 - drawn].tolist() == ranked(scores)[: 10 - drawn].tolist()
    again = with_exploration(scores, 10, explore=explore)
    assert torch.equal(found, again) == (explore == 0)


def test_rounding_draws_no_patch_more() -> None:
    """0.07 * 100 is a little more than 7 in floating point."""
    scores = torch.randn(300)
    found = with_exploration(scores, 100, explore=0.07)
    assert torch.equal(found[:93], ranked(scores)[:93])


def test_no_exploration_draws_nothing() -> None:
    scores, before = torch.randn(30), torch.get_rng_state()
    assert torch.equal(with_exploration(scores, 5, explore=0), ranked(scores)[:5])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("temperature", "uniform"), [(1.0, 0.0), (0.5, 0.3), (2.0, 1.0)])
def test_explored_patches_follow_their_probability(temperature: float, uniform: float) -> None:
    torch.manual_seed(1)
    scores = torch.tensor([3.0, 1.0, 2.5, 0.0, 0.5])
    times = 4000
    drawn = torch.stack(
        [
            with_exploration(scores, 3, explore=0.5, temperature=temperature, uniform=uniform)
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


def test_a_patch_far_below_the_rest_can_fill_a_slot() -> None:
    scores = torch.tensor([0.0, -2000.0, -3000.0, 1.0])
    found = [with_exploration(scores, 3, explore=1.0, uniform=0.0).tolist() for _ in range(40)]
    assert {frozenset(f) for f in found} == {frozenset({0, 3, 1}), frozenset({0, 3, 2})}
    assert with_exploration(scores, 9, explore=0.5).tolist() == [3, 0, 1, 2]


@pytest.mark.parametrize(
    "options",
    [{"explore": 1.1}, {"explore": 0.5, "temperature": 0}, {"explore": 0.5, "uniform": 2}],
)
def test_options_without_a_meaning(options: dict[str, float]) -> None:
    with pytest.raises(OptionError, match="explore"):
        with_exploration(torch.zeros(4), 2, **options)
