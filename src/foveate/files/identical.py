"""Find image files with the same bytes, and read little of those that differ."""

from __future__ import annotations

import contextlib
import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_THREADS = 4
_BLOCK_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 20
_HEADERS = (".mhd", ".nhdr", ".hdr", ".vms", ".vmu")
"""Suffixes of headers that name the file of the pixels: the same bytes may mean other pixels."""


def group_identical(paths: Sequence[Path]) -> list[list[Path]]:
    """Group the files whose content is the same to the last byte.

    Sizes are compared first, then three blocks of files of one size, and only files that agree in
    both are read completely. So slides of different sizes cost nothing. Empty files, and files that
    cannot be read, belong to no group.

    Args:
        paths: different files, or folders that are images; the folder beside a MIRAX or VSI file
            belongs to its content.

    Returns:
        groups of at least two, in the order of `paths`.
    """
    groups = [list(paths)]
    with ThreadPoolExecutor(_THREADS) as pool:
        for key in (_list_sizes, _hash_blocks, _hash_all):
            groups = [
                equal
                for group in groups
                for equal in _divide(group, list(pool.map(_or_none(key), group)))
            ]
    return groups


def companion_folder(path: Path) -> Path | None:
    """Return the folder that belongs to a slide stored as a file and a folder, or None."""
    kind = path.suffix.lower()
    folder = {".vsi": path.with_name(f"_{path.stem}_"), ".mrxs": path.with_suffix("")}.get(kind)
    return folder if folder is not None and folder.is_dir() else None


def image_state(path: Path) -> list[int]:
    """Return the size in bytes of an image, and the time of its last change in nanoseconds.

    Those of a folder are the size of all its files, and the newest time of one of them.

    Raises:
        OSError: there is no such file.
    """
    states = [path.stat()]
    if path.is_dir():
        states = [file.stat() for _, file in _list_files(path)] or states
    return [sum(state.st_size for state in states), max(state.st_mtime_ns for state in states)]


def _divide(paths: Sequence[Path], keys: Sequence[Hashable | None]) -> list[list[Path]]:
    """Divide paths into groups of at least two with the same key; None is equal to no key."""
    groups: dict[Hashable, list[Path]] = defaultdict(list)
    for path, key in zip(paths, keys, strict=True):
        if key is not None:
            groups[key].append(path)
    return [group for group in groups.values() if len(group) > 1]


def _or_none(key: Callable[[Path], Hashable | None]) -> Callable[[Path], Hashable | None]:
    """Return a function that returns None for files that cannot be read."""

    def read(path: Path) -> Hashable | None:
        with contextlib.suppress(OSError):
            return key(path)
        return None

    return read


def _list_files(path: Path) -> list[tuple[str, Path]]:
    """List the files of an image with their names inside its folder; the image itself is ``''``."""
    folder = path if path.is_dir() else companion_folder(path)
    inside = sorted(p for p in folder.rglob("*") if p.is_file()) if folder is not None else []
    itself = [("", path)] if path.is_file() else []
    return itself + [(p.relative_to(folder).as_posix(), p) for p in inside if folder is not None]


def _list_sizes(path: Path) -> tuple[tuple[str, int], ...] | None:
    """Return names and sizes in bytes of an image's files; None where they hold no pixels."""
    if path.suffix.lower() in _HEADERS:
        return None
    sizes = tuple((name, file.stat().st_size) for name, file in _list_files(path))
    return sizes if any(size for _, size in sizes) else None


def _hash_blocks(path: Path) -> str:
    """Compute the sha256 of the first, middle and last block of each of an image's files."""
    digest = hashlib.sha256()
    for _, file_path in _list_files(path):
        spare = max(0, file_path.stat().st_size - _BLOCK_BYTES)
        with file_path.open("rb") as file:
            for start in (0, spare // 2, spare):
                file.seek(start)
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def _hash_all(path: Path) -> str:
    """Compute the sha256 of all bytes of an image's files."""
    digest = hashlib.sha256()
    for _, file_path in _list_files(path):
        with file_path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()
