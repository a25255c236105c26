"""What each section of the page says, as plain values for the template."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from typing import Any

from foveate.report.run_files import RunFiles, number
from foveate.report.words import (
    MEANING,
    SMALL_IS_GOOD,
    counted,
    decimals,
    fold_title,
    meaning,
    memory,
    percent,
    pixels,
)
from foveate.training.notice import duration

_FEW_PATIENTS = 30
_PARTS = ("train", "val", "test")
_NAMES = {"train": "training", "val": "validation", "test": "test"}


def scores_of(metrics: Mapping[str, Any], part: str = "metrics") -> dict[str, dict[str, Any]]:
    """The scores that are stored properly under this key, by name."""
    stored = metrics.get(part)
    found = stored.items() if isinstance(stored, Mapping) else ()
    return {str(name): score for name, score in found if isinstance(score, dict)}


def headline(run: RunFiles) -> dict[str, Any]:
    """Task, method, counts, the main score and a sentence about it."""
    scores = scores_of(run.metrics)
    name = next((key for key in ("auroc", "accuracy", *scores) if key in scores), None)
    main = scores.get(name) if name else None
    return {
        "method": str(run.config.get("method") or run.model.get("method") or "unknown method"),
        "encoder": str(run.model.get("encoder") or run.config.get("encoder") or ""),
        "task": str(run.model.get("task") or run.config.get("task") or "unknown task"),
        "classes": run.classes,
        "n_images": run.metrics.get("n_images"),
        "n_patients": run.metrics.get("n_patients"),
        "n_folds": len(_folds(run)) or len(run.folds),
        "score_title": _score_title(run, name),
        "score": main,
        "sentence": _sentence(run, name, main),
        "cautions": _cautions(run, name, main),
    }


def _score_title(run: RunFiles, name: str | None) -> str | None:
    """What the large number is; ranks of several folds are compared within each."""
    if name is None:
        return None
    within = " within folds" if name == "auroc" and stored_folds(run) else ""
    return meaning(name)[0] + within


def _sentence(run: RunFiles, name: str | None, score: Mapping[str, Any] | None) -> str:
    value = None if score is None else number(score, "value")
    if score is None or value is None:
        return "No scores yet: training has not finished, or no test image has a label."
    n, people = run.metrics.get("n_images", 0), run.metrics.get("n_patients", 0)
    whom = f"On {counted(n, 'image')} of {counted(people, 'patient')} that training never saw, "
    lo, hi = number(score, "lo"), number(score, "hi")
    if name != "auroc":
        between = "" if lo is None or hi is None else f" (95 % interval {lo:.2f} to {hi:.2f})"
        return f"{whom}the {meaning(name or '')[0]} was {value:.3f}{between}."
    within = (
        "" if lo is None or hi is None else f" (95 % interval {100 * lo:.0f} to {100 * hi:.0f})"
    )
    if len(run.classes) == 2:
        pair = f"an image of '{run.classes[1]}' above one of '{run.classes[0]}'"
    else:
        pair = "an image of a class above one of another, on average over the classes,"
    who, of = "the model", ""
    if folds := stored_folds(run):
        who, of = f"the models of {len(folds)} folds", " of images of their own fold"
    return f"{whom}{who} ranked {pair} in {100 * value:.0f} of 100 pairs{of}{within}."


def _cautions(run: RunFiles, name: str | None, score: Mapping[str, Any] | None) -> list[str]:
    said = []
    lo, hi = (number(score or {}, key) for key in ("lo", "hi"))
    if name == "auroc" and lo is not None and hi is not None and lo <= 0.5 <= hi:
        said.append("The interval holds 0.5: this cannot be told from chance.")
    if name == "auroc" and hi is not None and hi < 0.5:
        said.append("This is worse than chance: check the labels and the split.")
    people = run.metrics.get("n_patients")
    if isinstance(people, int) and people < _FEW_PATIENTS:
        said.append(f"Only {counted(people, 'test patient')}: read the interval, not the value.")
    if run.config.get("permute_labels"):
        said.append("The labels were shuffled on purpose: anything but chance would be a fault.")
    return said


def cost(run: RunFiles) -> dict[str, Any] | None:
    """Time, memory and pixels; None when nothing was stored."""
    if not run.cost:
        return None
    get = {key: number(run.cost, key) for key in run.cost}
    seconds, reading = get.get("seconds"), get.get("seconds_reading")
    share = None if not seconds or reading is None else min(reading / seconds, 1.0)
    facts = [
        ("time, all in all", duration(seconds)),
        ("time per test image", duration(get.get("seconds_per_image"))),
        ("peak memory, main", memory(get.get("peak_rss_mib"))),
        ("peak memory, device", memory(get.get("peak_device_mib") or None)),
        ("test images hold", pixels(get.get("level0_px"))),
        ("of which decoded", pixels(get.get("decoded_px"))),
    ]
    return {
        "facts": [(title, text) for title, text in facts if text != "–"],
        "reading": share,
        "reading_text": percent(share),
        "computing_text": percent(None if share is None else 1 - share),
        "decoded": get.get("decoded_fraction"),
        "decoded_text": percent(get.get("decoded_fraction")),
        "decoded_px": pixels(get.get("decoded_px")),
        "level0_px": pixels(get.get("level0_px")),
    }


def score_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every score with its interval; `bar` holds those that run from 0 to 1, the best."""
    rows = []
    stored = scores_of(metrics)
    order = [
        *(name for name in MEANING if name in stored),
        *(n for n in stored if n not in MEANING),
    ]
    for name in order:
        score = stored[name]
        value, lo, hi = (number(score, key) for key in ("value", "lo", "hi"))
        title, text = meaning(name)
        inside = name not in SMALL_IS_GOOD and all(
            v is not None and 0 <= v <= 1 for v in (value, lo, hi)
        )
        rows.append(
            {
                "title": title,
                "text": text,
                "value": decimals(value),
                "interval": "–" if lo is None or hi is None else f"{lo:.3f} to {hi:.3f}",
                "bar": (value, lo, hi) if inside else None,
                "method": str(score.get("method", "")),
                "n": score.get("n", ""),
            }
        )
    return rows


def stored_folds(run: RunFiles) -> list[dict[str, Any]]:
    """The scores of each fold; empty with one fold."""
    found = run.metrics.get("folds")
    folds = [fold for fold in found if isinstance(fold, dict)] if isinstance(found, list) else []
    return folds if len(folds) > 1 else []


def fold_rows(run: RunFiles) -> list[dict[str, Any]]:
    """A row for each fold: its test part, its main scores, and where it calls positive."""
    rows = []
    for fold in stored_folds(run):
        scores, name = scores_of(fold), str(fold.get("fold", ""))
        auroc = scores.get("auroc", {})
        value, lo, hi = (number(auroc, key) for key in ("value", "lo", "hi"))
        rows.append(
            {
                "name": fold_title(name),
                "images": fold.get("n_images", "–"),
                "patients": fold.get("n_patients", "–"),
                "auroc": decimals(value),
                "interval": "one class only" if lo is None or hi is None
                else f"{lo:.3f} to {hi:.3f}",
                "bar": None if value is None or lo is None or hi is None else (value, lo, hi),
                "balanced": decimals(number(scores.get("balanced_accuracy", {}), "value")),
                "brier": decimals(number(scores.get("brier", {}), "value")),
            }
        )  # fmt: skip
    return rows


def called_from(run: RunFiles) -> dict[str, float]:
    """By image, from which probability of the second class on it is called so."""
    points = {row.get("image_id", ""): number(row, "threshold") for row in run.predictions}
    return {name: value for name, value in points.items() if value is not None}


def confusion(run: RunFiles) -> dict[str, Any] | None:
    """Rows are true classes; None when there is no matrix that fits the classes."""
    matrix, classes = run.metrics.get("confusion"), run.classes
    if not isinstance(matrix, list) or len(matrix) != len(classes):
        return None
    rows = []
    for name, counts in zip(classes, matrix, strict=True):
        total = sum(counts)
        rows.append(
            {
                "name": name,
                "cells": [(n, n / total if total else 0.0) for n in counts],
                "total": total,
                "found": percent(counts[classes.index(name)] / total) if total else "–",
            }
        )
    return {"classes": classes, "rows": rows, "thresholds": thresholds(run)}


def thresholds(run: RunFiles) -> list[float]:
    """Operating points, one per fold that stored one."""
    return _settled(run, "threshold")


def temperatures(run: RunFiles) -> list[float]:
    """What logits were divided by, one per fold that stored one."""
    return _settled(run, "temperature")


def _settled(run: RunFiles, key: str) -> list[float]:
    found = (number(fold.model.get("provenance") or {}, key) for fold in run.folds)
    return [value for value in found if value is not None]


def patient_flow(run: RunFiles) -> dict[str, Any]:
    """How many images and patients went where."""
    owners: dict[str, str] = run.splits.get("patients") or {}
    labels = {row["image_id"]: row.get("label", "") for row in run.predictions if "image_id" in row}
    labels |= {str(k): str(v) for k, v in (run.splits.get("labels") or {}).items()}
    early = {
        row.get("image_id", "") for row in run.quarantine if row.get("stage") in ("table", "open")
    }
    rows: list[dict[str, Any]] = []
    for k, fold in enumerate(_folds(run)):
        for part in _PARTS:
            ids = [str(i) for i in fold.get(part) or []]
            known = Counter(labels[i] for i in ids if i in labels)
            complete = bool(ids) and sum(known.values()) == len(ids)
            rows.append(
                {
                    "fold": k + 1,
                    "part": _NAMES[part],
                    "images": len(ids),
                    "patients": len({owners.get(i, i) for i in ids}),
                    "classes": [known[c] if complete else None for c in run.classes],
                }
            )
    return {
        "set_aside": len(early - set(owners)),
        "images": len(owners),
        "patients": len(set(owners.values())),
        "in_table": len(set(owners) | early),
        "rows": rows,
        "classes": run.classes,
        "hidden": any(n is None for row in rows for n in row["classes"]),
        "hash": str(run.splits.get("hash", "")),
        "failed_later": len({r.get("image_id") for r in run.quarantine} - early),
    }


def comparison(run: RunFiles) -> list[dict[str, Any]] | None:
    """This run, its frozen start and the runs in ``baseline.json``; None when it stands alone."""
    start = scores_of(run.metrics, "frozen")
    if not run.baseline and not start:
        return None
    name = str(run.config.get("method", "this run"))
    own = {"method": name, "metrics": scores_of(run.metrics)}
    entries = [{**run.cost, **own}]
    if start:
        entries.append({"method": f"{name}, frozen start", "metrics": start})
    rows = []
    for k, entry in enumerate([*entries, *run.baseline]):
        scores = scores_of(entry)
        auroc = scores.get("auroc", {})
        value, lo, hi = (number(auroc, key) for key in ("value", "lo", "hi"))
        rows.append(
            {
                "method": str(entry.get("method", "unknown")),
                "own": k == 0,
                "value": decimals(value),
                "interval": "–" if lo is None or hi is None else f"{lo:.3f} to {hi:.3f}",
                "bar": None if value is None or lo is None or hi is None else (value, lo, hi),
                "balanced": decimals(number(scores.get("balanced_accuracy", {}), "value")),
                "seconds": duration(number(entry, "seconds")),
                "memory": memory(number(entry, "peak_rss_mib")),
                "device": memory(number(entry, "peak_device_mib") or None),
                "decoded": percent(number(entry, "decoded_fraction")),
            }
        )
    return rows


def gain(run: RunFiles) -> list[str]:
    """What training end to end changed beyond the frozen start, a sentence for each score."""
    said = []
    for name, change in scores_of(run.metrics, "gain").items():
        value, lo, hi = (number(change, key) for key in ("value", "lo", "hi"))
        if value is None or lo is None or hi is None:
            continue
        clear = "no clear change"
        if lo > 0 or hi < 0:
            clear = "clearly worse" if (lo > 0) == (name in SMALL_IS_GOOD) else "clearly better"
        said.append(
            f"{meaning(name)[0]} {value:+.3f} (95 % interval {lo:+.3f} to {hi:+.3f}): {clear}"
        )
    return said


def localisation(run: RunFiles) -> dict[str, Any] | None:
    """How often the heaviest region lay on what decides, where the truth is known."""
    share, n = number(run.localisation, "hit_fraction"), number(run.localisation, "n")
    if share is None or not n:
        return None
    lo, hi = number(run.localisation, "lo"), number(run.localisation, "hi")
    return {
        "hits": round(share * n),
        "n": int(n),
        "share": percent(share),
        "interval": None if lo is None or hi is None else f"{percent(lo)} to {percent(hi)}",
    }


def answering(run: RunFiles) -> str:
    """Which models answer for new images, and whose scores these are."""
    if not run.answering:
        return f"No model answers for new images yet: {run.unanswered}."
    about = run.answering[0].get("provenance")
    if isinstance(about, dict) and about.get("refit"):
        seconds = number(about.get("train") or {}, "seconds")
        return (
            f"New images are answered by one model, refitted on all {about.get('n_train')} images"
            f" after the folds ({duration(seconds)}). The scores are those of the folds' models:"
            " each was tested on images that it had never seen, the refitted one has seen all."
        )
    if len(run.answering) > 1:
        return (
            f"New images are answered by the models of all {len(run.answering)} folds together:"
            " their probabilities are averaged. The scores are those of single models, each"
            " tested on images that it had never seen."
        )
    return "New images are answered by the one model that was tested here."


def commands(run: RunFiles) -> list[tuple[str, str]]:
    """What to type next, and what it does."""
    folder = shlex.quote(str(run.folder))
    return [
        ("predict new images", f"foveate predict {folder} NEW_IMAGES --out predictions"),
        ("score it on another hospital's table",
         f"foveate evaluate {folder} OTHER_TABLE.csv --out external"),
        ("repeat or continue this very run",
         f"foveate train --config {shlex.quote(str(run.folder / 'config.yaml'))} --out {folder}"),
        ("list the other methods", "foveate methods"),
    ]  # fmt: skip


def _folds(run: RunFiles) -> list[dict[str, Any]]:
    folds = run.splits.get("folds")
    return [fold for fold in folds if isinstance(fold, dict)] if isinstance(folds, list) else []
