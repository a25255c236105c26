"""The part of the contract of a task that is about labels: from cells of a table to targets."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from jaxtyping import Shaped
from torch import Tensor

from foveate.errors import TableError

NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})
"""No options of a task."""

Cells = Mapping[str, Sequence[str]]
"""The cells of columns by their name, one for each row; empty where missing."""

Target = int | float | list[float]
"""The target of the loss that a label stands for."""


class CellError(TableError):
    """A cell of a column that holds a part of the label has no meaning.

    The message continues a sentence that begins with the place of the cell.

    Args:
        message: the message.
        column: column of the cell.
        index: number of its row among the rows with an image, from 0.
    """

    def __init__(self, message: str, column: str = "", index: int = 0) -> None:
        super().__init__(message)
        self.column, self.index = column, index


@dataclass(frozen=True)
class JoinedLabels:
    """Labels of rows whose label several columns hold.

    Attributes:
        labels: the label of each row as one text; empty where it is missing.
        notes: lines to show to the user about how the columns were understood.
    """

    labels: tuple[str, ...]
    notes: tuple[str, ...] = ()


class AbstractLabels(abc.ABC):
    """The labels of a task: which it takes, what it learns from them, and their targets.

    A label is one text from the table on. Where several columns hold it, `join` writes the text.

    Attributes:
        preference: rank of the task; where several tasks fit the labels, the highest rank wins.
        takes_numbers: whether labels are numbers, which are read alike in the whole column.
        takes_lists: whether a cell may name several labels, such as ``a|b``.
    """

    preference: ClassVar[int] = 0
    takes_numbers: ClassVar[bool] = False
    takes_lists: ClassVar[bool] = False

    @classmethod
    @abc.abstractmethod
    def fits(cls, labels: Sequence[str], column: str) -> bool:
        """Return whether the task takes these distinct labels where no task is named.

        Args:
            labels: the distinct labels, sorted.
            column: name of their column, which may say what they are.
        """

    @classmethod
    @abc.abstractmethod
    def settle(
        cls,
        labels: Sequence[str],
        shared: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] = NO_OPTIONS,
    ) -> dict[str, Any]:
        """Settle from labels what the constructor needs, as plain values by keyword.

        Args:
            labels: one label per image; first of the whole table, then of each training part.
            shared: what the labels of the whole table settled; values that all folds must share
                are taken from it.
            options: options of the task that the user chose, of the types of the constructor.

        Raises:
            TableError: the labels do not fit the task; the message continues a sentence that
                begins with the name of the column.
        """

    @classmethod
    def doubt(cls, labels: Sequence[str], column: str) -> str | None:
        """Explain why labels that the task fits are probably something else; None where not.

        Such labels are trained by this task only where the user names it.

        Args:
            labels: one label per image.
            column: name of their column.
        """
        del labels, column
        return None

    @classmethod
    def suggest(cls, labels: Sequence[str], column: str) -> str | None:
        """Explain how labels that another task was inferred for could be of this task.

        Args:
            labels: one label per image.
            column: name of their column.

        Returns:
            A line for the user; None where the labels do not resemble those of this task.
        """
        del labels, column
        return None

    @classmethod
    def fits_columns(cls, cells: Cells) -> bool:
        """Return whether the task takes several columns as a label where no task is named.

        Args:
            cells: the cells of the columns that the user names, by column.
        """
        del cells
        return False

    @classmethod
    def find_columns(cls, cells: Cells, named: str | None = None) -> tuple[str, ...]:
        """Find the columns which together hold the label where the user does not name them.

        Args:
            cells: the cells of all columns of a table, by column.
            named: a column that must be one of them; None for any.

        Returns:
            Their names; none where the label stands in one column.

        Raises:
            TableError: it is not clear which columns are meant.
        """
        del cells, named
        return ()

    @classmethod
    def join(cls, cells: Cells, options: Mapping[str, Any] = NO_OPTIONS) -> JoinedLabels:
        """Write the label of each row, which several columns hold, as one text.

        Everything after the table knows a label as one text, which `parse` reads.

        Args:
            cells: the cells of the columns, by column; empty where missing.
            options: options of the task.

        Raises:
            CellError: a cell has no meaning.
            TableError: the task takes one column, or does not understand these; the message
                continues a sentence that begins with the names of the columns.
        """
        name = cls.__module__.rsplit(".", 1)[-1].rstrip("_")
        raise TableError(
            f"are {len(cells)} columns, and task '{name}' takes one column of labels. Name one "
            "with --label"
        )

    @property
    def settled(self) -> dict[str, Any]:
        """The settled values, as plain values by keyword of the constructor."""
        return {
            name: list(value) if isinstance(value := getattr(self, name), tuple) else value
            for name in list_settled_keywords(type(self))
        }

    @property
    def resolved(self) -> Mapping[str, Any]:
        """Options that the user left open and the task has settled, by name."""
        return {}

    @property
    def assumptions(self) -> tuple[str, ...]:
        """Sentences on what was assumed about labels and how to say otherwise."""
        return ()

    @property
    def common(self) -> Mapping[str, str]:
        """Properties that models which answer together must share, as texts by name."""
        return {}

    @property
    def known_labels(self) -> tuple[str, ...]:
        """Labels whose spelling new tables are matched to; empty where labels are no names."""
        return ()

    @property
    @abc.abstractmethod
    def allowed(self) -> str:
        """Text that lists the labels which the task understands."""

    @abc.abstractmethod
    def describe(self) -> str:
        """Describe in a few words what is predicted."""

    @abc.abstractmethod
    def parse(self, label: str) -> Target:
        """Return the target of a label.

        Raises:
            TableError: the label has no target; the message says why.
        """

    def targets(self, labels: Sequence[str]) -> Shaped[Tensor, "n ..."]:
        """Return the targets of labels, ``(n,)`` or ``(n, k)``.

        Raises:
            TableError: a label has no target.
        """
        return torch.tensor([self.parse(label) for label in labels])

    def understands(self, label: str | None) -> bool:
        """Return whether a label has a target."""
        try:
            self.parse(label or "")
        except TableError:
            return False
        return True

    def strata(self, labels: Sequence[str], patients: Sequence[str]) -> list[str]:
        """Return the stratum of the images, by which patients are divided into similar parts.

        Args:
            labels: one label per image.
            patients: one patient per image.
        """
        del patients
        return list(labels)

    def tally(self, labels: Sequence[str]) -> dict[str, str]:
        """Summarise the labels of a part of the images, as cells of a table by column."""
        del labels
        return {}


def list_settled_keywords(task: type[AbstractLabels]) -> list[str]:
    """Return the keywords of a task's constructor that are settled from labels."""
    parameters = inspect.signature(task).parameters.values()
    return [p.name for p in parameters if p.default is inspect.Parameter.empty]
