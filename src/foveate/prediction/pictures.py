"""The files of an answer: its evidence and its pictures, such as heatmap and GeoJSON."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from foveate.errors import FoveateError, concerns_all_images, running_part
from foveate.exports import DEFAULT, About, AbstractExport, build_exports
from foveate.files.atomic import write_bytes
from foveate.images.image import AbstractImage
from foveate.parts import find, names
from foveate.prediction.answer import Answer
from foveate.prediction.options import PredictOptions
from foveate.prediction.rows import build_row
from foveate.runs.models import Ensemble
from foveate.table import Case

log = logging.getLogger("foveate")


def render_files(
    models: Ensemble,
    answer: Answer,
    image: AbstractImage,
    options: PredictOptions,
    *,
    with_pictures: bool,
) -> Answer:
    """Return the answer with its evidence and pictures as files; log those that lack pixels.

    Args:
        models: models that answered.
        answer: answer for one image.
        image: the image, still open.
        options: how the models predict.
        with_pictures: whether the image gets pictures.

    Raises:
        PartFault: the code of an export or the task failed.
        TooManyOpen, DiskFull: the system has no room; no image is to blame.
    """
    files = {".npz": answer.evidence.to_bytes()}
    if not with_pictures:
        return replace(answer, files=files)
    for export in build_exports(options.export).values():
        try:
            files[export.suffix] = draw_file(models, answer, image, export)
        except FoveateError as error:
            if concerns_all_images(error):
                raise
            log.warning("no %s of %s: %s", export.title, answer.case.image_id, error)
            log.info("%s", answer.case.path, exc_info=error)
    return replace(answer, files=files)


def draw_file(
    models: Ensemble, answer: Answer, image: AbstractImage, export: AbstractExport
) -> bytes:
    """Return the evidence of an answer as the content of a file.

    Args:
        models: models that answered.
        answer: answer for one image.
        image: the image, open.
        export: kind of file.

    Raises:
        PartFault: the code of the export or the task failed.
        FoveateError: the evidence cannot be shown in this kind of file.
    """
    with running_part("task", models.task, answer.case.path):
        about = _describe(answer, models)
    with running_part("export", export, answer.case.path):
        return export.render(image, answer.evidence, about)


def _describe(answer: Answer, models: Ensemble) -> About:
    """Return the texts that pictures show about an answer."""
    task, row = models.task, build_row(answer, models)
    numbers = task.explain(answer.values, models.point)
    if len(models) > 1:
        numbers += f"; mean of {len(models)} models"
    label = f"label {row['label']}, " if row["label"] else ""
    caption = f"{label}predicted {row['predicted']}   ({numbers})"
    texts = {"label": row["label"], "predicted": row["predicted"]}
    values = zip(task.columns, answer.values, strict=True)
    texts |= {column: task.write(value, short=True) for column, value in values}
    if answer.unlike:
        caption += f"\nunlike the images of training: {answer.unlike}"
        texts["unlike"] = answer.unlike
    return About(answer.case.image_id, caption, texts)


def write_files(
    answer: Answer,
    row: Mapping[str, Any],
    models: Ensemble,
    folder: Path,
    options: PredictOptions,
) -> dict[str, Any]:
    """Write the files of an answer, and return its entry of the index of pictures.

    Args:
        answer: the answer, with the bytes of its files.
        row: its row of ``predictions.csv``.
        models: the models that answered.
        folder: folder of the pictures.
        options: how the models predict, with the exports that were asked for.
    """
    stem = safe_name(answer.case.image_id)
    for suffix, content in answer.files.items():
        write_bytes(folder / f"{stem}{suffix}", content)
    entry: dict[str, Any] = {
        "image_id": answer.case.image_id,
        "label": row["label"],
        "predicted": row["predicted"],
        **models.task.record(answer.values),
        "models": len(models),
        "unlike": answer.unlike,
        **dict.fromkeys((*DEFAULT, *options.export)),
    }
    for name, export in build_exports(options.export).items():
        if export.suffix in answer.files:
            entry[name] = f"{stem}{export.suffix}"
    return entry


def list_files(folder: Path, entry: Mapping[str, Any]) -> list[Path]:
    """Return the files of an answer: its evidence, and its pictures.

    Args:
        folder: folder of the pictures.
        entry: entry of the answer in the index of pictures.
    """
    pictures = [entry.get(name) for name in names("exports")]
    return [
        evidence_file(folder, entry["image_id"]),
        *(folder / name for name in pictures if name),
    ]


def evidence_file(folder: Path, image_id: str) -> Path:
    """Return the file of the evidence of an image.

    Args:
        folder: folder of the pictures.
        image_id: id of the image.
    """
    return folder / f"{safe_name(image_id)}.npz"


def forget_files(folder: Path, case: Case) -> None:
    """Remove the files of an earlier answer for this image, so that no old picture stays.

    Args:
        folder: folder of the pictures.
        case: the image.
    """
    suffixes = [find("exports", name).suffix for name in names("exports")]
    for suffix in (".npz", *suffixes):
        (folder / f"{safe_name(case.image_id)}{suffix}").unlink(missing_ok=True)


_NAME_BYTES = 180
"""Longest stem of a file name in bytes; with suffixes and temporary names it stays below 255."""


def safe_name(image_id: str) -> str:
    """Return a file name for an image id.

    A name that had to be changed or shortened gets eight digits of the hash of the id.
    """
    plain = "".join(c if c.isalnum() or c in "._-" else "_" for c in image_id).lstrip(".")
    short = _encode(plain)[:_NAME_BYTES].decode(errors="ignore")
    if short == image_id:
        return short
    return f"{short}-{hashlib.sha256(_encode(image_id)).hexdigest()[:8]}"


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
