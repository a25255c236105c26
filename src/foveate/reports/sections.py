"""The content of the sections of the page, as plain values for the template."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from foveate.files.run_layout import RunLayout
from foveate.presentation import (
    ScoreWords,
    read_number,
    write_count,
    write_decimals,
    write_duration,
    write_fold,
    write_memory,
    write_percent,
    write_pixels,
)
from foveate.reports.run_files import RunFiles
from foveate.tasks.base import AbstractTask

_MIN_PATIENTS = 30
_FINDING_KEYS = {"severity", "kind", "subject", "text", "remedy", "images"}
_SPLIT_PARTS = ("train", "val", "test")
_BEFORE = ("table", "open", "split")
"""Stages before training at which images are set aside."""
_NAMES = {"train": "training", "val": "validation", "test": "test"}


def pick_scores(metrics: Mapping[str, Any], part: str = "metrics") -> dict[str, dict[str, Any]]:
    """Return the well-formed scores that are stored under the key `part`, by name.

    Args:
        metrics: content of ``metrics.json``.
        part: key of the scores.
    """
    stored = metrics.get(part)
    items = stored.items() if isinstance(stored, Mapping) else ()
    return {str(name): score for name, score in items if isinstance(score, dict)}


def build_headline(run: RunFiles) -> dict[str, Any]:
    """Return task, method, counts, the main score and a sentence about it."""
    scores, n_folds = pick_scores(run.metrics), len(list_stored_folds(run))
    name = None if run.task is None else run.task.headline(scores)
    return {
        "method": str(run.config.get("method") or run.model.get("method") or "unknown method"),
        "encoder": str(run.model.get("encoder") or run.config.get("encoder") or ""),
        "task": str(run.model.get("task") or run.config.get("task") or "unknown task"),
        "about": "" if run.task is None else run.task.allowed,
        "n_images": run.metrics.get("n_images"),
        "n_patients": run.metrics.get("n_patients"),
        "n_folds": len(_list_folds(run)) or len(run.folds),
        "score_title": "" if run.task is None or name is None else run.task.title(name, n_folds),
        "score": scores.get(name) if name else None,
        "sentence": _write_sentence(run, scores, n_folds),
        "cautions": _list_cautions(run, scores),
    }


def _write_sentence(run: RunFiles, scores: dict[str, dict[str, Any]], n_folds: int) -> str:
    clause = "" if run.task is None else run.task.sentence(scores, n_folds)
    if not clause:
        return "No scores yet: training has not finished, or no test image has a label."
    n, people = run.metrics.get("n_images", 0), run.metrics.get("n_patients", 0)
    whom = (
        f"On {write_count(n, 'image')} of {write_count(people, 'patient')} that training never saw"
    )
    return f"{whom}, {clause}"


def _list_cautions(run: RunFiles, scores: dict[str, dict[str, Any]]) -> list[str]:
    cautions = [] if run.task is None else run.task.cautions(scores)
    if run.points and isinstance(assumed := run.points[0].get("assumptions"), list):
        cautions += map(str, assumed)
    people = run.metrics.get("n_patients")
    if isinstance(people, int) and people < _MIN_PATIENTS:
        cautions.append(
            f"Only {write_count(people, 'test patient')}: read the interval, not the value."
        )
    if run.config.get("permute_labels"):
        cautions.append(
            "The labels were shuffled on purpose: anything but chance would be a fault."
        )
    return cautions


def build_cost(run: RunFiles) -> dict[str, Any] | None:
    """Return time, memory and pixels of the run; None when no cost was stored."""
    if not run.cost:
        return None
    get = {key: read_number(run.cost, key) for key in run.cost}
    seconds, reading = get.get("seconds"), get.get("seconds_reading")
    share = None if not seconds or reading is None else min(reading / seconds, 1.0)
    facts = [
        ("time, all in all", write_duration(seconds)),
        ("time per test image", write_duration(get.get("seconds_per_image"))),
        ("peak memory, main", write_memory(get.get("peak_rss_mib"))),
        ("peak memory, device", write_memory(get.get("peak_device_mib") or None)),
        ("test images hold", write_pixels(get.get("level0_px"))),
        ("of which decoded", write_pixels(get.get("decoded_px"))),
    ]
    return {
        "facts": [(title, text) for title, text in facts if text != "–"],
        "reading": share,
        "reading_text": write_percent(share),
        "computing_text": write_percent(None if share is None else 1 - share),
        "decoded": get.get("decoded_fraction"),
        "decoded_text": write_percent(get.get("decoded_fraction")),
        "decoded_px": write_pixels(get.get("decoded_px")),
        "level0_px": write_pixels(get.get("level0_px")),
    }


def build_score_rows(metrics: Mapping[str, Any], task: AbstractTask | None) -> list[dict[str, Any]]:
    """Return the scores with intervals, and bars for those with a worst and a best value.

    Args:
        metrics: content of ``metrics.json``.
        task: task that names the scores; None where it is not known.
    """
    if task is None:
        return []
    rows, stored, words = [], pick_scores(metrics), task.words
    for name in [*(n for n in words if n in stored), *(n for n in stored if n not in words)]:
        score = stored[name]
        about = words.get(name, ScoreWords(task.title(name), "", span=None))
        rows.append(
            {
                "title": about.title,
                "text": about.text,
                "value": write_decimals(read_number(score, "value")),
                "interval": _write_interval(score),
                "bar": _scale_bar(score, about),
                "method": str(score.get("method", "")),
                "n": score.get("n", ""),
            }
        )
    return rows


def _write_interval(score: Mapping[str, Any], absent: str = "–") -> str:
    lo, hi = read_number(score, "lo"), read_number(score, "hi")
    return absent if lo is None or hi is None else f"{lo:.3f} to {hi:.3f}"


def _scale_bar(score: Mapping[str, Any], about: ScoreWords) -> tuple[float, ...] | None:
    """Scale value and interval from the worst (0) to the best value (1); None where impossible."""
    values = [read_number(score, key) for key in ("value", "lo", "hi")]
    if about.span is None:
        return None
    low, high = about.span
    known = [(v - low) / (high - low) for v in values if v is not None]
    return tuple(known) if len(known) == 3 and all(0 <= v <= 1 for v in known) else None


def list_stored_folds(run: RunFiles) -> list[dict[str, Any]]:
    """Return the stored scores of each fold; empty with one fold."""
    stored = run.metrics.get("folds")
    folds = [fold for fold in stored if isinstance(fold, dict)] if isinstance(stored, list) else []
    return folds if len(folds) > 1 else []


def list_score_titles(run: RunFiles) -> list[str]:
    """Return the titles of the scores that compare folds and methods, the main one first."""
    return [] if run.task is None else [run.task.title(name) for name in run.task.tabled]


def build_fold_rows(run: RunFiles) -> list[dict[str, Any]]:
    """Return a row for each fold: its test part and its main scores."""
    return [
        {
            "name": write_fold(str(fold.get("fold", ""))),
            "images": fold.get("n_images", "–"),
            "patients": fold.get("n_patients", "–"),
        }
        | build_main_cells(run, pick_scores(fold), "" if run.task is None else run.task.unscored)
        for fold in list_stored_folds(run)
    ]


def build_main_cells(
    run: RunFiles, scores: dict[str, dict[str, Any]], absent: str = "–"
) -> dict[str, Any]:
    """Return the main score with its interval, and the further scores that are compared.

    Args:
        run: files of the run.
        scores: its scores by name.
        absent: text in place of an interval that is missing.
    """
    if run.task is None:
        return {"value": "–", "interval": absent, "bar": None, "others": []}
    main, *others = run.task.tabled
    score = scores.get(main, {})
    return {
        "value": write_decimals(read_number(score, "value")),
        "interval": _write_interval(score, absent),
        "bar": _scale_bar(score, run.task.words[main]),
        "others": [write_decimals(read_number(scores.get(name, {}), "value")) for name in others],
    }


def count_patients(run: RunFiles) -> dict[str, Any]:
    """Count the images and patients of the parts of all folds, and those set aside."""
    owners: dict[str, str] = run.splits.get("patients") or {}
    bags: dict[str, list[str]] = run.splits.get("images") or {i: [i] for i in owners}
    images = {image for ids in bags.values() for image in ids}
    labels = {row["image_id"]: row.get("label", "") for row in run.predictions if "image_id" in row}
    labels |= {str(k): str(v) for k, v in (run.splits.get("labels") or {}).items()}
    early = {row.get("image_id", "") for row in run.quarantine if row.get("stage") in _BEFORE}
    rows: list[dict[str, Any]] = []
    for k, fold in enumerate(_list_folds(run)):
        for part in _SPLIT_PARTS:
            ids = [str(i) for i in fold.get(part) or []]
            known = [labels[i] for i in ids if i in labels]
            tally = {} if run.task is None else run.task.tally(known)
            complete = bool(ids) and len(known) == len(ids)
            rows.append(
                {
                    "fold": k + 1,
                    "part": _NAMES[part],
                    "images": sum(len(bags.get(i, ())) for i in ids),
                    "patients": len({owners.get(i, i) for i in ids}),
                    "tally": [cell if complete else None for cell in tally.values()],
                }
            )
    return {
        "set_aside": len(early - images),
        "images": len(images),
        "patients": len(set(owners.values())),
        "in_table": len(images | early),
        "rows": rows,
        "tallied": [] if run.task is None else list(run.task.tally([])),
        "hidden": any(n is None for row in rows for n in row["tally"]),
        "hash": str(run.splits.get("hash", "")),
        "failed_later": len({r.get("image_id") for r in run.quarantine} - early),
    }


def compare_runs(run: RunFiles) -> list[dict[str, Any]] | None:
    """Compare the run with its frozen start and with ``baseline.json``; None without either."""
    start = pick_scores(run.metrics, "frozen")
    if not run.baseline and not start:
        return None
    name = str(run.config.get("method", "this run"))
    this_run = {"method": name, "metrics": pick_scores(run.metrics)}
    entries = [{**run.cost, **this_run}]
    if start:
        entries.append({"method": f"{name}, frozen start", "metrics": start})
    rows = []
    for k, entry in enumerate([*entries, *run.baseline]):
        rows.append(
            {
                "method": str(entry.get("method", "unknown")),
                "own": k == 0,
                **build_main_cells(run, pick_scores(entry)),
                "seconds": write_duration(read_number(entry, "seconds")),
                "memory": write_memory(read_number(entry, "peak_rss_mib")),
                "device": write_memory(read_number(entry, "peak_device_mib") or None),
                "decoded": write_percent(read_number(entry, "decoded_fraction")),
            }
        )
    return rows


def describe_gain(run: RunFiles) -> list[str]:
    """Describe what training end to end changed after the frozen start, a sentence per score."""
    if run.task is None:
        return []
    sentences, smaller = [], []
    for name, change in pick_scores(run.metrics, "gain").items():
        value, lo, hi = (read_number(change, key) for key in ("value", "lo", "hi"))
        if value is None or lo is None or hi is None:
            continue
        title, about = run.task.title(name), run.task.words.get(name)
        small_is_good = about is not None and about.small_is_good
        smaller += [title] if small_is_good else []
        clear = "no clear change"
        if lo > 0 or hi < 0:
            clear = "clearly worse" if (lo > 0) == small_is_good else "clearly better"
        sentences.append(f"{title} {value:+.3f} (95 % interval {lo:+.3f} to {hi:+.3f}): {clear}")
    return [*sentences, *(f"A lower {title} is better." for title in smaller)]


def answers_by_frozen_start(run: RunFiles) -> bool:
    """Return whether every answer is that of the frozen start, so that nothing was gained."""
    changes = pick_scores(run.metrics, "gain").values()
    ends = [read_number(change, key) for change in changes for key in ("value", "lo", "hi")]
    return bool(ends) and not any(ends) and None not in ends


def summarise_localisation(run: RunFiles) -> dict[str, Any] | None:
    """Return how often the evidence peaked on what decides; None where that is unknown."""
    share, n = read_number(run.localisation, "hit_fraction"), read_number(run.localisation, "n")
    if share is None or not n:
        return None
    lo, hi = read_number(run.localisation, "lo"), read_number(run.localisation, "hi")
    return {
        "hits": round(share * n),
        "n": int(n),
        "share": write_percent(share),
        "interval": None
        if lo is None or hi is None
        else f"{write_percent(lo)} to {write_percent(hi)}",
    }


def read_check(run: RunFiles) -> dict[str, Any] | None:
    """Return the verdict and the findings of the check of the run's table; None without one."""
    findings = run.check.get("findings")
    if not isinstance(findings, list):
        return None
    complete = [f for f in findings if isinstance(f, dict) and set(f) >= _FINDING_KEYS]
    return {"verdict": str(run.check.get("verdict", "")), "findings": complete}


def describe_answering(run: RunFiles) -> str:
    """Describe which models answer for new images, and to which models the scores belong."""
    if not run.answering:
        return f"No model answers for new images yet: {run.unanswered}."
    about = run.answering[0].get("provenance")
    averaged = "answers" if run.task is None else run.task.averaged
    if isinstance(about, dict) and about.get("refit"):
        seconds = read_number(about.get("train") or {}, "seconds")
        return (
            f"New images are answered by one model, refitted on all {about.get('n_train')} images"
            f" after the folds ({write_duration(seconds)}). The scores are those of the folds' "
            "models: each was tested on images that it had never seen, the refitted one has seen "
            "all."
        )
    if len(run.answering) > 1:
        return (
            f"New images are answered by the models of all {len(run.answering)} folds together:"
            f" their {averaged} are averaged. The scores are those of single models, each"
            " tested on images that it had never seen."
        )
    return "New images are answered by the one model that was tested here."


def list_commands(run: RunFiles) -> list[tuple[str, str]]:
    """Return commands to type next, each with what it does."""
    folder, config = (shlex.quote(str(p)) for p in (run.folder, RunLayout(run.folder).config))
    external = f"foveate evaluate {folder} OTHER_TABLE.csv --out external"
    again = f"foveate train --config {config} --out {folder}"
    return [
        ("predict new images", f"foveate predict {folder} NEW_IMAGES --out predictions"),
        ("score it on another hospital's table", external),
        ("repeat or continue this very run", again),
        ("list the other methods", "foveate methods"),
    ]


def _list_folds(run: RunFiles) -> list[dict[str, Any]]:
    folds = run.splits.get("folds")
    return [fold for fold in folds if isinstance(fold, dict)] if isinstance(folds, list) else []
