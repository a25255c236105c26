"""Find the series of slices in a folder of DICOM files: CT, MR, PET and other stacks of pictures.

Part of the reader `dicom`. Only headers are read, and those of a folder are remembered.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.cache import ByteCache
from foveate.errors import AGAIN, FoveateError, ImageTooLarge, UnreadableImage, UnsupportedFormat
from foveate.formats.dicom_folder import dicom_suffix, list_files, read_head
from foveate.formats.dicom_header import SLIDE, is_dicom, read_header, reading_dicom
from foveate.messages.warn import warn_once
from foveate.wording import several

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Numbers = tuple[float, ...]

_STACKED = ("CT", "MR", "PT")
"""Kinds of images (Modality) that are stacks of slices also where a file states no position."""
_STORED_SLICES = tuple(f"1.2.840.10008.5.1.4.1.1.{n}" for n in (2, 4, 128))
"""The SOP classes of slices of CT, MR and PET, which always hold pixels."""
_MAX_FILES, _MAX_OTHERS = 20_000, 100
_SLICE_BYTES = 2048
"""About the memory of the facts of one slice."""
_TAGS = (
    *("ImageType", "SOPClassUID", "Modality", "SeriesDescription", "SeriesInstanceUID"),
    *("SeriesNumber", "ImagePositionPatient", "ImageOrientationPatient", "NumberOfFrames"),
    *("Rows", "Columns", "PixelSpacing", "RescaleSlope", "RescaleIntercept", "RescaleType"),
    *("PhotometricInterpretation", "ModalityLUTSequence"),
)
_SERIES, _LAST_TAG = 0x0020000E, 0x00283000
"""The element of the series, and the last of these elements in a file."""


@dataclass(frozen=True)
class SliceFacts:
    """What the header of one DICOM file states about its place in a series.

    Attributes:
        path: the file.
        series: identity of its series (SeriesInstanceUID); empty where it states none.
        number: number of the series as text; may be empty.
        description: description of the series; may be empty.
        modality: kind of image, such as CT, MR, DX.
        shape: pixels ``(y, x)``.
        n_frames: number of frames.
        position_mm: centre of the first pixel ``(x, y, z)`` in the patient, to the left, to the
            back and to the head; None where it states none.
        directions: direction along a row and along a column, six numbers; None where not stated.
        spacing_mm: spacing ``(y, x)``; None where not stated.
        rescale: slope and intercept of stored numbers; None where not stated.
        rescale_type: unit of rescaled values, such as HU; may be empty.
        photometric: meaning of the numbers, such as MONOCHROME2.
        is_localizer: whether it is a picture to plan the scan.
    """

    path: Path
    series: str
    number: str
    description: str
    modality: str
    shape: tuple[int, int]
    n_frames: int
    position_mm: Numbers | None
    directions: Numbers | None
    spacing_mm: Numbers | None
    rescale: tuple[float, float] | None
    rescale_type: str
    photometric: str
    is_localizer: bool

    @property
    def is_slice(self) -> bool:
        """Whether it can be a slice of a volume."""
        placed = self.position_mm is not None and self.directions is not None
        grey = self.photometric in ("MONOCHROME1", "MONOCHROME2")
        usable = self.n_frames == 1 and grey and not self.is_localizer and self.series != ""
        return usable and (placed or self.modality in _STACKED)


def read_slice(path: Path) -> SliceFacts | None:
    """Read the facts of a DICOM file; None where it holds no pixels, or those of a slide.

    Raises:
        UnreadableImage: the file is damaged.
    """
    header = read_header(path, _TAGS, _LAST_TAG)
    with reading_dicom(path):
        shape = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
        kinds = header.get("SOPClassUID"), header.file_meta.get("MediaStorageSOPClassUID")
        if not all(shape) and any(kind in _STORED_SLICES for kind in kinds):
            raise UnreadableImage(f"{path}: a slice without pixels{AGAIN}")
        if not all(shape) or SLIDE in kinds:
            return None
        rescale = _numbers(header, "RescaleSlope", 1), _numbers(header, "RescaleIntercept", 1)
        known = rescale[0] is not None and rescale[1] is not None
        return SliceFacts(
            path,
            str(header.get("SeriesInstanceUID") or ""),
            _text(header, "SeriesNumber"),
            _text(header, "SeriesDescription"),
            _text(header, "Modality"),
            shape,
            int(header.get("NumberOfFrames") or 1),
            _numbers(header, "ImagePositionPatient", 3),
            _numbers(header, "ImageOrientationPatient", 6),
            _numbers(header, "PixelSpacing", 2),
            (rescale[0][0], rescale[1][0]) if known and rescale[0] and rescale[1] else None,
            _text(header, "RescaleType").upper(),
            _text(header, "PhotometricInterpretation"),
            "LOCALIZER" in (header.get("ImageType") or ()),
        )


def _text(header: Dataset, keyword: str) -> str:
    value = header.get(keyword)
    return "" if value is None else " ".join(str(value).split())[:200]


def _numbers(header: Dataset, keyword: str, n: int) -> Numbers | None:
    """Return the `n` finite numbers of an element; None where there are others or none."""
    value: Any = header.get(keyword)
    if value is None or value == "":
        return None
    values = (value,) if n == 1 else tuple(value)
    numbers = tuple(float(v) for v in values)
    return numbers if len(numbers) == n and all(map(math.isfinite, numbers)) else None


@dataclass(frozen=True)
class FolderFacts:
    """The DICOM files that lie directly in a folder.

    Attributes:
        slices: the facts of those with pixels.
        damaged: those whose header cannot be read, and files called like slices that are empty or
            cannot be read at all, each with the identity of its series; empty where not known.
    """

    slices: tuple[SliceFacts, ...]
    damaged: tuple[tuple[Path, str], ...]


_folders: ByteCache[FolderFacts] = ByteCache(1 << 26)
"""Facts of folders, by the folder and the names, sizes and times of its files."""


def read_folder(folder: Path, *, holds_dicom: bool = False) -> FolderFacts:
    """Read the facts of all DICOM files with pixels that lie directly in a folder.

    Args:
        folder: the folder.
        holds_dicom: whether it is known to hold DICOM; else a folder of which the first hundred
            files are no DICOM is taken for one without.

    Raises:
        ImageTooLarge: there are more than 20,000 files.
    """
    folder = folder.absolute()
    files = list_files(folder, _MAX_FILES + 1)
    key = (os.fspath(folder), hash(tuple(files)), holds_dicom)
    known = _folders.get(key)
    if known is None:
        known = _read_files(folder, [path for path, _ in files], holds_dicom)
        _folders.put(key, known, _SLICE_BYTES * (len(known.slices) + 1))
    return known


def _read_files(folder: Path, files: Sequence[Path], holds_dicom: bool) -> FolderFacts:
    """Read the facts of the files of a folder, see `read_folder`."""
    slices, damaged, unknown = list[SliceFacts](), list[tuple[Path, str]](), list[Path]()
    for i, path in enumerate(files):
        if i >= _MAX_OTHERS and not (slices or damaged or holds_dicom):
            break
        if i >= _MAX_OTHERS and len(files) > _MAX_FILES:
            raise ImageTooLarge(
                f"{folder}: holds more than {_MAX_FILES:,} DICOM files; put each series into a "
                "folder of its own"
            )
        try:
            head = read_head(path)
        except UnreadableImage:
            head = b""
        if not head:
            unknown.append(path)
        if not is_dicom(head):
            continue
        try:
            facts = read_slice(path)
        except UnreadableImage:
            damaged.append((path, _find_series(path)))
            continue
        if facts is not None:
            slices.append(facts)
    suffixes = {dicom_suffix(facts.path) for facts in slices}
    damaged += [(path, "") for path in unknown if dicom_suffix(path) in suffixes]
    return FolderFacts(tuple(slices), tuple(damaged))


def _find_series(path: Path) -> str:
    """Return the identity of the series of a damaged file, if it can still be read; else empty."""
    with contextlib.suppress(FoveateError), reading_dicom(path):
        return str(read_header(path, ["SeriesInstanceUID"], _SERIES).get("SeriesInstanceUID") or "")
    return ""


def group_series(slices: Sequence[SliceFacts]) -> list[list[SliceFacts]]:
    """Group slices by series, those of at least two slices, in the order of their numbers."""
    groups: dict[str, list[SliceFacts]] = defaultdict(list)
    for facts in slices:
        if facts.is_slice:
            groups[facts.series].append(facts)
    stacks = [group for group in groups.values() if len(group) > 1]
    return sorted(stacks, key=lambda group: (len(group[0].number), group[0].number))


def choose_series(folder: Path, wanted: str | None) -> list[SliceFacts]:
    """Return the slices of the one series of a folder, or of the one that is wanted.

    Args:
        folder: the folder.
        wanted: number, description or identity (SeriesInstanceUID) of the series; None where there
            is only one.

    Raises:
        UnsupportedFormat: there are several or none, or none of them or several are the wanted one.
        UnreadableImage: the header of a file is damaged.
        ImageTooLarge: there are too many files in the folder.
    """
    facts = read_folder(folder)
    groups = group_series(facts.slices)
    if not groups:
        raise UnsupportedFormat(f"{folder}: holds no series of DICOM slices; give its files")
    fitting = [g for g in groups if wanted is None or _is_named(g[0], wanted)]
    if len(fitting) == 1:
        _refuse_damaged(folder, facts, fitting[0][0].series)
        _warn_of_others(folder, facts, fitting[0][0].series)
        return fitting[0]
    listed = several([describe_series(group) for group in fitting or groups], 8)
    if wanted is not None and not fitting:
        raise UnsupportedFormat(
            f"{folder}: no series is called '{wanted}' (--reader.dicom.series); give one of "
            f"{listed}"
        )
    raise UnsupportedFormat(
        f"{folder}: holds {len(fitting)} series: {listed}; give the path of a slice of one "
        "of them, put each into a folder, or train with --reader.dicom.series and a number or name"
    )


def find_siblings(facts: SliceFacts) -> list[SliceFacts]:
    """Return the slices of the series of one slice, that one included, in its folder.

    Args:
        facts: the slice.

    Raises:
        UnreadableImage: the header of a file in the folder is damaged.
        ImageTooLarge: there are too many files in the folder.
    """
    if not facts.is_slice:
        return [facts]
    folder = read_folder(facts.path.parent, holds_dicom=True)
    _refuse_damaged(facts.path, folder, facts.series)
    siblings = [f for f in folder.slices if f.is_slice and f.series == facts.series]
    return siblings or [facts]  # a hidden file


def _refuse_damaged(path: Path, folder: FolderFacts, series: str) -> None:
    """Refuse a series that may lack a slice, because the header of a file beside it is damaged.

    Where the folder holds several series and the damaged file does not say which it is of, a
    warning is logged instead, so that one file does not stop all of them.

    Args:
        path: the folder or slice that was asked for.
        folder: the facts of the folder.
        series: identity of the series.

    Raises:
        UnreadableImage: it may.
    """
    lost = [damaged for damaged, of in folder.damaged if of in ("", series)]
    if not lost:
        return
    text = f"may lack a slice, because the DICOM header of {lost[0].name} cannot be read"
    alone = all(facts.series == series for facts in folder.slices)
    if alone or any(of == series for _, of in folder.damaged):
        raise UnreadableImage(f"{path}: {text}{AGAIN}, or move it away if it is none of the series")
    warn_once(logging.WARNING, "damaged slice", path, text)


def _warn_of_others(path: Path, folder: FolderFacts, series: str) -> None:
    """Warn of images in the folder of a series that are neither of it nor of another series."""
    others = [f.path.name for f in folder.slices if f.series != series and not f.is_localizer]
    alone = set(others) - {f.path.name for group in group_series(folder.slices) for f in group}
    if alone:
        text = f"other DICOM images beside the series are left out: {several(sorted(alone))}"
        warn_once(logging.WARNING, "beside series", path, text)


def _is_named(facts: SliceFacts, wanted: str) -> bool:
    names = (facts.number, facts.description, facts.series)
    return " ".join(wanted.split()).casefold() in [name.casefold() for name in names if name]


def describe_series(group: Sequence[SliceFacts]) -> str:
    """Describe a series in a few words: ``3 'T1 post' (MR, 22 slices)``.

    Args:
        group: the slices of the series.
    """
    first = group[0]
    name = f" '{first.description}'" if first.description else ""
    number = first.number or first.series
    return f"{number}{name} ({first.modality or 'unknown kind'}, {len(group)} slices)"
