"""Check a table's spacing, and compare it with the file's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from foveate.errors import TableError
from foveate.images.stated import BELIEVED_UM
from foveate.wording import several

_VOLUMES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd")
_VOLUME_UM = (1.0, 1e5)
_MAX_RATIO = 1.05


def parse_spacing(text: str, where: str, path: Path) -> float:
    """Parse a spacing in micrometres, with the same limits as for spacings that files state.

    Args:
        text: text of the cell, with a decimal point or comma.
        where: file, row and column, for the message.
        path: the image's file, whose suffix distinguishes volumes.

    Raises:
        TableError: the text is no number, or outside the limits.
    """
    low, high = _VOLUME_UM if path.name.lower().endswith(_VOLUMES) else BELIEVED_UM
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        value = math.nan
    if not low <= value < high:
        raise TableError(
            f"{where}: got '{text}', expected micrometres per pixel from {low:g} to below "
            f"{high:g} (no magnification, no millimetres); leave the cell empty to use what the "
            "file says"
        )
    return value


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
