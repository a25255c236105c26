"""Coverage of the 95 % intervals of `foveate.metrics` in simulations.

    python benchmarks/coverage.py --out OUT [--draws 1000] [--tables coverage folds chance]
    python benchmarks/coverage.py --out OUT --markdown

Cohorts are drawn whose truth is known: a positive image scores ``mu`` higher than a negative one
in the mean, the scores of a class are normal with variance 1, and half of it is shared by the
images of a patient, of which there are 1 to 3. A model states twice the logit that is true, as
networks do; an image is called positive above ``mu / 2``. The truth of every score is an integral.

`coverage`: 24 settings of AUROC, patients and share of positives. `folds`: five folds whose models
are shifted against each other on the logit. `chance`: labels that have nothing to do with the
scores, alone and between two models; how often does an interval exclude chance? A finished setting
is kept in OUT/coverage.csv, so that the same command continues.
"""

from __future__ import annotations

import argparse
import itertools
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _rows import Rows, format_figure, group_rows, mean, table
from scipy.special import expit, logit, ndtri

from foveate.metrics import Score, compare_scores, score_all
from foveate.metrics.types import Floats, Ints

AUROCS, PATIENTS, SHARES = (0.6, 0.75, 0.9, 0.97), (20, 50, 200), (0.2, 0.5)
OFFSETS, FOLDS = (0.0, 0.5, 1.0, 2.0), 5
SHARED, TOO_SURE = 0.5, 2.0
COLUMNS = ("table", "auroc", "patients", "share", "offset", "score", "draws", "truth", "mean",
           "covered", "above", "below", "width")  # fmt: skip
KEY = ("table", "auroc", "patients", "share", "offset", "score")


@dataclass(frozen=True)
class Setting:
    """A kind of cohort; `offset` is the spread between the folds' models on the logit."""

    auroc: float
    patients: int
    share: float
    offset: float = 0.0
    folds: int = 1

    @property
    def mu(self) -> float:
        """Return the mean output of positives; that of negatives is 0."""
        return float(math.sqrt(2) * ndtri(self.auroc))

    def stated(self, score: Floats, shift: float | Floats = 0.0) -> Floats:
        """Logits of the model, whose fold shifts them."""
        mu = max(self.mu, 0.5)  # labels at random do not keep a model from saying something
        return np.asarray(TOO_SURE * (logit(self.share) + mu * score - mu**2 / 2 + shift))


@dataclass(frozen=True)
class Cohort:
    """Images with the outputs of a model."""

    score: Floats
    target: Ints
    patients: list[int]
    folds: list[int]


def draw(setting: Setting, rng: np.random.Generator) -> Cohort:
    """Draw a cohort with the right number of patients per class, divided into folds by class."""
    n = setting.patients
    positive = np.arange(n) < round(setting.share * n)
    owner = np.repeat(np.arange(n), rng.integers(1, 4, n))
    common, noise = rng.normal(size=n)[owner], rng.normal(size=len(owner))
    score = setting.mu * positive[owner] + math.sqrt(SHARED) * common
    score += math.sqrt(1 - SHARED) * noise
    fold = np.zeros(n, np.int64)
    for label in (False, True):
        members = rng.permutation(np.flatnonzero(positive == label))
        fold[members] = (np.arange(len(members)) + rng.integers(setting.folds)) % setting.folds
    target = positive[owner].astype(np.int64)
    return Cohort(score, target, owner.tolist(), fold[owner].tolist())


def truth(setting: Setting) -> dict[str, float]:
    """Return every score of an infinite cohort, by integration over the outputs."""
    mu, share = setting.mu, setting.share
    x = np.linspace(-9, 9 + mu, 200_001)
    step = float(x[1] - x[0])
    pos, neg = (np.exp(-((x - m) ** 2) / 2) / math.sqrt(2 * math.pi) * step for m in (mu, 0.0))
    pos, neg = share * pos, (1 - share) * neg
    stated = setting.stated(x)
    prob = expit(stated)
    above_pos, above_neg = (np.cumsum(p[::-1])[::-1] for p in (pos, neg))
    right = float(pos[x >= mu / 2].sum()), float(neg[x < mu / 2].sum())
    called = right[0] + (1 - share) - right[1]
    chance = share * called + (1 - share) * (1 - called)
    number = np.clip((prob * 10).astype(int), 0, 9)
    gap = np.bincount(number, prob * (pos + neg) - pos, 10)
    return {
        "auroc": setting.auroc,
        "auprc": float((pos / share * above_pos / (above_pos + above_neg)).sum()),
        "accuracy": sum(right),
        "sensitivity": right[0] / share,
        "specificity": right[1] / (1 - share),
        "balanced_accuracy": (right[0] / share + right[1] / (1 - share)) / 2,
        "kappa": (sum(right) - chance) / (1 - chance),
        "brier": float((pos * (1 - prob) ** 2 + neg * prob**2).sum()),
        "log_loss": float((pos * np.logaddexp(0, -stated) + neg * np.logaddexp(0, stated)).sum()),
        "ece": float(np.abs(gap).sum()),
    }


def scores_of(
    setting: Setting, cohort: Cohort, shift: Floats, *, by_fold: bool
) -> dict[str, Score]:
    """Compute the scores of a cohort; `shift` is added to the logits of each fold's model."""
    prob = expit(setting.stated(cohort.score, shift[cohort.folds]))
    return score_all(
        np.stack([1 - prob, prob], 1),
        cohort.target,
        [str(p) for p in cohort.patients],
        predicted=(cohort.score >= setting.mu / 2).astype(np.int64),
        folds=cohort.folds if by_fold else None,
    )


def settings(which: str) -> Iterator[Setting]:
    """Yield the kinds of cohort of a table."""
    if which == "coverage":
        for auroc, n, share in itertools.product(AUROCS, PATIENTS, SHARES):
            yield Setting(auroc, n, share)
    elif which == "folds":
        for auroc, n, offset in itertools.product((0.75,), (50, 200), OFFSETS):
            yield Setting(auroc, n, 0.5, offset, FOLDS)
    else:
        for n, share in itertools.product(PATIENTS, SHARES):
            yield Setting(0.5, n, share)
        for n, offset in itertools.product(PATIENTS, OFFSETS):
            yield Setting(0.5, n, 0.5, offset, FOLDS)


def simulate(which: str, setting: Setting, draws: int) -> dict[str, list[tuple[float, ...]]]:
    """Return for each score the draws as ``(value, lo, hi)``."""
    seed = zlib.crc32(repr((which, setting)).encode())
    rng = np.random.default_rng(seed)
    intervals: dict[str, list[tuple[float, ...]]] = {}
    for _ in range(draws):
        cohort = draw(setting, rng)
        shift = setting.offset * rng.normal(size=setting.folds)
        if which == "coverage":
            fold_scores = scores_of(setting, cohort, shift, by_fold=False)
        else:
            within = scores_of(setting, cohort, shift, by_fold=True)
            pooled = scores_of(setting, cohort, shift, by_fold=False)
            fold_scores = {"within folds": within["auroc"], "pooled": pooled["auroc"]}
        for name, score in fold_scores.items():
            intervals.setdefault(name, []).append((score.value, score.lo, score.hi))
        if which == "chance":
            gain = _gain(cohort, rng)
            intervals.setdefault("difference", []).append(gain)
    return intervals


def _gain(cohort: Cohort, rng: np.random.Generator) -> tuple[float, ...]:
    """Return the difference of two equally good models that share half of their outputs."""
    both = []
    for _ in range(2):
        noise = rng.normal(size=len(cohort.score)) + cohort.target
        prob = expit(cohort.score + noise)
        both.append(np.stack([1 - prob, prob], 1))
    names = [str(p) for p in cohort.patients]
    difference = compare_scores(both[0], both[1], cohort.target, names, folds=cohort.folds)["auroc"]
    return difference.value, difference.lo, difference.hi


def run(rows: Rows, which: str, draws: int) -> None:
    """Simulate the settings that are not in the file yet."""
    for setting in settings(which):
        facts = (which, setting.auroc, setting.patients, setting.share, setting.offset)
        known = truth(setting) if which == "coverage" else {"difference": 0.0}
        if which == "chance" and setting.folds == 1:
            facts = ("chance, one model", *facts[1:])
        if any(all(row[c] == str(f) for c, f in zip(KEY, facts, strict=False))
               for row in rows.all()):  # fmt: skip
            continue
        for name, drawn in simulate(which, setting, draws).items():
            value, lo, hi = np.array(drawn).T
            true = known.get(name, setting.auroc)
            rows.add(
                dict(zip(KEY, (*facts, name), strict=True))
                | {"draws": draws, "truth": f"{true:.6f}", "mean": f"{value.mean():.6f}"}
                | {"covered": f"{((lo <= true) & (true <= hi)).mean():.6f}"}
                | {"above": f"{(true < lo).mean():.6f}", "below": f"{(hi < true).mean():.6f}"}
                | {"width": f"{(hi - lo).mean():.6f}"}
            )
        print(*facts, flush=True)


def markdown(rows: list[dict[str, str]]) -> str:
    """Return the tables of docs/results.md."""
    parts = []
    coverage_rows = [row for row in rows if row["table"] == "coverage"]
    if coverage_rows:
        cells = []
        for name, members in group_rows(coverage_rows, lambda row: row["score"]).items():
            worst = min(members, key=lambda row: float(row["covered"]))
            where = f"AUROC {worst['auroc']}, {worst['patients']} patients, {worst['share']}"
            figures = mean(members, "covered"), worst["covered"], mean(members, "width")
            covered, lowest, width = map(format_figure, figures)
            cells.append([name, covered, lowest, where, width])
        parts.append(table(["score", "held on average", "at worst", "where", "mean width"], cells))
        cells = [
            [row["auroc"], row["patients"], row["share"], format_figure(row["covered"]),
             format_figure(row["above"]), format_figure(row["below"]), format_figure(row["width"])]
            for row in coverage_rows if row["score"] == "auroc"
        ]  # fmt: skip
        titles = ["AUROC", "patients", "share", "held", "truth below", "truth above", "width"]
        parts.append(table(titles, cells))
    fold_rows = [row for row in rows if row["table"] == "folds"]
    if fold_rows:
        cells = [
            [row["patients"], row["offset"], row["score"], format_figure(row["mean"]),
             f"{float(row['mean']) - float(row['truth']):+.4f}", format_figure(row["covered"])]
            for row in fold_rows
        ]  # fmt: skip
        titles = ["patients", "offset of the folds (sd)", "AUROC", "mean", "bias", "held"]
        parts.append(table(titles, cells))
    chance_rows = [row for row in rows if row["table"].startswith("chance")]
    if chance_rows:
        columns = KEY[:1] + KEY[2:5]
        grouped = group_rows(chance_rows, lambda row: tuple(row[c] for c in columns))
        cells = [
            ["1" if "one model" in key[0] else str(FOLDS), *key[1:],
             *(format_figure(1 - float(row["covered"])) for row in members)]
            for key, members in grouped.items()
        ]  # fmt: skip
        titles = ["folds", "patients", "share", "offset (sd)", "within folds", "pooled",
                  "two models alike"]  # fmt: skip
        parts.append(table(titles, cells))
    return "\n\n".join(parts)


def main() -> None:
    """Run what is missing, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of coverage.csv")
    parser.add_argument("--draws", type=int, default=1000, help="cohorts of each setting")
    parser.add_argument("--tables", nargs="+", default=["coverage", "folds", "chance"])
    parser.add_argument("--markdown", action="store_true", help="print the tables")
    args = parser.parse_args()
    rows = Rows(args.out / "coverage.csv", COLUMNS, KEY)
    if args.markdown:
        print(markdown(rows.all()))
        return
    for which in args.tables:
        run(rows, which, args.draws)
    print(markdown(rows.all()))


if __name__ == "__main__":
    main()
