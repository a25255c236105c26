"""`downsampled` against plain arithmetic on the glimpse, one number at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray

from foveate.batch import Batch, View
from foveate.encoders.lite0 import Lite0Encoder
from foveate.encoders.small import SmallEncoder
from foveate.loading.loader import CaseLoader
from foveate.methods.base import Prediction
from foveate.methods.downsampled import Downsampled
from foveate.nn.heads import Head
from foveate.table import Case

VIEW = View(spacing_um=0.5, patch_px=32, glimpse_spacing_um=8.0)
HEADS = (Head("grade", 3, True, "none"), Head("tumour", 1, False, "max"))
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
Array = NDArray[np.float64]


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Batch]:
    """Two slides of glass with tissue, of unequal size."""
    folder, rng, cases = tmp_path_factory.mktemp("slides"), np.random.default_rng(0), []
    for i, (height, width) in enumerate([(1024, 1280), (960, 700)]):
        pixels = rng.integers(236, 246, (height, width, 3), np.uint8)
        tissue = rng.integers(90, 200, (400, 300, 3), np.uint8)
        pixels[200 : 200 + len(tissue), 250 : 250 + tissue.shape[1]] = tissue
        path = folder / f"{i}.tif"
        per_cm = (1e4 / 0.5, 1e4 / 0.5)
        options = {"tile": (64, 64), "resolution": per_cm, "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(path, pixels, photometric="rgb", **options)
        cases.append(Case(str(i), str(i), path))
    loader = CaseLoader(VIEW)
    with ThreadPoolExecutor(1) as pool:
        yield Batch(
            [loader.load(case) for case in cases],
            view=VIEW,
            normalise=(MEAN, STD),
            device=torch.device("cpu"),
            pool=pool,
        )
    loader.close()


def answer(method: Downsampled, batch: Batch) -> Prediction:
    method.eval()
    with torch.no_grad():
        return method(batch)


def normalised(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """The glimpse ``(1, 3, y, x)`` that the encoder is shown."""
    x = (pixels / 255.0 - np.array(MEAN)) / np.array(STD)
    return torch.from_numpy(x.transpose(2, 0, 1)[None].astype(np.float32))


def shares(mask: NDArray[np.bool_], cells: Sequence[int]) -> Array:
    """Share of each cell in all foreground: the mean of its pixels, over their sum."""
    mean = np.zeros(cells)
    (h, w), (rows, columns) = mask.shape, cells
    for r in range(rows):
        for c in range(columns):
            y = slice(r * h // rows, math.ceil((r + 1) * h / rows))
            x = slice(c * w // columns, math.ceil((c + 1) * w / columns))
            mean[r, c] = mask[y, x].mean()
    return mean / mean.sum()


def moments(map_: Array, share: Array) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over the cells, as their shares weigh them."""
    means, spreads = [], []
    for channel in map_:
        mean = float((channel * share).sum())
        means.append(mean)
        spreads.append(math.sqrt(float(((channel - mean) ** 2 * share).sum()) + 1e-6))
    return means, spreads


def test_linear_answers_from_features_and_colours(batch: Batch) -> None:
    """With a pretrained encoder: means and spreads of its maps and of colours, times weights."""
    torch.manual_seed(0)
    encoder = Lite0Encoder(dim=8)
    method = Downsampled(encoder=encoder, heads=HEADS)
    head = method.head
    for buffer in (head.weight, head.bias, head.standardise.mean):
        buffer.copy_(0.1 * torch.randn_like(buffer))
    head.standardise.spread.copy_(0.5 + torch.rand_like(head.standardise.spread))
    logits = answer(method, batch).logits.double().numpy()
    weight, bias = head.weight[0].double().numpy(), head.bias[0].double().numpy()
    middle, spread = (x.double().numpy() for x in (head.standardise.mean, head.standardise.spread))
    for i, item in enumerate(batch.items):
        foreground = item.contrast > 0
        assert 0.02 < foreground.mean() < 0.5, "the weights of pixels have something to do"
        with torch.no_grad():
            maps = encoder.maps(normalised(item.glimpse))
            last = encoder.last(maps[-1])
        means, spreads = [], []
        for map_ in maps:
            cells = map_[0].double().numpy()
            of_map = moments(cells, shares(foreground, cells.shape[1:]))
            means += of_map[0]
            spreads += of_map[1]
        cells = last[0].double().numpy()
        features = [*means, *spreads, *moments(cells, shares(foreground, cells.shape[1:]))[0]]
        colours = item.glimpse[foreground] / 255.0
        features += [*colours.mean(0), *colours.std(0)]
        for channel in range(3):
            features += [np.quantile(colours[:, channel], q) for q in (0.05, 0.25, 0.5, 0.75, 0.95)]
        x = (np.array(features) - middle) / spread
        expected = [
            sum(x[d] * weight[d, k] for d in range(len(x))) + bias[k] for k in range(len(bias))
        ]
        np.testing.assert_allclose(logits[i], expected, rtol=1e-3, atol=2e-3)


def test_a_trained_answer_from_the_vector(batch: Batch) -> None:
    """From scratch: the mean and the maximum of the last map, a layer, a norm, a layer."""
    torch.manual_seed(0)
    encoder = SmallEncoder(width=8, dim=6)
    method = Downsampled(encoder=encoder, heads=HEADS)
    logits = answer(method, batch).logits
    norm, _, outputs = method.head
    for i, item in enumerate(batch.items):
        with torch.no_grad():
            last = encoder.eval().maps(normalised(item.glimpse))[-1][0].double().numpy()
        pooled = np.array([*(c.mean() for c in last), *(c.max() for c in last)])
        vector = [
            float(row @ pooled + b)
            for row, b in zip(
                encoder.mix.weight.detach().double().numpy(),
                encoder.mix.bias.detach().double().numpy(),
                strict=True,
            )
        ]
        mean = sum(vector) / len(vector)
        variance = sum((v - mean) ** 2 for v in vector) / len(vector)
        scaled = [
            (v - mean) / math.sqrt(variance + norm.eps) * w + b
            for v, w, b in zip(vector, norm.weight.tolist(), norm.bias.tolist(), strict=True)
        ]
        expected = [
            sum(s * w for s, w in zip(scaled, row, strict=True)) + b
            for row, b in zip(outputs.weight.tolist(), outputs.bias.tolist(), strict=True)
        ]
        np.testing.assert_allclose(logits[i].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_evidence_is_each_cell_of_the_last_map(batch: Batch) -> None:
    """Its box is the cell's place in the image, its weight its share in the sum of activations."""
    torch.manual_seed(0)
    encoder = SmallEncoder(width=8, dim=6)
    encoder.map_centres_px = (1.0, 2.0, 4.0, 7.0)  # off the middle of the cell: it must count
    method = Downsampled(encoder=encoder, heads=HEADS)
    prediction = answer(method, batch)
    for item, evidence in zip(batch.items, prediction.evidence, strict=True):
        with torch.no_grad():
            last = encoder.maps(normalised(item.glimpse))[-1][0].double().numpy()
        origins, weights = [], []
        for row in range(last.shape[1]):
            for column in range(last.shape[2]):
                middle = (8.0 * (7.0 + 16 * row), 8.0 * (7.0 + 16 * column))
                origins.append([m - 8.0 * 16 / 2 for m in middle])
                weights.append(sum(max(float(v), 0.0) for v in last[:, row, column]))
        np.testing.assert_allclose(evidence.origin_um, origins)
        np.testing.assert_allclose(evidence.size_um, np.full_like(origins, 128.0))
        np.testing.assert_allclose(evidence.weight, np.array(weights) / sum(weights), rtol=1e-4)
        np.testing.assert_allclose(evidence.extent_um, np.array(item.image.shape) * 0.5)
        assert evidence.remainder == 0
