"""The files of an answer: evidence, heatmap, GeoJSON."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from foveate.errors import FoveateError, out_of_files
from foveate.files.atomic import json_text, write_bytes
from foveate.heatmaps import build_geojson, render_heatmap
from foveate.images.image import AbstractImage
from foveate.prediction.predict import Answer
from foveate.prediction.rows import build_row
from foveate.runs.models import Ensemble
from foveate.table import Case

log = logging.getLogger("foveate")


def add_files(
    models: Ensemble, answer: Answer, image: AbstractImage, *, drawn: frozenset[str]
) -> Answer:
    """Return the answer with its evidence and pictures as files; a picture that fails is said.

    Args:
        models: that answer.
        answer: of one image.
        image: still open.
        drawn: the images that get pictures.
    """
    files = {".npz": answer.evidence.to_bytes()}
    if answer.case.image_id not in drawn:
        return replace(answer, files=files)
    row = build_row(answer, models)
    numbers = zip(models.task.columns, answer.values, strict=True)
    try:
        metadata = {"label": row["label"], "predicted": row["predicted"]}
        metadata |= {column: models.task.write(v, short=True) for column, v in numbers}
        metadata |= {"unlike": answer.unlike} if answer.unlike else {}
        collection = build_geojson(image, answer.evidence, metadata=metadata)
        png = render_heatmap(
            image,
            answer.evidence,
            title=answer.case.image_id,
            caption=_caption(row, answer, models),
        )
        files |= {".png": png, ".geojson": json_text(collection).encode()}
    except Exception as error:
        if out_of_files(error):
            raise
        why = str(error) if isinstance(error, FoveateError) else "drawing it went wrong"
        log.warning("no picture of %s: %s", answer.case.image_id, why)
        log.info("%s", answer.case.path, exc_info=error)
    return replace(answer, files=files)


def _caption(row: Mapping[str, Any], answer: Answer, models: Ensemble) -> str:
    """Return what stands below the title of a picture."""
    numbers = models.task.explain(answer.values, models.point)
    if len(models) > 1:
        numbers += f"; mean of {len(models)} models"
    label = f"label {row['label']}, " if row["label"] else ""
    caption = f"{label}predicted {row['predicted']}   ({numbers})"
    if row["unlike"]:
        caption += f"\nunlike the images of training: {row['unlike']}"
    return caption


def write_files(
    answer: Answer, row: Mapping[str, Any], models: Ensemble, folder: Path
) -> dict[str, Any]:
    """Write the files of an answer; return what the index of pictures says of it."""
    stem = safe_name(answer.case.image_id)
    for suffix, content in answer.files.items():
        write_bytes(folder / f"{stem}{suffix}", content)
    return {
        "image_id": answer.case.image_id,
        "label": row["label"],
        "predicted": row["predicted"],
        **models.task.record(answer.values),
        "models": len(models),
        "unlike": answer.unlike,
        "png": f"{stem}.png" if ".png" in answer.files else None,
        "geojson": f"{stem}.geojson" if ".geojson" in answer.files else None,
    }


def forget_files(folder: Path, case: Case) -> None:
    """Remove what an earlier answer to this image left, so that no old picture stays."""
    for suffix in (".npz", ".png", ".geojson"):
        (folder / f"{safe_name(case.image_id)}{suffix}").unlink(missing_ok=True)


_NAME_BYTES = 180
"""Of a file name: with suffixes and what is written aside it stays below 255."""


def safe_name(image_id: str) -> str:
    """A file name from an id.

    One that had to be changed or shortened gets a few digits of the id's hash.
    """
    plain = "".join(c if c.isalnum() or c in "._-" else "_" for c in image_id).lstrip(".")
    short = _bytes(plain)[:_NAME_BYTES].decode(errors="ignore")
    if short == image_id:
        return short
    return f"{short}-{hashlib.sha256(_bytes(image_id)).hexdigest()[:8]}"


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
