"""Cells without foreground are excluded from attention, whatever their scores."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from foveate.attention_maps.cells import compute_contrast_prior
from foveate.attention_maps.map_scores import lay_pixel_lattice
from foveate.batch import Batch, LoadedImage, View
from foveate.methods.attention_sampling import AttentionSampling
from foveate.methods.base import AbstractMethod
from foveate.methods.differentiable_top_k import DifferentiableTopK
from foveate.methods.glimpse import Glimpse
from foveate.methods.joint_sampling import JointSampling
from foveate.nn.heads import Head
from helpers.images import PyramidImage
from reference.test_sampling_methods import MomentEncoder

VIEW = View(spacing_um=1.0, patch_px=4, glimpse_spacing_um=4.0)
SAMPLING = [
    (Glimpse, {"patches": 6, "eval_patches": 30}),
    (AttentionSampling, {"patches": 6, "eval_patches": 30}),
    (JointSampling, {"patches": 6, "eval_patches": 30, "scales": (1.0, 2.0)}),
    (DifferentiableTopK, {"k": 6}),
]


def _make_batch_with_contrast(pool: ThreadPoolExecutor, contrast: np.ndarray) -> Batch:
    rows, columns = contrast.shape
    pixels = np.random.default_rng(0).integers(0, 256, (rows * 4, columns * 4, 3), np.uint8)
    image = PyramidImage(pixels)
    return Batch(
        [LoadedImage("i", image, image.glimpse(VIEW.glimpse_spacing_um), contrast)],
        view=VIEW,
        normalise=(MomentEncoder.mean, MomentEncoder.std),
        device=torch.device("cpu"),
        pool=pool,
    )


def _half_glass() -> np.ndarray:
    contrast = np.full((12, 16), 90, np.uint8)
    contrast[:, 8:] = 0
    return contrast


@pytest.mark.parametrize(("method", "options"), SAMPLING, ids=lambda v: getattr(v, "__name__", ""))
@pytest.mark.parametrize("training", [True, False])
@torch.no_grad()
def test_no_patch_lies_on_glass_despite_high_scores(
    method: type[AbstractMethod],
    options: dict[str, object],
    training: bool,
    pool: ThreadPoolExecutor,
) -> None:
    torch.manual_seed(0)
    built = method(encoder=MomentEncoder(), heads=(Head("class", 2, True, "max"),), **options)
    for parameter in built.locate.parameters():  # what is learnt is as if by chance
        torch.nn.init.normal_(parameter, std=3.0)
    batch = _make_batch_with_contrast(pool, _half_glass())
    placed = []
    place = batch.place

    def note(i: int, centre_um: np.ndarray, **more: float) -> object:
        placed.append(centre_um)
        return place(i, centre_um, **more)

    batch.place = note  # type: ignore[method-assign]
    built.train(training)(batch)
    centres = np.concatenate(placed)
    assert len(centres) >= 6
    assert centres[:, 1].max() < 8 * VIEW.glimpse_spacing_um


def test_an_image_without_foreground_is_sampled_everywhere(pool: ThreadPoolExecutor) -> None:
    empty = _make_batch_with_contrast(pool, np.zeros((12, 16), np.uint8)).items[0]
    prior = compute_contrast_prior(
        empty, lay_pixel_lattice((12, 16), 4.0), VIEW, power=2.0, background=0.0
    )
    assert torch.isfinite(prior).all()
    assert len(prior.unique()) == 1


def test_faint_tissue_beside_strong_tissue_is_foreground(pool: ThreadPoolExecutor) -> None:
    contrast = _half_glass()
    contrast[:, :4] = 1
    item = _make_batch_with_contrast(pool, contrast).items[0]
    lattice = lay_pixel_lattice((12, 16), 4.0)
    prior = compute_contrast_prior(item, lattice, VIEW, power=2.0, background=0.0).view(12, 16)
    assert torch.isneginf(prior[:, 8:]).all()
    torch.testing.assert_close(prior[:, :4].exp(), torch.full((12, 4), 1e-3))
    torch.testing.assert_close(prior[:, 4:8], torch.zeros(12, 4))


def test_the_uniform_prior_of_the_paper_is_an_option(pool: ThreadPoolExecutor) -> None:
    item = _make_batch_with_contrast(pool, _half_glass()).items[0]
    lattice = lay_pixel_lattice((12, 16), 4.0)
    prior = compute_contrast_prior(item, lattice, VIEW, power=0.0, background=1.0)
    torch.testing.assert_close(prior, torch.zeros(12 * 16))
