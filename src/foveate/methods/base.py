"""The contract of a method: a network from batches to predictions. It never owns a loop."""

from __future__ import annotations

import abc
from typing import ClassVar

from torch import nn

from foveate.batch import Batch, Prediction, Reads
from foveate.encoders.base import AbstractEncoder


class AbstractMethod(nn.Module, abc.ABC):
    """glimpse → locate → extract → embed → aggregate → predict.

    A subclass takes ``encoder`` and ``n_outputs`` by keyword; its other keywords, all with
    defaults, are its options. Its file carries its name.

    Attributes:
        reads: what it asks of a batch, for the plan and the report.
        summary: one line for ``foveate methods``.
        encoder: the network that embeds glimpses and patches.
    """

    reads: ClassVar[frozenset[Reads]]
    summary: ClassVar[str]
    encoder: AbstractEncoder

    @abc.abstractmethod
    def forward(self, batch: Batch) -> Prediction:
        """Predict a batch; in evaluation mode the answer is deterministic."""


BASE = AbstractMethod
