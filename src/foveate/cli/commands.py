"""The commands check, init, train, compare, report, predict, evaluate, audit and others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from foveate import defaults
from foveate.checks.options import CheckOptions
from foveate.cli.flags import option_flags, plugins_flag
from foveate.cli.results import print_findings, print_next, print_set_aside
from foveate.cli.words import OK, PARTIAL, USER_ERROR, Sectioned, take_sections
from foveate.errors import OptionError
from foveate.evaluation.options import AuditOptions
from foveate.files.run_layout import ComparisonLayout, PredictionLayout, RunLayout
from foveate.prediction.options import EvaluateOptions, PredictOptions
from foveate.runs.options import RunOptions
from foveate.workflows.words import describe_scores

_CHECK_CODES = {"note": OK, "problem": PARTIAL, "unusable": USER_ERROR}
"""Exit code of a check by the severity of its worst finding."""


@click.command(
    cls=Sectioned, short_help="Check a TABLE and its images before training, and write a page."
)
@click.argument("source", metavar="TABLE|FOLDER", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for the results.  [default: check, beside the table]",
)
@option_flags(CheckOptions, without=("reader_options",))
@plugins_flag
@click.pass_context
def check(ctx: click.Context, /, source: Path, out: Path | None, **options: Any) -> int:
    """Check a TABLE of images and labels, or a FOLDER of images, before training.

    Every image is opened in a process of its own, so that a damaged file stops nothing. Found are
    rows without file, unreadable and blank images, missing pixel sizes, the same picture under two
    names, and facts such as the file's size that give the label away. No file is changed. Options
    of readers are flags, as in `train`: --reader.dicom.series "T1 post".

    Exit code: 0 nothing but notes, 2 problems, 1 training would stop.
    """
    from foveate.cli.terminal import Terminal

    with Terminal() as terminal:
        terminal.say(f"checking {source}")
        import foveate

        chosen = CheckOptions(**options, **take_sections(ctx, "reader_options"))
        result = foveate.check(source, out, chosen, on_progress=terminal)
    print_findings(result)
    return _CHECK_CODES[result.severity]


@click.command(short_help="Write a table of the images in a FOLDER, to fill in.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("labels.csv"),
    show_default=True,
    help="The table; a file that exists is left as it is.",
)
@plugins_flag
def init(folder: Path, out: Path) -> None:
    """Write a table of the images in a FOLDER: path, patient_id and label.

    Patients and labels are filled in only where names of files and folders say them for certain.
    """
    import foveate

    for line in foveate.init(folder, out):
        click.echo(line)
    click.echo(f"\nwritten: {out}\nnext:    foveate check {out}")


_TRAIN_HELP = """Train on a TABLE of images and labels, evaluate on patients never seen, and report.

The same command continues a run that was stopped. Every key of config.yaml is also a flag:

\b
  --train.lr 1e-4  --train.batch-size 2  --train.patience 20
  --view.spacing-um 0.5  --view.patch-px 256  --view.fit 1024x1024
  --split.test-fraction 0.3  --task.positive malignant
  --method.patches 32        (options of the method: foveate methods glimpse)
"""


@click.command(
    cls=Sectioned, help=_TRAIN_HELP, short_help="Train on a TABLE of images and labels, and report."
)
@click.argument("table", type=click.Path(path_type=Path), required=False)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--config", type=click.Path(path_type=Path), help="YAML file; flags override it.")
@option_flags(RunOptions)
@plugins_flag
@click.pass_context
def train(
    ctx: click.Context, /, table: Path | None, out: Path, config: Path | None, **flags: Any
) -> int:
    """Train on a table, evaluate on patients never seen, and write the report."""
    from foveate.api.settings import merge_config, nest_options

    # A flag without a value that was not set must not override the config.
    chosen = nest_options({name: value for name, value in flags.items() if value is not False})
    if table is not None:
        chosen.setdefault("table", {})["path"] = str(table)
    nested = merge_config(merge_config(config, chosen), ctx.obj)
    if "path" not in nested.get("table", {}):
        raise OptionError("no table: give one, foveate train labels.csv --out RUN")
    return _train(nested, out)


_COMPARE_HELP = """Compare methods on a TABLE, or RUNs that are trained already, in pairs.

All methods are trained on the same patients with the same split. The frozen start of each method
is compared as well. The same command continues a comparison that was stopped. Flags of sections,
such as --train.lr 1e-4, apply to all methods.

\b
  foveate compare labels.csv --methods glimpse,abmil --out study
  foveate compare runs/first runs/second --out study
"""


@click.command(
    cls=Sectioned,
    help=_COMPARE_HELP,
    short_help="Compare methods on a TABLE, or RUNs that are trained already.",
)
@click.argument("sources", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of the comparison."
)
@click.option(
    "--methods",
    default=",".join(defaults.COMPARED_METHODS),
    show_default=True,
    callback=lambda _, __, text: tuple(name.strip() for name in text.split(",") if name.strip()),
    help="Methods, comma-separated; the others are compared with the first.",
)
@click.option("--config", type=click.Path(path_type=Path), help="YAML file; flags override it.")
@option_flags(RunOptions, without=("method",))
@plugins_flag
@click.pass_context
def compare(
    ctx: click.Context,
    /,
    sources: tuple[Path, ...],
    out: Path,
    methods: tuple[str, ...],
    config: Path | None,
    **flags: Any,
) -> int:
    """Compare methods on a table, or runs that are trained already."""
    import foveate
    from foveate.api.settings import merge_config, nest_options
    from foveate.cli.terminal import Terminal
    from foveate.reports.comparison import describe_comparison

    chosen = nest_options({name: value for name, value in flags.items() if value is not False})
    nested = merge_config(merge_config(config, chosen), ctx.obj) or None
    are_runs = all(RunLayout(source).config.is_file() for source in sources)
    if not are_runs and len(sources) > 1:
        lacking = next(s for s in sources if not RunLayout(s).config.is_file())
        raise OptionError(f"{lacking} is no run: give one table, or folders of trained runs")
    with Terminal() as terminal:
        result = foveate.compare(
            sources if are_runs else sources[0],
            out,
            methods=methods,
            config=nested,
            on_progress=terminal,
        )
    click.echo(describe_comparison(result.content, result.task))
    click.echo(f"\nreport:   {ComparisonLayout(out).page}")
    return PARTIAL if result.n_set_aside else OK


_REPORT_HELP = """Write the page of a RUN again, or one page over several RUNs of one table.

The RUNs may differ in method, seed, folds and options, but not in task and labels. The page shows
the question, data and exclusions, all scores with intervals, differences in pairs where the test
images are the same, every answer, and the commands that make each RUN again.

\b
  foveate report runs/first
  foveate report runs/glimpse runs/abmil runs/abmil-seed1 --out study.html
"""


@click.command(
    help=_REPORT_HELP,
    short_help="Write the page of a RUN again, or one page over several RUNs.",
)
@click.argument("runs", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The page over several RUNs, such as study.html; the page of one RUN is in its folder.",
)
@plugins_flag
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write the page of a run again, or one page over several runs."""
    import foveate

    click.echo(f"report:   {foveate.report(runs, out)}")


@click.command(short_help="Predict IMAGES (files, folders or a table) with the trained RUN.")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder for the results."
)
@option_flags(PredictOptions)
@plugins_flag
def predict(run: Path, images: tuple[Path, ...], out: Path, **options: Any) -> int:
    """Predict IMAGES (files, folders or a table) with the trained RUN.

    The models of all folds answer together, and their probabilities are averaged; where there is a
    refitted model, it answers instead of them. RUN/fold_2 is the model of that fold alone.

    Writes predictions.csv, and for each image a heatmap and GeoJSON for QuPath.
    """
    import foveate
    from foveate.cli.terminal import Terminal

    with Terminal() as terminal:
        chosen = PredictOptions(**options)
        summary = foveate.predict(run, images, out, chosen, on_progress=terminal)
    if chosen.part is not None:
        return _end_part(summary.failed)
    for row in summary.rows:
        values = [float(row[column]) for column in summary.task.columns]
        numbers = summary.task.explain(values, {"threshold": row["threshold"] or None})
        doubt = f"  ABSTAIN: {row['abstain']}" if row.get("abstain") else ""
        doubt += f"  UNLIKE the images of training: {row['unlike']}" if row["unlike"] else ""
        click.echo(f"{row['image_id']}: {row['predicted']}  ({numbers}){doubt}")
    files = PredictionLayout(out)
    click.echo(f"\nwritten: {files.predictions}, {files.page}, pictures in {files.heatmaps_folder}")
    return print_set_aside(len(summary.failed), out)


@click.command(short_help="Score the trained RUN on a labelled TABLE it has never seen.")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("table", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder for the results."
)
@option_flags(EvaluateOptions)
@plugins_flag
def evaluate(run: Path, table: Path, out: Path, **options: Any) -> int:
    """Score the trained RUN on a labelled TABLE that it has never seen.

    Rows with a label that the RUN does not know are left out, and a message gives their number.
    """
    import foveate
    from foveate.cli.terminal import Terminal

    with Terminal() as terminal:
        chosen = EvaluateOptions(**options)
        evaluation = foveate.evaluate(run, table, out, chosen, on_progress=terminal)
    if chosen.part is not None:
        return _end_part(evaluation.failed)
    metrics = evaluation.metrics
    click.echo(describe_scores(metrics))
    if chosen.audit_layout:
        click.echo(f"  {metrics['layout']['summary']}")
    files = PredictionLayout(out)
    click.echo(f"\nwritten: {files.metrics}, {files.predictions}, {files.page}")
    return print_set_aside(len(evaluation.failed), out)


@click.command(short_help="Audit the heatmaps of a RUN: are they faithful, and do they localise?")
@click.argument("run", type=click.Path(path_type=Path))
@option_flags(AuditOptions)
@plugins_flag
def audit(run: Path, **options: Any) -> None:
    """Audit the heatmaps of a RUN: are they faithful, do they localise, are they stable?

    Boxes of test images are covered with the background colour, the heaviest first, and the change
    of the answer is compared with that of the same boxes in a random order. Evidence is compared
    with masks of what decides the label (column `mask` of the table, or --masks), and between the
    models of the folds. The results are in audit.json of the RUN, and in its report.
    """
    import foveate
    from foveate.cli.terminal import Terminal

    with Terminal() as terminal:
        content = foveate.audit(run, AuditOptions(**options), on_progress=terminal)
    click.echo("\n".join(content["words"]))
    layout = RunLayout(run)
    click.echo(f"\nwritten:  {layout.audit}\nreport:   {layout.report}")


@click.command()
@click.argument("name", required=False)
@click.option("--markdown", is_flag=True, help="Print the page docs/methods.md, about all methods.")
@plugins_flag
def methods(name: str | None, markdown: bool) -> None:
    """List the methods, or describe one: its source, when to use it, its cost and options."""
    import foveate

    if markdown:
        from foveate.workflows.catalogue import write_methods_page

        click.echo(write_methods_page(), nl=False)
        return
    if name is None:
        for method, summary in foveate.list_methods().items():
            click.echo(f"{method:<20} {summary}")
        click.echo("\noptions of one: foveate methods NAME")
        return
    described = foveate.describe_method(name)
    click.echo(f"{name}: {described.summary}\n")
    for title, text in described.paragraphs.items():
        click.echo(click.wrap_text(f"{title}: {text}" if title else text, 98) + "\n")
    click.echo(described.details + "\n")
    for option in described.options:
        click.echo(f"  --method.{option.name.replace('_', '-'):<20} default {option.default}")
        meaning = option.meaning.replace("``", "`")
        click.echo(click.wrap_text(meaning, 98, "      ", "      ") + "\n")


@click.command(short_help="Check the installation, and measure its speed.")
@click.argument("run", type=click.Path(path_type=Path), required=False)
@plugins_flag
def doctor(run: Path | None) -> int:
    """Check versions and readers, and measure the speed of disk, decoder and device.

    With a RUN, also check that its models are complete, and list those that answer.
    """
    import foveate

    healthy = True
    for finding in foveate.doctor(run):
        click.echo(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.name:<18} {finding.text}")
        healthy &= finding.ok
    return OK if healthy else USER_ERROR


def _end_part(failed: Mapping[str, str]) -> int:
    """Print that a part of the images is predicted; return the exit code."""
    click.echo("this part is predicted; the same command without --part collects all parts")
    return PARTIAL if failed else OK


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
        result = foveate.train(None, out, config=nested, on_progress=terminal)
    click.echo(describe_scores(result.metrics))
    print_next(result, RunLayout(out).report)
    return PARTIAL if result.n_set_aside else OK
