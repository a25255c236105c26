"""The commands: demo, train, predict, evaluate, methods and doctor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveate.cli.words import (
    OK,
    PARTIAL,
    USER_ERROR,
    Sectioned,
    device_flag,
    export_flag,
    files_flag,
    merge_into,
    nest_flags,
    parse_exports,
    parse_pairs,
    part_flag,
    plugins_flag,
    ray_flag,
    spacing_flag,
    workers_flag,
)
from foveate.errors import OptionError
from foveate.workflows.words import describe_scores

if TYPE_CHECKING:
    from foveate.workflows.demo import DemoOutcome
    from foveate.workflows.train import Outcome


_TRAIN_HELP = """Train on a TABLE of images and labels, evaluate on patients never seen, and report.

The same command continues a run that was stopped. Every key of config.yaml is also a flag:

\b
  --train.lr 1e-4  --train.batch-size 2  --train.patience 20
  --view.spacing-um 0.5  --view.patch-px 256  --view.fit 1024x1024
  --split.test-fraction 0.3  --task.positive malignant
  --method.patches 32        (options of the method: foveate methods glimpse)
"""


@click.command(short_help="Synthetic gigapixel cohort, trained and reported, on a CPU.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("foveate-demo"), show_default=True
)
@click.option("--seed", default=0, show_default=True, help="Of the cohort, the split and training.")
@click.option("--slides", default=None, type=int, help="How many slides to write.")
def demo(out: Path, seed: int, slides: int | None) -> int:
    """Write a synthetic gigapixel cohort, train on it, and report, in minutes on a CPU.

    What decides is visible at full resolution only: `glimpse` finds it, `downsampled` cannot. The
    demo checks that, and ends with exit code 1 where it did not come true.
    """
    import foveate
    from foveate.cli.terminal import Terminal

    with Terminal() as terminal:
        ended = foveate.demo(out, seed=seed, n_slides=slides, on_progress=terminal)
    outcome = ended.glimpse
    click.echo(describe_scores(outcome.metrics))
    _say_promises(ended)
    click.echo(f"compared: {ended.downsampled.folder / 'report.html'} (the whole slide shrunk)")
    _say_next(outcome, outcome.folder / "report.html")
    click.echo(f"          foveate train {out / 'cohort' / 'labels.csv'} --method abmil --out mine")
    if ended.broken:
        _say_what_to_do(ended, seed)
        return USER_ERROR
    return PARTIAL if outcome.n_quarantined else OK


def _say_promises(ended: DemoOutcome) -> None:
    from foveate.workflows.demo import ENFORCED_FROM

    click.echo("\npromised:")
    for promise in ended.promises:
        click.echo(f"  {'kept    ' if promise.kept else 'NOT KEPT'}  {promise.promised}")
        click.echo(f"            came: {promise.came}")
    if not ended.enforced:
        click.echo(f"  (with fewer than {ENFORCED_FROM} slides these are told, not enforced)")
    click.echo("")


def _say_what_to_do(ended: DemoOutcome, seed: int) -> None:
    click.echo("\nerror: the demo did not keep its promise.", err=True)
    for promise in ended.broken:
        click.echo(f"  promised: {promise.promised}\n  came:     {promise.came}", err=True)
    page = ended.glimpse.folder / "report.html"
    other = ended.glimpse.folder.parent.with_name(f"foveate-demo-{seed + 1}")
    click.echo(
        f"what to do: `foveate doctor` says whether the installation is healthy; {page} shows "
        "under Training whether the loss fell, and in its heatmaps where the model looked. This "
        f"was seed {seed}; another draw: foveate demo --seed {seed + 1} --out {other}. Please "
        "report it, with the seed, what doctor says, and that page.",
        err=True,
    )


@click.command(
    cls=Sectioned, help=_TRAIN_HELP, short_help="Train on a TABLE of images and labels, and report."
)
@click.argument("table", type=click.Path(path_type=Path), required=False)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--config", type=click.Path(path_type=Path), help="YAML file; flags override it.")
@click.option("--method", help="See `foveate methods`.  [default: glimpse]")
@click.option(
    "--encoder",
    help="lite0, small, any network of timm; of volumes slices, small3d, resnet3d.  "
    "[default: lite0, of volumes slices; ImageNet weights aboard]",
)
@click.option("--task", help="binary, multiclass, regression or auto.  [default: auto]")
@click.option("--path", "column", help="Column of the images' paths, where the guess is wrong.")
@click.option("--label", help="Label column, where the guess is wrong.")
@click.option("--patient", help="Column that groups images of one patient.")
@files_flag
@click.option(
    "--images", type=click.Path(path_type=Path), help="Folder that paths are relative to."
)
@click.option("--classes", help="Keep only these labels, comma-separated.")
@click.option("--folds", type=int, help="Cross-validation folds; 1 is a single hold-out.")
@click.option("--epochs", type=int, help="At most so many.")
@click.option("--seed", type=int, help="Of the split and of training.")
@click.option("--devices", type=int, help="How many train together, a process each.  [default: 1]")
@click.option("--heatmaps", type=int, help="How many test images get pictures.  [default: 40]")
@export_flag
@click.option(
    "--refit",
    is_flag=True,
    help="Then train one model on all images, to answer instead of the folds' models.",
)
@click.option("--permute-labels", is_flag=True, help="Self-test: shuffled labels must give chance.")
@plugins_flag
@click.pass_context
def train(ctx: click.Context, /, out: Path, config: Path | None, **flags: Any) -> int:
    """Train on a table, evaluate on patients never seen, and write the report."""
    from foveate.runs.config import load_yaml

    nested: dict[str, Any] = {} if config is None else load_yaml(config)
    merge_into(nested, nest_flags(flags))
    merge_into(nested, ctx.obj)
    if "path" not in nested.get("table", {}):
        raise OptionError("no table: foveate train labels.csv --out RUN")
    return _train(nested, out)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@spacing_flag
@click.option(
    "--heatmaps",
    "n_heatmaps",
    default=1000,
    show_default=True,
    help="How many images get pictures.",
)
@export_flag
@workers_flag
@ray_flag
@part_flag
@device_flag
@plugins_flag
def predict(
    run: Path,
    images: tuple[Path, ...],
    out: Path,
    part: str | None,
    export: str | None,
    **chosen: Any,
) -> int:
    """Predict IMAGES (files, folders or a table) with the trained RUN.

    The models of all folds answer together (their mean), or the refitted model where there is one;
    RUN/fold_2 is the model of that fold alone.

    Writes predictions.csv, and a heatmap and GeoJSON for QuPath per image.
    """
    import foveate
    from foveate.cli.terminal import Terminal

    chosen["exports"] = parse_exports(export)
    with Terminal() as terminal:
        summary = foveate.predict(run, images, out, part=part, on_progress=terminal, **chosen)
    if part is not None:
        click.echo("this part is predicted; the same command without --part collects all parts")
        return PARTIAL if summary.failed else OK
    for row in summary.rows:
        values = [float(row[column]) for column in summary.task.columns]
        numbers = summary.task.explain(values, {"threshold": row["threshold"] or None})
        doubt = f"  UNLIKE the images of training: {row['unlike']}" if row["unlike"] else ""
        click.echo(f"{row['image_id']}: {row['predicted']}  ({numbers}){doubt}")
    click.echo(f"\nwritten: {out / 'predictions.csv'}, pictures in {out / 'heatmaps'}")
    return _say_set_aside(len(summary.failed), out)


@click.command(short_help="Score the trained RUN on a labelled TABLE it has never seen.")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("table", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--label", help="Label column, where the guess is wrong.")
@files_flag
@click.option(
    "--images", type=click.Path(path_type=Path), help="Folder that paths are relative to."
)
@spacing_flag
@click.option(
    "--audit-layout",
    is_flag=True,
    help="Also let patches trade places: does the model use where they lie?",
)
@click.option(
    "--heatmaps", "n_heatmaps", default=0, show_default=True, help="How many images get pictures."
)
@export_flag
@workers_flag
@ray_flag
@click.option(
    "--map",
    "renamed",
    multiple=True,
    metavar="OLD=NEW",
    help="A label of the TABLE and the class that it means; may be given several times.",
)
@device_flag
@plugins_flag
def evaluate(
    run: Path,
    table: Path,
    out: Path,
    audit_layout: bool,
    export: str | None,
    renamed: tuple[str, ...],
    **chosen: Any,
) -> int:
    """Score the trained RUN on a labelled TABLE that it has never seen.

    Rows with a label that the RUN does not know are left out, and said.
    """
    import foveate
    from foveate.cli.terminal import Terminal

    chosen["exports"] = parse_exports(export)
    with Terminal() as terminal:
        ended = foveate.evaluate(
            run,
            table,
            out,
            renamed=parse_pairs(renamed, "--map"),
            audit_layout=audit_layout,
            on_progress=terminal,
            **chosen,
        )
    metrics = ended.metrics
    click.echo(describe_scores(metrics))
    if audit_layout:
        click.echo(f"  {metrics['layout']['told']}")
    click.echo(f"\nwritten: {out / 'metrics.json'}, {out / 'predictions.csv'}")
    return _say_set_aside(len(ended.failed), out)


@click.command()
@click.argument("name", required=False)
@click.option("--markdown", is_flag=True, help="All of them as the page docs/methods.md.")
@plugins_flag
def methods(name: str | None, markdown: bool) -> None:
    """List the methods, or tell about one: source, when to use it, what it costs, its options."""
    import foveate
    from foveate.parts import find, options
    from foveate.workflows.catalogue import (
        read_meanings,
        read_paragraphs,
        read_summary,
        write_methods_page,
    )

    if markdown:
        click.echo(write_methods_page(), nl=False)
        return
    if name is None:
        for method, summary in foveate.list_methods().items():
            click.echo(f"{method:<20} {summary}")
        click.echo("\noptions of one: foveate methods NAME")
        return
    part = find("methods", name)
    click.echo(f"{name}: {part.summary}\n")
    for title, text in read_paragraphs(part).items():
        click.echo(click.wrap_text(f"{title}: {text}" if title else text, 98) + "\n")
    click.echo(read_summary(part) + "\n")
    meanings = read_meanings(part)
    for option in options(part).values():
        click.echo(f"  --method.{option.name.replace('_', '-'):<20} default {option.default}")
        meaning = meanings.get(option.name, "").replace("``", "`")
        click.echo(click.wrap_text(meaning, 98, "      ", "      ") + "\n")


@click.command(short_help="Is the installation healthy, and how fast is it?")
@click.argument("run", type=click.Path(path_type=Path), required=False)
@plugins_flag
def doctor(run: Path | None) -> int:
    """Say what is installed, which readers work, and how fast disk, decoder and device are.

    Of a RUN, also which of its models answer, and whether they are whole.
    """
    import foveate

    healthy = True
    for finding in foveate.doctor(run):
        click.echo(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.name:<18} {finding.text}")
        healthy &= finding.ok
    return OK if healthy else USER_ERROR


def _train(nested: dict[str, Any], out: Path) -> int:
    import foveate
    from foveate.cli.terminal import Terminal
    from foveate.runs.config import build_config
    from foveate.runtime import process_rank
    from foveate.workflows.folds import join_training

    if process_rank() > 0:
        join_training(build_config(nested), out)
        return OK
    with Terminal() as terminal:
        outcome = foveate.train(None, out, config=nested, on_progress=terminal)
    click.echo(describe_scores(outcome.metrics))
    _say_next(outcome, out / "report.html")
    return PARTIAL if outcome.n_quarantined else OK


def _say_next(outcome: Outcome, page: Path) -> None:
    click.echo(f"\nreport:   {page}\nheatmaps: {outcome.folder / 'heatmaps'}")
    _say_set_aside(outcome.n_quarantined, outcome.folder)
    click.echo(f"next:     foveate predict {outcome.folder} NEW_IMAGES --out predictions")


def _say_set_aside(n: int, folder: Path) -> int:
    """Print the number of images that were set aside, if any; return the exit code."""
    if not n:
        return OK
    click.echo(f"set aside: {n} images, reasons in {folder / 'quarantine.csv'} (exit code 2)")
    return PARTIAL
