"""The contract that every method keeps; methods are found in the package, not listed."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_utilities.core.apply_func import apply_to_collection

from conftest import penalties
from foveate.batch import Batch, View
from foveate.loading.loader import CaseLoader
from foveate.methods.base import AbstractMethod, Judge, Prediction
from foveate.parts import names
from foveate.runs.card import ModelCard
from foveate.runs.checkpoint import Model, build_model, load_model, save_model
from foveate.table import Case, read_cases
from helpers.batches import load_batch

VIEW = View(spacing_um=0.5, patch_px=64, glimpse_spacing_um=16.0)
METHODS = names("methods")
TWO_CLASSES = {"classes": ["normal", "tumour"]}


def build(method: str) -> Model:
    torch.manual_seed(0)
    size = {"width": 8, "dim": 16}
    card = ModelCard(method, {}, "small", size, "binary", {}, TWO_CLASSES, VIEW)
    return build_model(card, pretrained=False)


@pytest.fixture(scope="module")
def cases(tiny_cohort: Path) -> list[Case]:
    return list(read_cases(tiny_cohort).cases)[:3]


def evaluate(model: Model, batch: Batch) -> Prediction:
    model.method.eval()
    with torch.inference_mode():
        return model.method(batch)


@pytest.mark.parametrize("name", METHODS)
def test_predictions_have_the_documented_shapes_and_evidence(
    name: str, cases: list[Case], loader: CaseLoader, pool: ThreadPoolExecutor
) -> None:
    batch = load_batch(cases, loader, pool)
    prediction = evaluate(build(name), batch)
    assert prediction.logits.shape == (3, 1)
    assert len(prediction.evidence) == 3
    for item, evidence in zip(batch.items, prediction.evidence, strict=True):
        assert len(evidence) > 0
        assert evidence.weight.sum() == pytest.approx(1, abs=1e-4)
        extent = np.asarray(item.image.box_um.size)
        np.testing.assert_array_equal(evidence.extent_um, extent)
        assert 0 <= evidence.remainder < 1
        assert evidence.by_output is None or evidence.by_output.shape == (len(evidence), 1)
        centre = evidence.origin_um + evidence.size_um / 2
        assert (centre > -VIEW.patch_um).all()
        assert (centre < extent + VIEW.patch_um + 16 * VIEW.glimpse_spacing_um).all()


@pytest.mark.parametrize("name", METHODS)
def test_evaluation_is_deterministic_and_independent_of_the_batch(
    name: str, cases: list[Case], loader: CaseLoader, pool: ThreadPoolExecutor
) -> None:
    model = build(name)
    together = evaluate(model, load_batch(cases, loader, pool))
    again = evaluate(model, load_batch(cases, loader, pool))
    assert torch.equal(together.logits, again.logits)
    for i, case in enumerate(cases):
        alone = evaluate(model, load_batch([case], loader, pool))
        torch.testing.assert_close(alone.logits[0], together.logits[i], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_training_step_reaches_the_encoder(
    name: str, cases: list[Case], loader: CaseLoader, pool: ThreadPoolExecutor
) -> None:
    model = build(name)
    model.method.train()
    prediction = model.method(load_batch(cases, loader, pool))
    loss = model.task.loss(prediction.logits, torch.tensor([0, 1, 1]))
    (loss + sum(penalties(prediction).values())).backward()
    gradients = [p.grad for p in model.method.encoder.parameters() if p.requires_grad]
    assert gradients
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert any(g.abs().sum() > 0 for g in gradients if g is not None)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_can_be_copied_and_pickled(
    name: str,
    copied: Callable[[AbstractMethod], AbstractMethod],
    cases: list[Case],
    loader: CaseLoader,
    pool: ThreadPoolExecutor,
) -> None:
    """Copies and pickles hold the weights only, before and after forward passes."""
    model = build(name)
    fresh = copied(model.method)
    batch = load_batch(cases, loader, pool)
    batch.on_progress = lambda *_: None
    expected = evaluate(model, batch).logits
    used = copied(model.method)
    model.method.train()(batch)
    trained = copied(model.method)
    model.method.eval()
    for method in (fresh, used, trained):
        with torch.inference_mode():
            assert torch.equal(method.eval()(batch).logits, expected)
    assert len(pickle.dumps(used)) == pytest.approx(len(pickle.dumps(fresh)), rel=0.01)


@pytest.mark.parametrize("name", METHODS)
def test_wrappers_find_the_tensors_of_further_losses(
    name: str, cases: list[Case], loader: CaseLoader, pool: ThreadPoolExecutor
) -> None:
    """Lightning and DDP search a module's result for tensors with a gradient."""
    model, tensors = build(name), list[torch.Tensor]()
    prediction = model.method.train()(load_batch(cases, loader, pool))

    def walk(x: torch.Tensor) -> torch.Tensor:
        tensors.extend([x] if x.requires_grad else [])
        return x

    walked = apply_to_collection(prediction, torch.Tensor, walk)
    assert isinstance(walked, Prediction)
    judge = Judge(model.task, torch.tensor([0, 1, 1]))
    for loss in walked.further.values():
        value = loss(judge)
        assert value.shape == ()
        reached = torch.autograd.grad(value, tensors, allow_unused=True, retain_graph=True)
        assert any(gradient is not None for gradient in reached)
    assert not prediction.evidence
    evaluated = evaluate(model, load_batch(cases, loader, pool))
    assert apply_to_collection(evaluated, torch.Tensor, walk).evidence is evaluated.evidence


@pytest.mark.parametrize("name", METHODS)
def test_a_seed_replays_a_training_step(
    name: str, cases: list[Case], loader: CaseLoader, pool: ThreadPoolExecutor
) -> None:
    model = build(name)
    model.method.train()
    logits = []
    for _ in range(2):
        torch.manual_seed(3)
        logits.append(model.method(load_batch(cases, loader, pool)).logits)
    assert torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("name", METHODS)
def test_saved_and_loaded_predicts_the_same(
    name: str, cases: list[Case], loader: CaseLoader, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    model = build(name)
    save_model(tmp_path, model.card, model.method.state_dict())
    again = load_model(tmp_path)
    batch = load_batch(cases, loader, pool)
    assert again.card == model.card
    assert torch.equal(evaluate(again, batch).logits, evaluate(model, batch).logits)
