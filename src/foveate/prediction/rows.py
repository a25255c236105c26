"""An answer as a row of ``predictions.csv``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foveate.prediction.predict import Answer
from foveate.runs.models import Ensemble


def name_columns(models: Ensemble, rows: Sequence[Mapping[str, Any]], seen: bool) -> list[str]:
    """Return the columns of ``predictions.csv``, in order."""
    columns = ["image_id", "patient_id", "path", "label", "predicted", "threshold", "spacing"]
    columns += ["models", *(f"prob_{c}" for c in models.classes)]
    if len(models) > 1:
        columns += [f"prob_sd_{c}" for c in models.classes]
    columns += [key for key in (rows or [{}])[0] if key.startswith("logit_sd_")]
    columns += ["unlike", *(["in_training"] if seen else [])]
    return [*columns, "seconds", "decoded_px", "level0_px", "decoded_fraction"]


def decide(probabilities: Sequence[float], classes: Sequence[str], threshold: float | None) -> str:
    """The predicted class: the most probable, or by the threshold of a binary task."""
    if threshold is not None and len(classes) == 2:
        return classes[int(probabilities[1] >= threshold)]
    return classes[max(range(len(classes)), key=lambda i: probabilities[i])]


def build_row(answer: Answer, models: Ensemble) -> dict[str, Any]:
    """Return the row of ``predictions.csv`` for an answer, by column; numbers are text."""
    threshold, case = models.threshold, answer.case
    row: dict[str, Any] = {
        "image_id": case.image_id,
        "patient_id": case.patient_id,
        "path": str(case.path),
        "label": case.label or "",
        "predicted": decide(answer.probabilities, models.classes, threshold),
        "threshold": "" if threshold is None else f"{threshold:.6g}",
        "spacing": f"{answer.spacing[-1]:.4g} {answer.unit}",
        "models": len(models),
        "unlike": answer.unlike,
        "seconds": f"{answer.seconds:.3f}",
        "decoded_px": answer.decoded_px,
        "level0_px": answer.level0_px,
        "decoded_fraction": f"{answer.decoded_px / answer.level0_px:.5f}",
    }
    shares = zip(models.classes, answer.probabilities, strict=True)
    row |= {f"prob_{c}": f"{p:.6f}" for c, p in shares}
    if answer.probability_sd is not None:
        spread = zip(models.classes, answer.probability_sd, strict=True)
        row |= {f"prob_sd_{c}": f"{sd:.6f}" for c, sd in spread}
    return row | _deviations(answer, models.classes)


def _deviations(answer: Answer, classes: Sequence[str]) -> dict[str, str]:
    """What a method says of the noise in its logits; one logit of two classes is the second's."""
    if answer.deviation is None:
        return {}
    n = len(answer.deviation)
    said = classes[-n:] if n in (1, len(classes)) else [str(j) for j in range(n)]
    return {f"logit_sd_{c}": f"{d:.6f}" for c, d in zip(said, answer.deviation, strict=True)}
