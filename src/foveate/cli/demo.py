"""The command demo, and its messages about the promises of the demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from foveate import defaults
from foveate.cli.results import print_next
from foveate.cli.words import OK, PARTIAL, USER_ERROR
from foveate.files.run_layout import RunLayout
from foveate.workflows.words import describe_scores

if TYPE_CHECKING:
    from foveate.workflows.demo import DemoResult


@click.command(short_help="Train on a synthetic gigapixel cohort and report, in minutes on a CPU.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=defaults.DEMO_FOLDER,
    show_default=True,
    help="Folder of the cohort and the runs.",
)
@click.option(
    "--seed",
    default=defaults.SEED,
    show_default=True,
    help="Seed of the cohort, the split and training.",
)
@click.option("--slides", type=int, help="Number of slides.  [default: 100, and a larger one]")
def demo(out: Path, seed: int, slides: int | None) -> int:
    """Write a synthetic gigapixel cohort, train on it, and report, in minutes on a CPU.

    The classes differ only at full resolution: `glimpse` sees the difference, `downsampled` cannot.
    The demo checks this at its end; where it does not hold, the exit code is 1.
    """
    import foveate
    from foveate.cli.terminal import Terminal

    with Terminal() as terminal:
        result = foveate.demo(out, seed=seed, slides=slides, on_progress=terminal)
    glimpse = result.glimpse
    click.echo(describe_scores(glimpse.metrics))
    _print_promises(result)
    compared = RunLayout(result.downsampled.folder).report
    click.echo(f"compared: {compared} (the whole slide shrunk)")
    print_next(glimpse, RunLayout(glimpse.folder).report)
    click.echo(f"          foveate train {out / 'cohort' / 'labels.csv'} --method abmil --out mine")
    if result.broken:
        _print_remedy(result, seed)
        return USER_ERROR
    return PARTIAL if glimpse.n_set_aside else OK


def _print_promises(result: DemoResult) -> None:
    from foveate.workflows.demo import ENFORCED_FROM

    click.echo("\npromises of the demo:")
    for promise in result.promises:
        click.echo(f"  {'kept    ' if promise.kept else 'NOT KEPT'}  {promise.claim}")
        click.echo(f"            measured: {promise.measured}")
    if not result.enforced:
        click.echo(f"  (with fewer than {ENFORCED_FROM} slides they are shown, not enforced)")
    click.echo("")


def _print_remedy(result: DemoResult, seed: int) -> None:
    click.echo("\nerror: the demo did not keep its promises.", err=True)
    for promise in result.broken:
        click.echo(f"  promise:  {promise.claim}\n  measured: {promise.measured}", err=True)
    page = RunLayout(result.glimpse.folder).report
    other = result.glimpse.folder.parent.with_name(f"{defaults.DEMO_FOLDER}-{seed + 1}")
    click.echo(
        f"what to do: `foveate doctor` checks the installation; {page} shows "
        "under Training whether the loss fell, and in its heatmaps where the model looked. This "
        f"was seed {seed}; with another seed: foveate demo --seed {seed + 1} --out {other}. Please "
        "report the fault with the seed, the output of `foveate doctor`, and that page.",
        err=True,
    )
