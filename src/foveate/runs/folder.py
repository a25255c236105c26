"""The folder of a run: how it is claimed, its small files, its log."""

from __future__ import annotations

import contextlib
import json
import logging
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from foveate._version import __version__
from foveate.errors import CheckpointError, explain_os_error
from foveate.files.atomic import remove_partial_files, write_json, write_text
from foveate.files.csvtext import csv_text, parse_csv
from foveate.files.digest import code_sha256
from foveate.files.lock import NAME as LOCK
from foveate.files.lock import is_locked
from foveate.files.run_layout import (
    FoldLayout,
    ModelLayout,
    PredictionLayout,
    RunLayout,
    is_fold_name,
)
from foveate.messages.display import Display, DisplayHandler, LoggedDisplay
from foveate.messages.warn import reset_warnings
from foveate.yamltext import read_yaml

_LATER = ("refit",)
"""Options that change no earlier result, so that they may be turned on later."""
_FREE = ("max_failed",)
"""Options that change no result, so that they may differ each time."""

_LIBRARIES = (
    "torch",
    "timm",
    "lightning-fabric",
    "numpy",
    "pandas",
    "openslide-python",
    "tifffile",
    "imagecodecs",
    "h5py",
)


def claim_folder(folder: Path, config: Mapping[str, Any], text: str) -> None:
    """Claim a folder for a run: a new folder, or one that was begun with the same options.

    A run that stopped before its plan was settled has no results to lose: new options replace its
    old ones, so that a command can be corrected and repeated. Options that only add a step
    (``refit``) may be turned on later, and those that change no result (``max_failed``) may change.
    Half-written files of killed runs are removed.

    Args:
        folder: the folder.
        config: options of the run, as they are compared.
        text: content of ``config.yaml``.

    Raises:
        CheckpointError: the folder belongs to a run with other options, or holds other files.
    """
    layout = RunLayout(folder)
    path = layout.config
    if path.is_file():
        stored = read_yaml(path)
        added = [*_FREE, *(key for key in _LATER if not stored.get(key))]
        difference = _find_difference(stored | {key: config.get(key) for key in added}, config)
        if difference is not None and layout.plan.is_file():
            raise CheckpointError(
                f"{folder} was begun with other options: {difference}. Give the same options to "
                "continue it, or another --out for a new run"
            )
        remove_partial_files(folder)
        if difference is None and layout.environment.is_file():
            if any((config.get(key) or None) != (stored.get(key) or None) for key in added):
                write_text(path, text)
            return
    elif folder.is_dir() and any(_is_foreign(entry) for entry in folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty and holds no run: give another --out")
    write_text(path, text)
    write_json(layout.environment, describe_environment())


_RUN_FILES = (
    *(RunLayout.config, RunLayout.plan, RunLayout.splits),
    *(ModelLayout.card, ModelLayout.weights),
)
_RUN_FOLDERS = (
    *(RunLayout.refit_folder, RunLayout.heatmaps_folder, RunLayout.figures, RunLayout.features),
    *(FoldLayout.model_folder, FoldLayout.frozen_folder, FoldLayout.checkpoints_folder),
)
_RESULTS = (
    *(PredictionLayout.predictions, PredictionLayout.metrics),
    *(PredictionLayout.quarantine, PredictionLayout.heatmaps_folder),
)


def check_folder(out: Path) -> None:
    """Refuse an ``--out`` that is no folder.

    Raises:
        CheckpointError: `out` is a file.
    """
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file, not a folder: give another --out")


def check_out(out: Path, run: Path) -> None:
    """Refuse an ``--out`` in which answers would overwrite something.

    A folder with a new name inside a run is right (``RUN/external``): no step of a run
    writes there or removes it, and the answers travel with the run that gave them.

    Args:
        out: folder that answers are to be written to.
        run: folder of the run whose models answer.

    Raises:
        CheckpointError: `out` is the folder of a run or a model, lies among the files of one,
            holds results of another command, or is a file.
    """
    check_folder(out)
    if _is_run(out):
        raise CheckpointError(
            f"--out {out} is the folder of a trained run, whose own results would be overwritten: "
            "give another --out"
        )
    answers = PredictionLayout(out)
    for root in _find_runs_around(out, run):
        inside = out.resolve().relative_to(root).parts
        is_reserved = not inside or is_fold_name(inside[0]) or inside[0] in _RUN_FOLDERS
        if is_reserved or ((root / inside[0]).exists() and not answers.journal.is_file()):
            raise CheckpointError(
                f"--out {out} lies among the files of the run {root}: give another --out"
            )
    results = [name for name in _RESULTS if (out / name).exists()]
    in_parts = answers.parts.glob(f"*/{PredictionLayout.journal}")
    ours = answers.journal.is_file() or any(in_parts)
    if results and not ours:
        raise CheckpointError(
            f"{out} holds results of something else ({results[0]}): give another --out"
        )


def _find_runs_around(out: Path, run: Path) -> Iterator[Path]:
    """Yield the folders that contain `out`: the folder of `run`, and those of any training."""
    out, run = out.resolve(), run.resolve()
    root = next((p for p in (run, *run.parents) if _is_run(p)), run)
    root = root if root.name != FoldLayout.model_folder else root.parent
    if out.is_relative_to(root):
        yield root
    # Folders of other things may hold a config.yaml, too.
    both = (RunLayout.config, RunLayout.environment)
    yield from (p for p in out.parents if p != root and all((p / n).is_file() for n in both))


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in _RUN_FILES)


def _is_foreign(path: Path) -> bool:
    """Return whether a file is none of those that a run leaves that is killed at its start."""
    return path.name != LOCK and not (path.name.startswith(".") and path.name.endswith(".part"))


def model_folders(run: Path) -> tuple[Path, ...]:
    """Return the folders of the models that answer for `run`, each with ``model.json``.

    For a run folder, this is the refitted model where the run asks for one, else the models of all
    folds. For the folder of a fold or of a model, it is that one model.

    Raises:
        CheckpointError: there is no trained model, or a model of the run is missing.
    """
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such folder; give the --out folder of `foveate train`")
    layout = RunLayout(run)
    for model in (ModelLayout(run), FoldLayout(run).model):
        if model.is_complete:
            return (model.folder,)
    complete = [fold.folder for fold in layout.folds() if fold.model.is_complete]
    lacking = [path for path in (layout.config, layout.splits) if not path.is_file()]
    if complete and lacking:
        raise CheckpointError(
            f"{lacking[0]} is missing: restore it from a copy, or give the folder of one fold, "
            f"such as {complete[0]}"
        )
    if not layout.config.is_file():
        raise CheckpointError(_explain_no_model(run))
    folds = [layout.fold(k).model for k in range(_count_folds(run))]
    trained = [model.folder for model in folds if model.is_complete]
    wait = "repeat the `foveate train` command to continue it"
    if is_locked(run):
        wait = "it is going on now, so wait until it has ended"
    if not trained:
        raise CheckpointError(f"{run}: training has not finished; {wait}")
    missing = [model.folder.parent.name for model in folds if not model.is_complete]
    if not missing and not _asks_for_refit(run):
        return tuple(trained)
    if not missing and layout.refit.model.is_complete:
        return (layout.refit.model_folder,)
    raise CheckpointError(
        f"{run}: training has not finished, the model of {', '.join(missing) or 'refit'} is "
        f"missing; {wait}, or give the folder of one fold, such as {trained[0].parent}"
    )


def _explain_no_model(folder: Path) -> str:
    """Explain why a folder that is no run holds no model, and what can be done."""
    for model in (ModelLayout(folder), FoldLayout(folder).model):
        here = [path.is_file() for path in (model.card, model.weights)]
        if any(here):
            lacking = model.weights if here[0] else model.card
            return (
                f"{lacking} is missing: the model is incomplete; restore it from a copy, or repeat "
                "the `foveate train` command"
            )
    if RunLayout(folder.parent).config.is_file():
        return f"{folder} holds no trained model; repeat the `foveate train` command"
    return (
        f"{folder} holds no trained model; give the --out folder of `foveate train`, or the folder "
        "of one model"
    )


def _count_folds(run: Path) -> int:
    """Return the number of folds of the run; 0 before the patients are divided."""
    path = RunLayout(run).splits
    if not path.is_file():
        return 0
    try:
        return len(read_json(path)["folds"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged: it holds no folds. Restore it from a copy, or begin a new run"
        ) from error


def _asks_for_refit(run: Path) -> bool:
    return bool(read_yaml(RunLayout(run).config).get("refit"))


def describe_environment() -> dict[str, Any]:
    """Return the versions of libraries, the platform and the command, for the record."""
    facts: dict[str, Any] = {"foveate": __version__, "code": code_sha256()}
    facts["python"] = platform.python_version()
    for name in _LIBRARIES:
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = None
    facts |= {"platform": platform.platform(), "argv": sys.argv}
    return facts


class _LogFile(logging.FileHandler):
    """A log file that ignores errors of writing, such as a full disk."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Leave out a record that cannot be written."""

    def close(self) -> None:
        """Close the file, also if the rest of it cannot be written."""
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def log_into(folder: Path, display: Display) -> Iterator[Display]:
    """Write foveate's log to ``log.txt`` of a folder, and its warnings to a display as well.

    Args:
        folder: folder of the log.
        display: display that shows warnings.

    Yields:
        A display that shows the same, and whose lines are written to the log.
    """
    handlers = [log_to(folder), DisplayHandler(display)]
    logger = logging.getLogger("foveate")
    logger.addHandler(handlers[1])
    logger.info("foveate %s: %s", __version__, " ".join(sys.argv))
    try:
        yield LoggedDisplay(display)
    finally:
        for handler in handlers:
            logging.getLogger("foveate").removeHandler(handler)
            handler.close()


def log_to(folder: Path, level: int = logging.INFO) -> logging.Handler:
    """Write foveate's log to ``log.txt``; return the handler, which the caller removes at the end.

    Warnings about files that were given once are given again, because a new log begins.

    Args:
        folder: folder of the log.
        level: least level that is written.
    """
    reset_warnings()
    folder.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(RunLayout(folder).log, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("foveate")
    logger.addHandler(handler)
    logger.setLevel(level)
    return handler


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write a CSV file with these columns, completely or not at all; formulas are guarded.

    Args:
        path: the file.
        rows: values by column.
        columns: the columns in order.
    """
    write_text(path, csv_text(rows, columns))


def make_quarantine_row(image_id: str, path: object, stage: str, reason: str) -> dict[str, str]:
    """Build a row of ``quarantine.csv``: which image was set aside, at which stage, and why.

    Args:
        image_id: id of the image.
        path: its file.
        stage: when it was set aside, such as ``plan`` or ``training``.
        reason: why it was set aside.
    """
    return {"image_id": image_id, "path": str(path), "stage": stage, "reason": reason}


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read the rows of a CSV file, as text."""
    with path.open(encoding="utf-8", newline="") as file:
        return parse_csv(file.read())


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {explain_os_error(error)}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged: it is no JSON. Restore it from a copy, or delete it and repeat "
            "the command that made it"
        ) from error


def _find_difference(old: Any, new: Any, key: str = "") -> str | None:
    if isinstance(old, dict) and isinstance(new, Mapping):
        for name in [*old, *(n for n in new if n not in old)]:
            where = f"{key}.{name}" if key else name
            difference = _find_difference(old.get(name), new.get(name), where)
            if difference is not None:
                return difference
        return None
    return None if old == new else f"{key} was {old!r} and is {new!r} now"
