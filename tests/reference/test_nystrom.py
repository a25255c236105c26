"""Nystrom attention and sparse convolution against slow attention and dense convolution."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from foveate.errors import OptionError
from foveate.nn.nystrom import (
    NystromAttention,
    PyramidPosition,
    lattice_cells,
    nystrom_attention,
    pseudo_inverse,
    spatial_rank,
)
from helpers.compare import assert_near

HEADS, DIM = 2, 4


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute exact attention of one head, with ``(n, d)`` queries, keys and values."""
    return (q @ k.T / math.sqrt(q.shape[1])).softmax(-1) @ v


def slow_nystrom(q: Tensor, k: Tensor, v: Tensor, order: list[int], landmarks: int) -> Tensor:
    """Compute Nystrom attention of one image and head; `order` lists tokens along the curve."""
    n, scale = len(order), math.sqrt(q.shape[1])
    m = min(landmarks, n)
    members: list[list[int]] = [[] for _ in range(m)]
    for place, token in enumerate(order):
        members[place * m // n].append(token)
    q_mark = torch.stack([q[rows].mean(0) for rows in members])
    k_mark = torch.stack([k[rows].mean(0) for rows in members])
    from_tokens = (q @ k_mark.T / scale).softmax(-1)
    between = (q_mark @ k_mark.T / scale).softmax(-1)
    to_tokens = (q_mark @ k.T / scale).softmax(-1)
    return from_tokens @ torch.linalg.pinv(between) @ to_tokens @ v


def draw(b: int, n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, b, HEADS, n, DIM, dtype=torch.float64, generator=generator)
    return 2 * q, 2 * k, v


def ranks_of(orders: list[list[int]], n: int) -> tuple[Tensor, Tensor]:
    """Return mask and ranks of images whose tokens have these orders, padding last."""
    valid = torch.zeros(len(orders), n, dtype=torch.bool)
    rank = torch.zeros(len(orders), n, dtype=torch.long)
    for i, order in enumerate(orders):
        valid[i, order] = True
        rank[i, order] = torch.arange(len(order))
        rank[i, ~valid[i]] = torch.arange(len(order), n)
    return valid, rank


# -- attention -------------------------------------------------------------------------------------


@pytest.mark.parametrize("landmarks", [1, 5, 8])
def test_nystrom_equals_the_written_out_formula(landmarks: int) -> None:
    """Images of 12, 7 and 1 tokens at scattered positions among 14: some landmarks do not exist."""
    orders = [torch.randperm(14)[:n].tolist() for n in (12, 7, 1)]
    valid, rank = ranks_of(orders, 14)
    q, k, v = draw(3, 14)
    actual = nystrom_attention(q, k, v, valid, rank, landmarks=landmarks, iterations=60)
    for i, order in enumerate(orders):
        for h in range(HEADS):
            place = sorted(order)
            slow = slow_nystrom(
                q[i, h, place], k[i, h, place], v[i, h, place], [place.index(t) for t in order],
                landmarks,
            )  # fmt: skip
            assert_near(actual[i, h, place], slow, 1e-6)


def test_nystrom_approaches_exact_attention() -> None:
    """Neighbours along the curve are similar, as landmarks assume."""
    n = 64
    along = torch.linspace(0, 3, n, dtype=torch.float64)[:, None]
    q, k, v = (
        (torch.sin(along * torch.arange(1, DIM + 1) + phase)).expand(1, 1, n, DIM)
        for phase in (0.0, 0.4, 1.0)
    )
    valid, rank = ranks_of([list(range(n))], n)
    exact = softmax_attention(q[0, 0], k[0, 0], v[0, 0])
    for iterations, least in ((6, 1e-2), (40, 1e-6)):
        errors = []
        for landmarks in (1, 2, 4, 16, n):
            actual = nystrom_attention(
                q, k, v, valid, rank, landmarks=landmarks, iterations=iterations
            )
            errors.append(float((actual[0, 0] - exact).abs().max()))
        assert errors == sorted(errors, reverse=True), errors
        assert errors[0] > 0.1, errors
        assert errors[-1] < least, errors


def test_padding_is_in_no_landmark() -> None:
    """Garbage in padded rows changes neither outputs nor gradients."""
    q, k, v = draw(1, 20)
    order = torch.randperm(20)[:13].tolist()
    valid, rank = ranks_of([order], 20)

    def run(rows: Tensor, valid: Tensor, rank: Tensor, garbage: float) -> tuple[Tensor, Tensor]:
        inputs = [t.clone().requires_grad_() for t in (q, k, v)]
        filled = [t.masked_fill(~valid[:, None, :, None], garbage)[:, :, rows] for t in inputs]
        actual = nystrom_attention(*filled, valid[:, rows], rank[:, rows], landmarks=4)
        out = actual[:, :, valid[0, rows]]
        gradients = torch.autograd.grad(out.pow(2).sum(), inputs)
        return out, torch.stack(gradients)

    alone = run(torch.tensor(sorted(order)), valid, rank, 0.0)
    padded = run(torch.arange(20), valid, rank, 50.0)
    for actual, expected in zip(padded, alone, strict=True):
        assert_near(actual, expected)
    everything = torch.ones_like(valid)
    taken, _ = run(torch.arange(20), everything, torch.arange(20)[None], 50.0)
    assert (taken[:, :, valid[0]] - alone[0]).abs().max() > 1e-3


def test_missing_landmarks_change_nothing() -> None:
    """Seven tokens have seven landmarks, however many are asked for, also after few iterations."""
    q, k, v = draw(2, 7)
    valid, rank = ranks_of([torch.randperm(7).tolist(), [4, 2, 5]], 7)
    actual = nystrom_attention(q, k, v, valid, rank, landmarks=11)
    assert_near(
        actual[:1], nystrom_attention(q[:1], k[:1], v[:1], valid[:1], rank[:1], landmarks=7)
    )
    few = [2, 4, 5]
    alone = nystrom_attention(
        *(t[1:, :, few] for t in (q, k, v)), valid[1:, few], rank[1:, few], landmarks=3
    )
    assert_near(actual[1:, :, few], alone)


def test_pseudo_inverse_matches_the_exact_inverse() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(3, 2, 6, 6, dtype=torch.float64, generator=generator).softmax(-1)
    together = pseudo_inverse(a, iterations=60)
    assert_near(together, torch.linalg.pinv(a), 1e-6)
    assert_near(pseudo_inverse(a[1, :1]), pseudo_inverse(a)[1, :1])


def attention(landmarks: int) -> NystromAttention:
    torch.manual_seed(0)
    made = NystromAttention(HEADS * DIM, heads=HEADS, landmarks=landmarks, dropout=0.0).double()
    nn.init.normal_(made.query_key_value.weight)
    return made


def slow_self_attention(module: NystromAttention, tokens: Tensor) -> Tensor:
    """Compute exact attention of one image ``(n, d)``."""
    q, k, v = (tokens @ w.T for w in module.query_key_value.weight.chunk(3))
    heads = [
        softmax_attention(*(t[:, h * DIM : (h + 1) * DIM] for t in (q, k, v))) for h in range(HEADS)
    ]
    return module.out(torch.cat(heads, 1))


def test_few_tokens_get_exact_attention_in_any_batch() -> None:
    """Ten tokens are few for five landmarks; eleven are not."""
    module = attention(5)
    tokens = torch.randn(3, 11, HEADS * DIM, dtype=torch.float64)
    valid, rank = ranks_of([list(range(n)) for n in (10, 11, 3)], 11)
    together = module(tokens, valid, rank)
    for i, n in enumerate((10, 11, 3)):
        one = slice(i, i + 1)
        alone = module(tokens[one, :n], valid[one, :n], rank[one, :n])
        assert_near(together[i, :n], alone[0])
        exact = slow_self_attention(module, tokens[i, :n])
        if n == 11:
            assert (alone[0] - exact).abs().max() > 1e-3
        else:
            assert_near(alone[0], exact)


def test_the_first_token_gets_exact_attention() -> None:
    module = attention(2)
    tokens = torch.randn(2, 9, HEADS * DIM, dtype=torch.float64)
    valid, _ = ranks_of([list(range(9)), list(range(6))], 9)
    added, weight = module.attend_from_first(tokens, valid)
    for i, n in enumerate((9, 6)):
        assert_near(added[i], slow_self_attention(module, tokens[i, :n])[0])
        q, k, _ = (tokens[i, :n] @ w.T for w in module.query_key_value.weight.chunk(3))
        heads = [slice(h * DIM, (h + 1) * DIM) for h in range(HEADS)]
        slow = [(q[0, h] @ k[:, h].T / math.sqrt(DIM)).softmax(-1) for h in heads]
        assert_near(weight[i, :n], torch.stack(slow).mean(0))
        assert (weight[i, n:] == 0).all()


def test_the_width_must_be_a_multiple_of_the_heads() -> None:
    with pytest.raises(OptionError, match="width 10 cannot be shared by 4"):
        NystromAttention(10, heads=4)


# -- places ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 0.25, 0.5, 0.999, -7.5])
def test_lattice_cells_are_exact_at_any_offset(offset: float) -> None:
    """At any offset, with positions rounded to pixels: also where a plain floor would jump."""
    generator = torch.Generator().manual_seed(0)
    true = torch.cartesian_prod(torch.arange(9), torch.arange(5))
    expected = true[(torch.rand(45, generator=generator) < 0.6).nonzero()[:, 0]]
    expected = expected - expected.amin(0)
    noise = (torch.rand(expected.shape, generator=generator) - 0.5) / 64
    centre = torch.zeros(1, 50, 2)
    centre[0, : len(expected)] = expected + offset + noise
    valid = torch.arange(50)[None] < len(expected)
    cells = lattice_cells(centre, valid)
    assert torch.equal(cells[0, : len(expected)], expected)
    assert (cells[0, len(expected) :] == 0).all()
    if offset == 0.0:
        assert not torch.equal(centre[0, : len(expected)].floor().long(), expected), (
            "floor would jump"
        )


def test_rank_follows_the_curve() -> None:
    """Against bits of Python integers; tokens of one cell are ranked by their centres."""
    generator = torch.Generator().manual_seed(1)
    n = 40
    centre = 12 * torch.rand(1, n, 2, generator=generator)
    valid = torch.arange(n)[None] < 33
    cells = lattice_cells(centre, valid)
    assert len(torch.unique(cells[0, :33], dim=0)) < 33, "some share a cell"

    def key(t: int) -> tuple[int, float, float]:
        y, x = cells[0, t].tolist()
        z = sum(((y >> i) & 1) << (2 * i) | ((x >> i) & 1) << (2 * i + 1) for i in range(8))
        return z, *centre[0, t].flip(0).tolist()

    rank = spatial_rank(cells, centre, valid)
    assert rank[0].argsort()[:33].tolist() == sorted(range(33), key=key)
    turn = torch.randperm(n)
    turned = spatial_rank(cells[:, turn], centre[:, turn], valid[:, turn])
    assert torch.equal(turned[valid[:, turn]], rank[:, turn][valid[:, turn]])


# -- position --------------------------------------------------------------------------------------


def dense_position(module: PyramidPosition, tokens: Tensor, cells: Tensor) -> Tensor:
    """Compute three dense convolutions over the grid of one image ``(n, d)``."""
    shape = (cells.amax(0) + 1).tolist()
    grid, count = torch.zeros(*shape, tokens.shape[1], dtype=tokens.dtype), torch.zeros(*shape)
    for token, cell in zip(tokens, cells.tolist(), strict=True):
        grid[tuple(cell)] += token
        count[tuple(cell)] += 1
    image = (grid / count.clamp_min(1).unsqueeze(-1)).movedim(-1, 0)[None]
    around = sum(conv(image)[0].movedim(0, -1) for conv in module.convs)
    return tokens + torch.stack([around[tuple(cell)] for cell in cells.tolist()])


@pytest.mark.parametrize("ndim", [2, 3])
def test_position_equals_dense_convolution(ndim: int) -> None:
    """Two images of unequal size and shape, off the diagonal, some cells shared, padding filled."""
    torch.manual_seed(ndim)
    module = PyramidPosition(3, ndim=ndim).double()
    shapes = ((9, 5, 3)[:ndim], (4, 12, 2)[:ndim])
    tokens = torch.randn(2, 36, 3, dtype=torch.float64)
    cells = torch.zeros(2, 36, ndim, dtype=torch.long)
    for i, shape in enumerate(shapes):
        cells[i] = torch.stack([torch.randint(size, (36,)) for size in shape], -1)
    valid = torch.arange(36) < torch.tensor([[36], [25]])
    actual = module(tokens, cells, valid)
    for i, n in enumerate((36, 25)):
        assert len(torch.unique(cells[i, :n], dim=0)) < n, "some share a cell"
        assert_near(actual[i, :n], dense_position(module, tokens[i, :n], cells[i, :n]))
    assert (actual[1, 25:] == 0).all()


def test_position_does_not_wrap_around() -> None:
    """A full grid, where the end of a row is stored next to the start of the next."""
    torch.manual_seed(0)
    module = PyramidPosition(2).double()
    cells = torch.cartesian_prod(torch.arange(4), torch.arange(6)).expand(2, -1, -1)
    tokens = torch.randn(2, 24, 2, dtype=torch.float64)
    actual = module(tokens, cells, torch.ones(2, 24, dtype=torch.bool))
    for i in range(2):
        assert_near(actual[i], dense_position(module, tokens[i], cells[i]))


def test_positions_far_apart_need_no_dense_grid() -> None:
    """A dense grid would have 10^12 cells."""
    module = PyramidPosition(2).double()
    cells = torch.tensor([[[0, 0], [10**6, 10**6], [10**6, 10**6 - 3]]])
    tokens = torch.randn(1, 3, 2, dtype=torch.float64)
    actual = module(tokens, cells, torch.ones(1, 3, dtype=torch.bool))
    centre = sum(
        conv.weight[:, 0].flatten(1)[:, conv.weight[0, 0].numel() // 2] for conv in module.convs
    )
    bias = sum(conv.bias for conv in module.convs)
    assert_near(actual[0, 0], tokens[0, 0] * (1 + centre) + bias)
    assert_near(actual[0, 1:], dense_position(module, tokens[0, 1:], cells[0, 1:] - 10**6 + 3))


def test_position_encoding_passes_gradcheck() -> None:
    torch.manual_seed(0)
    module = PyramidPosition(2).double()
    cells = torch.randint(6, (2, 7, 2))
    valid = torch.arange(7) < torch.tensor([[7], [4]])
    tokens = torch.randn(2, 7, 2, dtype=torch.float64, requires_grad=True)
    parameters = list(module.parameters())
    assert torch.autograd.gradcheck(
        lambda tokens, *_: module(tokens, cells, valid), (tokens, *parameters)
    )
