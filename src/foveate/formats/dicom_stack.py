"""Put the slices of a series in order, and check that they make an even volume.

Part of the reader `dicom`. The place of a slice is that of its first pixel along the normal of the
slices (DICOM PS3.3, C.7.6.2.1.1). File names, numbers of slices and the thickness of slices do not
count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Shaped

from foveate.errors import UnreadableImage, UnsupportedFormat
from foveate.formats.dicom_codec import read_pixels
from foveate.formats.dicom_series import SliceFacts
from foveate.formats.volume_axes import AxisOrder
from foveate.geometry import Vector, points_px_from_um
from foveate.images.stated import BELIEVED_RADIOLOGY_UM, check_spacing, describe_disbelief

UNEVEN = 0.1
"""How far a slice may lie from its place in an even stack, in distances of two slices."""
_SAME_PLACE = 0.01
"""Slices nearer to each other than this many distances of two slices lie at the same place."""
_DIRECTION, _SPACING = 1e-3, 1e-3
"""How much directions (cosines) and spacings (relative) may differ between slices."""
_DRIFT_PX = 0.5
"""Slices that are displaced by more pixels against each other are shifted upright."""


@dataclass(frozen=True)
class Stack:
    """An even stack of slices; its stored axes are the slices, their rows and their columns.

    Attributes:
        slices: the slices by rising place along their normal.
        shape: voxels along the stored axes, after the slices are shifted upright.
        shift_px: by how many pixels ``(y, x)`` each slice is to be shifted, at least 0.
        order: which stored axes are z, y and x.
        spacing_um: spacing along the stored axes; None where the files state none that can be.
        disbelieved: the stated size that cannot be, in words; else empty.
        tilt_deg: angle between the normal of the slices and the way from one to the next.
    """

    slices: tuple[SliceFacts, ...]
    shape: tuple[int, int, int]
    shift_px: Float64[np.ndarray, "n 2"]
    order: AxisOrder
    spacing_um: Vector | None
    disbelieved: str
    tilt_deg: float

    @property
    def is_sheared(self) -> bool:
        """Whether slices must be shifted to lie upright on each other."""
        return bool(self.shift_px.any())


def stack_slices(slices: Sequence[SliceFacts], series: Path) -> Stack:
    """Put the slices of a series in order.

    Args:
        slices: the slices, at least two.
        series: the folder or file that was asked for, for messages.

    Raises:
        UnsupportedFormat: slices lack a position, differ in size, direction or unit, overlap, or
            are unevenly spaced.
        UnreadableImage: directions make no sense, or two slices lie at the same place, and their
            pixels cannot be compared.
    """
    first = slices[0]
    rows, normal = _directions(slices, series)
    _refuse_mixture(slices, series)
    position_mm = np.array([facts.position_mm for facts in slices], np.float64)
    place_mm = position_mm @ normal
    by_place = np.argsort(place_mm, kind="stable")
    by_place = _drop_copies(slices, by_place, place_mm, series)
    ordered = tuple(slices[i] for i in by_place)
    place_mm, position_mm = place_mm[by_place], position_mm[by_place]
    step_mm = _even_step(ordered, place_mm, series)
    spacing_mm = first.spacing_mm or (math.nan, math.nan)
    shift_px, shape = _shifts(position_mm, rows, spacing_mm, first.shape, series)
    sides_mm = (step_mm, *spacing_mm)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([normal, rows[1], rows[0]], 1)
    affine[:2] *= -1  # DICOM counts to the left and to the back, NIfTI to the right and the front
    order = AxisOrder.from_affine(affine)
    assert order is not None  # directions are at right angles
    spacing_um = check_spacing([1e3 * side for side in sides_mm], BELIEVED_RADIOLOGY_UM)
    way = position_mm[-1] - position_mm[0]
    return Stack(
        ordered,
        (len(ordered), *shape),
        shift_px,
        order,
        spacing_um,
        "" if spacing_um else _describe_disbelief(sides_mm),
        math.degrees(math.acos(min(1.0, abs(way @ normal) / float(np.linalg.norm(way))))),
    )


def _describe_disbelief(sides_mm: Sequence[float]) -> str:
    """Describe a voxel size that is not stated, or that cannot be."""
    if any(map(math.isnan, sides_mm)):
        return "no pixel size (PixelSpacing)"
    return describe_disbelief("voxels", sides_mm)


def _directions(
    slices: Sequence[SliceFacts], series: Path
) -> tuple[Float64[np.ndarray, "2 3"], Float64[np.ndarray, " 3"]]:
    """Return the directions along a row and along a column, ``(2, 3)``, and the normal ``(3,)``."""
    bare = [f.path.name for f in slices if f.position_mm is None or f.directions is None]
    if bare:
        raise UnsupportedFormat(
            f"{series}: {len(bare)} of {len(slices)} slices of a series ({bare[0]}, say) state no "
            "position (ImagePositionPatient, ImageOrientationPatient), without which their order "
            "and distance are unknown; export the series again, or convert it to NIfTI"
        )
    stated = np.array([f.directions for f in slices], np.float64).reshape(-1, 2, 3)
    lengths, across = np.linalg.norm(stated, axis=2), (stated[:, 0] * stated[:, 1]).sum(1)
    wrong = (np.abs(lengths - 1) > 0.01).any(1) | (np.abs(across) > 0.01)
    if wrong.any():
        path = slices[int(np.argmax(wrong))].path
        raise UnreadableImage(
            f"{path}: its directions (ImageOrientationPatient) are not at right angles or not of "
            "length 1; export the series again"
        )
    other = np.abs(stated - stated[0]).max((1, 2)) > _DIRECTION
    if other.any():
        path = slices[int(np.argmax(other))].path
        raise UnsupportedFormat(
            f"{series}: slices of one series lie in different directions ({slices[0].path.name} "
            f"and {path.name}, say); put each stack into a folder and a series of its own"
        )
    rows = stated[0] / lengths[0][:, None]
    return rows, np.cross(rows[0], rows[1])


def _refuse_mixture(slices: Sequence[SliceFacts], series: Path) -> None:
    """Refuse slices that differ in size, pixel spacing, unit or meaning of their numbers."""
    first = slices[0]
    for facts in slices[1:]:
        sides = zip(facts.spacing_mm or (), first.spacing_mm or (), strict=False)
        differences = {
            f"{facts.shape} and {first.shape} pixels": facts.shape != first.shape,
            "pixel spacing": (facts.spacing_mm is None) != (first.spacing_mm is None)
            or any(abs(a - b) > _SPACING * abs(b) for a, b in sides),
            "the unit of their values": (facts.rescale_type, facts.modality)
            != (first.rescale_type, first.modality),
            "whether they say how their numbers are rescaled": (facts.rescale is None)
            != (first.rescale is None),
            "the meaning of dark and bright": facts.photometric != first.photometric,
        }
        for what, differs in differences.items():
            if differs:
                raise UnsupportedFormat(
                    f"{series}: slices of one series differ in {what} ({first.path.name} and "
                    f"{facts.path.name}); put each stack into a folder and a series of its own"
                )


def _drop_copies(
    slices: Sequence[SliceFacts],
    by_place: Shaped[np.ndarray, " n"],
    place_mm: Float64[np.ndarray, " n"],
    series: Path,
) -> Shaped[np.ndarray, " m"]:
    """Drop slices that are copies of the one before: same place, same values.

    Args:
        slices: the slices.
        by_place: their indices by rising place.
        place_mm: their places.
        series: the folder or file that was asked for.

    Raises:
        UnsupportedFormat: two slices lie at the same place and differ, or all are copies.
    """
    gaps = np.diff(place_mm[by_place])
    far = gaps[gaps > 1e-3]
    if not far.size:
        raise UnsupportedFormat(
            f"{series}: all slices of the series lie at the same place; give them one by one"
        )
    kept = [by_place[0]]
    for i, gap in zip(by_place[1:], gaps, strict=True):
        if gap > max(1e-3, _SAME_PLACE * float(np.median(far))):
            kept.append(i)
        elif not _is_copy(slices[i], slices[kept[-1]]):
            raise UnsupportedFormat(
                f"{series}: {slices[kept[-1]].path.name} and {slices[i].path.name} lie at the same "
                "place and show different pixels (two echoes, times or reconstructions); put each "
                "stack into a folder of its own"
            )
    return np.array(kept)


def _is_copy(facts: SliceFacts, other: SliceFacts) -> bool:
    """Return whether two slices have the same values."""
    pixels, others = (read_pixels(f.path)[0] for f in (facts, other))
    return facts.rescale == other.rescale and np.array_equal(pixels, others)


def _even_step(
    slices: Sequence[SliceFacts], place_mm: Float64[np.ndarray, " n"], series: Path
) -> float:
    """Return the distance of two slices in millimetres.

    Raises:
        UnsupportedFormat: a slice lies farther than `UNEVEN` from its place in an even stack.
    """
    n = len(place_mm)
    step_mm = float(place_mm[-1] - place_mm[0]) / (n - 1)
    even_mm = place_mm[0] + step_mm * np.arange(n)
    if np.abs(place_mm - even_mm).max() <= UNEVEN * step_mm:
        return step_mm
    gaps = np.diff(place_mm)
    usual, i = float(np.median(gaps)), int(np.argmax(gaps))
    where = f"between {slices[i].path.name} and {slices[i + 1].path.name}"
    n_missing = round(gaps[i] / usual) - 1
    if n_missing and abs(gaps[i] / usual - 1 - n_missing) <= UNEVEN:
        lacking = "a slice is missing" if n_missing == 1 else f"{n_missing} slices are missing"
        raise UnsupportedFormat(
            f"{series}: {lacking} {where}, which are {gaps[i]:g} mm apart where others are "
            f"{usual:g} mm apart; export the series again"
        )
    raise UnsupportedFormat(
        f"{series}: its slices are {gaps.min():g} to {gaps.max():g} mm apart, the farthest "
        f"{where}; slices must be evenly spaced: export the series again, or resample it to a "
        "NIfTI volume"
    )


def _shifts(
    position_mm: Float64[np.ndarray, "n 3"],
    rows: Float64[np.ndarray, "2 3"],
    spacing_mm: Sequence[float],
    shape: tuple[int, int],
    series: Path,
) -> tuple[Float64[np.ndarray, "n 2"], tuple[int, int]]:
    """Return the shifts that put slices upright on each other, and the pixels of the upright stack.

    Args:
        position_mm: position of the first pixel of each slice, in order.
        rows: directions along a row and along a column.
        spacing_mm: spacing ``(y, x)``.
        shape: pixels of a slice.
        series: the folder or file that was asked for.

    Raises:
        UnsupportedFormat: slices are displaced by more than their own size.
    """
    along_um = 1e3 * (position_mm - position_mm[0]) @ rows[::-1].T
    spacing_um = [1e3 * side for side in spacing_mm]
    with np.errstate(invalid="ignore", divide="ignore"):  # a spacing of 0 is disbelieved
        offset_px = points_px_from_um(along_um, spacing_um, (0.0, 0.0))
    offset_px = offset_px - offset_px.min(0)
    most = offset_px.max(0)
    if not (most > _DRIFT_PX).any():
        return np.zeros_like(offset_px), shape
    if (most > np.asarray(shape)).any():
        raise UnsupportedFormat(
            f"{series}: its slices lie beside each other and make no volume (positions move by "
            f"{most[0]:.0f} x {most[1]:.0f} pixels within them); give its files one by one"
        )
    grown = np.asarray(shape) + np.ceil(most - 1e-6).astype(int)
    return offset_px, (int(grown[0]), int(grown[1]))
