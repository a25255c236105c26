"""Open HDF5 files that nobody vouches for: values in the file only, bounded claims, no code.

A dataset is used only if its bytes lie in the file itself: links to other places, external and
virtual datasets are refused. Types that hold references or objects are never read.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveate.errors import (
    AGAIN,
    FoveateError,
    ImageTooLarge,
    UnreadableImage,
    converting,
    explain_shortage,
)

if TYPE_CHECKING:
    import h5py

log = logging.getLogger("foveate")

MARK = b"\x89HDF\r\n\x1a\n"
"""The first bytes of an HDF5 file."""
_FREE_BYTES = 1 << 28
_MAX_PACKING = 1000
"""A dataset of more than `_FREE_BYTES` may be this many times as large as what the file stores."""
_MAX_ATTRIBUTE = 4
"""The largest number of values of an attribute that is read."""
_MAX_LETTERS = 1000


def open_hdf5(path: Path) -> h5py.File:
    """Open a file for reading, without a lock, which network disks may lack.

    Raises:
        UnreadableImage: the file is damaged or cut off.
    """
    import h5py

    with reading_hdf5(path):
        return h5py.File(path, "r", locking=False)


@contextmanager
def reading_hdf5(path: Path) -> Iterator[None]:
    """Convert errors of the HDF5 library inside to one line about the file.

    Raises:
        UnreadableImage: the file is damaged, or packed in a way that this installation cannot read.
    """

    def explain(error: Exception, about: object) -> FoveateError:
        log.info("%s", about, exc_info=error)
        return explain_shortage(error, about) or UnreadableImage(
            f"{about}: the HDF5 library cannot read it{AGAIN}"
        )

    with converting(path, explain):
        yield


def find_dataset(file: h5py.File, name: str, path: Path) -> h5py.Dataset | None:
    """Return a dataset at the root of a file; None where there is nothing of this name.

    Args:
        file: the open file.
        name: name of the dataset.
        path: path of the file, for messages.

    Raises:
        UnreadableImage: its values lie outside the file, or it holds no numbers.
        ImageTooLarge: it claims far more values than the file stores.
    """
    import h5py

    links = file.id.links  # asked first, because a name that is looked up opens what it leads to
    if not links.exists(name.encode()):
        return None
    is_inside = links.get_info(name.encode()).type == h5py.h5l.TYPE_HARD
    item = file[name] if is_inside else None
    if isinstance(item, h5py.Dataset) and (item.is_virtual or item.external):
        item = None
    if not isinstance(item, h5py.Dataset):
        raise UnreadableImage(
            f"{path}: '{name}' is no dataset of this file but leads to another place; store its "
            "values in the file itself"
        )
    if item.dtype.kind not in "iuf":
        raise UnreadableImage(
            f"{path}: '{name}' holds {item.dtype}, expected numbers; make the features again"
        )
    n_bytes, n_stored = item.size * item.dtype.itemsize, item.id.get_storage_size()
    if n_bytes and not n_stored:
        raise UnreadableImage(
            f"{path}: '{name}' was never filled with values; make the features again"
        )
    if n_bytes > max(_FREE_BYTES, _MAX_PACKING * n_stored):
        raise ImageTooLarge(
            f"{path}: '{name}' claims {n_bytes / 1e9:.1f} GB, but {n_stored} bytes are stored"
            f"{AGAIN}"
        )
    return item


def read_text(items: list[Any], name: str) -> str:
    """Return the first of several items' attributes of a name that is a text; else empty.

    Args:
        items: a file and its datasets.
        name: name of the attribute.
    """
    for value in _read_values(items, name):
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, str) and value.strip():
            return value.strip()[:_MAX_LETTERS]
    return ""


def read_number(items: list[Any], name: str, low: float, high: float, path: Path) -> float | None:
    """Return the first of several items' attributes of a name that is a number; None for none.

    Args:
        items: a file and its datasets.
        name: name of the attribute; of several equal values, such as one per axis, the first
            counts.
        low: smallest number that is allowed.
        high: largest number that is allowed.
        path: path of the file, for messages.

    Raises:
        UnreadableImage: the number is not allowed.
    """
    for value in _read_values(items, name):
        numbers = np.asarray(value)
        if numbers.dtype.kind not in "iuf" or not numbers.size:
            continue
        number = float(numbers.ravel()[0])
        if not low <= number <= high:
            raise UnreadableImage(
                f"{path}: attribute '{name}' is {number:g}, expected {low:g} to {high:g}; make "
                "the features again"
            )
        return number
    return None


def _read_values(items: list[Any], name: str) -> Iterator[Any]:
    """Yield attributes of a name that hold few values."""
    for item in items:
        if name in item.attrs:
            shape = item.attrs.get_id(name).shape
            if shape is not None and np.prod(shape) <= _MAX_ATTRIBUTE:
                yield item.attrs[name]
