"""Check a table's spacing, and compare it with the file's."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from foveate.errors import TableError
from foveate.files.numerals import ColumnNumbers, list_readings, parse_number, parse_numbers
from foveate.images.stated import BELIEVED_RADIOLOGY_UM, BELIEVED_UM
from foveate.wording import several

_VOLUMES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd")
_MAX_RATIO = 1.05
_UM_PER_UNIT = {"um": 1.0, "micron": 1.0, "microns": 1.0, "mm": 1000.0, "nm": 0.001}
_UNIT = re.compile(
    r"(.*[\d.,])\s*(um|microns?|mm|nm)(?:\s*(?:/|per)\s*(?:px|pixel))?", re.IGNORECASE
)
_BETWEEN_AXES = re.compile(r"\s*[x×;\s]\s*")


class SpacingCells:
    """The cells of a table that hold spacings, read with one decimal mark.

    Args:
        cells: text of each cell, and the image's file.
    """

    def __init__(self, cells: Iterable[tuple[str, Path]]) -> None:
        texts: dict[tuple[float, float], set[str]] = defaultdict(set)
        for text, path in cells:
            if text:
                unit_um, parts = _split(text)
                texts[_limits(path, unit_um)].update(parts)
        self._numbers = {
            limits: parse_numbers(sorted(parts), partial(_lies_within, limits=limits))
            for limits, parts in texts.items()
        }

    def parse(self, text: str, where: str, path: Path) -> tuple[float, ...]:
        """Parse a cell as spacings in micrometres, with the limits of spacings that files state.

        Args:
            text: text of the cell: a number for each axis, or one for all, and maybe a unit.
            where: file, row and column, for the message.
            path: the image's file, whose suffix distinguishes volumes.

        Raises:
            TableError: a text is no number, has two readings, or lies outside the limits.
        """
        unit_um, parts = _split(text)
        limits = _limits(path, unit_um)
        numbers = self._numbers.get(limits, ColumnNumbers({}))
        values = []
        for part in parts:
            if part in numbers.unclear:
                first, second = list_readings(part)
                raise TableError(
                    f"{where}: got '{text}', which can be {first.value:.15g} or "
                    f"{second.value:.15g}; write '{first.spelling}' or '{second.spelling}'"
                )
            value = numbers.values.get(part, math.nan)
            if not _lies_within(value, limits):
                low, high = _limits(path, 1.0)
                raise TableError(
                    f"{where}: got '{text}', expected micrometres per pixel from {low:g} to below "
                    f"{high:g}, such as {max(low, 0.5):g} or {max(low, 0.5):g} um, and no "
                    "magnification; leave the cell empty to use what the file says"
                )
            values.append(value * unit_um)
        return tuple(values)


def describe_units(texts: Iterable[str]) -> list[str]:
    """Describe how many cells state the unit of a spacing, and how they were read.

    Args:
        texts: texts of the cells.
    """
    stated = [text for text in texts if _match_unit(text)]
    if not stated:
        return []
    unit_um, parts = _split(stated[0])
    values = [value for part in parts if (value := parse_number(part)) is not None]
    read = " x ".join(f"{value * unit_um:g}" for value in values)
    return [f"{len(stated)} pixel sizes state a unit, such as '{stated[0]}', read as {read} um"]


def _split(text: str) -> tuple[float, list[str]]:
    """Split a cell into its unit, in micrometres, and the texts of the axes."""
    match = _match_unit(text)
    if match is None:
        return 1.0, _BETWEEN_AXES.split(text)
    numbers = re.sub(rf"\s*{match[2]}\b", "", match[1], flags=re.IGNORECASE)
    return _UM_PER_UNIT[match[2].lower()], _BETWEEN_AXES.split(numbers.strip())


def _match_unit(text: str) -> re.Match[str] | None:
    """Match numbers with the unit after them; both signs for micro are read."""
    return _UNIT.fullmatch(text.translate({0xB5: "u", 0x3BC: "u"}))


def _limits(path: Path, unit_um: float) -> tuple[float, float]:
    """Return the limits of an image's spacing, in a unit of so many micrometres."""
    is_volume = path.name.lower().endswith(_VOLUMES)
    low, high = BELIEVED_RADIOLOGY_UM if is_volume else BELIEVED_UM
    return low / unit_um, high / unit_um


def _lies_within(value: float, limits: tuple[float, float]) -> bool:
    """Return whether a spacing is not smaller than the lower limit, and below the upper one."""
    return limits[0] <= value < limits[1]


def spacing_for_axes(spacing_um: tuple[float, ...], axes: int, path: Path) -> tuple[float, ...]:
    """Return a table's spacing for an image with `axes` axes; equal numbers hold for all axes.

    Args:
        spacing_um: the numbers in the table.
        axes: number of axes of the image.
        path: the image's file, for the message.

    Raises:
        TableError: the table has different numbers for another number of axes.
    """
    if len(spacing_um) == axes:
        return spacing_um
    if len(set(spacing_um)) > 1:
        raise TableError(
            f"{path}: has {axes} axes, but the table gives {len(spacing_um)} pixel sizes; "
            "give one for all axes, or one of each"
        )
    return (spacing_um[0],) * axes


def spacing_factor(table_um: Sequence[float], stated_um: Sequence[float]) -> float | None:
    """Divide the table's spacing by the file's, on the axis where they differ most.

    Args:
        table_um: the table's spacing per axis.
        stated_um: the file's spacing per axis.

    Returns:
        the ratio, or None where they differ by less than 5 %.
    """
    factors = [g / s for g, s in zip(table_um, stated_um, strict=True)]
    factor = max(factors, key=lambda f: abs(math.log(f)))
    return None if 1 / _MAX_RATIO < factor < _MAX_RATIO else factor


def describe_factors(factors: Mapping[str, float]) -> str | None:
    """Write a warning about images whose spacing differs between table and file; None for none.

    Args:
        factors: `spacing_factor` by image.
    """
    if not factors:
        return None
    low, high = min(factors.values()), max(factors.values())
    times = f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"
    many = f"{len(factors)} images" if len(factors) > 1 else "1 image"
    return (
        f"warning: the table's pixel size of {many} is {times} times what the file says "
        f"({several(sorted(factors))}); the table's is used"
    )
