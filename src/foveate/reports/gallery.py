"""The heatmaps of the page, in the order of the task, with small inlined pictures."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from foveate.files.run_layout import name_case
from foveate.parts import find, names
from foveate.presentation import Verdict
from foveate.reports.run_files import Row
from foveate.tasks.base import AbstractTask

MAX_INLINED = 60
_MAX_EXTREMES = 2
"""Number of the worst, and of the best, answers that are picked."""
_WIDTH_PX, _QUALITY = 1100, 76


@dataclass(frozen=True)
class ShownHeatmap:
    """One heatmap on the page.

    Attributes:
        image_id: id of the image.
        label: label of the image; empty without one.
        predicted: predicted label.
        verdict: judgement of the task about the answer.
        picture: a ``data:`` address, or None when the picture could not be inlined.
        png: link to the picture beside the page, or None.
        links: title and link of all files of the answer.
        unlike: how the image differs from those of training, in words; empty if it does not.
        case: id of the row of the predictions; that of the image, or of its patient.
    """

    image_id: str
    label: str
    predicted: str
    verdict: Verdict
    picture: str | None
    png: str | None
    links: list[tuple[str, str]]
    unlike: str = ""
    case: str = ""


def list_heatmaps(
    folder: Path,
    entries: Sequence[dict[str, Any]],
    rows: Sequence[Row],
    task: AbstractTask | None,
) -> list[ShownHeatmap]:
    """List the entries of ``index.json`` that have a picture, in the order of the task.

    Args:
        folder: folder of the pictures.
        entries: entries of the index.
        rows: rows of ``predictions.csv``.
        task: task that judges the answers; None where it is not known.
    """
    return [
        _build_entry(folder, entry, verdict, folder.parent, inline=k < MAX_INLINED)
        for k, (entry, verdict) in enumerate(_rank(folder, entries, rows, task))
    ]


def pick_extremes(
    folder: Path,
    entries: Sequence[dict[str, Any]],
    rows: Sequence[Row],
    task: AbstractTask,
    page_folder: Path,
) -> list[ShownHeatmap]:
    """Pick the worst and the best answers that have a picture, the worst first.

    Args:
        folder: folder of the pictures.
        entries: entries of the index.
        rows: rows of ``predictions.csv``.
        task: task that judges the answers.
        page_folder: folder of the page, which links are relative to.
    """
    ranked = _keep_heaviest(_rank(folder, entries, rows, task))
    right = [pair for pair in ranked if pair[1].kind == "right"]
    worst = [pair for pair in ranked if pair[1].kind != "right"] or right[::-1]
    best = right or ranked[::-1]
    chosen = worst[:_MAX_EXTREMES]
    chosen += [pair for pair in best[:_MAX_EXTREMES] if pair not in chosen]
    return [_build_entry(folder, *pair, page_folder, inline=True) for pair in chosen]


def _keep_heaviest(
    ranked: Sequence[tuple[dict[str, Any], Verdict]],
) -> list[tuple[dict[str, Any], Verdict]]:
    """Return the first entry of each answer."""
    first: dict[str, tuple[dict[str, Any], Verdict]] = {}
    for entry, verdict in ranked:
        first.setdefault(name_case(entry), (entry, verdict))
    return list(first.values())


def link_pictures(
    folder: Path, entries: Sequence[dict[str, Any]], page_folder: Path
) -> dict[str, str]:
    """Return the links to the pictures by image id; of a patient, to that of the heaviest image.

    Args:
        folder: folder of the pictures.
        entries: entries of the index.
        page_folder: folder of the page, which links are relative to.
    """
    ordered = sorted(entries, key=lambda entry: float(entry.get("share") or 0.0))
    files = {name_case(entry): _find_file(folder, entry.get("png")) for entry in ordered}
    return {image: _link(path, page_folder) for image, path in files.items() if path is not None}


def _rank(
    folder: Path,
    entries: Sequence[dict[str, Any]],
    rows: Sequence[Row],
    task: AbstractTask | None,
) -> list[tuple[dict[str, Any], Verdict]]:
    """Judge the entries that have a picture, and sort them in the order of the task.

    Of one answer, the image with the most weight comes first.
    """
    row_of = {row.get("image_id", ""): row for row in rows}
    judged = [
        (entry, _judge(task, entry, row_of.get(name_case(entry), {})))
        for entry in entries
        if _find_file(folder, entry.get("png")) is not None
    ]
    heaviest_first = sorted(judged, key=lambda pair: -float(pair[0].get("share") or 0.0))
    return sorted(heaviest_first, key=lambda pair: tuple(-value for value in pair[1].rank))


def _link(path: Path, page_folder: Path) -> str:
    """Return the link from a page to a file."""
    return quote(Path(os.path.relpath(path, page_folder)).as_posix())


def _build_entry(
    folder: Path, entry: dict[str, Any], verdict: Verdict, page_folder: Path, *, inline: bool
) -> ShownHeatmap:
    kinds = [name for name in names("exports") if name != "png"]
    files = [(name, _find_file(folder, entry.get(name))) for name in ("png", *kinds)]
    png = dict(files)["png"]
    return ShownHeatmap(
        image_id=str(entry.get("image_id", "")),
        label=str(entry.get("label") or ""),
        predicted=str(entry.get("predicted") or ""),
        verdict=verdict,
        picture=_inline(png) if inline and png is not None else None,
        png=None if png is None else _link(png, page_folder),
        links=[
            (find("exports", name).title, _link(path, page_folder))
            for name, path in files
            if path is not None
        ],
        unlike=str(entry.get("unlike") or ""),
        case=name_case(entry),
    )


def _judge(task: AbstractTask | None, entry: dict[str, Any], row: Row) -> Verdict:
    return Verdict("unlabelled", "", (0.0, 0.0)) if task is None else task.verdict(entry, row)


def _find_file(folder: Path, name: object) -> Path | None:
    """Return a file beside the index, or None; a name with folders is cut to its last part."""
    if not name:
        return None
    path = folder / Path(str(name)).name
    return path if path.is_file() else None


def _inline(path: Path) -> str | None:
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
