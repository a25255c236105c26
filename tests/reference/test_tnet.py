"""Hard attention matches slow geometry, the written-out objective and all possible draws."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from foveate.attention_maps import tree as tree_module
from foveate.attention_maps.forest import TreeAnswers
from foveate.attention_maps.tree_cells import (
    Cut,
    compute_cell_contrast,
    compute_cell_features,
    corners,
)
from foveate.attention_maps.tree_shares import compute_expected_shares
from foveate.batch import Augment, Batch, LoadedImage, View
from foveate.batch.features import FeatureStore
from foveate.encoders.base import AbstractEncoder
from foveate.encoders.small import SmallEncoder
from foveate.errors import OptionError
from foveate.images.resample import Pixels
from foveate.methods.base import Judge, further_loss
from foveate.methods.tnet import Tnet
from foveate.nn.heads import Head
from foveate.nn.reinforce import RunningReward, draw_log_prob, leave_one_out, policy_loss
from foveate.tasks.base import AbstractTask
from foveate.tasks.binary import BinaryTask
from foveate.tasks.multiclass import MulticlassTask
from helpers.images import PyramidImage

VIEW = View(spacing_um=1.0, patch_px=16, glimpse_spacing_um=8.0)
ONE = (Head("a", 1, False, "max"),)
THREE = (Head("class", 3, True, "sum"),)


class Brightness(AbstractEncoder):
    """An encoder whose map is the brightness of 4 x 4 pixels, pooled by the maximum."""

    dim, strides, map_dims = 4, (4,), (1,)
    mean, std = (0.0,) * 3, (1.0,) * 3

    def __init__(self, *, sampled: bool = False) -> None:
        super().__init__()
        self.sampled = sampled
        self.map_centres_px = (0.5,) if sampled else (2.0,)

    def maps(self, x: Tensor) -> list[Tensor]:
        if self.sampled:
            return [functional.avg_pool2d(x[:, :1], 3, 1, 1)[..., ::4, ::4]]
        return [functional.avg_pool2d(x[:, :1], 4, ceil_mode=True)]

    def pool(self, maps: list[Tensor]) -> Tensor:
        return maps[0].amax((-2, -1)).expand(-1, 4)


class Brightest(nn.Module):
    """Scores that are highest where the map of the parent region is brightest."""

    def forward(self, features: Tensor, centre: Tensor, extent: Tensor) -> Tensor:
        return features[:, 0]


class Towards(nn.Module):
    """Scores that are highest for the cells nearest to a point."""

    def __init__(self, point: Tensor) -> None:
        super().__init__()
        self.point = point

    def forward(self, features: Tensor, centre: Tensor, extent: Tensor) -> Tensor:
        return -(centre - self.point).abs().amax(-1)


def load(pixels: Pixels, contrast: Pixels | None = None, view: View = VIEW) -> LoadedImage:
    image = PyramidImage(pixels[..., None].repeat(3, -1), background=(0.0,) * 3)
    glimpse = image.glimpse(view.glimpse_spacing_um)
    foreground = np.ones(glimpse.shape[:2], np.uint8) if contrast is None else contrast
    return LoadedImage("held", image, glimpse, foreground)


def noise(shape: tuple[int, int], seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def make_batch(
    items: list[LoadedImage],
    pool: ThreadPoolExecutor,
    *,
    augment: Augment = "none",
    view: View = VIEW,
    encoder: AbstractEncoder | None = None,
) -> Batch:
    of = encoder or SmallEncoder()
    return Batch(
        items,
        view=view,
        normalise=(of.mean, of.std),
        device=torch.device("cpu"),
        pool=pool,
        augment=augment,
    )


CONSTANTS = {"contrast", "survey", "reinforce", "main", "main_reward"}
"""Constants of the method that tests change."""


def small_tnet(heads: tuple[Head, ...] = ONE, **options: object) -> Tnet:
    torch.manual_seed(0)
    encoder = SmallEncoder(width=4, dim=8)
    settings = {"policy": "top", "levels": None, "locations": (3, 2)} | options
    constants = {key: settings.pop(key) for key in CONSTANTS & settings.keys()}
    method = Tnet(encoder=encoder, heads=heads, dropout=0.0, **settings)
    for key, value in constants.items():
        setattr(method, key, value)
    return method


# -- geometry --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cells", "overlap"), [(3, 0.5), (2, 0.0), (5, 0.34375), (4, 0.2)])
@pytest.mark.parametrize("extent", [10.0, 16.0, 16.1, 33.0, 100.0, 1000.0])
@pytest.mark.parametrize("shift", [None, 0.0, 0.3, 0.999])
def test_the_first_grid_has_the_fewest_possible_cells(
    cells: int, overlap: float, extent: float, shift: float | None
) -> None:
    side = 16.0
    begin = Cut(cells, overlap).over(extent, side, shift)
    assert np.allclose(np.diff(begin), side * (1 - overlap))
    assert begin[0] <= 1e-9
    assert begin[-1] + side >= extent - 1e-9
    points = np.linspace(0, extent, 97)
    assert all(((begin <= p + 1e-9) & (p - 1e-9 <= begin + side)).any() for p in points)
    if shift is None:
        assert begin[0] == pytest.approx(extent - (begin[-1] + side))
        spanned = side + (len(begin) - 2) * side * (1 - overlap)
        assert len(begin) == 1 or spanned < extent
    else:
        still = Cut(cells, overlap).over(extent, side, None)
        assert len(begin) == len(still) + 1
        assert still[0] - begin[0] == pytest.approx(shift * side * (1 - overlap))


@pytest.mark.parametrize(("cells", "overlap"), [(3, 0.5), (2, 0.0), (5, 0.34375)])
def test_cells_tile_their_crop_exactly(cells: int, overlap: float) -> None:
    cut = Cut(cells, overlap)
    begin, side = cut.inside(60.0), 60.0 / cut.zoom
    assert begin[0] == 0
    assert begin[-1] + side == pytest.approx(60.0)
    assert np.allclose((begin[:-1] + side - begin[1:]) / side, overlap)


def test_the_number_of_levels_follows_from_the_zoom() -> None:
    cut = Cut(3, 0.5)
    for glimpse_um, extent in itertools.product((1.0, 2.0, 3.0, 8.0, 100.0), (10.0, 40.0, 9000.0)):
        view = View(spacing_um=1.0, patch_px=16, glimpse_spacing_um=glimpse_um)
        levels = 0
        while 2.0**levels < glimpse_um and 16 * 2.0**levels < extent:
            levels += 1
        assert cut.levels((5.0, extent), view, None) == max(1, levels)
        assert cut.levels((extent, 5.0), view, 2) == max(1, min(2, levels))


@pytest.mark.parametrize(("grid", "overlap"), [(1, 0.5), (3, 1.0), (3, -0.1)])
def test_grids_that_do_not_zoom_are_refused(grid: int, overlap: float) -> None:
    with pytest.raises(OptionError):
        small_tnet(grid=grid, overlap=overlap)


@pytest.mark.parametrize("shape", [(200, 333), (96, 40), (17, 300)])
@pytest.mark.parametrize(("grid", "overlap"), [(3, 0.5), (4, 0.25)])
def test_every_crop_is_a_cell_of_the_crop_above(
    shape: tuple[int, int], grid: int, overlap: float, pool: ThreadPoolExecutor
) -> None:
    """Compare with a loop over all nodes; crops are moved to integer pixels."""
    method = small_tnet(grid=grid, overlap=overlap, locations=(2, 2)).eval()
    batch = make_batch([load(noise(shape))], pool)
    forest = method._descend(batch)
    boxes = list(zip(forest.patches[0].origin_um, forest.patches[0].side_um, strict=True))
    zoom = 1 + (grid - 1) * (1 - overlap)
    depth = method.cut.levels(shape, VIEW, None)
    sides = [16 * zoom ** (depth - level) for level in range(1, depth + 1)]
    above, rest = [], boxes[1:]
    for level, side in enumerate(sides, 1):
        children = [box for box in rest if box[1] == pytest.approx(side)]
        if level == 1:
            above = [(np.array([y, x]), side) for y, x in _slow_cover(shape, side, overlap)]
        else:
            above = [
                (corner + step * np.array([j, k]), side)
                for corner, parent in above
                for j in range(grid)
                for k in range(grid)
                for step in [parent / zoom * (1 - overlap)]
            ]
        for origin, _ in children:
            assert any(np.abs(origin - cell).max() <= 0.5 + 1e-9 for cell, _ in above)
        assert len(children) == min(2 ** min(level, 2), len(above))
        above = children
    assert sides[-1] == 16
    assert len(boxes) == 1 + sum(1 for side in sides for b in rest if b[1] == pytest.approx(side))


def _slow_cover(shape: tuple[int, int], side: float, overlap: float) -> Iterator[tuple[float, ...]]:
    axes = []
    for extent in shape:
        n = 1
        while side + (n - 1) * side * (1 - overlap) < extent - 1e-9:
            n += 1
        left = (extent - side - (n - 1) * side * (1 - overlap)) / 2
        axes.append([left + i * side * (1 - overlap) for i in range(n)])
    yield from itertools.product(*axes)


@pytest.mark.parametrize("shape", [(256, 700), (700, 256)])
@pytest.mark.parametrize("place", [(0.1, 0.9), (0.5, 0.5), (0.999, 0.0)])
def test_a_spot_is_reached_when_the_scores_point_at_it(
    shape: tuple[int, int], place: tuple[float, float], pool: ThreadPoolExecutor
) -> None:
    spot = tuple(int(p * n) for p, n in zip(place, shape, strict=True))
    pixels = np.zeros(shape, np.uint8)
    pixels[spot] = 255
    encoder = Brightness(sampled=True)
    method = Tnet(encoder=encoder, heads=ONE, levels=None, locations=(1,), policy="top").eval()
    point = (torch.tensor(spot) + 0.5 - torch.tensor(shape) / 2) / VIEW.patch_um
    method.locate = Towards(point)
    batch = make_batch([load(pixels)], pool, encoder=encoder)
    patches = method._descend(batch).patches[0]
    assert patches.side_um[1:].tolist() == [64, 32, 16]
    for origin, side in zip(patches.origin_um[1:], patches.side_um[1:], strict=True):
        assert (origin <= np.add(spot, 0.5)).all()
        assert (np.add(spot, 0.5) <= origin + side).all()
    peaks = [float(batch.read_patches([patches[i : i + 1]]).max()) for i in (1, 2, 3)]
    assert peaks[2] == pytest.approx(1)
    assert peaks[0] < peaks[1] < 0.2


@pytest.mark.parametrize("sampled", [True, False])
@pytest.mark.parametrize("shape", [(256, 700), (700, 256), (333, 333)])
@pytest.mark.parametrize("seed", range(4))
def test_map_positions_match_image_positions(
    sampled: bool, shape: tuple[int, int], seed: int, pool: ThreadPoolExecutor
) -> None:
    """Trap 5: axes, aspect and alignment of maps, also for turned slides in training."""
    generator = np.random.default_rng(seed)
    centre = [int(generator.integers(8, n - 8)) for n in shape]
    pixels = np.zeros(shape, np.uint8)
    pixels[centre[0] - 5 : centre[0] + 5, centre[1] - 5 : centre[1] + 5] = 255
    encoder = Brightness(sampled=sampled)
    method = Tnet(encoder=encoder, heads=ONE, levels=None, locations=(1,), policy="top")
    method.locate = Brightest()
    torch.manual_seed(seed)
    for training, augment in ((False, "none"), (True, "none"), (True, "slide")):
        batch = make_batch([load(pixels)], pool, augment=augment, encoder=encoder)
        last = method.train(training)._descend(batch).patches[0][-1:]
        assert (np.abs(last.centre_um[0] - centre) <= 8.5).all()


def test_jitter_moves_the_whole_tree_in_training_only(pool: ThreadPoolExecutor) -> None:
    batch = make_batch([load(noise((256, 256)))], pool)
    method = small_tnet(locations=(99,))

    def corner(method: Tnet) -> tuple[float, ...]:
        return tuple(method._descend(batch).patches[0].origin_um[1:].min(0))

    moved = {corner(method.train()) for _ in range(5)}
    assert len(moved) == 5
    assert all(c <= 0 for offsets in moved for c in offsets)
    assert len({corner(method.eval()) for _ in range(2)}) == 1
    assert len({corner(small_tnet(locations=(99,), jitter=False).train()) for _ in range(2)}) == 1


# -- what cells show -------------------------------------------------------------------------------


def test_cell_features_are_means_over_pixels() -> None:
    """Against maps blown up to pixels; windows on whole pixels."""
    encoder = SmallEncoder(width=4, dim=8)
    maps = [m.requires_grad_() for m in encoder.maps(torch.randn(2, 3, 48, 32))]
    rows, columns = np.array([-4.0, 5, 20, 37]), np.array([0.0, 13, 30])
    actual = compute_cell_features(encoder, maps, (rows, columns), 14.0)
    assert not actual.requires_grad
    slow = []
    for m, stride in zip(maps, encoder.strides, strict=True):
        fine = m.detach().repeat_interleave(stride, -2).repeat_interleave(stride, -1)
        means = [
            fine[..., max(0, int(y)) : int(y) + 14, int(x) : int(x) + 14].mean((-2, -1))
            for y in rows
            for x in columns
        ]
        slow.append(torch.stack(means, 1))
    torch.testing.assert_close(actual, torch.cat(slow, -1), atol=1e-5, rtol=1e-5)


def test_windows_outside_the_map_use_the_nearest_cell() -> None:
    encoder = Brightness()
    maps = [torch.arange(12.0).view(1, 1, 3, 4)]
    far = compute_cell_features(
        encoder, maps, (np.array([-50.0, 90.0]), np.array([-50.0, 90.0])), 4.0
    )
    torch.testing.assert_close(far.flatten(), torch.tensor([0.0, 3.0, 8.0, 11.0]))


def test_cells_without_foreground_are_not_chosen(pool: ThreadPoolExecutor) -> None:
    shape = (200, 333)
    contrast = np.zeros((25, 42), np.uint8)
    contrast[10:12, 30:33] = 7
    contrast[3, 4] = 1
    item = load(noise(shape), contrast)
    axes = (np.array([-20.0, -3, 30, 77.5]), np.array([0.0, 31.5, 240, 300]))
    actual = compute_cell_contrast(item, VIEW, axes, 16.0)
    pixels = contrast.repeat(8, 0).repeat(8, 1)
    halves = pixels.repeat(2, 0).repeat(2, 1)
    for (y, x), mean in zip(corners(axes), actual, strict=True):
        rows, columns = slice(max(0, int(2 * y)), max(0, int(2 * y) + 32)), int(2 * x)
        part = halves[rows, columns : columns + 32]
        assert mean == pytest.approx(part.sum() / 32**2)
    assert 0 < (actual > 0).sum() < len(actual)
    method = small_tnet(locations=(99, 99, 99)).eval()
    patches = method._descend(make_batch([item], pool)).patches[0][1:]
    assert len(patches) > 5
    for origin, side in zip(patches.origin_um, patches.side_um, strict=True):
        low, high = np.floor(origin - 1).clip(0), np.ceil(origin + side + 1)
        (y0, x0), (y1, x1) = low.astype(int), high.astype(int)
        assert pixels[y0:y1, x0:x1].any()


def test_initial_draws_follow_the_contrast_prior(pool: ThreadPoolExecutor) -> None:
    """Draws follow the squared contrast; the published policy has no prior."""
    contrast = np.array([[1, 4, 0], [2, 8, 200]], np.uint8)
    view = View(spacing_um=1.0, patch_px=8, glimpse_spacing_um=8.0)
    batch = make_batch([load(noise((16, 24)), contrast, view)], pool, view=view)
    options = {"overlap": 0.0, "locations": (5,), "jitter": False}
    p = np.array([1, 4, 2, 8, 200]) ** 2.0
    p = np.maximum(p / p.max(), 1e-3) / np.maximum(p / p.max(), 1e-3).sum()
    for policy, draws, expected in (("sampled", 1, p), ("top", 1, np.full(5, 0.2))):
        method = small_tnet(policy=policy, draws=draws, **options).train()
        nn.init.zeros_(method.locate.score.weight)
        forest = method._descend(batch)
        order = [
            {(0, 0): 0, (0, 8): 1, (8, 0): 2, (8, 8): 3, (8, 16): 4}[tuple(origin)]
            for origin in forest.patches[0].origin_um[1:]
        ]
        assert sorted(order) == [0, 1, 2, 3, 4]
        left = 1.0
        for cell, log_prob in zip(order, forest.log_prob[1:].tolist(), strict=True):
            assert math.exp(log_prob) == pytest.approx(expected[cell] / left, rel=1e-4)
            left -= expected[cell] if policy == "sampled" else 0


def test_an_image_of_glass_is_still_sampled(pool: ThreadPoolExecutor) -> None:
    item = load(noise((40, 333)), np.zeros((5, 42), np.uint8))
    for policy in ("top", "sampled"):
        method = small_tnet(locations=(99,), policy=policy)
        for mode in (True, False):
            patches = method.train(mode)._descend(make_batch([item], pool)).patches[0]
            assert (patches.origin_um <= (40, 333)).all(), "moved to whole pixels"
            assert (patches.origin_um + patches.side_um[:, None] > 0).all()
            assert len(patches) > 10


# -- the policy gradient ---------------------------------------------------------------------------


def _ordered(k: int, n: int) -> list[tuple[int, ...]]:
    return list(itertools.permutations(range(k), n))


def test_probabilities_of_ordered_draws_match_enumeration() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, 0.7, -torch.inf], dtype=torch.float64)
    p = logits.softmax(0).tolist()
    draws = _ordered(4, 3)
    index = torch.tensor(draws)
    actual = draw_log_prob(logits.expand(len(draws), -1), index, torch.ones(len(draws), 3) > 0)
    slow = [p[i] * p[j] / (1 - p[i]) * p[k] / (1 - p[i] - p[j]) for i, j, k in draws]
    torch.testing.assert_close(actual.sum(1).exp(), torch.tensor(slow, dtype=torch.float64))
    assert float(actual.sum(1).exp().sum()) == pytest.approx(1, abs=1e-12)


def test_padded_draws_are_ignored_and_finite() -> None:
    logits = torch.tensor([[0.5, -torch.inf, 0.1], [1.0, 0.0, 2.0]], requires_grad=True)
    index = torch.tensor([[2, 0, 1], [0, 1, 2]])
    valid = torch.tensor([[True, True, False], [True, True, True]])
    actual = draw_log_prob(logits, index, valid)
    actual.sum().backward()
    assert actual[0, 2] == 0
    assert actual[0, 1] == 0
    assert actual[1, 2] == 0
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_distant_logits_have_exact_gradients() -> None:
    """Trap 19: a log of a softmax plus epsilon would have none."""
    logits = torch.tensor([[100.0, 0.0, -100.0]], requires_grad=True)
    actual = draw_log_prob(logits, torch.tensor([[2, 1]]), torch.tensor([[True, True]]))
    assert actual.tolist() == [[-200.0, -100.0]]
    actual[0, 0].backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[-1.0, 0.0, 1.0]]))


@pytest.mark.parametrize(("k", "n", "s"), [(2, 1, 2), (2, 1, 3), (4, 2, 2), (3, 3, 2)])
@pytest.mark.parametrize("others", [True, False], ids=["leave one out", "own draw included"])
def test_the_policy_gradient_is_unbiased_unless_the_baseline_contains_its_draw(
    k: int, n: int, s: int, others: bool
) -> None:
    """Trap 17, by enumeration of all ways in which s trees can be drawn."""
    torch.manual_seed(1)
    draws = _ordered(k, n)
    reward = torch.rand(len(draws), dtype=torch.float64)
    logits = torch.randn(k, dtype=torch.float64, requires_grad=True)
    valid = torch.ones(len(draws), n, dtype=torch.bool)
    log_p = draw_log_prob(logits.expand(len(draws), -1), torch.tensor(draws), valid).sum(1)
    (true,) = torch.autograd.grad((log_p.exp() * reward).sum(), logits, retain_graph=True)
    expected = torch.zeros(())
    for joint in itertools.product(range(len(draws)), repeat=s):
        own_reward = reward[list(joint)]
        b = leave_one_out(own_reward) if others else own_reward.mean().expand(s)
        loss = policy_loss(own_reward, b, log_p[list(joint)]).mean()
        expected = expected + log_p.detach()[list(joint)].sum().exp() * loss
    (gradient,) = torch.autograd.grad(-expected, logits)
    share = 1 if others else (s - 1) / s
    torch.testing.assert_close(gradient, share * true, atol=1e-13, rtol=1e-11)
    assert others or not torch.allclose(gradient, true, rtol=0.1)


def test_the_leave_one_out_baseline_needs_two_draws() -> None:
    with pytest.raises(ValueError, match="two"):
        leave_one_out(torch.ones(3, 1))


class Graded(BinaryTask):
    """Rewards by degrees, so that no two trees are worth the same."""

    def correct(self, logits: Tensor, target: Tensor) -> Tensor:
        return torch.sigmoid(20 * logits.detach()[:, 0])


@pytest.mark.parametrize("draws", [1, 2])
def test_the_location_gradient_of_trees_is_unbiased(
    draws: int, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sum over all pairs of trees of two levels, weighted by their probability.

    Only the upper half of the image may be looked at: 2 cells, and 4 in each of them.
    """
    method = small_tnet(
        grid=2,
        overlap=0.0,
        locations=(1,),
        policy="sampled",
        draws=draws,
        jitter=False,
        reinforce=1.0,
    ).train()
    view = View(spacing_um=1.0, patch_px=16, glimpse_spacing_um=4.0)
    contrast = np.zeros((16, 16), np.uint8)
    contrast[:8] = 1
    batch = make_batch([load(noise((64, 64)), contrast, view)], pool, view=view)
    judge = Judge(Graded(classes=("no", "yes")), torch.ones(1))
    parameters = list(method.locate.parameters())
    forced: list[Tensor] = []
    monkeypatch.setattr(tree_module, "draw_without_replacement", lambda *_: forced.pop(0))

    def answers(trees: tuple[tuple[int, int], ...]) -> TreeAnswers:
        forced[:] = [torch.tensor([[tree[level]] for tree in trees]) for level in (0, 1)]
        prediction = method(batch)
        return prediction.further["tree"].answers

    every = list(itertools.product(range(2), range(4)))
    truth, likely = torch.zeros(()), []
    for tree in every:
        answer = answers((tree,) * draws)
        right = judge.correct(answer.logits)[0, 0]
        single_correct = judge.correct(answer.single)[0, 0, 1:].mean()
        p = answer.log_prob[0, 0].sum().exp()
        truth = truth + p * (0.3 * right + 0.7 * single_correct)
        likely.append(p.item())
    assert sum(likely) == pytest.approx(1, abs=1e-5)
    true = torch.cat([g.flatten() for g in torch.autograd.grad(truth, parameters)])
    expected = torch.zeros_like(true)
    for joint in itertools.product(range(len(every)), repeat=draws):
        method.reward = RunningReward(start=0.4)
        loss = method.objective(answers(tuple(every[j] for j in joint)), judge)
        gradient = torch.autograd.grad(-loss, parameters)
        weight = math.prod(likely[j] for j in joint)
        expected += weight * torch.cat([g.flatten() for g in gradient])
    assert true.norm() > 1e-3
    assert (expected - true).norm() < 1e-4 * true.norm()


# -- while the encoder is frozen -------------------------------------------------------------------


def test_survey_shares_match_the_mean_over_all_trees() -> None:
    """Enumerate all trees of 2 crops with 2 children each, drawn with replacement."""
    torch.manual_seed(0)
    parent = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2, 3, 0])
    level = torch.tensor([0, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0])
    valid = torch.arange(11) < 10
    log_prob = torch.zeros(11, dtype=torch.float64)
    for group in ([1, 2, 3], [4, 5], [6, 7, 8], [9]):
        log_prob[group] = torch.randn(len(group), dtype=torch.float64).log_softmax(0)
    p, slow = log_prob.exp(), torch.zeros(11, dtype=torch.float64)
    inside = {
        n: [int(c) for c in torch.nonzero(parent == n)[:, 0] if level[c] == 2] for n in (1, 2, 3)
    }
    for above in itertools.product((1, 2, 3), repeat=2):
        pairs = [itertools.product(inside[n], repeat=2) for n in above]
        for below in itertools.product(*pairs):
            nodes = [*above, *itertools.chain(*below)]
            for node in (0, *nodes):
                slow[node] += p[nodes].prod() / (1 + len(nodes))
    actual = compute_expected_shares(log_prob, parent, level, valid, (2, 2))
    torch.testing.assert_close(actual, slow)


def test_a_survey_computes_crops_once_without_encoder_gradients(
    pool: ThreadPoolExecutor,
) -> None:
    method = small_tnet(policy="sampled", survey=(6, 3)).train()
    images, store = (
        with_distinct_ids(load(noise((200, 333), s)) for s in range(2)),
        FeatureStore(None),
    )
    judge = Judge(BinaryTask(classes=("no", "yes")), torch.tensor([0, 1]))
    origins: set[tuple[float, ...]] = set()
    for step in range(12):
        batch = frozen_batch(images, pool, method.encoder, store)
        prediction = method(batch)
        (prediction.logits.sum() + prediction.further["tree"](judge)).backward()
        forest = method._descend(batch)
        assert max(forest.n_nodes) <= 1 + 6 + 18 + 18
        origins |= {tuple(row) for row in forest.patches[0].origin_um.round(3)}
        if step == 8:
            known = len(origins)
    assert len(origins) == known
    assert all(p.grad is None for p in method.encoder.parameters())
    learnt = [p.grad for p in method.locate.parameters()]
    assert all(g is not None and g.abs().sum() > 0 for g in learnt)


def with_distinct_ids(items: Iterable[LoadedImage]) -> list[LoadedImage]:
    """Give the images distinct ids, so that their cached features stay separate."""
    return [dataclasses.replace(item, image_id=str(i)) for i, item in enumerate(items)]


def frozen_batch(
    items: list[LoadedImage],
    pool: ThreadPoolExecutor,
    encoder: AbstractEncoder,
    store: FeatureStore,
    view: View = VIEW,
) -> Batch:
    return Batch(
        items,
        view=view,
        normalise=(encoder.mean, encoder.std),
        device=torch.device("cpu"),
        pool=pool,
        store=store,
    )


def test_cached_features_give_the_same_predictions(pool: ThreadPoolExecutor) -> None:
    method = small_tnet(policy="sampled").eval()
    nn.init.zeros_(method.locate.score.weight)  # kept in half precision, scores may swap places
    items = with_distinct_ids(load(noise((200, 333), s)) for s in range(2))
    with torch.inference_mode():
        plain = method(make_batch(items, pool))
        for _ in range(2):
            store = FeatureStore(None)
            cached = method(frozen_batch(items, pool, method.encoder, store))
            torch.testing.assert_close(cached.logits, plain.logits, atol=2e-3, rtol=2e-3)
            for evidence, other in zip(cached.evidence, plain.evidence, strict=True):
                assert np.array_equal(evidence.origin_um, other.origin_um)


def textured(seed: int) -> tuple[Pixels, int, tuple[int, int]]:
    """Return noise with a grey block, even or with stripes visible at full resolution only."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 60, (128, 128), dtype=np.uint8)
    corner = tuple(int(c) for c in generator.integers(0, 7, 2) * 16)
    label = seed % 2
    block = np.full((32, 32), 160, np.uint8)
    if label:
        block[:, ::2], block[:, 1::2] = 70, 250
    pixels[corner[0] : corner[0] + 32, corner[1] : corner[1] + 32] = block
    return pixels, label, (corner[0], corner[1])


@pytest.mark.slow
def test_locations_are_learned_with_a_frozen_encoder(pool: ThreadPoolExecutor) -> None:
    """The glimpse shows the position; only full resolution shows the class."""
    torch.manual_seed(0)
    method = Tnet(
        encoder=SmallEncoder(width=8, dim=32),
        heads=ONE,
        locations=(3, 2),
        eval_locations=(3, 2),
    )
    method.survey = (16, 4)
    made = [textured(seed) for seed in range(72)]
    items = with_distinct_ids(load(pixels) for pixels, _, _ in made)
    training, unseen = items[:48], items[48:]
    task, store = BinaryTask(classes=("no", "yes")), FeatureStore(None)
    learnt = [p for name, p in method.named_parameters() if not name.startswith("encoder")]
    optimizer = torch.optim.Adam(learnt, lr=1e-2)

    def share_on_block() -> float:
        forest = method.eval()._descend(frozen_batch(unseen, pool, method.encoder, store))
        on_block = [
            (np.abs(part.centre_um[1:4] - np.add(corner, 16)) < 24).all(1).mean()
            for part, (_, _, corner) in zip(forest.patches, made[48:], strict=True)
        ]
        return float(np.mean(on_block))

    assert share_on_block() < 0.2
    method.train()
    for _ in range(40):
        chosen = torch.randperm(48)[:8].tolist()
        target = torch.tensor([made[i][1] for i in chosen])
        batch = frozen_batch([training[i] for i in chosen], pool, method.encoder, store)
        prediction = method(batch)
        loss = task.loss(prediction.logits, target) + further_loss(task, prediction, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert share_on_block() > 0.6
    logits = method.eval()(frozen_batch(unseen, pool, method.encoder, store)).logits[:, 0]
    truth = torch.tensor([label for _, label, _ in made[48:]])
    assert ((logits > 0) == (truth > 0)).float().mean() > 0.9


# -- the objective ---------------------------------------------------------------------------------


def test_crop_logits_are_pooled_for_sampled_crops() -> None:
    """Only the strongest crop has to predict the label of its image."""
    torch.manual_seed(0)
    method, crops = small_tnet(policy="sampled"), torch.tensor([False, True, True, True, False])
    assert method.head_instance is not None
    assert small_tnet(policy="top").head_instance is None
    f = torch.randn(1, 5, 8)
    pooled = method.head_instance(f, crops[None])
    crop_logits = method.head_instance.parts[0].score(f[0, crops])
    torch.testing.assert_close(pooled[0], crop_logits.amax(0))


def _written_out(
    answers: TreeAnswers, task: AbstractTask, target: Tensor, b: float
) -> tuple[Tensor, float]:
    """Compute the published objective and mean reward, image by image, one tree each."""
    l_c = l_r = 0.3
    l_f, total, rewards = 0.1, torch.zeros((), dtype=torch.float64), []
    for i in range(len(target)):
        n = int(answers.valid[i, 0].sum())
        y = int(target[i])

        def ce(logits: Tensor, y: int = y) -> Tensor:
            return -logits.log_softmax(-1)[y]

        def right(logits: Tensor, y: int = y) -> float:
            return float(int(logits.argmax()) == y)

        main, single = answers.logits[i, 0], answers.single[i, 0, :n]
        log_p = answers.log_prob[i, 0, 1:n]
        loss = l_c * ce(main) + (1 - l_c) * sum(map(ce, single)) / n
        r, r_n = right(main), [right(row) for row in single[1:]]
        alone = sum((r_k - b) * -p for r_k, p in zip(r_n, log_p, strict=True)) / (n - 1)
        policy = l_r * (r - b) * -log_p.sum() + (1 - l_r) * alone
        total = total + (loss + l_f * policy) / len(target)
        rewards.append(l_r * r + (1 - l_r) * sum(r_n) / (n - 1))
    return total, sum(rewards) / len(rewards)


def test_the_loss_equals_the_published_objective() -> None:
    torch.manual_seed(0)
    b, n, k = 5, 6, 3
    valid = torch.arange(n) < torch.tensor([6, 3, 2, 6, 4])[:, None]
    log_prob = (-3 * torch.rand(b, 1, n, dtype=torch.float64)) * valid[:, None]
    log_prob[..., 0] = 0
    parts = [
        torch.randn(b, 1, k, dtype=torch.float64, requires_grad=True),
        torch.randn(b, 1, n, k, dtype=torch.float64, requires_grad=True),
        log_prob.requires_grad_(),
    ]
    answers = TreeAnswers(parts[0], parts[1], valid[:, None], parts[2])
    task = MulticlassTask(classes=("a", "b", "c"), smoothing=0.0)
    target = torch.tensor([0, 1, 2, 2, 0])
    method = small_tnet(THREE)
    counted = task.loss(answers.logits[:, 0], target)
    loss = counted + method.objective(answers, Judge(task, target))
    slow, reward = _written_out(answers, task, target, 0.5)
    assert loss.item() == pytest.approx(slow.item(), abs=1e-6)
    ours, theirs = torch.autograd.grad(loss, parts), torch.autograd.grad(slow, parts)
    for i in (0, 1):
        torch.testing.assert_close(ours[i], theirs[i], atol=1e-6, rtol=1e-6)
    # The whole image and padding are not chosen: what their zeros get reaches nothing.
    torch.testing.assert_close(
        ours[2][answers.chosen], theirs[2][answers.chosen], atol=1e-6, rtol=0
    )
    assert float(method.reward.value) == pytest.approx(0.9 * 0.5 + 0.1 * reward, abs=1e-6)
    repeated = counted + method.objective(answers, Judge(task, target))
    assert repeated.item() == pytest.approx(
        _written_out(answers, task, target, 0.45 + 0.1 * reward)[0].item(), abs=1e-6
    )


def test_the_training_loop_adds_the_objective_once(pool: ThreadPoolExecutor) -> None:
    """Loop loss and further losses sum to the published objective, without double counting."""
    method = small_tnet(THREE).train()
    prediction = method(make_batch([load(noise((90, 130), s)) for s in range(2)], pool))
    task, target = MulticlassTask(classes=("a", "b", "c"), smoothing=0.0), torch.tensor([2, 0])
    answers = prediction.further["tree"].answers
    slow, _ = _written_out(answers, task, target, 0.5)
    total = task.loss(prediction.logits, target) + further_loss(task, prediction, target)
    assert total.item() == pytest.approx(slow.item(), abs=1e-5)


def test_a_judge_asks_the_task_row_by_row() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(2, 4, 5, 3), torch.tensor([1, 2])
    task = MulticlassTask(classes=("a", "b", "c"))
    judge = Judge(task, target)
    loss, right = judge.loss(logits), judge.correct(logits)
    for i, j, k in itertools.product(range(2), range(4), range(5)):
        row = logits[i, j, k]
        slow = task.loss(row[None], target[i : i + 1])
        assert float(loss[i, j, k]) == pytest.approx(float(slow), abs=1e-6)
        assert bool(right[i, j, k]) == (int(row.argmax()) == int(target[i]))


def test_tasks_without_row_losses_are_called_per_row() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(6, 1), torch.tensor([0, 1, 1, 0, 1, 0])
    task = BinaryTask(classes=("no", "yes"))
    slow = AbstractTask.each_loss(task, logits, target)
    torch.testing.assert_close(task.each_loss(logits, target), slow)
    torch.testing.assert_close(slow.mean(), task.loss(logits, target))
    assert task.correct(logits, target).tolist() == ((logits[:, 0] > 0) == (target > 0)).tolist()


# -- the method ------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [2, 256])
@pytest.mark.parametrize("policy", ["top", "sampled"])
def test_the_location_loss_gives_the_encoder_no_gradient(
    policy: Literal["top", "sampled"], chunk: int, pool: ThreadPoolExecutor
) -> None:
    """Trap 16: exactly no gradient."""
    method = small_tnet(policy=policy, chunk=chunk).train()
    prediction = method(make_batch([load(noise((200, 333)))], pool))
    log_prob = prediction.further["tree"].answers.log_prob
    assert (log_prob[..., 1:] < 0).all()
    log_prob.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in method.encoder.parameters())
    learnt = [p.grad for p in method.locate.parameters()]
    assert all(g is not None and g.isfinite().all() for g in learnt)
    assert sum(float(g.abs().sum()) for g in learnt) > 0


def test_chunks_change_neither_predictions_nor_gradients(pool: ThreadPoolExecutor) -> None:
    outcomes = []
    for chunk in (256, 2):
        method = small_tnet(chunk=chunk, jitter=False).train()
        batch = make_batch([load(noise((200, 333), s)) for s in range(2)], pool)
        prediction = method(batch)
        judge = Judge(BinaryTask(classes=("no", "yes")), torch.tensor([0, 1]))
        (prediction.logits.sum() + prediction.further["tree"](judge)).backward()
        outcomes.append((prediction.logits, [p.grad for p in method.parameters()]))
    torch.testing.assert_close(outcomes[0], outcomes[1], atol=1e-5, rtol=1e-4)


def test_top_policy_uses_the_same_crops_in_both_modes(
    pool: ThreadPoolExecutor,
) -> None:
    """Traps 10 and 16: the top policy is deterministic, and sampling is not."""
    batch = make_batch([load(noise((200, 333)))], pool)

    def looked(method: Tnet) -> tuple[float, ...]:
        return tuple(method._descend(batch).patches[0].origin_um.ravel())

    top = small_tnet(jitter=False)
    torch.nn.init.normal_(top.locate.score.weight)
    assert len({looked(top.train(mode)) for mode in (True, True, False)}) == 1
    sampled = small_tnet(jitter=False, policy="sampled", contrast=0.0)
    assert len({looked(sampled.eval()) for _ in range(3)}) == 1
    assert len({looked(sampled.train()) for _ in range(8)}) > 4


@pytest.mark.slow
def test_evaluation_crops_do_not_depend_on_other_draws(pool: ThreadPoolExecutor) -> None:
    """Over many images, crops are drawn with the probabilities of training."""
    method = small_tnet(
        policy="sampled", overlap=0.0, levels=1, locations=(1,), eval_locations=(1,)
    )
    view = View(spacing_um=1.0, patch_px=8, glimpse_spacing_um=8.0)
    contrast = np.array([[1, 4, 3], [2, 5, 4]], np.uint8)
    items = [load(noise((16, 24), seed), contrast, view) for seed in range(300)]
    nn.init.zeros_(method.locate.score.weight)
    method.eval()
    p, frequency = contrast.ravel() ** 2.0, np.zeros(6)
    for item in items:
        forests = [
            method._descend(make_batch([*more, item], pool, view=view)) for more in ([], items[:1])
        ]
        first, second = (forest.patches[-1].origin_um[1] for forest in forests)
        assert (first == second).all()
        frequency[int(first[0] // 8 * 3 + first[1] // 8)] += 1
    noise_of = np.sqrt(300 * p / p.sum() * (1 - p / p.sum()))
    assert (np.abs(frequency - 300 * p / p.sum()) < 3.5 * noise_of).all()


def test_published_scores_are_normalised(pool: ThreadPoolExecutor) -> None:
    """No cell of 25 can have more than a tenth of the probability."""
    options = {"grid": 5, "overlap": 0.0, "locations": (25,), "levels": 1, "jitter": False}
    view = View(spacing_um=1.0, patch_px=16, glimpse_spacing_um=4.0)
    batch = make_batch([load(noise((80, 80)), view=view)], pool, view=view)
    by_policy = {}
    for policy in ("top", "sampled"):
        method = small_tnet(policy=policy, draws=1, **options)
        with torch.no_grad():
            method.locate.score.weight.mul_(1000)
        chosen = method.train()(batch).further["tree"].answers.log_prob[0, 0, 1:]
        assert len(chosen) == 25
        by_policy[policy] = chosen.detach().exp()
    assert float(by_policy["top"].sum()) == pytest.approx(1, abs=1e-5)
    assert 1 / 25 < float(by_policy["top"].max()) < 0.11
    assert float(by_policy["sampled"].max()) > 0.3


def test_images_of_different_depth_are_independent(pool: ThreadPoolExecutor) -> None:
    items = [load(noise(shape, s)) for s, shape in enumerate([(20, 30), (200, 333), (64, 64)])]
    for weighting in (False, True):
        method = small_tnet(weighting=weighting).eval()
        depths = {method.cut.levels(i.image.box_um.size, VIEW, None) for i in items}
        assert len(depths) == 3
        with torch.inference_mode():
            together = method(make_batch(items, pool))
            for i, item in enumerate(items):
                alone = method(make_batch([item], pool))
                torch.testing.assert_close(together.logits[i], alone.logits[0])
                assert np.array_equal(together.evidence[i].size_um, alone.evidence[0].size_um)
        prediction = method.train()(make_batch(items, pool))
        task = BinaryTask(classes=("no", "yes"))
        total = further_loss(task, prediction, torch.tensor([0, 1, 0]))
        total.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


@pytest.mark.parametrize("chunk", [3, 256])
def test_probabilities_stay_in_single_precision(chunk: int, pool: ThreadPoolExecutor) -> None:
    method = small_tnet(policy="sampled", weighting=True, chunk=chunk).train()
    batch = make_batch([load(noise((200, 333)))], pool, augment="slide")
    task = BinaryTask(classes=("no", "yes"))
    with torch.autocast("cpu", torch.bfloat16):
        prediction = method(batch)
        target = torch.tensor([1])
        loss = task.loss(prediction.logits, target) + further_loss(task, prediction, target)
    loss.backward()
    assert prediction.further["tree"].answers.log_prob.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


def test_evidence_is_the_contribution_of_each_box(pool: ThreadPoolExecutor) -> None:
    method = small_tnet(THREE, weighting=True).eval()
    batch = make_batch([load(noise((200, 333)))], pool)
    with torch.inference_mode():
        prediction = method(batch)
        forest = method._descend(batch)
        f, valid, *_ = method._nodes(batch, forest)
        share = method.weigh(f, valid)[0, 0]
        single = method.head(f)[0, 0]
    torch.testing.assert_close(share @ single, prediction.logits[0])
    best = int(prediction.logits[0].argmax())
    added = [float(s * (row[best] - row.mean())) for s, row in zip(share, single, strict=True)]
    positive = np.clip(added[1:], 0, None)
    assert (positive > 0).any()
    evidence = prediction.evidence[0]
    assert len(evidence) == len(forest.patches[0]) - 1
    assert np.allclose(evidence.weight, positive / positive.sum(), atol=1e-5)


def test_feature_weights_match_the_formula() -> None:
    torch.manual_seed(0)
    method = small_tnet(weighting=True)
    module, f = method.weigh, torch.randn(2, 5, 8)
    assert module is not None
    valid = torch.arange(5) < torch.tensor([[5], [3]])
    actual = module(f, valid)
    first, _, second, _ = module.excite
    assert first.out_features == 2
    for i, n in enumerate((5, 3)):
        gate = torch.sigmoid(second(torch.relu(first(f[i, :n].mean(0)))))
        slow = torch.stack([module.score(f[i, j] * gate)[0] for j in range(n)]).softmax(0)
        torch.testing.assert_close(actual[i, :n], slow)
        assert (actual[i, n:] == 0).all()


def test_the_baseline_is_saved_without_gradients() -> None:
    method = small_tnet()
    assert float(method.state_dict()["reward.value"]) == 0.5
    method.reward.update(torch.tensor(1.0, requires_grad=True))
    assert float(method.reward.value) == pytest.approx(0.55)
    again = small_tnet()
    again.load_state_dict(method.state_dict())
    assert float(again.reward.value) == pytest.approx(0.55)
    assert not again.reward.value.requires_grad
