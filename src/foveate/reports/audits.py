"""The section of the page about an audit of heatmaps."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.presentation import BLUE, GREY, add_legend
from foveate.reports.figures import Drawn, render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KINDS = ("deletion", "insertion")


def build_audit(content: Mapping[str, Any], path: Path | None) -> dict[str, Any] | None:
    """Return the sentences and the figure of an audit; None without one.

    Args:
        content: content of ``audit.json``, which may be empty or damaged.
        path: file of the figure; None writes none.
    """
    words = content.get("words")
    if not isinstance(words, list) or not words:
        return None
    return {"words": [str(line) for line in words], "curves": _draw_curves(content, path)}


def _draw_curves(content: Mapping[str, Any], path: Path | None) -> Drawn | None:
    """Draw the curves of deletion and insertion; None where they are missing."""
    stored, shares = content.get("faithfulness"), content.get("shares")
    if not isinstance(stored, dict) or not isinstance(shares, list):
        return None
    curves = {kind: _read_curves(stored.get(kind), len(shares)) for kind in _KINDS}
    if not all(curves.values()):
        return None
    alt = f"Support of the answer while boxes are deleted and inserted, {stored.get('n')} images"
    plot = functools.partial(_plot_curves, shares=shares, curves=curves)
    return render(plot, path, alt, size_inches=(10.6, 3.9))


def _read_curves(stored: Any, n: int) -> dict[str, list[float]]:
    """Return the two curves of a kind; empty where one does not have `n` points."""
    curves = {}
    for key in ("by_weight", "random"):
        values = stored.get(key) if isinstance(stored, dict) else None
        if not isinstance(values, list) or len(values) != n:
            return {}
        curves[key] = [float(value) for value in values]
    return curves


def _plot_curves(
    figure: Figure, shares: Sequence[float], curves: Mapping[str, Mapping[str, Sequence[float]]]
) -> None:
    """Plot the support of the answer against the share of boxes, by weight and at random."""
    panels = figure.subplots(1, len(curves), sharey=True)
    for axes, (kind, lines) in zip(panels, curves.items(), strict=True):
        axes.plot(shares, lines["by_weight"], ".-", color=BLUE, label="heaviest first")
        axes.plot(shares, lines["random"], ".--", color=GREY, label="random order")
        axes.set(title=kind, xlabel="share of the boxes", xlim=(-0.02, 1.02))
        add_legend(axes)
    panels[0].set_ylabel("support of the answer")
