"""Features of the images of a batch from a frozen encoder, computed once and stored."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor

from foveate.batch.chunks import Chunks
from foveate.batch.colours import describe_colours
from foveate.batch.features import FeatureStore
from foveate.batch.reading import PatchReader
from foveate.batch.types import (
    Look,
    Patches,
    foreground_weight,
    image_key,
    reading_pixels,
    to_rgb,
)
from foveate.encoders.base import AbstractEncoder


class FrozenFeatures:
    """Glimpses, patches and maps of a batch as a frozen encoder sees them: nothing is augmented.

    The features of files of features are read from there.

    Args:
        reader: reads the images.
        store: the store that features are read from and added to.
    """

    def __init__(self, reader: PatchReader, store: FeatureStore) -> None:
        self._reader, self._store = reader, store

    def look(self, encoder: AbstractEncoder, i: int) -> Look:
        """Return maps, features and colours of the glimpse of image i.

        Args:
            encoder: the frozen encoder.
            i: index of the image.
        """
        item, device = self._reader.items[i], self._reader.device

        def compute() -> list[Float[Tensor, "1 ..."]]:
            with torch.no_grad():
                glimpse, mask = to_rgb(item.glimpse[None], device), foreground_weight(item, device)
                maps = encoder.maps(self._reader.normalise(glimpse))
                return [*maps, encoder.features(maps, mask), describe_colours(glimpse[0], mask)]

        tensors = [tensor.to(device) for tensor in self._store.once(self._image(i), compute)]
        return Look(tensors[:-2], *tensors[-2:])

    def features(
        self, encoder: AbstractEncoder, patches: Sequence[Patches], n_at_once: int
    ) -> Float[Tensor, "n n_features"]:
        """Return the encoder's features of patches, ``(sum n_i, n_features)``.

        Args:
            encoder: the frozen encoder.
            patches: patches of each image.
            n_at_once: number of patches computed at a time.
        """
        if not any(len(part) for part in patches):
            return torch.empty(0, encoder.n_features, device=self._reader.device)
        if self._reader.view.recipe is not None:
            return self._read_stored(patches)
        return self.rows("", patches, n_at_once, lambda x: encoder.features(encoder.maps(x)))

    def rows(
        self,
        kind: str,
        patches: Sequence[Patches],
        n_at_once: int,
        row: Callable[[Float[Tensor, "m 3 *patch"]], Float[Tensor, "m d"]],
    ) -> Float[Tensor, "n d"]:
        """Return the outputs of a frozen network for patches, ``(sum n_i, d)``.

        Args:
            kind: name that distinguishes these outputs from others of the same patches.
            patches: patches of each image, at least one in all.
            n_at_once: number of patches computed at a time.
            row: the network, from pixels ``(m, 3, *patch)`` to outputs ``(m, d)``.
        """

        def compute(i: int, new: NDArray[np.int64]) -> Float[Tensor, "m ..."]:
            wanted = [
                patches[i][new] if j == i else of_image[:0] for j, of_image in enumerate(patches)
            ]
            with torch.no_grad():
                chunks = Chunks(self._reader, wanted, n_at_once, augment=False)
                return torch.cat([row(chunks(c)) for c in range(len(chunks))])

        rows = []
        for i, of_image in enumerate(patches):
            if len(of_image):
                boxes = np.concatenate([of_image.origin_um, of_image.side_um[:, None]], 1)
                image = f"{kind}{self._image(i)}"
                rows.append(self._store.rows(image, boxes, functools.partial(compute, i)))
        return torch.cat(rows).to(self._reader.device)

    def _read_stored(self, patches: Sequence[Patches]) -> Float[Tensor, "n n_features"]:
        """Read the vectors of patches from files of features, ``(sum n_i, n_features)``."""
        rows = []
        for item, of_image in zip(self._reader.items, patches, strict=True):
            if item.image.stored is not None and of_image.row is not None:
                with reading_pixels(item):
                    rows.append(torch.from_numpy(item.image.stored.read(of_image.row)))
        return torch.cat(rows).to(self._reader.device)

    def map(
        self, i: int, compute: Callable[[], Shaped[Tensor, " ..."]], *, kind: str = "map"
    ) -> Float[Tensor, " ..."]:
        """Return one tensor of image i, computed by a frozen encoder when it is not stored yet.

        Args:
            i: index of the image.
            compute: computes the tensor.
            kind: name that distinguishes the tensor from others of the same image.
        """

        def once() -> list[Shaped[Tensor, " ..."]]:
            with torch.no_grad():
                return [compute()]

        (tensor,) = self._store.once(f"{kind} {self._image(i)}", once)
        return tensor.to(self._reader.device)

    def _image(self, i: int) -> str:
        return image_key(self._reader.items[i], self._reader.view)
