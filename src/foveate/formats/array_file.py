"""Read NumPy's files of arrays (.npy, and .npz of one array) without running what they hold.

Part of the reader `array`. All sizes that a file claims are checked before anything of that size is
allocated. Pickles, which could run code, are refused.
"""

from __future__ import annotations

import math
import re
import zipfile
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from foveate.errors import (
    AGAIN,
    FoveateError,
    ImageTooLarge,
    OptionError,
    UnreadableImage,
    UnsupportedFormat,
    converting,
    explain_shortage,
)
from foveate.wording import several

NPY, ZIP = b"\x93NUMPY", b"PK\x03\x04"
MAX_UNPACKED_BYTES = 1 << 30
"""The largest array in a .npz, which is read at once. Those in .npy are read region by region."""
_PARTS = re.compile(r"(train|val|valid|test)(_|$)", re.IGNORECASE)
"""Names of the arrays of a data set, such as ``train_images``."""


@dataclass(frozen=True)
class ArrayFacts:
    """The array that a file holds.

    Attributes:
        entry: name of the file in the archive; None for a .npy.
        begin: first byte of the values in the file or entry.
        shape: length per axis.
        dtype: dtype of the values.
        by_columns: whether the first axis runs fastest (Fortran's order).
    """

    entry: str | None
    begin: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    by_columns: bool

    @property
    def n_bytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


def is_archive(path: Path, head: bytes) -> bool:
    """Return whether a file is a ZIP archive that holds arrays of NumPy.

    Args:
        path: the file.
        head: its first bytes.
    """
    if not head.startswith(ZIP) or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith(".npy") for name in archive.namelist())


def read_facts(path: Path, name: str | None = None) -> ArrayFacts:
    """Read which array a file holds.

    Args:
        path: the file.
        name: name of the array in a file of several; None for the only one.

    Raises:
        UnreadableImage: the file is damaged or holds less than it claims.
        UnsupportedFormat: it holds several arrays, or Python objects.
        OptionError: it holds no array of the name.
        ImageTooLarge: the array in an archive has more than a gigabyte.
    """
    with _explaining(path):
        if zipfile.is_zipfile(path):
            facts, n_bytes = _read_entry(path, name)
        else:
            with path.open("rb") as file:
                facts, n_bytes = _read_header(path, file, None), path.stat().st_size
    if n_bytes - facts.begin < facts.n_bytes:
        raise UnreadableImage(
            f"{path}: claims {facts.n_bytes:,} bytes of values, there are "
            f"{n_bytes - facts.begin:,}{AGAIN}"
        )
    if facts.entry is not None and facts.n_bytes > MAX_UNPACKED_BYTES:
        raise ImageTooLarge(
            f"{path}: {facts.n_bytes / 1e9:.1f} GB are too much to be unpacked in memory; save the "
            "array as .npy, which is read region by region"
        )
    return facts


def read_values(path: Path, facts: ArrayFacts) -> NDArray[Any]:
    """Return the values of an array: those of a .npy mapped into memory, of a .npz unpacked.

    Args:
        path: the file.
        facts: the array.

    Raises:
        UnreadableImage: the file is damaged.
        ImageTooLarge: memory does not suffice.
    """
    order: Literal["C", "F"] = "F" if facts.by_columns else "C"
    with _explaining(path):
        if facts.entry is None:
            return np.memmap(path, facts.dtype, "r", facts.begin, facts.shape, order)
        with zipfile.ZipFile(path) as archive, archive.open(facts.entry) as file:
            file.read(facts.begin)
            content = file.read(facts.n_bytes)
            file.read(1)  # zipfile checks the checksum only at the end of the entry
        return np.frombuffer(content, facts.dtype).reshape(facts.shape, order=order)


def _explaining(path: Path) -> AbstractContextManager[None]:
    """Convert errors about a file inside to one line about it."""

    def explain(error: Exception, about: object) -> FoveateError:
        return explain_shortage(error, about) or UnreadableImage(
            f"{about}: the array in it cannot be read{AGAIN}"
        )

    return converting(path, explain)


def _read_entry(path: Path, name: str | None) -> tuple[ArrayFacts, int]:
    """Return the wanted array of an archive, and the bytes of its entry when unpacked."""
    with zipfile.ZipFile(path) as archive:
        entry = _choose_entry(path, archive, name)
        with archive.open(entry) as file:
            return _read_header(path, file, entry), archive.getinfo(entry).file_size


def _choose_entry(path: Path, archive: zipfile.ZipFile, name: str | None) -> str:
    """Return the name in the archive of the wanted array, or of the only one."""
    arrays = [entry.removesuffix(".npy") for entry in archive.namelist() if entry.endswith(".npy")]
    if name is not None and name not in arrays:
        raise OptionError(
            f"reader.array.name: {path} holds no array '{name}', but {several(arrays)}; name one"
        )
    if name is None and sum(bool(_PARTS.match(a)) for a in arrays) > 1:
        raise UnsupportedFormat(
            f"{path}: a whole data set ({several(arrays)}), not one image; write each image into a "
            "file of its own (np.save('images/0001.npy', data['train_images'][1]) and so on), and "
            "a table of the files with their labels"
        )
    if name is None and len(arrays) > 1:
        raise UnsupportedFormat(
            f"{path}: holds {len(arrays)} arrays ({several(arrays)}); name one with "
            "--reader.array.name NAME"
        )
    return f"{name or arrays[0]}.npy"


def _read_header(path: Path, file: IO[bytes], entry: str | None) -> ArrayFacts:
    """Read the header of an array, which NumPy parses as a literal and does not run."""
    version = np.lib.format.read_magic(file)
    parse = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if parse is None:
        raise UnsupportedFormat(f"{path}: an array with names of fields; save plain numbers")
    shape, by_columns, dtype = parse(file)
    if dtype.kind not in "biuf":
        raise UnsupportedFormat(
            f"{path}: an array of {'Python objects' if dtype.hasobject else dtype}, which is not "
            "read; save numbers"
        )
    return ArrayFacts(entry, file.tell(), shape, dtype, by_columns)
