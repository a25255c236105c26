"""The report of a run: one self-contained page, made from the run folder's files alone."""

from __future__ import annotations

from pathlib import Path


def write_report(run: Path) -> Path:
    """Write ``report.html`` and ``figures/`` into a run folder; files that are missing are named.

    Args:
        run: the folder; nothing outside it is read.

    Returns:
        The page.

    Raises:
        CheckpointError: the folder holds no run.
    """
    from foveate.report.page import write_page

    return write_page(Path(run))


def write_progress(run_fold: Path) -> None:
    """Redraw ``progress.png`` of a fold from its ``metrics.csv``; no rows, no picture."""
    from foveate.report.progress import redraw

    redraw(Path(run_fold))
