"""`ips` for objects on a plain ground: patches move onto objects.

Source: none; `ips` with what megapixel MNIST asks for and tissue, X-ray and volumes do not.

Differs: a patch moves to the centre of mass of what stands out from the background around it, since
a lattice cuts digits. Patches that come to lie on one another are read once.

Use when: small objects on a plain ground decide, and no glimpse shows which.

Cost: that of `ips`.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.methods._centring import CentredBag
from foveate.encoders.base import AbstractEncoder
from foveate.methods.ips import Ips
from foveate.nn.heads import Head


class CentredIps(Ips):
    """Scan all objects, keep those of highest attention, aggregate them by cross-attention.

    Args:
        kept: patches per image that gradients flow through.
        explore: share of the kept patches, in training, that is drawn from the rest.
        layers: of self-attention between patches before pooling.
        dropout: in the cross-attention.
        instance: weight of the instance head's loss.
        chunk: patches encoded at a time.
        jitter: in training, shift the lattice at random.
        centring: steps by which a patch moves.
    """

    summary = "ips, for objects on a plain ground: patches centre on them"

    def __init__(
        self,
        *,
        encoder: AbstractEncoder,
        heads: Sequence[Head],
        kept: int = 100,
        explore: float = 0.1,
        layers: int = 1,
        dropout: float = 0.1,
        instance: float = 4.0,
        chunk: int = 256,
        jitter: bool = True,
        centring: int = 3,
    ) -> None:
        super().__init__(
            encoder=encoder,
            heads=heads,
            kept=kept,
            explore=explore,
            layers=layers,
            dropout=dropout,
            instance=instance,
            chunk=chunk,
        )
        self.bag = CentredBag(centring=centring, chunk=chunk, jitter=jitter)
