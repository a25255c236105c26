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


def predict_rest(
    case: Case,
    loader: CaseLoader,
    error: FoveateError,
    answer: Callable[[Case, CaseLoader, Loaded], Answer | FoveateError],
) -> AnswerOrFailure:
    """Predict a case again without its unreadable images; a failure if none of several is left.

    Damage of pixels shows only while they are read, mostly one image at a time. So the case is
    asked about until it answers, each time with fewer images.

    Args:
        case: the case, which could not be predicted.
        loader: loader with whose settings the other images are opened.
        error: the reason.
        answer: predicts a case that was loaded, or returns why it cannot be predicted.
    """
    reasons: dict[str, str] = {}
    while True:
        unreadable = find_unreadable(error)
        rest = case.without(unreadable)
        if rest is None or rest is case:
            return Failure(case, str(error))
        reasons |= unreadable
        with contextlib.closing(loader.copy()) as fresh:
            groups = fresh.ahead([[rest]])  # the images stay open while it lives
            (item,) = next(groups)
            outcome = answer(rest, fresh, item)
        if isinstance(outcome, Answer):
            return replace(outcome, left_out=reasons)
        case, error = rest, outcome
