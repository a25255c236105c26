"""Heatmaps on the page: wrong ones first, then the surest; pictures inlined small."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from foveate.report.run_files import number

MOST_INLINED = 60
_WIDTH_PX, _QUALITY = 1100, 76


@dataclass(frozen=True)
class Shown:
    """One heatmap.

    Attributes:
        verdict: ``wrong``, ``right`` or, without a label, ``unlabelled``.
        probability: of the predicted class.
        deciding: of two classes, name and probability of the second, and from where it is called.
        picture: a ``data:`` address, or None when it could not be inlined.
        png, geojson: links beside the page, or None.
        unlike: what sets it apart from the images of training, in words; mostly empty.
    """

    image_id: str
    label: str
    predicted: str
    verdict: str
    probability: float | None
    deciding: tuple[str, float, float] | None
    probabilities: list[tuple[str, float | None]]
    picture: str | None
    png: str | None
    geojson: str | None
    unlike: str = ""


def gallery(
    folder: Path, entries: Sequence[dict[str, Any]], thresholds: Mapping[str, float]
) -> list[Shown]:
    """Entries of ``index.json`` that have a picture, errors first, each group by confidence.

    Args:
        folder: of the pictures.
        entries: what the index holds.
        thresholds: by image, from which probability on the second of two classes is called.
    """
    drawn = [entry for entry in entries if _file(folder, entry.get("png")) is not None]
    order = {"wrong": 0, "right": 1, "unlabelled": 2}
    drawn.sort(key=lambda entry: (order[_verdict(entry)], -(_confidence(entry) or 0.0)))
    return [
        _shown(folder, entry, thresholds, inline=k < MOST_INLINED) for k, entry in enumerate(drawn)
    ]


def _shown(
    folder: Path, entry: dict[str, Any], thresholds: Mapping[str, float], *, inline: bool
) -> Shown:
    png, geojson = (_file(folder, entry.get(key)) for key in ("png", "geojson"))
    shares = _shares(entry)
    return Shown(
        image_id=str(entry.get("image_id", "")),
        label=str(entry.get("label") or ""),
        predicted=str(entry.get("predicted") or ""),
        verdict=_verdict(entry),
        probability=_confidence(entry),
        deciding=_deciding(entry, thresholds),
        probabilities=[(str(name), number(shares, name)) for name in shares],
        picture=_inlined(png) if inline and png is not None else None,
        png=None if png is None else f"heatmaps/{quote(png.name)}",
        geojson=None if geojson is None else f"heatmaps/{quote(geojson.name)}",
        unlike=str(entry.get("unlike") or ""),
    )


def _shares(entry: dict[str, Any]) -> dict[str, Any]:
    shares = entry.get("probs")
    return shares if isinstance(shares, dict) else {}


def _verdict(entry: dict[str, Any]) -> str:
    if not entry.get("label"):
        return "unlabelled"
    return "right" if entry["label"] == entry.get("predicted") else "wrong"


def _confidence(entry: dict[str, Any]) -> float | None:
    return number(_shares(entry), str(entry.get("predicted")))


def _deciding(
    entry: dict[str, Any], thresholds: Mapping[str, float]
) -> tuple[str, float, float] | None:
    shares = _shares(entry)
    threshold = thresholds.get(str(entry.get("image_id", "")))
    if threshold is None or len(shares) != 2:
        return None
    name = list(shares)[1]
    value = number(shares, name)
    return None if value is None else (str(name), value, threshold)


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
