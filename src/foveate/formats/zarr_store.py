"""Recognise folders that are stores of Zarr, as OME-Zarr is."""

from __future__ import annotations

from pathlib import Path

_MARKS = (".zattrs", ".zgroup", ".zarray", "zarr.json")


def is_zarr(folder: Path) -> bool:
    """Return whether a folder is a store of Zarr, of format 2 or 3."""
    return any((folder / mark).is_file() for mark in _MARKS)
