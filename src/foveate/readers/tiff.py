"""Read TIFF pyramids, tiled or in strips, OME-TIFF and Aperio slides from their stored blocks.

tifffile parses where the blocks lie; `_blocks` reads and decodes them.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
from numpy.typing import NDArray

from foveate.errors import UnsupportedFormat
from foveate.formats.appended import TIFF_MARKS
from foveate.formats.grey_scale import parse_limits
from foveate.formats.measured import MeasuredValues
from foveate.formats.orientation import Orientation
from foveate.formats.tiff_blocks import plan_blocks, stored_shape, visible_shape
from foveate.formats.tiff_codec import BLACK_IS_ZERO
from foveate.formats.tiff_index import TiffIndex, read_index
from foveate.formats.tiff_levels import choose_levels
from foveate.formats.tiff_spacing import ome_pixels, stated_planes, stated_spacing
from foveate.images.resample import Pixels, white_value
from foveate.messages.warn import warn_once
from foveate.readers._blocks import AbstractBlockReader

_LARGE_PX = 50_000_000
_SAMPLED, _SAMPLED_BLOCKS = 1 << 20, 64
"""About how many measured values, from how many blocks, decide what is black and white."""
_VENDORS = (None, "aperio", "generic-tiff")


@final
class TiffReader(AbstractBlockReader):
    """A TIFF: grey, RGB or palette, with or without alpha; black and white; measured values.

    Samples have 8 or 16 unsigned bits, or 1 bit, which is read as 0 or 255. Measured values
    (floating-point numbers, numbers with a sign or of 32 bits) become greys of 16 bits. What is
    black and white is chosen for each file from a sample of its values as for a volume of NIfTI
    (`formats.grey_scale`), or is the same for all files by `limits`; the log says so. Pixels that
    are no finite numbers are black; the log says so, and they are counted.

    A file is a slide if it is a pyramid, is tiled, states a plausible pixel size, or has more than
    50 million pixels; else it is a picture. It is turned upright by its tag Orientation.

    Blocks that a level lacks are computed from the next finer one. Those that no level has show the
    background: the border of the coarsest level or, where that is not stored either, paper. Paper
    is black in grey files without alpha whose 0 is black, else white. Transparent pixels show
    paper.

    Args:
        path: the file.
        limits: the measured values that are black and white, such as ``0,1``; the option does not
            change files of 8 or 16 bits.

    Raises:
        OptionError: `limits` are no two rising numbers.
        UnsupportedFormat: the file is a stack of planes, or is coded in a way that is not read.
        UnreadableImage: the file is damaged.
    """

    families: ClassVar[str] = "TIFF and OME-TIFF"
    priority: ClassVar[int] = 20

    def __init__(self, path: Path, *, limits: str | None = None) -> None:
        super().__init__(path)
        import tifffile

        scale = None if limits is None else parse_limits(limits, "reader.tiff.limits")
        self._measured = MeasuredValues(path, self.count, "pixel", scale)
        index = read_index(path)
        full, coding = index.levels[0].shape, index.levels[0].coding
        ome = ome_pixels(index.ome_xml, full)
        planes = stated_planes(index.description, ome, coding.samples)
        if planes > 1:
            raise UnsupportedFormat(f"{path}: a stack of {planes} planes; save one flat picture")
        self.scaled = coding.is_measured
        dtype = np.dtype(np.uint16) if self.scaled else coding.dtype.newbyteorder("=")
        self.channels, self.dtype = coding.channels, dtype
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

    def _convert_measured(self, samples: Pixels) -> Pixels:
        if self._measured.scale is None:
            self._measured.choose(self._sample_values())
            warn_once(
                logging.INFO,
                "measured",
                self.path,
                "holds measured values, and its own black and white are chosen for it; "
                "--reader.tiff.limits LOW,HIGH gives all images the same",
            )
        return self._measured.convert(samples)

    def _sample_values(self) -> NDArray[Any]:
        """Return up to about a million values of level 0, ``(n,)``, from blocks all over it."""
        grid = self._grids[0]
        stored = np.flatnonzero(grid.stored.ravel())
        n = min(_SAMPLED_BLOCKS, len(stored))
        chosen = np.random.default_rng(0).choice(stored, n, replace=False)  # a grid could alias
        corners = np.stack(np.divmod(chosen, grid.grid[1]), axis=1) * grid.block
        blocks = [block for block, _ in plan_blocks(grid, corners.astype(np.int64), (1, 1))]
        values = []
        for block, content in self._read_bytes(blocks):
            shape, shown = stored_shape(grid, block), visible_shape(grid, block)
            samples = self._decode_samples(grid, content, shape, shown)[: shown[0], : shown[1]]
            step = math.ceil(math.sqrt(samples.size * n / _SAMPLED))
            values.append(samples[::step, ::step].ravel())
        return np.concatenate(values) if values else np.empty(0)
