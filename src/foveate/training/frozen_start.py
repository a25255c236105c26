"""Fit statistics and linear answers to a frozen encoder's features, before training by gradient."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from numpy.typing import NDArray
from torch import Tensor

from foveate.batch import Batch, CropError, Patches
from foveate.encoders.base import ProjectedEncoder
from foveate.methods.base import AbstractMethod
from foveate.nn.overview import N_LEFT_OUT_FOLDS, OverviewHead, PatchTrust
from foveate.table import Case
from foveate.tasks.base import AbstractTask

_SAMPLED_IMAGES, _SAMPLED_PATCHES = 48, 8


def settle_start(
    method: AbstractMethod,
    task: AbstractTask,
    cases: Sequence[Case],
    batches: Iterable[tuple[Case, Batch]],
    on_progress: Callable[[int], None],
) -> dict[str, int]:
    """Standardise features, and fit the linear answers to glimpses where the method has them.

    Args:
        method: method with a pretrained encoder; it is changed.
        task: the task, which defines the loss.
        cases: images of the training and the validation part.
        batches: frozen batches of one image each, without images that fail.
        on_progress: called with the number of images that are done.

    Returns:
        by image id, number of the group with which the image was left out of the fits of the linear
        answers; empty where the method has no linear answers.
    """
    head = next((m for m in method.modules() if isinstance(m, OverviewHead)), None)
    looks_only = not method.reads & {"crops", "bag", "whole"}
    sampled = set(np.linspace(0, len(cases) - 1, _SAMPLED_IMAGES).astype(int).tolist())
    fitted: list[Case] = []
    overviews: list[Tensor] = []
    glimpses: list[Tensor] = []
    patches: list[Tensor] = []
    for i, (case, batch) in enumerate(batches):
        wanted = i in sampled
        if head is not None or (looks_only and wanted):
            look = batch.look(method.encoder)[0]
            overviews.append(look.overview.cpu())
            glimpses.append(look.features.float().cpu())
            fitted.append(case)
        if not looks_only and wanted and batch.frozen_features is not None:
            with contextlib.suppress(CropError):  # set aside when a step comes to it
                few = [_sample_patches(batch)]
                patches.append(batch.frozen_features.features(method.encoder, few, 32).cpu())
        on_progress(i + 1)
    features = glimpses if looks_only else patches
    if features and isinstance(method.encoder, ProjectedEncoder):
        method.encoder.mixed.standardise.settle(torch.cat(features))
    if head is None or not fitted:
        return {}
    labels = [str(case.label) for case in fitted]
    target = task.targets(labels)
    left_out_fold = _divide(fitted, task.strata(labels, [case.patient_id for case in fitted]))

    def each_loss(logits: Float[Tensor, "m k"], rows: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
        return task.each_loss(logits, target[rows]).double()

    head.settle(torch.cat(overviews), each_loss, torch.from_numpy(left_out_fold))
    return {case.image_id: k for case, k in zip(fitted, left_out_fold.tolist(), strict=True)}


def settle_trust(
    method: AbstractMethod,
    task: AbstractTask,
    answer: Callable[[], tuple[Float[Tensor, "n k"], Shaped[Tensor, "n ..."]]],
) -> None:
    """Fit how far the patches' answers are trusted, where the method adds them to the glimpse's.

    Args:
        method: method whose patches were trained on frozen features; it is changed.
        task: the task, which defines the loss.
        answer: computes the method's answers to the validation part, ``(n, k)``, and their
            targets, ``(n, …)``.
    """
    for trust in list_trusts(method):
        trust.settle(answer, task.each_loss)


def share_trust(method: AbstractMethod, others: Sequence[AbstractMethod]) -> None:
    """Trust patches as far as other models of the same kind do on average.

    Args:
        method: method that has no validation part of its own; it is changed.
        others: methods of the same kind, each with the trust fitted to its validation part.
    """
    for of_all in zip(*map(list_trusts, (method, *others)), strict=True):
        trust, *fitted = of_all
        trust.value.copy_(torch.stack([other.value for other in fitted]).mean())


def list_trusts(method: AbstractMethod) -> list[PatchTrust]:
    """Return the modules of a method that weigh its patches' answers against the glimpse's."""
    return [module for module in method.modules() if isinstance(module, PatchTrust)]


def _divide(cases: Sequence[Case], strata: Sequence[str]) -> NDArray[np.int64]:
    """Divide images into groups to leave out ``(n,)``: patients together, strata spread evenly."""
    count = Counter(strata)
    label: dict[str, str] = {}
    for case, stratum in sorted(zip(cases, strata, strict=True), key=lambda pair: count[pair[1]]):
        label.setdefault(case.patient_id, stratum)  # the rarest stratum of the patient's images
    order = sorted(label, key=lambda patient: (label[patient], patient))
    fold = {patient: i % N_LEFT_OUT_FOLDS for i, patient in enumerate(order)}
    return np.array([fold[case.patient_id] for case in cases], np.int64)


def _sample_patches(batch: Batch) -> Patches:
    """Return a few patches of the foreground, evenly over the lattice."""
    lattice = batch.cover(0, (0.0,) * batch.view.axes)
    n = min(len(lattice), _SAMPLED_PATCHES)
    return lattice[np.linspace(0, len(lattice) - 1, n).astype(np.int64)]
