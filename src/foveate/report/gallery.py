"""Heatmaps on the page: wrong ones first, then the surest; pictures inlined small."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from foveate.presentation import Verdict
from foveate.report.run_files import Row
from foveate.tasks.base import AbstractTask

MOST_INLINED = 60
_WIDTH_PX, _QUALITY = 1100, 76


@dataclass(frozen=True)
class Shown:
    """One heatmap.

    Attributes:
        verdict: what the task says of the answer.
        picture: a ``data:`` address, or None when it could not be inlined.
        png, geojson: links beside the page, or None.
        unlike: what sets it apart from the images of training, in words; mostly empty.
    """

    image_id: str
    label: str
    predicted: str
    verdict: Verdict
    picture: str | None
    png: str | None
    geojson: str | None
    unlike: str = ""


def gallery(
    folder: Path,
    entries: Sequence[dict[str, Any]],
    rows: Sequence[Row],
    task: AbstractTask | None,
) -> list[Shown]:
    """Entries of ``index.json`` that have a picture, in the order of the task.

    Args:
        folder: of the pictures.
        entries: what the index holds.
        rows: answers.
        task: judges them; None where it is not known.
    """
    row_of = {row.get("image_id", ""): row for row in rows}
    judged = [
        (entry, _verdict(task, entry, row_of.get(str(entry.get("image_id", "")), {})))
        for entry in entries
        if _file(folder, entry.get("png")) is not None
    ]
    judged.sort(key=lambda pair: tuple(-value for value in pair[1].rank))
    return [
        _shown(folder, entry, verdict, inline=k < MOST_INLINED)
        for k, (entry, verdict) in enumerate(judged)
    ]


def _shown(folder: Path, entry: dict[str, Any], verdict: Verdict, *, inline: bool) -> Shown:
    png, geojson = (_file(folder, entry.get(key)) for key in ("png", "geojson"))
    return Shown(
        image_id=str(entry.get("image_id", "")),
        label=str(entry.get("label") or ""),
        predicted=str(entry.get("predicted") or ""),
        verdict=verdict,
        picture=_inlined(png) if inline and png is not None else None,
        png=None if png is None else f"heatmaps/{quote(png.name)}",
        geojson=None if geojson is None else f"heatmaps/{quote(geojson.name)}",
        unlike=str(entry.get("unlike") or ""),
    )


def _verdict(task: AbstractTask | None, entry: dict[str, Any], row: Row) -> Verdict:
    return Verdict("unlabelled", "", (0.0, 0.0)) if task is None else task.verdict(entry, row)


def _file(folder: Path, name: Any) -> Path | None:
    """A file beside the index; names that would lead elsewhere are cut to their last part."""
    if not name:
        return None
    path = folder / Path(str(name)).name
    return path if path.is_file() else None


def _inlined(path: Path) -> str | None:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            small = picture.convert("RGB")
        small.thumbnail((_WIDTH_PX, 4 * _WIDTH_PX))
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    out = io.BytesIO()
    small.save(out, "JPEG", quality=_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode('ascii')}"
