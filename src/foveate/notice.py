"""What a user is told when a training learns nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping

from foveate.checkpoint import Model
from foveate.plugins import options as options_of

_AT_CHANCE = (
    "the training loss rests at {loss:.3f} after {epoch} epochs and the validation part is not "
    "ranked: that is the entropy of the labels, so nothing is learnt yet. {advice}"
)
_ADVICE: tuple[tuple[str | None, float, str], ...] = (
    ("instance", 1.0, "the method's instance head (--method.instance, 1 or more)"),
    ("jitter", 1.0, "a lattice that moves (--method.jitter true)"),
    ("patches", math.inf, "more patches an image (--method.patches)"),
    ("kept", math.inf, "more patches an image (--method.kept)"),
    (None, math.inf, "more steps (smaller --train.batch-size, more --epochs)"),
    (None, math.inf, "a lower or higher --train.lr"),
)
"""What helps: the option that a method must have for it, and from where on it is set already."""


def at_chance(model: Model, row: Mapping[str, float]) -> str:
    """That the training loss rests at chance, and what ends that with this method.

    Args:
        model: whose options say what is set already.
        row: of the epoch that has just ended.
    """
    given = model.card.method_options
    known = {key: option.default for key, option in options_of(type(model.method)).items()}
    advice = [
        text
        for key, enough, text in _ADVICE
        if key is None or (key in known and float(given.get(key, known[key])) < enough)
    ]
    return _AT_CHANCE.format(
        loss=row["train_loss"],
        epoch=int(row["epoch"]),
        advice="What ends such a plateau: " + ", ".join(advice),
    )
