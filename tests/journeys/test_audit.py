"""The layout audit detects whether a model uses the positions of patches.

A model that has learnt nothing yet relates patches as its method does, so fresh weights show
whether a method sees layout; one small trained run shows that the command line says the same.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import SMALL_RUN
from foveate.batch import View
from foveate.errors import TrainingError
from foveate.evaluation.audit import LayoutAudit, audit_layout
from foveate.loading.loader import CaseLoader
from foveate.metrics import auroc
from foveate.prediction.answer import Answer
from foveate.prediction.predict import predict_cases
from foveate.runs.card import ModelCard
from foveate.runs.checkpoint import Model, build_model, save_model
from foveate.runs.folder import read_json
from foveate.runs.models import Ensemble
from foveate.table import Case, read_cases
from helpers.commands import Completed

VIEW = View(spacing_um=2.0, patch_px=32, glimpse_spacing_um=16.0)
CPU = torch.device("cpu")


def build(method: str) -> Model:
    torch.manual_seed(0)
    size = {"width": 8, "dim": 16}
    settled = {"classes": ["normal", "tumour"]}
    return build_model(
        ModelCard(method, {}, "small", size, "binary", {}, settled, VIEW), pretrained=False
    )


@pytest.fixture(scope="module")
def cases(tiny_cohort: Path) -> list[Case]:
    """Return three cases of each class."""
    table = read_cases(tiny_cohort).cases
    return [c for label in ("normal", "tumour") for c in [c for c in table if c.label == label][:3]]


# -- methods ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["abmil", "mil_max"])
def test_a_method_blind_to_layout_is_reported_as_blind(
    method: str, cases: list[Case], loader: CaseLoader
) -> None:
    audit = audit_layout(Ensemble((build(method),)), cases, loader, device=CPU, n_shuffles=2)
    assert audit.largest_change == 0
    assert not audit.uses_layout
    assert audit.shuffled == pytest.approx(audit.scores)
    assert "not one prediction changed" in audit.describe()
    assert "never used" in audit.describe()


@pytest.mark.parametrize("method", ["transmil", "glimpse", "ips"])
def test_a_method_with_positions_changes_its_scores(
    method: str, cases: list[Case], loader: CaseLoader
) -> None:
    audit = audit_layout(Ensemble((build(method),)), cases, loader, device=CPU, n_shuffles=2)
    assert audit.uses_layout
    # Nothing is trained here, and the last layers of `glimpse` begin small.
    assert audit.largest_change > 1e-6
    assert audit.n_images == 6
    assert audit.describe().startswith(
        "layout: when patches trade places the score goes from auroc "
    )


def test_audit_scores_match_predictions_and_repeat(cases: list[Case], loader: CaseLoader) -> None:
    models = Ensemble((build("transmil"),))
    state = torch.get_rng_state()
    audit = audit_layout(models, cases, loader, device=CPU, n_shuffles=2)
    assert torch.equal(torch.get_rng_state(), state), "whoever draws next draws as without it"
    torch.manual_seed(99)
    assert audit_layout(models, cases, loader, device=CPU, n_shuffles=2) == audit
    other = audit_layout(models, cases, loader, device=CPU, n_shuffles=2, seed=7)
    assert other.scores == audit.scores
    assert other.largest_change != audit.largest_change, "other places were drawn"

    reports = [r for r in predict_cases(models, cases, loader, device=CPU) if isinstance(r, Answer)]
    shares = np.asarray([r.values for r in reports])
    assert audit.scores == {"val_auroc": pytest.approx(auroc(shares, [0, 0, 0, 1, 1, 1]))}


def test_impossible_audits_are_refused(
    cases: list[Case], loader: CaseLoader, tmp_path: Path
) -> None:
    models = Ensemble((build("abmil"),))
    with pytest.raises(TrainingError, match="needs images"):
        audit_layout(models, [], loader, device=CPU)
    bad = tmp_path / "bad.tif"
    bad.write_text("no slide")
    with pytest.raises(TrainingError, match=r"bad\.tif could not be predicted"):
        audit_layout(models, [*cases[:1], Case("b", "b", bad, "tumour")], loader, device=CPU)


# -- the sentence ----------------------------------------------------------------------------------


def test_the_finding_is_one_sentence() -> None:
    scores, shuffled = {"val_auroc": 0.9, "val_top": 0.5}, {"val_auroc": 0.61, "val_top": 0.25}
    sentence = LayoutAudit(scores, shuffled, 0.7, 20).describe()
    assert sentence == (
        "layout: when patches trade places the score goes from auroc 0.900 to 0.610, "
        "top 0.500 to 0.250"
    )
    assert not LayoutAudit(scores, scores, 1e-9, 20).uses_layout
    assert "never used where they lie" in LayoutAudit(scores, scores, 1e-9, 20).describe()
    one_class = LayoutAudit({}, {}, 0.25, 3)
    assert one_class.uses_layout
    assert "logits move by up to 0.25" in one_class.describe()


def test_a_method_without_patches_is_not_called_blind(
    cases: list[Case], loader: CaseLoader
) -> None:
    """Such a method does see the layout in its glimpse; it only has no patches to exchange."""
    audit = audit_layout(
        Ensemble((build("downsampled"),)), cases[:2], loader, device=CPU, n_shuffles=1
    )
    assert not audit.uses_layout
    assert "no patches to trade places" in audit.describe()
    assert "never used" not in audit.describe()


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def few(tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a table of two slides, one of each class."""
    with tiny_cohort.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    some = [
        r for label in ("normal", "tumour") for r in [r for r in rows if r["label"] == label][:1]
    ]
    path = tmp_path_factory.mktemp("few") / "few.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**r, "file": tiny_cohort.parent / r["file"]} for r in some)
    return path


@pytest.mark.slow
def test_the_command_reports_the_audit_of_a_trained_run(
    tiny_cohort: Path, few: Path, tmp_path: Path, foveate: Callable[..., Completed]
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    words = ("train", tiny_cohort, "--out", run, *SMALL_RUN, "--method", "glimpse")
    words = (*words, "--method.patches", "4", "--method.eval-patches", "8", "--epochs", "1")
    result = foveate(*words, "--heatmaps", "1")
    assert result.returncode == 0, result.stderr

    result = foveate("evaluate", run, few, "--out", out, "--audit-layout")
    assert result.returncode == 0, result.stderr
    metrics = read_json(out / "metrics.json")
    layout = metrics["layout"]
    assert layout["uses_layout"] is True
    assert layout["largest_change"] > 0
    assert layout["n_images"] == 2
    assert layout["scores"]["val_auroc"] == pytest.approx(metrics["metrics"]["auroc"]["value"])
    assert 0 <= layout["shuffled"]["val_auroc"] <= 1
    assert f"  {layout['summary']}\n" in result.stdout


def test_the_command_reports_blind_methods_and_skips_failed_images(
    few: Path, tmp_path: Path, foveate: Callable[..., Completed]
) -> None:
    model, table, out = build("abmil"), tmp_path / "table.csv", tmp_path / "out"
    save_model(tmp_path / "model", model.card, model.method.state_dict())
    bad = tmp_path / "bad.tif"
    bad.write_text("no slide")
    table.write_text(few.read_text(encoding="utf-8") + f"{bad},P9,tumour,\n", encoding="utf-8")
    words = ("evaluate", tmp_path / "model", table, "--out", out)
    result = foveate(*words, "--audit-layout")
    assert result.returncode == 2, result.stderr
    assert "layout: not one prediction changed when patches traded places" in result.stdout
    layout = read_json(out / "metrics.json")["layout"]
    assert layout["uses_layout"] is False
    assert layout["n_images"] == 2

    result = foveate(*words)
    assert "traded places" not in result.stdout
    assert "layout" not in read_json(out / "metrics.json")
