"""Streamed pretrained encoders give the maps and gradients of the plain network."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from foveate.batch import Batch, View
from foveate.batch.features import FeatureStore
from foveate.encoders import build_encoder
from foveate.encoders.base import AbstractEncoder, CellMap
from foveate.loading.loader import CaseLoader
from foveate.methods.streaming_cnn import StreamingCnn
from foveate.nn.base import Head
from foveate.streaming import Streamed
from foveate.table import read_cases
from reference.test_streaming import assert_same, randomised, run_backward

SIZE, TILES = (101, 139), (64, (50, 139))


def encoder_of(name: str, folder: Path) -> AbstractEncoder:
    """Build an encoder with weights from a file, and norms far from the identity."""
    network = randomised(timm.create_model("tf_efficientnet_lite0" if name == "lite0" else name))
    path = folder / "weights.pth"
    torch.save(network.state_dict(), path)
    torch.manual_seed(0)
    return build_encoder(name, {"weights": str(path)})


@pytest.mark.parametrize(
    ("name", "group"),
    [
        *(("lite0", 1), ("lite0", 2), ("resnet18", 2)),
        pytest.param("resnet34", 1, marks=pytest.mark.slow),
    ],
)
def test_maps_and_gradients_match_the_plain_network(name: str, group: int, tmp_path: Path) -> None:
    encoder = encoder_of(name, tmp_path).double()
    net: nn.Module = CellMap(encoder, group)
    x = torch.randn(1, 3, *SIZE, dtype=torch.float64)
    expected, plain = run_backward(net, net, x)
    assert plain.shape[1] == encoder.map_dims[-1]
    learnt = {n for n, p in net.named_parameters() if p.requires_grad and expected[n] is not None}
    assert 0 < len(learnt) < len(list(net.parameters()))
    for tile in TILES:
        streamed = Streamed(net, tile=tile)
        actual, map_ = run_backward(net, streamed, x)
        assert streamed.counts["forward"] >= 2
        assert_same({"map": map_}, {"map": plain})
        assert_same(actual, expected)


@pytest.mark.parametrize("name", ["lite0", "resnet18"])
def test_the_method_accepts_pretrained_encoders(name: str, tmp_path: Path) -> None:
    """Norms are frozen before `train` is called, and frozen parameters stay frozen."""
    encoder = encoder_of(name, tmp_path)
    frozen = [p for tier in encoder.tiers() for p in tier if not p.requires_grad]
    assert frozen
    method = StreamingCnn(encoder=encoder, heads=(Head("a", 1, False, "max"),))
    assert method.norm.normalized_shape == (encoder.map_dims[-1],)
    assert not any(p.requires_grad for p in frozen)


def test_frozen_volume_encoders_can_be_streamed() -> None:
    encoder = build_encoder("resnet3d", {"depth": 10, "norm": "frozen"})
    StreamingCnn(encoder=encoder, heads=(Head("a", 1, False, "max"),))


def test_maps_of_a_frozen_encoder_are_computed_once(
    tiny_cohort: Path,
    tmp_path: Path,
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    view = View(4.0, 64, 16.0)
    loader = CaseLoader(view)
    items = [loader.load(case) for case in read_cases(tiny_cohort).cases[:2]]
    encoder = encoder_of("lite0", tmp_path).float().requires_grad_(False)
    normalise = (encoder.mean, encoder.std)

    def batch_with(store: FeatureStore | None) -> Batch:
        device = torch.device("cpu")
        return Batch(items, view=view, normalise=normalise, device=device, pool=pool, store=store)

    method = StreamingCnn(encoder=encoder, heads=(Head("a", 1, False, "max"),)).eval()
    with torch.inference_mode():
        expected = method(batch_with(None)).logits
    store = FeatureStore(None)
    first = method(batch_with(store)).logits
    # Kept in half precision.
    torch.testing.assert_close(first, expected, rtol=1e-2, atol=1e-2)

    def again(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(Streamed, "forward", again)
    second = method(batch_with(store)).logits
    torch.testing.assert_close(second, first)
    assert second.requires_grad
    loader.close()
