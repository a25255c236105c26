"""`ips` for objects on a plain ground: patches move onto objects.

Source: none; `ips` with what megapixel MNIST asks for and tissue, X-ray and volumes do not.

Differs: a patch moves to the centre of mass of what stands out from the background around it, since
a lattice cuts digits. Patches that come to lie on one another are read once.

Use when: small objects on a plain ground decide, and no glimpse shows which.

Cost: that of `ips`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, Unpack

from benchmarks.methods._centring import CentredBag
from foveate.encoders.base import AbstractEncoder
from foveate.methods.ips import Ips
from foveate.nn.heads import Head


class _IpsOptions(TypedDict, total=False):
    kept: int
    explore: float
    layers: int
    dropout: float
    chunk: int
    jitter: bool


class CentredIps(Ips):
    """Scan all objects, keep those of highest attention, aggregate them by cross-attention.

    Args:
        instance: weight of the instance head's loss.
        centring: steps by which a patch moves.
    """

    summary = "ips, for objects on a plain ground: patches centre on them"

    def __init__(
        self,
        *,
        encoder: AbstractEncoder,
        heads: Sequence[Head],
        instance: float = 4.0,
        centring: int = 3,
        **ips: Unpack[_IpsOptions],
    ) -> None:
        super().__init__(encoder=encoder, heads=heads, instance=instance, **ips)
        self.bag = CentredBag(centring=centring, chunk=self.chunk, jitter=self.bag.jitter)
