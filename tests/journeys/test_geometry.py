"""A spot at a known place, from the file through glimpse, attention and patch to GeoJSON."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from foveate.attention_maps.cells import PriorCache
from foveate.batch import Batch, View
from foveate.encoders import build_encoder
from foveate.exports.geojson import build_geojson
from foveate.files.atomic import write_json
from foveate.geometry import Box, Frame
from foveate.loading.loader import CaseLoader
from foveate.methods.glimpse import Glimpse
from foveate.nn.heads import Head
from foveate.table import Case

SHAPE_PX0 = (1500, 2300)
SPOT_PX0 = (437.0, 1711.0)
RADIUS_PX0 = 9


def _write(path: Path, spacing_um: tuple[float, float]) -> None:
    """Write a grey slide with one dark disc, three levels, and different µm/px for y and x."""
    y, x = np.ogrid[: SHAPE_PX0[0], : SHAPE_PX0[1]]
    # A pixel's centre lies half a pixel beyond its corner.
    inside = (y + 0.5 - SPOT_PX0[0]) ** 2 + (x + 0.5 - SPOT_PX0[1]) ** 2 < RADIUS_PX0**2
    level = np.where(inside[..., None], np.uint8(20), np.uint8(235)) * np.ones(3, np.uint8)
    with tifffile.TiffWriter(path) as file:
        for i in range(3):
            per_cm = tuple(1e4 / (s * 4**i) for s in (spacing_um[1], spacing_um[0]))
            file.write(
                level,
                tile=(256, 256),
                photometric="rgb",
                resolution=per_cm,
                resolutionunit="CENTIMETER",
                subfiletype=int(i > 0),
            )
            h, w = (n // 4 for n in level.shape[:2])
            blocks = level[: 4 * h, : 4 * w].reshape(h, 4, w, 4, 3)
            level = np.rint(blocks.mean((1, 3))).astype(np.uint8)


@pytest.mark.parametrize("spacing", [0.2014, 0.2528, 0.31, 0.4942])
@pytest.mark.parametrize("zoom", [1.0, 1.7, 4.0])
@pytest.mark.parametrize("encoder", ["small", "resnet18"])
def test_attention_patch_and_geojson_locate_the_spot(
    tmp_path: Path, pool: ThreadPoolExecutor, spacing: float, zoom: float, encoder: str
) -> None:
    spacing_um = (spacing, 1.25 * spacing)
    path = tmp_path / "spot.tif"
    _write(path, spacing_um)
    patch_um = 64 * spacing * zoom
    view = View(spacing_um=spacing * zoom, patch_px=64, glimpse_spacing_um=patch_um / 16)
    loader = CaseLoader(view)
    item = loader.load(Case("spot", "spot", path))
    assert item.image.known_spacing_um == pytest.approx(spacing_um, rel=1e-6)
    torch.manual_seed(0)
    options = {} if encoder == "small" else {"pretrained": False, "stages": 3}
    network = build_encoder(encoder, options)
    # Nothing is learnt yet: the prior alone, which follows contrast, points at the spot.
    method = Glimpse(encoder=network, heads=(Head("spot", 1, False, "max"),), eval_patches=1).eval()
    method._priors = PriorCache(power=4.0, background=0.0)
    batch = Batch(
        [item],
        view=view,
        normalise=(network.mean, network.std),
        device=torch.device("cpu"),
        pool=pool,
    )
    with torch.inference_mode():
        evidence = method(batch).evidence[0]
    box = evidence.peak_um()
    spot_um = tuple(p * s for p, s in zip(SPOT_PX0, spacing_um, strict=True))
    off_um = np.abs(np.asarray(box.centre) - np.asarray(spot_um))
    cell_um = max(s for s in network.strides if s <= 16) * view.glimpse_spacing_um
    assert (off_um <= cell_um / 2 + spacing_um[1]).all(), (off_um, cell_um)

    (origin,) = batch.place(0, np.asarray([spot_um])).origin_um
    crop = item.image.read_at(Box(tuple(origin), (patch_um,) * 2, Frame.UM), (64, 64))
    dark = np.clip(235.0 - crop.astype(float).mean(-1), 0, None)
    centroid = [(dark.sum(1 - a) * (np.arange(64) + 0.5)).sum() / dark.sum() for a in (0, 1)]
    np.testing.assert_allclose(centroid, (32, 32), atol=0.75)

    write_json(tmp_path / "spot.geojson", build_geojson(item.image, evidence))
    feature = json.loads((tmp_path / "spot.geojson").read_text())["features"][0]
    ring = np.asarray(feature["geometry"]["coordinates"][0])
    assert (ring.min(0) <= (SPOT_PX0[1], SPOT_PX0[0])).all()
    assert (ring.max(0) >= (SPOT_PX0[1], SPOT_PX0[0])).all()
    loader.close()
