"""Sampling methods match sums over all cells, which are cut from the image by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import box_around, penalties
from foveate.attention_maps.cells import PriorCache
from foveate.batch import Batch, LoadedImage, View
from foveate.encoders.base import AbstractEncoder
from foveate.errors import OptionError
from foveate.methods import attention_sampling, joint_sampling
from foveate.methods.attention_sampling import AttentionSampling
from foveate.methods.base import AbstractMethod, Prediction
from foveate.methods.differentiable_top_k import DifferentiableTopK
from foveate.methods.joint_sampling import JointSampling
from foveate.nn.heads import Head
from foveate.parts.options import options as options_of
from helpers.images import PyramidImage

VIEW = View(spacing_um=1.0, patch_px=4, glimpse_spacing_um=6.0)
HEADS = (Head("class", 2, True, "max"),)
PLAIN: dict[str, Any] = {"instance": 0.0, "jitter": False}


class MomentEncoder(AbstractEncoder):
    """An encoder with maps of strides 1 and 2, and fixed nonlinear moments as features."""

    dim, strides, map_dims, map_centres_px = 4, (1, 2), (3, 3), (0.5, 1.0)
    mean, std = (0.2, 0.5, 0.4), (0.3, 0.2, 0.6)

    def __init__(self) -> None:
        super().__init__()
        mixing = torch.randn(4, 6, generator=torch.Generator().manual_seed(4))
        self.mixing = nn.Parameter(mixing)

    def maps(self, x: Tensor) -> list[Tensor]:
        even = nn.functional.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2), "replicate")
        return [x, nn.functional.avg_pool2d(even, 2)]

    def pool(self, maps: list[Tensor]) -> Tensor:
        first = maps[0]
        moments = torch.cat([first.mean((-2, -1)), first.square().mean((-2, -1))], 1)
        return torch.tanh(moments @ self.mixing.T)


def _image(seed: int = 0, shape: tuple[int, int] = (12, 18)) -> PyramidImage:
    return PyramidImage(np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8))


def _make_batch(pool: ThreadPoolExecutor, *images: PyramidImage, view: View = VIEW) -> Batch:
    items = []
    for i, image in enumerate(images):
        glimpse = image.glimpse(view.glimpse_spacing_um)
        random = np.random.default_rng(i)
        distance = random.integers(120, 256, glimpse.shape[:2]).astype(np.uint8)
        items.append(LoadedImage(f"i{i}", image, glimpse, distance))
    return Batch(
        items,
        view=view,
        normalise=(MomentEncoder.mean, MomentEncoder.std),
        device=torch.device("cpu"),
        pool=pool,
    )


def _build(method: type[AbstractMethod], **options: Any) -> Any:
    """Build a method with the moment encoder and nonzero scores and head."""
    torch.manual_seed(0)
    settings = {**PLAIN, **options}
    known = {key: value for key, value in settings.items() if key in options_of(method)}
    built: Any = method(encoder=MomentEncoder(), heads=HEADS, **known)
    power, background = settings.pop("contrast", None), settings.pop("background", None)
    if power is not None or background is not None:
        built._priors = PriorCache(
            power=2.0 if power is None else power, background=background or 0.0
        )
    for key in settings.keys() - known.keys():  # constants of the method
        assert hasattr(built, key), key
        setattr(built, key, settings[key])
    for parameter in built.locate.parameters():
        nn.init.normal_(parameter, std=0.5)
    return built


def _embedded(encoder: MomentEncoder, pixels: Any) -> Tensor:
    """Return the features of one patch ``(h, w, 3)`` of bytes."""
    scaled = (
        torch.from_numpy(pixels.astype(np.float32)) / 255 - torch.tensor(MomentEncoder.mean)
    ) / (torch.tensor(MomentEncoder.std))
    vector: Tensor = encoder(scaled.permute(2, 0, 1)[None])[0]
    return vector


def _cut(image: PyramidImage, cell: tuple[int, int]) -> Any:
    """Return the 4 x 4 patch in the middle of a 6 x 6 cell."""
    y, x = 6 * cell[0] + 1, 6 * cell[1] + 1
    return image.pixels[y : y + 4, x : x + 4]


def _fine_features(
    encoder: MomentEncoder, image: PyramidImage, shape: tuple[int, int] = (2, 3)
) -> Tensor:
    return torch.stack([_embedded(encoder, _cut(image, c)) for c in np.ndindex(*shape)])


def _long(f: Tensor) -> Tensor:
    return 2.0 * f / f.norm(dim=-1, keepdim=True)


def _sequences(a: Tensor, n: int, replacement: bool) -> Iterator[tuple[tuple[int, ...], float]]:
    """Yield every ordered draw and its probability."""
    values = a.detach().double().tolist()
    cells = range(len(values))
    if replacement:
        for order in itertools.product(cells, repeat=n):
            yield order, math.prod(values[i] for i in order)
        return
    for order in itertools.permutations(cells, n):
        left, probability = 1.0, 1.0
        for i in order:
            probability *= values[i] / left
            left -= values[i]
        yield order, probability


def _over_all_draws(
    method: Any,
    batch: Batch,
    a: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    *,
    replacement: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """Return the expected logits ``(k,)`` and the expected gradients of their weighted sum."""
    name = "draw_with_replacement" if replacement else "draw_without_replacement"
    method.train()
    parameters = [p for p in method.parameters() if p.requires_grad]
    value, total = torch.zeros(2), [torch.zeros_like(p) for p in parameters]
    for order, probability in _sequences(a, method.patches, replacement):
        monkeypatch.setattr(module, name, lambda *_, order=order: torch.tensor([order]))
        logits = method(batch).logits[0]
        gradients = torch.autograd.grad(_scalar(logits), parameters, allow_unused=True)
        value += probability * logits.detach()
        for t, g in zip(total, gradients, strict=True):
            t += probability * (0.0 if g is None else g)
    return value, total


def _scalar(logits: Tensor) -> Tensor:
    return logits @ torch.tensor([1.0, -0.3])


def _assert_same_gradients(method: Any, logits: Tensor, expected: Sequence[Tensor]) -> None:
    parameters = [p for p in method.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(_scalar(logits), parameters, allow_unused=True)
    for exact, mean in zip(gradients, expected, strict=True):
        exact = torch.zeros_like(mean) if exact is None else exact
        torch.testing.assert_close(mean, exact, atol=2e-5, rtol=2e-3)
    locate = [float(g.abs().sum()) for g in expected]
    assert sum(v > 1e-4 for v in locate) >= 4, "attention, encoder and head receive gradients"


# -- attention sampling -----------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["own", "encoder"])
@pytest.mark.parametrize(("replacement", "baseline"), [(False, False), (False, True), (True, True)])
def test_attention_sampling_is_the_sum_over_all_cells(
    attention: str,
    replacement: bool,
    baseline: bool,
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = _build(
        AttentionSampling,
        patches=2,
        attention=attention,
        replacement=replacement,
        baseline=baseline,
        smoothing=0.1,
    )
    image = _image()
    batch = _make_batch(pool, image)
    a = method._locate(batch).log_a[0].exp()
    assert a.shape == (6,)
    assert a.max() > 1.3 * a.min()
    exact = method.head(a @ _long(_fine_features(method.encoder, image)))
    value, gradients = _over_all_draws(
        method, batch, a, monkeypatch, attention_sampling, replacement=replacement
    )
    torch.testing.assert_close(value, exact.detach(), atol=1e-5, rtol=1e-4)
    _assert_same_gradients(method, exact, gradients)


def test_evaluation_by_expectation_and_by_the_strongest_cells(pool: ThreadPoolExecutor) -> None:
    image = _image()
    batch = _make_batch(pool, image)
    method = _build(AttentionSampling, eval_patches=3).eval()
    a = method._locate(batch).log_a[0].exp().detach()
    f = _long(_fine_features(method.encoder, image)).detach()
    with torch.no_grad():
        prediction = method(batch)
        drawn = method._choose(batch, method._locate(batch))[0].tolist()
        terms, drawn_sum = [], torch.zeros(4)
        for j, i in enumerate(drawn):
            terms.append(drawn_sum + (1 - sum(a[k] for k in drawn[:j])) * f[i])
            drawn_sum = drawn_sum + a[i] * f[i]
        torch.testing.assert_close(prediction.logits[0], method.head(torch.stack(terms).mean(0)))
        outputs = torch.stack(terms) @ method.head.weight.T
        torch.testing.assert_close(prediction.deviation[0], outputs.std(0) / math.sqrt(3))
        method.inference = "top"
        best = method(batch)
        chosen = sorted(range(6), key=lambda c: -float(a[c]))[:3]
        share = a[chosen] / a[chosen].sum()
        torch.testing.assert_close(best.logits[0], method.head(share @ f[chosen]))
    assert best.deviation is None
    np.testing.assert_allclose(best.evidence[0].weight, share.numpy(), atol=1e-6)
    centres = [[6 * (c // 3) + 3, 6 * (c % 3) + 3] for c in chosen]
    np.testing.assert_allclose(best.evidence[0].origin_um + 2, centres)


def test_deviation_of_one_draw_matches_all_draws(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean of the squared deviations is the variance of the logits over all draws."""
    batch = _make_batch(pool, _image())
    method = _build(AttentionSampling, eval_patches=2).eval()
    with torch.no_grad():
        a = method._locate(batch).log_a[0].exp()
        logits, squares, shares = [], [], []
        for order, probability in _sequences(a, 2, replacement=False):
            monkeypatch.setattr(
                attention_sampling,
                "choose_for_evaluation",
                lambda *_, order=order: torch.tensor([order]),
            )
            gradients: Prediction = method(batch)
            assert gradients.deviation is not None
            logits.append(gradients.logits[0].double())
            squares.append(gradients.deviation[0].double().square())
            shares.append(probability)
    share = torch.tensor(shares, dtype=torch.float64)
    values = torch.stack(logits)
    variance = share @ (values - share @ values).square()
    torch.testing.assert_close(share @ torch.stack(squares), variance, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("attention", ["own", "encoder"])
@pytest.mark.parametrize("place", [(17, 42), (2, 72), (32, 7)])
def test_patches_are_centred_on_the_bright_pixel(
    attention: str, place: tuple[int, int], pool: ThreadPoolExecutor
) -> None:
    """With unequal sides that are no multiples, an error of half a cell or axis is visible."""
    pixels = np.zeros((36, 78, 3), np.uint8)
    pixels[place] = 255
    view = View(spacing_um=1.0, patch_px=9, glimpse_spacing_um=5.0)
    batch = _make_batch(pool, PyramidImage(pixels), view=view)
    method = _build(AttentionSampling, attention=attention, inference="top", eval_patches=1).eval()
    if attention == "own":
        for layer in method.locate.layers:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            layer.weight.data[0, 0, 1, 1] = 1.0
    else:
        for project in method.locate.project:
            nn.init.zeros_(project.weight)
            nn.init.constant_(project.bias, 5.0)
        method.locate.project[0].weight.data[0, 0] = 1.0
        nn.init.ones_(method.locate.score[0].weight)
    with torch.no_grad():
        patches = method._locate(batch).patches(
            batch, method._choose(batch, method._locate(batch)), jitter=False
        )
        (crop,) = batch.read_patches(patches)
    row, column = divmod(int(crop.mean(0).argmax()), 9)
    assert (row, column) == (4, 4)


def test_a_three_pixel_blob_is_visible_in_the_glimpse() -> None:
    """At scale .12 the blob covers a third of a pixel; nearest-pixel sampling would lose it."""
    maxima = []
    for offset in range(9):
        pixels = np.zeros((100, 150, 3), np.uint8)
        pixels[40 + offset : 43 + offset, 70 + offset : 73 + offset] = 255
        glimpse = PyramidImage(pixels).glimpse(1 / 0.12)
        assert glimpse.shape == (12, 18, 3)
        maxima.append(int(glimpse.max()))
        total = glimpse[..., 0].astype(float).sum()
        assert total == pytest.approx(255 * 9 * 0.12**2, rel=0.15)
    assert min(maxima) >= 10


@pytest.mark.parametrize("attention", ["own", "encoder"])
def test_a_constant_image_has_equal_features_at_the_border(
    attention: str, pool: ThreadPoolExecutor
) -> None:
    image = PyramidImage(np.full((24, 36, 3), (180, 90, 200), np.uint8))
    view = View(spacing_um=1.0, patch_px=10, glimpse_spacing_um=6.0)
    batch = _make_batch(pool, image, view=view)
    method = _build(AttentionSampling, attention=attention, eval_patches=24).eval()
    with torch.no_grad():
        field = method._locate(batch)
        torch.testing.assert_close(field.log_a, torch.full_like(field.log_a, -math.log(24)))
        patches = field.patches(batch, torch.arange(24)[None], jitter=False)
        crops = batch.read_patches(patches)
    assert (patches[0].origin_um < 0).any()
    assert (crops == crops[:1, :, :1, :1]).all()


@pytest.mark.parametrize("method", [AttentionSampling, JointSampling, DifferentiableTopK])
def test_a_spread_loss_step_raises_the_entropy(
    method: type[AbstractMethod], pool: ThreadPoolExecutor
) -> None:
    """A step raises the entropy; for joint sampling, relative to its uneven start."""
    built = _build(method, contrast=0.0, background=1.0, spread=1.0).train()
    batch = _make_batch(pool, _image(), _image(1))

    def entropy() -> float:
        field = built._locate(batch)
        log_a, even = field.log_a.detach(), method is not JointSampling
        start = torch.zeros_like(log_a) if even else field.log_prior
        return float((log_a.exp() * (start - log_a)).sum())

    before = entropy()
    penalties(built(batch))["spread"].backward()
    learnt = [p for p in built.locate.parameters() if p.grad is not None]
    norm = torch.stack([p.grad.norm() for p in learnt]).norm()
    with torch.no_grad():
        for parameter in learnt:
            parameter -= 0.01 * parameter.grad / norm
    assert entropy() > before + 1e-5


@pytest.mark.parametrize("method", [AttentionSampling, JointSampling])
def test_concentrated_attention_gives_finite_gradients(
    method: type[AbstractMethod], pool: ThreadPoolExecutor
) -> None:
    options = {"smoothing": 0.0, "attention": "encoder"} if method is AttentionSampling else {}
    built = _build(method, **options)
    built.explore = 0.0
    with torch.no_grad():
        for parameter in built.locate.parameters():
            parameter *= 30
    batch = _make_batch(pool, _image())
    assert built._locate(batch).log_a.exp().max() > 1 - 1e-6
    prediction = built.train()(batch)
    (_scalar(prediction.logits[0]) + sum(penalties(prediction).values())).backward()
    assert all(p.grad.isfinite().all() for p in built.parameters() if p.grad is not None)


# -- joint sampling ---------------------------------------------------------------------------


def _all_features(method: JointSampling, image: PyramidImage) -> Tensor:
    """Return the features of the 6 fine cells and of the 2 coarse cells of 12 x 12."""
    f = [*_fine_features(method.encoder, image)]
    for x in (6.0, 18.0):
        coarse = image.read_at(box_around((6.0, x), (16.0, 16.0)), (4, 4))
        f.append(_embedded(method.encoder, coarse))
    level = torch.tensor([0] * 6 + [1] * 2)
    return _long(torch.stack(f) + method.scale_code[level])


def test_joint_sampling_is_the_sum_over_all_cells_of_all_scales(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = _build(JointSampling, patches=2, scales=(1.0, 4.0), explore=0.2)
    nn.init.normal_(method.scale_code, std=0.3)
    image = _image()
    batch = _make_batch(pool, image)
    a = method._locate(batch).log_a[0].exp()
    assert a.shape == (8,)
    exact = method.head(a @ _all_features(method, image))
    value, gradients = _over_all_draws(method, batch, a, monkeypatch, joint_sampling)
    torch.testing.assert_close(value, exact.detach(), atol=1e-5, rtol=1e-4)
    _assert_same_gradients(method, exact, gradients)


@pytest.mark.parametrize("explore", [0.0, 0.1])
@pytest.mark.parametrize("power", [0.0, 2.0])
def test_scales_start_with_equal_mass(
    power: float, explore: float, pool: ThreadPoolExecutor
) -> None:
    method = JointSampling(encoder=MomentEncoder(), heads=HEADS, scales=(1.0, 4.0))
    method.explore, method._priors = explore, PriorCache(power=power, background=0.0)
    batch = _make_batch(pool, _image(0, (60, 90)), _image(1, (36, 48)))
    field = method._locate(batch)
    assert [[len(g.log_prior) for g in image_grids] for image_grids in field.grids] == [
        [150, 40],
        [48, 12],
    ]
    torch.testing.assert_close(field.shares(), torch.full((2, 2), 0.5))
    prior = field.log_prior[1, :60].exp()
    torch.testing.assert_close(prior[:48].sum(), prior[48:].sum())


def test_evidence_states_the_share_of_each_magnification(pool: ThreadPoolExecutor) -> None:
    method = _build(JointSampling, scales=(1.0, 4.0)).eval()
    batch = _make_batch(pool, _image())
    with torch.no_grad():
        shares = method._locate(batch).shares()[0]
        (evidence,) = method(batch).evidence
    sizes = evidence.size_um[:, 0]
    for size, share in ((4.0, shares[0]), (16.0, shares[1])):
        assert evidence.weight[sizes == size].sum() == pytest.approx(float(share), abs=1e-5)


def test_a_scale_without_attention_is_dropped_after_the_warm_up(pool: ThreadPoolExecutor) -> None:
    method = _build(JointSampling, scales=(1.0, 4.0), warm_up=0.5, drop_below=0.1, patches=8)
    nn.init.constant_(method.locate.score[1].bias, -9.0)
    batch = _make_batch(pool, _image())
    method.train()
    q = float(method._locate(batch).shares()[0, 1].detach())
    assert q < 0.01
    for step in range(150):
        method.begin_step(0.49)
        with torch.no_grad():
            method(batch)
        expected = q + (0.5 - q) * 0.98 ** (step + 1)
        assert float(method.share[1]) == pytest.approx(expected, abs=1e-4)
    assert method.findings()["level_share_4"] == pytest.approx(expected, abs=1e-4)
    assert method.kept.tolist() == [True, True]
    method.begin_step(0.5)
    assert method.kept.tolist() == [True, False]
    assert method.findings()["level_share_4"] == 0
    method.share = torch.tensor([0.4, 0.6])
    method.begin_step(0.6)
    assert method.kept.tolist() == [True, False], "what is dropped stays so"
    again = _build(JointSampling, scales=(1.0, 4.0))
    again.load_state_dict(method.state_dict())
    for module in (method, again.eval()):
        field = module._locate(batch)
        assert field.log_a[0, 6:].isneginf().all()
        torch.testing.assert_close(field.shares(), torch.tensor([[1.0, 0.0]]))
    (evidence,) = again(batch).evidence
    assert sorted(set(evidence.size_um[:, 0])) == [4.0]
    assert len(evidence) == 6
    loss = sum(penalties(method(batch)).values())
    loss.backward()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


def test_the_last_scale_is_never_dropped(pool: ThreadPoolExecutor) -> None:
    method = _build(JointSampling, scales=(1.0, 2.0, 4.0), drop_below=0.9, warm_up=0.1)
    method.share = torch.tensor([0.3, 0.4, 0.3])
    method.begin_step(0.2)
    assert method.kept.tolist() == [False, True, False]
    assert method.eval()(_make_batch(pool, _image())).logits.isfinite().all()


def test_balance_is_the_divergence_from_equal_shares_and_fades(pool: ThreadPoolExecutor) -> None:
    method = _build(JointSampling, scales=(1.0, 4.0), balance=3.0, warm_up=0.4).train()
    nn.init.constant_(method.locate.score[1].bias, -2.0)
    batch = _make_batch(pool, _image(), _image(1))
    q = method._locate(batch).shares().detach()
    apart = float((q * (2 * q).log()).sum(1).mean())
    assert apart > 0.05
    for progress, weight in ((0.0, 3.0), (0.1, 2.25), (0.3, 0.75)):
        method.begin_step(progress)
        loss = penalties(method(batch))["balance"]
        assert loss.item() == pytest.approx(weight * apart, rel=1e-3)
    loss.backward()
    assert method.locate.score[1].bias.grad < 0, "a step gives the scale that lags more"
    method.begin_step(0.4)
    assert "balance" not in method(batch).further


def test_price_is_the_expected_number_of_decoded_pixels(pool: ThreadPoolExecutor) -> None:
    full = np.random.default_rng(0).integers(0, 256, (48, 72, 3), np.uint8)
    plain, pyramid = PyramidImage(full), PyramidImage(full, full[::4, ::4])
    method = _build(JointSampling, scales=(1.0, 4.0), price=0.5, explore=0.0).train()
    batch = _make_batch(pool, plain, pyramid)
    shares = method._locate(batch).shares().detach()
    # Without a level at a quarter of the resolution, a coarse patch decodes 16 pixels for each.
    costs = torch.tensor([[1.0, 16.0], [1.0, 1.0]])
    loss = penalties(method(batch))["price"]
    torch.testing.assert_close(loss, 0.5 * (shares * costs).sum(1).mean())
    loss.backward()
    assert method.locate.score[1].bias.grad > 0


def test_wrong_scales_are_refused() -> None:
    for scales in ((), (1.0, 1.0), (0.0, 2.0)):
        with pytest.raises(OptionError, match="scales"):
            JointSampling(encoder=MomentEncoder(), heads=HEADS, scales=scales)


# -- differentiable top-k ---------------------------------------------------------------------


def _pooled(method: DifferentiableTopK, batch: Batch) -> Tensor:
    """Return the pooled features ``(b, d)`` that enter the head."""
    method.head = nn.Identity()
    return method(batch).logits


def _choice(method: DifferentiableTopK, batch: Batch, many: int = 40_000) -> tuple[Tensor, Tensor]:
    """Return how often each cell is chosen under noise, and the scores without noise."""
    log_a = method._locate(batch).log_a[0].detach().double()
    scores = (log_a - log_a.min()) / max(float(log_a.max() - log_a.min()), 1.0)
    noise = torch.randn(many, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    best = (scores + method.sigma * noise).argsort(1, descending=True)[:, : method.k]
    return torch.bincount(best.flatten(), minlength=6) / best.numel(), scores


@pytest.mark.parametrize("stretched", [False, True])
def test_top_k_is_the_mean_over_noise_of_all_cells(
    stretched: bool, pool: ThreadPoolExecutor
) -> None:
    method = _build(DifferentiableTopK, k=2, sigma=0.3, samples=40_000, contrast=0.0).train()
    with torch.no_grad():
        method.locate.score[0].weight *= 8.0 if stretched else 0.1
    image = _image()
    batch = _make_batch(pool, image)
    often, scores = _choice(method, batch)
    assert (float(scores.max()) == 1.0) == stretched
    assert (often > 0.02).sum() >= 4
    exact = often.float() @ _fine_features(method.encoder, image)
    torch.manual_seed(0)
    torch.testing.assert_close(_pooled(method, batch)[0], exact.detach(), atol=0.01, rtol=0)


def test_top_k_gradient_matches_the_smoothed_mean(pool: ThreadPoolExecutor) -> None:
    """The gradient matches finite differences of the exact integral over the noise."""
    method = _build(DifferentiableTopK, k=1, sigma=0.3, samples=60_000).train()
    image = _image()
    batch = _make_batch(pool, image)
    direction = torch.tensor([1.0, -0.5, 0.3, 2.0])
    value = _fine_features(method.encoder, image).detach() @ direction

    def smoothed(bias: float) -> float:
        with torch.no_grad():
            log_a = method._locate(batch).log_a[0].double()
        log_a = log_a + bias * torch.arange(6)
        scores = (log_a - log_a.min()) / max(float(log_a.max() - log_a.min()), 1.0)
        t = torch.linspace(-4, 4, 8001, dtype=torch.float64)[:, None]
        normal = torch.distributions.Normal(scores, method.sigma)
        below = normal.cdf(t).clamp_min(1e-300)
        density = normal.log_prob(t).exp() * below.prod(1, keepdim=True) / below
        return float(torch.trapezoid(density, t, dim=0) @ value.double())

    torch.manual_seed(0)
    shift = torch.zeros((), requires_grad=True)
    original = method._locate

    def shifted(batch: Batch) -> Any:
        field = original(batch)
        log_a = field.log_a + shift * torch.arange(6)
        return type(field)(field.grids, log_a, field.log_prior, field.real)

    method._locate = shifted
    (gradient,) = torch.autograd.grad(_pooled(method, batch)[0] @ direction, shift)
    expected = (smoothed(1e-3) - smoothed(-1e-3)) / 2e-3
    assert abs(expected) > 0.05
    assert float(gradient) == pytest.approx(expected, rel=0.1)


def test_evaluation_is_the_mean_of_the_k_best(pool: ThreadPoolExecutor) -> None:
    method = _build(DifferentiableTopK, k=3).eval()
    image, small = _image(), _image(1, (6, 12))
    batch = _make_batch(pool, image, small)
    with torch.no_grad():
        log_a = method._locate(batch).log_a
        actual = _pooled(method, batch)
        best = sorted(range(6), key=lambda c: -float(log_a[0, c]))[:3]
        expected = _fine_features(method.encoder, image)[best].mean(0)
        torch.testing.assert_close(actual[0], expected)
        both = _fine_features(method.encoder, small, (1, 2)).mean(0)
        torch.testing.assert_close(actual[1], both)
        first, second = method(batch).evidence
    np.testing.assert_allclose(first.weight, [1 / 3] * 3)
    np.testing.assert_allclose(second.weight, [0.5, 0.5])


def test_the_most_often_chosen_cells_are_kept(pool: ThreadPoolExecutor) -> None:
    method = _build(DifferentiableTopK, k=2, most=3, sigma=0.3, samples=40_000).train()
    image = _image()
    batch = _make_batch(pool, image)
    often, _ = _choice(method, batch)
    best = often.argsort(descending=True)[:3]
    share = often[best] / often[best].sum()
    exact = share.float() @ _fine_features(method.encoder, image)[best]
    torch.testing.assert_close(_pooled(method, batch)[0], exact.detach(), atol=0.01, rtol=0)
    findings = method.findings()
    assert findings["patches_read"] == 3
    assert findings["weight_dropped"] == pytest.approx(1 - float(often[best].sum()), abs=0.01)


def test_top_k_noise_decays_to_the_hard_choice(pool: ThreadPoolExecutor) -> None:
    method = _build(DifferentiableTopK, k=2, sigma=0.2).train()
    batch = _make_batch(pool, _image())
    method.begin_step(0.75)
    assert method._now_sigma == pytest.approx(0.05)
    method.begin_step(0.9999)
    nearly = _pooled(method, batch).detach()
    torch.testing.assert_close(nearly, _pooled(method.eval(), batch).detach())
