"""Take the findings of an earlier check of the same table into the folder of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foveate.errors import CheckpointError
from foveate.files.digest import file_sha256
from foveate.files.run_layout import CheckLayout
from foveate.runs.folder import read_json

FOLDER = "check"
"""Name of the folder of a check beside the table, where no other is chosen."""


def compute_source_digest(source: Path) -> str:
    """Compute the sha256 of a table, as 64 hexadecimal digits; empty for a folder of images."""
    return file_sha256(source) if source.is_file() else ""


def read_stored_check(table: Path) -> tuple[dict[str, Any], str]:
    """Read the findings of the check that lies beside a table.

    Args:
        table: the table of labels.

    Returns:
        The content of ``check.json``, empty where it cannot be used, and a sentence about it.
    """
    path = CheckLayout(table.parent / FOLDER).findings
    if not path.is_file():
        return {}, f"this table was not checked; `foveate check {table}` finds what may spoil it"
    try:
        stored = read_json(path)
    except CheckpointError:
        stored = None
    if not isinstance(stored, dict) or not isinstance(stored.get("verdict"), str):
        return {}, f"{path} is damaged; give `foveate check {table}` again"
    if stored.get("source_sha256") != compute_source_digest(table):
        return {}, f"{path} is about other content of a table; give `foveate check {table}` again"
    return stored, f"from the check of this table ({path}): {stored['verdict']}"
