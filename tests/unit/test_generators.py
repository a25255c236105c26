"""Each row of random numbers depends on its own generator only."""

from __future__ import annotations

import torch

from foveate.nn.generators import hidden_share, seeded, spawned, uniform
from foveate.nn.sampling import draw_with_replacement, draw_without_replacement
from foveate.nn.top_k import perturbed_top_k


def test_a_row_is_a_prefix_of_a_longer_row() -> None:
    for dtype in (torch.float32, torch.float64):
        for n in (1, 15, 16, 17, 1000):
            short, long = seeded([3]), seeded([3])
            row = uniform((1, n), short, dtype=dtype)
            assert torch.equal(row, uniform((1, n + 700), long, dtype=dtype)[:, :n])
            assert torch.equal(short[0].get_state(), long[0].get_state())
            assert ((row >= 0) & (row < 1)).all()


def test_rows_of_one_generator_differ_and_are_uniform() -> None:
    (generator,) = seeded([0])
    rows = uniform((40, 500), [generator] * 40)
    assert abs(float(rows.mean()) - 0.5) < 0.01
    assert abs(float(rows.var()) - 1 / 12) < 0.002
    assert len(rows[:, 0].unique()) == 40
    assert torch.equal(
        uniform((2, 3), spawned(seeded([5, 6])))[1:], uniform((1, 3), spawned(seeded([6])))
    )


def test_draws_do_not_depend_on_other_rows_or_padding() -> None:
    log_a = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    log_a[1, 30:] = -torch.inf
    row = log_a[1:2, :30]
    for draw in (draw_without_replacement, draw_with_replacement):
        together, alone = draw(log_a, 7, seeded([1, 2, 3])), draw(row, 7, seeded([2]))
        assert torch.equal(together[1], alone[0])
    valid = log_a > -torch.inf
    stay = hidden_share(valid, seeded([1, 2, 3]))
    assert torch.equal(stay[1, :30], hidden_share(valid[1:2, :30], seeded([2]))[0])
    top = perturbed_top_k(
        log_a, 4, sigma=0.3, samples=20, valid=valid, generators=seeded([1, 2, 3])
    )
    one = perturbed_top_k(row, 4, sigma=0.3, samples=20, generators=seeded([2]))
    n = int(one.used.sum())
    assert int(top.used[1].sum()) == n
    assert torch.equal(top.index[1, :n], one.index[0, :n])
    assert torch.equal(top.weight[1, :, :n], one.weight[0, :, :n])


def test_a_share_is_hidden_and_at_least_one_stays() -> None:
    valid = torch.ones(2000, 20, dtype=torch.bool)
    valid[:, 12:] = False
    valid[0, 1:] = False
    stay = hidden_share(valid, None)
    assert not (stay & ~valid).any()
    assert stay.any(1).all()
    counts = stay[1:].sum(1)
    assert counts.min() == 6
    assert counts.max() == 12
    assert abs(float(counts.float().mean()) - 9) < 0.2
    assert (stay[1:, :12].float().mean(0) - 0.75).abs().max() < 0.05
