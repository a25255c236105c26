"""The values that a table of cases is read into; all cells are text."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from foveate.tasks import AUTO


@dataclass(frozen=True)
class Case:
    """One image with its patient and its label, or all images of a patient that answer together.

    Attributes:
        image_id: name of the image, unique and safe as a file name.
        patient_id: name of the patient; all images of a patient lie in one part of a split.
        path: the image's file; of several images, the first one's.
        label: the label as written in the table, numbers with decimal points, or None.
        spacing_um: level-0 spacing ``(y, x)`` from the table, which overrides the file's, or None.
        site: name of the place that the image comes from, where splits hold sites out; or None.
        mask: file of a mask of what decides the label, for audits, or None; it may not exist.
        images: the images of a patient that are answered together (``--bag patient``), each as a
            case of its own; empty for a case of one image.
        lacking: ids of those images of the patient that cannot be read.
    """

    image_id: str
    patient_id: str
    path: Path
    label: str | None = None
    spacing_um: tuple[float, ...] | None = None
    site: str | None = None
    mask: Path | None = None
    images: tuple[Case, ...] = ()
    lacking: tuple[str, ...] = ()

    def list_images(self) -> tuple[Case, ...]:
        """Return the images of the case, each as a case of its own."""
        return self.images or (self,)

    @property
    def paths(self) -> str:
        """The files of the images as one text, separated by ``|``."""
        return "|".join(str(image.path) for image in self.list_images())

    def without(self, image_ids: Collection[str]) -> Case | None:
        """Return the case without some of its images; None where no image is left.

        Args:
            image_ids: ids of images, of this case or of others.
        """
        kept = tuple(i for i in self.list_images() if i.image_id not in image_ids)
        if not kept:
            return None
        if len(kept) == len(self.list_images()):
            return self
        gone = [i.image_id for i in self.images if i.image_id in image_ids]
        return replace(self, path=kept[0].path, images=kept, lacking=(*self.lacking, *gone))


@dataclass(frozen=True)
class SetAside:
    """A row that cannot be used.

    Attributes:
        row: line in the table; the header is line 1. 0 where it is not known.
        image_id: name of the image.
        path: the image's path as written in the table.
        reason: why the row cannot be used.
    """

    row: int
    image_id: str
    path: str
    reason: str


@dataclass(frozen=True)
class CaseTable:
    """The cases of a table, and how they were read.

    Attributes:
        cases: the usable cases, in the order of the table.
        label_column: name of the label's column, or None.
        columns: names of columns by their role: ``path``, ``image_id``, ``patient_id``, ``label``,
            ``spacing``, ``site``.
        notes: lines to show to the user.
        set_aside: rows that cannot be used, for ``quarantine.csv``.
        task: name of the task that the columns of the label were joined for, or that was asked
            for.
    """

    cases: tuple[Case, ...]
    label_column: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    set_aside: tuple[SetAside, ...] = ()
    task: str = AUTO


@dataclass(frozen=True)
class LabelRules:
    """Which labels the rows of a table need.

    Attributes:
        wanted: labels of the rows to keep; None for all.
        known: labels of a model; labels of the table with the same meaning get their spelling.
        needed: whether rows without a label are left out.
        for_training: whether labels must be such that the task can be trained on them, and
            patients must be known where there is a column of them.
        task: name of the task to train, or of the model's task; where none is named, labels that
            are hardly classes are refused. It says whether labels are numbers.
        task_options: options of the task.
        renamed: new name by label, as the user says; an empty name means that the label is
            missing.
        renamed_in_training: the same of the run whose model is evaluated.
    """

    wanted: Sequence[str] | None = None
    known: Sequence[str] = ()
    needed: bool = True
    for_training: bool = True
    task: str = AUTO
    task_options: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    renamed_in_training: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        number: line in the table; the header is line 1.
        cells: texts by column; words for a missing value are replaced by the empty text.
    """

    number: int
    cells: dict[str, str]


@dataclass(frozen=True)
class TableSheet:
    """A table as text.

    Attributes:
        path: the table's file.
        columns: names of the columns.
        rows: the rows below the header.
        notes: lines to show to the user about how the table was read.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def where(self, row: Row, column: str) -> str:
        """Return the place of a cell for messages, such as ``file, row 3, column 'mpp'``.

        Args:
            row: row of the table.
            column: name of the column.
        """
        return f"{self.path}, row {row.number}, column '{column}'"
