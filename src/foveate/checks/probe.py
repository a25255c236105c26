"""Open one image and collect its facts: levels, spacing, values, foreground, a thumbnail.

Runs in a child process (`foveate.checks.child`), because a file may make a decoder crash or hang.
"""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import asdict, astuple
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from foveate.checks.device import read_origin
from foveate.checks.records import ImageRecord, Vectors
from foveate.checks.thumbnail import draw_thumbnail, make_print, scale_to_white
from foveate.errors import FoveateError, converting
from foveate.files.identical import companion_folder
from foveate.geometry import Box, Frame
from foveate.images.bit_depth import used_bits
from foveate.images.foreground import measure_slide_contrast
from foveate.images.image import AbstractImage
from foveate.images.likeness import is_blank
from foveate.images.resample import Pixels, white_value
from foveate.images.respaced import RespacedImage
from foveate.messages.warn import reset_warnings
from foveate.readers import ReaderOptions, open_image
from foveate.wording import one_line

GLIMPSE_PX = {2: 512, 3: 96}
"""Long side of the glimpse, by the axes of the image."""
REGION_PX = {2: 256, 3: 32}
"""Side of the regions that are read, by the axes of the image."""
_REGIONS = 3
"""Regions that are read at random places of every level."""
_VECTORS_AT_ONCE = 4096
_LEAST_CONTRAST = 8
"""Contrast in grey levels of 255 from which a pixel of a slide is tissue."""


def probe(path: Path, readers: ReaderOptions | None = None) -> dict[str, Any]:
    """Open an image, read regions of every level, and return its facts as plain values.

    Args:
        path: the file, or a folder that is one image.
        readers: options of readers, see `foveate.readers.open_image`.

    Returns:
        the fields of `ImageRecord`; or ``failed``, why the image cannot be used.
    """
    messages = _Messages()
    logger = logging.getLogger("foveate")
    logger.addHandler(messages)
    reset_warnings()
    try:
        with converting(path):
            return asdict(_collect(path, readers, messages.lines))
    except FoveateError as error:
        return {"failed": one_line(str(error))}
    finally:
        logger.removeHandler(messages)


class _Messages(logging.Handler):
    """Collects warnings about a file."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(one_line(record.getMessage()))


def _collect(path: Path, readers: ReaderOptions | None, messages: list[str]) -> ImageRecord:
    """Collect the facts of an image; `messages` grows while the file is read."""
    with open_image(path, readers) as image:
        region_s = _read_regions(image)
        bits = used_bits(image)
        white = float((1 << bits) - 1) if bits else white_value(image.dtype)
        begun = time.perf_counter()
        glimpse = _read_glimpse(image)
        glimpse_s = time.perf_counter() - begun
        tissue = None
        if image.kind == "slide":
            contrast = measure_slide_contrast(path, glimpse, image.background)
            tissue = contrast >= _LEAST_CONTRAST
        values = scale_to_white(glimpse, white)
        count = image.count
        file_bytes, changed = _read_state(path)
        origin = read_origin(path, image.reader)
        return ImageRecord(
            file_bytes=file_bytes,
            date=changed,
            kind=image.kind,
            reader=image.reader,
            shape=image.shape,
            channels=image.channels,
            bits=bits,
            levels=tuple(level.shape for level in image.levels),
            spacing_um=image.spacing_um,
            device=origin.device,
            objective=origin.objective,
            low=round(float(values.min()), 4),
            high=round(float(values.max()), 4),
            mean=round(float(values.mean()), 4),
            border=round(_measure_border(values), 4),
            foreground=None if tissue is None else round(float(tissue.mean()), 5),
            blank=image.stored is None and is_blank(glimpse),
            unknown=round(count.unknown_px / max(count.decoded_px, 1), 5),
            glimpse_s=round(glimpse_s, 4),
            region_s=round(region_s, 5),
            warnings=tuple(messages),
            thumbnail=draw_thumbnail(values, tissue),
            print=make_print(values),
            vectors=_check_vectors(image),
        )


def _check_vectors(image: AbstractImage) -> Vectors | None:
    """Read all vectors of a file of features, and return the facts about them; None for pixels.

    Raises:
        UnreadableImage: vectors cannot be decoded, or are no finite numbers.
    """
    if image.stored is None:
        return None
    stored = image.stored
    for first in range(0, len(stored), _VECTORS_AT_ONCE):
        stored.read(np.arange(first, min(first + _VECTORS_AT_ONCE, len(stored))))
    return (*astuple(stored.recipe), stored.side_px0, stored.patch_px)


def _read_regions(image: AbstractImage) -> float:
    """Read regions at random places of every level; return the seconds of one of level 0.

    The places follow from the file's name. The first region of a file may decode all of it, which
    counts.
    """
    seconds = []
    digest = hashlib.sha256(str(image.path.name).encode("utf-8", "replace")).digest()
    places = np.random.default_rng(list(digest[:8]))
    for index, level in enumerate(image.levels):
        size = tuple(min(n, REGION_PX[image.ndim]) for n in level.shape)
        for _ in range(_REGIONS):
            origin = tuple(
                int(places.integers(n - s + 1)) for n, s in zip(level.shape, size, strict=True)
            )
            begun = time.perf_counter()
            image.read(Box(origin, size, Frame.PX, index))
            seconds.append(time.perf_counter() - begun)
    return sum(seconds[:_REGIONS]) / _REGIONS


def _read_glimpse(image: AbstractImage) -> Pixels:
    """Read the whole image small, its long side at most `GLIMPSE_PX`, and no larger than it is."""
    placed = RespacedImage(image, (1.0,) * image.ndim, unit="px")
    return placed.glimpse(max(1.0, max(image.shape) / GLIMPSE_PX[image.ndim]))


def _measure_border(values: Pixels) -> float:
    """Compute the mean of the outermost pixels of a glimpse ``(*space, c)``."""
    flat = values[len(values) // 2] if values.ndim == 4 else values
    edges = (flat[0], flat[-1], flat[:, 0], flat[:, -1])
    return float(np.concatenate(edges).mean())


def _read_state(path: Path) -> tuple[int, str]:
    """Return the size of an image's files in bytes, and the day of the last change."""
    folder = path if path.is_dir() else companion_folder(path)
    files = [path] if path.is_file() else []
    files += [] if folder is None else [p for p in folder.rglob("*") if p.is_file()]
    day = datetime.fromtimestamp(path.stat().st_mtime, UTC).date().isoformat()
    return sum(file.stat().st_size for file in files), day
