"""What a TIFF says in words and tags about the size of a pixel, and about being a stack.

Part of the reader `tiff`. Text is searched, not parsed as XML: a hostile file cannot expand it.
"""

from __future__ import annotations

import html
import math
import re

from foveate.geometry import Vector
from foveate.images.stated import believed_spacing

Stated = tuple[float | None, float | None]

_UM = {
    "": 1.0,
    "um": 1.0,
    "µm": 1.0,
    "μm": 1.0,
    "micron": 1.0,
    "micrometer": 1.0,
    "nm": 1e-3,
    "nanometer": 1e-3,
    "mm": 1e3,
    "millimeter": 1e3,
    "cm": 1e4,
    "centimeter": 1e4,
    "m": 1e6,
    "meter": 1e6,
    "å": 1e-4,
    "angstrom": 1e-4,
    "inch": 25400.0,
    "inche": 25400.0,
    "in": 25400.0,
}
"""By the word in the singular, in American spelling; "inche" is what is left of "inches"."""
_UM_PER_TAG_UNIT = {2: 25400.0, 3: 1e4}
_APERIO = re.compile(r"\bMPP\s*=([^|\r\n]*)")
_PIXELS = re.compile(r"<(?:\w+:)?Pixels\b([^>]*)>")
_ATTRIBUTE = re.compile(r'(\w+)\s*=\s*"([^"]*)"')
_IMAGEJ_UNIT = re.compile(r"^unit=(.*)$", re.MULTILINE)
_IMAGEJ_PLANES = re.compile(r"^images=(\d+)", re.MULTILINE)


def spacing_of(
    description: str, ome: dict[str, str], resolution: Stated, tag_unit: int
) -> Vector | None:
    """Micrometres per pixel ``(y, x)``: Aperio's MPP, else OME-XML, else the resolution tags."""
    if description.startswith("Aperio") and (found := _APERIO.search(description)):
        mpp = _number(found[1])
        return believed_spacing((mpp, mpp))
    if ome:
        believed = believed_spacing((_ome_um(ome, "Y"), _ome_um(ome, "X")))
        if believed is not None:
            return believed
    um = _UM_PER_TAG_UNIT.get(tag_unit)
    if description.startswith("ImageJ=") and (found := _IMAGEJ_UNIT.search(description)):
        um = _um(found[1])
    if um is None:
        return None
    return believed_spacing([um / r if r else None for r in resolution])


def ome_pixels(xml: str | None, shape: tuple[int, int]) -> dict[str, str]:
    """The attributes of the OME ``Pixels`` element of this size ``(y, x)``, or nothing."""
    for found in _PIXELS.finditer(xml or ""):
        attributes = {k: html.unescape(v) for k, v in _ATTRIBUTE.findall(found[1])}
        if (attributes.get("SizeY"), attributes.get("SizeX")) == (str(shape[0]), str(shape[1])):
            return attributes
    return {}


def stated_planes(description: str, ome: dict[str, str], samples: int) -> int:
    """How many planes of this size the words promise; 1 is a single picture."""
    if ome:
        counts = [_number(ome.get(f"Size{axis}", "1")) or 1 for axis in "ZTC"]
        return round(counts[0] * counts[1] * max(1.0, counts[2] / samples))
    if description.startswith("ImageJ=") and (found := _IMAGEJ_PLANES.search(description)):
        return int(found[1])
    return 1


def _ome_um(ome: dict[str, str], axis: str) -> float | None:
    size, um = _number(ome.get(f"PhysicalSize{axis}")), _um(ome.get(f"PhysicalSize{axis}Unit", ""))
    return None if size is None or um is None else size * um


def _um(unit: str) -> float | None:
    word = unit.strip().strip('"').replace("\\u00B5", "µ").lower()
    if len(word) > 2:
        word = word.rstrip(".").removesuffix("s").replace("metre", "meter")
    return _UM.get(word)


def _number(text: str | None) -> float | None:
    """The finite number that a text is as a whole, with a decimal point or comma."""
    try:
        number = float((text or "").strip().replace(",", "."))
    except ValueError:
        return None
    return number if math.isfinite(number) else None
