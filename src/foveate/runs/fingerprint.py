"""What a run rests on, and what of it was changed when the same command comes again.

Labels, patients and spacings of images, the content of image files, and files of the user's own
such as weights and plug-ins are noted when a run is planned (``inputs.json``). A run whose inputs
were changed since is not continued: old scores would stand beside new labels.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.errors import CheckpointError
from foveate.files.atomic import write_json
from foveate.parts import plugin_folders
from foveate.runs.folder import read_json
from foveate.table import Case, patient_key, several

_SCHEMA = 1
_THREADS = 4
_WHOLE_BYTES = 8 << 20
"""Files up to this size are read whole; of larger ones, blocks spread evenly."""
_BLOCKS, _BLOCK_BYTES = 32, 1 << 16

Progress = Callable[[int, int], None]
Stated = dict[str, Any]


@dataclass(frozen=True)
class Inputs:
    """What a run rests on.

    Attributes:
        images: image id to ``label``, ``patient``, ``spacing_um`` and ``file`` (`file_print`).
        files: what a file is for (``weights``, ``plug-in x.py``) to its `file_print`.
    """

    images: dict[str, Stated]
    files: dict[str, Stated]


def note_inputs(
    cases: Sequence[Case],
    files: Mapping[str, Path],
    known: Inputs | None = None,
    progress: Progress | None = None,
) -> Inputs:
    """Look at all inputs as they are now.

    Args:
        cases: the images.
        files: other files that results rest on, by what they are for.
        known: an earlier look; files of the same place, size and time are not read again.
        progress: told how many images are done, of how many.
    """
    before = known or Inputs({}, {})
    images: dict[str, Stated] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        jobs = [
            pool.submit(file_print, case.path, before.images.get(case.image_id, {}).get("file"))
            for case in cases
        ]
        for done, (case, job) in enumerate(zip(cases, jobs, strict=True), 1):
            images[case.image_id] = {
                "label": case.label,
                "patient": case.patient_id,
                "spacing_um": None if case.spacing_um is None else list(case.spacing_um),
                "file": job.result(),
            }
            if progress is not None:
                progress(done, len(cases))
    prints = {
        what: file_print(path, before.files.get(what), whole=True) for what, path in files.items()
    }
    return Inputs(images, prints)


def files_of(encoder_options: Mapping[str, Any]) -> dict[str, Path]:
    """Files of the user's own that a run rests on: weights, and plug-ins."""
    found = {}
    if encoder_options.get("weights"):
        weights = Path(str(encoder_options["weights"])).expanduser()
        found["weights of the encoder"] = weights
        if weights.with_name("config.json").is_file():
            found["config.json beside the weights"] = weights.with_name("config.json")
    for folder in plugin_folders():
        for path in sorted(folder.glob("*/*.py")):
            found[f"plug-in {path.parent.name}/{path.name}"] = path
    return found


def save_inputs(inputs: Inputs, path: Path) -> None:
    """Write as JSON, whole or not at all."""
    write_json(path, {"schema": _SCHEMA, "images": inputs.images, "files": inputs.files})


def load_inputs(path: Path) -> Inputs:
    """Read what `save_inputs` wrote.

    Raises:
        CheckpointError: missing, damaged, or of another version.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing, so nobody knows whether labels or images were changed: give "
            "another --out for a new run"
        )
    stored = read_json(path)
    try:
        if stored["schema"] != _SCHEMA:
            raise CheckpointError(
                f"{path}: schema {stored['schema']}, this version reads {_SCHEMA}"
            )
        return Inputs(dict(stored["images"]), dict(stored["files"]))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged; give another --out for a new run") from error


def check_unchanged(was: Inputs, now: Inputs, run: Path) -> None:
    """Assert that a run may go on with the inputs as they are now.

    Raises:
        CheckpointError: something was changed since; the message names the first kind of change.
    """
    change = _change(was, now)
    if change is not None:
        raise CheckpointError(
            f"{run}: {change}. Put back what was there to continue it, or give another --out for "
            "a new run"
        )


def file_print(path: Path, known: Stated | None = None, *, whole: bool = False) -> Stated:
    """Size, time and content of a file, or of a folder that is an image.

    Args:
        path: of the file; one that is not there has the size -1.
        known: an earlier print; where place, size and time are the same, it is the answer.
        whole: read all of it, however large; otherwise blocks of what is larger than 8 MiB.

    Returns:
        ``path``, ``size`` in bytes, ``mtime_ns``, and ``sha256`` of the content.
    """
    place = str(path.absolute())
    try:
        stat = path.stat()
        if path.is_dir():
            now = {"path": place, "size": 0, "mtime_ns": stat.st_mtime_ns}
            return {**now, "sha256": _listing(path)}
        if not path.is_file():  # opening a pipe would wait for ever
            return {"path": place, "size": -1, "mtime_ns": 0, "sha256": ""}
        now = {"path": place, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        companions = [p for p in _companions(path) if p.is_dir()]
        if companions:
            return {**now, "sha256": _digest(path, stat.st_size, whole) + _listing(companions[0])}
        if known is not None and all(known.get(key) == value for key, value in now.items()):
            return known
        return {**now, "sha256": _digest(path, stat.st_size, whole)}
    except OSError:
        return {"path": place, "size": -1, "mtime_ns": 0, "sha256": ""}


def _companions(path: Path) -> tuple[Path, ...]:
    """Folders that belong to a slide which is a file and a folder."""
    kind = path.suffix.lower()
    if kind == ".vsi":
        return (path.with_name(f"_{path.stem}_"),)
    return (path.with_suffix(""),) if kind == ".mrxs" else ()


def _listing(folder: Path) -> str:
    """SHA-256 of the names and sizes of all files of a folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    sizes = [(p.relative_to(folder).as_posix(), p.stat().st_size) for p in files]
    return hashlib.sha256(repr(sizes).encode("utf-8", "replace")).hexdigest()


def _digest(path: Path, size: int, whole: bool) -> str:
    with path.open("rb") as file:
        if whole or size <= _WHOLE_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()
        found = hashlib.sha256()
        for n in range(_BLOCKS):
            file.seek((size - _BLOCK_BYTES) * n // (_BLOCKS - 1))
            found.update(file.read(_BLOCK_BYTES))
        return found.hexdigest()


def _change(was: Inputs, now: Inputs) -> str | None:
    gone, new = sorted(was.images.keys() - now.images), sorted(now.images.keys() - was.images)
    if gone:
        return f"images that the run was begun with are missing: {several(gone)}"
    if new:
        return f"images that the run was not begun with are in the table: {several(new)}"
    for key, what in (("label", "labels"), ("patient", "patients"), ("spacing_um", "spacings")):
        same = _same_patient if key == "patient" else operator.eq
        other = [i for i in was.images if not same(was.images[i][key], now.images[i][key])]
        if other:
            old, new_one = (side.images[min(other)][key] for side in (was, now))
            example = f"{_said(old)}, now {_said(new_one)}"
            return (
                f"{what} of {several(sorted(other))} differ from those the run was begun with "
                f"({example})"
            )
    other = [
        i
        for i in sorted(was.images)
        if _content(was.images[i].get("file")) != _content(now.images[i].get("file"))
    ]
    if other:
        return f"image files of {several(other)} were changed since the run was begun"
    for what in sorted(was.files.keys() | now.files):
        if _content(was.files.get(what)) != _content(now.files.get(what)):
            path = (now.files.get(what) or was.files[what])["path"]
            return f"the {what} ({path}) is not the one the run was begun with"
    return None


def _same_patient(one: str, other: str) -> bool:
    return patient_key(one) == patient_key(other)


def _content(stated: Stated | None) -> tuple[Any, Any] | None:
    return None if stated is None else (stated["size"], stated["sha256"])


def _said(value: Any) -> str:
    if isinstance(value, list):
        return " x ".join(f"{v:g}" for v in value) + " um"
    return "none" if value is None else f"'{value}'"
