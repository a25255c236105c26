"""Read volumes in NIfTI files, packed with gzip or not; nibabel parses their headers."""

from __future__ import annotations

import gzip
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
from foveate.formats.grey_scale import sampling_step
from foveate.formats.measured import MeasuredValues
from foveate.formats.nifti_header import read_header
from foveate.images.level import Level
from foveate.images.resample import Pixels
from foveate.readers.base import AbstractReader

Values = NDArray[np.float64]

_GZIP = b"\x1f\x8b"
_CACHE_BYTES = 1 << 30
_AT_ONCE_BYTES = 1 << 28
"""Packed volumes up to this size are unpacked at once; larger ones in two passes, by slabs."""
_MAX_SURPLUS_BYTES = 1 << 20
"""Bytes behind the voxels of a packed file that are unpacked to reach its checksum."""
_MAX_PACKING = 200
"""The largest ratio of voxels to packed bytes beyond a gigabyte (gzip reaches 1032)."""

_cache: ByteCache[Pixels] = ByteCache(_CACHE_BYTES)
"""Decoded volumes of all open files, by a reader's key."""


@final
class NiftiReader(AbstractReader):
    """One volume, axes ``z, y, x``, grey, 16 bits.

    Axes run as in ITK and DICOM, whatever their order in the file: x to the left of the patient, y
    to the back, z to the head. The values of black and white follow from about a million voxels of
    each volume (`formats.grey_scale`):

    - CT in Hounsfield units has one scale for all files, from -1024 to 3071, half of it for soft
      tissue (-160 to 240), so that a value means the same everywhere. CT is recognised by its
      values: air or lung, and soft tissue around 0. The log says so. Crops without air are not
      recognised.
    - Masks and label maps, of at most 32 different values: the smallest is black, the largest
      white.
    - All others (MR has no unit): the 0.5th percentile is black, the 99.5th white, and values
      beyond are clipped. A value that fills half of the volume or more is background: percentiles
      are those of the other voxels, and the scale is widened to include the background.

    Voxels that are no finite numbers are black; the log says so, and they are counted.

    Where the sform is empty the qform is used. Where the sform and the voxel size in ``pixdim``
    disagree the sform is used, and the log says so.

    Volumes are decoded once and cached, up to a gigabyte of them; larger ones are read region by
    region, for which the file must not be packed.

    Raises:
        UnreadableImage: the file is damaged or truncated.
        ImageTooLarge: the file is packed, and its voxels are too many to be unpacked in memory.
    """

    families: ClassVar[str] = "volumes in NIfTI (.nii, .nii.gz)"
    priority: ClassVar[int] = 5

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        import nibabel

        with path.open("rb") as file:
            self._packed = file.read(2) == _GZIP
        # Damaged headers hold numbers that overflow; they are refused by their result.
        with self._stream() as stream, np.errstate(all="ignore"):
            self._array = read_header(path, stream)
        shape = self._array.order.sort(self._array.shape)
        n_bytes, end = path.stat().st_size, self._array.end
        if not self._packed and n_bytes < end:
            raise UnreadableImage(
                f"{path}: truncated: its header promises {end} bytes, there are {n_bytes}{AGAIN}"
            )
        self._small = 2 * math.prod(shape) <= _CACHE_BYTES
        if self._packed and not (self._small and end <= max(_CACHE_BYTES, _MAX_PACKING * n_bytes)):
            raise ImageTooLarge(
                f"{path}: {end / 1e9:.1f} GB of voxels {shape} are too much to be unpacked in "
                "memory; unpack the file (gunzip), then it is read region by region"
            )
        self.kind, self.dtype, self.channels = "volume", np.dtype(np.uint16), 1
        self.scaled = True
        self.levels = (Level(shape, (1.0,) * 3),)
        self.spacing_um, self.disbelieved = self._array.spacing_um, self._array.disbelieved
        self.reader = f"nibabel {nibabel.__version__}"
        self._lock, self._key = threading.Lock(), object()
        self._measured = MeasuredValues(path, self.count, "voxel")
        self._closed = False

    @classmethod
    def recognises(cls, path: Path, head: bytes) -> bool:
        """Return whether a file has the mark of NIfTI 1 or 2 in one file, packed or not.

        Args:
            path: the file.
            head: its first `HEAD_BYTES` bytes.
        """
        if head.startswith(_GZIP):
            try:
                head = zlib.decompressobj(31).decompress(head, 352)
            except zlib.error:
                return False
        return head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0"

    def _stream(self) -> IO[bytes]:
        """Open the unpacked content of the file, by its mark: a packed file may be called .nii."""
        return gzip.open(self.path) if self._packed else self.path.open("rb")  # type: ignore[return-value]

    def _read_level(
        self, level: int, origin_px: tuple[int, ...], size_px: tuple[int, ...]
    ) -> Pixels:
        with self._lock:
            if self._closed:
                raise UnreadableImage(f"{self.path}: the image is closed; open it again")
            volume = self._volume() if self._small else None
        if volume is None:
            stored = self._map_file()
            self._choose_scale(stored)
            pixels = self._grey(self._array.region_values(stored, origin_px, size_px))
            self.count.add(decoded_px=math.prod(size_px))
            return pixels
        return volume[
            tuple(slice(o, o + n) for o, n in zip(origin_px, size_px, strict=True))
        ].copy()

    def _volume(self) -> Pixels:
        """Return the complete volume ``(z, y, x, 1)``, decoded if it is not cached."""
        volume = _cache.get((self._key,))
        if volume is None:
            try:
                volume = self._decode()
            except MemoryError as error:
                raise ImageTooLarge(
                    f"{self.path}: {self.shape} voxels need more memory than there is; give the "
                    "computer more, or cut the volume to what matters"
                ) from error
            self.count.add(decoded_px=self.n_pixels)
            _cache.put((self._key,), volume, volume.nbytes)
        return volume

    def _decode(self) -> Pixels:
        """Decode the complete volume, ``(z, y, x, 1)``."""
        if self._packed and self._array.end > _AT_ONCE_BYTES:
            return self._decode_slabs()
        stored = self._unpack() if self._packed else self._map_file()
        self._choose_scale(stored)
        volume = np.empty((*self.shape, 1), np.uint16)
        for z in range(self.shape[0]):
            place = (z, 0, 0), (1, *self.shape[1:])
            volume[z : z + 1] = self._grey(self._array.region_values(stored, *place))
        return volume

    def _decode_slabs(self) -> Pixels:
        """Decode the volume, ``(z, y, x, 1)``, in two passes over the file.

        It takes little more memory than the result.
        """
        array = self._array
        if self._measured.scale is None:
            step = sampling_step(array.shape)
            sample = [
                slab[::step, ::step, (-at) % step :: step].ravel() for at, slab in self._slabs()
            ]
            self._choose_scale(np.concatenate(sample))
        volume = np.empty(array.shape, np.uint16)
        for at, slab in self._slabs():
            volume[..., at : at + slab.shape[-1]] = self._grey(array.scale(slab))[..., 0]
        return array.order.reorder(volume)[..., None]

    def _slabs(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield slabs of stored numbers along the last axis of the file, with their first index."""
        array = self._array
        plane = math.prod(array.shape[:2])
        many = max(1, _AT_ONCE_BYTES // 32 // (plane * array.dtype.itemsize))
        with self._stream() as stream:
            self._read_exactly(stream, array.begin_byte)
            for at in range(0, array.shape[2], many):
                n = min(many, array.shape[2] - at)
                content = self._read_exactly(stream, n * plane * array.dtype.itemsize)
                slab = np.frombuffer(content, array.dtype)
                yield at, slab.reshape((*array.shape[:2], n), order="F")
            self._read_exactly(stream, 0)

    def _read_exactly(self, stream: IO[bytes], n_bytes: int) -> bytes:
        """Read a number of bytes of a packed file, or with 0 the rest, to check its checksum."""
        try:
            content = stream.read(n_bytes or _MAX_SURPLUS_BYTES)
        except (OSError, EOFError, zlib.error) as error:
            raise UnreadableImage(f"{self.path}: cannot be unpacked{AGAIN}") from error
        if len(content) < n_bytes:
            raise UnreadableImage(f"{self.path}: truncated inside its packed voxels{AGAIN}")
        return content

    def _map_file(self) -> NDArray[Any]:
        """Map the stored numbers of an unpacked file into memory, with the axes of the file."""
        array = self._array
        return np.memmap(self.path, array.dtype, "r", array.begin_byte, array.shape, "F")

    def _unpack(self) -> NDArray[Any]:
        """Read the stored numbers of a packed file, with the axes of the file."""
        array = self._array
        with self._stream() as stream:
            content = self._read_exactly(stream, array.end)
            self._read_exactly(stream, 0)  # gzip checks its checksum only at the end of the file
        n = math.prod(array.shape)
        return np.frombuffer(content, array.dtype, n, array.begin_byte).reshape(
            array.shape, order="F"
        )

    def _grey(self, values: Values) -> Pixels:
        """Convert values to grey, ``(*values.shape, 1)``, on the chosen scale."""
        return self._measured.convert(values)[..., None]

    def _choose_scale(self, stored: NDArray[Any]) -> None:
        """Choose the scale of greys from a sample of the stored numbers (of any shape)."""
        if self._measured.scale is None:
            step = sampling_step(stored.shape)
            sample = stored[(slice(None, None, step),) * stored.ndim]
            self._measured.choose(self._array.scale(sample))

    def close(self) -> None:
        """Release the voxels. Closing twice is harmless."""
        with self._lock:
            self._closed = True
            _cache.drop_where(self._key)
