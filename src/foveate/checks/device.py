"""Read which device and program made a file, and by which objective, where the file states it."""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from foveate.errors import FoveateError, converting
from foveate.formats.dicom_header import HEAD_BYTES, is_dicom, read_header

_TAGS = {"Make": 271, "Model": 272, "Software": 305}
_SCANNER = re.compile(r"ScanScope ID\s*=\s*([^|\r\n]+)")
_OPENSLIDE = (
    *("openslide.vendor", "aperio.ScanScope ID", "hamamatsu.Product", "mirax.GENERAL.SLIDE_ID"),
    *("tiff.Make", "tiff.Model", "leica.device-model", "philips.DICOM_MANUFACTURER"),
)
_DICOM = ("Manufacturer", "ManufacturerModelName", "StationName")
_OBJECTIVE = re.compile(r"(?:AppMag\s*=\s*|NominalMagnification=\")(\d+(?:\.\d+)?)")
"""The objective in the description of a TIFF: by Aperio's words, or in OME's XML."""
_MAX_LETTERS = 80


class FileOrigin(NamedTuple):
    """What a file states about how it was made.

    Attributes:
        device: maker, model and program in one line; may be empty.
        objective: magnification of the objective; None where none is stated.
    """

    device: str
    objective: float | None


def read_origin(path: Path, reader: str) -> FileOrigin:
    """Return what a file states about its device and objective.

    Args:
        path: the file.
        reader: name of the library that reads the file.
    """
    if reader.startswith("pydicom"):
        path = next(_list_dicom(path), path)
    if not path.is_file():
        return FileOrigin("", None)
    look = _read_openslide if reader.startswith("OpenSlide") else _read_tags
    if path.name.lower().endswith((".nii", ".nii.gz")):
        look = _read_nifti
    if reader.startswith("pydicom"):
        look = _read_dicom
    with contextlib.suppress(FoveateError, OSError, ValueError, struct.error), converting(path):
        stated, objective = look(path)
        words = dict.fromkeys(" ".join(word.split()) for word in stated)
        device = " · ".join(word for word in words if word)[:_MAX_LETTERS]
        return FileOrigin(device, float(objective) if objective else None)
    return FileOrigin("", None)


def _read_openslide(path: Path) -> tuple[list[str], str]:
    import openslide

    with openslide.OpenSlide(str(path)) as slide:
        stated = [str(slide.properties.get(key, "")) for key in _OPENSLIDE]
        return stated, slide.properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER, "")


def _read_tags(path: Path) -> tuple[list[str], str]:
    """Read the tags of a TIFF, or those of a camera in a JPEG or PNG; and the objective."""
    from PIL import Image

    head = path.open("rb").read(4)
    if head[:2] in (b"II", b"MM"):
        import tifffile

        with tifffile.TiffFile(path) as file:
            tags = file.pages.first.tags
            described = str(tags.valueof(270, default=""))
            scanner, objective = _SCANNER.search(described), _OBJECTIVE.search(described)
            stated = [str(tags.valueof(tag, default="")) for tag in _TAGS.values()]
        return [*stated, scanner[1] if scanner else ""], objective[1] if objective else ""
    with Image.open(path) as picture:
        exif = picture.getexif()
        stated = [str(exif.get(tag, "")) for tag in _TAGS.values()]
        return [*stated, str(picture.info.get("Software", ""))], ""


def _list_dicom(folder: Path) -> Iterator[Path]:
    """Yield the DICOM files of a series in a folder; nothing for a file."""
    for path in sorted(folder.glob("*")):
        if path.is_file():
            with path.open("rb") as file:
                if is_dicom(file.read(HEAD_BYTES)):
                    yield path


def _read_dicom(path: Path) -> tuple[list[str], str]:
    """Read maker and model of the device, and the hospital's name of it, from a DICOM file."""
    header = read_header(path, _DICOM)
    return [str(header.get(keyword) or "") for keyword in _DICOM], ""


def _read_nifti(path: Path) -> tuple[list[str], str]:
    """Read the description in the header of a NIfTI file, which names the program."""
    import gzip

    with path.open("rb") as plain:
        packed = plain.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else path.open("rb") as file:
        head = file.read(228)
    # Descriptions may hold times and orders of a scan; the program is their first word.
    words = head[148:228].split(b"\0")[0].decode("latin-1").split(";")[0].split()
    return words[:1], ""
