"""The voxels of a series of DICOM slices, decoded slice by slice.

Part of the reader `dicom`.
"""

from __future__ import annotations

import threading
from typing import final

import numpy as np
from jaxtyping import Float64, UInt16

from foveate.cache import ByteCache
from foveate.errors import AGAIN, OptionError, UnreadableImage
from foveate.formats.dicom_codec import read_pixels
from foveate.formats.dicom_stack import Stack
from foveate.formats.dicom_values import Scale, choose_ct_scale, rescale
from foveate.formats.grey_scale import (
    GreyScale,
    is_mask,
    sampling_step,
    scale_by_range,
    scale_without_unit,
)
from foveate.images.read_count import ReadCount

_cache: ByteCache[UInt16[np.ndarray, "y x"]] = ByteCache(1 << 30)
"""Decoded slices of all open volumes, by a volume's key and the slice."""


@final
class DicomVolume:
    """The voxels of a stack of slices, axes ``z, y, x``, as greys of 16 bits.

    Safe to use from several threads, which decode different slices at the same time, and each
    slice once as long as the cache holds it.

    Args:
        stack: the slices.
        scale: how values become greys.
        window: the window of CT that the user wants, or None.
        count: counts the voxels that are decoded.

    Raises:
        OptionError: the scale or the window does not fit.
    """

    def __init__(
        self, stack: Stack, scale: Scale, window: GreyScale | None, count: ReadCount
    ) -> None:
        self._stack, self._count, self._key = stack, count, object()
        first = stack.slices[0]
        if scale == "lut":
            raise OptionError(
                "reader.dicom.scale: 'lut' is for single pictures, since each slice of a series "
                "may state another window; expected auto, hounsfield, percentiles or range"
            )
        self._scale = choose_ct_scale(first, scale, window)
        self._by_range = scale == "range"
        self._scale_lock = threading.Lock()
        self._slice_locks = [threading.Lock() for _ in stack.slices]
        # Hounsfield units mean the same whichever way they were to be shown.
        self._inverted = first.photometric == "MONOCHROME1" and self._scale is None
        if self._scale is not None:
            count.values = "hounsfield"
        self.shape = stack.order.sort(stack.shape)

    def read(
        self, origin_px: tuple[int, ...], size_px: tuple[int, ...]
    ) -> UInt16[np.ndarray, "z y x 1"]:
        """Read a region.

        Args:
            origin_px: first voxel along z, y and x.
            size_px: voxels along z, y and x.

        Raises:
            UnreadableImage: a slice is damaged.
            UnsupportedFormat: a slice is stored in a way that is not read.
        """
        scale = self._settle_scale()
        of_slices, *inside = self._stack.order.cut(self._stack.shape, origin_px, size_px)
        numbers = range(*of_slices.indices(len(self._stack.slices)))
        stored = np.stack([self._greys(i, scale)[tuple(inside)] for i in numbers])
        return np.ascontiguousarray(self._stack.order.reorder(stored))[..., None]

    def close(self) -> None:
        """Release the voxels."""
        _cache.drop_where(self._key)

    def _greys(self, number: int, scale: GreyScale) -> UInt16[np.ndarray, "y x"]:
        """Return the greys of a slice, upright on the others; decoded if they are not cached."""
        with self._slice_locks[number]:
            greys = _cache.get((self._key, number))
            if greys is None:
                values = self._decode(number)
                black = scale.values[-1 if self._inverted else 0]
                values = np.where(np.isfinite(values), values, black)
                greys = scale.convert(self._shift(values, number, black))
                if self._inverted:
                    greys = np.iinfo(np.uint16).max - greys
                _cache.put((self._key, number), greys, greys.nbytes)
        return greys

    def _decode(self, number: int) -> Float64[np.ndarray, "y x"]:
        """Return the values of a slice as it is stored."""
        facts = self._stack.slices[number]
        pixels, dataset = read_pixels(facts.path)
        if pixels.shape != facts.shape:
            raise UnreadableImage(
                f"{facts.path}: holds pixels of {pixels.shape}, expected grey ones of {facts.shape}"
                f"{AGAIN}"
            )
        self._count.add(decoded_px=pixels.size)
        return rescale(pixels, dataset)

    def _shift(
        self, values: Float64[np.ndarray, "y x"], number: int, black: float
    ) -> Float64[np.ndarray, "y2 x2"]:
        """Shift a slice so that it lies upright on the others, by linear interpolation."""
        if not self._stack.is_sheared:
            return values
        from scipy.ndimage import shift

        grown = [(0, n - m) for n, m in zip(self._stack.shape[1:], values.shape, strict=True)]
        padded = np.pad(values, grown, constant_values=black)
        by_px = self._stack.shift_px[number]
        return np.asarray(shift(padded, by_px, order=1, mode="constant", cval=black))

    def _settle_scale(self) -> GreyScale:
        """Return the scale; the first thread that needs it chooses it, the others wait."""
        with self._scale_lock:
            if self._scale is None:
                self._scale = self._choose_scale()
            return self._scale

    def _choose_scale(self) -> GreyScale:
        """Choose the scale of a volume without a unit from about a million of its voxels."""
        slices = self._stack.slices
        step = sampling_step((len(slices), *slices[0].shape))
        sample = [self._decode(i)[::step, ::step].ravel() for i in range(0, len(slices), step)]
        values = np.concatenate(sample)
        values = values[np.isfinite(values)]
        if not values.size:
            raise UnreadableImage(
                f"{slices[0].path}: its series holds padding only, no values; export it again"
            )
        self._count.values = "mask" if is_mask(values) else "other"
        return scale_by_range(values) if self._by_range else scale_without_unit(values)
