"""The last lines of a command: the places of its results, and the images set aside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from foveate.cli.words import OK, PARTIAL
from foveate.files.run_layout import RunLayout

if TYPE_CHECKING:
    from foveate.workflows.train import RunResult


def print_next(result: RunResult, page: Path) -> None:
    """Print where the report and the heatmaps of a run are, and the next command.

    Args:
        result: result of the training.
        page: the report.
    """
    heatmaps = RunLayout(result.folder).heatmaps_folder
    click.echo(f"\nreport:   {page}\nheatmaps: {heatmaps}")
    print_set_aside(result.n_set_aside, result.folder)
    click.echo(f"next:     foveate predict {result.folder} NEW_IMAGES --out predictions")


def print_set_aside(n: int, folder: Path) -> int:
    """Print the number of images that were set aside, if any; return the exit code.

    Args:
        n: number of images that were set aside.
        folder: folder that holds ``quarantine.csv``.
    """
    if not n:
        return OK
    click.echo(f"set aside: {n} images, reasons in {RunLayout(folder).quarantine} (exit code 2)")
    return PARTIAL
