"""Volumes in NIfTI files, packed with gzip or not; headers by nibabel."""

from __future__ import annotations

import gzip
import logging
import math
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, ClassVar, final

import numpy as np
from numpy.typing import NDArray

from foveate.cache import ByteCache
from foveate.errors import AGAIN, ImageTooLarge, UnreadableImage
from foveate.formats.nifti_header import read_header
from foveate.images.image import Level
from foveate.images.resample import Pixels
from foveate.messages.warn import tell
from foveate.readers.base import AbstractReader

Values = NDArray[np.float64]
_Scale = tuple[tuple[float, ...], tuple[float, ...]]
"""Values, rising, and the grey of each, 0 to 1."""

_GZIP = b"\x1f\x8b"
_PERCENTILES = (0.5, 99.5)
_FEW_VALUES = 32
_GREY_OF_HU = ((-1024.0, -160.0, 240.0, 3071.0), (0.0, 0.25, 0.75, 1.0))
"""Hounsfield units and their grey, straight between them: half the scale is soft tissue."""
_SAMPLED = 1 << 20
_TOP = 65535
_KEPT_BYTES = 1 << 30
_AT_ONCE_BYTES = 1 << 28
"""Packed volumes up to this size are unpacked at once; larger ones twice, slab by slab."""
_MAX_PACKING = 200
"""A gigabyte or more out of less than a 200th of it is no volume (gzip reaches 1032)."""

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

    Where the sform is empty the qform counts. Where the sform and the voxel size in ``pixdim``
    disagree the sform counts, and the log says so.

    Volumes are decoded once and kept, up to a gigabyte of them; larger ones are read region by
    region, for which the file must not be packed.
    """

    priority: ClassVar[int] = 5

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        import nibabel

        with path.open("rb") as file:
            self._packed = file.read(2) == _GZIP
        # Numbers beyond all bounds are judged, not computed with.
        with self._stream() as stream, np.errstate(all="ignore"):
            self._file = read_header(path, stream)
        shape = tuple(self._file.shape[axis] for axis in self._file.axes)
        n_bytes, end = path.stat().st_size, self._file.end
        if not self._packed and n_bytes < end:
            raise UnreadableImage(
                f"{path}: truncated: its header promises {end} bytes, there are {n_bytes}{AGAIN}"
            )
        self._small = 2 * math.prod(shape) <= _KEPT_BYTES
        if self._packed and not (self._small and end <= max(_KEPT_BYTES, _MAX_PACKING * n_bytes)):
            raise ImageTooLarge(
                f"{path}: {end / 1e9:.1f} GB of voxels {shape} are too much to be unpacked in "
                "memory; unpack the file (gunzip), then it is read region by region"
            )
        self.kind, self.dtype, self.channels = "volume", np.dtype(np.uint16), 1
        self.levels = (Level(shape, (1.0,) * 3),)
        self.spacing_um = self._file.spacing_um
        self.reader = f"nibabel {nibabel.__version__}"
        self._lock, self._key = threading.Lock(), object()
        self._scale: _Scale | None = None
        self._closed = False

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
            stored = self._mapped()
            self._scale = self._scale or self._settled(stored)
            pixels = self._grey(self._file.laid(stored, origin, size))
            self.count.add(decoded_px=math.prod(size))
            return pixels
        return whole[tuple(slice(o, o + n) for o, n in zip(origin, size, strict=True))].copy()

    def _whole(self) -> Pixels:
        """The volume, decoded if it is not kept."""
        found = _kept.get((self._key,))
        if found is None:
            try:
                found = self._decoded()
            except MemoryError as error:
                raise ImageTooLarge(
                    f"{self.path}: {self.shape} voxels need more memory than there is; give the "
                    "computer more, or cut the volume to what matters"
                ) from error
            self.count.add(decoded_px=self.size_px)
            _kept.put((self._key,), found, found.nbytes)
        return found

    def _decoded(self) -> Pixels:
        if self._packed and self._file.end > _AT_ONCE_BYTES:
            return self._streamed()
        stored = self._unpacked() if self._packed else self._mapped()
        self._scale = self._scale or self._settled(stored)
        found = np.empty((*self.shape, 1), np.uint16)
        for z in range(self.shape[0]):
            place = (z, 0, 0), (1, *self.shape[1:])
            found[z : z + 1] = self._grey(self._file.laid(stored, *place))
        return found

    def _streamed(self) -> Pixels:
        """The volume in two passes over the file, in little more memory than it needs itself."""
        file = self._file
        if self._scale is None:
            step = _stride(math.prod(file.shape))
            sample = [
                slab[::step, ::step, (-at) % step :: step].ravel() for at, slab in self._slabs()
            ]
            self._scale = self._settled(np.concatenate(sample))
        found = np.empty(file.shape, np.uint16)
        for at, slab in self._slabs():
            found[..., at : at + slab.shape[-1]] = self._grey(file.scaled(slab))[..., 0]
        return file.turned_round(found)[..., None]

    def _slabs(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """Stored values along the last axis of the file: the first index, and a slab."""
        file = self._file
        plane = math.prod(file.shape[:2])
        many = max(1, _AT_ONCE_BYTES // 32 // (plane * file.dtype.itemsize))
        with self._stream() as stream:
            self._taken(stream, file.begin)
            for at in range(0, file.shape[2], many):
                n = min(many, file.shape[2] - at)
                content = self._taken(stream, n * plane * file.dtype.itemsize)
                slab = np.frombuffer(content, file.dtype)
                yield at, slab.reshape((*file.shape[:2], n), order="F")
            self._taken(stream, 0)

    def _taken(self, stream: IO[bytes], n_bytes: int) -> bytes:
        """Exactly so many bytes of a packed file; of 0 the rest is looked at, with its checksum."""
        try:
            content = stream.read(n_bytes or 1)
        except (OSError, EOFError, zlib.error) as error:
            raise UnreadableImage(f"{self.path}: cannot be unpacked{AGAIN}") from error
        if len(content) < n_bytes:
            raise UnreadableImage(f"{self.path}: truncated inside its packed voxels{AGAIN}")
        return content

    def _mapped(self) -> NDArray[Any]:
        """Stored values, axes as in the file."""
        file = self._file
        return np.memmap(self.path, file.dtype, "r", file.begin, file.shape, "F")

    def _unpacked(self) -> NDArray[Any]:
        file = self._file
        with self._stream() as stream:
            content = self._taken(stream, file.end)
            self._taken(stream, 0)  # gzip compares its checksum at the end of the file alone
        n = math.prod(file.shape)
        return np.frombuffer(content, file.dtype, n, file.begin).reshape(file.shape, order="F")

    def _grey(self, values: Values) -> Pixels:
        """Grey ``(*values.shape, 1)`` of values, on the settled scale."""
        assert self._scale is not None
        known = np.isfinite(values)
        if not known.all():
            text = "voxels that are no finite numbers are read as black"
            tell(logging.WARNING, "finite", self.path, text)
            values = np.where(known, values, self._scale[0][0])
        # Divided by four, differences of the largest doubles are finite; nothing is rounded.
        share = np.interp(values / 4, np.asarray(self._scale[0]) / 4, self._scale[1])
        return np.asarray(np.rint(share * _TOP).astype(np.uint16)[..., None])

    def _settled(self, stored: NDArray[Any]) -> _Scale:
        """Which value has which grey, from a sample of the voxels."""
        step = _stride(stored.size)
        values = self._file.scaled(stored[(slice(None, None, step),) * stored.ndim])
        values = values[np.isfinite(values)]
        if not values.size:
            raise UnreadableImage(
                f"{self.path}: holds no finite number; make the volume again from its source"
            )
        if _in_hounsfield_units(values):
            tell(logging.INFO, "ct", self.path, "read as CT, in Hounsfield units")
            return _GREY_OF_HU
        low, high = _window(values)
        # Of an even volume all is black.
        return (low, high if high > low else low + max(1.0, abs(low)) * 1e-6), (0, 1)

    def close(self) -> None:
        """Forget the voxels. Closing twice is harmless."""
        with self._lock:
            self._closed = True
            _kept.drop_where(self._key)


def _stride(n: int) -> int:
    """Every how many voxels along each axis about a million are seen."""
    return max(1, math.ceil(math.cbrt(n / _SAMPLED)))


def _in_hounsfield_units(values: Values) -> bool:
    """Whether there is air or lung, soft tissue, and little else.

    What is below air pads round fields of view and says nothing.
    """
    inside = values[values >= -1100]
    airy, soft = (inside <= -500).sum(), (np.abs(inside) <= 150).sum()
    return bool(min(airy, soft) >= 0.01 * values.size and airy + soft >= 0.6 * inside.size)


def _window(values: Values) -> tuple[float, float]:
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
