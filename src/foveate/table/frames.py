"""Tables that a Python caller holds as data frames, written to files for the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def store_table(table: pd.DataFrame | Path | str, beside: Path) -> dict[str, Any]:
    """Return the section ``table`` for a table; write a data frame to a file first.

    Args:
        table: a CSV, TSV or XLSX file, or a data frame, whose relative paths begin at the working
            folder.
        beside: folder of the run, beside which the file is written.
    """
    if isinstance(table, str | Path):
        return {"path": str(table)}
    path = beside.with_name(f"{beside.name}.labels.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False)
    return {"path": str(path), "images": str(Path.cwd())}
