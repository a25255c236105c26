"""Attention-based multiple instance learning over all patches.

Source: Ilse, Tomczak & Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018
(gated attention).

Differs: the encoder may be trained: features come from two-pass replay, whose memory does not grow
with the number of patches; in training the lattice moves.

Use when: everything in the image may count and reading all of it is affordable; with a frozen
encoder, as the baseline that the field compares with. Blind to where patches lie.

Cost: reads every patch with foreground, twice in training with a trained encoder unless they fit a
small cache; memory of one chunk of patches, and one vector per patch.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from foveate.batch import Batch
from foveate.encoders.base import AbstractEncoder
from foveate.methods._bag import Bag
from foveate.methods.base import AbstractMethod, Prediction
from foveate.nn.attention import GatedAttention, masked_softmax
from foveate.nn.heads import Head


class Abmil(AbstractMethod):
    """All patches with tissue, gated attention, a linear head.

    Args:
        train_encoder: learn the encoder too, by two-pass replay; off, it stays as it began and
            each image is embedded once.
        chunk: patches encoded at a time.
        hidden: width of the attention network.
        dropout: on the pooled vector.
        jitter: in training, shift the lattice at random (with a trained encoder only).
    """

    reads = frozenset({"glimpse", "bag"})
    summary = "all patches, gated attention; encoder frozen or trained by two-pass replay"
    meets = ("no", "yes", "yes", "yes", "no")

    def __init__(
        self,
        *,
        encoder: AbstractEncoder,
        heads: Sequence[Head],
        train_encoder: bool = True,
        chunk: int = 64,
        hidden: int = 128,
        dropout: float = 0.1,
        jitter: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(train_encoder)
        self.bag = Bag(train_encoder=train_encoder, chunk=chunk, jitter=jitter)
        self.norm = nn.LayerNorm(encoder.dim)
        self.attention = GatedAttention(encoder.dim, hidden=hidden)
        outputs = nn.Linear(encoder.dim, sum(h.size for h in heads))
        self.head = nn.Sequential(nn.Dropout(dropout), outputs)

    def train(self, mode: bool = True) -> Abmil:
        """Training mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.train(mode and self.bag.train_encoder)
        return self

    def forward(self, batch: Batch) -> Prediction:
        """Predict from every patch of each image."""
        patches = self.bag.cover(batch, training=self.training)
        f, valid = self.bag.embed(self.encoder, batch, patches)
        h = self.norm(f)
        weight = masked_softmax(self.attention(h), valid)
        logits = self.head((weight.unsqueeze(1) @ h).squeeze(1))
        return Prediction(logits, [] if self.training else batch.evidence(patches, weight))
