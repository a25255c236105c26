"""What the header of a NIfTI file says: where the voxels lie, which way, and how large they are.

Part of the reader `nifti`. nibabel lays the fields out; they are judged here, as the NIfTI standard
and the library of its authors do, because nibabel mends some in silence and refuses others that are
lawful.
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
from foveate.geometry import Vector
from foveate.messages.warn import tell

Values = NDArray[np.float64]

_UM_OF_CODE = {0: 1e3, 1: 1e6, 2: 1e3, 3: 1.0}
"""By the code of the unit: not stated (millimetres by custom), metre, millimetre, micrometre."""
_BELIEVED_UM = (1.0, 1e5)
_LONGEST = 544
_FIRST_VOXEL = {348: 352, 540: 544}
"""By the size of the header, NIfTI 1 and 2: where voxels can begin at the earliest."""


@dataclass(frozen=True)
class Stored:
    """How the voxels lie in the file.

    Attributes:
        shape, dtype, begin: of the array, first axis fastest, and the byte at which it begins.
        slope, offset: a value is ``slope * stored + offset``.
        axes: which axis of the file is z, y and x.
        turned: whether it runs the other way.
        spacing_um: along z, y and x; None where no size is stated.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    begin: int
    slope: float
    offset: float
    axes: tuple[int, ...]
    turned: tuple[bool, ...]
    spacing_um: Vector | None

    @property
    def end(self) -> int:
        """The byte behind the array."""
        return self.begin + math.prod(self.shape) * self.dtype.itemsize

    def laid(self, stored: NDArray[Any], origin: Sequence[int], size: Sequence[int]) -> Values:
        """Values of a region, ``z, y, x``."""
        cut = [slice(None)] * 3
        for axis, turned, o, n in zip(self.axes, self.turned, origin, size, strict=True):
            low = self.shape[axis] - o - n if turned else o
            cut[axis] = slice(low, low + n)
        return self.scaled(self.turned_round(stored[tuple(cut)]))

    def turned_round(self, stored: NDArray[Any]) -> NDArray[Any]:
        """The same numbers with axes ``z, y, x``, each in its direction."""
        way = tuple(slice(None, None, -1 if turned else 1) for turned in self.turned)
        return stored.transpose(self.axes)[way]

    def scaled(self, stored: NDArray[Any]) -> Values:
        """Values of stored numbers, in double precision: those of files can lie beyond single."""
        values: Values = stored.astype(np.float64)
        if (self.slope, self.offset) != (1.0, 0.0):
            with np.errstate(over="ignore", invalid="ignore"):
                values = values * self.slope + self.offset
        return values


def read_header(path: Path, stream: IO[bytes]) -> Stored:
    """Read and judge the header at the beginning of a stream.

    Raises:
        UnsupportedFormat: not one grey volume.
        UnreadableImage: fields that contradict each other, or make no sense.
    """
    content = stream.read(_LONGEST)
    header = _header(path, content)
    try:
        shape = tuple(map(int, header.get_data_shape()))
        dtype = np.dtype(header.get_data_dtype())
    except Exception as error:
        raise UnreadableImage(f"{path}: its header makes no sense{AGAIN}") from error
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        what = (
            "a series of volumes: save one of them"
            if len(shape) > 3
            else "not a volume: save it as a picture"
        )
        raise UnsupportedFormat(f"{path}: {len(shape)} axes {shape}, {what}")
    if min(shape) < 1:
        raise UnreadableImage(f"{path}: a volume of {shape} voxels{AGAIN}")
    if dtype.kind not in "iuf":
        raise UnsupportedFormat(
            f"{path}: voxels of type {dtype} are not readable, only grey ones; save one channel "
            "alone"
        )
    affine, stated = _affine(path, header)
    axes, turned = _directions(path, affine)
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(0)) * _unit_um(path, header)
    known = stated and bool(((spacing >= _BELIEVED_UM[0]) & (spacing <= _BELIEVED_UM[1])).all())
    slope, offset = _slope_and_offset(path, header)
    return Stored(
        shape,
        dtype,
        _begin(path, header, content),
        slope,
        offset,
        axes,
        turned,
        tuple(float(spacing[axis]) for axis in axes) if known else None,
    )


def _header(path: Path, content: bytes) -> Any:
    """The fields. Extensions behind them are left alone, whatever size they claim."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    try:
        second = content[4:7] == b"n+2"
        kind: Callable[..., Any] = Nifti2Header if second else Nifti1Header
        # Checked by ourselves: nibabel would mend a size of 0 into one of 1 mm.
        return kind(content[: 540 if second else 348], check=False)
    except Exception as error:
        raise UnreadableImage(f"{path}: its header cannot be read{AGAIN}") from error


def _begin(path: Path, header: Any, content: bytes) -> int:
    """The byte of the first voxel: never inside the header."""
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
    """By the standard a slope of 0 means that values are stored as they are."""
    slope, offset = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not math.isfinite(slope):
        return 1.0, 0.0
    if not math.isfinite(offset):
        raise UnreadableImage(
            f"{path}: the number that its header adds to every voxel (scl_inter) is not finite; "
            "set it, to 0 if values are stored as they are"
        )
    return slope, offset


def _unit_um(path: Path, header: Any) -> float:
    code = int(header["xyzt_units"]) & 7
    if code not in _UM_OF_CODE:
        raise UnreadableImage(
            f"{path}: states its voxel size in a unit that does not exist (code {code} in "
            "xyzt_units); set it: 1 is metre, 2 millimetre, 3 micrometre"
        )
    return _UM_OF_CODE[code]


def _affine(path: Path, header: Any) -> tuple[Values, bool]:
    """The affine from voxels to space, and whether a voxel size is stated.

    The sform counts, then the qform, then ``pixdim`` alone. An sform or qform that is empty or not
    finite is none. Signs in ``pixdim`` mean nothing, and its first number is -1 or else 1.
    """
    pixdim = np.asarray(header["pixdim"], np.float64)
    sizes = np.abs(pixdim[1:4])
    header["pixdim"][0] = -1 if pixdim[0] < 0 else 1
    sform = np.asarray(header.get_sform(), np.float64)
    if int(header["sform_code"]) > 0 and _is_affine(sform):
        _compare(path, sform, sizes)
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
    try:
        return np.asarray(header.get_qform(), np.float64)
    except Exception:  # quaternions that turn nothing
        return np.full((4, 4), np.nan)


def _is_affine(affine: Values) -> bool:
    """Whether three directions span space."""
    if not np.isfinite(affine).all():
        return False
    lengths = np.sqrt((affine[:3, :3] ** 2).sum(0))
    if not (np.isfinite(lengths).all() and lengths.all()):
        return False
    return bool(abs(np.linalg.det(affine[:3, :3] / lengths)) > 1e-6)


def _compare(path: Path, sform: Values, sizes: Values) -> None:
    lengths = np.sqrt((sform[:3, :3] ** 2).sum(0))
    if (sizes > 0).all() and not np.allclose(lengths, sizes, rtol=0.01):
        own, other = (" x ".join(f"{v:g}" for v in sides) for sides in (lengths, sizes))
        tell(
            logging.WARNING,
            "sform size",
            path,
            f"its sform says voxels of {own}, its pixdim {other}; the sform is believed",
        )


def _compare_directions(path: Path, sform: Values, header: Any) -> None:
    if int(header["qform_code"]) <= 0 or not _is_affine(qform := _qform(header)):
        return
    if ((sform[:3, :3] * qform[:3, :3]).sum(0) < 0).any():
        tell(
            logging.WARNING,
            "sform direction",
            path,
            "by its sform an axis runs the other way than by its qform (left is right, say); the "
            "sform is believed",
        )


def _directions(path: Path, affine: Values) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Which axis of the file is z, y and x, and whether it runs the other way."""
    from nibabel.orientations import io_orientation

    order = np.asarray(io_orientation(affine))  # type: ignore[no-untyped-call]
    if not np.isfinite(order).all():
        raise UnreadableImage(
            f"{path}: its affine does not say which way the axes run; set a qform or an sform"
        )
    axes = tuple(int(np.flatnonzero(order[:, 0] == a)[0]) for a in (2, 1, 0))
    # To the right and to the front are the directions that nibabel counts as positive.
    turned = tuple(bool(order[axis, 1] != way) for axis, way in zip(axes, (1, -1, -1), strict=True))
    return axes, turned
