"""Predict a patient from the images that can be read, where some of several cannot."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

from foveate.batch import LoadedImage
from foveate.errors import FoveateError, find_unreadable
from foveate.loading.loader import CaseLoader
from foveate.prediction.answer import Answer, AnswerOrFailure, Failure
from foveate.table import Case

Loaded = LoadedImage | FoveateError
"""An open image, or why it cannot be opened."""

_MOST_TRIES = 16
"""How often a patient is asked about again without images that turned out to be unreadable."""


def predict_rest(
    case: Case,
    loader: CaseLoader,
    error: FoveateError,
    answer: Callable[[Case, CaseLoader, Loaded], Answer | FoveateError],
) -> AnswerOrFailure:
    """Predict a case again without its unreadable images; a failure if none of several is left.

    Args:
        case: the case, which could not be predicted.
        loader: loader with whose settings the other images are opened.
        error: the reason.
        answer: predicts a case that was loaded, or returns why it cannot be predicted.
    """
    reasons: dict[str, str] = {}
    for _ in range(_MOST_TRIES):
        unreadable = find_unreadable(error)
        rest = case.without(unreadable)
        if not unreadable or rest is None:
            break
        reasons |= unreadable
        with contextlib.closing(loader.copy()) as fresh:
            groups = fresh.ahead([[rest]])  # the images stay open while it lives
            (item,) = next(groups)
            outcome = answer(rest, fresh, item)
        if isinstance(outcome, Answer):
            return replace(outcome, left_out=reasons)
        case, error = rest, outcome
    return Failure(case, str(error))
