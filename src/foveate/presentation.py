"""What is shown of answers: words, figures, tables, verdicts, and the look of figures.

A task fills these in; the report, the pictures and the command line show them.
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


@dataclass(frozen=True)
class ScoreWords:
    """What a score is called and means.

    Attributes:
        title: its name.
        text: what it is and what chance is, in one line.
        small_is_good: less is better.
        span: the worst and the best value, between which a bar shows it; None draws no bar.
        within_folds: with several folds it compares images of one fold only.
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
        name: of its file, without suffix.
        caption: what to see in it.
        absent: said in its place where `draw` is None.
        alt: what it shows, in words, for those who do not see it.
        draw: draws it; None where there is nothing to draw.
    """

    name: str
    caption: str
    absent: str
    alt: str = ""
    draw: Callable[[Figure], None] | None = None


@dataclass(frozen=True)
class ShadedTable:
    """A table of counts of the report, shaded by shares.

    Attributes:
        title: its heading.
        across: what columns are.
        down: what rows are.
        last: heading of the last column.
        columns: their names.
        rows: name, cells as text and share from 0 to 1, and text of the last column.
        note: said below; may be empty.
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
    """What the report says of one answer beside its picture.

    Attributes:
        kind: ``wrong``, ``right``, ``measured`` or ``unlabelled``: its colour.
        word: the same for readers.
        rank: pictures are shown by falling rank.
        certainty: how sure it is, in parts of which some are stressed.
        numbers: the numbers of the answer, by name.
    """

    kind: str
    word: str
    rank: tuple[float, float]
    certainty: Sequence[tuple[str, bool]] = ()
    numbers: Sequence[tuple[str, float | None]] = ()


def unit_square(figure: Figure, x: str, y: str) -> Axes:
    """Return axes from 0 to 1 both ways, with names."""
    axes = figure.subplots()
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x, ylabel=y)
    return axes


def add_legend(axes: Axes, place: Any) -> None:
    """Add a legend, smaller where it has many lines."""
    n = len(axes.get_legend_handles_labels()[0])
    axes.legend(loc=place, fontsize=10 if n <= 6 else 7.5, ncols=1 if n <= 8 else 2)


def shortened(name: str) -> str:
    """Return a name that fits into a legend."""
    return name if len(name) <= 24 else f"{name[:11]}…{name[-11:]}"


# -- numbers as people read them --------------------------------------------------------------


def finite(values: Mapping[str, Any], key: str) -> float | None:
    """Return a finite number of this key, stored as number or as text; None for anything else."""
    try:
        value = float(values[key])
    except (KeyError, TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def decimals(value: Any, places: int = 3) -> str:
    """Return ``0.912``, or a dash."""
    return f"{value:.{places}f}" if isinstance(value, int | float) else "–"


def percent(share: float | None) -> str:
    """Return two digits that mean something: ``43 %``, ``4.3 %``, ``0.43 %``."""
    if share is None:
        return "–"
    hundred = 100 * share
    return f"{hundred:.0f} %" if hundred >= 10 else f"{hundred:.2g} %"


def memory(mib: float | None) -> str:
    """Return ``812 MiB`` or ``3.4 GiB``."""
    if mib is None:
        return "–"
    return f"{mib:.0f} MiB" if mib < 1000 else f"{mib / 1024:.1f} GiB"


def pixels(count: float | None) -> str:
    """Return ``3.14 gigapixels``, ``0.81 gigapixels`` or ``12.0 megapixels``."""
    if count is None:
        return "–"
    if count >= 1e8:
        return f"{count / 1e9:,.2f} gigapixels".replace(",", " ")
    return f"{count / 1e6:.1f} megapixels"


def counted(n: int, singular: str, plural: str | None = None) -> str:
    """Return ``1 image`` or ``3 images``."""
    return f"{n} {singular if n == 1 else plural or singular + 's'}"


def fold_title(name: str) -> str:
    """Return the name of a fold as people read it, counted from 1."""
    return f"fold {int(name) + 1}" if name.isdecimal() else name
