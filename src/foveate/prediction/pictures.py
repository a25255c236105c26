"""The files of an answer: its evidence and its pictures, such as heatmap and GeoJSON."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foveate.errors import FoveateError, concerns_all_images, running_part
from foveate.exports import DEFAULT, About, AbstractExport, build_exports
from foveate.files.atomic import write_bytes
from foveate.images.composed import ComposedImage
from foveate.images.evidence import Evidence
from foveate.images.image import AbstractImage
from foveate.parts import find, names
from foveate.prediction.answer import Answer, AnsweredImage
from foveate.prediction.options import PredictOptions
from foveate.prediction.rows import build_row
from foveate.runs.models import Ensemble
from foveate.table import Case

log = logging.getLogger("foveate")


@dataclass(frozen=True)
class ShownImage:
    """One image of an answer with the part of the evidence that lies in it.

    Attributes:
        image_id: id of the image.
        image: the image, open.
        evidence: boxes of this image, in micrometres from its corner.
    """

    image_id: str
    image: AbstractImage
    evidence: Evidence


def list_shown(case: Case, image: AbstractImage, evidence: Evidence) -> list[ShownImage]:
    """Cut the evidence of an answer back to the images that it came from.

    Args:
        case: the case.
        image: its image, or its images on one canvas.
        evidence: boxes of the answer.
    """
    if not isinstance(image, ComposedImage):
        (only,) = case.list_images()
        return [ShownImage(only.image_id, image, evidence)]
    parts = zip(image.slots, image.split_evidence(evidence), strict=True)
    return [ShownImage(slot.image_id, slot.image, part) for slot, part in parts]


def describe_images(shown: Sequence[ShownImage]) -> tuple[AnsweredImage, ...]:
    """Describe the images of an answer, with the share of the weight that lies in each.

    Args:
        shown: the images with their evidence.
    """
    weights = [float(one.evidence.weight.sum()) for one in shown]
    whole = sum(weights) or 1.0
    return tuple(
        AnsweredImage(one.image_id, tuple(one.image.known_spacing_um), weight / whole)
        for one, weight in zip(shown, weights, strict=True)
    )


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
        answer: the answer.
        image: its image, or its images on one canvas, still open.
        options: how the models predict.
        with_pictures: whether the images get pictures.

    Raises:
        PartFault: the code of an export or the task failed.
        TooManyOpen, DiskFull: the system has no room; no image is to blame.
    """
    files: dict[tuple[str, str], bytes] = {}
    for shown in list_shown(answer.case, image, answer.evidence):
        files[shown.image_id, ".npz"] = shown.evidence.to_bytes()
        for export in build_exports(options.export).values() if with_pictures else ():
            try:
                content = draw_file(models, answer, shown, export)
            except FoveateError as error:
                if concerns_all_images(error):
                    raise
                log.warning("no %s of %s: %s", export.title, shown.image_id, error)
                log.info("%s", shown.image.path, exc_info=error)
            else:
                files[shown.image_id, export.suffix] = content
    return replace(answer, files=files)


def draw_file(models: Ensemble, answer: Answer, shown: ShownImage, export: AbstractExport) -> bytes:
    """Return the evidence of an answer in one image as the content of a file.

    Args:
        models: models that answered.
        answer: the answer.
        shown: the image with its evidence.
        export: kind of file.

    Raises:
        PartFault: the code of the export or the task failed.
        FoveateError: the evidence cannot be shown in this kind of file.
    """
    with running_part("task", models.task, shown.image.path):
        about = _describe(answer, models, shown.image_id)
    with running_part("export", export, shown.image.path):
        return export.render(shown.image, shown.evidence, about)


def _describe(answer: Answer, models: Ensemble, image_id: str) -> About:
    """Return the texts that the pictures of one image show about an answer."""
    task, row = models.task, build_row(answer, models)
    numbers = task.explain(answer.values, models.point)
    if len(models) > 1:
        numbers += f"; mean of {len(models)} models"
    label = f"label {row['label']}, " if row["label"] else ""
    caption = f"{label}predicted {row['predicted']}   ({numbers})"
    texts = {"label": row["label"], "predicted": row["predicted"]}
    values = zip(task.columns, answer.values, strict=True)
    texts |= {column: task.write(value, short=True) for column, value in values}
    if len(answer.images) > 1:
        number, share = next(
            (n, i.share) for n, i in enumerate(answer.images, 1) if i.image_id == image_id
        )
        caption += (
            f"\nimage {number} of {len(answer.images)} of patient {answer.case.patient_id}, with "
            f"{share:.0%} of the weight of all"
        )
        texts |= {"patient": answer.case.patient_id, "share": f"{share:.4f}"}
    if answer.unlike:
        caption += f"\nunlike the images of training: {answer.unlike}"
        texts["unlike"] = answer.unlike
    return About(image_id, caption, texts)


def write_files(
    answer: Answer,
    row: Mapping[str, Any],
    models: Ensemble,
    folder: Path,
    options: PredictOptions,
) -> list[dict[str, Any]]:
    """Write the files of an answer; return the entries of its images in the index of pictures.

    Args:
        answer: the answer, with the bytes of its files.
        row: its row of ``predictions.csv``.
        models: the models that answered.
        folder: folder of the pictures.
        options: how the models predict, with the exports that were asked for.
    """
    entries = []
    for image in answer.images:
        entry: dict[str, Any] = {
            "image_id": image.image_id,
            "label": row["label"],
            "predicted": row["predicted"],
            **models.task.record(answer.values),
            "models": len(models),
            "unlike": answer.unlike,
            **dict.fromkeys((*DEFAULT, *options.export)),
        }
        if answer.case.images:
            entry |= {"case": answer.case.image_id, "share": round(image.share, 6)}
        for name, export in build_exports(options.export).items():
            if (image.image_id, export.suffix) in answer.files:
                entry[name] = f"{safe_name(image.image_id)}{export.suffix}"
        entries.append(entry)
    for (image_id, suffix), content in answer.files.items():
        write_bytes(folder / f"{safe_name(image_id)}{suffix}", content)
    return entries


def list_files(folder: Path, entry: Mapping[str, Any]) -> list[Path]:
    """Return the files of one image of an answer: its evidence, and its pictures.

    Args:
        folder: folder of the pictures.
        entry: entry of the image in the index of pictures.
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
    """Remove the files of an earlier answer for this case, so that no old picture stays.

    Args:
        folder: folder of the pictures.
        case: the case.
    """
    suffixes = [find("exports", name).suffix for name in names("exports")]
    ids = [*(image.image_id for image in case.list_images()), *case.lacking]
    for image_id, suffix in itertools.product(ids, (".npz", *suffixes)):
        (folder / f"{safe_name(image_id)}{suffix}").unlink(missing_ok=True)


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
