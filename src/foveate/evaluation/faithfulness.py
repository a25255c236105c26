"""An audit of evidence: does the answer change where heavy boxes are deleted or inserted?

Boxes are covered with the background colour of the image before anything is read, in the glimpse
and at every resolution, so that the audit needs nothing of a method but its evidence. Insertion
begins with all boxes covered, and uncovers the heaviest first.

Source: Petsiuk, Das and Saenko, BMVC 2018, for the curves of deletion and insertion; here the boxes
of the evidence are compared with the same boxes in a random order, image by image.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from foveate.batch import LoadedImage
from foveate.images.covered import Cover, cover_image
from foveate.images.evidence import Evidence
from foveate.messages.display import OnProgress, within
from foveate.prediction.answer import Answer
from foveate.prediction.predict import OpenCase, predict_open
from foveate.runs.models import Ensemble
from foveate.tasks.base import AbstractTask

SHARES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Shares of the boxes that are deleted or inserted."""
_MIN_BOXES = 4
_EVEN = 1e-9


@dataclass(frozen=True)
class ImageCurves:
    """The support of one answer while boxes are deleted and inserted, at each of `SHARES`.

    Attributes:
        deletion, insertion: with the heaviest boxes first.
        random_deletion, random_insertion: with the same boxes in a random order.
    """

    deletion: tuple[float, ...]
    insertion: tuple[float, ...]
    random_deletion: tuple[float, ...]
    random_insertion: tuple[float, ...]

    @property
    def deletion_gain(self) -> float:
        """The area between the curves of deletion; above 0 where weights count."""
        return compute_area(self.random_deletion) - compute_area(self.deletion)

    @property
    def insertion_gain(self) -> float:
        """The area between the curves of insertion; above 0 where weights count."""
        return compute_area(self.insertion) - compute_area(self.random_insertion)


def compute_area(support: Sequence[float]) -> float:
    """Compute the area under a curve over `SHARES`, by trapezoids.

    Args:
        support: a value for each share.
    """
    steps = zip(itertools.pairwise(SHARES), itertools.pairwise(support), strict=True)
    return sum((end - begin) * (a + b) / 2 for (begin, end), (a, b) in steps)


def explain_unranked(evidence: Evidence) -> str:
    """Explain why evidence prefers no box, so that none can be deleted first; empty if it does."""
    if len(evidence) < _MIN_BOXES:
        return f"the evidence has fewer than {_MIN_BOXES} boxes"
    if float(np.ptp(evidence.weight)) <= _EVEN * float(evidence.weight.max()):
        return "all boxes have the same weight"
    return ""


def trace_curves(
    models: Ensemble,
    opened: OpenCase,
    answer: Answer,
    *,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> ImageCurves:
    """Predict an image again and again while its boxes are deleted, and while they are inserted.

    Args:
        models: models that answered.
        opened: the open image.
        answer: their answer, whose evidence prefers some boxes.
        seed: seed of the random order.
        on_progress: called with the number of predictions done and of all.
    """
    evidence, n = answer.evidence, len(answer.evidence)
    measure = _make_support(models.task, models.task.predict(answer.values, models.point), answer)
    heavy = np.argsort(-evidence.weight, kind="stable")
    mixed = np.random.default_rng((seed, n)).permutation(n)
    inner = [max(1, round(share * n)) for share in SHARES[1:-1]]
    hidden = [
        order[part]
        for order in (heavy, mixed)
        for parts in ([slice(k) for k in inner], [slice(k, None) for k in inner])
        for part in parts
    ]
    supports = []
    for done, boxes in enumerate([*hidden, heavy]):
        step = within(on_progress, done, len(hidden) + 1)
        item = _cover(opened, evidence, boxes)
        supports.append(measure(predict_open(models, replace(opened, item=item), step)))
    whole, none, m = measure(answer), supports[-1], len(inner)
    deletion, insertion, random_deletion, random_insertion = (
        supports[i * m : (i + 1) * m] for i in range(4)
    )
    return ImageCurves(
        (whole, *deletion, none),
        (none, *insertion, whole),
        (whole, *random_deletion, none),
        (none, *random_insertion, whole),
    )


def _cover(opened: OpenCase, evidence: Evidence, boxes: NDArray[np.int64]) -> LoadedImage:
    """Cover boxes of an image, also in its glimpse.

    The foreground stays as it was, so that a method looks at the same places.
    """
    cover = Cover(evidence.origin_um[boxes], evidence.size_um[boxes])
    item, spacing_um = opened.item, opened.loader.view.glimpse_spacing_um
    axes = item.image.ndim
    glimpse = cover.apply(item.glimpse, item.image.background, (spacing_um,) * axes, (0,) * axes)
    return replace(item, image=cover_image(item.image, cover), glimpse=glimpse)


def _make_support(task: AbstractTask, label: str, answer: Answer) -> Callable[[Answer], float]:
    """Return a function that measures how far another answer supports this one.

    It is the probability of the predicted label; without one, the distance of the numbers, less
    than 0.
    """
    column = f"prob_{label}"
    if column in task.columns:
        i = task.columns.index(column)
        return lambda other: other.values[i]
    numbers = np.asarray(answer.values)
    return lambda other: -float(np.abs(np.asarray(other.values) - numbers).mean())
