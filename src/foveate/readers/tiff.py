"""Read TIFF pyramids, tiled or in strips, OME-TIFF and Aperio slides from their stored blocks.

tifffile parses where the blocks lie; `_blocks` reads and decodes them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, final

import numpy as np

from foveate.errors import UnsupportedFormat
from foveate.formats.appended import TIFF_MARKS
from foveate.formats.orientation import Orientation
from foveate.formats.tiff_codec import BLACK_IS_ZERO
from foveate.formats.tiff_index import TiffIndex, read_index
from foveate.formats.tiff_levels import choose_levels
from foveate.formats.tiff_spacing import ome_pixels, stated_planes, stated_spacing
from foveate.images.resample import white_value
from foveate.readers._blocks import AbstractBlockReader

_LARGE_PX = 50_000_000
_VENDORS = (None, "aperio", "generic-tiff")


@final
class TiffReader(AbstractBlockReader):
    """A TIFF with 8 or 16 unsigned bits a sample: grey, RGB, palette, with or without alpha.

    A file is a slide if it is a pyramid, is tiled, states a plausible pixel size, or has more than
    50 million pixels; else it is a picture. It is turned upright by its tag Orientation.

    Blocks that a level lacks are computed from the next finer one. Those that no level has show the
    background: the border of the coarsest level or, where that is not stored either, paper. Paper
    is black in grey files without alpha whose 0 is black, else white. Transparent pixels show
    paper.

    Raises:
        UnsupportedFormat: the file is a stack of planes, or is coded in a way that is not read.
        UnreadableImage: the file is damaged.
    """

    families: ClassVar[str] = "TIFF and OME-TIFF"
    priority: ClassVar[int] = 20

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        import tifffile

        index = read_index(path)
        full, coding = index.levels[0].shape, index.levels[0].coding
        ome = ome_pixels(index.ome_xml, full)
        planes = stated_planes(index.description, ome, coding.samples)
        if planes > 1:
            raise UnsupportedFormat(f"{path}: a stack of {planes} planes; save one flat picture")
        self.channels, self.dtype = coding.channels, coding.dtype.newbyteorder("=")
        self._coding = coding
        dark = coding.photometric == BLACK_IS_ZERO and not coding.alpha
        self._paper = np.full(self.channels, 0 if dark else white_value(self.dtype), self.dtype)
        self._states_paper = True  # until the levels are known
        self.reader = f"tifffile {tifffile.__version__}"
        self._open_blocks([path], index.levels)
        with contextlib.ExitStack() as opened:
            opened.callback(self.close)
            self._choose_levels(index)
            spacing = stated_spacing(index.description, ome, index.resolution, index.unit)
            opened.pop_all()
        self.spacing_um = None if spacing is None else self._orientation.swap_axes(spacing)
        large = len(self._grids) > 1 or self._grids[0].tiled or self.n_pixels > _LARGE_PX
        self.kind = "slide" if large or self.spacing_um is not None else "picture"

    def _choose_levels(self, index: TiffIndex) -> None:
        """Set the levels and the orientation, from all pages that may be levels."""
        grids = choose_levels(index, self._read_stored)
        self._orientation = Orientation.from_tag(index.orientation)
        self._set_levels(grids)
        self._states_paper = self._coding.alpha or grids[-1].has_absent

    @classmethod
    def recognises(cls, path: Path, head: bytes) -> bool:
        """Return whether a file has TIFF's mark and is neither DICOM nor another vendor's slide.

        Args:
            path: the file.
            head: its first `HEAD_BYTES` bytes.
        """
        if head[:4] not in TIFF_MARKS or head[128:132] == b"DICM":
            return False
        import openslide

        return openslide.OpenSlide.detect_format(path) in _VENDORS

    def _stated_background(self) -> Sequence[float] | None:
        return [float(v) for v in self._paper.tolist()] if self._states_paper else None
