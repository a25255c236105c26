"""DICOM files that tests write: series of slices, and single pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

SOP_CLASSES = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "DX": "1.2.840.10008.5.1.4.1.1.1.1",
    "MG": "1.2.840.10008.5.1.4.1.1.1.2",
    "OT": "1.2.840.10008.5.1.4.1.1.7",
}
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
"""Rows run to the left of the patient, columns to the back."""


def make_dicom(pixels: NDArray[Any], modality: str = "DX", **elements: Any) -> Dataset:
    """Return the elements of a picture; an element of None is left out.

    Args:
        pixels: ``(y, x)``, or RGB ``(y, x, 3)``, of 8 or 16 bits.
        modality: the kind of image.
        elements: values of further elements, by keyword.
    """
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    uid = generate_uid()
    dataset.file_meta.MediaStorageSOPClassUID = UID(SOP_CLASSES[modality])
    dataset.file_meta.MediaStorageSOPInstanceUID = uid
    bits = 8 * pixels.dtype.itemsize
    values = {
        "SOPClassUID": SOP_CLASSES[modality],
        "SOPInstanceUID": uid,
        "Modality": modality,
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 3 if pixels.ndim == 3 else 1,
        "PhotometricInterpretation": "RGB" if pixels.ndim == 3 else "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PlanarConfiguration": 0 if pixels.ndim == 3 else None,
        "PixelData": pixels.tobytes() + b"\0" * (pixels.nbytes % 2),
        **elements,
    }
    for keyword, value in values.items():
        if value is not None:
            setattr(dataset, keyword, value)
    return dataset


def write_dicom(path: Path, pixels: NDArray[Any], modality: str = "DX", **elements: Any) -> Path:
    """Write a picture, see `make_dicom`; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    make_dicom(pixels, modality, **elements).save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder: Path,
    stored: NDArray[Any],
    modality: str = "MR",
    *,
    first_mm: Sequence[float] = (-10.0, -20.0, 30.0),
    step_mm: Sequence[float] = (0.0, 0.0, 2.5),
    directions: Sequence[float] = AXIAL,
    spacing_mm: Sequence[float] = (0.8, 0.7),
    **elements: Any,
) -> Path:
    """Write a series of slices in files whose names say nothing of their order.

    Args:
        folder: the folder.
        stored: stored numbers ``(slices, y, x)``.
        modality: the kind of image.
        first_mm: position of the first slice.
        step_mm: way from one slice to the next.
        directions: direction along a row, and along a column.
        spacing_mm: spacing ``(y, x)``.
        elements: values of further elements; a function is called with the number of a slice.
    """
    values = {"SeriesInstanceUID": generate_uid(), "SeriesNumber": 3, **elements}
    names = np.random.default_rng(7).permutation(len(stored))
    for i, pixels in enumerate(stored):
        place = {
            "ImagePositionPatient": (np.asarray(first_mm) + i * np.asarray(step_mm)).tolist(),
            "ImageOrientationPatient": list(directions),
            "PixelSpacing": list(spacing_mm),
            "SliceThickness": 9.0,
            "InstanceNumber": int(names[-i]) + 1,
        }
        own = {key: value(i) if callable(value) else value for key, value in values.items()}
        write_dicom(folder / f"IM{names[i]:04d}", pixels, modality, **{**place, **own})
    return folder


def write_twin(
    path: Path,
    values: NDArray[Any],
    *,
    first_mm: Sequence[float] = (-10.0, -20.0, 30.0),
    step_mm: Sequence[float] = (0.0, 0.0, 2.5),
    directions: Sequence[float] = AXIAL,
    spacing_mm: Sequence[float] = (0.8, 0.7),
) -> Path:
    """Write the NIfTI file of the same volume as `write_series` with these arguments.

    Args:
        path: the file.
        values: values ``(slices, y, x)``.
        first_mm: as in `write_series`, as are the others.
        step_mm: the way from one slice to the next.
        directions: direction along a row, and along a column.
        spacing_mm: spacing ``(y, x)``.
    """
    along_row, along_column = np.asarray(directions, float).reshape(2, 3)
    affine = np.eye(4)
    affine[:3] = np.stack(
        [along_row * spacing_mm[1], along_column * spacing_mm[0], step_mm, first_mm], 1
    )
    affine[:2] *= -1
    nibabel.save(nibabel.Nifti1Image(values.transpose(2, 1, 0), affine), path)
    return path
