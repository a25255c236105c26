"""Find the files of a DICOM slide in a folder, and the one that stands for the slide in a list.

Part of the reader `dicom_slide`. Levels, labels and overviews of a slide are files of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Iterator, Sequence
from pathlib import Path

from foveate.errors import FoveateError, UnreadableImage, UnsupportedFormat
from foveate.formats.dicom_header import SLIDE, is_dicom, read_sop_class
from foveate.formats.dicom_slide_file import Member, read_member

_MAX_FILES = 4096
"""The largest number of files of one slide."""
_SEARCHED_BYTES = 1 << 16
"""The first bytes of a file, in which the identifier of its series stands."""
_SUFFIXES = ("", ".dcm", ".dicom")
"""Suffixes of DICOM files; names that are identifiers end in a number."""
_MAX_OTHERS = 100
"""A folder whose first hundred files are no DICOM is taken for one without DICOM."""


def is_slide_file(path: Path, head: bytes) -> bool:
    """Return whether a file is DICOM of the kind of slides (SOP class).

    Args:
        path: the file.
        head: its first bytes.
    """
    return SLIDE.encode() in head and is_dicom(head) and read_sop_class(path) == SLIDE


def find_volumes(path: Path) -> list[Member]:
    """Return the files with levels of the slide that a path means, each content once.

    Args:
        path: a folder that holds one slide, or any file of a level.

    Raises:
        UnreadableImage: a file is damaged, or none shows the slide itself.
        UnsupportedFormat: the file shows a label or overview, or there are too many files.
    """
    chosen = read_member(path if path.is_file() else _choose_file(path))
    if chosen.kind != "VOLUME":
        raise UnsupportedFormat(
            f"{path}: shows the {chosen.kind.lower()} of a slide, not the slide; name a file of "
            "the slide itself, or its folder"
        )
    members = list(itertools.islice(_find_siblings(chosen), _MAX_FILES + 1))
    if len(members) > _MAX_FILES:
        raise UnsupportedFormat(
            f"{path}: more than {_MAX_FILES} files of one slide; remove those that are none of it"
        )
    volumes = [member for member in reversed(members) if member.kind == "VOLUME"]
    return list({m.instance or str(m.path): m for m in volumes}.values())  # the chosen one stays


def _choose_file(folder: Path) -> Path:
    """Return the file of a folder that stands for the slide in it."""
    files = leave_out_levels(sorted(path for path in folder.iterdir() if path.is_file()))
    for path in files:
        if is_slide_file(path, read_first_bytes(path)):
            return path
    raise UnreadableImage(f"{folder}: holds no slide in DICOM; name a file of the slide")


def _find_siblings(chosen: Member) -> Iterator[Member]:
    """Yield the file and those beside it that belong to the same slide."""
    yield chosen
    marks = [mark.encode() for mark in (chosen.series, *(chosen.place or ())[:1]) if mark]
    for path in sorted(chosen.path.parent.iterdir()):
        if path == chosen.path or path.name.startswith(".") or not path.is_file():
            continue
        head = read_first_bytes(path)
        if any(mark in head for mark in marks) and is_slide_file(path, head):
            member = read_member(path)
            if member.belongs_to(chosen):
                yield member


def read_first_bytes(path: Path) -> bytes:
    """Read the first bytes of a file, in which the identifiers of its header stand."""
    with path.open("rb") as file:
        return file.read(_SEARCHED_BYTES)


# -- lists of images -------------------------------------------------------------------------------


def leave_out_levels(paths: Sequence[Path]) -> list[Path]:
    """Leave out the files of DICOM slides but one for each slide, that of its finest level.

    Args:
        paths: files of one folder that could be images.

    Returns:
        the other files, in the same order. Damaged files stay.
    """
    slides = set(_list_slide_files(paths))
    if len(slides) < 2:
        return list(paths)
    members: list[Member] = []
    for path in sorted(slides):
        try:
            members.append(read_member(path))
        except FoveateError:  # it is refused by name when it is opened
            slides.discard(path)
    left_out = slides - {_stand_in(group).path for group in _group(members)}
    return [path for path in paths if path not in left_out]


def _list_slide_files(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the files of DICOM slides; none where the first files are something else."""
    others = 0
    for path in paths:
        if others >= _MAX_OTHERS:
            return
        named = path.suffix.lower() in _SUFFIXES or path.suffix[1:].isdigit()
        if not named or not path.is_file():
            continue
        head = read_first_bytes(path)
        if is_slide_file(path, head):
            others = -len(paths)
            yield path
        elif is_dicom(head):
            others += _MAX_OTHERS
        else:
            others += 1


def _group(members: Iterable[Member]) -> list[list[Member]]:
    """Divide files into those of one slide each."""
    groups: dict[Hashable, list[Member]] = {}
    for member in members:
        known = [groups[key] for key in _keys(member) if key in groups]
        group = known[0] if known else []
        for other in known[1:]:
            if other is not group:
                group += other
                groups |= {key: group for m in other for key in _keys(m)}
        group.append(member)
        groups |= dict.fromkeys(_keys(member), group)
    return list({id(group): group for group in groups.values()}.values())


def _keys(member: Member) -> list[Hashable]:
    """Return what the files of one slide have in common."""
    return [key for key in (member.series, member.place) if key] or [member.path]


def _stand_in(group: Sequence[Member]) -> Member:
    """Return the file of the finest level of a slide, by the sides that its header states."""
    return max(group, key=lambda m: (m.kind == "VOLUME", m.stated_px))
