"""What a table of cases becomes: frozen values, everything as text, nothing guessed silently."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One image, whose it is, and what it shows.

    Attributes:
        image_id: unique, and safe as a file name.
        patient_id: images of one patient never lie on two sides of a split.
        path: of the image.
        label: as written in the table; `None` when there is none.
        spacing_um: level-0 spacing ``(y, x)``, when the table gives one; it overrides the file's.
    """

    image_id: str
    patient_id: str
    path: Path
    label: str | None = None
    spacing_um: tuple[float, ...] | None = None


@dataclass(frozen=True)
class SetAside:
    """A row that cannot be used, and why.

    Attributes:
        row: line in the table; the header is line 1.
    """

    row: int
    image_id: str
    path: str
    reason: str


@dataclass(frozen=True)
class CaseTable:
    """The cases of a table, and everything that is worth saying about how it was read.

    Attributes:
        label_column: `None` when there is no label.
        columns: role (``path``, ``image_id``, ``patient_id``, ``label``, ``spacing``, ``split``)
            to the column that plays it.
        notes: lines to show to the user.
        set_aside: rows that cannot be used, for the quarantine.
    """

    cases: tuple[Case, ...]
    label_column: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    set_aside: tuple[SetAside, ...] = ()


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        number: line in the table; the header is line 1.
        cells: column to text; ways of writing "missing" are already empty.
    """

    number: int
    cells: dict[str, str]


@dataclass(frozen=True)
class Sheet:
    """A table as text."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def where(self, row: Row, column: str) -> str:
        """``file, row 3, column 'mpp'`` for messages."""
        return f"{self.path}, row {row.number}, column '{column}'"
