"""What files state of themselves, judged alike for every format: pixel sizes and pyramid levels."""

from __future__ import annotations

from collections.abc import Sequence

from foveate.geometry import Vector

BELIEVED_UM = (0.05, 20.0)
"""Micrometres per pixel outside this range stand for "unknown" (72 dpi is 352.8, say)."""


def believed_spacing(stated_um: Sequence[float | None]) -> Vector | None:
    """A stated pixel size ``(y, x)`` in micrometres, or None where it cannot be a physical one."""
    low, high = BELIEVED_UM
    known = [float(v) for v in stated_um if v is not None and low <= v <= high]
    return tuple(known) if len(known) == len(stated_um) else None


def level_downsample(full: Sequence[int], shape: Sequence[int]) -> Vector:
    """Level-0 pixels per pixel of a level, per axis.

    Writers shrink by a whole number and round the size of the level up or down, so the quotient of
    the sizes is off by up to a pixel at the far edge. Where a whole number explains the size, it is
    taken (registering levels against level 0 finds it exact); otherwise the quotient.
    """
    return tuple(_axis_downsample(n, m) for n, m in zip(full, shape, strict=True))


def _axis_downsample(full: int, size: int) -> float:
    whole = max(1, round(full / size))
    return float(whole) if abs(full / whole - size) < 1 else full / size
