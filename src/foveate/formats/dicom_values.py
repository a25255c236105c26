"""From the stored numbers of a DICOM file to values, and from values to greys.

Part of the reader `dicom`. The steps are those of DICOM PS3.4, N.2: the modality transformation
(rescale, or a table) gives values such as Hounsfield units; the transformation of the values of
interest (VOI: a window, or a table) gives greys; MONOCHROME1 is inverted last.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Float64, Shaped

from foveate.errors import OptionError
from foveate.formats.dicom_series import SliceFacts
from foveate.formats.grey_scale import HOUNSFIELD, GreyScale

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Scale = Literal["auto", "hounsfield", "percentiles", "lut", "range"]
"""How values become greys; ``auto`` goes by the kind of image."""

WINDOWS = {"lung": (-600, 1500), "bone": (400, 1800), "soft": (40, 400), "brain": (40, 80)}
"""Windows by name: centre and width in Hounsfield units, as usual in radiology."""

_UNITS_OF_CT = ("", "HU", "US")
"""Stated units of CT (RescaleType; US is unspecified) that are taken for Hounsfield units."""


def parse_window(text: str) -> GreyScale:
    """Return the scale of a window of CT.

    Args:
        text: a name of `WINDOWS`, or centre and width such as ``40,400``.

    Raises:
        OptionError: it is none of them.
    """
    words = text.strip().lower()
    numbers: Any = WINDOWS.get(words) or words.split(",")
    try:
        centre, width = map(float, numbers)
    except ValueError:
        centre = width = math.nan
    if not (math.isfinite(centre) and 0 < width < math.inf):
        raise OptionError(
            f"reader.dicom.window: got '{text}', expected {', '.join(WINDOWS)}, or centre and "
            "width in Hounsfield units, such as 40,400"
        )
    return GreyScale((centre - width / 2, centre + width / 2), (0.0, 1.0))


def is_grey(facts: SliceFacts) -> bool:
    """Return whether a file holds grey values; others are colours, or numbers of a palette.

    Args:
        facts: facts of the file.
    """
    return facts.photometric.startswith("MONOCHROME")


def states_hounsfield_units(facts: SliceFacts) -> bool:
    """Return whether a file states Hounsfield units: grey CT that says how to rescale it.

    Args:
        facts: facts of the file.
    """
    known = facts.rescale is not None and facts.rescale_type in _UNITS_OF_CT
    return facts.modality == "CT" and is_grey(facts) and known


def choose_ct_scale(facts: SliceFacts, scale: Scale, window: GreyScale | None) -> GreyScale | None:
    """Return the scale of an image in Hounsfield units; None for other images.

    Args:
        facts: facts of the file.
        scale: the option of the reader.
        window: the window that the user wants; None for the scale that is the same for all CT.

    Raises:
        OptionError: a window or Hounsfield units are wanted, and the image has none; or a window is
            wanted with another scale.
    """
    if window is not None and scale not in ("auto", "hounsfield"):
        raise OptionError(
            f"reader.dicom.window: does not go with reader.dicom.scale '{scale}'; leave one of "
            "them out"
        )
    if not is_grey(facts) and (window is not None or scale == "hounsfield"):
        option = "scale" if window is None else "window"
        raise OptionError(
            f"reader.dicom.{option}: is in Hounsfield units, but {facts.path} shows colours "
            f"({facts.photometric}); leave it out"
        )
    is_ct = scale == "hounsfield" or (scale == "auto" and states_hounsfield_units(facts))
    if is_ct and facts.rescale is None:
        raise OptionError(
            f"reader.dicom.scale: {facts.path} does not say how its numbers become Hounsfield "
            "units (RescaleSlope, RescaleIntercept); expected auto, percentiles or range"
        )
    if window is not None and not is_ct:
        raise OptionError(
            f"reader.dicom.window: is in Hounsfield units, which {facts.path} "
            f"({facts.modality or 'of unknown kind'}) does not have; leave it out"
        )
    return (window or HOUNSFIELD) if is_ct else None


def rescale(pixels: Shaped[np.ndarray, "y x"], dataset: Dataset) -> Float64[np.ndarray, "y x"]:
    """Convert stored numbers to values by the modality transformation; padding is not a number.

    Args:
        pixels: stored numbers.
        dataset: the elements of their file.
    """
    table = dataset.get("ModalityLUTSequence")
    if table:
        values, _ = _look_up(pixels.astype(np.float64), table[0], dataset)
    else:
        slope, offset = (dataset.get(f"Rescale{name}") for name in ("Slope", "Intercept"))
        values = pixels.astype(np.float64)
        if slope is not None and offset is not None:
            values = values * float(slope) + float(offset)
    values[_is_padding(pixels, dataset)] = np.nan
    return values


def _is_padding(pixels: Shaped[np.ndarray, "y x"], dataset: Dataset) -> Bool[np.ndarray, "y x"]:
    """Return which pixels pad an image that is not rectangular, by PixelPaddingValue."""
    value, limit = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    if not isinstance(value, int):
        return np.zeros(pixels.shape, bool)
    low, high = sorted((value, limit if isinstance(limit, int) else value))
    return np.asarray((pixels >= low) & (pixels <= high))


def _look_up(
    values: Float64[np.ndarray, "y x"], item: Dataset, dataset: Dataset
) -> tuple[Float64[np.ndarray, "y x"], float]:
    """Look values up in a table of DICOM (PS3.3, C.11.1.1); return also the largest possible one.

    Values beyond the table get its first or last entry.

    Args:
        values: the values.
        item: the item of the sequence that holds the table.
        dataset: the elements of the file.
    """
    n, first, bits = (int(v) for v in item.LUTDescriptor)
    n = n or 1 << 16
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if dataset.original_encoding[1] else ">"
        table = np.frombuffer(data, np.uint8 if len(data) < 2 * n else f"{order}u2")
    else:
        table = np.atleast_1d(np.asarray(data))
    table = table[:n].astype(np.float64)
    at = np.clip(np.rint(np.nan_to_num(values)) - first, 0, len(table) - 1).astype(np.int64)
    # Some devices state fewer bits than their table has.
    top = (1 << max(bits, int(table.max()).bit_length())) - 1
    return table[at], float(top)


def has_window(header: Dataset) -> bool:
    """Return whether a file states how its values become greys: by a table, or by a window."""
    return bool(header.get("VOILUTSequence")) or _read_window(header) is not None


def _read_window(header: Dataset) -> tuple[float, float] | None:
    """Return centre and width of the first window of a file; None where it has none of use."""
    stated = [header.get(key) for key in ("WindowCenter", "WindowWidth")]
    if any(value is None or value == "" for value in stated):
        return None
    centre, width = (float(np.atleast_1d(np.asarray(v, np.float64))[0]) for v in stated)
    return (centre, width) if math.isfinite(centre) and 0 < width < math.inf else None


def apply_window(
    values: Float64[np.ndarray, "y x"], dataset: Dataset
) -> Float64[np.ndarray, "y x"]:
    """Convert values to shares of white, 0 to 1, by the table or the first window of their file.

    Source: DICOM PS3.3, C.11.2.1.

    Args:
        values: values after `rescale`, all finite.
        dataset: the elements of their file, for which `has_window` is true.
    """
    table = dataset.get("VOILUTSequence")
    if table:
        found, top = _look_up(values, table[0], dataset)
        return found / top
    window = _read_window(dataset)
    assert window is not None
    (centre, width), function = window, str(dataset.get("VOILUTFunction") or "LINEAR")
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700))))
    if function == "LINEAR":  # the window's pixels are counted: 0 to 255 has centre 128, width 256
        centre, width = centre - 0.5, max(width - 1, 1e-6)
    return np.clip((values - centre) / width + 0.5, 0, 1)
