"""Exports: files that show where a model looked, one of each kind beside each answer.

An export is one file in this package, or in a folder of plug-ins, found by its name.
"""

from __future__ import annotations

from collections.abc import Sequence

from foveate.exports.base import About, AbstractExport
from foveate.parts import find

DEFAULT = ("png", "geojson")
"""What is written where nothing is asked for."""

__all__ = ["DEFAULT", "About", "AbstractExport", "build_exports"]


def build_exports(names: Sequence[str]) -> dict[str, AbstractExport]:
    """Build exports by name.

    Raises:
        UnknownName: no export of this name.
    """
    return {name: find("exports", name)() for name in names}
