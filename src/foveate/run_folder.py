"""The folder of a run: claiming it, its small files, its log."""

from __future__ import annotations

import csv
import io
import json
import logging
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import yaml

from foveate import __version__
from foveate.atomic import write_json, write_text
from foveate.errors import CheckpointError

_LIBRARIES = ("torch", "timm", "lightning", "numpy", "openslide-python", "tifffile", "imagecodecs")


def claim(folder: Path, config: Mapping[str, Any], text: str) -> None:
    """Make the folder this run's: new, or begun with the very same options.

    A run that stopped before its plan was settled has nothing to lose: other options replace its
    own, so that a command can be mended and given again. What killed runs left aside is removed.

    Raises:
        CheckpointError: the folder belongs to a run with other options, or holds other files.
    """
    path = folder / "config.yaml"
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file, not a folder: give another --out")
    if path.is_file():
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
        difference = _first_difference(stored, config)
        if difference is not None and (folder / "plan.json").is_file():
            raise CheckpointError(
                f"{folder} was begun with other options: {difference}. Give the same options to "
                "continue it, or another --out for a new run"
            )
        sweep(folder)
        if difference is None and (folder / "env.json").is_file():
            return
    elif folder.is_dir() and any(_foreign(entry) for entry in folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty and holds no run: give another --out")
    write_text(path, text)
    write_json(folder / "env.json", environment())


def sweep(folder: Path) -> None:
    """Remove half-written files whose process has ended."""
    for path in folder.rglob(".*.part"):
        pid = path.name.split(".")[-2]
        if not (pid.isdecimal() and psutil.pid_exists(int(pid))):
            path.unlink(missing_ok=True)


def _foreign(path: Path) -> bool:
    """Whether a file is none of those that a run killed in its first moments leaves."""
    return not (path.name.startswith(".") and path.name.endswith(".part"))


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


def log_to(folder: Path, level: int = logging.INFO) -> logging.Handler:
    """Send foveate's log to ``log.txt``; returns the handler, to be removed at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / "log.txt", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("foveate")
    logger.addHandler(handler)
    logger.setLevel(level)
    return handler


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """A CSV file with these columns, whole or not at all."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, out.getvalue())


def aside(image_id: str, path: object, stage: str, reason: str) -> dict[str, str]:
    """A row of ``quarantine.csv``: which image was set aside, when, and why."""
    return {"image_id": image_id, "path": str(path), "stage": stage, "reason": reason}


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, as text."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        CheckpointError: missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _first_difference(old: Any, new: Any, key: str = "") -> str | None:
    if isinstance(old, dict) and isinstance(new, Mapping):
        for name in [*old, *(n for n in new if n not in old)]:
            where = f"{key}.{name}" if key else name
            found = _first_difference(old.get(name), new.get(name), where)
            if found is not None:
                return found
        return None
    return None if old == new else f"{key} was {old!r} and is {new!r} now"
