"""The pixels of a single DICOM picture: X-rays, lone slices, secondary captures, ultrasound.

Part of the reader `dicom`.
"""

from __future__ import annotations

import math
from typing import Any, final

import numpy as np
from jaxtyping import Float64, Shaped, UInt8, UInt16

from foveate.errors import AGAIN, OptionError, UnreadableImage, UnsupportedFormat
from foveate.formats.dicom_codec import read_pixels
from foveate.formats.dicom_header import read_header, reading_dicom
from foveate.formats.dicom_series import SliceFacts
from foveate.formats.dicom_values import (
    Scale,
    apply_window,
    choose_ct_scale,
    has_window,
    is_grey,
    rescale,
)
from foveate.formats.grey_scale import GreyScale, scale_by_range, scale_without_unit
from foveate.geometry import Vector
from foveate.images.resample import Pixels
from foveate.images.stated import BELIEVED_RADIOLOGY_UM, check_spacing, describe_disbelief

_TOP = int(np.iinfo(np.uint16).max)
_WITHOUT_UNIT = ("MR", "PT")
"""Kinds of images whose values have no unit that is the same in all files."""


@final
class DicomPicture:
    """One picture, RGB of 8 bits or grey.

    Grey of 8 bits that is to be shown as it is stored stays so; other grey has 16 bits. ``auto`` is
    the unit of CT for CT, percentiles for MR and PET, the window or table of the file where it has
    one, else the range of its values.

    Args:
        facts: facts of the file.
        scale: how values become greys.
        window: the window of CT that the user wants, or None.

    Raises:
        UnsupportedFormat: the file holds several frames, or no pixels.
        OptionError: the scale or the window does not fit.
        UnreadableImage: the header is damaged.
    """

    def __init__(self, facts: SliceFacts, scale: Scale, window: GreyScale | None) -> None:
        self._facts = facts
        if facts.n_frames != 1:
            raise UnsupportedFormat(
                f"{facts.path}: holds {facts.n_frames} frames (a film, or a stack in one file); "
                "save each frame, or convert the stack to NIfTI (dcm2niix does it)"
            )
        header = read_header(facts.path)
        with reading_dicom(facts.path):
            self.is_grey = is_grey(facts)
            self._ct_scale = choose_ct_scale(facts, scale, window)
            self._scale = self._choose(scale, header)
            self.spacing_um, self.disbelieved = _find_spacing(header)
        self.shape, self.channels = facts.shape, 1 if self.is_grey else 3
        is_stored = not self.is_grey or self._scale == "stored"
        self.dtype: np.dtype[Any] = np.dtype(np.uint8 if is_stored else np.uint16)

    def _choose(self, scale: Scale, header: Any) -> str:
        """Choose how values become greys: one of `Scale` but ``auto``, or ``stored``."""
        if scale == "lut" and not has_window(header):
            raise OptionError(
                f"reader.dicom.scale: {self._facts.path} states no table or window (VOI LUT); "
                "expected auto, percentiles or range"
            )
        if scale != "auto":
            return scale
        if self._ct_scale is not None:
            return "hounsfield"
        if self._facts.modality in _WITHOUT_UNIT:
            return "percentiles"
        if has_window(header):
            return "lut"
        is_plain = self._facts.rescale in (None, (1.0, 0.0)) and not header.get(
            "ModalityLUTSequence"
        )
        of_8_bits = (header.get("BitsStored"), header.get("PixelRepresentation")) == (8, 0)
        return "stored" if is_plain and of_8_bits else "range"

    def decode(self) -> Pixels:
        """Decode all pixels, ``(y, x, c)``.

        Raises:
            UnreadableImage: they are damaged, or not what the header promised.
            UnsupportedFormat: they are stored in a way that is not read.
        """
        pixels, dataset = read_pixels(self._facts.path)
        with reading_dicom(self._facts.path):
            if not self.is_grey:
                return _to_rgb(pixels, dataset)
            if pixels.ndim != 2:
                raise UnreadableImage(
                    f"{self._facts.path}: holds colours, while its header promised grey{AGAIN}"
                )
            inverted = self._facts.photometric == "MONOCHROME1" and self._scale != "hounsfield"
            if self._scale == "stored":
                return np.asarray((255 - pixels if inverted else pixels)[..., None], np.uint8)
            values = rescale(pixels, dataset)
            known = np.isfinite(values)
            if not known.any():
                raise UnreadableImage(
                    f"{self._facts.path}: holds padding only, no values; export it again"
                )
            greys = self._to_grey(np.where(known, values, values[known].min()), known, dataset)
            greys = _TOP - greys if inverted else greys
            return np.asarray(np.where(known, greys, 0)[..., None], np.uint16)

    def _to_grey(
        self,
        values: Float64[np.ndarray, "y x"],
        known: Shaped[np.ndarray, "y x"],
        dataset: Any,
    ) -> UInt16[np.ndarray, "y x"]:
        """Convert finite values to greys; the scale follows from those that are known."""
        if self._scale == "lut":
            return np.asarray(np.rint(apply_window(values, dataset) * _TOP), np.uint16)
        scale = self._ct_scale
        if scale is None and self._scale == "range":
            scale = scale_by_range(values[known])
        elif scale is None:
            scale = scale_without_unit(values[known])
        return scale.convert(values)


def _to_rgb(pixels: Shaped[np.ndarray, "y x *c"], dataset: Any) -> UInt8[np.ndarray, "y x 3"]:
    """Convert decoded colours, or numbers of a palette, to RGB of 8 bits."""
    if pixels.ndim == 2:
        from pydicom.pixels.processing import apply_color_lut

        pixels = apply_color_lut(pixels, dataset)[..., :3]
        # Some devices write 8 bits into a palette of 16.
        bits = 8 if pixels.max() <= 255 else 16
    else:
        bits = int(dataset.BitsStored)
    if bits == 8:
        return pixels.astype(np.uint8)
    return np.rint(pixels.astype(np.float64) * (255 / ((1 << bits) - 1))).astype(np.uint8)


def _find_spacing(header: Any) -> tuple[Vector | None, str]:
    """Return the spacing of a picture in micrometres, and words for one that cannot be.

    In the patient where it is calibrated (PixelSpacing); else on the detector, divided by the
    magnification of the X-rays where that is stated; else that of a scanned film.
    """
    scale = 1.0
    sides = header.get("PixelSpacing")
    if not sides and (sides := header.get("ImagerPixelSpacing")):
        scale = float(header.get("EstimatedRadiographicMagnificationFactor") or 1.0)
    sides = sides or header.get("NominalScannedPixelSpacing")
    if not sides or len(sides) != 2:
        return None, ""
    spacing_mm = [float(side) / scale if scale > 0 else math.nan for side in sides]
    spacing_um = check_spacing([1e3 * side for side in spacing_mm], BELIEVED_RADIOLOGY_UM)
    return spacing_um, "" if spacing_um else describe_disbelief("pixels", spacing_mm)
