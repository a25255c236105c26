"""Intermediate looks between glimpse and patches match slow versions, over all draws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from conftest import penalties
from foveate.attention_maps.cells import Field, Grid, build_field, compute_contrast_prior
from foveate.attention_maps.map_scores import MapScores
from foveate.attention_maps.tiles import clip_to_image, compute_tile_prior, suppress_duplicates
from foveate.attention_maps.zoom import (
    Descent,
    Draw,
    TileLevel,
    choose_best_children,
    draw_children,
    nested_expectation,
)
from foveate.bags.embedding import pad_rows
from foveate.batch import Augment, Batch, LoadedImage, View
from foveate.encoders import build_encoder
from foveate.encoders.base import AbstractEncoder
from foveate.errors import OptionError
from foveate.geometry.lattice import Lattice
from foveate.images.evidence import Floats
from foveate.loading.loader import CaseLoader
from foveate.methods.base import Prediction, further_loss
from foveate.methods.glimpse import Glimpse
from foveate.methods.glimpse_zoom import GlimpseZoom
from foveate.nn.heads import Head
from foveate.nn.sampling import smoothed_log_softmax
from foveate.runs.card import ModelCard
from foveate.runs.checkpoint import Model, build_model
from foveate.table import Case, read_cases
from helpers.images import PyramidImage

D = 3
NO_FIELD = Field([], torch.empty(0, 0), torch.empty(0, 0), torch.empty(0, 0, dtype=torch.bool))
Drawn = tuple[int, ...]


# -- the estimate against every draw --------------------------------------------------------------


def _orders(a: Tensor, n: int) -> list[tuple[Drawn, float]]:
    """Return every ordered draw without replacement from one row, and its probability."""
    p = [float(x) for x in a if x > 0]
    orders = []
    for order in itertools.permutations(range(len(p)), min(n, len(p))):
        share, left = 1.0, 1.0
        for i in order:
            share, left = share * p[i] / left, left - p[i]
        orders.append((order, share))
    return orders


def _draws_of_rows(a: Tensor, rows: Sequence[int], n: int) -> Iterator[tuple[list[Drawn], float]]:
    for row_orders in itertools.product(*(_orders(a[r], n) for r in rows)):
        yield [order for order, _ in row_orders], math.prod(share for _, share in row_orders)


def _draw(a: Tensor, rows: Sequence[int], orders: Sequence[Drawn], n: int) -> Draw:
    index = torch.tensor([[*o, *[0] * (n - len(o))] for o in orders])
    drawn = torch.arange(n) < torch.tensor([[len(o)] for o in orders])
    return Draw(NO_FIELD, a[list(rows)].gather(1, index) * drawn, drawn)


def _every_descent(
    levels: Sequence[Tensor], counts: Sequence[int]
) -> Iterator[tuple[list[Draw], list[list[int]], float]]:
    """Yield the draws of all levels, the child numbers of each level, and the probability.

    Child j of row r of a level is row ``r * k + j`` of the level below.
    """

    def below(k: int, rows: list[int]) -> Iterator[tuple[list[Draw], list[list[int]], float]]:
        if k == len(levels):
            yield [], [], 1.0
            return
        a, n = levels[k], counts[k]
        for orders, share in _draws_of_rows(a.detach(), rows, n):
            children = [r * a.shape[1] + j for r, o in zip(rows, orders, strict=True) for j in o]
            for draws, numbers, rest in below(k + 1, children):
                yield [_draw(a, rows, orders, n), *draws], [children, *numbers], share * rest

    return below(0, [0])


@pytest.mark.parametrize("concentration", [0.3, 2.0])
@pytest.mark.parametrize(
    ("sizes", "counts"),
    [
        ((3, 3), (2, 2)),
        ((3, 2), (2, 1)),
        ((2, 4), (1, 2)),
        ((2, 2, 3), (2, 1, 2)),
        ((2, 2), (2, 2)),
    ],
)
def test_the_mean_over_all_descents_is_the_expectation(
    sizes: tuple[int, ...], counts: tuple[int, ...], concentration: float
) -> None:
    random = torch.Generator().manual_seed(len(sizes) + sum(sizes))
    rows = [math.prod(sizes[:k]) for k in range(len(sizes))]

    def leaf(*shape: int, scale: float = 1.0) -> Tensor:
        values = scale * torch.randn(*shape, dtype=torch.float64, generator=random)
        return values.requires_grad_()

    logits = [leaf(r, k, scale=concentration) for r, k in zip(rows, sizes, strict=True)]
    tiles = [leaf(r, D) for r in rows[1:]]
    f = leaf(math.prod(sizes), D)
    weights = torch.randn(D, dtype=torch.float64, generator=random)
    # One tile holds a cell less than the others, where that leaves it more than one.
    real = [torch.ones(r, k, dtype=torch.bool) for r, k in zip(rows, sizes, strict=True)]
    real[-1][-1, -1] = sizes[-1] < 3
    leaves = [*logits, *tiles, f]

    def attention() -> list[Tensor]:
        return [
            smoothed_log_softmax(x, m, smoothing=0.0).exp()
            for x, m in zip(logits, real, strict=True)
        ]

    exact = f
    for k in reversed(range(len(sizes))):
        exact = (attention()[k].unsqueeze(-1) * exact.view(rows[k], sizes[k], D)).sum(1)
        exact = exact if k == 0 else exact + tiles[k - 1]
    truth = [exact[0].detach(), *torch.autograd.grad(exact[0] @ weights, leaves)]

    a, total, n = attention(), 0.0, 0
    value = torch.zeros(D, dtype=torch.float64)
    loss = torch.zeros((), dtype=torch.float64)
    for draws, numbers, share in _every_descent(a, counts):
        visited = [
            tile_numbers[number] for tile_numbers, number in zip(tiles, numbers[:-1], strict=True)
        ]
        estimate = nested_expectation(draws, visited, f[numbers[-1]])[0]
        value += share * estimate.detach()
        loss = loss + share * (estimate @ weights)
        total, n = total + share, n + 1
    actual = [value, *torch.autograd.grad(loss, leaves)]
    assert total == pytest.approx(1.0)
    assert n > 1
    for mean, expected in zip(actual, truth, strict=True):
        torch.testing.assert_close(mean, expected, atol=1e-12, rtol=0)


# -- rows of cells --------------------------------------------------------------------------------

VIEW = View(spacing_um=1.0, patch_px=16, glimpse_spacing_um=32.0)


def _make_batch(
    images: Sequence[Floats], pool: ThreadPoolExecutor, *, augment: Augment = "none"
) -> Batch:
    items = []
    for i, pixels in enumerate(images):
        image = PyramidImage(pixels.astype(np.uint8))
        glimpse = image.glimpse(VIEW.glimpse_spacing_um)
        items.append(LoadedImage(f"i{i}", image, glimpse, np.full(glimpse.shape[:2], 9, np.uint8)))
    return Batch(
        items,
        view=VIEW,
        normalise=((0.0,) * 3, (1.0,) * 3),
        device=torch.device("cpu"),
        pool=pool,
        augment=augment,
    )


def _tiles(corners: Sequence[tuple[float, float]]) -> Field:
    """Return tiles of 2 x 3 cells of 20 µm; the last one has 1 x 2 cells."""
    random, grids, scores = torch.Generator().manual_seed(4), [], []
    for j, corner in enumerate(corners):
        shape = (1, 2) if j == len(corners) - 1 else (2, 3)
        lattice = Lattice(corner, (20.0, 20.0), shape)
        grids.append([Grid(lattice, 1.0, torch.randn(math.prod(shape), generator=random))])
        scores.append([torch.randn(math.prod(shape), generator=random)])
    return build_field(scores, grids, smoothing=0.01)


CORNERS = [(0.0, 0.0), (100.0, 0.0), (200.0, 60.0), (10.0, 20.0)]
OWNER = [0, 0, 0, 1]


def _cell_centre(corner: tuple[float, float], shape: tuple[int, int], cell: int) -> Floats:
    return np.asarray(corner) + (np.asarray(divmod(cell, shape[1])) + 0.5) * 20.0


def test_children_are_drawn_equally_from_each_tile(
    pool: ThreadPoolExecutor,
) -> None:
    batch = _make_batch([np.zeros((400, 400, 3)), np.zeros((300, 500, 3))], pool)
    field = _tiles(CORNERS)
    torch.manual_seed(0)
    draw, patches = draw_children(batch, field, OWNER, 6, jitter=False)
    # Three tiles share six draws; the tile of the other image has six draws but two cells.
    assert draw.drawn.sum(1).tolist() == [2, 2, 2, 2]
    assert [len(part) for part in patches] == [6, 2]
    centre = torch.from_numpy(np.concatenate([part.centre_um for part in patches]))
    placed = pad_rows(centre, draw.drawn)
    for r, corner in enumerate(CORNERS):
        shape = (1, 2) if r == 3 else (2, 3)
        for c in range(int(draw.drawn[r].sum())):
            cell = int((field.log_a[r].exp() - draw.a[r, c]).abs().argmin())
            np.testing.assert_allclose(placed[r, c], _cell_centre(corner, shape, cell))
    assert (draw.a[~draw.drawn] == 0).all()
    few, _ = draw_children(batch, field, OWNER, 1, jitter=False)
    assert few.drawn.sum(1).tolist() == [1, 1, 1, 1], "a tile that was looked at gives something"


def test_children_are_aligned_to_the_pixels_of_their_image(pool: ThreadPoolExecutor) -> None:
    batch = _make_batch([np.zeros((400, 400, 3)), np.zeros((300, 500, 3))], pool)
    batch.items[1].image.spacing_um = (0.7, 0.7)
    field = _tiles([(0.3, 0.0), (100.3, 0.0), (50.3, 0.0)])
    _, drawn = draw_children(batch, field, [0, 0, 1], 4, jitter=False)
    best, _ = choose_best_children(batch, field, [0, 0, 1], torch.zeros(3), 4)
    for placed, part in (drawn, best):
        assert (placed.origin_um % 1 == 0).all()
        stored_px = part.origin_um / 0.7
        np.testing.assert_allclose(stored_px, np.round(stored_px), atol=1e-9)


def test_best_children_have_the_highest_probability(pool: ThreadPoolExecutor) -> None:
    batch = _make_batch([np.zeros((400, 400, 3)), np.zeros((300, 500, 3))], pool)
    field, path = _tiles(CORNERS), torch.tensor([-1.0, -0.2, -2.0, 0.0])
    patches, log_product = choose_best_children(batch, field, OWNER, path, 5)
    slow = []
    for r, corner in enumerate(CORNERS):
        shape = (1, 2) if r == 3 else (2, 3)
        for cell in range(math.prod(shape)):
            centre = _cell_centre(corner, shape, cell)
            slow.append((float(path[r] + field.log_a[r, cell]), OWNER[r], centre))
    ranked = sorted(slow, key=lambda x: -x[0])
    expected = [[x for x in ranked if x[1] == i][:5] for i in range(2)]
    for part, ranked_cells in zip(patches, expected, strict=True):
        np.testing.assert_allclose(part.centre_um, [centre for _, _, centre in ranked_cells])
    torch.testing.assert_close(
        log_product, torch.tensor([x[0] for ranked_cells in expected for x in ranked_cells])
    )


def test_duplicates_in_overlapping_tiles_are_removed(pool: ThreadPoolExecutor) -> None:
    batch = _make_batch([np.zeros((400, 400, 3))], pool)
    field = _tiles([(0.0, 0.0), (20.0, 20.0), (300.0, 300.0)])
    patches, log_product = choose_best_children(batch, field, [0] * 3, torch.zeros(3), 99)
    # Two cells of the second tile are cells of the first.
    assert len(patches[0]) == len(log_product) == 6 + 6 + 2 - 2
    assert len(suppress_duplicates(patches[0])[0]) == 12


@pytest.mark.parametrize("corner", [(0.0, 0.0), (-37.0, 12.0), (90.0, -75.0), (96.0, 171.0)])
def test_tile_cells_inside_the_image(corner: tuple[float, float]) -> None:
    whole, extent = Lattice((3.0, 3.0), (20.0, 20.0), (4, 5)), (130.0, 210.0)
    part, lattice = clip_to_image(whole, np.asarray(corner), extent)
    inside = []
    for cell in np.ndindex(4, 5):
        centre = np.asarray(corner) + 3 + (np.asarray(cell) + 0.5) * 20
        if (centre >= 0).all() and (centre < extent).all():
            inside.append((cell, centre))
    numbers = np.arange(20).reshape(4, 5)[part]
    assert numbers.flatten().tolist() == [5 * cell[0] + cell[1] for cell, _ in inside]
    assert lattice.shape == numbers.shape
    first = np.asarray(lattice.origin_um) + 10
    np.testing.assert_allclose(first, inside[0][1])


def test_a_tile_beyond_the_image_keeps_its_nearest_cells() -> None:
    grid = Lattice((0.0, 0.0), (20.0, 20.0), (4, 5))
    part, lattice = clip_to_image(grid, np.asarray([140.0, -300.0]), (130.0, 210.0))
    assert part == (slice(0, 1), slice(4, 5))
    assert lattice.origin_um == (140.0, -220.0)


@pytest.mark.parametrize("corner", [(-10.0, 3.0), (13.0, 21.5), (40.0, 70.0), (200.0, 300.0)])
def test_the_tile_prior_matches_the_glimpse_prior(
    pool: ThreadPoolExecutor, corner: tuple[float, float]
) -> None:
    view = View(spacing_um=1.0, patch_px=4, glimpse_spacing_um=6.0)
    image = PyramidImage(np.zeros((60, 90, 3), np.uint8))
    contrast = np.random.default_rng(0).integers(0, 256, (10, 15)).astype(np.uint8)
    item = LoadedImage("i", image, image.glimpse(6.0), contrast)
    lattice = Lattice(corner, (4.0, 4.0), (5, 3))
    prior = compute_tile_prior(item, lattice, view, power=2.0, background=1e-3)
    expected = compute_contrast_prior(item, lattice, view, power=2.0, background=1e-3)
    torch.testing.assert_close(prior, expected)


# -- where it looks -------------------------------------------------------------------------------


class _BrightnessEncoder(AbstractEncoder):
    """Maps of mean brightness."""

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.strides, self.map_dims = 8, (2, 4, 8), (1, 1, 1)
        self.map_centres_px = (1.0, 2.0, 4.0)
        self.scale = torch.nn.Parameter(torch.ones(8))

    def maps(self, x: Tensor) -> list[Tensor]:
        grey = x.mean(1, keepdim=True)
        return [functional.avg_pool2d(grey, s, ceil_mode=True) for s in self.strides]

    def pool(self, maps: list[Tensor]) -> Tensor:
        return maps[-1].mean((1, 2, 3)).unsqueeze(1) * self.scale


def _point_at_darkness(scores: MapScores, stage: int) -> None:
    with torch.no_grad():
        for i, layer in enumerate(scores.project):
            layer.weight.fill_(-1.0 if i == stage else 0.0)
            layer.bias.fill_(2.0 if i == stage else 0.0)
        scores.score[0].weight.fill_(100.0)


def _spotted(spot: tuple[int, int]) -> Floats:
    pixels = np.full((500, 900, 3), 200.0)
    y, x = spot
    pixels[y - 2 : y + 2, x - 2 : x + 2] = 100
    return pixels


def _build_dark_seeking_method(
    zoom: tuple[float, ...], stages: tuple[int, ...], **options: Any
) -> GlimpseZoom:
    """Build a method that looks at all tiles and at the dark cells within them."""
    method = GlimpseZoom(
        encoder=_BrightnessEncoder(),
        heads=[Head("h", 1, False, "max")],
        zoom=zoom,
        looks=32,
        **options,
    )
    for level, stage in zip(method.zoom.levels, stages, strict=True):
        assert isinstance(level, TileLevel)
        _point_at_darkness(level.locate, stage)
    return method


def _shows(origin_um: Floats, spot: tuple[int, int]) -> NDArray[np.bool_]:
    return ((origin_um <= spot) & (spot <= origin_um + 16)).all(1)


SEEKING = pytest.mark.parametrize(("zoom", "stages"), [((8.0,), (0,)), ((8.0, 2.0), (1, 2))])
SPOTS = pytest.mark.parametrize("spot", [(37, 61), (250, 700), (489, 887), (10, 893), (483, 5)])


@SPOTS
@SEEKING
def test_a_spot_invisible_in_the_glimpse_is_reached_by_zoom(
    pool: ThreadPoolExecutor,
    spot: tuple[int, int],
    zoom: tuple[float, ...],
    stages: tuple[int, ...],
) -> None:
    batch = _make_batch([_spotted(spot)], pool)
    assert np.ptp(batch.items[0].glimpse[:15, :28].astype(int)) <= 4
    method = _build_dark_seeking_method(zoom, stages, eval_patches=1).eval()
    with torch.inference_mode():
        (evidence,) = method(batch).evidence
    assert evidence.size_um.tolist() == [[16.0, 16.0]]
    assert _shows(evidence.origin_um, spot).all()


@SPOTS
@SEEKING
def test_turned_crops_do_not_change_draws(
    pool: ThreadPoolExecutor,
    spot: tuple[int, int],
    zoom: tuple[float, ...],
    stages: tuple[int, ...],
) -> None:
    method = _build_dark_seeking_method(zoom, stages, patches=32, jitter=False).train()
    for seed in range(3):
        torch.manual_seed(seed)
        batch = _make_batch([_spotted(spot)], pool, augment="slide")
        maps = [method.encoder.maps(batch.glimpses()[0][None])]
        field = method.attend(batch, maps, scale=method.zoom.scale)
        descent = method.zoom.descend(method.encoder, batch, field, 32, jitter=False)
        assert len(descent.patches[0]) == 32
        assert _shows(descent.patches[0].origin_um, spot).any()


# -- as a method ----------------------------------------------------------------------------------

ZOOMS = [(4.0,), (8.0, 2.0)]
COHORT_VIEW = View(spacing_um=0.5, patch_px=64, glimpse_spacing_um=16.0)


@pytest.fixture(scope="module")
def cases(tiny_cohort: Path) -> list[Case]:
    return list(read_cases(tiny_cohort).cases)[:3]


@pytest.fixture(scope="module")
def loader() -> Iterator[CaseLoader]:
    loader = CaseLoader(COHORT_VIEW)
    yield loader
    loader.close()


def _model(zoom: tuple[float, ...], **options: object) -> Model:
    torch.manual_seed(0)
    settings = {"zoom": zoom, "looks": 4, "patches": 8, "eval_patches": 12, **options}
    encoder = {"width": 8, "dim": 16}
    settled = {"classes": ["normal", "tumour"]}
    card = ModelCard("glimpse_zoom", settings, "small", encoder, "binary", {}, settled, COHORT_VIEW)
    return build_model(card, pretrained=False)


def _load(cases: list[Case], loader: CaseLoader, pool: ThreadPoolExecutor) -> Batch:
    return Batch(
        [loader.load(case) for case in cases],
        view=COHORT_VIEW,
        normalise=((0.5,) * 3, (0.25,) * 3),
        device=torch.device("cpu"),
        pool=pool,
    )


def _evaluate(model: Model, batch: Batch) -> Prediction:
    model.method.eval()
    with torch.inference_mode():
        return model.method(batch)


def _spread_scores(model: Model) -> None:
    """Set the weights of the location heads to random values."""
    for module in model.method.modules():
        if isinstance(module, MapScores):
            torch.nn.init.normal_(module.score[0].weight)


@pytest.mark.parametrize("learnt", [False, True])
@pytest.mark.parametrize("zoom", ZOOMS)
def test_evaluation_with_zoom_is_deterministic_per_image(
    zoom: tuple[float, ...],
    learnt: bool,
    cases: list[Case],
    loader: CaseLoader,
    pool: ThreadPoolExecutor,
) -> None:
    model = _model(zoom)
    if learnt:
        _spread_scores(model)
    together = _evaluate(model, _load(cases, loader, pool))
    again = _evaluate(model, _load(cases, loader, pool))
    assert torch.equal(together.logits, again.logits)
    assert together.logits.isfinite().all()
    for i, case in enumerate(cases):
        batch = _load([case], loader, pool)
        alone, evidence = _evaluate(model, batch), together.evidence[i]
        torch.testing.assert_close(alone.logits[0], together.logits[i], atol=1e-4, rtol=1e-4)
        assert len(evidence) == 12
        np.testing.assert_allclose(evidence.size_um, 32.0)
        np.testing.assert_allclose(alone.evidence[0].origin_um, evidence.origin_um)
        assert evidence.weight.sum() == pytest.approx(1, abs=1e-4)
        centre = evidence.origin_um + evidence.size_um / 2
        extent = np.asarray(batch.items[0].image.box_um.size)
        # Patches are moved by at most half a pixel to lie on whole ones.
        assert ((centre > -0.5) & (centre < extent + 0.5)).all()


@pytest.mark.parametrize("zoom", ZOOMS)
def test_training_with_zoom_reaches_every_level(
    zoom: tuple[float, ...],
    cases: list[Case],
    loader: CaseLoader,
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = _model(zoom, spread=0.0)
    model.method.train()
    descend, outcomes, vectors = model.method.zoom.descend, [], []

    def watched(*arguments: Any, **named: Any) -> Descent:
        down: Descent = descend(*arguments, **named)
        vectors[:] = down.vectors
        for vector in vectors:
            vector.retain_grad()
        return down

    monkeypatch.setattr(model.method.zoom, "descend", watched)
    for _ in range(2):
        torch.manual_seed(3)
        prediction = model.method(_load(cases, loader, pool))
        outcomes.append(prediction.logits)
    assert torch.equal(outcomes[0], outcomes[1])
    target = torch.tensor([0, 1, 1])
    loss = model.task.loss(prediction.logits, target)
    (loss + further_loss(model.task, prediction, target)).backward()
    heads = [m for m in model.method.modules() if isinstance(m, MapScores)]
    assert len(heads) == 1 + len(zoom)
    for head in heads:
        assert head.score[0].weight.grad.abs().sum() > 0
    assert len(vectors) == len(zoom)
    for vector in vectors:
        assert (vector.grad.abs().sum(1) > 0).all()
    for name, parameter in model.method.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name
    for level in model.method.zoom.levels:
        assert level.kind.grad.abs().sum() > 0
        assert 0 < float(level.spread.held) <= 1
    assert set(penalties(prediction)) == {"spread", *(f"spread_{z:g}" for z in zoom)}


def test_the_spread_loss_of_each_level_pulls_to_its_prior(
    cases: list[Case], loader: CaseLoader, pool: ThreadPoolExecutor
) -> None:
    model = _model((8.0, 2.0))
    _spread_scores(model)
    model.method.train()
    losses = penalties(model.method(_load(cases, loader, pool)))
    assert all(loss.item() > 0 for loss in losses.values())
    for name, level in zip(("spread_8", "spread_2"), model.method.zoom.levels, strict=True):
        model.method.zero_grad()
        losses[name].backward(retain_graph=True)
        assert level.locate.score[0].weight.grad.abs().sum() > 0


def test_without_zoom_looks_it_equals_glimpse() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("small", {"width": 8, "dim": 16})
    head = Head("tumour", 1, False, "max")
    plain = Glimpse(encoder=encoder, heads=(head,)).state_dict()
    zoomed = _model((8.0,)).method.state_dict()
    assert plain.keys() < zoomed.keys()
    assert all(name.startswith("zoom.") for name in zoomed.keys() - plain.keys())
    assert all(torch.equal(value, zoomed[name]) for name, value in plain.items())


@pytest.mark.parametrize(
    "options", [{"zoom": (2.0, 8.0)}, {"zoom": (1.0,)}, {"zoom": ()}, {"zoom": (8.0,), "looks": 0}]
)
def test_impossible_zoom_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        _model(**options)  # type: ignore[arg-type]
