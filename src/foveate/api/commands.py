"""Commands of the command line as functions; paths may be strings.

``predict`` and ``evaluate`` are in `foveate.workflows.predict`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate import defaults
from foveate.api.settings import merge_config, nest_options
from foveate.errors import OptionError
from foveate.messages.display import Display, OnUpdate, as_display
from foveate.parts import find, names
from foveate.runs.config import build_config
from foveate.runs.options import RunOptions
from foveate.table.frames import store_table

if TYPE_CHECKING:
    import pandas as pd

    from foveate.checks.options import CheckOptions
    from foveate.evaluation.options import AuditOptions
    from foveate.workflows.check import CheckResult
    from foveate.workflows.compare import Comparison
    from foveate.workflows.demo import DemoResult
    from foveate.workflows.doctor import Finding
    from foveate.workflows.train import RunResult

    Table = pd.DataFrame | Path | str


def train(
    table: Table | None,
    out: Path | str,
    options: RunOptions | None = None,
    *,
    config: Mapping[str, Any] | Path | str | None = None,
    on_progress: OnUpdate | Display | None = None,
    **more: Any,
) -> RunResult:
    """Train on a table of images and labels, evaluate on patients never seen, and report.

    The same call continues a run that was stopped. Files of features (HDF5) stand in for images.

    Args:
        table: a CSV, TSV or XLSX file, or a data frame, with a column of paths and one of labels;
            None where `config` names it.
        out: folder of the run.
        options: method, columns of the table, folds and so on; by default as in `config`.
        config: a YAML file or nested values; `options` and `more` override it.
        on_progress: called with the progress of the work.
        more: options of the method, such as ``patches=32``; keys of sections and options of other
            parts with their name, such as ``train__lr=1e-4`` and ``encoder__width=8``; and single
            fields of `options`, such as ``folds=5``.

    Returns:
        The folder of the run, its scores, and the number of images that were set aside.

    Raises:
        FoveateError: an error that the caller can correct.

    Example:
        >>> options = foveate.RunOptions(method="glimpse", folds=5)
        >>> foveate.train("labels.csv", "runs/second", options, patches=32)
        Run runs/second: … images of … patients that training never saw: …
    """
    from foveate.reports import write_progress, write_report
    from foveate.runs.default_method import build_run_config
    from foveate.workflows.train import check_set_aside, run_experiment

    out = Path(out)
    nested = nest_options(asdict(options or RunOptions()) | more)
    if table is not None:
        nested["table"] = store_table(table, out) | nested.get("table", {})
    display = as_display(on_progress)
    settings, read = build_run_config(merge_config(config, nested), display)
    result = run_experiment(settings, out, display, table=read, after_epoch=write_progress)
    write_report(out)
    check_set_aside(settings, out, result.n_set_aside, result.n_images)
    return result


def check(
    source: Path | str,
    out: Path | str | None = None,
    options: CheckOptions | None = None,
    *,
    on_progress: OnUpdate | Display | None = None,
) -> CheckResult:
    """Check a table and its images before training: find what would stop or spoil it.

    Every image is opened in a child process. The same call continues a check that was stopped, and
    opens only images that have changed. No file of yours is changed.

    Args:
        source: a table of images and labels, or a folder of images.
        out: folder for the results; by default ``check`` beside the table.
        options: columns of the table, limits and so on.
        on_progress: called with the progress of the work.

    Returns:
        The findings, worst first, and the next command.

    Raises:
        FoveateError: there is nothing to check, or the results cannot be written.

    Example:
        >>> foveate.check("labels.csv", "check").n_images
        24
    """
    from foveate.checks.options import CheckOptions
    from foveate.checks.stored import FOLDER
    from foveate.workflows.check import run_check

    source = Path(source)
    folder = source.parent / FOLDER if out is None else Path(out)
    return run_check(source, folder, options or CheckOptions(), as_display(on_progress))


def init(folder: Path | str, out: Path | str = "labels.csv") -> tuple[str, ...]:
    """Write a table of the images in a folder, for you to fill in.

    Patients and labels are filled in only where names of files and folders say them for certain.

    Args:
        folder: the folder of the images.
        out: the table, which must not exist.

    Returns:
        Lines that say how patients and labels were found, and what is left to fill in.

    Raises:
        TableError: the table exists, or the folder holds no image.

    Example:
        >>> foveate.init("in", "drafted.csv")[0]
        '24 images in in'
    """
    from foveate.readers import is_image_folder
    from foveate.table.draft import draft_rows, write_draft

    draft = draft_rows(Path(folder), is_image_folder)
    write_draft(draft, Path(out))
    return draft.notes


def compare(
    sources: Table | Sequence[Path | str],
    out: Path | str,
    options: RunOptions | None = None,
    *,
    methods: Sequence[str] = defaults.COMPARED_METHODS,
    config: Mapping[str, Any] | Path | str | None = None,
    on_progress: OnUpdate | Display | None = None,
    **more: Any,
) -> Comparison:
    """Train several methods on the same patients and splits, and compare them in pairs.

    The same call continues a comparison that was stopped.

    Args:
        sources: a table, as in `train`; or folders of runs that are trained already, at least two.
        out: folder of the comparison; with a table it holds a run for each method.
        options: columns of the table, folds and so on, the same for all methods.
        methods: names of the methods; the others are compared with the first.
        config: a YAML file or nested values; `options` and `more` override it.
        on_progress: called with the progress of the work.
        more: further options, as in `train`.

    Returns:
        The rows and differences of ``comparison.json``.

    Raises:
        OptionError: fewer than two methods or runs, or options for runs that are trained already.
        FoveateError: another error that the caller can correct.

    Example:
        >>> foveate.compare("labels.csv", "study", methods=("abmil", "downsampled"))
        Comparison study: …
    """
    from foveate.workflows.compare import compare_methods, compare_runs

    out, display = Path(out), as_display(on_progress)
    nested = nest_options(asdict(options or RunOptions()) | more)
    if isinstance(sources, Sequence) and not isinstance(sources, str):
        if nested or config is not None:
            raise OptionError(
                "options of training have no effect on runs that are trained already: leave them "
                "out, or give the table"
            )
        return compare_runs([Path(run) for run in sources], out)
    nested["table"] = store_table(sources, out) | nested.get("table", {})
    configs = {
        name: build_config(merge_config(config, nested | {"method": name})) for name in methods
    }
    return compare_methods(configs, out, display)


def report(runs: Path | str | Sequence[Path | str], out: Path | str | None = None) -> Path:
    """Write the page of a run again, or one page over several runs of one table.

    No folder of a run is changed but for the page and the figures of a single run.

    Args:
        runs: folder of a run, or folders of several: methods, seeds or folds on the same labels.
        out: the page over several runs, such as ``study.html``; it holds all figures, and links to
            the heatmaps in the folders of the runs.

    Returns:
        Path of the page.

    Raises:
        OptionError: `out` is missing for several runs, is given for one, or is no name of a page.
        CheckpointError: a folder holds no finished run, or the runs do not belong together.

    Example:
        >>> foveate.report("runs/first").name
        'report.html'
    """
    from foveate.workflows.study import write_reports

    listed = [runs] if isinstance(runs, str | Path) else list(runs)
    return write_reports([Path(run) for run in listed], None if out is None else Path(out))


def audit(
    run: Path | str,
    options: AuditOptions | None = None,
    *,
    on_progress: OnUpdate | Display | None = None,
) -> dict[str, Any]:
    """Audit the heatmaps of a run: are they faithful, do they localise, are they stable?

    Boxes of test images are deleted and inserted by weight, and the change of the answer is
    compared with that in a random order; evidence is compared with masks, where there are some, and
    between the models of the folds. The result is written to ``audit.json`` in the folder of the
    run, and is a section of its page.

    Args:
        run: folder of a finished run.
        options: how many images are audited, and where masks are.
        on_progress: called with the progress of the work.

    Returns:
        The content of ``audit.json``.

    Raises:
        CheckpointError: the folder holds no finished run.
        TableError: a mask is missing or does not fit its image.
        FoveateError: another error that the caller can correct.

    Example:
        >>> foveate.audit("runs/first", foveate.AuditOptions(images=2))["n_images"]
        2
    """
    from foveate.evaluation.options import AuditOptions
    from foveate.workflows.audit import run_audit

    return run_audit(Path(run), options or AuditOptions(), as_display(on_progress))


def demo(
    out: Path | str = defaults.DEMO_FOLDER,
    *,
    seed: int = defaults.SEED,
    slides: int | None = None,
    on_progress: OnUpdate | Display | None = None,
) -> DemoResult:
    """Write a synthetic gigapixel cohort, train on it, and report, in minutes on a CPU.

    Args:
        out: folder for the cohort and the runs.
        seed: seed of the cohort, the split and training.
        slides: number of slides; by default 100 and one gigapixel slide.
        on_progress: called with the progress of the work.

    Example:
        >>> [promise.kept for promise in foveate.demo("foveate-demo").promises]
        [True, …]
    """
    from foveate.workflows.demo import run_demo

    return run_demo(Path(out), as_display(on_progress), seed=seed, slides=slides)


def doctor(run: Path | str | None = None) -> Iterator[Finding]:
    """Check the installation, one finding after the other: versions, readers, speed.

    Args:
        run: a trained run whose models are checked as well.

    Example:
        >>> all(finding.ok for finding in foveate.doctor())
        True
    """
    from foveate.workflows.doctor import examine

    return examine(None if run is None else Path(run))


def list_methods() -> dict[str, str]:
    """Return the summaries of all methods by name, one line each.

    Example:
        >>> foveate.list_methods()["abmil"]
        'all patches, gated attention; …'
    """
    return {name: find("methods", name).summary for name in names("methods")}
