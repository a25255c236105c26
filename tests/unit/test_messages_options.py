"""Messages about options, tasks and parts: each names the option, what was got and what to do."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from torch import nn

import foveate
from foveate.api.settings import nest_options
from foveate.attention_maps.tree_cells import Cut
from foveate.batch import Batch, View
from foveate.cli import cli
from foveate.encoders import build_encoder
from foveate.errors import ArrayError, FoveateError
from foveate.heatmaps.fields import aim
from foveate.images.evidence import Evidence
from foveate.loading.scan import ViewOptions
from foveate.methods.base import Prediction, check_prediction
from foveate.methods.clam import Clam
from foveate.methods.tnet import _counts
from foveate.metrics.types import check_inputs
from foveate.nn.pooling import CrossPool
from foveate.parts import add_plugin_folder, find
from foveate.prediction.options import PredictOptions
from foveate.prediction.worker_choice import open_workers
from foveate.pretrained.vit import parse_arguments
from foveate.runs.card import ModelCard
from foveate.runs.checkpoint import build_model
from foveate.runs.config import load_yaml
from foveate.runs.models import Ensemble
from foveate.runs.schedule import TrainOptions
from foveate.synthetic import SlideSpec, read_truth
from foveate.synthetic.layout import draw_layout
from foveate.tasks.binary import BinaryTask
from foveate.tasks.regression import RegressionTask
from helpers.images import PyramidImage

Call = Callable[[], object]
VIEW = View(1.0, 32, 8.0)
VOLUMES = replace(VIEW, axes=3)
EVIDENCE = np.zeros((2, 2)), np.ones((2, 2)), np.ones(2)
BINARY = BinaryTask(classes=("a", "b"))
SMALL = {"width": 8, "dim": 16}


def refused(words: str, call: Call) -> None:
    """Check that a call is refused with these words in the message."""
    with pytest.raises(FoveateError) as caught:
        call()
    assert words in str(caught.value)


@timm.models.register_model
def one_conv(*, pretrained: bool, **options: object) -> nn.Module:
    """Build a network that timm knows by name, and that has no option ``features_only``."""
    options.pop("pretrained_cfg", None), options.pop("pretrained_cfg_overlay", None)
    return nn.Conv2d(3, 8, 3, bias=pretrained, **options)  # type: ignore[arg-type]


def _model(**options: object) -> object:
    card = ModelCard(
        "mil_mean", {}, "small", SMALL, "binary", {}, {"classes": ["a", "b"]}, VIEW, **options
    )
    return build_model(card, pretrained=False)


def _open_workers(models: Ensemble) -> None:
    with open_workers(models, PredictOptions(workers=1)):
        pass


def _batch_of_volumes() -> Batch:
    with ThreadPoolExecutor(1) as pool:
        return Batch(
            [],
            view=VOLUMES,
            normalise=((0.5,) * 3, (0.5,) * 3),
            device=torch.device("cpu"),
            pool=pool,
            augment="warp",
        )


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("no option 'trian__lr': sections are", lambda: nest_options({"trian__lr": 1})),
        ("method.overlap: got 1.5, expected a share from 0 to 1", lambda: Cut(2, 1.5)),
        ("train.augment: 'warp' is for pictures, volumes take auto, slide", _batch_of_volumes),
        (
            "view.spacing_um: got -1.0, expected 0.0001 to",
            lambda: ViewOptions(spacing_um=-1.0),
        ),
        (
            "view.patch_px and view.glimpse_px need at least 16 pixels",
            lambda: ViewOptions(patch_px=8),
        ),
        (
            "view.fit: got (16,), expected two sides such as 1024x1024",
            lambda: ViewOptions(fit=(16,)),
        ),
        ("train.warmup: got 1.5, expected a share from 0 to 1", lambda: TrainOptions(warmup=1.5)),
        (
            "attention_heads 3 does not divide the 16 of dim: take 1, or another number that does",
            lambda: CrossPool(16, BINARY.heads, attention_heads=3),
        ),
        (
            "method.clustering: got 1.5, expected 0 up to below 1",
            lambda: Clam(encoder=build_encoder("small", SMALL), heads=BINARY.heads, clustering=1.5),
        ),
        ("method.looks: got (0,), expected whole numbers from 1", lambda: _counts((0,), "looks")),
        (
            "encoder.weights is given, but encoder.pretrained is false: leave out one",
            lambda: build_encoder("lite0", {"weights": "a.pth", "pretrained": False}),
        ),
        (
            "encoder.step: 64 voxels are more than the coarsest cell: take a smaller step",
            lambda: build_encoder("slices", {"step": 64, "pretrained": False}),
        ),
        (
            "encoder.model_args: encoder 'resnet10t' is no ViT and takes none",
            lambda: build_encoder("resnet10t", {"model_args": "a=1", "pretrained": False}),
        ),
        (
            "encoder.mean, encoder.std: got (0.1,), ",
            lambda: build_encoder("resnet10t", {"mean": (0.1,), "pretrained": False}),
        ),
        (
            "encoder.model_args: got 'x', expected key=value,key=value",
            lambda: parse_arguments("x"),
        ),
        (
            "encoder 'one_conv' gives no feature maps: ",
            lambda: build_encoder("one_conv", {"pretrained": False}),
        ),
        ("an ensemble needs at least one model", lambda: Ensemble(())),
        (
            "model 2 cannot answer together with model 1: its assumed spacing is 1.0, not None. "
            "Give the folder of one model",
            lambda: Ensemble((_model(), _model(assume_spacing_um=1.0))),  # type: ignore[arg-type]
        ),
        (
            "models that lie in no folder cannot be sent to other processes",
            lambda: _open_workers(Ensemble((_model(),))),  # type: ignore[arg-type]
        ),
        (
            "memory: 1 axes, expected 2 or 3 to draw it",
            lambda: aim(PyramidImage(np.zeros((8, 3), np.uint8)), Evidence(*EVIDENCE)),
        ),
        (
            "nodules in (1000000.0, 1000000.0) level-0 pixels of tissue do not fit on",
            lambda: draw_layout(
                SlideSpec(
                    shape_px0=(2048, 2048),
                    tissue_area_px0=(1e6, 1e6),
                    n_islands=(1, 1),
                    n_nodules=(400, 400),
                    n_deciding=(1, 1),
                ),
                np.random.default_rng(0),
                positive=True,
            ),
        ),
    ],
)
def test_options(words: str, call: Call) -> None:
    refused(words, call)


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (
            "holds one class only, 'a', in all 3 usable rows; at least two classes are needed. "
            "Another column can be named with --label",
            lambda: BinaryTask.settle(["a"] * 3),
        ),
        (
            "holds 3 labels, which task 'binary' does not fit: a, b, c",
            lambda: BinaryTask.settle(["a", "b", "c"]),
        ),
        ("no class 'x'.", lambda: BINARY.parse("x")),
        (
            "scale: got mean nan and spread 1.0, expected numbers",
            lambda: RegressionTask(mean=float("nan"), spread=1.0),
        ),
        (
            "holds 1 numbers in 3 usable rows, and task 'regression' learns numbers. Another "
            "column can be named with --label",
            lambda: RegressionTask.settle(["1", "a", "b"]),
        ),
        (
            "holds one number only, 1, in all 2 usable rows. Another column can be named",
            lambda: RegressionTask.settle(["1", "1"]),
        ),
    ],
)
def test_tasks(words: str, call: Call) -> None:
    refused(words, call)


def _evidence(**changes: object) -> Evidence:
    values = dict(zip(("origin_um", "size_um", "weight"), EVIDENCE, strict=True))
    return Evidence(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (
            "boxes of (2, 2), expected the axes of [0. 0. 0.]",
            lambda: _evidence(extent_um=np.zeros(3)),
        ),
        ("evidence weights must be at least 0", lambda: _evidence(weight=np.array([1.0, -1.0]))),
        (
            "probabilities of shape (0, 2), expected (n, k) with n >= 1, k >= 2",
            lambda: check_inputs(np.zeros((0, 2)), np.zeros(0, np.int64)),
        ),
        (
            "(3,) targets for 1 rows of probabilities",
            lambda: check_inputs(np.array([[0.5, 0.5]]), np.zeros(3, np.int64)),
        ),
        (
            "probabilities must be finite and at least 0",
            lambda: check_inputs(np.array([[np.nan, 0.5]]), np.zeros(1, np.int64)),
        ),
        (
            "rows of probabilities must sum to 1",
            lambda: check_inputs(np.array([[0.4, 0.4]]), np.zeros(1, np.int64)),
        ),
        (
            "targets must be whole numbers from 0 to 1",
            lambda: check_inputs(np.array([[0.5, 0.5]]), np.array([2])),
        ),
        (
            "it returns logits of shape (1, 2), expected (1, 1), one row for each image and one",
            lambda: check_prediction(Prediction(torch.zeros(1, 2)), BINARY, 1),
        ),
        (
            "it returns the evidence of 2 images, expected 1 or none",
            lambda: check_prediction(
                Prediction(torch.zeros(1, 1), [_evidence()] * 2),  # type: ignore[arg-type]
                BINARY,
                1,
            ),
        ),
    ],
)
def test_arrays(words: str, call: Call) -> None:
    with pytest.raises(ArrayError) as caught:
        call()
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("no such folder; check the name", lambda p: add_plugin_folder(p)),
        ("no such file; only synthetic slides come with the truth", lambda p: read_truth(p)),
        ("no such file; give a YAML file, or flags alone", lambda p: load_yaml(p)),
        (
            "encoder.weights: none.pth: no such file; check the name, or leave the option out",
            lambda p: build_encoder("resnet10t", {"weights": "none.pth"}),
        ),
    ],
)
def test_files_that_are_missing(words: str, call: Callable[[Path], object]) -> None:
    refused(words, lambda: call(Path("none")))


def test_files_of_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveate.parts._folders", [tmp_path])
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports" / "two.py").write_text("")
    with pytest.raises(FoveateError, match="must hold exactly one public AbstractExport, found 0"):
        find("exports", "two")


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        ("no option '--trian.lr': no section 'trian'.", ["--trian.lr", "1"]),
        (
            "--reader.tiff: expected a reader and its option, --reader.NAME.option",
            ["--reader.tiff", "1"],
        ),
    ],
)
def test_flags(words: str, flags: list[str]) -> None:
    result = CliRunner().invoke(cli, ["train", "a.csv", "--out", "run", *flags])
    assert words in str(result.exception)


def test_a_classifier_that_is_not_used_as_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = foveate.Classifier()
    words = "this Classifier is not fitted yet: call fit(table) first, or take Classifier.from_run"
    refused(words, lambda: classifier.predict(["a.png"]))
    words = "fit: paths without labels; give fit(paths, labels) or a table"
    refused(words, lambda: classifier.fit(["a.png"]))
    with pytest.raises(FoveateError, match="give one label, and one patient, an image"):
        classifier.fit(["a.png", "b.png"], ["x"])


def test_probabilities_of_a_task_without_classes() -> None:
    settled = {"mean": 0.0, "spread": 1.0}
    card = ModelCard("mil_mean", {}, "small", SMALL, "regression", {}, settled, VIEW)
    classifier = foveate.Classifier()
    classifier.run_, classifier.classes_ = "", np.array([])
    classifier._models = Ensemble((build_model(card, pretrained=False),))
    words = "task regression has no classes and no probabilities; call predict"
    refused(words, lambda: classifier.predict_proba(["a.png"]))
