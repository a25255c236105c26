"""The inputs of a run, and what changed in them when the same command comes again.

Labels, patients and spacings of images, the content of image files, and files of the user's own
such as weights and plug-ins are noted when a run is planned (``inputs.json``). A run whose inputs
were changed since is not continued: old scores would stand beside new labels.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.errors import CheckpointError
from foveate.files.atomic import write_json
from foveate.files.digest import file_sha256
from foveate.files.identical import companion_folder, image_state
from foveate.messages.display import OnProgress
from foveate.parts import plugin_folders
from foveate.runs.folder import read_json
from foveate.table import Case, patient_key
from foveate.wording import several

_SCHEMA = 1
_THREADS = 4
_READ_ALL_BYTES = 8 << 20
"""Largest size of a file that is read completely; larger files are read in evenly spread blocks."""
_BLOCKS, _BLOCK_BYTES = 32, 1 << 16

Stated = dict[str, Any]


@dataclass(frozen=True)
class Inputs:
    """The inputs that the results of a run depend on.

    Attributes:
        images: by image id, ``label``, ``patient``, ``spacing_um`` and ``file`` (`file_print`).
        files: by purpose (``weights``, ``plug-in x.py``), the `file_print` of a file.
    """

    images: dict[str, Stated]
    files: dict[str, Stated]


def note_inputs(
    cases: Sequence[Case],
    files: Mapping[str, Path],
    known: Inputs | None = None,
    on_progress: OnProgress | None = None,
) -> Inputs:
    """Note all inputs as they are now.

    Args:
        cases: the images of the run.
        files: other files that the results depend on, by purpose.
        known: an earlier note; files with the same path, size and time are not read again.
        on_progress: called with the number of images done and the number of all.
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
            if on_progress is not None:
                on_progress(done, len(cases))
    prints = {
        purpose: file_print(path, before.files.get(purpose), read_all=True)
        for purpose, path in files.items()
    }
    return Inputs(images, prints)


def list_files(encoder_options: Mapping[str, Any]) -> dict[str, Path]:
    """Return the files of the user that a run depends on, by purpose: weights and plug-ins."""
    files = {}
    if encoder_options.get("weights"):
        weights = Path(str(encoder_options["weights"])).expanduser()
        files["weights of the encoder"] = weights
        if weights.with_name("config.json").is_file():
            files["config.json beside the weights"] = weights.with_name("config.json")
    for folder in plugin_folders():
        for path in sorted(folder.glob("*/*.py")):
            files[f"plug-in {path.parent.name}/{path.name}"] = path
    return files


def save_inputs(inputs: Inputs, path: Path) -> None:
    """Write the inputs as JSON, completely or not at all.

    Args:
        inputs: fingerprints of a run's inputs.
        path: the JSON file.
    """
    write_json(path, {"schema": _SCHEMA, "images": inputs.images, "files": inputs.files})


def load_inputs(path: Path) -> Inputs:
    """Read what `save_inputs` wrote.

    Raises:
        CheckpointError: the file is missing, damaged, or of another version.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing: this run was begun by an earlier version, or the file was "
            "removed, so nobody knows whether labels or images were changed. Its models still "
            f"answer (foveate predict {path.parent} IMAGES --out OTHER); to train, give another "
            "--out for a new run"
        )
    stored = read_json(path)
    try:
        if stored["schema"] != _SCHEMA:
            raise CheckpointError(
                f"{path}: schema {stored['schema']}, this version reads {_SCHEMA}; give another "
                "--out for a new run"
            )
        return Inputs(dict(stored["images"]), dict(stored["files"]))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged; give another --out for a new run") from error


def check_unchanged(was: Inputs, now: Inputs, run: Path) -> None:
    """Refuse to continue a run whose inputs were changed since it was begun.

    Args:
        was: inputs when the run was begun.
        now: inputs at present.
        run: folder of the run, for messages.

    Raises:
        CheckpointError: an input was changed; the message names the first kind of change.
    """
    change = _describe_change(was, now)
    if change is not None:
        raise CheckpointError(
            f"{run}: {change}. Put back what was there to continue it, or give another --out for "
            "a new run"
        )


def file_print(path: Path, known: Stated | None = None, *, read_all: bool = False) -> Stated:
    """Compute the fingerprint of a file, or of a folder that is an image.

    Args:
        path: path of the file; a file that does not exist has the size -1.
        known: an earlier fingerprint; it is returned where path, size and time are the same.
        read_all: whether the content is read completely; else of files larger than 8 MiB only
            blocks are read.

    Returns:
        ``path``, ``size`` in bytes, ``mtime_ns``, and ``sha256`` of the content.
    """
    place = str(path.absolute())
    try:
        stat = path.stat()
        if path.is_dir():
            size, mtime_ns = image_state(path)
            now = {"path": place, "size": size, "mtime_ns": mtime_ns}
            if known is not None and all(known.get(key) == value for key, value in now.items()):
                return known
            return {**now, "sha256": _hash_folder(path, read_all)}
        if not path.is_file():  # opening a pipe would wait for ever
            return {"path": place, "size": -1, "mtime_ns": 0, "sha256": ""}
        now = {"path": place, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        companion = companion_folder(path)
        if companion is not None:
            return {
                **now,
                "sha256": _hash_file(path, stat.st_size, read_all)
                + _hash_folder(companion, read_all),
            }
        if known is not None and all(known.get(key) == value for key, value in now.items()):
            return known
        return {**now, "sha256": _hash_file(path, stat.st_size, read_all)}
    except OSError:
        return {"path": place, "size": -1, "mtime_ns": 0, "sha256": ""}


def _hash_folder(folder: Path, read_all: bool) -> str:
    """Compute the SHA-256 of names and contents of all files of a folder, see `file_print`."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name, size = path.relative_to(folder).as_posix(), path.stat().st_size
        digest.update(repr((name, size)).encode("utf-8", "replace"))
        digest.update(_hash_file(path, size, read_all).encode())
    return digest.hexdigest()


def _hash_file(path: Path, size: int, read_all: bool) -> str:
    if read_all or size <= _READ_ALL_BYTES:
        return file_sha256(path)
    with path.open("rb") as file:
        digest = hashlib.sha256()
        for n in range(_BLOCKS):
            file.seek((size - _BLOCK_BYTES) * n // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK_BYTES))
        return digest.hexdigest()


def _describe_change(was: Inputs, now: Inputs) -> str | None:
    gone, new = sorted(was.images.keys() - now.images), sorted(now.images.keys() - was.images)
    if gone:
        return f"images that the run was begun with are missing: {several(gone)}"
    if new:
        return f"images that the run was not begun with are in the table: {several(new)}"
    for key, subject in (("label", "labels"), ("patient", "patients"), ("spacing_um", "spacings")):
        if change := _describe_changed_rows(was, now, key, subject):
            return change
    other = [
        i
        for i in sorted(was.images)
        if _pick_content(was.images[i].get("file")) != _pick_content(now.images[i].get("file"))
    ]
    if other:
        return f"image files of {several(other)} were changed since the run was begun"
    for subject in sorted(was.files.keys() | now.files):
        if _pick_content(was.files.get(subject)) != _pick_content(now.files.get(subject)):
            path = (now.files.get(subject) or was.files[subject])["path"]
            return f"the {subject} ({path}) is not the one the run was begun with"
    return None


def _describe_changed_rows(was: Inputs, now: Inputs, key: str, subject: str) -> str | None:
    """Describe the images whose value of `key` differs; None where all are equal."""
    same = _is_same_patient if key == "patient" else operator.eq
    changed = [i for i in was.images if not same(was.images[i][key], now.images[i][key])]
    if not changed:
        return None
    old, new = (side.images[min(changed)][key] for side in (was, now))
    return (
        f"{subject} of {several(sorted(changed))} differ from those the run was begun with "
        f"({_quote(old)}, now {_quote(new)})"
    )


def _is_same_patient(one: str, other: str) -> bool:
    return patient_key(one) == patient_key(other)


def _pick_content(stated: Stated | None) -> tuple[Any, Any] | None:
    return None if stated is None else (stated["size"], stated["sha256"])


def _quote(value: object) -> str:
    if isinstance(value, list):
        return " x ".join(f"{v:g}" for v in value) + " um"
    return "none" if value is None else f"'{value}'"
