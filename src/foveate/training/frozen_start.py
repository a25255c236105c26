"""Fit statistics and linear answers to a frozen encoder's features, before training by gradient."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from foveate.batch import Batch, Patches, ReadingFailed
from foveate.messages.display import OnProgress
from foveate.methods.base import AbstractMethod
from foveate.nn.overview import N_LEFT_OUT_FOLDS
from foveate.table import Case
from foveate.tasks.base import AbstractTask

_SAMPLED_IMAGES, _SAMPLED_PATCHES = 48, 8


def fit_start(
    method: AbstractMethod,
    task: AbstractTask,
    cases: Sequence[Case],
    batches: Iterable[tuple[Case, Batch]],
    on_progress: OnProgress,
) -> dict[str, int]:
    """Let the encoder and the method fit what they fit to features, before the first step.

    Args:
        method: method with a pretrained encoder; it is changed.
        task: the task, which defines the loss.
        cases: images of the training and the validation part.
        batches: frozen batches of one image each, without images that fail.
        on_progress: called with the number of images that are done, and the number of all.

    Returns:
        by image id, number of the left-out fold of the image; empty where the method fits nothing
        to glimpses.
    """
    looks_only = not method.reads & {"crops", "bag", "whole"}
    sampled = set(np.linspace(0, len(cases) - 1, _SAMPLED_IMAGES).astype(int).tolist())
    fitted: list[Case] = []
    overviews: list[Tensor] = []
    glimpses: list[Tensor] = []
    patches: list[Tensor] = []
    for i, (case, batch) in enumerate(batches):
        wanted = i in sampled
        if method.fits_glimpses or (looks_only and wanted):
            look = batch.look(method.encoder)[0]
            overviews.append(look.overview.cpu())
            glimpses.append(look.features.float().cpu())
            fitted.append(case)
        if not looks_only and wanted and batch.frozen_features is not None:
            with contextlib.suppress(ReadingFailed):  # set aside when a step comes to it
                few = [_sample_patches(batch)]
                patches.append(batch.frozen_features.features(method.encoder, few, 32).cpu())
        on_progress(i + 1, len(cases))
    features = glimpses if looks_only else patches
    if features:
        method.encoder.fit_start(torch.cat(features))
    if not method.fits_glimpses or not fitted:
        return {}
    labels = [str(case.label) for case in fitted]
    target = task.targets(labels)
    left_out_fold = _divide(fitted, task.strata(labels, [case.patient_id for case in fitted]))

    def each_loss(logits: Float[Tensor, "m k"], rows: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
        return task.each_loss(logits, target[rows]).double()

    method.fit_start(torch.cat(overviews), each_loss, torch.from_numpy(left_out_fold))
    return {case.image_id: k for case, k in zip(fitted, left_out_fold.tolist(), strict=True)}


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
