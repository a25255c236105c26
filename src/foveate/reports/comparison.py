"""The page of a comparison: one table, what better answers cost, and every paired difference."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.files.atomic import write_text
from foveate.files.run_layout import ComparisonLayout, RunLayout
from foveate.metrics import pick_front
from foveate.presentation import (
    BLUE,
    GREY,
    read_number,
    shorten,
    write_count,
    write_decimals,
    write_duration,
    write_percent,
)
from foveate.reports.figures import Drawn, render
from foveate.reports.template import fill_template
from foveate.runs.folder import read_json
from foveate.tasks.base import AbstractTask

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEMPLATE = "comparison.html.j2"
_SAME = "same answers"
COSTS: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "seconds_per_image": ("time per image in prediction", write_duration),
    "decoded_fraction": ("share of the pixels that was decoded", write_percent),
    "seconds": ("time of training and test", write_duration),
}
"""Costs against which the score is drawn, by key of a row: title, and how numbers are written."""
_LEAST_SPAN = 4.0
"""Least ratio of the ends of an axis of costs."""


@dataclass(frozen=True)
class _Point:
    """A row of the comparison as a point of a figure."""

    name: str
    cost: float
    value: float
    lo: float
    hi: float


def write_comparison_page(folder: Path, task: AbstractTask) -> Path:
    """Read ``comparison.json``, draw the figures, write the page and return its path.

    Args:
        folder: folder of the comparison.
        task: task of the runs.
    """
    layout = ComparisonLayout(folder)
    content = read_json(layout.result)
    write_text(layout.page, fill_template(_TEMPLATE, _collect_values(folder, content, task)))
    return layout.page


def _collect_values(folder: Path, content: Mapping[str, Any], task: AbstractTask) -> dict[str, Any]:
    main, rows = content["score"], content["rows"]
    return {
        "name": folder.resolve().name,
        "title": task.title(main),
        "about": task.allowed,
        "n_methods": sum(not row["is_frozen"] for row in rows),
        "n_images": rows[0]["n_images"],
        "n_patients": rows[0]["n_patients"],
        "sentence": write_sentence(content, task),
        "rows": build_rows(content, task),
        "pairs": build_pairs(content),
        "charts": [
            draw_cost(content, task, key, ComparisonLayout(folder).figures) for key in COSTS
        ],
        "first": rows[0]["name"],
        "runs": [(row["name"], f"{row['run']}/{RunLayout.report}")
                 for row in rows if not row["is_frozen"]],
    }  # fmt: skip


def write_sentence(content: Mapping[str, Any], task: AbstractTask) -> str:
    """Write which row scores best, and from which rows it differs clearly.

    Args:
        content: content of ``comparison.json``.
        task: task of the runs.
    """
    main = content["score"]
    scored = [row for row in content["rows"] if "value" in row["scores"].get(main, {})]
    if not scored:
        return "No score could be computed."
    sign = -1 if _small_is_good(task, main) else 1
    best = max(scored, key=lambda row: sign * row["scores"][main]["value"])
    worse = [
        pair["second"] if pair["first"] == best["name"] else pair["first"]
        for pair in content["differences"]
        if pair["score"] == main
        and best["name"] in (pair["first"], pair["second"])
        and pair.get("p_adjusted", 1.0) < 0.05
    ]
    value = write_decimals(best["scores"][main]["value"])
    start = f"{best['name']} has the best {task.title(main)}, {value}"
    if not worse:
        return f"{start}, but is not clearly better than any other after correction for many tests."
    return f"{start}, and is clearly better than {', '.join(worse)}."


def _small_is_good(task: AbstractTask, score: str) -> bool:
    words = task.words.get(score)
    return words is not None and words.small_is_good


def build_rows(content: Mapping[str, Any], task: AbstractTask) -> list[dict[str, Any]]:
    """Return the rows of the table, with the difference to the first row.

    Args:
        content: content of ``comparison.json``.
        task: task of the runs.
    """
    main = content["score"]
    rows = []
    for entry in content["rows"]:
        score, less = entry["scores"].get(main, {}), entry["less_first"]
        others = [entry["scores"].get(name, {}) for name in task.tabled[1:]]
        rows.append(
            {
                "name": entry["name"],
                "value": write_decimals(score.get("value")),
                "interval": _write_interval(score.get("lo"), score.get("hi")),
                "difference": _write_signed(less["value"]) if less else "–",
                "difference_interval": (
                    _write_interval(less["lo"], less["hi"], signed=True) if less else ""
                ),
                "p": _write_p(less.get("p_adjusted")) if less else "–",
                "others": [write_decimals(other.get("value")) for other in others],
                "seconds": write_duration(read_number(entry, "seconds")),
                "each": write_duration(read_number(entry, "seconds_per_image")),
                "decoded": write_percent(read_number(entry, "decoded_fraction")),
            }
        )
    titles = [task.title(name) for name in task.tabled[1:]]
    return [row | {"titles": titles} for row in rows]


def _write_interval(lo: float | None, hi: float | None, *, signed: bool = False) -> str:
    if lo is None or hi is None:
        return "–"
    return f"{_write_signed(lo)} to {_write_signed(hi)}" if signed else f"{lo:.3f} to {hi:.3f}"


def _write_signed(value: float) -> str:
    """Write a difference with its sign; 0 has none."""
    return f"{value:+.3f}" if round(value, 3) else "0.000"


def _write_p(p_value: float | None) -> str:
    if p_value is None:
        return _SAME
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def build_pairs(content: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the differences of the main score, the clearest first.

    Args:
        content: content of ``comparison.json``.
    """
    pairs = [pair for pair in content["differences"] if pair["score"] == content["score"]]
    pairs.sort(key=lambda pair: pair.get("p_adjusted", 2.0))
    return [
        {
            "first": pair["first"],
            "second": pair["second"],
            "value": _write_signed(pair["value"]),
            "interval": _write_interval(pair["lo"], pair["hi"], signed=True),
            "p": _write_p(pair.get("p_adjusted")),
        }
        for pair in pairs
    ]


def draw_cost(
    content: Mapping[str, Any], task: AbstractTask, key: str, folder: Path | None
) -> tuple[str, Drawn | None]:
    """Draw the score against a cost; return caption and figure, None with fewer than two points.

    Args:
        content: content of ``comparison.json``.
        task: task of the runs.
        key: the cost, a key of `COSTS`.
        folder: folder of the PNG file; None writes none.
    """
    main = content["score"]
    points = []
    for row in content["rows"]:
        score, cost = row["scores"].get(main, {}), read_number(row, key)
        values = [read_number(score, end) for end in ("value", "lo", "hi")]
        if cost is not None and cost > 0 and None not in values:
            points.append(_Point(row["name"], cost, *values))  # type: ignore[arg-type]
    about, write = COSTS[key]
    title = f"{task.title(main)} against {about}"
    if len(points) < 2:
        return title, None
    sign = -1.0 if _small_is_good(task, main) else 1.0
    front = pick_front([(sign * p.value, p.cost) for p in points])
    alt = "; ".join(f"{p.name}: {p.value:.3f} at {write(p.cost)}" for p in points)
    plot = functools.partial(
        _plot_cost, points=points, front=front, x=about, y=task.title(main), write=write
    )
    return title, render(plot, folder and folder / f"{main}_by_{key}.png", alt)


def _plot_cost(
    figure: Figure,
    points: Sequence[_Point],
    front: Sequence[int],
    x: str,
    y: str,
    write: Callable[[float], str],
) -> None:
    """Plot scores with intervals against costs, and join those that no other beats."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes = figure.subplots()
    costs = [point.cost for point in points]
    middle, span = math.sqrt(min(costs) * max(costs)), max(max(costs) / min(costs), _LEAST_SPAN)
    # Names stand to the right of their points, hence more room on that side.
    limits = (middle / span**0.6, middle * span**0.9)
    axes.set(xscale="log", xlim=limits, xlabel=x, ylabel=y)
    subs = (1.0, 2.0, 5.0) if span < 30 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: write(cost)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    for i, point in enumerate(points):
        colour = BLUE if i in front else GREY
        bars = [[point.value - point.lo], [point.hi - point.value]]
        axes.errorbar([point.cost], [point.value], yerr=bars, fmt="o", color=colour, capsize=3)
        axes.annotate(
            shorten(point.name), (point.cost, point.value), xytext=(6, 6),
            textcoords="offset points", color=colour,
        )  # fmt: skip
    best = [points[i] for i in front]
    axes.plot([p.cost for p in best], [p.value for p in best], color=BLUE, linewidth=1)


def describe_comparison(content: Mapping[str, Any], task: AbstractTask) -> str:
    """Describe a comparison for the terminal, a line for each row.

    Args:
        content: content of ``comparison.json``.
        task: task of the runs.
    """
    rows, first = build_rows(content, task), content["rows"][0]
    width = max(len(row["name"]) for row in rows)
    counts = (
        f"{write_count(first['n_images'], 'image')} of "
        f"{write_count(first['n_patients'], 'patient')} that training never saw, the same for all"
    )
    lines = [f"{counts}:", f"  {'':<{width}}  {task.title(content['score'])} (95 % interval)"]
    for row in rows:
        p = row["p"] if row["p"] == _SAME else f"p {row['p']}"
        less = "" if row["difference"] == "–" else f"  {row['difference']} ({p})"
        cost = "" if row["each"] == "–" else f"  {row['each']} per image"
        lines.append(f"  {row['name']:<{width}}  {row['value']} ({row['interval']}){less}{cost}")
    lines.append(
        f"  (difference to {first['name']}, with its p value adjusted for the number of pairs)"
    )
    return "\n".join([*lines, write_sentence(content, task)])
