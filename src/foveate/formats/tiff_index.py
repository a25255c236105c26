"""Index the levels of a TIFF: which of its directories are levels of one pyramid.

Part of the reader `tiff`. tifffile parses the directories.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from foveate.errors import AGAIN, UnreadableImage, UnsupportedFormat, converting
from foveate.formats import tiff_codec as codec
from foveate.formats.appended import find_appended_tiff
from foveate.formats.tiff_grid import BlockGrid, read_grid

log = logging.getLogger("foveate")

MAX_DIRECTORIES = 4096
_JPEG = 7
_NOT_A_LEVEL = ("label", "macro", "thumbnail", "overview")
_QPTIFF = "PerkinElmer-QPI"
"""The name in the description of QPTIFF files, also of those without the tag Software."""
_VENDOR_MARKS = {
    "is_ndpi": "Hamamatsu NDPI",
    "is_scn": "Leica SCN",
    "is_philips": "Philips TIFF",
    "is_bif": "Ventana BIF",
    "is_qpi": "Akoya QPTIFF",
    "is_lsm": "Zeiss LSM",
    "is_stk": "MetaMorph STK",
    "is_sis": "Olympus SIS",
}


@dataclass(frozen=True)
class TiffIndex:
    """The pyramid of one file, finest level first, and its metadata.

    Attributes:
        levels: one grid per page that may be a level, by its size and coding.
        description: the image description of level 0.
        ome_xml: the OME-XML block, or None.
        resolution: pixels per `unit` along ``(y, x)``, None where not stated.
        unit: TIFF's number of the unit of `resolution`: 1 none, 2 inch, 3 centimetre.
        orientation: how the stored rows and columns lie in the picture, 1 to 8.
        nested: whether the smaller levels are sub-directories of the first, and thus belong to it.
    """

    levels: tuple[BlockGrid, ...]
    description: str
    ome_xml: str | None
    resolution: tuple[float | None, float | None]
    unit: int
    orientation: int
    nested: bool


def read_index(path: Path) -> TiffIndex:
    """Read the directories of a TIFF and index its levels.

    Raises:
        UnsupportedFormat: the file is a stack, has a vendor's own layout, or an unsupported coding.
        UnreadableImage: directories are damaged.
        ImageTooLarge: a block or the number of blocks is beyond the limits.
    """
    import tifffile

    # Otherwise tifffile's log lines about odd files reach the terminal beside our errors.
    if not tifffile.logger().handlers:
        tifffile.logger().addHandler(logging.NullHandler())
    with tifffile.TiffFile(path) as file:
        vendor = _find_vendor(path, file)
        if vendor is not None:
            raise UnsupportedFormat(
                f"{path}: a vendor's own layout ({vendor}), not a plain TIFF; export it as OME-TIFF"
            )
        pages = list(_pages(path, file))
        if not pages:
            raise UnreadableImage(f"{path}: the TIFF holds no readable directory{AGAIN}")
        base = max(
            pages, key=lambda page: 0 if page.is_reduced else page.imagelength * page.imagewidth
        )
        _refuse_stack(path, base, pages)
        _refuse_appended(path, base, pages)
        levels = [read_grid(path, base)]
        levels += [read_grid(path, page) for page in _finer_to_coarser(base, pages)]
        return TiffIndex(
            levels=tuple(levels),
            description=str(base.description or ""),
            ome_xml=file.ome_metadata if file.is_ome else None,
            resolution=(_rational(base, "YResolution"), _rational(base, "XResolution")),
            unit=_whole_number(_tag(base, "ResolutionUnit", 2), 1),
            orientation=_orientation(base),
            nested=bool(base.subifds),
        )


def _find_vendor(path: Path, file: Any) -> str | None:
    """Return the vendor's format that a TIFF has, or None for a plain one."""
    if path.suffix.lower() == ".vsi":
        return "Olympus VSI"
    first = _directory(file, 0)
    if first is not None and _QPTIFF in str(first.description):
        return "Akoya QPTIFF"
    return next((name for mark, name in _VENDOR_MARKS.items() if getattr(file, mark, False)), None)


def refuse_unlisted(path: Path) -> None:
    """Refuse a TIFF with unlisted or impossible tiles, before another library reads it.

    Libraries look for unlisted tiles for hours, and reserve the size that a tile claims to have.

    Raises:
        UnreadableImage: tiles are missing, or a tile claims to be larger than the file.
    """
    import tifffile

    try:
        with converting(path, _explain_damage), tifffile.TiffFile(path) as file:
            tiled = [page for page in _pages(path, file) if page.is_tiled]
    except UnreadableImage:  # not a TIFF that tifffile knows
        return
    for page in tiled:
        if (largest := max(page.databytecounts, default=0)) > path.stat().st_size:
            raise UnreadableImage(
                f"{path}: a tile claims {largest:,} bytes, the file has less{AGAIN}"
            )
        sides = (page.tilelength, page.imagelength), (page.tilewidth, page.imagewidth)
        claimed = math.prod(-(-length // side) if side else 0 for side, length in sides)
        if len(page.dataoffsets) < claimed:
            raise UnreadableImage(
                f"{path}: {page.imagewidth} x {page.imagelength} pixels need {claimed:,} tiles, "
                f"the file lists {len(page.dataoffsets):,}{AGAIN}"
            )


def read_jpeg_tiles(path: Path) -> list[BlockGrid]:
    """Read where the tiles of a TIFF lie that are coded as JPEG, for each directory that has some.

    Unlike `read_index`, it takes a vendor's own layout.

    Args:
        path: the file.

    Raises:
        UnreadableImage: directories are damaged.
        UnsupportedFormat: the coding of the samples is not supported.
        ImageTooLarge: a tile or the number of tiles is beyond the limits.
    """
    import tifffile

    with converting(path, _explain_damage), tifffile.TiffFile(path) as file:
        pages = [page for page in _pages(path, file) if page.is_tiled]
        return [read_grid(path, page) for page in pages if int(page.compression) == _JPEG]


def is_coding_read(path: Path) -> bool:
    """Return whether the reader `tiff` decodes the compression of a file's first directory."""
    import tifffile

    try:
        with converting(path, _explain_damage), tifffile.TiffFile(path) as file:
            return int(cast("Any", file.pages[0]).compression) in codec.CODECS
    except UnreadableImage:  # damaged: the reader says how
        return True


def _pages(path: Path, file: Any) -> Iterator[Any]:
    """Yield the directories of a TIFF; a chain that is damaged after the first ends there."""
    page: Any = _directory(file, 0)
    seen: set[int] = set()
    while page is not None and page.offset not in seen and len(seen) < MAX_DIRECTORIES:
        seen.add(page.offset)
        yield page
        try:
            with converting(path, _explain_damage):
                page = _directory(file, len(seen))
        except UnreadableImage:
            return


def _directory(file: Any, i: int) -> Any | None:
    """Return a directory of a TIFF, or None after the last one."""
    import tifffile

    try:
        page = file.pages[i]
    except IndexError:
        return None
    return page.aspage() if isinstance(page, tifffile.TiffFrame) else page


def _explain_damage(error: Exception, path: object) -> UnreadableImage:
    log.debug("%s", path, exc_info=error)
    return UnreadableImage(f"{path}: its directories cannot be read{AGAIN}")


def _size(page: Any) -> tuple[int, int]:
    """Return the rows and columns of a directory's picture."""
    return page.imagelength, page.imagewidth


def _refuse_stack(path: Path, base: Any, pages: list[Any]) -> None:
    """Refuse a file with several pages of the size of level 0, or pages with a depth.

    Without tiles, a page of another but similar size is a second picture, too. Levels, labels and
    thumbnails are smaller.
    """
    others = [p for p in pages if not p.is_reduced and p.is_tiled == base.is_tiled]
    same = sum(_size(p) == _size(base) for p in others)
    large = math.prod(_size(base)) / 2
    similar = 0 if base.is_tiled else sum(math.prod(_size(p)) > large for p in others)
    deep = max(int(getattr(base, "imagedepth", 1) or 1), int(getattr(base, "tiledepth", 1) or 1))
    if max(same, deep, similar) > 1:
        size = "the same" if max(same, deep) > 1 else "similar"
        raise UnsupportedFormat(
            f"{path}: holds {max(same, deep, similar)} pages of {size} size (a stack, or channels "
            "in separate pages); save one flat picture or an RGB pyramid"
        )


def _refuse_appended(path: Path, base: Any, pages: list[Any]) -> None:
    """Refuse a file behind whose end another TIFF with a picture of about the size stands."""
    import tifffile

    start = find_appended_tiff(path, pages)
    if start is None:
        return
    try:
        with converting(path, _explain_damage), tifffile.TiffFile(path, offset=start) as file:
            sizes = [math.prod(_size(page)) for page in _pages(path, file)]
    except UnreadableImage:  # no TIFF
        return
    if 2 * max(sizes, default=0) > math.prod(_size(base)):
        raise UnsupportedFormat(
            f"{path}: another TIFF stands behind the end of the first, which would be read alone; "
            "save each as a file of its own"
        )


def _finer_to_coarser(base: Any, pages: list[Any]) -> list[Any]:
    """Return the pages that may be smaller levels of level 0 (`base`), from finer to coarser."""
    candidates = list(base.pages)[:MAX_DIRECTORIES] if base.subifds else pages
    levels: list[Any] = []
    finer = base
    for page in sorted(candidates, key=lambda p: -p.imagelength * p.imagewidth):
        if page is not base and _is_level(base, page) and page.imagewidth < finer.imagewidth:
            levels.append(page)
            finer = page
    return levels


def _is_level(base: Any, page: Any) -> bool:
    """Return whether a smaller page may be a level: same coding of samples, same proportions."""
    words = str(page.description or "").lower()
    last_line = words.splitlines()[-1] if words else ""
    if any(word in last_line for word in _NOT_A_LEVEL):
        return False
    if not base.is_tiled and not page.is_reduced and not base.subifds:
        return False
    if page.is_tiled != base.is_tiled or min(page.imagelength, page.imagewidth) < 1:
        return False
    coding = ("samplesperpixel", "bitspersample", "photometric", "planarconfig")
    if any(getattr(page, name) != getattr(base, name) for name in coding):
        return False
    if _orientation(page) != _orientation(base):
        return False
    step = max(base.imagelength / page.imagelength, base.imagewidth / page.imagewidth)
    largest = min(
        base.imagelength / max(page.imagelength - 1, 0.5),
        base.imagewidth / max(page.imagewidth - 1, 0.5),
    )
    return bool(1.01 < step <= largest)


def _tag(page: Any, name: str, default: Any = None) -> Any:
    """Return the value of a directory's tag, or `default` where it is missing."""
    tag = page.tags.get(name)
    return default if tag is None else tag.value


def _rational(page: Any, name: str) -> float | None:
    """Return a tag as a positive number, or None where it is missing or none."""
    value = _tag(page, name)
    try:
        number = value[0] / value[1] if isinstance(value, tuple) else float(value)
    except (TypeError, ValueError, ZeroDivisionError, IndexError):
        return None
    return number if number > 0 else None


def _whole_number(value: Any, default: int) -> int:
    """Convert a tag's value to a whole number, or return `default` where it is none."""
    try:
        return int(value)
    except (TypeError, ValueError):
        return default


def _orientation(page: Any) -> int:
    """Return the tag Orientation of a directory, 1 to 8; 1 where it is missing or wrong."""
    value = _whole_number(_tag(page, "Orientation", 1), 1)
    return value if 1 <= value <= 8 else 1
