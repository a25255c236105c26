"""Read slides in DICOM (VL Whole Slide Microscopy) from their stored frames.

pydicom parses the headers. The levels lie in files of their own, which are found beside each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, final

import numpy as np

from foveate.formats.dicom_slide_folder import is_slide_file, is_slide_folder
from foveate.formats.dicom_slide_levels import read_slide
from foveate.formats.tiff_codec import BLACK_IS_ZERO
from foveate.images.resample import white_value
from foveate.readers._blocks import AbstractBlockReader


@final
class DicomSlideReader(AbstractBlockReader):
    """A slide in DICOM: RGB or grey, 8 or 16 unsigned bits, as JPEG, JPEG 2000 or uncompressed.

    The path is a folder that holds one slide, or any file of a level; files of the same series, or
    of the same place on the same glass, belong to it. Labels, overviews and thumbnails are left
    out. A level may be cut into several files (a concatenation), and its frames may be all tiles
    (TILED_FULL) or state their places (TILED_SPARSE).

    The marks inside a JPEG decide about its colours, not the header, which is often wrong. Tiles
    that a level lacks are read from the next finer level; those that none has show the
    background: the border of the coarsest level or, where that lacks tiles too, paper. Paper is
    black in MONOCHROME2, else white, also in MONOCHROME1, which is turned over.

    Raises:
        UnsupportedFormat: the file shows a label or overview, the slide is a stack of focal planes
            or channels, or its coding is not read.
        UnreadableImage: a file is damaged, or a part of the slide is missing.
    """

    families: ClassVar[str] = "slides in DICOM"
    priority: ClassVar[int] = 30
    takes_folders: ClassVar[bool] = True

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        import pydicom

        index = read_slide(path)
        coding = index.levels[0].coding
        self.kind, self.spacing_um = "slide", index.spacing_um
        self.channels, self.dtype = coding.channels, coding.dtype.newbyteorder("=")
        dark = coding.photometric == BLACK_IS_ZERO
        self._paper = np.full(self.channels, 0 if dark else white_value(self.dtype), self.dtype)
        self.reader = f"pydicom {pydicom.__version__}"
        self._open_blocks(index.paths, index.levels)

    @classmethod
    def recognises(cls, path: Path, head: bytes) -> bool:
        """Return whether a file is of a slide in DICOM, or one such slide is all of a folder.

        Args:
            path: the file or folder.
            head: the first `HEAD_BYTES` bytes of a file.
        """
        return is_slide_file(path, head) if head else is_slide_folder(path)

    def _stated_background(self) -> Sequence[float] | None:
        has_absent = self._grids[-1].has_absent
        return [float(v) for v in self._paper.tolist()] if has_absent else None
