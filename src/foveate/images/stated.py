"""Judge the pixel sizes and pyramid levels that files state, by the same rules in every format."""

from __future__ import annotations

import math
from collections.abc import Sequence

from foveate.geometry import Vector

BELIEVED_UM = (0.05, 20.0)
"""Micrometres per pixel outside this range are placeholders, such as 352.8 for 72 dpi."""

BELIEVED_RADIOLOGY_UM = (1.0, 1e5)
"""The same for volumes, and for pictures of radiology: one micrometre to ten centimetres."""


def check_spacing(
    stated_um: Sequence[float | None], believed_um: tuple[float, float] = BELIEVED_UM
) -> Vector | None:
    """Return a stated spacing, or None if one of its axes is missing or cannot be physical.

    Args:
        stated_um: micrometres per pixel along ``(y, x)`` or ``(z, y, x)``; None where the file
            states none.
        believed_um: the smallest and the largest spacing that can be.
    """
    low, high = believed_um
    plausible = [float(v) for v in stated_um if v is not None and low <= v <= high]
    return tuple(plausible) if len(plausible) == len(stated_um) else None


def describe_disbelief(what: str, sides_mm: Sequence[float]) -> str:
    """Describe a stated size that lies outside of `BELIEVED_RADIOLOGY_UM`.

    Args:
        what: ``pixels`` or ``voxels``.
        sides_mm: the stated millimetres along each axis.
    """
    low, high = (limit / 1e3 for limit in BELIEVED_RADIOLOGY_UM)
    return (
        f"{what} of {' x '.join(f'{side:g}' for side in sides_mm)} mm, outside the {low:g} to "
        f"{high:g} mm that are possible"
    )


def parse_number(text: str | None) -> float | None:
    """Convert a text to a finite number, with a decimal point or comma; None if it is none."""
    try:
        number = float((text or "").strip().replace(",", "."))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def level_downsample(full: Sequence[int], shape: Sequence[int]) -> Vector:
    """Compute the level-0 pixels per pixel of a level, per axis.

    Writers shrink by a whole number and round the size of the level up or down, so the quotient of
    the sizes is off by up to a pixel at the far edge. Where a whole number explains the size, it is
    taken (registering levels against level 0 finds it exact); otherwise the quotient.

    Args:
        full: pixels of level 0 per axis.
        shape: pixels of the level per axis.
    """
    return tuple(_axis_downsample(n, m) for n, m in zip(full, shape, strict=True))


def _axis_downsample(full: int, size: int) -> float:
    factor = max(1, round(full / size))
    return float(factor) if abs(full / factor - size) < 1 else full / size


def could_be_shrunk(full: Sequence[int], shape: Sequence[int]) -> bool:
    """Return whether a picture has the proportions of a larger one, up to rounding of its sides.

    Args:
        full: pixels of the larger one per axis.
        shape: pixels of the smaller one per axis, at least one each.
    """
    step = max(n / m for n, m in zip(full, shape, strict=True))
    largest = min(n / max(m - 1, 0.5) for n, m in zip(full, shape, strict=True))
    return 1.01 < step <= largest
