"""The commands of the command line as functions; paths may be strings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate import defaults
from foveate.api.progress import OnProgress, as_display
from foveate.api.settings import merge_config, nest_options, store_table
from foveate.messages.display import Display
from foveate.parts import find, names
from foveate.prediction.options import EvaluateOptions, PredictOptions
from foveate.prediction.outputs import Summary
from foveate.runs.config import build_config
from foveate.runs.options import RunOptions
from foveate.workflows.words import describe_scores

if TYPE_CHECKING:
    import pandas as pd

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
    on_progress: OnProgress | Display | None = None,
    **more: Any,
) -> RunResult:
    """Train on a table of images and labels, evaluate on patients never seen, and report.

    The same call continues a run that was stopped.

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
        >>> foveate.train("labels.csv", "runs/first", folds=5)
        Run runs/first: 100 images of 80 patients that training never saw: …
    """
    from foveate.report import write_progress, write_report
    from foveate.workflows.train import run_experiment

    out = Path(out)
    nested = nest_options(asdict(options or RunOptions()) | more)
    if table is not None:
        nested["table"] = store_table(table, out) | nested.get("table", {})
    settings = build_config(merge_config(config, nested))
    result = run_experiment(settings, out, as_display(on_progress), after_epoch=write_progress)
    write_report(out)
    return result


def predict(
    run: Path | str,
    images: Path | str | Iterable[Path | str],
    out: Path | str,
    options: PredictOptions | None = None,
    *,
    on_progress: OnProgress | Display | None = None,
) -> Summary:
    """Predict images with a trained run; write a table, heatmaps and GeoJSON.

    The same call continues where an earlier one stopped. The table does not depend on how the
    images are divided among workers and parts.

    Args:
        run: the folder that `train` wrote, or the folder of one model.
        images: files, folders, or a table.
        out: folder for the results.
        options: how the run predicts, such as ``PredictOptions(heatmaps=10)``.
        on_progress: called with the progress of the work.

    Returns:
        The predictions, or of a part only the failures; `Summary.to_frame` returns a data frame.

    Raises:
        UnreadableImage: none of the images could be predicted.
        FoveateError: another error that the caller can correct.

    Example:
        >>> foveate.predict("runs/first", "new_slides", "predictions").to_frame()
    """
    from foveate.workflows.predict import predict_paths

    several = [images] if isinstance(images, str | Path) else list(images)
    paths = [Path(path) for path in several]
    return predict_paths(
        Path(run), paths, Path(out), options or PredictOptions(), as_display(on_progress)
    )


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Scores of a run on a labelled table.

    Attributes:
        metrics: content of ``metrics.json``; empty for a part of the images.
        failed: by image id, why an image could not be predicted.
    """

    metrics: dict[str, Any]
    failed: dict[str, str]

    def __repr__(self) -> str:
        if not self.metrics:
            return f"a part of the images, {len(self.failed)} failed"
        return describe_scores(self.metrics)


def evaluate(
    run: Path | str,
    table: Table,
    out: Path | str,
    options: EvaluateOptions | None = None,
    *,
    on_progress: OnProgress | Display | None = None,
) -> Evaluation:
    """Score a trained run on a labelled table that it has never seen.

    Args:
        run: the folder that `train` wrote, or the folder of one model.
        table: a file or a data frame, with a column of paths and one of labels.
        out: folder for the results.
        options: how the table is read and predicted, such as ``EvaluateOptions(label="grade")``.
        on_progress: called with the progress of the work.

    Returns:
        The scores, or of a part only the failures.

    Raises:
        FoveateError: no label is known, no image could be predicted, or another error.

    Example:
        >>> foveate.evaluate("runs/first", "other.csv", "external").metrics["n_images"]
    """
    from foveate.workflows.predict import evaluate_table

    stored = store_table(table, Path(out))
    chosen = options or EvaluateOptions()
    if chosen.images is None:
        chosen = replace(chosen, images=stored.get("images"))
    metrics, failed = evaluate_table(
        Path(run), Path(stored["path"]), Path(out), chosen, as_display(on_progress)
    )
    return Evaluation(metrics, failed)


def demo(
    out: Path | str = defaults.DEMO_FOLDER,
    *,
    seed: int = defaults.SEED,
    slides: int | None = None,
    on_progress: OnProgress | Display | None = None,
) -> DemoResult:
    """Write a synthetic gigapixel cohort, train on it, and report, in minutes on a CPU.

    Args:
        out: folder for the cohort and the runs.
        seed: seed of the cohort, the split and training.
        slides: number of slides; by default 100 and one gigapixel slide.
        on_progress: called with the progress of the work.

    Example:
        >>> foveate.demo("foveate-demo").promises
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
        'all patches, weighed by gated attention; …'
    """
    return {name: find("methods", name).summary for name in names("methods")}
