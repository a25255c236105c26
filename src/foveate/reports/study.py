"""The page of a study: several runs of one table, from the question to the commands."""

from __future__ import annotations

import os
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.files.atomic import write_text
from foveate.files.run_layout import RunLayout
from foveate.presentation import read_number, write_count, write_decimals, write_duration
from foveate.reports import sections
from foveate.reports.audits import build_audit
from foveate.reports.bands import draw_bands
from foveate.reports.comparison import COSTS, build_pairs, build_rows, draw_cost, write_sentence
from foveate.reports.figures import render_charts
from foveate.reports.gallery import link_pictures, pick_extremes
from foveate.reports.joint_answers import NamedAnswers, build_joint_answers
from foveate.reports.run_files import Row, RunFiles, read_run
from foveate.reports.template import fill_template
from foveate.tasks.base import AbstractTask

_TEMPLATE = "study.html.j2"


@dataclass(frozen=True)
class Study:
    """The runs of a study and their comparison.

    Attributes:
        runs: folders of the runs by name.
        comparison: content of ``comparison.json`` of these runs.
        task: task of all.
    """

    runs: Mapping[str, Path]
    comparison: Mapping[str, Any]
    task: AbstractTask


def write_study_page(study: Study, page: Path) -> None:
    """Read the folders of the runs, draw the figures and write the page.

    Args:
        study: the runs and their comparison.
        page: file of the page; links lead from there to the pictures in the folders.
    """
    write_text(page, fill_template(_TEMPLATE, _collect_values(study, page)))


def _collect_values(study: Study, page: Path) -> dict[str, Any]:
    content, task = study.comparison, study.task
    runs = {name: read_run(folder) for name, folder in study.runs.items()}
    pictures = {name: _link_all(run, page) for name, run in runs.items()}
    answers = [NamedAnswers(name, run.predictions, pictures[name]) for name, run in runs.items()]
    main = content["score"]
    return {
        "name": page.stem,
        "question": _describe_question(runs, task, main),
        "title": task.title(main),
        "score_text": task.words[main].text,
        "titles": [task.title(name) for name in task.tabled[1:]],
        "sentence": write_sentence(content, task),
        "rows": _add_places(build_rows(content, task), runs, page),
        "pairs": build_pairs(content),
        "n_unpaired": _count_unpaired(content),
        "likeness": content.get("likeness") or [],
        "groups": _group_runs(runs, main),
        "costs": [pair for key in COSTS if (pair := draw_cost(content, task, key, None))[1]],
        "bands": draw_bands(runs),
        "flows": _list_flows(runs),
        "plans": [_compare_with_plan(name, run) for name, run in runs.items()],
        "details": [_describe_run(name, run, page) for name, run in runs.items()],
        "answers": build_joint_answers(answers, task),
        "quarantine": _join_quarantine(runs),
        "problems": {name: run.problems for name, run in runs.items() if run.problems},
        "versions": _compare_versions(runs),
        "commands": _list_commands(study, page),
        "reading": task.reading,
    }


def _link_all(run: RunFiles, page: Path) -> dict[str, str]:
    return link_pictures(RunLayout(run.folder).heatmaps_folder, run.heatmaps, page.parent)


def _describe_question(
    runs: Mapping[str, RunFiles], task: AbstractTask, main: str
) -> list[tuple[str, str]]:
    """Return what was asked of which data, as pairs of a title and a text."""
    tables = [run.config.get("table") or {} for run in runs.values()]
    headlines = [sections.build_headline(run) for run in runs.values()]
    named = {
        "task": [headline["task"] for headline in headlines],
        "table": [table.get("path") for table in tables],
        "column of labels": [table.get("label") for table in tables],
        "method": [headline["method"] for headline in headlines],
        "encoder": [headline["encoder"] for headline in headlines],
    }
    facts = [(title, _list_distinct(values)) for title, values in named.items()]
    facts.insert(1, ("labels", task.describe()))
    facts.append(("main score", f"{task.title(main)}: {task.words[main].text}"))
    return [(title, text) for title, text in facts if text]


def _list_distinct(values: Sequence[object]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if value))


def _add_places(
    rows: list[dict[str, Any]], runs: Mapping[str, RunFiles], page: Path
) -> list[dict[str, Any]]:
    """Add to the rows of the table method, seed, bar and link of each run."""
    places = []
    for row, run in zip(rows, runs.values(), strict=True):
        cells = sections.build_main_cells(run, sections.pick_scores(run.metrics))
        report = RunLayout(run.folder).report
        places.append(
            row
            | {
                "bar": cells["bar"],
                "n_images": run.metrics.get("n_images", "–"),
                "seed": str((run.config.get("train") or {}).get("seed", "–")),
                "method": str(run.config.get("method", "–")),
                "link": _write_place(report, page) if report.is_file() else "",
            }
        )
    return places


def _write_place(path: Path, page: Path) -> str:
    """Write a path as seen from the folder of the page."""
    return Path(os.path.relpath(path, page.parent)).as_posix()


def _count_unpaired(content: Mapping[str, Any]) -> int:
    """Count the pairs of runs that do not answer the same images."""
    n = len(content["rows"])
    paired = {(pair["first"], pair["second"]) for pair in content["differences"]}
    return n * (n - 1) // 2 - len(paired)


def _group_runs(runs: Mapping[str, RunFiles], main: str) -> list[dict[str, Any]]:
    """Summarise runs that differ in their seeds only; groups of one run are left out."""
    groups: dict[str, list[RunFiles]] = {}
    for run in runs.values():
        options = {key: dict(v) if isinstance(v, dict) else v for key, v in run.config.items()}
        for section in ("train", "split"):
            (options.get(section) or {}).pop("seed", None)
        groups.setdefault(repr(sorted(options.items(), key=lambda item: item[0])), []).append(run)
    rows = []
    for members in groups.values():
        scores = [sections.pick_scores(run.metrics).get(main, {}) for run in members]
        values = [v for v in (read_number(score, "value") for score in scores) if v is not None]
        if len(values) > 1:
            rows.append(
                {
                    "method": str(members[0].config.get("method", "–")),
                    "n": len(values),
                    "mean": write_decimals(statistics.fmean(values)),
                    "sd": write_decimals(statistics.stdev(values)),
                    "low": write_decimals(min(values)),
                    "high": write_decimals(max(values)),
                }
            )
    return rows


def _list_flows(runs: Mapping[str, RunFiles]) -> list[dict[str, Any]]:
    """Count images and patients once for each division of the patients."""
    flows: dict[str, dict[str, Any]] = {}
    for name, run in runs.items():
        flow = sections.count_patients(run)
        flows.setdefault(flow["hash"], flow | {"runs": []})["runs"].append(name)
    return list(flows.values())


def _compare_with_plan(name: str, run: RunFiles) -> dict[str, Any]:
    """Return what a run planned and what came of it, as pairs of a planned and an actual text."""
    planned_folds = list(run.splits.get("folds") or [])
    planned = sum(len(fold.get("test") or []) for fold in planned_folds)
    train = run.config.get("train") or {}
    epochs = train.get("epochs")
    lengths = [len(fold.history) for fold in run.folds]
    best = [str(point.get("best_epoch", "–")) for point in run.points]
    n_pictures = sum(bool(entry.get("png")) for entry in run.heatmaps)
    return {
        "name": name,
        "cells": [
            (str(len(planned_folds)), str(len(run.points))),
            (str(planned), str(len(run.predictions))),
            (
                "follows the images" if epochs is None else f"at most {epochs} end to end",
                _list_distinct(lengths) + (f", best {', '.join(best)}" if best else ""),
            ),
            (str(run.config.get("heatmaps", "–")), str(n_pictures)),
        ],
        "set_aside": len({row.get("image_id") for row in run.quarantine}),
        "seconds": write_duration(read_number(run.cost, "seconds")),
    }


def _describe_run(name: str, run: RunFiles, page: Path) -> dict[str, Any]:
    """Return the values of the part of the page about one run."""
    task = run.task
    assert task is not None, "a run without a task is refused"
    folder = RunLayout(run.folder).heatmaps_folder
    charts = task.charts(run.predictions, run.metrics, run.points)
    return {
        "name": name,
        "headline": sections.build_headline(run),
        "folds": sections.build_fold_rows(run),
        "score_titles": sections.list_score_titles(run),
        "tables": task.tables(run.metrics, run.points),
        "charts": render_charts(charts, None),
        "notes": task.notes(run.points),
        "only_frozen": sections.answers_by_frozen_start(run),
        "gain": sections.describe_gain(run),
        "audit": build_audit(run.audit, None),
        "localisation": sections.summarise_localisation(run),
        "extremes": pick_extremes(folder, run.heatmaps, run.predictions, task, page.parent),
    }


def _join_quarantine(runs: Mapping[str, RunFiles]) -> list[Row]:
    """Return the images set aside by any run, with the runs that did so beside the stage."""
    names: dict[tuple[str, ...], list[str]] = {}
    keys = ("image_id", "stage", "reason", "path")
    for name, run in runs.items():
        for row in run.quarantine:
            names.setdefault(tuple(row.get(key) or "" for key in keys), []).append(name)
    rows = []
    for values, by in names.items():
        row = dict(zip(keys, values, strict=True))
        whose = write_count(len(runs), "run") if len(by) == len(runs) else ", ".join(by)
        rows.append(row | {"stage": f"{row['stage']} ({whose})"})
    return rows


def _compare_versions(runs: Mapping[str, RunFiles]) -> list[tuple[str, list[str], bool]]:
    """Return the versions by library, one for each run, and whether they differ."""
    names = dict.fromkeys(key for run in runs.values() for key in run.env if key != "argv")
    rows = []
    for key in names:
        values = [str(run.env.get(key) or "not installed") for run in runs.values()]
        rows.append((key, values, len(set(values)) > 1))
    return rows


def _list_commands(study: Study, page: Path) -> list[tuple[str, str]]:
    """Return the commands that make each run and this page again, each with what it does."""
    commands = []
    for name, folder in study.runs.items():
        config = shlex.quote(str(RunLayout(folder).config))
        out = shlex.quote(f"{folder}-again")
        commands.append((f"make {name} anew", f"foveate train --config {config} --out {out}"))
    folders = " ".join(shlex.quote(str(folder)) for folder in study.runs.values())
    commands.append(("this page", f"foveate report {folders} --out {shlex.quote(str(page))}"))
    return commands
