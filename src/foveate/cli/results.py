"""The last lines of a command: the places of its results, and the images set aside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from foveate.cli.words import OK, PARTIAL
from foveate.files.run_layout import CheckLayout, RunLayout

if TYPE_CHECKING:
    from foveate.workflows.check import CheckResult
    from foveate.workflows.train import RunResult


_MAX_NOTES = 5
"""Number of notes of a check that are printed; the page has all."""


def print_findings(result: CheckResult) -> None:
    """Print the findings of a check, the worst first, and the next command.

    Args:
        result: result of the check.
    """
    notes = 0
    for finding in result.findings:
        notes += finding.severity == "note"
        if notes > _MAX_NOTES:
            break
        click.echo(f"{finding.severity:<8}  {finding.kind}: {finding.text}")
        if finding.remedy:
            click.echo(f"{'':<10}{finding.remedy}")
    click.echo(f"\n{result!r}")
    files = CheckLayout(result.folder)
    click.echo(f"page:     {files.page}\nwritten:  {files.images}, {files.findings}")
    click.echo(f"next:     {result.command}")


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
