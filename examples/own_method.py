"""A method of your own is one file: here, patches on an even grid, and their mean.

    python examples/own_method.py labels.csv out/

The command line takes it, too, from a folder my_parts/ that holds methods/own_method.py:

    foveate train labels.csv --out run --plugins my_parts --method own_method --method.side 4
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from torch import nn

import foveate
from foveate.batch import Batch
from foveate.encoders.base import AbstractEncoder
from foveate.methods.base import AbstractMethod, Prediction, Requirements
from foveate.nn.heads import Head
from foveate.parts.options import Within


class EvenGrid(AbstractMethod):
    """Encode patches on an even grid, average them, answer.

    Args:
        side: so many patches along each axis.
        dropout: before the linear layer.
    """

    reads = frozenset({"crops"})
    summary = "patches on an even grid, and their mean"
    meets = Requirements(
        relevant_parts="no",
        any_number="no",
        any_size="yes",
        one_gpu="yes",
        dependencies="no",
    )

    def __init__(
        self,
        *,
        encoder: AbstractEncoder,
        heads: Sequence[Head],
        side: Annotated[int, Within(1, 16)] = 3,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.encoder, self.side = encoder, side
        self.head = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(encoder.dim, sum(head.size for head in heads))
        )

    def forward(self, batch: Batch) -> Prediction:
        """Answer from ``side`` patches along each axis; all count alike as evidence."""
        places = [batch.place(i, self._centres_um(item)) for i, item in enumerate(batch.items)]
        n = self.side**batch.view.axes
        vectors = self.encoder.pool(self.encoder.maps(batch.read_patches(places)))  # (b * n, d)
        mean = vectors.unflatten(0, (len(batch), n)).mean(1)
        if self.training:
            return Prediction(self.head(mean))
        weight = vectors.new_full((len(batch), n), 1 / n)
        return Prediction(self.head(mean), batch.evidence(places, weight))

    def _centres_um(self, item: Any) -> np.ndarray[Any, Any]:
        """Centres of the patches of one image, ``(n, axes)``, micrometres."""
        box = item.image.box_um
        shares = (np.arange(self.side) + 0.5) / self.side
        lines = [o + s * shares for o, s in zip(box.origin, box.size, strict=True)]
        return np.stack(np.meshgrid(*lines, indexing="ij"), -1).reshape(-1, len(lines))


def main(table: Path, out: Path, **options: Any) -> None:
    """Put this file into a folder of parts, and train with it."""
    methods = out / "my_parts" / "methods"
    methods.mkdir(parents=True, exist_ok=True)
    shutil.copy(__file__, methods)
    foveate.add_plugin_folder(methods.parent)
    print(foveate.list_methods()["own_method"])
    run = foveate.train(table, out / "run", method="own_method", side=2, **options)
    print(run)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
