"""Tasks of benchmarks: present classes, one digit, and several questions about one image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from foveate.nn.heads import Head
from foveate.tasks.classes import ClassTask


class PresenceTask(ClassTask):
    """A multi-label task: a label lists the present classes, such as ``1 3 9``."""

    def __init__(self, *, classes: Sequence[str], name: str = "present") -> None:
        super().__init__(classes=classes)
        self.heads = (Head(name, len(self.columns), False, "max"),)

    @classmethod
    def fits(cls, labels: Sequence[str], column: str) -> bool:
        """Return False: the task is never chosen automatically."""
        return False

    def parse(self, label: str) -> list[float]:
        """Return 1 for each listed class and 0 for others."""
        present = set(label.split())
        return [float(c in present) for c in self.classes]

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the binary cross-entropy, averaged over the classes."""
        return functional.binary_cross_entropy_with_logits(logits.float(), target.float())

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probability of each class; rows need not sum to 1."""
        return logits.double().sigmoid()

    def log_scores(self, values: Tensor, target: Tensor) -> dict[str, float]:
        """Return the share of images with all classes right."""
        right = ((values > 0.5) == (target > 0.5)).all(1)
        return {f"val_{self.heads[0].name}": float(right.double().mean())}


class DigitTask(ClassTask):
    """A task with one of several classes, scored by accuracy."""

    def __init__(self, *, classes: Sequence[str], head: Head, smoothing: float = 0.0) -> None:
        super().__init__(classes=classes)
        self.head, self.heads, self.smoothing = head, (head,), smoothing

    @classmethod
    def fits(cls, labels: Sequence[str], column: str) -> bool:
        """Return False: the task is never chosen automatically."""
        return False

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy."""
        return functional.cross_entropy(
            logits.float(), target.long(), label_smoothing=self.smoothing
        )

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the softmax of the logits."""
        return logits.double().softmax(-1)

    def log_scores(self, values: Tensor, target: Tensor) -> dict[str, float]:
        """Return the accuracy."""
        right = values.argmax(1) == target.long()
        return {f"val_{self.heads[0].name}": float(right.double().mean())}


class JointTask(ClassTask):
    """Several questions about one image; a label is ``name=answer`` joined by ``;``.

    Args:
        parts: by name, in order; the loss is the mean of theirs.
    """

    def __init__(self, parts: Mapping[str, ClassTask]) -> None:
        super().__init__(classes=[f"{n}:{c}" for n, part in parts.items() for c in part.classes])
        self.parts = dict(parts)
        self.heads = tuple(head for part in parts.values() for head in part.heads)

    @classmethod
    def fits(cls, labels: Sequence[str], column: str) -> bool:
        """Return False: the task is never chosen automatically."""
        return False

    def parse(self, label: str) -> list[float]:
        """Return the targets of all parts, one after the other."""
        answers = dict(part_probabilities.split("=", 1) for part_probabilities in label.split(";"))
        parts_out: list[float] = []
        for name, part in self.parts.items():
            value = part.parse(answers[name])
            parts_out += value if isinstance(value, list) else [float(value)]
        return parts_out

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean of the losses of all parts."""
        losses = [part.loss(x, y) for part, x, y in self._split(logits, target)]
        return torch.stack(losses).mean()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities of all parts, one after the other."""
        part_probabilities = [part.probabilities(x) for part, x, _ in self._split(logits, None)]
        return torch.cat(part_probabilities, -1)

    def log_scores(self, values: Tensor, target: Tensor) -> dict[str, float]:
        """Return the scores of all parts."""
        parts_out: dict[str, float] = {}
        for part, x, y in self._split(values, target):
            parts_out |= part.log_scores(x, y)
        return parts_out

    def _split(
        self, outputs: Tensor, target: Tensor | None
    ) -> list[tuple[ClassTask, Tensor, Tensor]]:
        """Yield each part with its own logits or probabilities and targets."""
        parts_out, at, begin = [], 0, 0
        for part in self.parts.values():
            size = sum(h.size for h in part.heads)
            width = size if isinstance(part, PresenceTask) else 1
            y = outputs if target is None else target[:, begin : begin + width]
            y = y[:, 0] if width == 1 and target is not None else y
            parts_out.append((part, outputs[:, at : at + size], y))
            at, begin = at + size, begin + width
        return parts_out
