"""Train, predict, evaluate and the other commands that work on users' images."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveate.cli.words import (
    OK,
    PARTIAL,
    USER_ERROR,
    Sectioned,
    device_flag,
    files_flag,
    merge,
    named_flags,
    pairs,
    plugins_flag,
    spacing_flag,
)
from foveate.errors import OptionError

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
    from foveate.cli.terminal import Terminal
    from foveate.workflows.demo import run_demo

    with Terminal() as terminal:
        ended = run_demo(out, terminal, seed=seed, n_slides=slides)
    outcome = ended.glimpse
    _show_scores(outcome.metrics)
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
@click.option("--task", help="binary, multiclass or auto.  [default: auto]")
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
@click.option(
    "--refit",
    is_flag=True,
    help="Then train one model on all images, to answer instead of the folds' models.",
)
@click.option("--permute-labels", is_flag=True, help="Self-test: shuffled labels must give chance.")
@plugins_flag
@click.pass_context
def train(ctx: click.Context, /, out: Path, config: Path | None, **flags: Any) -> int:
    """Train, evaluate and report."""
    from foveate.runs.config import build_config, load_yaml

    given: dict[str, Any] = {} if config is None else load_yaml(config)
    merge(given, named_flags(flags))
    merge(given, ctx.obj)
    if "path" not in given.get("table", {}):
        raise OptionError("no table: foveate train labels.csv --out RUN")
    return _train(build_config(given), out)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@spacing_flag
@click.option("--heatmaps", default=1000, show_default=True, help="How many images get pictures.")
@device_flag
@plugins_flag
def predict(
    run: Path,
    images: tuple[Path, ...],
    out: Path,
    spacing_um: float | None,
    heatmaps: int,
    device: str,
) -> int:
    """Predict IMAGES (files, folders or a table) with the trained RUN.

    The models of all folds answer together (their mean), or the refitted model where there is one;
    RUN/fold_2 is the model of that fold alone.

    Writes predictions.csv, and a heatmap and GeoJSON for QuPath per image.
    """
    from foveate.cli.terminal import Terminal
    from foveate.workflows.predict import Asked, predict_paths

    asked = Asked(out, assume_spacing_um=spacing_um, n_heatmaps=heatmaps, device=device)
    with Terminal() as terminal:
        summary = predict_paths(run, images, asked, terminal)
    for row in summary.rows:
        shares = "  ".join(f"{c} {float(row[f'prob_{c}']):.3f}" for c in summary.classes)
        called = f"; threshold {float(row['threshold']):.3f}" if row["threshold"] else ""
        doubt = f"  UNLIKE the images of training: {row['unlike']}" if row["unlike"] else ""
        click.echo(f"{row['image_id']}: {row['predicted']}  ({shares}{called}){doubt}")
    click.echo(f"\nwritten: {out / 'predictions.csv'}, pictures in {out / 'heatmaps'}")
    return PARTIAL if summary.failed else OK


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
@click.option("--heatmaps", default=0, show_default=True, help="How many images get pictures.")
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
    label: str | None,
    files: Path | None,
    images: Path | None,
    spacing_um: float | None,
    audit_layout: bool,
    heatmaps: int,
    renamed: tuple[str, ...],
    device: str,
) -> int:
    """Score the trained RUN on a labelled TABLE that it has never seen.

    Rows with a label that the RUN does not know are left out, and said.
    """
    from foveate.cli.terminal import Terminal
    from foveate.workflows.predict import Asked, evaluate_table

    asked = Asked(out, assume_spacing_um=spacing_um, n_heatmaps=heatmaps, device=device)
    with Terminal() as terminal:
        metrics, failed = evaluate_table(
            run,
            table,
            asked,
            terminal,
            label=label,
            files=files,
            images=images,
            renamed=pairs(renamed, "--map"),
            shuffle_layout=audit_layout,
        )
    _show_scores(metrics)
    if audit_layout:
        click.echo(f"  {metrics['layout']['told']}")
    click.echo(f"\nwritten: {out / 'metrics.json'}, {out / 'predictions.csv'}")
    return PARTIAL if failed else OK


@click.command()
@click.argument("name", required=False)
@click.option("--markdown", is_flag=True, help="All of them as the page docs/methods.md.")
@plugins_flag
def methods(name: str | None, markdown: bool) -> None:
    """List the methods, or tell about one: source, when to use it, what it costs, its options."""
    from foveate.parts import find, names, options
    from foveate.workflows.catalogue import methods_page, told

    if markdown:
        click.echo(methods_page(), nl=False)
        return
    if name is None:
        for each in names("methods"):
            click.echo(f"{each:<20} {find('methods', each).summary}")
        click.echo("\noptions of one: foveate methods NAME")
        return
    part = find("methods", name)
    click.echo(f"{name}: {part.summary}\n")
    for title, text in told(part).items():
        click.echo(click.wrap_text(f"{title}: {text}" if title else text, 98) + "\n")
    click.echo(inspect.cleandoc(part.__doc__ or "") + "\n")
    for option in options(part).values():
        click.echo(f"  --method.{option.name.replace('_', '-'):<20} default {option.default}")


@click.command(short_help="Is the installation healthy, and how fast is it?")
@click.argument("run", type=click.Path(path_type=Path), required=False)
@plugins_flag
def doctor(run: Path | None) -> int:
    """Say what is installed, which readers work, and how fast disk, decoder and device are.

    Of a RUN, also which of its models answer, and whether they are whole.
    """
    from foveate.workflows.doctor import examine

    healthy = True
    for finding in examine(run):
        click.echo(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.name:<18} {finding.text}")
        healthy &= finding.ok
    return OK if healthy else USER_ERROR


def _train(config: Any, out: Path) -> int:
    from foveate.cli.terminal import Terminal
    from foveate.report import write_progress, write_report
    from foveate.runtime import own_rank
    from foveate.workflows.folds import join_training
    from foveate.workflows.train import run_experiment

    if own_rank() > 0:
        join_training(config, out)
        return OK
    with Terminal() as terminal:
        outcome = run_experiment(config, out, terminal, after_epoch=write_progress)
        page = write_report(out)
    _show_scores(outcome.metrics)
    _say_next(outcome, page)
    return PARTIAL if outcome.n_quarantined else OK


def _say_next(outcome: Outcome, page: Path) -> None:
    click.echo(f"\nreport:   {page}\nheatmaps: {outcome.folder / 'heatmaps'}")
    if outcome.n_quarantined:
        click.echo(
            f"set aside: {outcome.n_quarantined} images, reasons in "
            f"{outcome.folder / 'quarantine.csv'} (exit code 2)"
        )
    click.echo(f"next:     foveate predict {outcome.folder} NEW_IMAGES --out predictions")


def _show_scores(metrics: dict[str, Any]) -> None:
    seen = metrics.get("n_seen_in_training", 0)
    whom = " that training never saw"
    if seen:
        whom = f", {seen} of which training saw, or other images of their patients"
    click.echo(f"{metrics['n_images']} images of {metrics['n_patients']} patients{whom}:")
    for name, score in metrics["metrics"].items():
        click.echo(
            f"  {name:<20} {score['value']:.3f}  (95 % interval {score['lo']:.3f} to "
            f"{score['hi']:.3f})"
        )
    if "folds" in metrics:
        areas = (fold["metrics"].get("auroc", {}).get("value") for fold in metrics["folds"])
        each = " ".join("–" if area is None else f"{area:.3f}" for area in areas)
        click.echo(f"  {'auroc by fold':<20} {each}\n  {metrics['pooling']}")
