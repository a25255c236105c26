"""Read one picture or volume in a file of NumPy (.npy, .npz)."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
from numpy.typing import NDArray

from foveate.errors import UnreadableImage, UnsupportedFormat
from foveate.formats.array_file import NPY, is_archive, read_facts, read_values
from foveate.formats.grey_scale import parse_limits, sampling_step
from foveate.formats.measured import MeasuredValues
from foveate.images.level import Level
from foveate.images.resample import Pixels
from foveate.readers.base import AbstractReader

_MIN_SIDE = 5
"""An array whose last axis is three, and whose others have at least this length, is a picture."""
_CHANNELS = (3, 4)
"""A first or last axis of this length may be that of colours."""


@final
class ArrayReader(AbstractReader):
    """One picture or volume as an array of numbers, never as a pickle.

    Arrays of two axes are grey pictures ``(y, x)``; of three, pictures ``(y, x, 3)`` in RGB if the
    last axis has length three, else volumes ``(z, y, x)``, whose first and last axes must not have
    a length of colours, 3 or 4. A further axis of length one at the end is left out. Pictures of 8
    and 16 unsigned bits are read as they are, truth values as 0 and 255. Volumes and all other
    numbers become greys of 16 bits on a scale as in NIfTI (`formats.grey_scale`), or on that of
    `limits`. Arrays state no spacing.

    A .npy is read region by region; the array of a .npz is unpacked once, on first use.

    Args:
        path: the file.
        name: the array that is read, in a file of several.
        limits: the values that are black and white, such as ``0,1``; the option does not change
            pictures of 8 or 16 unsigned bits.

    Raises:
        UnsupportedFormat: a data set, several arrays, objects, or axes that are no image.
        UnreadableImage: the file is damaged.
        OptionError: an option does not fit.
    """

    families: ClassVar[str] = "NumPy (.npy, .npz)"
    priority: ClassVar[int] = 0

    def __init__(self, path: Path, *, name: str | None = None, limits: str | None = None) -> None:
        super().__init__(path)
        scale = None if limits is None else parse_limits(limits, "reader.array.limits")
        self._facts = read_facts(path, name)
        shape = self._facts.shape
        if len(shape) > 2 and shape[-1] == 1:
            shape = shape[:-1]
        in_colour = len(shape) == 3 and shape[2] == 3 and min(shape[:2]) >= _MIN_SIDE
        self.channels, space = (3, shape[:2]) if in_colour else (1, shape)
        if len(space) not in (2, 3) or min(space) < 1:
            raise UnsupportedFormat(
                f"{path}: an array of shape {self._facts.shape}; save a picture (y, x) or "
                "(y, x, 3), or a volume (z, y, x)"
            )
        if len(space) == 3 and (space[0] in _CHANNELS or space[-1] in _CHANNELS):
            raise UnsupportedFormat(
                f"{path}: an array of shape {self._facts.shape} may be a picture with its channels "
                "first or with transparency, or a volume of few slices; save a picture as "
                "(y, x, 3), and a volume of more than 4 slices as (z, y, x)"
            )
        self.kind = "volume" if len(space) == 3 else "picture"
        self._measured = MeasuredValues(
            path, self.count, "voxel" if self.kind == "volume" else "pixel", scale
        )
        dtype = self._facts.dtype
        self._is_plain = self.kind == "picture" and dtype.kind in "bu" and dtype.itemsize <= 2
        self.scaled = not self._is_plain
        self.dtype = np.dtype(np.uint8 if self._is_plain and dtype.itemsize == 1 else np.uint16)
        self.levels = (Level(space, (1.0,) * len(space)),)
        self.spacing_um = None
        self.reader = f"numpy {np.__version__}"
        self._lock = threading.Lock()
        self._stored: NDArray[Any] | None = None
        self._closed = False

    @classmethod
    def recognises(cls, path: Path, head: bytes) -> bool:
        """Return whether a file has the mark of NumPy, or is an archive of such files.

        Args:
            path: the file.
            head: its first `HEAD_BYTES` bytes.
        """
        return head.startswith(NPY) or is_archive(path, head)

    def _read_level(
        self, level: int, origin_px: tuple[int, ...], size_px: tuple[int, ...]
    ) -> Pixels:
        values = self._values()
        region = values[tuple(slice(o, o + n) for o, n in zip(origin_px, size_px, strict=True))]
        self.count.add(decoded_px=region.size // self.channels)
        if self._is_plain:
            native = np.array(region, self.dtype)
            return native * 255 if region.dtype.kind == "b" else native
        return self._measured.convert(np.asarray(region))

    def _values(self) -> NDArray[Any]:
        """Return the stored numbers ``(*space, c)``, and choose their scale, on first use."""
        with self._lock:
            if self._closed:
                raise UnreadableImage(f"{self.path}: the image is closed; open it again")
            if self._stored is None:
                shape = (*self.shape, self.channels)
                self._stored = read_values(self.path, self._facts).reshape(shape)
                if not self._is_plain and self._measured.scale is None:
                    step = sampling_step(self.shape)
                    self._measured.choose(self._stored[(slice(None, None, step),) * self.ndim])
            return self._stored

    def close(self) -> None:
        """Release the numbers. Closing twice is harmless."""
        with self._lock:
            self._stored, self._closed = None, True
