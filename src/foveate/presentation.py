"""Words, figures, tables and verdicts about answers, and the style of figures.

Tasks fill these in; the report, the pictures and the command line show them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#1f5a99", "#c8641b", "#2e7d4f", "#8a8f98"
CYCLE = (BLUE, ORANGE, GREEN, "#7a4fa3", "#b03060", "#5c6b7a", "#8a7a1f", "#1f8a8a")

_LABELS_INCHES = 0.45
"""Height of the labels below axes, which a legend leaves free."""

_MAX_LETTERS_OF_THREE_COLUMNS = 17
"""Longest entry of a legend with which three columns are no wider than a figure."""


@dataclass(frozen=True)
class ScoreWords:
    """The title and the meaning of a score.

    Attributes:
        title: title of the score.
        text: meaning of the score and its value at chance, in one line.
        small_is_good: whether smaller values are better.
        span: worst and best value, the ends of its bar; None draws no bar.
        within_folds: whether the score compares only images of the same fold.
    """

    title: str
    text: str
    small_is_good: bool = False
    span: tuple[float, float] | None = (0.0, 1.0)
    within_folds: bool = False


@dataclass(frozen=True)
class Chart:
    """A figure of the report.

    Attributes:
        name: name of its file, without suffix.
        caption: what the figure shows.
        absent: text in place of the figure where `plot` is None.
        alt: description of the figure in words, for readers who do not see it.
        plot: function that plots the figure; None where there is nothing to plot.
    """

    name: str
    caption: str
    absent: str
    alt: str = ""
    plot: Callable[[Figure], None] | None = None


@dataclass(frozen=True)
class ShadedTable:
    """A table of counts of the report, shaded by shares.

    Attributes:
        title: heading of the table.
        across: what the columns are.
        down: what the rows are.
        last: heading of the last column.
        columns: names of the columns.
        rows: name of a row, its cells as text and share from 0 to 1, text of the last column.
        note: text below the table; may be empty.
    """

    title: str
    across: str
    down: str
    last: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[str, float]], str]]
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """The judgement of the report about one answer, beside its picture.

    Attributes:
        kind: ``wrong``, ``right``, ``measured`` or ``unlabelled``, which decides its colour.
        word: the judgement as text for readers.
        rank: pictures are shown by falling rank.
        certainty: how sure the answer is, as pairs of a text and whether it is stressed.
        numbers: numbers of the answer, by name.
    """

    kind: str
    word: str
    rank: tuple[float, float]
    certainty: Sequence[tuple[str, bool]] = ()
    numbers: Sequence[tuple[str, float | None]] = ()


def add_unit_square(figure: Figure, x: str, y: str) -> Axes:
    """Add axes from 0 to 1 in both directions, with labels, to a figure.

    Args:
        figure: the figure.
        x: label of the horizontal axis.
        y: label of the vertical axis.
    """
    axes = figure.subplots()
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x, ylabel=y)
    return axes


def add_legend(axes: Axes, handles: Sequence[Any] | None = None) -> None:
    """Add a legend below the axes, where it covers no line; smaller where it has many entries.

    The figure needs the layout ``constrained``, which makes room for it.

    Args:
        axes: axes with labelled lines and a label of the horizontal axis.
        handles: entries of the legend; None for the labelled lines.
    """
    from matplotlib.transforms import ScaledTranslation

    entries = axes.get_legend_handles_labels()[0] if handles is None else list(handles)
    n, inch = len(entries), axes.get_figure(root=True).dpi_scale_trans  # type: ignore[union-attr]
    longest = max((len(str(entry.get_label())) for entry in entries), default=0)
    columns = 2 if n in (2, 4) or longest > _MAX_LETTERS_OF_THREE_COLUMNS else 3
    axes.legend(
        handles=entries, loc="upper center", frameon=False, borderaxespad=0.0,
        fontsize=9 if n <= 4 else 8, ncols=columns, bbox_to_anchor=(0.5, 0.0),
        bbox_transform=axes.transAxes + ScaledTranslation(0.0, -_LABELS_INCHES, inch),
    )  # fmt: skip


def shorten(name: str) -> str:
    """Shorten a name to at most 24 letters, so that it fits into a legend."""
    return name if len(name) <= 24 else f"{name[:11]}…{name[-11:]}"


# -- numbers as people read them --------------------------------------------------------------


def read_number(values: Mapping[str, Any], key: str) -> float | None:
    """Return the finite number of a key, stored as number or text; None for anything else.

    Args:
        values: values by key, such as a row of a CSV file.
        key: the key.
    """
    try:
        value = float(values[key])
    except (KeyError, TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def write_decimals(value: object, places: int = 3) -> str:
    """Write a number with fixed decimals, such as ``0.912``; a dash for other values.

    Args:
        value: the number, or anything else.
        places: number of decimals.
    """
    return f"{value:.{places}f}" if isinstance(value, int | float) else "–"


def write_percent(share: float | None) -> str:
    """Write a share as percent with two significant digits: ``43 %``, ``4.3 %``, ``0.43 %``."""
    if share is None:
        return "–"
    hundred = 100 * share
    return f"{hundred:.0f} %" if hundred >= 10 else f"{hundred:.2g} %"


def write_interval_of_100(lo: float | None, hi: float | None) -> str:
    """Write the interval of a share as numbers of 100, for a sentence; empty without limits.

    Args:
        lo: lower limit, from 0 to 1.
        hi: upper limit, from 0 to 1.
    """
    if lo is None or hi is None:
        return ""
    return f" (95 % interval {100 * lo:.0f} to {100 * hi:.0f})"


def write_memory(mib: float | None) -> str:
    """Write an amount of memory as ``812 MiB`` or ``3.4 GiB``; a dash for None."""
    if mib is None:
        return "–"
    return f"{mib:.0f} MiB" if mib < 1000 else f"{mib / 1024:.1f} GiB"


def write_pixels(count: float | None) -> str:
    """Write a number of pixels as ``3.14 gigapixels`` or ``12.0 megapixels``; a dash for None."""
    if count is None:
        return "–"
    if count >= 1e8:
        return f"{count / 1e9:,.2f} gigapixels".replace(",", " ")
    return f"{count / 1e6:.1f} megapixels"


def write_duration(seconds: float | None) -> str:
    """Write a duration, such as ``15 ms``, ``42 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    if seconds is None:
        return "–"
    if seconds < 0.1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def write_count(n: int, singular: str, plural: str | None = None) -> str:
    """Write a number with its noun: ``1 image``, ``3 images``.

    Args:
        n: the number.
        singular: the noun.
        plural: its plural where that is not the noun with an s.
    """
    return f"{n} {singular if n == 1 else plural or singular + 's'}"


def write_fold(name: str) -> str:
    """Return the title of a fold, counted from 1."""
    return f"fold {int(name) + 1}" if name.isdecimal() else name
