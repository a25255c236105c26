"""Volumes in NIfTI files, packed with gzip or not; headers by nibabel."""

from __future__ import annotations

import gzip
import logging
import math
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, final

import numpy as np
from numpy.typing import NDArray

from foveate.cache import ByteCache
from foveate.errors import ImageTooLarge, UnreadableImage, UnsupportedFormat
from foveate.geometry import Vector
from foveate.image import Level
from foveate.readers.base import AbstractReader
from foveate.resample import Pixels

log = logging.getLogger("foveate")

Floats32 = NDArray[np.float32]
_Scale = tuple[tuple[float, ...], tuple[float, ...]]
"""Values, rising, and the grey of each, 0 to 1."""

_GZIP = b"\x1f\x8b"
_UM = {"micron": 1.0, "mm": 1e3, "meter": 1e6, "unknown": 1e3}
_BELIEVED_UM = (1.0, 1e5)
_PERCENTILES = (0.5, 99.5)
_FEW_VALUES = 32
_GREY_OF_HU = ((-1024.0, -160.0, 240.0, 3071.0), (0.0, 0.25, 0.75, 1.0))
"""Hounsfield units and their grey, straight between them: half the scale is soft tissue."""
_SAMPLED = 1 << 20
_TOP = 65535
_KEPT_BYTES = 1 << 30

_kept: ByteCache[Pixels] = ByteCache(_KEPT_BYTES)
"""Of all files together, by what stands for an open one."""


@final
class NiftiReader(AbstractReader):
    """One volume, axes ``z, y, x``, grey, 16 bits.

    Axes are laid as ITK and DICOM lay them, whatever the order in the file: x runs to the left of
    the patient, y to the back, z to the head. What becomes black and what white is settled from
    about a million voxels of each volume:

    - CT in Hounsfield units has one scale for all files, from -1024 to 3071, half of it for soft
      tissue (-160 to 240), so that a value means the same everywhere. It is known by its values:
      air or lung, and soft tissue around 0. The log says so. Crops without air are not known.
    - Masks and label maps, of at most 32 different values: the least is black, the largest white.
    - All others (MR has no unit): the 0.5th percentile is black, the 99.5th white, and what lies
      beyond is clipped. A value that fills half of the volume or more is ground: percentiles are
      of the rest, and the ground stays on the scale, however little there is on it.

    Voxels that are no finite numbers are black, and the log says so.

    Volumes are decoded once and kept, up to a gigabyte of them; larger ones are read region by
    region, for which the file must not be packed.
    """

    priority: ClassVar[int] = 5

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        import nibabel

        with path.open("rb") as file:
            self._packed = file.read(2) == _GZIP
        with self._stream() as stream:
            self._file = _read_header(path, stream)
        shape = tuple(self._file.shape[axis] for axis in self._file.axes)
        if not self._packed and path.stat().st_size < self._file.end:
            raise UnreadableImage(f"{path}: truncated: its header promises {self._file.end} bytes")
        self._small = 2 * math.prod(shape) <= _KEPT_BYTES
        if self._packed and not self._small:
            raise ImageTooLarge(
                f"{path}: {shape} voxels are too many to be unpacked in memory; unpack the file "
                "(gunzip), then it is read region by region"
            )
        self.kind, self.dtype, self.channels = "volume", np.dtype(np.uint16), 1
        self.levels = (Level(shape, (1.0,) * 3),)
        self.spacing_um = self._file.spacing_um
        self.reader = f"nibabel {nibabel.__version__}"
        self._lock, self._key = threading.Lock(), object()
        self._scale: _Scale | None = None
        self._closed = self._warned = False

    @classmethod
    def recognises(cls, path: Path, head: bytes) -> bool:
        """Marks of NIfTI 1 and 2 in one file, packed or not."""
        if head.startswith(_GZIP):
            try:
                head = zlib.decompressobj(31).decompress(head, 352)
            except zlib.error:
                return False
        return head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0"

    def _stream(self) -> IO[bytes]:
        # By content: a packed file may be called .nii.
        return gzip.open(self.path) if self._packed else self.path.open("rb")  # type: ignore[return-value]

    def _read_level(self, level: int, origin: tuple[int, ...], size: tuple[int, ...]) -> Pixels:
        with self._lock:
            if self._closed:
                raise UnreadableImage(f"{self.path}: the image is closed")
            whole = self._whole() if self._small else None
        if whole is None:
            pixels = self._converted(self._mapped(), origin, size)
            self.count.add(decoded_px=math.prod(size))
            return pixels
        return whole[tuple(slice(o, o + n) for o, n in zip(origin, size, strict=True))].copy()

    def _whole(self) -> Pixels:
        """The volume, decoded if it is not kept."""
        found = _kept.get((self._key,))
        if found is None:
            stored = self._unpacked() if self._packed else self._mapped()
            found = np.empty((*self.shape, 1), np.uint16)
            for z in range(self.shape[0]):
                found[z : z + 1] = self._converted(stored, (z, 0, 0), (1, *self.shape[1:]))
            self.count.add(decoded_px=self.size_px)
            _kept.put((self._key,), found, found.nbytes)
        return found

    def _mapped(self) -> NDArray[Any]:
        """Stored values, axes as in the file."""
        file = self._file
        return np.memmap(self.path, file.dtype, "r", file.begin, file.shape, "F")

    def _unpacked(self) -> NDArray[Any]:
        file = self._file
        try:
            with self._stream() as stream:
                # A byte more: gzip compares its checksum at the end of the file alone.
                content = stream.read(file.end + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise UnreadableImage(f"{self.path}: cannot be unpacked ({error})") from error
        if len(content) < file.end:
            raise UnreadableImage(f"{self.path}: truncated: {len(content)} of {file.end} bytes")
        n = math.prod(file.shape)
        return np.frombuffer(content, file.dtype, n, file.begin).reshape(file.shape, order="F")

    def _converted(
        self, stored: NDArray[Any], origin: Sequence[int], size: Sequence[int]
    ) -> Pixels:
        """A region ``(*size, 1)`` of what is stored, laid and scaled."""
        if self._scale is None:
            self._scale = self._settled(stored)
        values = self._file.laid(stored, origin, size)
        known = np.isfinite(values)
        if not known.all():
            self._warn()
            values = np.where(known, values, self._scale[0][0])
        share = np.interp(values, *self._scale)
        return np.asarray(np.rint(share * _TOP).astype(np.uint16)[..., None])

    def _settled(self, stored: NDArray[Any]) -> _Scale:
        """Which value has which grey, from a sample of the voxels."""
        step = max(1, math.ceil((stored.size / _SAMPLED) ** (1 / 3)))
        values = self._file.scaled(stored[::step, ::step, ::step])
        values = values[np.isfinite(values)]
        if not values.size:
            raise UnreadableImage(f"{self.path}: holds no finite number")
        if _in_hounsfield_units(values):
            log.info("%s: read as CT, in Hounsfield units", self.path)
            return _GREY_OF_HU
        low, high = _window(values)
        # Of an even volume all is black.
        return (low, max(high, float(np.nextafter(np.float32(low), np.float32(np.inf))))), (0, 1)

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            log.warning("%s: voxels that are no finite numbers are read as black", self.path)

    def close(self) -> None:
        """Forget the voxels. Closing twice is harmless."""
        with self._lock:
            self._closed = True
            _kept.drop_where(self._key)


def _in_hounsfield_units(values: Floats32) -> bool:
    """Whether there is air or lung, soft tissue, and little else.

    What is below air pads round fields of view and says nothing.
    """
    inside = values[values >= -1100]
    airy, soft = (inside <= -500).sum(), (np.abs(inside) <= 150).sum()
    return bool(min(airy, soft) >= 0.01 * values.size and airy + soft >= 0.6 * inside.size)


def _window(values: Floats32) -> tuple[float, float]:
    """What becomes black and what white."""
    if len(np.unique(values)) <= _FEW_VALUES:
        return float(values.min()), float(values.max())
    ground = np.median(values)
    rest = values[values != ground]
    if 2 * rest.size > values.size:
        low, high = np.percentile(values, _PERCENTILES)
    else:
        low, high = np.percentile(rest, _PERCENTILES)
        low, high = min(low, ground), max(high, ground)
    return float(low), float(high)


@dataclass(frozen=True)
class _Stored:
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

    def laid(self, stored: NDArray[Any], origin: Sequence[int], size: Sequence[int]) -> Floats32:
        """Values of a region, ``z, y, x``."""
        cut = [slice(None)] * 3
        for axis, turned, o, n in zip(self.axes, self.turned, origin, size, strict=True):
            low = self.shape[axis] - o - n if turned else o
            cut[axis] = slice(low, low + n)
        way = tuple(slice(None, None, -1 if turned else 1) for turned in self.turned)
        return self.scaled(stored[tuple(cut)].transpose(self.axes)[way])

    def scaled(self, stored: NDArray[Any]) -> Floats32:
        """Values of stored numbers."""
        values: Floats32 = stored.astype(np.float32)
        if (self.slope, self.offset) != (1.0, 0.0):
            values = values * np.float32(self.slope) + np.float32(self.offset)
        return values


def _read_header(path: Path, stream: IO[bytes]) -> _Stored:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header
    from nibabel.orientations import io_orientation

    head = stream.read(8)
    stream.seek(0)
    kind: Callable[..., Any] = Nifti2Header if head[4:7] == b"n+2" else Nifti1Header
    # Checked by ourselves: nibabel would mend a size of 0 into one of 1 mm.
    header = kind.from_fileobj(stream, check=False)  # type: ignore[attr-defined]
    shape = tuple(map(int, header.get_data_shape()))
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        what = "a series of volumes: save one of them" if len(shape) > 3 else "not a volume"
        raise UnsupportedFormat(f"{path}: {len(shape)} axes {shape}, {what}")
    if min(shape) < 1:
        raise UnreadableImage(f"{path}: a volume of {shape} voxels")
    dtype = np.dtype(header.get_data_dtype())
    if dtype.kind not in "iuf":
        raise UnsupportedFormat(f"{path}: voxels of type {dtype} are not readable, only grey ones")
    stated = bool(header["sform_code"] > 0 or (header["pixdim"][1:4] != 0).all())
    if not stated:
        header["pixdim"][1:4] = 1
    affine = header.get_best_affine()
    order = io_orientation(affine)  # type: ignore[no-untyped-call]
    if not np.isfinite(order).all():
        raise UnreadableImage(f"{path}: its affine does not say which way the axes run")
    slope, offset = header.get_slope_inter()
    axes = tuple(int(np.flatnonzero(order[:, 0] == a)[0]) for a in (2, 1, 0))
    # To the right and to the front are the directions that nibabel counts as positive.
    turned = tuple(order[axis, 1] != way for axis, way in zip(axes, (1, -1, -1), strict=True))
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(0)) * _UM[header.get_xyzt_units()[0]]
    known = stated and bool(((spacing >= _BELIEVED_UM[0]) & (spacing <= _BELIEVED_UM[1])).all())
    return _Stored(
        shape,
        dtype,
        int(header.get_data_offset()),
        1.0 if slope is None else float(slope),
        0.0 if offset is None else float(offset),
        axes,
        turned,
        tuple(float(spacing[axis]) for axis in axes) if known else None,
    )
