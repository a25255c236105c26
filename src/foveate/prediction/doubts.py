"""The columns ``uncertainty`` and ``abstain``: answers that a person should look at.

An answer is doubtful for one of three reasons, each of which the column ``abstain`` names:

- ``close call``: its uncertainty is `_MAX_UNCERTAINTY` or more. The uncertainty is 1 less the
  margin of the calibrated probabilities (`foveate.tasks.base.AbstractTask.margin`).
- ``models disagree``: less than `_MIN_AGREEMENT` of the models would give the same label by
  themselves; for numbers, their standard deviation over the models is large for the task.
- ``unlike training``: the image differs from those of training.
"""

from __future__ import annotations

from foveate.prediction.answer import Answer
from foveate.runs.models import Ensemble

_MAX_UNCERTAINTY = 0.8
"""With two classes and a threshold of 0.5: probabilities from 0.4 to 0.6."""
_MIN_AGREEMENT = 0.75


def measure_uncertainty(answer: Answer, models: Ensemble) -> float | None:
    """Compute the uncertainty of an answer: 1 at the border to another answer, 0 where it is sure.

    Args:
        answer: the answer about an image.
        models: the models that answered.

    Returns:
        The uncertainty; None for answers that are numbers.
    """
    margin = models.task.margin(answer.values, models.point)
    return None if margin is None else 1 - margin


def explain_abstention(answer: Answer, models: Ensemble) -> str:
    """Explain why a person should look at an image; return an empty text where the answer stands.

    Args:
        answer: the answer about an image.
        models: the models that answered.
    """
    reasons, uncertainty = [], measure_uncertainty(answer, models)
    if uncertainty is not None and uncertainty >= _MAX_UNCERTAINTY:
        reasons.append("close call")
    if uncertainty is None:
        reasons += _compare_numbers(answer, models)
    else:
        reasons += _compare_labels(answer, models)
    if answer.unlike:
        reasons.append("unlike training")
    return "; ".join(reasons)


def _compare_labels(answer: Answer, models: Ensemble) -> list[str]:
    """Return that models disagree if too many would predict another label by themselves."""
    task, label, n = models.task, models.task.predict(answer.values, models.point), len(models)
    alone = [
        task.predict(single.values, member.card.provenance)
        for single, member in zip(answer.answers, models.members, strict=True)
    ]
    n_other = sum(other != label for other in alone)
    if n_other <= (1 - _MIN_AGREEMENT) * n:
        return []
    return [f"models disagree: {n_other} of {n} answer otherwise"]


def _compare_numbers(answer: Answer, models: Ensemble) -> list[str]:
    """Return that models disagree if their numbers deviate much from each other."""
    limit, deviations = models.task.large_deviation, answer.deviation_over_models
    if limit is None or deviations is None or deviations[0] < limit:
        return []
    text = models.task.write(deviations[0], short=True)
    return [f"models disagree: standard deviation {text}"]
