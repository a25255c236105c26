"""Exports: kinds of files that show the evidence of an answer, such as a heatmap.

An export is one module of this package, or of a folder of plug-ins, found by its name.
"""

from __future__ import annotations

from collections.abc import Sequence

from foveate.defaults import EXPORT as DEFAULT
from foveate.exports.base import About, AbstractExport
from foveate.parts import find

__all__ = ["DEFAULT", "About", "AbstractExport", "build_exports"]


def build_exports(names: Sequence[str]) -> dict[str, AbstractExport]:
    """Build exports by name.

    Raises:
        UnknownName: there is no export of this name.
    """
    return {name: find("exports", name)() for name in names}
