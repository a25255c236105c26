"""Choose the column of a role among several that could have it; refuse where the choice matters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from foveate.errors import TableError
from foveate.table.same import plain_name
from foveate.table.types import TableSheet
from foveate.wording import did_you_mean


@dataclass(frozen=True)
class Role:
    """A role of a column whose values divide the images into groups.

    Attributes:
        option: option by which the user names the column.
        noun: the groups of images in messages, such as ``patients``.
        names: plain names of columns that could have the role, the best first.
        clear: those of `names` that say so beyond doubt.
        key: returns a key that is equal for spellings of one value.
    """

    option: str
    noun: str
    names: tuple[str, ...]
    clear: frozenset[str]
    key: Callable[[str], str]


def choose_column(
    sheet: TableSheet, role: Role, but: Collection[str | None] = (), *, strict: bool = True
) -> tuple[str | None, tuple[str, ...]]:
    """Choose the column of a role, and say so where others divide the images differently.

    Args:
        sheet: the table.
        role: the role.
        but: columns that are left out.
        strict: whether an unclear choice is refused; else a warning names the columns.

    Returns:
        the column, or None, and notes for the user.

    Raises:
        TableError: with `strict`, several columns could have the role, divide the images
            differently, and none has the only clear name.
    """
    rank = {name: i for i, name in enumerate(role.names)}
    columns = [
        column
        for column in sheet.columns
        if plain_name(column) in rank and column not in but and _is_filled(sheet, column)
    ]
    if not columns:
        return None, ()
    chosen, *others = sorted(columns, key=lambda column: rank[plain_name(column)])
    different = [other for other in others if not _divide_alike(sheet, role, chosen, other)]
    rivals = [other for other in different if plain_name(other) in role.clear]
    if rivals or (different and plain_name(chosen) not in role.clear):
        unclear = _describe_unclear(sheet, role, chosen, (rivals or different)[0])
        if strict:
            raise TableError(f"{sheet.path}: {unclear}: name the right one with --{role.option}")
        return chosen, (f"warning: {unclear}; '{chosen}' is used",)
    notes = [_describe_unlike(sheet, role, chosen, other) for other in different]
    alike = [other for other in others if other not in different]
    if alike:
        notes.append(
            f"{role.noun} are taken from '{chosen}'; '{alike[0]}' divides the images in the same "
            "way"
        )
    return chosen, tuple(notes)


def find_named(sheet: TableSheet, column: str | None, option: str) -> str | None:
    """Find the column that the user names, ignoring capitals; None if the user names none.

    Args:
        sheet: the table.
        column: the name.
        option: the option by which it was named, for the message.

    Raises:
        TableError: there is no such column; the message gives the nearest name.
    """
    if column is None or column in sheet.columns:
        return column
    same = [c for c in sheet.columns if plain_name(c) == plain_name(column)]
    if len(same) == 1:
        return same[0]
    raise TableError(
        f"{sheet.path}: no column '{column}' (--{option}).{did_you_mean(column, sheet.columns)}"
    )


def first_filled(
    sheet: TableSheet, candidates: Iterable[str], but: Iterable[str | None] = ()
) -> str | None:
    """Return the first candidate that is a column with any value.

    Args:
        sheet: the table.
        candidates: plain names of columns, the best first.
        but: columns that are left out.

    Raises:
        TableError: two columns have the same plain name, and different values.
    """
    left = [c for c in sheet.columns if c not in set(but) and _is_filled(sheet, c)]
    for candidate in candidates:
        columns = [c for c in left if plain_name(c) == candidate]
        if columns:
            _check_equal(sheet, columns)
            return columns[0]
    return None


def _check_equal(sheet: TableSheet, columns: list[str]) -> None:
    """Raise `TableError` unless columns of one plain name hold the same values."""
    first, *others = columns
    for other in others:
        if any(row.cells[first] != row.cells[other] for row in sheet.rows):
            raise TableError(
                f"{sheet.path}: columns '{first}' and '{other}' differ in name by capitals or "
                "blanks only, and hold different values; rename one"
            )


def _is_filled(sheet: TableSheet, column: str) -> bool:
    """Return whether a column has any value."""
    return any(row.cells[column] for row in sheet.rows)


def _divide_alike(sheet: TableSheet, role: Role, first: str, second: str) -> bool:
    """Return whether two columns divide the images into the same groups."""
    pairs = _pair_values(sheet, role, first, second)
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def _pair_values(sheet: TableSheet, role: Role, first: str, second: str) -> set[tuple[str, str]]:
    """Return the different pairs of values of two columns, without rows where both are empty."""
    cells = [(row.cells[first], row.cells[second]) for row in sheet.rows]
    return {(role.key(a), role.key(b)) for a, b in cells if a or b}


def _count(sheet: TableSheet, role: Role, column: str) -> int:
    """Count the groups that a column divides the images into."""
    return len({role.key(row.cells[column]) for row in sheet.rows if row.cells[column]})


def _describe_unclear(sheet: TableSheet, role: Role, first: str, second: str) -> str:
    """Describe that either of two columns could have a role."""
    return (
        f"both '{first}' and '{second}' could hold the {role.noun}, and they divide the images "
        f"differently ({_count(sheet, role, first)} and {_count(sheet, role, second)} {role.noun})"
    )


def _describe_unlike(sheet: TableSheet, role: Role, chosen: str, other: str) -> str:
    """Describe which of two columns is used that divide the images differently.

    It is a warning where images of one group of the unused column lie in several groups of the
    chosen one.
    """
    pairs = _pair_values(sheet, role, chosen, other)
    nested = len(pairs) == len({b for _, b in pairs})
    return (
        f"{'' if nested else 'warning: '}{role.noun} are taken from '{chosen}' "
        f"({_count(sheet, role, chosen)}), for its name says so; '{other}' divides the images "
        f"differently ({_count(sheet, role, other)}) and is not used; to train with it, say "
        f"--{role.option} '{other}'"
    )
