"""Answers as rows of ``predictions.csv``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foveate.prediction.answer import Answer
from foveate.prediction.doubts import explain_abstention, measure_uncertainty
from foveate.runs.models import Ensemble


def name_columns(models: Ensemble, rows: Sequence[Mapping[str, Any]], seen: bool) -> list[str]:
    """Return the columns of ``predictions.csv``, in order.

    Args:
        models: the models that answered.
        rows: rows of the table.
        seen: whether a column states the images that the models were trained on.
    """
    columns = ["image_id", "patient_id", "path"]
    if models.card.bag == "patient":
        columns += ["images", "shares", "left_out"]
    columns += ["label", "predicted", "threshold", "spacing"]
    columns += ["models", *models.task.columns]
    if len(models) > 1:
        columns += models.task.deviation_columns
    columns += [key for key in (rows or [{}])[0] if key.startswith("logit_sd_")]
    columns += ["uncertainty", "abstain", "unlike", *(["in_training"] if seen else [])]
    return [*columns, "seconds", "decoded_px", "level0_px", "decoded_fraction"]


def build_row(answer: Answer, models: Ensemble) -> dict[str, Any]:
    """Return the row of ``predictions.csv`` for an answer, by column; numbers are text.

    Args:
        answer: the answer about an image.
        models: the models that answered.
    """
    task, point, case = models.task, models.point, answer.case
    threshold, uncertainty = point.get("threshold"), measure_uncertainty(answer, models)
    row: dict[str, Any] = {
        "image_id": case.image_id,
        "patient_id": case.patient_id,
        "path": case.paths,
        "label": case.label or "",
        "predicted": task.predict(answer.values, point),
        "threshold": "" if threshold is None else f"{threshold:.6g}",
        "spacing": "|".join(
            dict.fromkeys(f"{i.spacing_um[-1]:.4g} {answer.unit}" for i in answer.images)
        ),
        "models": len(models),
        "uncertainty": "" if uncertainty is None else f"{uncertainty:.4f}",
        "abstain": explain_abstention(answer, models),
        "unlike": answer.unlike,
        "seconds": f"{answer.seconds:.3f}",
        "decoded_px": answer.decoded_px,
        "level0_px": answer.level0_px,
        "decoded_fraction": f"{answer.decoded_px / answer.level0_px:.5f}",
    }
    if case.images:
        row["images"] = "|".join(image.image_id for image in answer.images)
        row["shares"] = "|".join(f"{image.share:.4f}" for image in answer.images)
        row["left_out"] = "|".join(case.lacking)
    row |= {key: task.write(v) for key, v in zip(task.columns, answer.values, strict=True)}
    if answer.deviation_over_models is not None:
        deviations = zip(task.deviation_columns, answer.deviation_over_models, strict=True)
        row |= {key: task.write(sd) for key, sd in deviations}
    if answer.deviation is not None:
        noise = zip(task.outputs, answer.deviation, strict=True)
        row |= {f"logit_sd_{name}": f"{sd:.6f}" for name, sd in noise}
    return row
