"""The contract of methods and encoders for volumes, tested on real NIfTI files."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from conftest import penalties
from foveate.batch import Augment, Batch, View
from foveate.errors import OptionError
from foveate.files.atomic import write_bytes
from foveate.heatmaps import render_heatmap
from foveate.loading.loader import CaseLoader
from foveate.methods.base import Prediction
from foveate.parts import find, names
from foveate.runs.card import ModelCard
from foveate.runs.checkpoint import Model, build_model
from foveate.runs.schedule import TrainOptions
from foveate.streaming.base import NotLocal
from foveate.table import Case
from foveate.training.loop import Trainer

VIEW = View(spacing_um=1000.0, patch_px=16, glimpse_spacing_um=2000.0, axes=3)
METHODS = [name for name in names("methods") if 3 in find("methods", name).axes]
ENCODERS = [
    name for name in names("encoders") if name != "timm" and find("encoders", name).axes == 3
]
STREAMED = [name for name in ENCODERS if name != "slices"]
SHAPES = ((40, 33, 14), (31, 50, 45))


def build(method: str, encoder: str = "small3d", options: dict[str, int] | None = None) -> Model:
    torch.manual_seed(0)
    options = {"width": 4, "dim": 16} if options is None else options
    settled = {"classes": ["small", "large"]}
    card = ModelCard(method, {}, encoder, options, "binary", {}, settled, VIEW)
    return build_model(card, pretrained=False)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    folder, rng, volumes = tmp_path_factory.mktemp("volumes"), np.random.default_rng(0), []
    for i, shape in enumerate(SHAPES):
        values = rng.normal(100, 10, shape).astype(np.float32)
        values[8:24, 8:24, 8:24] += 200 * (i + 1)
        path = folder / f"{i}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(values, np.diag([1.0, 1.0, 1.0, 1.0])), path)
        volumes.append(Case(str(i), str(i), path))
    return volumes


@pytest.fixture
def batch(cases: list[Case]) -> Iterator[Batch]:
    yield from batches(cases, "none")


@pytest.fixture
def augmented_batch(cases: list[Case]) -> Iterator[Batch]:
    """Return a batch of the same cases with augmentation."""
    torch.manual_seed(0)
    yield from batches(cases, "volume")


def batches(cases: list[Case], augment: Augment) -> Iterator[Batch]:
    loader = CaseLoader(VIEW)
    with ThreadPoolExecutor(2) as pool:
        yield Batch(
            [loader.load(case) for case in cases],
            view=VIEW,
            normalise=((0.5,) * 3, (0.25,) * 3),
            device=torch.device("cpu"),
            pool=pool,
            augment=augment,
        )
    loader.close()


def evaluate(model: Model, batch: Batch) -> Prediction:
    model.method.eval()
    with torch.inference_mode():
        return model.method(batch)


def test_parts_for_volumes_are_listed() -> None:
    assert {"slices", "small3d", "resnet3d"} <= set(ENCODERS)
    assert {"streaming_cnn", "glimpse", "ips", "abmil"} <= set(METHODS)
    with pytest.raises(OptionError, match=r"tnet.*3 axes"):
        build("tnet")


@pytest.mark.parametrize("name", METHODS)
def test_prediction_evidence_and_heatmap_of_a_volume(
    name: str, batch: Batch, tmp_path: Path
) -> None:
    prediction = evaluate(build(name), batch)
    assert prediction.logits.isfinite().all()
    for item, evidence in zip(batch.items, prediction.evidence, strict=True):
        assert evidence.origin_um.shape[1] == 3
        assert evidence.weight.sum() == pytest.approx(1, abs=1e-4)
        centre = evidence.origin_um + evidence.size_um / 2
        extent = np.asarray(item.image.box_um.size)
        assert (centre > -VIEW.patch_um).all()
        assert (centre < extent + VIEW.patch_um + 16 * VIEW.glimpse_spacing_um).all()
    write_bytes(
        tmp_path / "heatmap.png", render_heatmap(batch.items[0].image, prediction.evidence[0])
    )
    assert (tmp_path / "heatmap.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", METHODS)
def test_a_training_step_reaches_the_encoder(name: str, augmented_batch: Batch) -> None:
    model = build(name)
    model.method.train()
    prediction = model.method(augmented_batch)
    (prediction.logits.square().sum() + sum(penalties(prediction).values())).backward()
    gradients = [p.grad for p in model.method.encoder.parameters() if p.requires_grad]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert any(g.abs().sum() > 0 for g in gradients if g is not None)


def test_training_mirrors_volumes_left_to_right(cases: list[Case], tmp_path: Path) -> None:
    """Glimpses, patches and streamed volumes are mirrored; the order of slices stays."""
    loader, mirrored = CaseLoader(VIEW), 0
    trainer = Trainer(build("mil_mean"), loader, tmp_path, TrainOptions(device="cpu"))
    item = loader.load(cases[0])
    glimpse = torch.from_numpy(item.glimpse[..., 0].astype(np.float32)).flatten()
    for seed in range(8):
        torch.manual_seed(seed)
        batch = trainer.steps.batch([item])
        (shown,) = batch._shown()
        as_is, other = (
            torch.corrcoef(torch.stack([x.flatten(), glimpse]))[0, 1]
            for x in (shown[0], shown[0].flip(-1))
        )
        volume = batch.whole(0, skip_background=False)
        assert (as_is < other) == (volume.turn.bits == 1)
        assert volume.turn.bits in (0, 1)
        mirrored += volume.turn.bits
    loader.close()
    assert 0 < mirrored < 8


@pytest.mark.parametrize("encoder", ENCODERS)
def test_maps_have_the_documented_size(encoder: str) -> None:
    net = build("mil_mean", encoder, {}).method.encoder.eval()
    x = torch.zeros(1, 3, 64, 64, 64)
    maps = net.maps(x)
    for i, (map_, stride) in enumerate(zip(maps, net.strides, strict=True)):
        assert map_.shape == (1, net.map_dims[i], *(-(-64 // stride),) * 3)
    assert net.pool(maps).shape == (1, net.dim)


@pytest.mark.parametrize("encoder", STREAMED)
def test_streaming_a_volume_from_its_file_is_exact(encoder: str, batch: Batch) -> None:
    """Tiles read from the file give the map and gradients of the full volume."""
    options = {"depth": 10} if encoder == "resnet3d" else {"width": 4}
    method = build("streaming_cnn", encoder, options).method.double()
    streamed = method.__dict__["streamed"]
    streamed.tile = 16
    reader = batch._reader
    reader.mean, reader.std = reader.mean.double(), reader.std.double()
    volume = batch.whole(0, skip_background=False)
    (x,) = volume.crops([tuple((0, n) for n in volume.shape[1:])])
    outcomes = []
    for run, pixels in ((streamed, volume), (streamed.stack, x)):
        method.zero_grad()
        y = run(pixels)
        y.square().mean().backward()
        learnt = [p for p in method.encoder.parameters() if p.requires_grad]
        outcomes.append([y.detach(), *(p.grad.clone() for p in learnt if p.grad is not None)])
    assert y.dtype == torch.float64
    assert len(outcomes[0]) == len(outcomes[1]) > 4
    for tiled, plain in zip(*outcomes, strict=True):
        assert float((tiled - plain).abs().max()) <= 1e-10 * float(plain.abs().max())


def test_slices_are_not_streamed() -> None:
    with pytest.raises(NotLocal):
        build("streaming_cnn", "slices", {})


@pytest.mark.parametrize(
    "name", ["glimpse", pytest.param("abmil", marks=pytest.mark.slow), "downsampled"]
)
def test_methods_accept_slice_encoders(name: str, batch: Batch) -> None:
    """Evidence refers to the volume, and a training step reaches the picture encoder."""
    model = build(name, "slices", {"taught": 1})
    prediction = evaluate(model, batch)
    for item, evidence in zip(batch.items, prediction.evidence, strict=True):
        assert evidence.weight.sum() == pytest.approx(1, abs=1e-4)
        centre = evidence.origin_um + evidence.size_um / 2
        extent = np.asarray(item.image.box_um.size)
        assert (centre > -VIEW.patch_um).all()
        assert (centre < extent + 16 * VIEW.glimpse_spacing_um).all()
    model.method.train()
    trained = model.method(batch)
    (trained.logits.square().sum() + sum(penalties(trained).values())).backward()
    encoder = model.method.encoder
    assert any(
        n.startswith("picture.") and p.grad is not None for n, p in encoder.named_parameters()
    )
