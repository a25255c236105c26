"""Find the images of a table that the models which answer were trained with."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from foveate.files.run_layout import RunLayout
from foveate.messages.display import Display
from foveate.runs.fingerprint import Inputs, file_print, load_inputs
from foveate.runs.folder import read_json
from foveate.runs.models import Ensemble
from foveate.table import Case, load_splits, patient_key, patient_names


def find_trained_images(models: Ensemble, cases: Sequence[Case]) -> dict[str, str]:
    """Find the images that models which answer were trained with; return their use by image id.

    ``training`` and ``validation``: the image itself, recognised by the content of its file, under
    any path and name. ``patient``: another image of a patient whose images trained. Empty where
    the run folder of the models with its split is missing.

    Args:
        models: the models that answer.
        cases: the images that they are asked about.
    """
    images = [image for case in cases for image in case.list_images()]
    use_of = _find_used(models, images)
    found = {
        case.image_id: {use_of.get(i.image_id, "") for i in case.list_images()} for case in cases
    }
    return {i: use for i, uses in found.items() if (use := _pick_strongest(uses))}


def _pick_strongest(uses: Collection[str]) -> str:
    """Return the use of a case from those of its images; empty where none was used."""
    return next((use for use in ("training", "validation", "patient") if use in uses), "")


def _find_used(models: Ensemble, images: Sequence[Case]) -> dict[str, str]:
    """Find the single images that models which answer were trained with; return use by id."""
    use_of: dict[str, str] = {}
    for model, folder in zip(models.members, models.folders, strict=False):
        root = folder.resolve().parent.parent
        splits, use = _read_use(root, model.card.provenance)
        if not use:
            continue
        bags = read_json(RunLayout(root).splits).get("images") or {}
        case_of = {image_id: case for case, ids in bags.items() for image_id in ids}
        for image_id, known_id in _match_files(load_inputs(RunLayout(root).inputs), images).items():
            known = case_of.get(known_id, known_id)
            if known in use and use_of.get(image_id) != "training":
                use_of[image_id] = use[known]
        # Without a column of patients the image id stands for the patient, and identifies nobody.
        named = {
            patient_key(name)
            for i, p in splits.items()
            if i in use and (p != i or i in bags)
            for name in patient_names(p)
        }
        for case in images:
            asked = {patient_key(name) for name in patient_names(case.patient_id)}
            if case.patient_id != case.image_id and asked & named:
                use_of.setdefault(case.image_id, "patient")
    return use_of


def warn_of_trained_images(
    use_in_training: Mapping[str, str], n_images: int, display: Display
) -> None:
    """Warn that models answer about images, or patients, that they were trained with.

    Args:
        use_in_training: use of images by image id, as `find_trained_images` returns it.
        n_images: number of images that are predicted.
        display: shows the warning.
    """
    counts = Counter(
        "are other images of patients that trained" if use == "patient" else "trained"
        for use in use_in_training.values()
    )
    for relation, n in sorted(counts.items(), reverse=True):
        display.say(
            f"warning: {n} of {n_images} images {relation} the models that answer, which makes "
            "their answers too good; they are marked in the column in_training. Honest scores are "
            "in metrics.json of the run"
        )


def _read_use(root: Path, provenance: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Read which images of a run its model was trained with.

    Args:
        root: folder of the run.
        provenance: provenance of the model.

    Returns:
        Patient by image id, and use by image id: ``training`` or ``validation``. Both are empty
        where the folder has no split, or the split of another training.
    """
    run = RunLayout(root)
    if not (run.splits.is_file() and run.inputs.is_file()):
        return {}, {}
    splits, k = load_splits(run.splits), provenance.get("fold")
    if splits.hash != provenance.get("split_hash"):
        return {}, {}
    if k is None or k >= len(splits.folds):
        ids = splits.patients if provenance.get("refit") else ()
        return dict(splits.patients), dict.fromkeys(ids, "training")
    use = dict.fromkeys(splits.folds[k].val, "validation")
    return dict(splits.patients), use | dict.fromkeys(splits.folds[k].train, "training")


def _match_files(inputs: Inputs, cases: Sequence[Case]) -> dict[str, str]:
    """Find the images whose file a run was begun with; return their id in that run by image id."""
    known = {
        (stated["file"]["size"], stated["file"]["sha256"]): (image_id, stated["file"])
        for image_id, stated in inputs.images.items()
    }
    sizes = {size for size, _ in known}
    by_path = {file["path"]: file for _, file in known.values()}
    same = {}
    for case in cases:
        with contextlib.suppress(OSError):
            if case.path.is_file() and case.path.stat().st_size not in sizes:
                continue
        now = file_print(case.path, by_path.get(str(case.path.absolute())))
        if now["size"] >= 0 and (now["size"], now["sha256"]) in known:
            same[case.image_id] = known[now["size"], now["sha256"]][0]
    return same
