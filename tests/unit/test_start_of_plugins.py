"""A method from a scratch folder fits its own answers before and after the frozen steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from foveate.batch import View
from foveate.encoders.small import SmallEncoder
from foveate.loading.loader import CaseLoader
from foveate.methods.glimpse import Glimpse
from foveate.nn.heads import Head
from foveate.parts import add_plugin_folder
from foveate.runs.card import ModelCard
from foveate.runs.checkpoint import Model, build_model, read_tensors
from foveate.runs.schedule import TrainOptions
from foveate.table import Case, read_cases
from foveate.training.loop import Trainer

VIEW = View(spacing_um=1.0, patch_px=64, glimpse_spacing_um=16.0)

METHOD = '''
"""A constant answer, fitted to labels; learnt answers are scaled by a factor."""
import torch
from torch import nn

from foveate.methods.base import AbstractMethod, Prediction


class Prevalence(AbstractMethod):
    """Answer with the share of each class."""

    reads = frozenset({"glimpse"})
    summary = "a constant"
    fits_glimpses = True

    def __init__(self, *, encoder, heads):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.n_features, sum(head.size for head in heads))
        self.register_buffer("losses", torch.zeros(10))
        self.register_buffer("folds", torch.full((10,), -1))
        self.register_buffer("factor", torch.ones(()))

    def fit_start(self, overviews, row_losses, left_out_fold):
        """Store the losses of a sure answer."""
        rows = torch.arange(len(overviews))
        self.losses.copy_(row_losses(torch.full((len(overviews), 1), 9.0), rows))
        self.folds.copy_(left_out_fold)

    def fit_trust(self, answer, each_loss, view):
        """Store the mean loss of the present answers."""
        logits, target = answer()
        self.factor.copy_(each_loss(logits, target).mean())

    def share_trust(self, others):
        """Store the largest factor."""
        self.factor.copy_(max(other.factor for other in others))

    def forward(self, batch):
        """Answer from features of the glimpse."""
        features = torch.cat([look.features.float() for look in batch.look(self.encoder)])
        return Prediction(self.factor * self.head(features))
'''


@pytest.fixture
def parts(tiny_cohort: Path) -> tuple[list[Case], list[Case]]:
    """Return six training and four validation cases, with equal classes."""
    table = read_cases(tiny_cohort).cases
    by_label = [[c for c in table if c.label == label] for label in ("normal", "tumour")]
    train = [c for members in by_label for c in members[:3]]
    return train, [c for members in by_label for c in members[3:5]]


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the method into a scratch folder of plug-ins."""
    monkeypatch.setattr("foveate.parts._folders", [])
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "prevalence.py").write_text(METHOD, encoding="utf-8")
    add_plugin_folder(tmp_path)


def build() -> Model:
    torch.manual_seed(0)
    settled = {"classes": ["normal", "tumour"]}
    card = ModelCard("prevalence", {}, "lite0", {"taught": 1}, "binary", {}, settled, VIEW)
    return build_model(card, pretrained=True)


@pytest.mark.slow
@pytest.mark.usefixtures("plugins")
def test_a_plug_in_fits_answers_of_its_own(
    parts: tuple[list[Case], list[Case]], loader: CaseLoader, tmp_path: Path
) -> None:
    train, val = parts
    options = TrainOptions(
        epochs=0, frozen_epochs=2, batch_size=2, device="cpu", precision="32-true"
    )
    model = build()
    trainer = Trainer(model, loader, tmp_path / "run", options)
    progress = trainer.fit(train, val)
    frozen = read_tensors(trainer.checkpoints.frozen)[0]
    is_tumour = torch.tensor([case.label == "tumour" for case in (*train, *val)])
    assert torch.equal(frozen["losses"] > 1.0, ~is_tumour), "a sure answer is wrong of normal ones"
    folds = {case.image_id: int(k) for case, k in zip([*train, *val], frozen["folds"], strict=True)}
    assert progress.left_out_folds == folds
    assert float(frozen["factor"]) != 1.0
    assert float(frozen["factor"]) == pytest.approx(progress.history[0]["val_loss"], rel=0.5)
    assert model.method.encoder.get_buffer("mixed.standardise.settled")

    folds_of_run = [build(), build()]
    for fold, factor in zip(folds_of_run, (0.25, 0.75), strict=True):
        fold.method.get_buffer("factor").fill_(factor)
    refit = Trainer(build(), loader, tmp_path / "refit", options, folds=folds_of_run)
    refit.fit([*train, *val], ())
    assert float(refit.model.method.get_buffer("factor")) == 0.75


def test_glimpse_shares_the_mean_trust_of_the_folds() -> None:
    heads = (Head("tumour", 1, False, "max"),)
    methods = [Glimpse(encoder=SmallEncoder(width=8, dim=16), heads=heads) for _ in range(3)]
    for method, factor in zip(methods, (1.0, 0.25, 0.5), strict=True):
        method.trust.value.fill_(factor)
    methods[0].share_trust(methods[1:])
    assert float(methods[0].trust.value) == 0.375
