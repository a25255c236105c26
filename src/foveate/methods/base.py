"""The contract of a method: a network from batches to predictions. It never owns a loop."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from foveate.batch import Batch, Reads
from foveate.encoders.base import AbstractEncoder
from foveate.evidence import Evidence

Meets = Literal["yes", "partly", "no", "not stated"]


class Prediction:
    """What a method returns. No dataclass: Fabric would walk into it and try to change it.

    Attributes:
        logits: ``(b, k)``.
        evidence: one per image in evaluation; nothing in training.
        losses: scalars added to the task's loss in training.
        auxiliary: further logits ``(b, k)`` with the weight that the task's loss on them has in
            training.
    """

    def __init__(
        self,
        logits: Tensor,
        evidence: Sequence[Evidence],
        losses: Mapping[str, Tensor] | None = None,
        auxiliary: Mapping[str, tuple[float, Tensor]] | None = None,
    ) -> None:
        self.logits = logits
        self.evidence = list(evidence)
        self.losses = dict(losses or {})
        self.auxiliary = dict(auxiliary or {})


class AbstractMethod(nn.Module, abc.ABC):
    """glimpse → locate → extract → embed → aggregate → predict.

    A subclass takes ``encoder`` and ``heads`` (what the task asks) by keyword; its other keywords,
    all with defaults, are its options. Its file carries its name. Its module's docstring tells
    users what to know, in paragraphs that begin with ``Source:``, ``Differs:``, ``Use when:`` and
    ``Cost:``; ``docs/methods.md`` is made from them.

    Attributes:
        reads: what it asks of a batch, for the plan and the report.
        summary: one line for ``foveate methods``.
        meets: how it meets the five requirements (only relevant parts in detail, any number of
            them, any image size, one GPU, dependencies between parts): ``yes``, ``partly``, ``no``.
        encoder: the network that embeds glimpses and patches.
    """

    reads: ClassVar[frozenset[Reads]]
    summary: ClassVar[str]
    meets: ClassVar[tuple[Meets, ...]] = ("not stated",) * 5
    encoder: AbstractEncoder

    @abc.abstractmethod
    def forward(self, batch: Batch) -> Prediction:
        """Predict a batch; in evaluation mode the answer is deterministic."""

    def begin_step(self, done: float) -> None:
        """Told before each training step which share of the training is done, 0 to 1.

        For methods that change as they learn (temperatures, warm-up).
        """

    def findings(self) -> Mapping[str, float]:
        """What it has found out about itself, by name: logged after each epoch."""
        return {}


BASE = AbstractMethod
