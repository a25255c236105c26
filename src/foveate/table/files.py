"""Find the file that a table's value means, and the files of a folder that could be images."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from foveate.errors import TableError
from foveate.files.companions import accompanies_images, is_helper_folder
from foveate.files.run_layout import (
    CheckLayout,
    ComparisonLayout,
    PredictionLayout,
    RunLayout,
)
from foveate.formats.dicom_slide_folder import leave_out_levels
from foveate.formats.zarr_store import is_zarr
from foveate.table.same import clean
from foveate.wording import printable_name

SUFFIXES = (
    *(".ome.tiff", ".ome.tif", ".ome.zarr", ".nii.gz", ".svs", ".tiff", ".tif", ".ndpi"),
    *(".mrxs", ".scn", ".vms", ".vmu", ".svslide", ".bif", ".czi", ".vsi", ".qptiff", ".btf"),
    *(".isyntax", ".zarr", ".dcm", ".png", ".jpeg", ".jpg", ".jp2", ".j2k", ".webp", ".bmp"),
    *(".gif", ".nii", ".mha", ".mhd", ".nrrd", ".npy", ".npz", ".h5", ".pt"),
)
"""Suffixes that are no part of an image's name; any other dot belongs to the name."""

_FEATURES = (".h5", ".pt")
_RESULT_FILES = frozenset(
    {PredictionLayout.journal, RunLayout.splits, ComparisonLayout.result, CheckLayout.journal}
)
"""Files that only a folder of foveate's own results holds."""
_RESULT_PICTURES = frozenset({PredictionLayout.heatmaps_folder, RunLayout.figures})
"""Folders of pictures in a folder of results."""
_UNSAFE = re.compile(r'[\\/:*?"<>|\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]+')
_MAX_ENTRIES = 200_000
_FOREIGN = re.compile(r"^\w+://|^(?:[A-Za-z]:)?[\\/]+|^[A-Za-z]:|^~[\\/]|^(?:\.\.[\\/])+")
"""The beginning of a path of another machine: an address, drive, root, home or parent folder."""


def stem(name: str) -> str:
    """Remove a known suffix from a name: ``TCGA-AA-0001.F6E9.svs`` keeps its inner dot."""
    lower = name.lower()
    for suffix in SUFFIXES:
        if lower.endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def image_files(
    folder: Path,
    *,
    deep: bool = True,
    is_image: Callable[[Path], bool] = lambda _: False,
    on_results: Callable[[Path], object] = lambda _: None,
    wanted: Callable[[str], bool] = lambda name: not accompanies_images(name),
) -> Iterator[Path]:
    """Yield the files in a folder that could be images, sorted; skip companions of MIRAX and VSI.

    Of a slide in DICOM, whose levels are files of their own, only that of the finest is yielded.
    Links to folders are followed, once per folder. Files that accompany images (tables, checksums,
    thumbnails of network disks) and folders of foveate's results are skipped.

    Args:
        folder: the folder to search.
        deep: whether to search the folders below too.
        is_image: returns whether a folder below is one image; nothing in it is listed then.
        on_results: called with each folder of results that is skipped.
        wanted: returns whether a file of this name is yielded; by default images.

    Raises:
        TableError: the folder holds too many files.
    """
    seen, visited = 0, set[tuple[int, int]]()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if not _first_visit(Path(parent), visited):
            folders.clear()
            continue
        if _holds_results(Path(parent)):  # heatmaps that foveate wrote are no images of the user
            folders.clear()
            on_results(Path(parent))
            continue
        folders[:] = _choose_folders(folders, names) if deep else []
        wholes = [f for f in folders if is_zarr(Path(parent, f)) or is_image(Path(parent, f))]
        yield from (Path(parent, f) for f in wholes)
        folders[:] = [f for f in folders if f not in wholes]
        seen += len(names)
        if seen > _MAX_ENTRIES:
            raise TableError(
                f"{folder} holds more than {_MAX_ENTRIES} files: name the folder of the images"
            )
        yield from leave_out_levels([Path(parent, n) for n in sorted(names) if wanted(n)])


def is_result(path: Path) -> bool:
    """Return whether a path is a folder of foveate's results, or a picture in one.

    Images that the user stores in another folder inside it are none of its results.
    """
    path = path.absolute()
    pictures = [f for f in (path, *path.parents) if f.name in _RESULT_PICTURES]
    return _holds_results(path) or any(_holds_results(f.parent) for f in pictures)


def _holds_results(folder: Path) -> bool:
    """Return whether results lie directly in a folder, also those of parts of a job array."""
    try:
        direct = any((folder / name).is_file() for name in _RESULT_FILES)
        parts = PredictionLayout(folder).parts
        return direct or any(parts.glob(f"*/{PredictionLayout.journal}"))
    except OSError:  # a name that is too long
        return False


def _choose_folders(folders: Sequence[str], names: Sequence[str]) -> list[str]:
    """Choose the folders that are searched, sorted: none that belong to a file beside them.

    Args:
        folders: names of the folders in a folder.
        names: names of the files in the same folder.
    """
    companions = {Path(n).stem for n in names if n.lower().endswith((".mrxs", ".vms"))}
    companions |= {f"_{Path(n).stem}_" for n in names if n.lower().endswith(".vsi")}
    return sorted(f for f in folders if f not in companions and not is_helper_folder(f))


def _first_visit(folder: Path, visited: set[tuple[int, int]]) -> bool:
    """Return whether a folder was not visited yet under any name, and add it to `visited`.

    Links may lead in circles.
    """
    try:
        state = folder.stat()
    except OSError:
        return False
    place = (state.st_dev, state.st_ino)
    if place in visited:
        return False
    visited.add(place)
    return True


def find_files(
    folder: Path, is_image: Callable[[Path], bool], on_results: Callable[[Path], object]
) -> list[Path]:
    """Return the files in a folder that could be images, as `image_files` yields them.

    Where none of them has the suffix of an image, files of features stand in for images.

    Args:
        folder: the folder to search, with the folders below.
        is_image: returns whether a folder below is one image.
        on_results: called with each folder of results that is skipped.

    Raises:
        TableError: the folder holds too many files.
    """
    files = list(image_files(folder, is_image=is_image, on_results=on_results))
    if not any(path.is_dir() or stem(path.name) != path.name for path in files):
        files = list(image_files(folder, wanted=_is_feature_file)) or files
    return files


def _is_feature_file(name: str) -> bool:
    return name.lower().endswith(".h5") and not name.startswith(".")


def safe_id(name: str) -> str:
    """Convert a name to an id that is safe as a file name, for reports and heatmaps.

    Bytes of the name that are no UTF-8 are written as ``_x`` and two digits.
    """
    return _UNSAFE.sub("_", printable_name(name)).strip(". ") or ("image" if name else "")


def file_ids(paths: Sequence[Path], base: Path) -> list[str]:
    """Make unique ids of different files: the name, where needed with folder (``a__1``) or suffix.

    Args:
        paths: the files.
        base: the folder that folders in ids are relative to.
    """
    ids = [safe_id(stem(path.name)) for path in paths]
    for with_suffix in (False, True):
        count = Counter(i.casefold() for i in ids)
        ids = [
            _long_id(path, base, with_suffix) if count[i.casefold()] > 1 else i
            for i, path in zip(ids, paths, strict=True)
        ]
    return ids


def _long_id(path: Path, base: Path, with_suffix: bool) -> str:
    """Make an id of a file's folders below `base` and its name."""
    inside = path.relative_to(base) if path.is_relative_to(base) else path.relative_to(path.anchor)
    name = path.name if with_suffix else stem(path.name)
    return "__".join(safe_id(part) for part in (*inside.parts[:-1], name))


@dataclass
class Finder:
    """Finds the file that a value of the table names: by path, or by name with or without suffix.

    A value with folders names a file in folders of the same names. In a path of another machine,
    folders that exist only there are ignored. Letters are compared after `clean`, since macOS
    encodes a letter such as ``ä`` in another way than tables do. In a folder of features without
    images, the features stand in for the images of the same names.

    Attributes:
        base: the folder of the images.
        is_image: returns whether a folder is one image.
    """

    base: Path
    is_image: Callable[[Path], bool] = lambda _: False
    _by_name: dict[str, list[Path]] | None = field(default=None, init=False)
    _stand_in: bool = field(default=False, init=False)

    def find(self, value: str) -> Path | None:
        """Find the file that a value means, or None.

        Raises:
            TableError: the value fits several files.
        """
        direct = self._direct(value)
        # Tables of STAMP name files of features, and mean the slides of the same names.
        features = value.lower().endswith(_FEATURES)
        if direct is not None and direct.is_file() and not features:
            return direct
        name = PurePosixPath(value.replace("\\", "/")).name
        matches = self._below(value, name)
        if not matches and (features or self._stand_in or stem(name) == name):
            matches = self._below(value, stem(name))
        if len(matches) > 1:
            wanted = stem(value.replace("\\", "/"))
            exact = [p for p in matches if stem(p.relative_to(self.base).as_posix()) == wanted]
            matches = exact or matches
        if len(matches) > 1:
            raise TableError(
                f"'{value}' fits several files: {matches[0]} and {matches[1]}; write its folder "
                "before it"
            )
        return matches[0] if matches else direct

    def could_be_image(self, path: Path) -> bool:
        """Return whether a path is a file, or a folder that is one image."""
        return path.is_file() or (path.is_dir() and self.is_image(path))

    def beside(self, value: str) -> Path | None:
        """Return a file of the same name in another folder or with another suffix, for hints."""
        name = stem(PurePosixPath(value.replace("\\", "/")).name)
        return next(iter(self._index().get(clean(name), [])), None)

    def _direct(self, value: str) -> Path | None:
        """Return the file or folder of a value that is a path, or None."""
        for text in (value, value.replace("\\", "/")):
            try:
                path = self.base / Path(text).expanduser()
                if path.exists():
                    return path
            except (OSError, ValueError, RuntimeError):  # too long, a NUL, no such user
                continue
        return None

    def _below(self, value: str, name: str) -> list[Path]:
        """Return files of a name, with or without suffix, in the folders that the value names."""
        folders = value_folders(value)
        foreign = self.is_foreign(value)
        fitting = []
        for path in self._index().get(clean(name), []):
            lies_in = tuple(map(clean, path.absolute().parent.parts))
            inside = tuple(map(clean, path.relative_to(self.base).parent.parts))
            if ends_with(lies_in, folders) or (foreign and ends_with(folders, inside)):
                fitting.append(path)
        return fitting

    def is_foreign(self, value: str) -> bool:
        """Return whether a value is the path of another machine: its folder is not on this one."""
        if not _FOREIGN.match(value):
            return False
        try:
            return not (self.base / Path(value.replace("\\", "/")).expanduser()).parent.is_dir()
        except (OSError, ValueError, RuntimeError):
            return True

    def _index(self) -> dict[str, list[Path]]:
        """Return all files below the folder by their cleaned names, listed on first use."""
        if self._by_name is None:
            self._by_name = {}
            for path in find_files(self.base, lambda _: False, lambda _: None):
                self._stand_in |= _is_feature_file(path.name)
                for name in {clean(path.name), clean(stem(path.name))}:
                    self._by_name.setdefault(name, []).append(path)
        return self._by_name


def value_folders(value: str) -> tuple[str, ...]:
    """Return the folders that a table's value names, without a drive or root."""
    parts = re.split(r"[\\/]+", _FOREIGN.sub("", value))[:-1]
    return tuple(clean(part) for part in parts if part not in ("", "."))


def ends_with(long: Sequence[str], short: Sequence[str]) -> bool:
    """Return whether a sequence ends with another one.

    Args:
        long: the longer sequence.
        short: its presumed end.
    """
    return len(short) <= len(long) and tuple(long[len(long) - len(short) :]) == tuple(short)
