"""Read the pixel size and the number of planes that the texts and tags of a TIFF state.

Part of the reader `tiff`. Text is searched, not parsed as XML, so that a hostile file cannot
expand it.
"""

from __future__ import annotations

import html
import re

from foveate.geometry import Vector
from foveate.images.stated import check_spacing, parse_number

Resolution = tuple[float | None, float | None]

_UM = {
    name: um
    for um, names in (
        (1.0, ("", "um", "µm", "μm", "micron", "micrometer")),
        (1e-4, ("å", "angstrom")),
        (1e-3, ("nm", "nanometer")),
        (1e3, ("mm", "millimeter")),
        (1e4, ("cm", "centimeter")),
        (1e6, ("m", "meter")),
        (25400.0, ("inch", "inche", "in")),
    )
    for name in names
}
"""Micrometres per unit, by its name in the singular and American spelling ("inches" - "s")."""
_UM_PER_TAG_UNIT = {2: 25400.0, 3: 1e4}
_APERIO = re.compile(r"\bMPP\s*=([^|\r\n]*)")
_PIXELS = re.compile(r"<(?:\w+:)?Pixels\b([^>]*)>")
_ATTRIBUTE = re.compile(r'(\w+)\s*=\s*"([^"]*)"')
_IMAGEJ_UNIT = re.compile(r"^unit=(.*)$", re.MULTILINE)
_IMAGEJ_PLANES = re.compile(r"^images=(\d+)", re.MULTILINE)


def stated_spacing(
    description: str, ome: dict[str, str], resolution: Resolution, tag_unit: int
) -> Vector | None:
    """Return the spacing ``(y, x)`` of Aperio's MPP, else of OME-XML, else of the resolution tags.

    Args:
        description: the image description of level 0.
        ome: attributes of the OME element ``Pixels``; empty if there is none.
        resolution: pixels per unit along ``(y, x)``.
        tag_unit: TIFF's number of the unit of `resolution`.

    Returns:
        micrometres per pixel, or None where the file states none that is plausible.
    """
    if description.startswith("Aperio") and (match := _APERIO.search(description)):
        mpp = parse_number(match[1])
        return check_spacing((mpp, mpp))
    if ome:
        spacing = check_spacing((_ome_um(ome, "Y"), _ome_um(ome, "X")))
        if spacing is not None:
            return spacing
    um = _UM_PER_TAG_UNIT.get(tag_unit)
    if description.startswith("ImageJ=") and (match := _IMAGEJ_UNIT.search(description)):
        um = _um_per_unit(match[1])
    if um is None:
        return None
    return check_spacing([um / r if r else None for r in resolution])


def ome_pixels(xml: str | None, shape: tuple[int, int]) -> dict[str, str]:
    """Return the attributes of the OME element ``Pixels`` of a size ``(y, x)``; {} without one.

    Args:
        xml: text of the file's description; None without one.
        shape: rows and columns of the level.
    """
    for match in _PIXELS.finditer(xml or ""):
        attributes = {k: html.unescape(v) for k, v in _ATTRIBUTE.findall(match[1])}
        if (attributes.get("SizeY"), attributes.get("SizeX")) == (str(shape[0]), str(shape[1])):
            return attributes
    return {}


def stated_planes(description: str, ome: dict[str, str], samples: int) -> int:
    """Return how many planes the description or OME-XML states; 1 for a single picture.

    Args:
        description: the image description of level 0.
        ome: attributes of the OME element ``Pixels``; empty if there is none.
        samples: samples per pixel of level 0.
    """
    if ome:
        counts = [parse_number(ome.get(f"Size{axis}", "1")) or 1 for axis in "ZTC"]
        return round(counts[0] * counts[1] * max(1.0, counts[2] / samples))
    if description.startswith("ImageJ=") and (match := _IMAGEJ_PLANES.search(description)):
        return int(match[1])
    return 1


def _ome_um(ome: dict[str, str], axis: str) -> float | None:
    """Return the physical size of a pixel along X or Y in micrometres, or None."""
    size = parse_number(ome.get(f"PhysicalSize{axis}"))
    um = _um_per_unit(ome.get(f"PhysicalSize{axis}Unit", ""))
    return None if size is None or um is None else size * um


def _um_per_unit(unit: str) -> float | None:
    """Return the micrometres in a unit by its name, or None for an unknown one."""
    word = unit.strip().strip('"').replace("\\u00B5", "µ").lower()
    if len(word) > 2:
        word = word.rstrip(".").removesuffix("s").replace("metre", "meter")
    return _UM.get(word)
