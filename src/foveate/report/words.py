"""Numbers as people read them, and what each score means."""

from __future__ import annotations

from typing import Any

MEANING = {
    "auroc": ("AUROC", "chance that a positive image ranks above a negative one; 0.5 is chance"),
    "auprc": ("AUPRC", "area under precision and recall; chance is the share of positives"),
    "accuracy": ("accuracy", "share of images whose class was predicted"),
    "balanced_accuracy": ("balanced accuracy", "mean of the classes' sensitivities"),
    "kappa": ("Cohen's kappa", "agreement beyond chance"),
    "kappa_linear": ("kappa, linear", "agreement beyond chance, near misses count in part"),
    "kappa_quadratic": ("kappa, quadratic", "the same, weighted by the squared distance"),
    "brier": ("Brier score", "squared error of the probabilities; less is better"),
    "log_loss": ("log loss", "surprise at the true class; less is better"),
    "ece": ("calibration error", "gap between stated and observed shares; less is better"),
}

SMALL_IS_GOOD = frozenset({"brier", "log_loss", "ece"})


def meaning(name: str) -> tuple[str, str]:
    """Title and one line of explanation of a score."""
    return MEANING.get(name, (name.replace("_", " "), ""))


def decimals(value: Any, places: int = 3) -> str:
    """``0.912``, or a dash."""
    return f"{value:.{places}f}" if isinstance(value, int | float) else "–"


def memory(mib: float | None) -> str:
    """``812 MiB`` or ``3.4 GiB``."""
    if mib is None:
        return "–"
    return f"{mib:.0f} MiB" if mib < 1000 else f"{mib / 1024:.1f} GiB"


def pixels(count: float | None) -> str:
    """``3.14 gigapixels``, ``0.81 gigapixels`` or ``12.0 megapixels``."""
    if count is None:
        return "–"
    if count >= 1e8:
        return f"{count / 1e9:,.2f} gigapixels".replace(",", " ")
    return f"{count / 1e6:.1f} megapixels"


def percent(share: float | None) -> str:
    """Two digits that mean something: ``43 %``, ``4.3 %``, ``0.43 %``."""
    if share is None:
        return "–"
    hundred = 100 * share
    return f"{hundred:.0f} %" if hundred >= 10 else f"{hundred:.2g} %"


def counted(n: int, singular: str, plural: str | None = None) -> str:
    """``1 image`` or ``3 images``."""
    return f"{n} {singular if n == 1 else plural or singular + 's'}"


def fold_title(name: str) -> str:
    """Folds are counted from 1 where people read them."""
    return f"fold {int(name) + 1}" if name.isdecimal() else name
