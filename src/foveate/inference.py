"""A trained run on images it has never seen: predictions, and scores where there are labels.

All models of a run answer together (`foveate.ensemble`), and what is written says which did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from foveate.atomic import write_json
from foveate.audit import audit_layout
from foveate.cases import (
    Case,
    CaseTable,
    cases_from_folder,
    load_splits,
    read_cases,
    with_known_labels,
)
from foveate.ensemble import Ensemble, find_models
from foveate.errors import ImageNotFound, TableError, UnreadableImage
from foveate.evaluation import evaluate_rows
from foveate.loading import CaseLoader
from foveate.outputs import Display, Summary, predict_into
from foveate.run_folder import aside, write_rows
from foveate.runtime import build_fabric
from foveate.schedule import TrainOptions

_TABLES = (".csv", ".tsv", ".xlsx")


def gather_cases(paths: Sequence[Path]) -> CaseTable:
    """Cases from files, folders and tables, with the rows of tables that cannot be used.

    Raises:
        ImageNotFound: a path does not exist.
        TableError: two images would share an id, or nothing is there.
    """
    tables: list[CaseTable] = []
    for path in paths:
        if not path.exists():
            raise ImageNotFound(f"{path}: no such file or folder")
        if path.suffix.lower() in _TABLES and path.is_file():
            tables.append(read_cases(path, need_labels=False))
        else:
            tables.append(cases_from_folder(path))
    once: dict[Path, Case] = {}
    for case in (case for table in tables for case in table.cases):
        once.setdefault(case.path.resolve(), case)
    return CaseTable(
        cases=tuple(_with_distinct_ids(list(once.values()))),
        notes=tuple(note for table in tables for note in table.notes),
        set_aside=tuple(row for table in tables for row in table.set_aside),
    )


def predict_paths(
    run: Path,
    paths: Sequence[Path],
    out: Path,
    display: Display,
    *,
    assume_spacing_um: float | None = None,
    n_heatmaps: int = 1000,
    device: str = "auto",
) -> Summary:
    """Predict images; results go to `out`. Images that fail are listed in ``quarantine.csv``.

    Raises:
        UnreadableImage: not one of them could be predicted.
    """
    summary = _predict(
        find_models(run), gather_cases(paths), out, display, assume_spacing_um, n_heatmaps, device
    )
    if not summary.rows:
        first = next(iter(summary.failed.values()), "there is none")
        raise UnreadableImage(f"no image could be predicted; the first: {first}")
    return summary


def evaluate_table(
    run: Path,
    table: Path,
    out: Path,
    display: Display,
    *,
    label: str | None = None,
    images: Path | None = None,
    assume_spacing_um: float | None = None,
    device: str = "auto",
    n_heatmaps: int = 0,
    renamed: Mapping[str, str] | None = None,
    shuffle_layout: bool = False,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Predict a labelled table and score it; returns the metrics and the images that failed.

    Images that trained a model which answers are counted under ``n_seen_in_training``, and said.
    Labels are `renamed` first; rows with others than the model knows are left out, set aside and
    said. Pictures are drawn of the first `n_heatmaps` images; evidence is kept of all.
    With `shuffle_layout`, an audit of whether the model uses where patches lie is added under
    ``layout`` (`foveate.audit`).

    Raises:
        OptionError: a label is renamed to what is no class, or does not occur.
        TableError: no row has a label that the model knows.
    """
    models = find_models(run)
    read = read_cases(table, images=images, label=label, min_classes=1)
    try:
        read = with_known_labels(read, models.classes, renamed or {})
    except TableError as error:
        raise TableError(f"{table}: {error}") from None
    seen = _count_seen(models, read.cases)
    if seen:
        display.say(
            f"warning: {seen} of {len(read.cases)} images trained the models that answer: these "
            "scores are too good. Honest ones are in metrics.json of the run"
        )
    summary = _predict(models, read, out, display, assume_spacing_um, n_heatmaps, device)
    if not summary.rows:
        raise TableError(f"no image of {table} could be predicted; see {out / 'quarantine.csv'}")
    rows = [{k: str(v) for k, v in row.items()} for row in summary.rows]
    metrics = evaluate_rows(rows, models.classes) | {"n_seen_in_training": seen}
    if shuffle_layout:
        good = [case for case in read.cases if case.image_id not in summary.failed]
        metrics["layout"] = _layout(models, good, assume_spacing_um, device)
    write_json(out / "metrics.json", metrics)
    return metrics, summary.failed


def _count_seen(models: Ensemble, cases: Sequence[Case]) -> int:
    """How many of the cases, by image and patient, were in training or validation of a model.

    0 where the models' run folder with its split is not there.
    """
    seen: set[tuple[str, str]] = set()
    for model, folder in zip(models.members, models.folders, strict=False):
        about, path = model.card.provenance, folder.resolve().parent.parent / "splits.json"
        if not path.is_file():
            continue
        splits = load_splits(path)
        if splits.hash != about.get("split_hash"):
            continue
        if about.get("refit"):
            seen |= set(splits.patients.items())
        elif about.get("fold") is not None:
            fold = splits.folds[about["fold"]]
            seen |= {(i, splits.patients[i]) for i in (*fold.train, *fold.val)}
    return sum((case.image_id, case.patient_id) in seen for case in cases)


def _layout(
    models: Ensemble, cases: Sequence[Case], assume_spacing_um: float | None, device: str
) -> dict[str, Any]:
    assumed = assume_spacing_um or models.card.assume_spacing_um
    options = TrainOptions(device=device)  # type: ignore[arg-type]
    loader = CaseLoader(models.card.view, assume_spacing_um=assumed)
    try:
        found = audit_layout(models, cases, loader, device=build_fabric(options).device)
    finally:
        loader.close()
    return {**asdict(found), "uses_layout": found.uses_layout, "told": found.told()}


def _predict(
    models: Ensemble,
    table: CaseTable,
    out: Path,
    display: Display,
    assume_spacing_um: float | None,
    n_heatmaps: int,
    device: str,
) -> Summary:
    for note in table.notes:
        display.say(note)
    display.say(models.describe())
    assumed = assume_spacing_um or models.card.assume_spacing_um
    options = TrainOptions(device=device)  # type: ignore[arg-type]
    loader = CaseLoader(models.card.view, assume_spacing_um=assumed)
    try:
        summary = predict_into(
            out,
            models,
            table.cases,
            loader,
            device=build_fabric(options).device,
            heatmaps=out / "heatmaps",
            n_heatmaps=n_heatmaps,
            display=display,
        )
    finally:
        loader.close()
    paths = {case.image_id: str(case.path) for case in table.cases}
    rows = [aside(row.image_id, row.path, "table", row.reason) for row in table.set_aside] + [
        aside(i, paths[i], "predict", reason) for i, reason in summary.failed.items()
    ]
    for row in table.set_aside:
        summary.failed[row.image_id] = row.reason
    (out / "quarantine.csv").unlink(missing_ok=True)
    if rows:
        write_rows(out / "quarantine.csv", rows, list(rows[0]))
    write_json(out / "cost.json", {"models": len(models), **summary.cost})
    write_json(out / "answer.json", models.record())
    return summary


def _with_distinct_ids(cases: Sequence[Case]) -> list[Case]:
    """Files of one name in several folders get their folder's name in front."""
    seen: dict[str, int] = {}
    for case in cases:
        seen[case.image_id] = seen.get(case.image_id, 0) + 1
    out = []
    for case in cases:
        name = case.image_id
        if seen[name] > 1:
            name = f"{case.path.parent.name}-{case.path.name}"
        out.append(Case(name, case.patient_id, case.path, case.label, case.spacing_um))
    ids = [case.image_id for case in out]
    if len(set(ids)) != len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise TableError(f"two images would be called '{twice}': predict them one folder at a time")
    return out
