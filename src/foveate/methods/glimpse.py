"""Glimpse, locate, extract, relate: one encoder for the low-resolution image and the patches.

Source: the pipeline of the HPI group (glimpse → locate → extract → aggregate), with the attention
sampling of Katharopoulos & Fleuret, "Processing Megapixel Images with Deep Attention-Sampling
Models", ICML 2019, in its unbiased form (`foveate.nn.sampling`).

Differs: the glimpse is a token among the patches, and attention relates them in both directions.
The answer of the glimpse is linear in pretrained features and fitted to them; the patches add to
it. Attention begins at a prior that follows contrast, learns first from attention over very many
patches of a frozen encoder, and keeps a share of the prior for exploration. An instance head gives
every patch its own gradient. Patches have physical positions; self-attention relates them by
distance and direction; cross-attention pools them, with one query for each question, as in `ips`.
The share of attention of the drawn patches limits how far attention may concentrate.

Use when: parts of the image decide, and a glimpse shows where they may be. This is the default. If
the glimpse of a huge image shows only the regions in which they may be, use `glimpse_zoom`.

Cost: reads a glimpse and a fixed number of patches per image of any size; needs memory for one
chunk of patches, for any number of patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from foveate.attention_maps.choice import Choice
from foveate.attention_maps.glimpse_and_patches import GlimpseAndPatches, GlimpseOptions, Tokens
from foveate.attention_maps.patch_numbers import LIMITS
from foveate.batch import Batch
from foveate.encoders.base import AbstractEncoder
from foveate.methods.base import (
    AbstractMethod,
    Auxiliary,
    FurtherLoss,
    Penalty,
    Prediction,
    Requirements,
)
from foveate.nn.heads import Head
from foveate.nn.sampling import expectation


class Glimpse(GlimpseAndPatches, AbstractMethod):
    """Attention over the glimpse decides which patches are read at full resolution.

    Training draws patches without replacement and learns where to look through the unbiased
    estimator; evaluation takes the cells of highest attention.

    Args:
        patches: number of patches drawn per image in training; 0 lets the images decide.
        eval_patches: number of patches per image in evaluation; 0 lets the images decide.
        survey: number of patches per image that are read while the encoder is frozen; attention
            over them teaches where to look. 0 lets the images decide.
        explore: share of the prior in the attention in training, for exploration.
    """

    reads = frozenset({"glimpse", "crops"})
    summary = "attention over a glimpse draws patches; glimpse and patches related and pooled"
    meets = Requirements(
        relevant_parts="yes",
        any_number="yes",
        any_size="yes",
        one_gpu="yes",
        dependencies="yes",
    )

    def __init__(
        self,
        *,
        encoder: AbstractEncoder,
        heads: Sequence[Head],
        patches: int = 0,
        eval_patches: int = 0,
        survey: int = 0,
        explore: float = 0.0,
        **shared: Unpack[GlimpseOptions],
    ) -> None:
        super().__init__(encoder, heads, **shared)
        self.choice = Choice(
            patches or LIMITS["patches"].largest,
            eval_patches or LIMITS["eval_patches"].largest,
            survey or LIMITS["survey"].largest,
            self.jitter,
        )
        self.explore = explore

    def forward(self, batch: Batch) -> Prediction:
        """Predict from the glimpse and the patches that attention chooses."""
        looks = batch.look(self.encoder)
        explore = self.explore if self.training else 0.0
        field = self.attend(batch, [look.maps for look in looks], explore=explore)
        seen = self.choice.choose_cells(batch, field, training=self.training)
        f, valid = self.read(batch, seen.patches)
        tokens = Tokens(vectors=f, known=valid, patches=valid, regions=seen.patches)
        answer = self.answer_together(batch, looks, f, tokens)
        if not self.training:
            evidence = batch.evidence(seen.patches, answer.weight, remainder=answer.remainder)
            return Prediction(answer.logits, evidence)
        further: dict[str, FurtherLoss] = {k: Auxiliary(*v) for k, v in answer.auxiliary.items()}
        if batch.frozen:
            further["place"] = Penalty(seen.attention_loss(answer.weight))
            return Prediction(answer.logits, further=further)
        # The expectation over all cells teaches where to look. It teaches the encoder only where
        # answers are sums over patches, as it is: else the mean of a few cells is noise to the
        # encoder. The prediction itself comes from the drawn patches, so that their attention is
        # the evidence.
        f = f if self.adds_up else f.detach()
        a = field.log_a.gather(1, seen.index).exp() * seen.drawn
        estimate = expectation(a, seen.arrange_by_cell(f), seen.drawn)
        further["spread"] = Penalty(self.locating * self.spread(field, a))
        further["expected"] = Auxiliary(self.expected(estimate), self.locating)
        return Prediction(answer.logits, further=further)
