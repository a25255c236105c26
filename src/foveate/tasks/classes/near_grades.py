"""Labels that resemble grades, but whose order is doubtful: what the user can say about them."""

from __future__ import annotations

from collections.abc import Collection

from foveate.tasks.classes.grades import (
    are_grades,
    list_not_assessed,
    rank_grades,
    simplify_grade,
    sort_grades,
)
from foveate.tasks.classes.negatives import is_negative
from foveate.wording import several

_DOUBTFUL_SCALES = (
    ("very low", "low", "normal", "high", "very high"),
    ("decreased", "normal", "increased"),
    ("negative", "equivocal", "positive"),
    ("negative", "borderline", "positive"),
    ("absent", "equivocal", "present"),
    ("small", "medium", "large"),
    ("early", "intermediate", "late"),
    ("focal", "multifocal", "diffuse"),
)
"""Words with a likely order, which other meanings may have as well: normal tissue beside low and
high grades is below both."""
_DOUBTFUL_KINDS = ("ct", "cn", "m", "cin", "pin", "vin", "ain", "tier", "dukes", "risk")
"""Words before numbers that may be grades or names, such as ``CT1``: a stage, or a scanner."""
_MIN_RANKED, _MAX_LABELS = 2, 20


def suggest_grades(labels: Collection[str], column: str) -> str | None:
    """Suggest how labels that are trained without an order could be grades; None for no grades.

    Args:
        labels: the labels.
        column: name of their column.
    """
    distinct = sorted(set(labels))
    if not 2 <= len(distinct) <= _MAX_LABELS or are_grades(distinct, column):
        return None
    return (
        _suggest_without_unassessed(distinct, column)
        or _suggest_order(distinct, column)
        or _suggest_place(distinct, column)
    )


def _suggest_without_unassessed(labels: list[str], column: str) -> str | None:
    """Explain that a label such as ``TX`` is no grade, beside labels that are."""
    unknown = list_not_assessed(labels, column)
    others = [label for label in labels if label not in unknown]
    words = {simplify_grade(label) for label in others}
    is_bare = any(len(simplify_grade(label)) == 1 for label in unknown)
    if not unknown or len(words) < 1 + is_bare:
        return None
    if rank_grades(words) is None and not are_grades(others, column):
        return None
    shown = " and ".join(f"'{label}'" for label in unknown)
    maps = " ".join(f"--map '{label}='" for label in unknown)
    return (
        f"{shown} in column '{column}' says that a grade could not be judged, and is trained as a "
        f"class like any other. To leave such images out, say {maps}; grades beside it then have "
        "their order (--task ordinal)"
    )


def _suggest_order(labels: list[str], column: str) -> str | None:
    """Suggest the likely order of labels that may be grades or names."""
    order = _sort_by_scale(labels) or _sort_by_kind(labels)
    if order is None or len(order) < 1 + _MIN_RANKED:
        return None
    return (
        f"column '{column}' holds labels that may have an order, and they are trained as classes "
        f"without one. If this is their order, say --task ordinal --task.order {','.join(order)}"
    )


def _suggest_place(labels: list[str], column: str) -> str | None:
    """Explain that one label has no known rank among grades, such as ``normal`` beside G1 to G3."""
    for other in labels:
        rest = [label for label in labels if label != other]
        words = {simplify_grade(label) for label in rest}
        n_needed = _MIN_RANKED if is_negative(other) else 1 + _MIN_RANKED
        if len(words) < n_needed or rank_grades(words) is None:
            continue
        return (
            f"column '{column}' holds grades, {several(rest, 5)}, beside '{other}', whose rank "
            "among them is not known, so all are trained as classes without an order. To train "
            "grades, state the order with --task ordinal --task.order LOWEST,…,HIGHEST"
        )
    return None


def _sort_by_scale(labels: list[str]) -> list[str] | None:
    """Return the labels in the order of the first doubtful scale that has them all, or None."""
    words = {simplify_grade(label): label for label in labels}
    for scale in _DOUBTFUL_SCALES:
        if len(words) == len(labels) and words.keys() <= set(scale):
            return [words[word] for word in scale if word in words]
    return None


def _sort_by_kind(labels: list[str]) -> list[str] | None:
    """Return labels such as ``cT1`` in the order of what follows their common word, or None."""
    words = {label: simplify_grade(label) for label in labels}
    for kind in _DOUBTFUL_KINDS:
        if all(word.startswith(kind) for word in words.values()):
            # With another word before the number, known stages decide about the order.
            stages = {f"t{word.removeprefix(kind).strip(' _-')}": k for k, word in words.items()}
            if len(stages) == len(labels) and rank_grades(stages) is not None:
                return [stages[stage] for stage in sort_grades(list(stages)) or ()]
    return None
