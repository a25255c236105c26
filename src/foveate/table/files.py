"""Which file a table's value means, and which files of a folder could be images."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from foveate.errors import TableError, printable_name
from foveate.table.same import clean

SUFFIXES = (
    *(".ome.tiff", ".ome.tif", ".ome.zarr", ".nii.gz", ".svs", ".tiff", ".tif", ".ndpi"),
    *(".mrxs", ".scn", ".vms", ".vmu", ".svslide", ".bif", ".czi", ".vsi", ".qptiff", ".btf"),
    *(".isyntax", ".zarr", ".dcm", ".png", ".jpeg", ".jpg", ".jp2", ".j2k", ".webp", ".bmp"),
    *(".gif", ".nii", ".mha", ".mhd", ".nrrd", ".npy", ".h5", ".pt"),
)
"""Endings that are no part of a name; any other dot belongs to it."""

_FEATURES = (".h5", ".pt")
_SIDECARS = frozenset(
    {".json", ".csv", ".tsv", ".txt", ".geojson", ".html", ".htm", ".xml", ".npz", ".xlsx", ".xls"}
    | {".md", ".yaml", ".yml", ".log", ".dat", ".ini", ".ets", ".pdf", ".zip", ".db", ".part"}
    | {".py", ".sh", ".safetensors", *_FEATURES}
    | {".md5", ".sha1", ".sha256", ".sha512", ".sfv", ".crc", ".asc", ".sig", ".parcel"}
    | {".partial", ".crdownload", ".download", ".aria2", ".tmp", ".bak", ".lnk", ".url", ".gsheet"}
)
_SIDECAR_NAMES = re.compile(
    r"(?:md5|sha\d+|b2)sums?|checksums?|manifest|readme|licen[cs]e|thumbs\.db|ehthumbs\.db"
    r"|icon\r?",
    re.IGNORECASE,
)
_HELPER_FOLDERS = frozenset(
    {"@eadir", "#recycle", "@recycle", "$recycle.bin", "__macosx", "lost+found"}
    | {"system volume information", "@tmp", "#snapshot"}
)
"""What network disks and systems put beside files of the user, in small letters."""
_OURS = frozenset({"answers.jsonl", "splits.json"})
"""Files that only a folder of foveate's own results holds."""
_UNSAFE = re.compile(r'[\\/:*?"<>|\x00-\x1f]+')
_MOST_ENTRIES = 200_000
_FOREIGN = re.compile(r"^\w+://|^(?:[A-Za-z]:)?[\\/]+|^[A-Za-z]:|^~[\\/]|^(?:\.\.[\\/])+")
"""How a path of another machine may begin: an address, a drive, a root, a home, a way up."""


def stem(name: str) -> str:
    """The name without a known suffix: ``TCGA-AA-0001.F6E9.svs`` keeps its inner dot."""
    lower = name.lower()
    for suffix in SUFFIXES:
        if lower.endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def image_files(
    folder: Path, *, deep: bool = True, is_image: Callable[[Path], bool] = lambda _: False
) -> Iterator[Path]:
    """Files in a folder that could be images, sorted; companions of MIRAX and VSI are skipped.

    Links to folders are followed, each folder once. Files that accompany images (tables,
    checksums, thumbnails of network disks) are no images.

    Args:
        folder: where to look.
        deep: look in the folders below as well.
        is_image: says of a folder below whether it is one image; nothing in it is one then.

    Raises:
        TableError: there are more entries than anybody would want to have listed.
    """
    seen, been = 0, set[tuple[int, int]]()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if not _first_time(Path(parent), been) or _OURS & set(names):
            folders.clear()  # answers and pictures of foveate are no images
            continue
        companions = {Path(n).stem for n in names if n.lower().endswith((".mrxs", ".vms"))}
        companions |= {f"_{Path(n).stem}_" for n in names if n.lower().endswith(".vsi")}
        folders[:] = sorted(
            f
            for f in folders
            if not f.startswith(".") and f not in companions and f.lower() not in _HELPER_FOLDERS
        )
        if not deep:
            folders.clear()
        wholes = [f for f in folders if is_image(Path(parent, f))]
        yield from (Path(parent, f) for f in wholes)
        folders[:] = [f for f in folders if f not in wholes]
        seen += len(names)
        if seen > _MOST_ENTRIES:
            raise TableError(
                f"{folder} holds more than {_MOST_ENTRIES} files: name the folder of the images"
            )
        for name in sorted(names):
            if not _accompanies(name):
                yield Path(parent, name)


def _first_time(folder: Path, been: set[tuple[int, int]]) -> bool:
    """Whether a folder was not visited yet, under whatever name; links may lead in circles."""
    try:
        state = folder.stat()
    except OSError:
        return False
    place = (state.st_dev, state.st_ino)
    if place in been:
        return False
    been.add(place)
    return True


def _accompanies(name: str) -> bool:
    """Whether a file of this name goes with images rather than being one."""
    sidecar = Path(name).suffix.lower() in _SIDECARS or ".truth." in name
    return name.startswith(".") or sidecar or _SIDECAR_NAMES.fullmatch(name) is not None


def safe_id(name: str) -> str:
    """An id that is safe as a file name: reports and heat maps are named by it.

    Bytes of a name that are no UTF-8 are written as ``_x`` and two digits.
    """
    return _UNSAFE.sub("_", printable_name(name)).strip(". ") or ("image" if name else "")


def file_ids(paths: Sequence[Path], base: Path) -> list[str]:
    """Unique ids of different files: the name; with its folder (``a__1``), or suffix, at need."""
    ids = [safe_id(stem(path.name)) for path in paths]
    for whole in (False, True):
        count = Counter(i.casefold() for i in ids)
        ids = [
            _long_id(path, base, whole) if count[i.casefold()] > 1 else i
            for i, path in zip(ids, paths, strict=True)
        ]
    return ids


def _long_id(path: Path, base: Path, whole: bool) -> str:
    inside = path.relative_to(base) if path.is_relative_to(base) else path.relative_to(path.anchor)
    name = path.name if whole else stem(path.name)
    return "__".join(safe_id(part) for part in (*inside.parts[:-1], name))


@dataclass
class Finder:
    """Finds the file that a table's value means: a path, or a name with or without suffix.

    A value with folders means a file that lies in folders of these names. Of a path of another
    machine, the folders that only that machine has are left out. Letters are compared after
    `clean`, since macOS writes ``a`` with dots in another way than a table does.
    """

    base: Path
    _by_name: dict[str, list[Path]] | None = field(default=None, init=False)

    def find(self, value: str) -> Path | None:
        """The file, or `None`.

        Raises:
            TableError: several files fit.
        """
        direct = self._direct(value)
        # A table of features (STAMP's) means the slide of that name.
        features = value.lower().endswith(_FEATURES)
        if direct is not None and direct.is_file() and not features:
            return direct
        named = PurePosixPath(value.replace("\\", "/")).name
        found = self._below(value, named)
        if not found and (features or stem(named) == named):
            found = self._below(value, stem(named))
        if len(found) > 1:
            wanted = stem(value.replace("\\", "/"))
            exact = [p for p in found if stem(p.relative_to(self.base).as_posix()) == wanted]
            found = exact or found
        if len(found) > 1:
            raise TableError(
                f"'{value}' fits several files: {found[0]} and {found[1]}; write its folder before "
                "it"
            )
        return found[0] if found else direct

    def beside(self, value: str) -> Path | None:
        """A file of the same name in another folder, or with another ending; it is not meant."""
        named = stem(PurePosixPath(value.replace("\\", "/")).name)
        return next(iter(self._index().get(clean(named), [])), None)

    def all(self) -> list[Path]:
        """Every file below the folder that could be an image."""
        return sorted({path for paths in self._index().values() for path in paths})

    def _direct(self, value: str) -> Path | None:
        for text in (value, value.replace("\\", "/")):
            try:
                path = self.base / Path(text).expanduser()
                if path.exists():
                    return path
            except (OSError, ValueError, RuntimeError):  # too long, a NUL, no such user
                continue
        return None

    def _below(self, value: str, name: str) -> list[Path]:
        """Files of this name, with or without suffix, that lie where the value says."""
        folders = value_folders(value)
        foreign = _FOREIGN.match(value) is not None
        fitting = []
        for path in self._index().get(clean(name), []):
            lies_in = tuple(map(clean, path.absolute().parent.parts))
            inside = tuple(map(clean, path.relative_to(self.base).parent.parts))
            if ends_with(lies_in, folders) or (foreign and ends_with(folders, inside)):
                fitting.append(path)
        return fitting

    def _index(self) -> dict[str, list[Path]]:
        if self._by_name is None:
            self._by_name = {}
            for path in image_files(self.base):
                for name in {clean(path.name), clean(stem(path.name))}:
                    self._by_name.setdefault(name, []).append(path)
        return self._by_name


def value_folders(value: str) -> tuple[str, ...]:
    """The folders that a value of a table names, without a drive or root."""
    parts = re.split(r"[\\/]+", _FOREIGN.sub("", value))[:-1]
    return tuple(clean(part) for part in parts if part not in ("", "."))


def ends_with(long: Sequence[str], short: Sequence[str]) -> bool:
    """Whether the last of `long` are all of `short`."""
    return len(short) <= len(long) and tuple(long[len(long) - len(short) :]) == tuple(short)
