"""The contract of an aggregator: the tokens of images in, answers and attention out."""

from __future__ import annotations

import abc

from jaxtyping import Bool, Float
from torch import Tensor, nn


class AbstractAggregator(nn.Module, abc.ABC):
    """A network that answers all questions of a task from the tokens of an image.

    A subclass takes ``encoder``, ``heads`` (the questions of the task) and ``dropout`` (a rate) by
    keyword. The name of its module is its name; ``--method.aggregator NAME`` chooses it for the
    methods that have this option.
    """

    @abc.abstractmethod
    def forward(
        self,
        tokens: Float[Tensor, "b n d"],
        valid: Bool[Tensor, "b n"],
        centre_patch: Float[Tensor, "b n ndim"],
        extent_patch: Float[Tensor, "b n"],
        *,
        pooled: Bool[Tensor, "b n"],
        everywhere: Bool[Tensor, "b n"],
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b n"]]:
        """Answer from all tokens of an image.

        Args:
            tokens: vectors ``(b, n, d)``, with d the encoder's `dim`.
            valid: attention mask ``(b, n)`` bool, False on padding and on tokens that are hidden.
            centre_patch: centres of the tokens' regions ``(b, n, ndim)``, in patches.
            extent_patch: sides of the tokens' regions ``(b, n)``, in patches.
            pooled: ``(b, n)`` bool, True on tokens that are pooled; the others only tell the pooled
                ones what lies around them.
            everywhere: ``(b, n)`` bool, True on tokens of the image as a whole, such as the
                glimpse, which have no place.

        Returns:
            logits ``(b, k)`` of all heads side by side; and the share of each token in the answer
            ``(b, n)``: at least 0, 0 where `pooled` is False, rows sum to 1.
        """


BASE = AbstractAggregator
