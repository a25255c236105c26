"""Read DICOM of radiology: series of CT and MR slices as volumes, X-rays and others as pictures."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np

from foveate.errors import OptionError, UnreadableImage, UnsupportedFormat
from foveate.formats.dicom_header import SLIDE, is_dicom, read_sop_class
from foveate.formats.dicom_picture import DicomPicture
from foveate.formats.dicom_series import (
    SliceFacts,
    choose_series,
    find_siblings,
    group_series,
    read_folder,
    read_slice,
)
from foveate.formats.dicom_stack import stack_slices
from foveate.formats.dicom_values import Scale, parse_window
from foveate.formats.dicom_volume import DicomVolume
from foveate.images.level import Level
from foveate.images.resample import Pixels
from foveate.messages.warn import warn_once
from foveate.readers.base import AbstractReader

_TILT_DEG = 0.5
"""Smaller angles of the gantry are rounding errors of positions."""


@final
class DicomReader(AbstractReader):
    """A series of slices as one volume, axes ``z, y, x``, or a single picture.

    A series is given by its folder, or by the path of any of its slices; its slices lie in one
    folder. They are ordered by position, not by name or number. The axes run as in the reader
    `nifti`, so that a series and its NIfTI twin are the same array. The distance of slices is that
    of their positions along their normal, not their thickness:

    - A slice may lie up to a tenth of this distance from its even place; a series with a larger
      gap is refused, since what lies in the gap is not known.
    - Slices at the same place are refused, unless they have the same values; then one is used.
    - Where slices are displaced within their plane, as by a tilted gantry, they are shifted
      upright by linear interpolation, and what they do not cover is black.

    Values are rescaled as each file states. How they become greys, `scale`, goes by the kind of
    image:

    - CT: Hounsfield units on one scale for all files, that of `formats.grey_scale`; or through
      `window`, from black to white.
    - MR, PET: the 0.5th percentile of the volume is black, the 99.5th white, as in NIfTI.
    - X-ray and other pictures: by the table or first window in the file (VOI LUT); where there is
      none, from the smallest to the largest value. Grey of 8 bits without them stays as it is.

    Bright stays bright: MONOCHROME1 is inverted after all that, except in Hounsfield units. Padding
    is black. Colours become RGB of 8 bits. The spacing of X-rays is that in the patient, or that of
    the detector divided by the stated magnification.

    Args:
        path: a folder that holds a series, any slice of it, or a picture.
        series: number, description or SeriesInstanceUID of the series, for folders of several.
        window: window of CT: ``lung``, ``bone``, ``soft``, ``brain``, or centre and width in
            Hounsfield units, such as ``40,400``; not with a scale but ``hounsfield``.
        scale: how values become greys: ``auto`` by the kind of image, ``hounsfield``,
            ``percentiles``, ``lut`` (table or window of the file), or ``range``.
        stack: whether a slice stands for its series; else each file is a picture.

    Raises:
        UnsupportedFormat: no pixels, several frames, a coding that is not read, several series, or
            slices that make no even volume.
        UnreadableImage: a file is damaged.
        OptionError: an option does not fit the image.
    """

    families: ClassVar[str] = "DICOM of radiology (series of CT and MR, X-ray and other pictures)"
    priority: ClassVar[int] = 5
    takes_folders: ClassVar[bool] = True

    def __init__(
        self,
        path: Path,
        *,
        series: str | None = None,
        window: str | None = None,
        scale: Scale = "auto",
        stack: bool = True,
    ) -> None:
        super().__init__(path)
        import pydicom

        wanted = None if window is None else parse_window(window)
        slices = _find_slices(path, series, stack)
        self._picture: DicomPicture | None = None
        self._volume: DicomVolume | None = None
        if len(slices) > 1:
            stacked = stack_slices(slices, path)
            if stacked.is_sheared and stacked.tilt_deg > _TILT_DEG:
                tilt = f"{stacked.tilt_deg:.1f} degrees"
                text = f"its slices are tilted by {tilt} and shifted upright"
                warn_once(logging.INFO, "tilt", path, text)
            self._volume = DicomVolume(stacked, scale, wanted, self.count)
            spacing = stacked.spacing_um
            if spacing is not None:
                spacing = stacked.order.sort(spacing)
            self.kind, self.channels, self.dtype = "volume", 1, np.dtype(np.uint16)
            shape, self.disbelieved = self._volume.shape, stacked.disbelieved
        else:
            self._picture = DicomPicture(slices[0], scale, wanted)
            self.kind, self.channels = "picture", self._picture.channels
            self.dtype, shape = self._picture.dtype, self._picture.shape
            spacing, self.disbelieved = self._picture.spacing_um, self._picture.disbelieved
        self.levels = (Level(shape, (1.0,) * len(shape)),)
        self.spacing_um = spacing
        self.scaled = True
        self.reader = f"pydicom {pydicom.__version__}"
        self._lock = threading.Lock()
        self._pixels: Pixels | None = None
        self._closed = False

    @classmethod
    def recognises(cls, path: Path, head: bytes) -> bool:
        """Return whether a file is DICOM and no slide, or a folder holds a series of slices.

        A folder of too many files counts as one of files.

        Args:
            path: the file or folder.
            head: its first `HEAD_BYTES` bytes.
        """
        try:
            if head:
                return is_dicom(head) and read_sop_class(path) != SLIDE
            return bool(group_series(read_folder(path).slices))
        except UnreadableImage:  # opening a file says why; a folder of too many is one of files
            return bool(head)

    @classmethod
    def joins_folders(cls, options: Mapping[str, Any]) -> bool:
        """Return whether the slices of a folder are one image: unless `stack` is off.

        Args:
            options: options of the reader that the user set, by name.
        """
        return bool(options.get("stack", True))

    def _read_level(
        self, level: int, origin_px: tuple[int, ...], size_px: tuple[int, ...]
    ) -> Pixels:
        if self._closed:
            raise UnreadableImage(f"{self.path}: the image is closed; open it again")
        if self._volume is not None:
            return self._volume.read(origin_px, size_px)
        region = tuple(slice(o, o + n) for o, n in zip(origin_px, size_px, strict=True))
        return self._whole_picture()[region].copy()

    def _whole_picture(self) -> Pixels:
        """Return all pixels of a picture, ``(y, x, c)``, decoded on first use."""
        assert self._picture is not None
        with self._lock:
            if self._pixels is None:
                self._pixels = self._picture.decode()
                self.count.add(decoded_px=self.n_pixels)
            return self._pixels

    def close(self) -> None:
        """Release the pixels. Closing twice is harmless."""
        with self._lock:
            self._closed, self._pixels = True, None
        if self._volume is not None:
            self._volume.close()


def _find_slices(path: Path, series: str | None, stack: bool) -> list[SliceFacts]:
    """Return the slices of the series that a path names, or the one picture."""
    if path.is_dir():
        if not stack:
            raise OptionError(
                f"reader.dicom.stack: got no, expected yes for the folder {path}; or give its files"
            )
        return choose_series(path, series)
    facts = read_slice(path)
    if facts is None:
        raise UnsupportedFormat(
            f"{path}: a DICOM file without pixels (a report, plan or index); give the images"
        )
    return find_siblings(facts) if stack else [facts]
