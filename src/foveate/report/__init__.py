"""The report of a run: one self-contained page, made from the files of the run folder alone."""

from __future__ import annotations

from pathlib import Path


def write_report(run: Path) -> Path:
    """Write ``report.html`` and ``figures/`` into a run folder; files that are missing are named.

    Args:
        run: folder of the run; no file outside it is read.

    Returns:
        Path of the page.

    Raises:
        CheckpointError: the folder holds no run.
    """
    from foveate.report.page import write_page

    return write_page(Path(run))


def write_progress(run_fold: Path) -> None:
    """Redraw ``progress.png`` of a fold from its ``metrics.csv``, if that has rows."""
    from foveate.report.progress import redraw

    redraw(Path(run_fold))
