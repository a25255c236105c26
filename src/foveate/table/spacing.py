"""A table's spacing: its limits, and where it contradicts what the file says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from foveate.errors import TableError, several
from foveate.images.stated import BELIEVED_UM

_VOLUMES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd")
_VOLUME_UM = (1.0, 1e5)
_ALIKE = 1.05


def believed_um(text: str, where: str, path: Path) -> float:
    """A spacing in micrometres, within the limits that hold for what a file of this kind states.

    Args:
        text: of the cell; a decimal comma will do.
        where: file, row and column, for the message.
        path: of the image.

    Raises:
        TableError: no number, or outside the limits.
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


def for_axes(given_um: tuple[float, ...], axes: int, path: Path) -> tuple[float, ...]:
    """A table's spacing for an image of so many axes; one number holds for all of them.

    Raises:
        TableError: it is of another number of axes.
    """
    if len(given_um) == axes:
        return given_um
    if len(set(given_um)) > 1:
        raise TableError(
            f"{path}: has {axes} axes, but the table gives {len(given_um)} pixel sizes"
        )
    return (given_um[0],) * axes


def spacing_factor(given_um: Sequence[float], stated_um: Sequence[float]) -> float | None:
    """How many times the file's spacing the table's is, on the axis where they differ most.

    Returns:
        None where they differ by less than 5 %.
    """
    factors = [g / s for g, s in zip(given_um, stated_um, strict=True)]
    factor = max(factors, key=lambda f: abs(math.log(f)))
    return None if 1 / _ALIKE < factor < _ALIKE else factor


def said_factors(factors: Mapping[str, float]) -> str | None:
    """One line about images whose spacing in the table is `spacing_factor` times the file's."""
    if not factors:
        return None
    low, high = min(factors.values()), max(factors.values())
    times = f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"
    many = f"{len(factors)} images" if len(factors) > 1 else "1 image"
    return (
        f"warning: the table's pixel size of {many} is {times} times what the file says "
        f"({several(sorted(factors))}); the table's is used"
    )
