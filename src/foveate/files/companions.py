"""Recognise by their names files and folders that lie beside images and are none themselves."""

from __future__ import annotations

import re
from pathlib import Path

_SIDECARS = frozenset(
    {".json", ".csv", ".tsv", ".txt", ".geojson", ".html", ".htm", ".xml", ".xlsx", ".xls"}
    | {".md", ".yaml", ".yml", ".log", ".dat", ".ini", ".ets", ".pdf", ".zip", ".db", ".part"}
    | {".py", ".sh", ".safetensors", ".h5", ".pt"}
    | {".md5", ".sha1", ".sha256", ".sha512", ".sfv", ".crc", ".asc", ".sig", ".parcel"}
    | {".partial", ".crdownload", ".download", ".aria2", ".tmp", ".bak", ".lnk", ".url", ".gsheet"}
)
_SIDECAR_NAMES = re.compile(
    r"(?:md5|sha\d+|b2)sums?|checksums?|manifest|readme|licen[cs]e|dicomdir|thumbs\.db|ehthumbs\.db"
    r"|icon\r?",
    re.IGNORECASE,
)
_HELPER_FOLDERS = frozenset(
    {"@eadir", "#recycle", "@recycle", "$recycle.bin", "__macosx", "lost+found"}
    | {"system volume information", "@tmp", "#snapshot"}
)
"""Folders that network disks and systems put beside the user's files, in small letters."""


def accompanies_images(name: str) -> bool:
    """Return whether a file accompanies images rather than being one, by its name."""
    sidecar = Path(name).suffix.lower() in _SIDECARS or ".truth." in name
    return name.startswith(".") or sidecar or _SIDECAR_NAMES.fullmatch(name) is not None


def is_helper_folder(name: str) -> bool:
    """Return whether a folder is hidden, or made by a system beside the user's, by its name."""
    return name.startswith(".") or name.lower() in _HELPER_FOLDERS
