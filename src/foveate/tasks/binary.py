"""The task of two classes, with one logit."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional

from foveate.errors import OptionError
from foveate.files.numerals import parse_numbers
from foveate.nn.heads import Head, Pooling
from foveate.parts.options import Within
from foveate.tasks.classes import ClassTask
from foveate.tasks.classes.negatives import is_negative
from foveate.wording import did_you_mean

_DENIAL = re.compile(r"^(?:without|non|not|no)[ _-]*")


class BinaryTask(ClassTask):
    """Two classes; the positive one is the second.

    Args:
        classes: the two labels.
        positive: the positive label; by default the one whose counterpart is a common word for a
            negative (normal, benign, 0, no …), else the larger number, else the later in the
            alphabet.
        smoothing: label smoothing in the loss. Bags of sampled patches sometimes miss what decides;
            a little smoothing keeps such a bag from throwing a confident model off.
        patches: how single patches speak for the positive class: ``max`` where one suffices,
            ``sum`` where many must agree, ``none`` where no patch can.
    """

    preference = 1
    link = "softmax"

    def __init__(
        self,
        *,
        classes: Sequence[str],
        positive: str | None = None,
        smoothing: Annotated[float, Within(0, 1)] = 0.05,
        patches: Pooling = "max",
    ) -> None:
        super().__init__(classes=_negative_first(tuple(classes), positive))
        self._is_by_alphabet = positive is None and _find_order(classes) is None
        self.heads = (Head(self.classes[1], 1, False, patches),)
        self.smoothing = smoothing

    @property
    def resolved(self) -> Mapping[str, str]:
        """Option ``positive`` with the name of the positive class."""
        return {"positive": self.classes[1]}

    @property
    def assumptions(self) -> tuple[str, ...]:
        """A sentence about the positive class where only the alphabet has chosen it."""
        if not self._is_by_alphabet:
            return ()
        other, positive = self.classes
        return (
            f"The positive class is '{positive}', only because it comes after '{other}' in the "
            f"alphabet. To make '{other}' the positive class, train with --task.positive "
            f"'{other}'.",
        )

    @classmethod
    def fits(cls, labels: Sequence[str], column: str) -> bool:
        """Return whether there are exactly two labels."""
        del column
        return len(labels) == 2

    def loss(self, logits: Float[Tensor, "b 1"], target: Shaped[Tensor, " b"]) -> Float[Tensor, ""]:
        """Compute the mean cross-entropy of logits ``(b, 1)`` with smoothed labels ``(b,)``.

        Args:
            logits: logits of the images, ``(b, 1)``.
            target: 1 for images of the positive class, else 0, ``(b,)``.
        """
        return self.each_loss(logits, target).mean()

    def each_loss(
        self, logits: Float[Tensor, "m 1"], target: Shaped[Tensor, " m"]
    ) -> Float[Tensor, " m"]:
        """Compute the cross-entropy of every row, ``(m,)``, with smoothed labels ``(m,)``.

        Args:
            logits: logits of the rows, ``(m, 1)``.
            target: 1 for rows of the positive class, else 0, ``(m,)``.
        """
        soft = target.float() * (1 - self.smoothing) + self.smoothing / 2
        return functional.binary_cross_entropy_with_logits(
            logits[:, 0].float(), soft, reduction="none"
        )

    def truth(self, target: Shaped[Tensor, " b"]) -> Float[Tensor, "b 1"]:
        """Return 1 for images of the positive class, else 0, ``(b, 1)``."""
        return target.float()[:, None]

    def probabilities(self, logits: Float[Tensor, "b 1"]) -> Float[Tensor, "b 2"]:
        """Compute the probabilities of the negative and the positive class, ``(b, 2)``."""
        positive = torch.sigmoid(logits[:, 0].double())
        return torch.stack([1 - positive, positive], -1)


def _negative_first(classes: tuple[str, ...], positive: str | None) -> tuple[str, ...]:
    if positive is not None:
        if positive not in classes:
            raise OptionError(
                f"task.positive: no label '{positive}'.{did_you_mean(positive, classes)}"
            )
        return (*(c for c in classes if c != positive), positive)
    return _find_order(classes) or tuple(sorted(classes))


def _find_order(classes: Sequence[str]) -> tuple[str, ...] | None:
    """Order two classes by a word for a negative, or as numbers; None where they are neither."""
    if (denied := _find_denied(classes)) is not None:
        return denied
    negative = [c for c in classes if is_negative(c)]
    if len(negative) == 1:
        return (*negative, *(c for c in classes if c not in negative))
    numbers = parse_numbers(classes).values
    if len(numbers) == len(set(numbers.values())) == len(classes):
        return tuple(sorted(classes, key=lambda c: numbers[c]))
    return None


def _find_denied(classes: Sequence[str]) -> tuple[str, ...] | None:
    """Order two classes of which one denies the other: ``no X`` and ``X``, ``X-`` and ``X+``."""
    for negative, positive in itertools.permutations(classes, 2):
        start = _DENIAL.match(negative.casefold())
        if start is not None and negative.casefold()[start.end() :] == positive.casefold():
            return negative, positive
        if len(negative) > 1 and negative[-1] == "-" and f"{negative[:-1]}+" == positive:
            return negative, positive
    return None
