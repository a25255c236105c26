"""The contract of a task: labels as text in, a loss and probabilities out. Pure."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from foveate.errors import TableError, did_you_mean
from foveate.metrics import auroc
from foveate.nn.heads import Head


class AbstractTask(abc.ABC):
    """What the labels mean.

    Attributes:
        preference: of several tasks that fit, the one with the highest is taken.
        classes: their names, in the order of the probabilities.
        heads: what it asks of an image; a method predicts the outputs of all, in this order.
    """

    preference: ClassVar[int] = 0
    heads: tuple[Head, ...]

    def __init__(self, *, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)

    @classmethod
    @abc.abstractmethod
    def fits(cls, labels: Sequence[str]) -> bool:
        """Whether these distinct labels can be this task."""

    @abc.abstractmethod
    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean loss of logits ``(b, k)`` and targets as `target` gives them; a scalar."""

    def each_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of every row on its own, ``(m,)``; where rows stand alone, `loss` is its mean.

        Args:
            logits: ``(m, k)``.
            target: ``(m, …)``.
        """
        rows = [self.loss(logits[i : i + 1], target[i : i + 1]) for i in range(len(logits))]
        return torch.stack(rows)

    def correct(self, logits: Tensor, target: Tensor) -> Tensor:
        """1 where a row answers rightly and 0 where it does not, ``(m,)``, without gradient.

        For targets that are no single class, ``exp(-loss)``: the nearer to 1, the better.
        """
        if target.ndim > 1 or target.is_floating_point():
            return self.each_loss(logits.detach(), target).neg().exp().clamp_max(1.0)
        return (self.probabilities(logits.detach()).argmax(-1) == target).float()

    @abc.abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """``(b, len(classes))``, rows sum to 1, in float64."""

    def truth(self, target: Tensor) -> Tensor | None:
        """Which outputs are true of each image, ``(b, k)`` in [0, 1].

        None where outputs are no classes; losses that ask for a class are left out then.
        """
        return None

    def chance_loss(self, target: Tensor) -> float:
        """The least loss of somebody who knows the targets' frequencies but sees no image.

        For classes, the entropy of the labels. Found by minimising over constant logits.
        """
        logits = torch.zeros(sum(h.size for h in self.heads), requires_grad=True)
        optimizer = torch.optim.LBFGS([logits], max_iter=50, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self.loss(logits.expand(len(target), -1), target)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        with torch.enable_grad():
            optimizer.step(closure)  # type: ignore[no-untyped-call]
        return float(self.loss(logits.detach().expand(len(target), -1), target))

    def temperature(self, logits: Tensor, target: Tensor) -> float:
        """What logits of held-out images should be divided by, to be as sure as they are right.

        From 1/20 to 20, drawn towards 1 by about the evidence of one image.
        """
        candidates = torch.logspace(-1.3, 1.3, 53, dtype=torch.float64)
        exact = logits.double()
        losses = [float(self.each_loss(exact / t, target).sum()) for t in candidates]
        drawn = torch.tensor(losses, dtype=torch.float64) + candidates.log().square() / 2
        return float(candidates[int(drawn.argmin())])

    def score(self, logits: Tensor, target: Tensor, chance: float) -> float:
        """How well a validation part is answered, by ranking and calibrated loss; lower is better.

        The loss at the best temperature, as a share of chance, and the share of pairs of images
        that are ranked wrongly.
        """
        loss = float(self.loss(logits / self.temperature(logits, target), target))
        relative = loss / chance if chance > 0 else loss
        return relative + 1 - self.validation(logits, target).get("val_auroc", 0.5)

    def scores(self, probabilities: Tensor, target: Tensor) -> dict[str, float]:
        """Scores of answers, for the log, by names that begin with ``val_``; the loss aside.

        Args:
            probabilities: ``(n, classes)``, of one model or the mean of several.
            target: of the n images.
        """
        score = auroc(probabilities.cpu().numpy(), target.cpu().numpy())
        return {} if score is None else {"val_auroc": float(score)}

    def validation(self, logits: Tensor, target: Tensor) -> dict[str, float]:
        """The scores of one model's logits ``(n, k)``."""
        return self.scores(self.probabilities(logits), target)

    def target(self, label: str) -> int | list[float]:
        """The target of a label.

        Raises:
            TableError: an unknown label.
        """
        if label not in self.classes:
            raise TableError(f"unknown label '{label}'.{did_you_mean(label, self.classes)}")
        return self.classes.index(label)


BASE = AbstractTask
