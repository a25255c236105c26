"""Find the files of a DICOM slide in a folder, and the one that stands for the slide in a list.

Part of the reader `dicom_slide`. Levels, labels and overviews of a slide are files of their own.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from foveate.cache import ByteCache
from foveate.errors import UnreadableImage, UnsupportedFormat
from foveate.files.companions import accompanies_images, is_helper_folder
from foveate.formats.dicom_folder import FileState, dicom_suffix, list_files, read_head, read_state
from foveate.formats.dicom_header import SLIDE, is_dicom, read_sop_class
from foveate.formats.dicom_slide_file import Member, read_member
from foveate.messages.warn import warn_once

_MAX_FILES = 4096
"""The largest number of files of one slide."""
_SEARCHED_BYTES = 1 << 16
"""The first bytes of a damaged file, in which the identifier of its series is searched."""
_SUFFIXES = ("", ".dcm", ".dicom")
"""Suffixes of DICOM files."""
_MAX_OTHERS = 100
"""A folder whose first hundred files are no DICOM is taken for one without DICOM."""
_CONTENT_BYTES = 2048
"""About the memory of what is known of one file."""


@dataclass(frozen=True)
class _Content:
    """What a file holds.

    Attributes:
        kind: a file of a slide, one whose header is damaged, other DICOM, something else, or not
            known.
        member: its place in its slide; None where it is of none, or damaged.
    """

    kind: Literal["slide", "damaged slide", "other DICOM", "other", "unreadable"]
    member: Member | None = None


_contents: ByteCache[_Content] = ByteCache(1 << 26)
"""What files hold, by path and state; unreadable and damaged ones are read anew."""


def is_slide_file(path: Path, head: bytes) -> bool:
    """Return whether a file is DICOM of the kind of slides (SOP class), or a damaged one.

    Args:
        path: the file.
        head: its first bytes.
    """
    if SLIDE.encode() not in head or not is_dicom(head):
        return False
    try:
        return read_sop_class(path) == SLIDE
    except UnreadableImage:  # opening it says what is wrong
        return True


def is_slide_folder(folder: Path) -> bool:
    """Return whether the files of one slide are all that a folder holds.

    Hidden files, and those that accompany images, do not count. A folder in it, which may hold
    further images, does.

    Args:
        folder: the folder.

    Raises:
        OSError: it cannot be listed.
    """
    files: list[Path] = []
    for path in sorted(folder.iterdir()):
        if not path.is_dir():
            files += [] if accompanies_images(path.name) else [path]
        elif not is_helper_folder(path.name):
            return False
    images = leave_out_levels(files)
    return len(images) == 1 and _is_of_slide(images[0])


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
    for path in leave_out_levels([path for path, _ in list_files(folder)]):
        if _is_of_slide(path):
            return path
    raise UnreadableImage(f"{folder}: holds no slide in DICOM; name a file of the slide")


def _find_siblings(chosen: Member) -> Iterator[Member]:
    """Yield the file and those beside it that belong to the same slide.

    Raises:
        UnreadableImage: one that belongs to it is damaged.
    """
    yield chosen
    for path, state in list_files(chosen.path.parent):
        if path == chosen.path:
            continue
        content = _read_content(path, state)
        if content.member is not None and content.member.belongs_to(chosen):
            yield content.member
        elif content.kind == "damaged slide" and _names_slide(path, chosen):
            yield read_member(path)
        elif content.kind == "unreadable" and dicom_suffix(path) in _SUFFIXES:
            text = f"may lack a level, because {path.name} cannot be read"
            warn_once(logging.WARNING, "unreadable beside slide", path.parent, text)


def _names_slide(path: Path, chosen: Member) -> bool:
    """Return whether the first bytes of a damaged file name the series or place of a slide."""
    marks = [mark.encode() for mark in (chosen.series, *(chosen.place or ())[:1]) if mark]
    with path.open("rb") as file:
        head = file.read(_SEARCHED_BYTES)
    return any(mark in head for mark in marks)


def _is_of_slide(path: Path) -> bool:
    return _read_content(path).kind in ("slide", "damaged slide")


def _read_content(path: Path, state: FileState | None = None) -> _Content:
    """Return what a file holds; its header is read once.

    Args:
        path: the file.
        state: its state where it is known.
    """
    try:
        if state is None and not path.is_file():  # opening a pipe would wait for ever
            return _Content("unreadable")
        key = path, state or read_state(path)
        known = _contents.get(key)
        head = b"" if known is not None else read_head(path)
    except OSError:
        return _Content("unreadable")
    if known is not None:
        return known
    content = _Content("other DICOM" if is_dicom(head) else "other")
    if is_slide_file(path, head):
        try:
            content = _Content("slide", read_member(path))
        except UnreadableImage:
            return _Content("damaged slide")
    _contents.put(key, content, _CONTENT_BYTES)
    return content


# -- lists of images -------------------------------------------------------------------------------


def leave_out_levels(paths: Sequence[Path]) -> list[Path]:
    """Leave out the files of DICOM slides but one for each slide, that of its finest level.

    Args:
        paths: files of one folder that could be images.

    Returns:
        the other files, in the same order. Files that are damaged or cannot be read stay.
    """
    members = list(_find_members(paths))
    left_out = {m.path for m in members} - {_stand_in(group).path for group in _group(members)}
    return [path for path in paths if path not in left_out]


def _find_members(paths: Sequence[Path]) -> Iterator[Member]:
    """Yield the files of DICOM slides; none where the first hundred files are no DICOM."""
    n_others, holds_dicom = 0, False
    for path in paths:
        if n_others >= _MAX_OTHERS and not holds_dicom:
            return
        if dicom_suffix(path) not in _SUFFIXES:
            continue
        content = _read_content(path)
        holds_dicom = holds_dicom or content.kind not in ("other", "unreadable")
        n_others += 1
        if content.member is not None:
            yield content.member


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
