"""`glimpse` for objects on a plain ground: patches move onto objects, and patches vote.

Source: none; `glimpse` with what megapixel MNIST asks for and tissue, X-ray and volumes do not.

Differs: a patch moves to the centre of mass of what stands out from the background around it, since
cells cut digits; training may look at the strongest cells besides those drawn, since a draw misses
digits now and then, and where every one of them counts, labels then seem to be wrong; where the
task asks for a sum or for several findings, half the answer is what patches say on their own.

Use when: a few small objects on a plain ground are counted or compared.

Cost: that of `glimpse`, and that of the strongest patches in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor

from benchmarks.methods._centring import CentredChoice
from benchmarks.methods._votes import Voted
from foveate.attention_maps.glimpse_and_patches import GlimpseOptions
from foveate.encoders.base import AbstractEncoder
from foveate.methods.glimpse import Glimpse
from foveate.nn.heads import Head


class CentredGlimpse(Glimpse):
    """Choose objects by attention over the glimpse, and look at each object whole.

    Args:
        patches: drawn per image in training.
        strongest: looked at in training beside those drawn, as in evaluation.
        eval_patches: looked at per image in evaluation.
        explore: share of attention, in training, that follows the prior whatever was learnt.
        centring: steps by which a patch moves. Patches that come to lie on one another are looked
            at once.
    """

    summary = "glimpse, for objects on a plain ground: patches centre on them and vote"

    def __init__(
        self,
        *,
        encoder: AbstractEncoder,
        heads: Sequence[Head],
        patches: int = 32,
        strongest: int = 0,
        eval_patches: int = 32,
        explore: float = 0.1,
        centring: int = 3,
        **shared: Unpack[GlimpseOptions],
    ) -> None:
        super().__init__(encoder=encoder, heads=heads, explore=explore, **shared)
        self.choice = CentredChoice(
            patches, eval_patches, self.choice.survey, self.jitter, strongest, centring
        )
        self.voted = Voted(heads)

    def combine_answers(self, alone: Tensor, pooled: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Combine the votes of patches for sums and multi-label heads."""
        if self.instance <= 0:
            return pooled, {}
        logits, beside = self.voted(alone, pooled)
        return logits, {} if beside is None else {"pooled": beside}
