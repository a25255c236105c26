"""Attention over cells equals slow versions that loop over cells."""

from __future__ import annotations

import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from foveate.attention_maps.cells import (
    Field,
    Grid,
    PriorCache,
    Spread,
    build_field,
    choose_for_evaluation,
    compute_contrast_prior,
    draw_reproducibly,
    scale_to_equal_length,
    weigh_for_evaluation,
)
from foveate.attention_maps.map_scores import (
    MapScores,
    choose_stage,
    lay_map_lattice,
    lay_pixel_lattice,
)
from foveate.batch import Batch, LoadedImage, View
from foveate.encoders.small import SmallEncoder
from foveate.geometry.lattice import Lattice
from helpers.images import PyramidImage

VIEW = View(spacing_um=1.0, patch_px=4, glimpse_spacing_um=6.0)
FINE, COARSE = (2, 3), (1, 2)


def _make_random_batch(pool: ThreadPoolExecutor, n: int = 2, seed: int = 0) -> Batch:
    random = np.random.default_rng(seed)
    items = []
    for i in range(n):
        image = PyramidImage(random.integers(0, 256, (12, 18, 3), np.uint8))
        glimpse = image.glimpse(VIEW.glimpse_spacing_um)
        contrast = random.integers(1, 256, glimpse.shape[:2]).astype(np.uint8)
        items.append(LoadedImage(f"i{i}", image, glimpse, contrast))
    return Batch(
        items,
        view=VIEW,
        normalise=((0.0,) * 3, (1.0,) * 3),
        device=torch.device("cpu"),
        pool=pool,
    )


def _grid(shape: tuple[int, int], cell_um: float, scale: float, prior: Tensor) -> Grid:
    return Grid(Lattice((0.0, 0.0), (cell_um, cell_um), shape), scale, prior)


def _grids() -> list[list[Grid]]:
    """Return the fine and the coarse grid of a large and of a small image."""
    random = torch.Generator().manual_seed(1)
    return [
        [
            _grid(FINE, 6.0, 1.0, torch.randn(6, generator=random)),
            _grid(COARSE, 12.0, 2.0, torch.randn(2, generator=random)),
        ],
        [
            _grid((1, 2), 6.0, 1.0, torch.randn(2, generator=random)),
            _grid((1, 1), 12.0, 2.0, torch.randn(1, generator=random)),
        ],
    ]


def _scores() -> list[list[Tensor]]:
    random = torch.Generator().manual_seed(2)
    return [
        [3 * torch.randn(len(g.log_prior), generator=random) for g in image_grids]
        for image_grids in _grids()
    ]


@pytest.mark.parametrize("active", [None, [True, False], [False, True]])
@pytest.mark.parametrize(("smoothing", "explore"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.3), (0.1, 0.3)])
def test_the_attention_field_mixes_learned_prior_and_uniform(
    smoothing: float, explore: float, active: list[bool] | None
) -> None:
    grids, scores = _grids(), _scores()
    field = build_field(scores, grids, smoothing=smoothing, explore=explore, active=active)
    for i, image_grids in enumerate(grids):
        taken = [
            (j, c)
            for j, g in enumerate(image_grids)
            for c in range(len(g.log_prior))
            if not active or active[j]
        ]
        prior = np.array([math.exp(image_grids[j].log_prior[c]) for j, c in taken])
        learnt = prior * np.array([math.exp(scores[i][j][c]) for j, c in taken])
        even = np.full(len(taken), 1 / len(taken))
        sampled = (1 - smoothing) * learnt / learnt.sum() + smoothing * even
        known = (1 - smoothing) * prior / prior.sum() + smoothing * even
        expected = np.zeros(8)
        begin = [0, len(image_grids[0].log_prior)]
        for (j, c), value in zip(taken, (1 - explore) * sampled + explore * known, strict=True):
            expected[begin[j] + c] = value
        np.testing.assert_allclose(field.log_a[i].exp().numpy(), expected, atol=1e-6)
        shares = [expected[: begin[1]].sum(), expected[begin[1] :].sum()]
        np.testing.assert_allclose(field.shares()[i].numpy(), shares, atol=1e-6)
        assert field.real[i].tolist() == (expected > 0).tolist()


def test_padding_for_a_larger_image_changes_nothing() -> None:
    grids, scores = _grids(), _scores()
    both = build_field(scores, grids, smoothing=0.1, explore=0.2)
    alone = build_field(scores[1:], grids[1:], smoothing=0.1, explore=0.2)
    torch.testing.assert_close(both.log_a[1, :3], alone.log_a[0], atol=1e-6, rtol=0)
    assert both.log_a[1, 3:].isneginf().all()


def test_patches_lie_in_the_middle_of_their_cells(pool: ThreadPoolExecutor) -> None:
    batch, grids = _make_random_batch(pool), _grids()
    field = build_field(_scores(), grids, smoothing=0.0)
    index = torch.tensor([[5, 7, 0], [2, 1, 4]])
    used = torch.tensor([[True, True, False], [True, True, True]])
    first, second = field.patches(batch, index, jitter=False, used=used)
    # Cell (1, 2) of the fine grid and (0, 1) of the coarse one; (0, 0) was not used.
    np.testing.assert_allclose(first.centre_um, [[9.0, 15.0], [6.0, 18.0]])
    np.testing.assert_allclose(first.side_um, [4.0, 8.0])
    # Index 4 is padding in the second image.
    np.testing.assert_allclose(second.centre_um, [[6.0, 6.0], [3.0, 9.0]])
    assert field.level(index).tolist() == [[0, 1, 0], [1, 0, 1]]


def test_jitter_stays_in_the_cell_and_fills_it(pool: ThreadPoolExecutor) -> None:
    batch = _make_random_batch(pool, n=1)
    field = build_field(_scores()[:1], _grids()[:1], smoothing=0.0)
    torch.manual_seed(0)
    (patches,) = field.patches(batch, torch.full((1, 500), 4), jitter=True)
    # Patches are moved by at most half a pixel to lie on whole ones.
    assert (np.abs(patches.centre_um - [9.0, 9.0]) <= 3.5).all()
    assert patches.centre_um.min(0) == pytest.approx([6.0, 6.0], abs=0.6)
    assert patches.centre_um.max(0) == pytest.approx([12.0, 12.0], abs=0.6)


# -- draws of evaluation ----------------------------------------------------------------------


def test_evaluation_draws_depend_on_the_image_only(pool: ThreadPoolExecutor) -> None:
    batch = _make_random_batch(pool)
    field = build_field(_scores(), _grids(), smoothing=0.1)
    torch.manual_seed(1)
    first = draw_reproducibly(batch, field, 4)
    torch.manual_seed(2)
    assert torch.equal(draw_reproducibly(batch, field, 4), first)
    state = torch.get_rng_state()
    draw_reproducibly(batch, field, 4)
    assert torch.equal(torch.get_rng_state(), state)
    batch.items, alone = batch.items[1:], build_field(_scores()[1:], _grids()[1:], smoothing=0.1)
    assert torch.equal(draw_reproducibly(batch, alone, 4)[0], first[1, :3])
    assert first[1, 3] >= 3, "padding is drawn last"


def test_evaluation_draws_follow_attention_over_many_images(pool: ThreadPoolExecutor) -> None:
    many = 1500
    batch = _make_random_batch(pool, n=many, seed=3)
    grid, score = _grid((1, 3), 6.0, 1.0, torch.zeros(3)), torch.tensor([0.0, 0.7, 1.4])
    field = build_field([[score]] * many, [[grid]] * many, smoothing=0.0)
    drawn = draw_reproducibly(batch, field, 2).tolist()
    a = field.log_a[0].exp().tolist()
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    counts = Counter(map(tuple, drawn))
    expected = [many * a[i] * a[j] / (1 - a[i]) for i, j in pairs]
    assert chisquare([counts[p] for p in pairs], expected).pvalue > 1e-3


def _slow_shares(a: list[float]) -> list[float]:
    """Return the weights of the mean of ``F_i = sum_{j<i} a_j f_j + (1 - sum_{j<i} a_j) f_i``."""
    n = len(a)
    return [((1 - sum(a[:i])) + (n - 1 - i) * a[i]) / n for i in range(n)]


def test_evaluation_weights_match_the_loop(pool: ThreadPoolExecutor) -> None:
    a = torch.tensor([[0.3, 0.1, 0.2], [0.5, 0.25, 0.0]])
    valid = torch.tensor([[True, True, True], [True, True, False]])
    weights = weigh_for_evaluation(a.log(), valid, "expectation")
    expected = [_slow_shares([0.3, 0.1, 0.2]), [*_slow_shares([0.5, 0.25]), 0.0]]
    torch.testing.assert_close(weights, torch.tensor(expected), atol=1e-6, rtol=0)
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    top = weigh_for_evaluation(a.log(), valid, "top")
    torch.testing.assert_close(top, a / a.sum(1, keepdim=True), atol=1e-6, rtol=0)
    batch, field = _make_random_batch(pool), build_field(_scores(), _grids(), smoothing=0.1)
    best = choose_for_evaluation(batch, field, 3, "top")[0].tolist()
    order = sorted(range(8), key=lambda c: -float(field.log_a[0, c]))
    assert best == order[:3]


# -- where cells lie, and what is known of them ------------------------------------------------


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_map_cells_are_centred_at_their_lattice_positions(stage: int) -> None:
    """The input gradient of a cell is centred at the cell's position in the lattice."""
    torch.manual_seed(0)
    encoder, spacing = SmallEncoder(width=8, dim=8).double(), 5.0
    image = torch.rand(1, 3, 64, 96, dtype=torch.float64, requires_grad=True)
    actual = encoder.maps(image)[stage]
    lattice = lay_map_lattice(encoder, stage, actual.shape[-2:], spacing)
    cell = (actual.shape[-2] // 2, actual.shape[-1] // 3)
    # Group norm spreads a cell over the image: what remains local is the largest gradient.
    total = torch.zeros(64, 96, dtype=torch.float64)
    for channel in range(actual.shape[1]):
        (g,) = torch.autograd.grad(actual[0, channel, *cell], image, retain_graph=True)
        total += (g[0].square().sum(0) > 1e-2 * g[0].square().sum(0).max()) * 1.0
    rows, columns = (total > 0).nonzero().T.double()
    middle = ((rows.min() + rows.max() + 1) / 2, (columns.min() + columns.max() + 1) / 2)
    expected = [
        (o + (c + 0.5) * s) / spacing
        for o, c, s in zip(lattice.origin_um, cell, lattice.cell_um, strict=True)
    ]
    assert [float(m) for m in middle] == pytest.approx(expected, abs=0.01)
    assert lattice.shape == tuple(actual.shape[-2:])


def test_stage_and_pixel_lattices() -> None:
    encoder = SmallEncoder(width=8, dim=8)
    assert [choose_stage(encoder, 32.0, side) for side in (16.0, 64.0, 127.0, 128.0, 9999.0)] == [
        *(0, 0, 0, 1, 3)
    ]
    lattice = lay_pixel_lattice((2, 3), 6.0)
    assert (lattice.origin_um, lattice.cell_um, lattice.shape) == ((0, 0), (6, 6), (2, 3))


def test_the_prior_is_cached_per_lattice_and_favours_tissue(
    pool: ThreadPoolExecutor,
) -> None:
    batch = _make_random_batch(pool, n=1)
    item = batch.items[0]
    priors = PriorCache(power=2.0, background=1e-3)
    for lattice, scale in (
        (lay_pixel_lattice(FINE, 6.0), 1.0),
        (lay_pixel_lattice((1, 1), 12.0), 2.0),
    ):
        for _ in range(2):
            grid = priors.grid(batch, 0, lattice, scale)
            slow = compute_contrast_prior(item, lattice, VIEW, power=2.0, background=1e-3)
            assert torch.equal(grid.log_prior, slow)
            assert (grid.scale, grid.lattice) == (scale, lattice)
    values = (item.contrast / item.contrast.max()).flatten().astype(np.float64)
    actual = priors.grid(batch, 0, lay_pixel_lattice(FINE, 6.0)).log_prior.exp().numpy()
    np.testing.assert_allclose(actual, np.maximum(values**2, 1e-3), rtol=1e-5)
    contrast = np.zeros((30, 30), np.uint8)
    contrast[3:12, 5:15] = 90
    slide = LoadedImage("glass", item.image, item.glimpse, contrast)
    for background in (1e-3, 0.0):
        prior = compute_contrast_prior(
            slide, lay_pixel_lattice((30, 30), 6.0), VIEW, power=0.0, background=background
        )
        takes_part = torch.from_numpy(contrast.flatten() > 0) | (background > 0)
        assert torch.equal(prior.isfinite(), takes_part)
        share = prior.softmax(0).view(30, 30)[3:12, 5:15].sum()
        assert share == pytest.approx(90 / (90 + 810 * background), abs=1e-4)


def test_initial_scores_are_zero_and_levels_are_separate() -> None:
    torch.manual_seed(0)
    scores = MapScores((4, 6), levels=2)
    maps = [torch.randn(1, 4, 6, 8), torch.randn(1, 6, 3, 4)]
    assert (scores(maps, 0, 0) == 0).all()
    torch.nn.init.ones_(scores.score[1].weight)
    assert (scores(maps, 0, 0) == 0).all()
    actual = scores(maps, 0, 1)
    assert actual.shape == (1, 6, 8)
    fine, coarse = (scores.project[i](maps[i]) for i in range(2))
    mixed = fine[0, :, 5, 3] + coarse[0, :, 2, 1]
    torch.testing.assert_close(actual[0, 5, 3], mixed.relu().sum())
    assert scores(maps, 1, 1).shape == (1, 3, 4)


# -- against collapse -------------------------------------------------------------------------


def _entropy(log_a: Tensor) -> Tensor:
    return -(log_a.exp() * log_a).sum(-1)


def _even_field(score: Tensor) -> Field:
    return build_field([[score]], [[_grid(FINE, 6.0, 1.0, torch.zeros(6))]], smoothing=0.0)


def test_spread_loss_is_the_negative_entropy() -> None:
    score = torch.tensor([2.0, -1.0, 0.5, 0.0, 0.3, 1.0], requires_grad=True)
    field = _even_field(score)
    loss = Spread(weight=0.01, mass=0.5)(field, torch.tensor([[0.1, 0.2]]))
    entropy = _entropy(field.log_a)[0]
    torch.testing.assert_close(loss, 0.01 * (math.log(6) - entropy))
    (gradient,) = torch.autograd.grad(loss, score)
    assert _entropy(_even_field(score - 10 * gradient).log_a) > entropy


def test_spread_loss_grows_with_the_sampled_mass() -> None:
    field, spread = _even_field(torch.arange(6.0)), Spread(weight=0.01, mass=0.6)
    apart = math.log(6) - float(_entropy(field.log_a))
    for mass, factor in ((0.1, 1), (0.6, 1), (0.8, 1 + 99 * 0.5), (1.0, 100)):
        loss = spread(field, torch.tensor([[mass / 2, mass / 2]]))
        assert float(loss) == pytest.approx(0.01 * factor * apart, rel=1e-4)
        assert float(spread.held) == pytest.approx(mass)


def test_vectors_are_scaled_to_equal_length() -> None:
    f = scale_to_equal_length(torch.tensor([[3.0, 4.0], [0.0, 0.1]]))
    torch.testing.assert_close(f, math.sqrt(2) * torch.tensor([[0.6, 0.8], [0.0, 1.0]]))
