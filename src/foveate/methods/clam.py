"""Attention that must agree with a clustering of the patches of highest and lowest attention.

Source: Lu et al., "Data-efficient and weakly supervised computational pathology on whole-slide
images", Nature Biomedical Engineering 2021 (CLAM-SB and CLAM-MB).

Differs: the strongest and the weakest patches never overlap, so an image can have any number of
patches (the published code fails below eight, and below sixteen gives some patches both labels).
They are chosen by attention without dropout. The two-way heads have one logit each, which is
equivalent; their loss is cross-entropy. An output that excludes no other has two heads, for
presence and for absence. Padding is masked, so images share a batch; the encoder may be trained, by
two-pass replay, but not by the clustering.

Use when: there are few images, features are frozen, and attention alone over-fits or does not
converge. It is the usual baseline of pathology. It ignores the positions of patches.

Cost: reads every patch with foreground, twice in training with a trained encoder unless they fit a
small cache; needs memory for one chunk of patches and a few vectors per patch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Unpack

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from foveate.bags.embedding import compute_output_weights, evaluation_mode
from foveate.encoders.base import AbstractEncoder
from foveate.errors import OptionError
from foveate.methods.base import (
    AbstractBagMethod,
    BagAnswer,
    BagOptions,
    FurtherLoss,
    Judge,
    Requirements,
)
from foveate.nn.attention import masked_softmax
from foveate.nn.heads import Head
from foveate.parts.options import DropoutRate, Width


class Clam(AbstractBagMethod):
    """Pool all patches with foreground by gated attention.

    A clustering of patches gives a further loss. Evidence is the attention of the predicted
    classes.

    Args:
        branch: number of attentions: ``single`` for all classes together, or ``multi`` for one per
            class.
        width: width of the first layer on the features.
        hidden: width of the attention network.
        dropout: rate of dropout on features and in the attention network.
        clustered: number of patches of highest and of lowest attention that get labels; fewer if an
            image has less than twice as many patches.
        clustering: share of the clustering's loss; the bag's loss has the rest. Tasks without
            classes have no clustering.

    Raises:
        OptionError: a share that is not in [0, 1).
    """

    summary = "all patches, gated attention, clustering of the strongest and weakest patches"
    meets = Requirements(
        relevant_parts="no",
        any_number="yes",
        any_size="yes",
        one_gpu="yes",
        dependencies="no",
    )

    def __init__(
        self,
        *,
        encoder: AbstractEncoder,
        heads: Sequence[Head],
        branch: Literal["single", "multi"] = "single",
        width: Width = 512,
        hidden: Width = 256,
        dropout: DropoutRate = 0.25,
        clustered: int = 8,
        clustering: float = 0.3,
        instance: float = 0.0,
        **bag: Unpack[BagOptions],
    ) -> None:
        if not 0 <= clustering < 1:
            raise OptionError(f"method.clustering: got {clustering}, expected 0 up to below 1")
        super().__init__(encoder, heads, encoder.dim, instance=instance, **bag)
        n_outputs = sum(h.size for h in heads)
        self.branch, self.clustered = branch, clustered
        self.clustering = clustering / (1 - clustering)
        self.norm = nn.LayerNorm(encoder.dim)
        self.embed = nn.Sequential(nn.Linear(encoder.dim, width), nn.ReLU(), nn.Dropout(dropout))
        branches = n_outputs if branch == "multi" else 1
        self.attend = _Attend(width, hidden, branches, dropout)
        self.head = nn.Linear(width, n_outputs)
        self.cluster = _Cluster(width, heads)

    def answer_bag(
        self,
        f: Float[Tensor, "b n d"],
        valid: Bool[Tensor, "b n"],
        place: Callable[[], Float[Tensor, "b n ndim"]],
    ) -> BagAnswer:
        """Pool by gated attention; cluster the patches of highest and lowest attention.

        Args:
            f: features of the patches ``(b, n, d)``, zeros on padding.
            valid: ``(b, n)`` bool, False on padding.
            place: not used, because the method ignores places.
        """
        f = self.norm(f)
        logits, attention = self.aggregate(self.embed(f), valid)
        further: dict[str, FurtherLoss] = {}
        if self.training and self.clustering > 0:
            # At first the patches of highest attention are a guess, so the encoder does not learn
            # from them.
            top, bottom = self.extremes(f, valid)
            where_true, where_false = self.cluster(self.embed(f.detach()), top, bottom)
            further["clustering"] = Clustering(where_true, where_false, self.clustering)

        def attended() -> Float[Tensor, "b n"]:
            if self.branch == "single":
                return attention[:, 0]
            shares = compute_output_weights(logits, self.task_heads)
            return (shares.unsqueeze(-1) * attention).sum(1)

        by_output = attention if self.branch == "multi" else None

        # Instances before dropout, which would choose the strongest patch at random.
        return BagAnswer(logits, attended, instances=f, further=further, by_output=by_output)

    def aggregate(
        self, h: Float[Tensor, "b n d"], valid: Bool[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b branches n"]]:
        """Pool embedded patches and answer.

        Args:
            h: embedded patches ``(b, n, d)``.
            valid: ``(b, n)`` bool, False on padding.

        Returns:
            logits ``(b, k)`` and attention ``(b, branches, n)``.
        """
        attention = masked_softmax(self.attend(h).transpose(1, 2), valid.unsqueeze(1))
        pooled = attention @ h
        if self.branch == "single":
            return self.head(pooled[:, 0]), attention
        return (pooled * self.head.weight).sum(-1) + self.head.bias, attention

    @torch.no_grad()
    def extremes(
        self, f: Float[Tensor, "b n d"], valid: Bool[Tensor, "b n"]
    ) -> tuple[Bool[Tensor, "b n branches"], Bool[Tensor, "b n branches"]]:
        """Mark the patches of highest and of lowest attention.

        No patch is among both; the only patch of an image is among the highest.

        Args:
            f: normalised features ``(b, n, d)``.
            valid: ``(b, n)`` bool, False on padding.

        Returns:
            two masks ``(b, n, branches)`` bool, of the highest and of the lowest.
        """
        with evaluation_mode(self.embed, self.attend):
            scores = self.attend(self.embed(f))
        scores = scores.masked_fill(~valid.unsqueeze(-1), -torch.inf)
        rank = scores.argsort(dim=1, descending=True, stable=True).argsort(1)
        n = valid.sum(1)[:, None, None]
        few = (n // 2).clamp_max(self.clustered)
        real = valid.unsqueeze(-1)
        return (rank < few.clamp_min(1)) & real, (rank >= n - few) & real


class Clustering(NamedTuple):
    """The loss of the clustering, which depends on the classes that are true of an image.

    Attributes:
        where_true: losses ``(b, k)`` of outputs that are true of an image.
        where_false: losses ``(b, k)`` of outputs that are not true of an image.
        weight: factor of the sum of the losses.
    """

    where_true: Float[Tensor, "b k"]
    where_false: Float[Tensor, "b k"]
    weight: float

    def __call__(self, judge: Judge) -> Float[Tensor, ""]:
        """Compute the weighted mean over images."""
        return self.weight * judge.by_label(self.where_true, self.where_false).mean()


class _Attend(nn.Module):
    """Gated attention with dropout in both gates: ``(b, n, d)`` to scores ``(b, n, branches)``."""

    def __init__(self, n_channels: int, hidden: int, branches: int, dropout: float) -> None:
        super().__init__()
        self.value = nn.Sequential(nn.Linear(n_channels, hidden), nn.Tanh(), nn.Dropout(dropout))
        self.gate = nn.Sequential(nn.Linear(n_channels, hidden), nn.Sigmoid(), nn.Dropout(dropout))
        self.score = nn.Linear(hidden, branches)

    def forward(self, h: Float[Tensor, "b n d"]) -> Float[Tensor, "b n branches"]:
        scores: Tensor = self.score(self.value(h) * self.gate(h))
        return scores


class _Cluster(nn.Module):
    """Two-way heads per class, and their losses where the class is true and where it is not.

    For a true class, the strongest patches are positive examples and the weakest negative ones.
    Where classes exclude each other, the strongest patches are negative examples of the other
    classes. An output that excludes no other has a head for its presence and one for its absence.
    """

    independent: Tensor
    per_question: Tensor

    def __init__(self, n_channels: int, heads: Sequence[Head]) -> None:
        super().__init__()
        exclusive = [h.exclusive for h in heads for _ in range(h.size)]
        independent = [k for k, excludes in enumerate(exclusive) if not excludes]
        sizes = [float(h.size) for h in heads for _ in range(h.size)]
        place = torch.tensor(independent, dtype=torch.long)
        self.register_buffer("independent", place, persistent=False)
        self.register_buffer("per_question", torch.tensor(sizes), persistent=False)
        self.example = nn.Linear(n_channels, len(exclusive) + len(independent))

    def forward(
        self,
        h: Float[Tensor, "b n d"],
        top: Bool[Tensor, "b n branches"],
        bottom: Bool[Tensor, "b n branches"],
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k"]]:
        """Compute the losses ``(b, k)`` of outputs that are true, and of those that are not.

        Args:
            h: embedded patches ``(b, n, d)``.
            top: mask of the strongest patches ``(b, n, branches)`` bool.
            bottom: mask of the weakest patches ``(b, n, branches)`` bool.
        """
        logits, k = self.example(h), len(self.per_question)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        branches = torch.cat([torch.arange(k, device=h.device), self.independent])
        if top.shape[-1] > 1:
            top, bottom = top[..., branches], bottom[..., branches]
        as_example, as_none = functional.softplus(-logits) * top, functional.softplus(logits)
        n_top, n_both = top.sum(1), (top | bottom).sum(1)
        inside = (as_example + as_none * bottom).sum(1) / n_both.clamp_min(1)
        outside = (as_none * top).sum(1) / n_top.clamp_min(1)
        where_false = outside[:, :k].index_copy(1, self.independent, inside[:, k:])
        return inside[:, :k] / self.per_question, where_false / self.per_question
