"""The folder of a run: claiming it, its small files, its log."""

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

import psutil
import yaml

from foveate import __version__
from foveate.errors import CheckpointError
from foveate.files.atomic import write_json, write_text
from foveate.files.csvtext import csv_text, rows_of
from foveate.files.lock import NAME as LOCK
from foveate.files.lock import is_held
from foveate.messages.display import Aloud, Display
from foveate.messages.warn import forget

_LATER = ("refit",)
"""Options that change nothing of what is done already, so that they may be turned on later."""

_LIBRARIES = (
    "torch",
    "timm",
    "lightning",
    "numpy",
    "pandas",
    "openslide-python",
    "tifffile",
    "imagecodecs",
)


def claim(folder: Path, config: Mapping[str, Any], text: str) -> None:
    """Make the folder this run's: new, or begun with the very same options.

    A run that stopped before its plan was settled has nothing to lose: other options replace its
    own, so that a command can be mended and given again. What only adds a step (``refit``) may be
    asked for later. What killed runs left aside is removed.

    Raises:
        CheckpointError: the folder belongs to a run with other options, or holds other files.
    """
    path = folder / "config.yaml"
    if path.is_file():
        stored = read_yaml(path)
        added = [key for key in _LATER if not stored.get(key)]
        difference = _first_difference(stored | {key: config.get(key) for key in added}, config)
        if difference is not None and (folder / "plan.json").is_file():
            raise CheckpointError(
                f"{folder} was begun with other options: {difference}. Give the same options to "
                "continue it, or another --out for a new run"
            )
        sweep(folder)
        if difference is None and (folder / "env.json").is_file():
            if any(config.get(key) for key in added):
                write_text(path, text)
            return
    elif folder.is_dir() and any(_foreign(entry) for entry in folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty and holds no run: give another --out")
    write_text(path, text)
    write_json(folder / "env.json", environment())


_RUN_FILES = ("config.yaml", "plan.json", "splits.json", "model.json", "model.safetensors")
_RUN_FOLDERS = ("refit", "heatmaps", "figures", "features", "model", "frozen", "checkpoints")
_RESULTS = ("predictions.csv", "metrics.json", "quarantine.csv", "heatmaps")
_ANSWERS = "answers.jsonl"


def check_folder(out: Path) -> None:
    """Refuse an ``--out`` that is no folder.

    Raises:
        CheckpointError: it is a file.
    """
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file, not a folder: give another --out")


def check_out(out: Path, run: Path) -> None:
    """Refuse an ``--out`` in which answers would overwrite something.

    Args:
        out: where answers are to go.
        run: that answers.

    Raises:
        CheckpointError: it is a run's or a model's folder or lies in that of `run`, or it holds
            results of another command, or it is a file.
    """
    check_folder(out)
    if _is_run(out):
        raise CheckpointError(
            f"--out {out} is the folder of a trained run, whose own results would be overwritten: "
            "give another --out"
        )
    root = next((p for p in (run.resolve(), *run.resolve().parents) if _is_run(p)), run.resolve())
    root = root if root.name != "model" else root.parent
    if out.resolve().is_relative_to(root):
        inside = out.resolve().relative_to(root).parts
        own = not inside or inside[0].startswith("fold_") or inside[0] in _RUN_FOLDERS
        if own or ((root / inside[0]).exists() and not (out / _ANSWERS).is_file()):
            raise CheckpointError(
                f"--out {out} lies among the files of the run {root}: give another --out"
            )
    held = [name for name in _RESULTS if (out / name).exists()]
    ours = (out / _ANSWERS).is_file() or any(out.glob(f"parts/*/{_ANSWERS}"))
    if held and not ours:
        raise CheckpointError(
            f"{out} holds results of something else ({held[0]}): give another --out"
        )


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in _RUN_FILES)


def sweep(folder: Path) -> None:
    """Remove half-written files whose process has ended."""
    for path in folder.rglob(".*.part"):
        pid = path.name.split(".")[-2]
        if not (pid.isdecimal() and psutil.pid_exists(int(pid))):
            path.unlink(missing_ok=True)


def _foreign(path: Path) -> bool:
    """Whether a file is none of those that a run killed in its first moments leaves."""
    return path.name != LOCK and not (path.name.startswith(".") and path.name.endswith(".part"))


def model_folders(run: Path) -> tuple[Path, ...]:
    """The folders of the models that answer for `run`, each with ``model.json``.

    Of a run folder: the refitted model where the run asks for one, else the models of all folds.
    Of a fold's folder or a model's folder: that one model.

    Raises:
        CheckpointError: no trained model there, or not all that the run is to have.
    """
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such folder; give the --out folder of `foveate train`")
    for folder in (run, run / "model"):
        if _is_model(folder):
            return (folder,)
    if not (run / "config.yaml").is_file():
        raise CheckpointError(
            f"{run} holds no trained model; give the --out folder of `foveate train`, or the "
            "folder of one model"
        )
    folds = [run / f"fold_{k}" / "model" for k in range(_count_folds(run))]
    trained = [folder for folder in folds if _is_model(folder)]
    wait = "repeat the `foveate train` command to continue it"
    if is_held(run):
        wait = "it is going on now, so wait until it has ended"
    if not trained:
        raise CheckpointError(f"{run}: training has not finished; {wait}")
    missing = [folder.parent.name for folder in folds if folder not in trained]
    refit = run / "refit" / "model"
    if not missing and not _asks_for_refit(run):
        return tuple(folds)
    if not missing and _is_model(refit):
        return (refit,)
    raise CheckpointError(
        f"{run}: training has not finished, the model of {', '.join(missing) or 'refit'} is "
        f"missing; {wait}, or give the folder of one fold, such as {trained[0].parent}"
    )


def _is_model(folder: Path) -> bool:
    return (folder / "model.json").is_file()


def _count_folds(run: Path) -> int:
    """How many folds the run is divided into; 0 before it is."""
    path = run / "splits.json"
    if not path.is_file():
        return 0
    try:
        return len(read_json(path)["folds"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: it holds no folds") from error


def _asks_for_refit(run: Path) -> bool:
    return bool(read_yaml(run / "config.yaml").get("refit"))


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        CheckpointError: it cannot be read, is not YAML, or holds something else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise CheckpointError(
            f"{path} is damaged: it is not YAML. Restore it from a copy, or begin a new run"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} is damaged: it holds no keys and values. Restore it from a copy, or begin a "
            "new run"
        )
    return content


def environment() -> dict[str, Any]:
    """Versions and machine, for the record."""
    found: dict[str, Any] = {"foveate": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    found |= {"platform": platform.platform(), "argv": sys.argv}
    return found


class _LogFile(logging.FileHandler):
    """A log that a full disk does not stop, nor let complain."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """What cannot be written is left out."""


@contextlib.contextmanager
def logged(folder: Path, display: Display) -> Iterator[None]:
    """Keep foveate's log in ``log.txt`` of a folder, and say its warnings on a display as well."""
    handlers = [log_to(folder), Aloud(display)]
    logging.getLogger("foveate").addHandler(handlers[1])
    try:
        yield
    finally:
        for handler in handlers:
            logging.getLogger("foveate").removeHandler(handler)
            handler.close()


def log_to(folder: Path, level: int = logging.INFO) -> logging.Handler:
    """Send foveate's log to ``log.txt``; returns the handler, to be removed at the end.

    What was said of files before is said anew: another log begins.
    """
    forget()
    folder.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(folder / "log.txt", encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("foveate")
    logger.addHandler(handler)
    logger.setLevel(level)
    return handler


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """A CSV file with these columns, whole or not at all; formulas are guarded."""
    write_text(path, csv_text(rows, columns))


def aside(image_id: str, path: object, stage: str, reason: str) -> dict[str, str]:
    """A row of ``quarantine.csv``: which image was set aside, when, and why."""
    return {"image_id": image_id, "path": str(path), "stage": stage, "reason": reason}


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, as text."""
    with path.open(encoding="utf-8", newline="") as file:
        return rows_of(file.read())


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        CheckpointError: missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged: it is no JSON. Restore it from a copy, or repeat the command that "
            "made it"
        ) from error


def _first_difference(old: Any, new: Any, key: str = "") -> str | None:
    if isinstance(old, dict) and isinstance(new, Mapping):
        for name in [*old, *(n for n in new if n not in old)]:
            where = f"{key}.{name}" if key else name
            found = _first_difference(old.get(name), new.get(name), where)
            if found is not None:
                return found
        return None
    return None if old == new else f"{key} was {old!r} and is {new!r} now"
