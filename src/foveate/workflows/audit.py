"""The command ``audit``: whether heatmaps of a run are faithful, localise, and are stable."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from foveate.errors import CheckpointError, FoveateError, TableError, concerns_all_images
from foveate.evaluation.faithfulness import SHARES, ImageCurves, explain_unranked, trace_curves
from foveate.evaluation.localisation import Agreement, measure_agreement, read_mask
from foveate.evaluation.options import AuditOptions
from foveate.evaluation.stability import correlate_answers, correlate_evidence
from foveate.files.atomic import write_json
from foveate.files.lock import lock_folder
from foveate.files.run_layout import RunLayout
from foveate.images.evidence import Evidence
from foveate.messages.display import Display, OnProgress, SetAsideMessages, within
from foveate.metrics import measure_mean
from foveate.prediction.answer import Answer
from foveate.prediction.pictures import evidence_file
from foveate.prediction.predict import OpenCase, open_one, predict_open
from foveate.reports import write_report
from foveate.runs.checkpoint import load_model
from foveate.runs.config import build_config, load_yaml
from foveate.runs.folder import read_rows
from foveate.runs.models import Ensemble
from foveate.runs.plan import Plan, make_plan
from foveate.runtime import find_device
from foveate.table import Case
from foveate.workflows.audit_words import describe_audit

_SUFFIXES = (".png", ".tif", ".tiff", ".nii.gz", ".nii", ".jpg", ".jpeg")
"""Suffixes of masks in a folder, the first that exists is taken."""


@dataclass(frozen=True)
class Audited:
    """One test image that was audited.

    Attributes:
        case: the image.
        answer: answer of the model that never saw it.
        curves: curves of deletion and insertion; None where the evidence prefers no box.
        unranked: why there are no curves; else empty.
        others: answers of the other models of the run, in their order; most of these models were
            trained with the image.
    """

    case: Case
    answer: Answer
    curves: ImageCurves | None
    unranked: str
    others: tuple[Answer, ...]

    @cached_property
    def evidence_correlation(self) -> float | None:
        """Mean rank correlation of the evidence of all models; None where there is none."""
        return correlate_evidence([answer.evidence for answer in (self.answer, *self.others)])


def run_audit(run: Path, options: AuditOptions, display: Display) -> dict[str, Any]:
    """Audit a finished run; write ``audit.json``, and the page of the run again.

    Args:
        run: folder of the run.
        options: what is audited.
        display: shows messages and progress.

    Returns:
        The content of ``audit.json``.

    Raises:
        CheckpointError: the folder holds no finished run.
        TableError: a mask is missing or does not fit its image.
        FoveateError: another error that the user can correct.
    """
    layout = RunLayout(run)
    needed = (layout.config, layout.plan, layout.splits, layout.predictions, layout.metrics)
    missing = [path for path in needed if not path.is_file()]
    if missing:
        raise CheckpointError(
            f"{run} holds no finished run ({missing[0].name} is missing): give the --out folder of "
            "`foveate train`"
        )
    plan = make_plan(build_config(load_yaml(layout.config)), run, display)
    with lock_folder(run):
        rows = read_rows(layout.predictions)
        masks = _find_masks(plan, rows, options)
        agreements = _measure_masks(run, masks, display)
        audited = _audit_images(run, plan, options, display)
        content = _summarise(audited, agreements, rows, plan)
        content["words"] = describe_audit(content)
        write_json(layout.audit, content)
        write_report(run)
    return content


# -- masks ------------------------------------------------------------------------------------


def _find_masks(
    plan: Plan, rows: Sequence[Mapping[str, str]], options: AuditOptions
) -> dict[str, Path]:
    """Return the masks of test images by image id.

    Raises:
        TableError: a mask that the table names is missing, or the folder holds none.
    """
    cases = [
        image
        for row in rows
        if row["image_id"] in plan.cases
        for image in plan.cases[row["image_id"]].list_images()
    ]
    if options.masks is None:
        named = {case.image_id: case.mask for case in cases if case.mask is not None}
        for image_id, path in named.items():
            if not path.is_file():
                raise TableError(
                    f"image '{image_id}': its mask {path} is missing: correct the column of masks, "
                    "or name their folder with --masks"
                )
        return named
    folder = Path(options.masks)
    if not folder.is_dir():
        raise TableError(f"--masks {folder}: no such folder; check the name")
    masks = {}
    for case in cases:
        paths = [folder / f"{case.image_id}{suffix}" for suffix in _SUFFIXES]
        here = [path for path in paths if path.is_file()]
        if here:
            masks[case.image_id] = here[0]
    if not masks:
        raise TableError(
            f"--masks {folder}: no file is named as a test image, such as "
            f"{cases[0].image_id}{_SUFFIXES[0]}; rename the masks"
        )
    return masks


def _measure_masks(run: Path, masks: Mapping[str, Path], display: Display) -> dict[str, Agreement]:
    """Measure the stored evidence of all test images with a mask."""
    agreements = {}
    for done, (image_id, path) in enumerate(masks.items(), 1):
        stored = evidence_file(RunLayout(run).heatmaps_folder, image_id)
        if stored.is_file():
            agreement = measure_agreement(Evidence.load(stored), read_mask(path), path)
            if agreement is not None:
                agreements[image_id] = agreement
        display.bar("masks", done, len(masks))
    return agreements


# -- predictions ------------------------------------------------------------------------------


def _audit_images(run: Path, plan: Plan, options: AuditOptions, display: Display) -> list[Audited]:
    """Delete and insert the boxes of some test images, each by the model that never saw it."""
    folders = [RunLayout(run).fold(k).model_folder for k in range(len(plan.splits.folds))]
    models = [Ensemble((load_model(folder),), (folder,)) for folder in folders]
    jobs = _choose_images(plan, options.images)
    messages, audited, device = SetAsideMessages(display.say), [], find_device(options.device)

    def show(done: float, _: int = 1) -> None:
        display.bar("audit", done, len(jobs))

    for done, (k, case) in enumerate(jobs):
        show(done)
        try:
            with open_one(models[k], case, device=device) as opened:
                audited.append(_audit_image(models, k, opened, within(show, done, len(jobs))))
        except FoveateError as error:
            if concerns_all_images(error):
                raise
            messages.set_aside(case.image_id, case.paths, str(error))
    show(len(jobs))
    messages.end()
    return audited


def _choose_images(plan: Plan, n: int) -> list[tuple[int, Case]]:
    """Choose test images, as many of each fold, spread evenly over the labels; with their fold."""
    chosen: list[tuple[int, Case]] = []
    for k, fold in enumerate(plan.splits.folds):
        cases = sorted(plan.pick(fold.test), key=lambda case: (str(case.label), case.image_id))
        wanted = min(len(cases), (n + k) // len(plan.splits.folds))
        places = np.linspace(0, len(cases) - 1, wanted).round().astype(int)
        chosen += [(k, cases[i]) for i in dict.fromkeys(places.tolist())]
    return chosen


def _audit_image(
    models: Sequence[Ensemble], k: int, opened: OpenCase, on_progress: OnProgress | None
) -> Audited:
    """Audit one open image of the test part of fold k."""
    answer = predict_open(models[k], opened)
    others = tuple(predict_open(m, opened) for j, m in enumerate(models) if j != k)
    unranked, curves = explain_unranked(answer.evidence), None
    if not unranked:
        curves = trace_curves(models[k], opened, answer, on_progress=on_progress)
    return Audited(opened.case, answer, curves, unranked, others)


# -- the result -------------------------------------------------------------------------------


def _summarise(
    audited: Sequence[Audited],
    agreements: Mapping[str, Agreement],
    rows: Sequence[Mapping[str, str]],
    plan: Plan,
) -> dict[str, Any]:
    """Return the content of ``audit.json`` without its words."""
    costs = {
        key: [float(row[key]) for row in rows if row.get(key)]
        for key in ("seconds", "decoded_px", "decoded_fraction")
    }
    return {
        "n_images": len(audited),
        "shares": list(SHARES),
        "faithfulness": _summarise_curves(audited),
        "unranked": dict(Counter(one.unranked for one in audited if one.unranked)),
        "localisation": _summarise_agreements(agreements, plan),
        "stability": _summarise_models(audited),
        "cost": {key: statistics.fmean(values) for key, values in costs.items() if values},
        "images": [_describe_image(one) for one in audited],
    }


def _describe_image(audited: Audited) -> dict[str, Any]:
    curves, case = audited.curves, audited.case
    return {
        "image_id": case.image_id,
        "patient_id": case.patient_id,
        "deletion_gain": None if curves is None else curves.deletion_gain,
        "insertion_gain": None if curves is None else curves.insertion_gain,
        "evidence_correlation": audited.evidence_correlation,
    }


def _summarise_curves(audited: Sequence[Audited]) -> dict[str, Any] | None:
    """Return mean curves, and the mean area between them with its interval over patients."""
    pairs = [(one.case.patient_id, one.curves) for one in audited if one.curves is not None]
    if not pairs:
        return None
    patients, curves = [patient for patient, _ in pairs], [curve for _, curve in pairs]
    return {
        "n": len(curves),
        "deletion": {
            "by_weight": np.mean([c.deletion for c in curves], 0).tolist(),
            "random": np.mean([c.random_deletion for c in curves], 0).tolist(),
            "gain": _measure([c.deletion_gain for c in curves], patients),
        },
        "insertion": {
            "by_weight": np.mean([c.insertion for c in curves], 0).tolist(),
            "random": np.mean([c.random_insertion for c in curves], 0).tolist(),
            "gain": _measure([c.insertion_gain for c in curves], patients),
        },
    }


def _summarise_agreements(agreements: Mapping[str, Agreement], plan: Plan) -> dict[str, Any] | None:
    """Return the means of the agreements with masks, with intervals over patients."""
    if not agreements:
        return None
    owner = {i.image_id: c.patient_id for c in plan.cases.values() for i in c.list_images()}
    patients = [owner[image_id] for image_id in agreements]
    values = [asdict(agreement) for agreement in agreements.values()]
    means = {key: _measure([v[key] for v in values], patients, share=True) for key in values[0]}
    return {"n": len(agreements), **means}


def _summarise_models(audited: Sequence[Audited]) -> dict[str, Any] | None:
    """Return how alike the models of the folds are; None with one model."""
    several = [one for one in audited if one.others]
    if not several:
        return None
    correlations = [(one.case.patient_id, one.evidence_correlation) for one in several]
    known = [(patient, value) for patient, value in correlations if value is not None]
    answers = np.array([[a.values for a in (one.answer, *one.others)] for one in several])
    return {
        "n_models": 1 + len(several[0].others),
        "n": len(several),
        "evidence": _measure([value for _, value in known], [p for p, _ in known])
        if known
        else None,
        "answers": correlate_answers(np.swapaxes(answers, 0, 1)),
    }


def _measure(values: Sequence[float], patients: Sequence[str], *, share: bool = False) -> Any:
    """Return a mean with its interval; limits that are not known are None, those of shares cut."""
    score = measure_mean(values, patients)
    lo, hi = (max(score.lo, 0.0), min(score.hi, 1.0)) if share else (score.lo, score.hi)
    known = math.isfinite(score.lo) and math.isfinite(score.hi)
    return asdict(score) | {"lo": lo if known else None, "hi": hi if known else None}
