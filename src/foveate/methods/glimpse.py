"""Glimpse, locate, extract, relate: one encoder for the low-resolution image and the patches.

Source: the pipeline that the HPI group describes (glimpse → locate → extract → aggregate), with the
attention sampling of Katharopoulos & Fleuret, "Processing Megapixel Images with Deep
Attention-Sampling Models", ICML 2019, in its unbiased form (`foveate.nn.sampling`).

Differs: the glimpse is a token among the patches, related to them by attention in both directions;
its own answer is linear in pretrained features and fitted to them, and patches add to it;
attention begins at a prior that follows contrast, learns first from attention over very many
patches of a frozen encoder, and keeps some of the prior for exploration; an instance head gives
every patch its own gradient; patches have physical positions, are related by self-attention, which
knows distances and sides, and are pooled by cross-attention, with a query for each question, as in
`ips`; the share of attention that the drawn patches hold limits how far it may concentrate.

Use when: parts decide, and a glimpse shows where they may be: the default. Where the glimpse
of a huge image only shows which regions to look into, take `glimpse_zoom`.

Cost: reads a glimpse and a fixed number of patches per image, whatever its size; memory of one
chunk of patches, however many are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

from foveate.attention_maps.choice import Choice
from foveate.attention_maps.glimpse_and_patches import GlimpseAndPatches, Tokens
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
        patches: number of patches drawn per image in training; 0 chooses it by the images.
        eval_patches: number of patches per image in evaluation; 0 chooses it by the images.
        survey: patches of an image that are looked at while the encoder is frozen; attention over
            them teaches where to look. 0 chooses it by the images.
        spread: weight of attention's divergence from its prior, which keeps it from collapsing.
        locating: weight of the losses that teach where to look. Their gradient is noisy, as few
            cells are drawn; with a weight of 1 its noise would hide, in the encoder, the gradient
            of the patches. The layers that score cells learn from nothing else, so the optimiser
            makes up for the weight there. Where answers are sums over patches, the losses teach the
            encoder as well, and 1 is worth a try.
        explore: share of attention, in training, that follows the prior whatever was learnt.
        dropout: rate of dropout in the cross-attention, and on the expectation over cells.
        instance: weight of the instance head's loss: patches answer the task on their own, pooled
            as the task allows. It gives every patch its own gradient, which ends the plateau at
            chance; the larger its weight beside the main answer, the sooner. 0 leaves the head out.
        chunk: number of patches encoded at a time; above it, gradients come from two-pass replay.
        jitter: in training, a patch lies anywhere in its cell; else in the middle.
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
        spread: float = 1e-2,
        locating: float = 0.1,
        explore: float = 0.0,
        dropout: float = 0.1,
        instance: float = 4.0,
        chunk: int = 256,
        jitter: bool = True,
    ) -> None:
        super().__init__(
            encoder,
            heads,
            spread=spread,
            locating=locating,
            instance=instance,
            dropout=dropout,
            chunk=chunk,
        )
        self.choice = Choice(patches or 24, eval_patches or 64, survey or 256, jitter)
        self.explore = explore

    def forward(self, batch: Batch) -> Prediction:
        """Predict from the glimpse and the patches that attention chooses."""
        looks = batch.look(self.encoder)
        explore = self.explore if self.training else 0.0
        field = self.attend(batch, [look.maps for look in looks], explore=explore)
        seen = self.choice(batch, field, training=self.training)
        f, valid = self.read(batch, seen.patches)
        answer = self.answer_together(batch, looks, f, Tokens(f, valid, valid, seen.patches))
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
