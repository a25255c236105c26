"""Read files of features: HDF5 files of TRIDENT, CLAM, STAMP and foveate itself.

Such a file stands in for an image. It holds the vectors that an encoder has computed of the patches
of the image, and their places, but no pixels: whoever reads pixels gets a plain background.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, final

import numpy as np
from numpy.typing import NDArray

from foveate.cache import ByteCache
from foveate.errors import UnreadableImage
from foveate.formats.feature_file import FeatureFile, read_feature_file
from foveate.formats.hdf5 import MARK, open_hdf5
from foveate.images.level import Level
from foveate.images.resample import Pixels
from foveate.images.stored import Vectors
from foveate.readers.base import AbstractReader

_BACKGROUND = 255
_cache: ByteCache[Vectors] = ByteCache(1 << 30)


@final
class FeaturesReader(AbstractReader):
    """A file of features, as an image of background with stored patches.

    Level-0 pixels are those of the slide that the features were made from. Where the file counts in
    micrometres and states no size of a pixel (STAMP), they are the pixels of its patches.

    Raises:
        UnsupportedFormat: an HDF5 file of other data.
        UnreadableImage: the file is damaged or incomplete, or contradicts itself.
    """

    families: ClassVar[str] = "files of features in HDF5 (.h5)"
    priority: ClassVar[int] = 5

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        import h5py

        self._lock = threading.Lock()
        with contextlib.ExitStack() as opened:
            self._file = opened.enter_context(open_hdf5(path))
            content = read_feature_file(self._file, path)
            self._describe(content)
            opened.pop_all()
        self.kind, self.channels, self.dtype = "features", 3, np.dtype(np.uint8)
        self.reader = f"h5py {h5py.__version__}"

    def _describe(self, content: FeatureFile) -> None:
        """Set level, spacing and patches.

        Raises:
            UnreadableImage: patches lie outside the image that the file states.
        """
        self.spacing_um = content.spacing_um
        state = self.path.stat()
        self._key = (str(self.path.absolute()), state.st_size, state.st_mtime_ns)
        corner, side = content.patches.corner_px0, content.patches.side_px0
        self._n_patches, self._vectors = len(corner), content.patches.read
        shape = content.shape_px0
        if shape is None:
            shape = (math.ceil(corner[:, 0].max() + side), math.ceil(corner[:, 1].max() + side))
        elif (corner >= shape).any():
            place = corner[(corner >= shape).any(1).argmax()]
            raise UnreadableImage(
                f"{self.path}: a patch lies at x {place[1]:g}, y {place[0]:g}, outside its image "
                f"of {shape[1]} x {shape[0]} pixels; make the features again"
            )
        self.levels = (Level(shape, (1.0, 1.0)),)
        self.stored = replace(content.patches, read=self._read_vectors)

    @classmethod
    def recognises(cls, path: Path, head: bytes) -> bool:
        """Return whether a file has the mark of HDF5.

        Args:
            path: the file.
            head: its first `HEAD_BYTES` bytes.
        """
        return head.startswith(MARK)

    def _read_vectors(self, rows: NDArray[np.int64]) -> Vectors:
        """Read the vectors of rows with these indices, ``(m, dim)``.

        Whoever asks for all of them will ask again in the next epoch, so they are kept.
        """
        with self._lock:
            if not self._file:
                raise UnreadableImage(f"{self.path}: the file is closed; open it again")
            vectors = _cache.get(self._key)
            if vectors is None and len(rows) < self._n_patches:
                return self._vectors(rows)
            if vectors is None:
                vectors = self._vectors(np.arange(self._n_patches))
                _cache.put(self._key, vectors, vectors.nbytes)
            return vectors[rows]

    def _read_level(
        self, level: int, origin_px: tuple[int, ...], size_px: tuple[int, ...]
    ) -> Pixels:
        return np.full((*size_px, self.channels), _BACKGROUND, self.dtype)

    def _stated_background(self) -> Sequence[float]:
        return (_BACKGROUND,) * self.channels

    def _stored_share(
        self, level: int, origin_px: tuple[int, ...], size_px: tuple[int, ...]
    ) -> float:
        return 0.0

    def close(self) -> None:
        """Close the file. Closing twice is harmless."""
        with self._lock:
            self._file.close()
