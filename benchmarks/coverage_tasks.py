"""Coverage of the 95 % intervals of every task, and the level of its paired tests, in simulations.

    python benchmarks/coverage_tasks.py --out OUT [--draws 500] [--tasks binary survival …]
                                        [--settings 50x1 200x5 …]
    python benchmarks/coverage_tasks.py --out OUT --markdown

Cohorts of answers are drawn as rows of ``predictions.csv``, whose truth is known in closed form or
from a cohort of 300,000 patients that scikit-learn scores. A patient has 1 to 3 images with one
label; half of the variance of an answer's noise is shared by these. Two models answer, equally
good, with half of their noise in common. The rows are scored and compared by the tasks themselves,
so that every score which ``metrics.json`` can hold is looked at.

How often does an interval hold the truth, and how often does the test of two equally good models
reject (p < 0.05)? A finished setting is kept in OUT/coverage_tasks.csv.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _rows import Rows, format_figure, group_rows, mean, table
from scipy.special import expit, ndtr, softmax
from sklearn import metrics as sk

from foveate.metrics.types import Floats, Ints
from foveate.tasks import restore_task
from foveate.tasks.base import AbstractTask

COLUMNS = ("task", "patients", "folds", "score", "draws", "truth", "mean", "covered", "above",
           "below", "width", "rejected")  # fmt: skip
KEY = ("task", "patients", "folds", "score")
SETTINGS = {"50x1": (50, 1), "200x1": (200, 1), "200x5": (200, 5)}
"""Numbers of patients, and of folds whose models are shifted against each other."""
MANY = 300_000
THRESHOLDS = (0.1, 0.3, 0.5, 0.7)
SHIFT = 0.3

Row = dict[str, str]


@dataclass(frozen=True)
class Truth:
    """Labels of images, and what their answers rest on, ``(n, …)``."""

    label: list[str]
    signal: Floats


@dataclass(frozen=True)
class Study:
    """A kind of cohort.

    Attributes:
        task: the task.
        draw: draws labels and signals of patients.
        answer: turns noisy signals into the numbers of answers, ``(n, columns)``.
        truth: computes the true scores, by name, from the shifts of many answers ``(n, 1)``, or
            from 0 for models without.
        noise: number of noisy signals of an answer.
        shifted: which of the signals are shifted in a fold, 0 or 1 each.
    """

    task: AbstractTask
    draw: Callable[[np.random.Generator, int], Truth]
    answer: Callable[[Floats], Floats]
    truth: Callable[[Floats | float], Mapping[str, float]]
    noise: int
    shifted: Floats | float = 1.0


def _noise(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return np.asarray(rng.normal(size=shape))


def make_rows(
    study: Study, rng: np.random.Generator, n: int, folds: int
) -> tuple[list[Row], list[Row]]:
    """Draw a cohort, and the answers of two models that are equally good."""
    drawn = study.draw(rng, n)
    owner = np.repeat(np.arange(n), rng.integers(1, 4, n))
    signal, both = drawn.signal[owner], _noise(rng, (n, study.noise))[owner]
    fold = (rng.permutation(n) % folds)[owner]
    sides = []
    for _ in range(2):
        shift = SHIFT * rng.normal(size=folds)[fold] if folds > 1 else np.zeros(len(owner))
        noise = math.sqrt(0.5) * (both + _noise(rng, (len(owner), study.noise)))
        values = study.answer(signal + noise + shift[:, None] * study.shifted)
        sides.append(write_rows(study.task, values, [drawn.label[p] for p in owner], owner, fold))
    return sides[0], sides[1]


def write_rows(
    task: AbstractTask, values: Floats, labels: list[str], owner: Ints, fold: Ints
) -> list[Row]:
    """Write answers as rows of ``predictions.csv``, decided at a threshold of one half."""
    point = {"threshold": 0.5} if len(getattr(task, "classes", ())) == 2 else {}
    rows = []
    for i, (number, label) in enumerate(zip(values.tolist(), labels, strict=True)):
        row = {"image_id": f"i{i}", "patient_id": str(owner[i]), "fold": str(fold[i])}
        row |= {"label": label, "predicted": task.predict(number, point)}
        rows.append(row | {c: repr(v) for c, v in zip(task.columns, number, strict=True)})
    return rows


def list_scores(task: AbstractTask, rows: list[Row]) -> dict[str, tuple[float, float, float]]:
    """Score rows as ``metrics.json`` does; return value and limits by name."""
    scores = {name: (s.value, s.lo, s.hi) for name, s in task.score(rows).items()}
    details = task.details(rows)
    for curve in details.get("benefit", [])[-1:]:
        for point in curve["points"]:
            if any(abs(point["threshold"] - t) < 1e-9 for t in THRESHOLDS):
                name = f"net benefit at {point['threshold']:.1f}"
                scores[name] = (point["value"], point["lo"], point["hi"])
    for entry in details.get("horizons", []):
        score = entry.get("auroc")
        if score:
            name = f"auroc at {entry['horizon']:g}"
            scores[name] = (score["value"], score["lo"], score["hi"])
    return scores


# -- classes --------------------------------------------------------------------------------------


def _score_many(prob: Floats, target: Ints, predicted: Ints) -> dict[str, float]:
    """Score a very large cohort with scikit-learn."""
    k = prob.shape[1]
    onehot = np.eye(k)[target]
    two = k == 2
    confidence = prob[:, 1] if two else prob.max(1)
    right = target if two else (prob.argmax(1) == target)
    bins = np.clip((confidence * 10).astype(int), 0, 9)
    scores = {
        "auroc": sk.roc_auc_score(target, prob[:, 1] if two else prob, multi_class="ovr"),
        "auprc": sk.average_precision_score(target if two else onehot, prob[:, 1] if two else prob),
        "accuracy": sk.accuracy_score(target, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(target, predicted),
        "brier": np.square(prob - onehot).sum(1).mean() / (2 if two else 1),
        "log_loss": sk.log_loss(target, prob),
        "ece": np.abs(np.bincount(bins, confidence - right, 10)).sum() / len(target),
        "mae": np.abs(target - predicted).mean(),
        "within_one": (np.abs(target - predicted) <= 1).mean(),
    }
    kinds = {"kappa": None, "kappa_linear": "linear", "kappa_quadratic": "quadratic"}
    for name, weights in kinds.items():
        scores[name] = sk.cohen_kappa_score(target, predicted, weights=weights)
    if two:
        scores["sensitivity"] = (predicted == 1)[target == 1].mean()
        scores["specificity"] = (predicted == 0)[target == 0].mean()
    for t in THRESHOLDS:
        called, last = prob[:, -1] >= t, target == k - 1
        gain = (called & last).mean() - (called & ~last).mean() * t / (1 - t)
        scores[f"net benefit at {t:.1f}"] = gain
    return {name: float(value) for name, value in scores.items()}


def _study_classes(k: int) -> Study:
    """Classes of unequal shares, and a model that is too sure of them."""
    shares = np.array([0.7, 0.3]) if k == 2 else np.array([0.5, 0.3, 0.2])
    names, last = [f"c{c}" for c in range(k)], np.eye(k)[-1]
    task = restore_task("binary" if k == 2 else "multiclass", {"classes": names}, {})

    def draw(rng: np.random.Generator, n: int) -> Truth:
        target = rng.choice(k, n, p=shares)
        return Truth([names[t] for t in target], 1.2 * np.eye(k)[target])

    def answer(x: Floats) -> Floats:
        return np.asarray(softmax(1.5 * (np.log(shares) + 1.2 * x), 1))

    def truth(shift: Floats | float) -> dict[str, float]:
        rng = np.random.default_rng(1)
        drawn = draw(rng, MANY)
        target = np.array([int(label[1:]) for label in drawn.label])
        prob = answer(drawn.signal + _noise(rng, (MANY, k)) + shift * last)
        predicted = (prob[:, 1] >= 0.5).astype(int) if k == 2 else prob.argmax(1)
        return _score_many(prob, target, predicted)

    return Study(task, draw, answer, truth, k, last)


def _study_grades() -> Study:
    """Four grades that are ranges of a normal number, which the answer knows with noise."""
    names = ["G1", "G2", "G3", "G4"]
    cuts = np.array([-0.7, 0.2, 1.0])
    task = restore_task("ordinal", {"classes": names}, {})

    def grades(z: Floats) -> Ints:
        return np.searchsorted(cuts, z)

    def draw(rng: np.random.Generator, n: int) -> Truth:
        z = rng.normal(size=n)
        return Truth([names[g] for g in grades(z)], z[:, None])

    def answer(x: Floats) -> Floats:
        below = ndtr((cuts - 0.5 * x) / math.sqrt(0.5))  # the grade given a number with noise
        prob = np.diff(np.column_stack([np.zeros(len(x)), below, np.ones(len(x))]))
        return np.column_stack([prob, prob @ np.arange(4)])

    def truth(shift: Floats | float) -> dict[str, float]:
        rng = np.random.default_rng(2)
        z = rng.normal(size=MANY)
        values = answer(z[:, None] + _noise(rng, (MANY, 1)) + shift)
        prob, target = values[:, :4], grades(z)
        predicted = (np.cumsum(prob, 1) < 0.5).sum(1)
        half = MANY // 2
        first, second, x = target[:half], target[half:], values[:, 4]
        pairs = first != second
        ordered = ((x[:half] > x[half:]) == (first > second))[pairs]
        return _score_many(prob, target, predicted) | {"concordance": float(ordered.mean())}

    return Study(task, draw, answer, truth, 1)


def _study_labels() -> Study:
    """Four labels that occur together, of which a fifth is not known."""
    names, shares = [f"l{c}" for c in range(4)], np.array([0.1, 0.2, 0.35, 0.5])
    task = restore_task("multilabel", {"classes": names, "none": "none"}, {})
    cuts = np.array([1.2816, 0.8416, 0.3853, 0.0])

    def targets(rng: np.random.Generator, n: int) -> Floats:
        latent = math.sqrt(0.4) * rng.normal(size=(n, 1)) + math.sqrt(0.6) * _noise(rng, (n, 4))
        return np.asarray((latent > cuts).astype(np.float64))

    def draw(rng: np.random.Generator, n: int) -> Truth:
        present = targets(rng, n)
        known = rng.uniform(size=(n, 4)) > 0.2
        known[~known.any(1), 0] = True
        cells = np.where(known, present.astype(int).astype(str), "?")
        labels = ["|".join(map("=".join, zip(names, row, strict=True))) for row in cells]
        return Truth(labels, 1.2 * present)

    def answer(x: Floats) -> Floats:
        return np.asarray(expit(np.log(shares / (1 - shares)) + 1.2 * x - 0.72))

    def truth(shift: Floats | float) -> dict[str, float]:
        rng = np.random.default_rng(3)
        present = targets(rng, MANY)
        prob = answer(1.2 * present + _noise(rng, (MANY, 4)) + shift)
        last = _score_many(np.stack([1 - prob[:, 3], prob[:, 3]], 1), present[:, 3].astype(int),
                           (prob[:, 3] >= 0.5).astype(int))  # fmt: skip
        surprise = -np.log(np.where(present > 0, prob, 1 - prob))
        return last | {
            "auroc": float(sk.roc_auc_score(present, prob)),
            "auprc": float(sk.average_precision_score(present, prob)),
            "brier": float(np.square(prob - present).mean()),
            "log_loss": float(surprise.mean()),
        }

    return Study(task, draw, answer, truth, 4)


# -- numbers and times ----------------------------------------------------------------------------


def _study_numbers() -> Study:
    """Normal numbers, and answers that are drawn towards their mean."""
    task = restore_task("regression", {"mean": 0.0, "spread": 1.0}, {})

    def draw(rng: np.random.Generator, n: int) -> Truth:
        y = rng.normal(size=n)
        return Truth([f"{v:.9f}" for v in y], y[:, None])

    def truth(shift: Floats | float) -> dict[str, float]:
        # The answer is (y + e + s) / 2: off by (e + s - y) / 2, and of correlation 1 / sqrt(2).
        variance = (2 + np.var(shift)) / 4
        return {
            "spearman": 6 / math.pi * math.asin(math.sqrt(0.5) / 2),
            "mae": math.sqrt(variance) * math.sqrt(2 / math.pi),
            "mae_constant": math.sqrt(2 / math.pi),
        }

    return Study(task, draw, lambda x: x / 2, truth, 1)


def _study_times() -> Study:
    """Times of a hazard that rises with a number, two fifths of them censored."""
    horizons = (0.3, 0.8, 1.5)
    task = restore_task("survival", {"edges": [*horizons, 9.0], "horizons": list(horizons)}, {})

    def times(rng: np.random.Generator, z: Floats) -> tuple[Floats, Floats]:
        return rng.exponential(np.exp(-z)), rng.exponential(1.6, len(z))

    def draw(rng: np.random.Generator, n: int) -> Truth:
        z = rng.normal(size=n)
        until, censored = times(rng, z)
        words = np.where(until <= censored, "event at", "no event until")
        seen = np.minimum(until, censored)
        labels = [f"{word} {t:.9f}" for word, t in zip(words, seen, strict=True)]
        return Truth(labels, z[:, None])

    def answer(x: Floats) -> Floats:
        survival = np.exp(-np.exp(0.5 * x) * np.array(horizons))
        return np.column_stack([1 - survival.mean(1), survival])

    def truth(shift: Floats | float) -> dict[str, float]:
        rng = np.random.default_rng(4)
        z = rng.normal(size=MANY)
        values = answer(z[:, None] + _noise(rng, (MANY, 1)) + shift)
        until, censored = times(rng, z)
        return _count_pairs(values, until, censored, horizons)

    return Study(task, draw, answer, truth, 1)


def _count_pairs(
    values: Floats, until: Floats, censored: Floats, horizons: tuple[float, ...]
) -> dict[str, float]:
    """Compute the true scores of survival from many pairs whose times are all known."""
    half = len(until) // 2
    a, b = slice(half), slice(half, None)
    higher = values[a, 0] > values[b, 0]
    first = until[a] < until[b]
    seen = np.minimum(until, censored)
    shown = np.where(seen[a] < seen[b], (until <= censored)[a], (until <= censored)[b])
    early = np.minimum(until[a], until[b]) <= horizons[-1]
    scores = {
        "c_index": (higher == (seen[a] < seen[b]))[shown].mean(),
        "c_index_uno": (higher == first)[early].mean(),
    }
    areas, errors, constants = [], [], []
    for k, horizon in enumerate(horizons, 1):
        free = until > horizon
        pairs = ~free[a] & free[b]
        areas.append((values[a, k] < values[b, k])[pairs].mean())
        scores[f"auroc at {horizon:g}"] = areas[-1]
        errors.append(np.square(free - values[:, k]).mean())
        constants.append(free.mean() * (1 - free.mean()))
    means = {"auroc_horizons": areas, "brier": errors, "brier_constant": constants}
    scores |= {name: np.mean(each) for name, each in means.items()}
    return {name: float(value) for name, value in scores.items()}


STUDIES: dict[str, Callable[[], Study]] = {
    "binary": lambda: _study_classes(2),
    "multiclass": lambda: _study_classes(3),
    "ordinal": _study_grades,
    "multilabel": _study_labels,
    "regression": _study_numbers,
    "survival": _study_times,
}


@functools.cache
def compute_truth(name: str, folds: int) -> dict[str, float]:
    """Compute the true scores of a study.

    Models of several folds are shifted against each other. Scores of ranks compare images of one
    fold only, so that shifts do not change them; all other scores are those of shifted answers.
    """
    truth = STUDIES[name]().truth
    plain = dict(truth(0.0))
    if folds == 1:
        return plain
    shifted = truth(SHIFT * np.random.default_rng(5).normal(size=(MANY, 1)))
    return {score: plain[score] if _ranks(score) else value for score, value in shifted.items()}


def _ranks(score: str) -> bool:
    """Return whether a score depends on the order of the answers alone."""
    return score.startswith(("auroc", "auprc", "c_index", "concordance", "spearman"))


# -- simulation -----------------------------------------------------------------------------------


def simulate(name: str, study: Study, n: int, folds: int, draws: int) -> list[dict[str, Any]]:
    """Return a row for each score: how often it holds, and how often its test rejects."""
    rng = np.random.default_rng(zlib.crc32(repr((name, n, folds)).encode()))
    truth, intervals, p_values = (
        compute_truth(name, folds),
        dict[str, list[Any]](),
        dict[str, list[float]](),
    )
    for _ in range(draws):
        ours, theirs = make_rows(study, rng, n, folds)
        for score, limits in list_scores(study.task, ours).items():
            intervals.setdefault(score, []).append(limits)
        for score, difference in study.task.compare(ours, theirs).items():
            p_values.setdefault(score, []).append(difference.p_value)
    rows = []
    for score, drawn in intervals.items():
        value, lo, hi = np.array(drawn).T
        true, tests = truth[score], p_values.get(score)
        figures = {
            "truth": true,
            "mean": value.mean(),
            "covered": ((lo <= true) & (true <= hi)).mean(),
            "above": (true < lo).mean(),
            "below": (hi < true).mean(),
            "width": (hi - lo).mean(),
        }
        row: dict[str, Any] = dict(zip(KEY, (name, n, folds, score), strict=True))
        row |= {"draws": len(drawn)} | {key: f"{v:.6f}" for key, v in figures.items()}
        rejected = "" if tests is None else f"{np.mean(np.array(tests) < 0.05):.6f}"
        rows.append(row | {"rejected": rejected})
    return rows


def markdown(rows: list[dict[str, str]]) -> str:
    """Return the table of docs/results.md, with a column for each setting that was run."""
    run = {(row["patients"], row["folds"]) for row in rows}
    settings = [(n, k) for n, k in SETTINGS.values() if (str(n), str(k)) in run]
    cells = []
    for (task, score), members in group_rows(rows, lambda r: (r["task"], r["score"])).items():
        row_of = {(row["patients"], row["folds"]): row for row in members}
        ordered = [row_of.get((str(n), str(k))) for n, k in settings]
        covered = ["–" if row is None else format_figure(row["covered"]) for row in ordered]
        known = [row for row in ordered if row is not None and row["rejected"]]
        rejected = [format_figure(row["rejected"]) for row in known]
        bias = mean([{"b": str(float(r["mean"]) - float(r["truth"]))} for r in members], "b")
        cells.append(
            [task, score, format_figure(members[0]["truth"]), format_figure(bias, "{:+.3f}"),
             *covered, " / ".join(rejected) or "–"]
        )  # fmt: skip
    titles = [f"{n} patients" + (f", {folds} folds" if folds > 1 else "") for n, folds in settings]
    return str(table(["task", "score", "truth", "bias", *titles, "test rejects"], cells))


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of coverage_tasks.csv")
    parser.add_argument("--draws", type=int, default=500, help="cohorts of each setting")
    parser.add_argument("--tasks", nargs="+", default=list(STUDIES), choices=list(STUDIES))
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--markdown", action="store_true", help="print the table")
    args = parser.parse_args()
    rows = Rows(args.out / "coverage_tasks.csv", COLUMNS, KEY)
    studies = {} if args.markdown else {name: STUDIES[name]() for name in args.tasks}
    settings = [SETTINGS[name] for name in args.settings]
    for (n, folds), (name, study) in itertools.product(settings, studies.items()):
        done = {(r["task"], r["patients"], r["folds"]) for r in rows.all()}
        if (name, str(n), str(folds)) not in done:
            for row in simulate(name, study, n, folds, args.draws):
                rows.add(row)
            print(name, n, folds, flush=True)
    print(markdown(rows.all()))


if __name__ == "__main__":
    main()
