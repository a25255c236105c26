"""Read the header of a NIfTI file: where the voxels lie, in which directions, and their size.

Part of the reader `nifti`. nibabel parses the fields. They are interpreted here as the NIfTI
standard and its authors' library do, because nibabel corrects some silently and refuses others
that the standard allows.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from foveate.errors import AGAIN, UnreadableImage, UnsupportedFormat
from foveate.formats.volume_axes import AxisOrder
from foveate.geometry import Vector
from foveate.images.stated import BELIEVED_RADIOLOGY_UM, check_spacing
from foveate.messages.warn import warn_once

Values = NDArray[np.float64]

_UM_OF_CODE = {0: 1e3, 1: 1e6, 2: 1e3, 3: 1.0}
"""Micrometres per unit, by the unit's code: not stated (by custom millimetres), m, mm, um."""
_UNIT = {0: "mm (no unit is stated)", 1: "m", 2: "mm", 3: "um"}
_SEVERAL_NUMBERS = {
    **dict.fromkeys((1004, 1005), "matrices"),
    **dict.fromkeys((1006, 1007, 1008, 1009, 1010), "vectors"),
    **dict.fromkeys((2003, 2004), "colours"),
}
"""Intents of volumes whose voxels have several numbers each, by NIfTI's code."""
_LONGEST = 544
_FIRST_VOXEL = {348: 352, 540: 544}
"""The earliest byte at which voxels can begin, by the size of the header (NIfTI 1 and 2)."""


@dataclass(frozen=True)
class VoxelArray:
    """The stored array of voxels of a NIfTI file.

    Attributes:
        shape: voxels per axis of the file; the first axis runs fastest.
        dtype: dtype of a stored voxel.
        begin_byte: the byte of the file at which the array begins.
        slope: factor of stored numbers: a value is ``slope * stored + offset``.
        offset: the number added to them.
        order: which axes of the file are z, y and x.
        spacing_um: spacing along z, y and x; None where the file states none that can be.
        disbelieved: the stated voxel size that cannot be, in words; else empty.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    begin_byte: int
    slope: float
    offset: float
    order: AxisOrder
    spacing_um: Vector | None
    disbelieved: str = ""

    @property
    def end(self) -> int:
        """The first byte after the array."""
        return self.begin_byte + math.prod(self.shape) * self.dtype.itemsize

    def region_values(
        self, stored: NDArray[Any], origin_px: Sequence[int], size_px: Sequence[int]
    ) -> Values:
        """Return the values of a region as ``(z, y, x)``.

        Args:
            stored: the array with the axes of the file.
            origin_px: first voxel of the region along z, y and x.
            size_px: voxels of the region along z, y and x.
        """
        cut = self.order.cut(self.shape, origin_px, size_px)
        return self.scale(self.order.reorder(stored[cut]))

    def scale(self, stored: NDArray[Any]) -> Values:
        """Convert stored numbers of any shape to values.

        In double precision, since values of some files exceed the range of single precision.
        """
        values: Values = stored.astype(np.float64)
        if (self.slope, self.offset) != (1.0, 0.0):
            with np.errstate(over="ignore", invalid="ignore"):
                values = values * self.slope + self.offset
        return values


def read_header(path: Path, stream: IO[bytes]) -> VoxelArray:
    """Read the header at the beginning of a stream and check it.

    Args:
        path: the file, for messages.
        stream: the unpacked content of the file, at its beginning.

    Raises:
        UnsupportedFormat: the file is not one grey volume.
        UnreadableImage: fields contradict each other, or make no sense.
    """
    content = stream.read(_LONGEST)
    header = _parse_header(path, content)
    shape, dtype = _shape_and_dtype(path, header)
    affine, stated = _affine(path, header)
    order = _order_axes(path, affine)
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(0)) * _unit_um(path, header)
    known = stated and check_spacing(spacing.tolist(), BELIEVED_RADIOLOGY_UM) is not None
    disbelieved = _describe_disbelief(header, spacing) if stated and not known else ""
    slope, offset = _slope_and_offset(path, header)
    _warn_of_intent(path, header)
    return VoxelArray(
        shape,
        dtype,
        _begin(path, header, content),
        slope,
        offset,
        order,
        order.sort([float(side) for side in spacing]) if known else None,
        disbelieved,
    )


def _parse_header(path: Path, content: bytes) -> Any:
    """Parse the fields of the header; extensions after it are ignored, whatever size they claim."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header
    from nibabel.wrapstruct import WrapStructError

    second = content[4:7] == b"n+2"
    kind: Callable[..., Any] = Nifti2Header if second else Nifti1Header
    try:
        # Checked here: nibabel's own check would turn a size of 0 into one of 1 mm.
        return kind(content[: 540 if second else 348], check=False)
    except WrapStructError as error:  # fewer bytes than a header has
        raise UnreadableImage(f"{path}: its header cannot be read{AGAIN}") from error


def _shape_and_dtype(path: Path, header: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the voxels per axis and their stored type; refuse what is not one grey volume."""
    from nibabel.spatialimages import HeaderDataError

    try:
        shape = tuple(map(int, header.get_data_shape()))
        dtype = np.dtype(header.get_data_dtype())
    except (HeaderDataError, KeyError) as error:  # KeyError: no type of voxels has this code
        raise UnreadableImage(f"{path}: its header makes no sense{AGAIN}") from error
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        reason = (
            "a series of volumes: save one of them"
            if len(shape) > 3
            else "not a volume: save it as a picture"
        )
        raise UnsupportedFormat(f"{path}: {len(shape)} axes {shape}, {reason}")
    if min(shape) < 1:
        raise UnreadableImage(f"{path}: a volume of {shape} voxels{AGAIN}")
    if dtype.kind not in "iuf":
        name = dtype if dtype.names is None else "".join(dtype.names)
        raise UnsupportedFormat(
            f"{path}: voxels of type {name} are not readable, only grey ones; save one channel "
            "alone"
        )
    return shape, dtype


def _begin(path: Path, header: Any, content: bytes) -> int:
    """Return the byte at which the voxels begin, which is never inside the header."""
    least = _FIRST_VOXEL[header.sizeof_hdr]
    stated = float(header["vox_offset"])
    if not 0 <= stated < 2**53:
        raise UnreadableImage(f"{path}: its voxels would begin at byte {stated:g}{AGAIN}")
    if stated < least and any(content[least - 4 : least]):
        raise UnreadableImage(
            f"{path}: its voxels would begin at byte {stated:g}, inside the header, and extensions "
            "follow it; save the volume again"
        )
    return max(int(stated), least)


def _slope_and_offset(path: Path, header: Any) -> tuple[float, float]:
    """Return the scaling of stored numbers; none where the slope is 0 or not a number.

    So the standard has it for 0, and nibabel writes files without scaling with NaN.
    """
    slope, offset = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope):
        return 1.0, 0.0
    if math.isinf(slope):
        raise UnreadableImage(
            f"{path}: the number that its header multiplies every voxel by (scl_slope) is "
            "infinite; set it, to 1 if values are stored as they are"
        )
    if not math.isfinite(offset):
        raise UnreadableImage(
            f"{path}: the number that its header adds to every voxel (scl_inter) is not finite; "
            "set it, to 0 if values are stored as they are"
        )
    return slope, offset


def _warn_of_intent(path: Path, header: Any) -> None:
    """Warn where the header declares vectors or colours, while a voxel holds one number."""
    kind = _SEVERAL_NUMBERS.get(int(header["intent_code"]))
    if kind is not None:
        text = f"its header declares {kind}, but a voxel holds one number, which is read as grey"
        warn_once(logging.WARNING, "intent", path, text)


def _unit_um(path: Path, header: Any) -> float:
    """Return the micrometres in the unit that the header states sizes in."""
    code = int(header["xyzt_units"]) & 7
    if code not in _UM_OF_CODE:
        raise UnreadableImage(
            f"{path}: states its voxel size in a unit that does not exist (code {code} in "
            "xyzt_units); set it: 1 is metre, 2 millimetre, 3 micrometre"
        )
    return _UM_OF_CODE[code]


def _describe_disbelief(header: Any, spacing: Values) -> str:
    """Describe a voxel size, in micrometres along the axes of the file, that cannot be."""
    code = int(header["xyzt_units"]) & 7
    sides = " x ".join(f"{side / _UM_OF_CODE[code]:g}" for side in spacing)
    low, high = BELIEVED_RADIOLOGY_UM
    return (
        f"voxels of {sides} {_UNIT[code]}, outside the {low:g} um to {high / 1e3:g} mm that are "
        "possible; correct the unit in its header (xyzt_units: 1 is metre, 2 millimetre, "
        "3 micrometre)"
    )


def _affine(path: Path, header: Any) -> tuple[Values, bool]:
    """Return the affine from voxels to space, ``(4, 4)``, and whether a voxel size is stated.

    The sform has precedence, then the qform, then ``pixdim`` alone. An sform or qform that is empty
    or not finite is ignored. Signs in ``pixdim`` have no meaning, except that its first number is
    -1, or else taken as 1.
    """
    pixdim = np.asarray(header["pixdim"], np.float64)
    sizes = np.abs(pixdim[1:4])
    header["pixdim"][0] = -1 if pixdim[0] < 0 else 1
    sform = np.asarray(header.get_sform(), np.float64)
    if int(header["sform_code"]) > 0 and _is_affine(sform):
        _compare_sizes(path, sform, sizes)
        _compare_directions(path, sform, header)
        return sform, True
    usable = bool((np.isfinite(sizes) & (sizes > 0)).all())
    header["pixdim"][1:4] = sizes if usable else 1
    if int(header["qform_code"]) > 0:
        qform = _qform(header)
        if _is_affine(qform):
            return qform, usable
        lacking = "qform"
    elif int(header["sform_code"]) > 0:
        lacking = "sform"
    else:
        return np.asarray(header.get_base_affine(), np.float64), usable
    raise UnreadableImage(
        f"{path}: its {lacking} is empty or not finite and does not say which way the axes run; "
        "set a qform or an sform"
    )


def _qform(header: Any) -> Values:
    """Return the affine of the qform, ``(4, 4)``; not a number where there is none."""
    from nibabel.spatialimages import HeaderDataError

    try:
        return np.asarray(header.get_qform(), np.float64)
    except (HeaderDataError, ValueError):  # the quaternion is no rotation
        return np.full((4, 4), np.nan)


def _is_affine(affine: Values) -> bool:
    """Return whether the three directions of an affine ``(4, 4)`` span space."""
    if not np.isfinite(affine).all():
        return False
    lengths = np.sqrt((affine[:3, :3] ** 2).sum(0))
    if not (np.isfinite(lengths).all() and lengths.all()):
        return False
    return bool(abs(np.linalg.det(affine[:3, :3] / lengths)) > 1e-6)


def _compare_sizes(path: Path, sform: Values, sizes: Values) -> None:
    """Warn where the sform and ``pixdim`` state different voxel sizes."""
    lengths = np.sqrt((sform[:3, :3] ** 2).sum(0))
    if (sizes > 0).all() and not np.allclose(lengths, sizes, rtol=0.01):
        by_sform, by_pixdim = (" x ".join(f"{v:g}" for v in sides) for sides in (lengths, sizes))
        warn_once(
            logging.WARNING,
            "sform size",
            path,
            f"its sform says voxels of {by_sform}, its pixdim {by_pixdim}; the sform is believed",
        )


def _compare_directions(path: Path, sform: Values, header: Any) -> None:
    """Warn where an axis runs in opposite directions by the sform and by the qform."""
    if int(header["qform_code"]) <= 0 or not _is_affine(qform := _qform(header)):
        return
    if ((sform[:3, :3] * qform[:3, :3]).sum(0) < 0).any():
        warn_once(
            logging.WARNING,
            "sform direction",
            path,
            "by its sform an axis runs the other way than by its qform (left is right, say); the "
            "sform is believed",
        )


def _order_axes(path: Path, affine: Values) -> AxisOrder:
    """Return which axes of the file are z, y and x."""
    order = AxisOrder.from_affine(affine)
    if order is None:
        raise UnreadableImage(
            f"{path}: its affine does not say which way the axes run; set a qform or an sform"
        )
    return order
