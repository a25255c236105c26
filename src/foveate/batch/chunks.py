"""Read patches in groups, ahead of use; run a network on images of several sizes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import torch
from jaxtyping import Float
from torch import Tensor

from foveate.batch.reading import PatchReader
from foveate.batch.types import Patches, channels_last
from foveate.images.resample import Pixels

_CHUNKS_AHEAD = 2
_PIXEL_CACHE_BYTES = 1 << 26


class Chunks:
    """Patches in groups, read by threads while the device computes; a loader for `replay`.

    A call with a chunk's number returns its patches and reads the next ones ahead. Augmentation is
    drawn by the constructor, so that a second pass sees the same pixels. Pixels are kept for the
    second pass up to a fixed number of bytes; beyond that they are read again. If gradients are
    disabled when it is constructed, there will be no second pass and no pixels are kept.

    Args:
        reader: reads the patches.
        patches: patches of each image.
        n_at_once: largest number of patches of a group.
        augment: whether patches are changed as the batch says.
    """

    def __init__(
        self,
        reader: PatchReader,
        patches: Sequence[Patches],
        n_at_once: int,
        *,
        augment: bool = True,
    ) -> None:
        self._reader = reader
        self._parts = _group_patches(patches, n_at_once)
        lengths = [len(part) for part in patches]
        draws = reader.changes.draw_patches(lengths) if augment else None
        ends = itertools.accumulate(sum(map(len, parts)) for parts in self._parts)
        bounds = list(itertools.pairwise([0, *ends]))
        self._draws = [None if draws is None else draws[slice(*ends)] for ends in bounds]
        self._augment = augment
        self._jobs: dict[int, list[Future[Pixels]]] = {}
        self._pixels: dict[int, list[Pixels]] = {}
        self._room = _PIXEL_CACHE_BYTES if torch.is_grad_enabled() else 0

    def __len__(self) -> int:
        return len(self._parts)

    def __call__(self, c: int) -> Float[Tensor, "m 3 *patch"]:
        """Return the pixels of chunk c, in the form of `Batch.read_patches`."""
        self._read_ahead(c)
        pixels = self._pixels.get(c)
        if pixels is None:
            pixels = self._reader.wait(self._jobs.pop(c))
            n_bytes = sum(part.nbytes for part in pixels)
            if n_bytes <= self._room:
                self._pixels[c] = pixels
                self._room -= n_bytes
        return self._reader.put_on_device(
            pixels, self._parts[c], self._draws[c], augment=self._augment
        )

    def _read_ahead(self, c: int) -> None:
        wanted = range(c, min(c + 1 + _CHUNKS_AHEAD, len(self._parts)))
        # The second pass leaves chunks out: pixels read for them must not pile up.
        for n in [n for n in self._jobs if n not in wanted]:
            for job in self._jobs.pop(n):
                job.cancel()
        for n in wanted:
            if n not in self._jobs and n not in self._pixels:
                self._jobs[n] = self._reader.start(self._parts[n])


def run_by_shape(
    function: Callable[[Float[Tensor, "n 3 *space"]], list[Float[Tensor, "n c *cells"]]],
    images: list[Float[Tensor, " 3 *_space"]],
) -> list[list[Float[Tensor, "1 _c *_cells"]]]:
    """Apply a network to images of several sizes: equal sizes together, without padding.

    Args:
        function: the network, from images ``(n, 3, *space)`` to maps ``(n, c, *cells)``.
        images: images ``(3, *space)``.

    Returns:
        maps ``(1, c, *cells)`` of each image.
    """
    groups: dict[torch.Size, list[int]] = {}
    for i, image in enumerate(images):
        groups.setdefault(image.shape, []).append(i)
    image_maps: dict[int, list[Tensor]] = {}
    for members in groups.values():
        maps = function(channels_last(torch.stack([images[i] for i in members])))
        for row, i in enumerate(members):
            image_maps[i] = [m[row : row + 1] for m in maps]
    return [image_maps[i] for i in range(len(images))]


def _group_patches(patches: Sequence[Patches], n_at_once: int) -> list[list[Patches]]:
    """Cut the patches of all images, in order, into at least one group of at most `n_at_once`."""
    none = [part[:0] for part in patches]
    groups, room = [list(none)], n_at_once
    for i, part in enumerate(patches):
        at = 0
        while at < len(part):
            if room == 0:
                groups.append(list(none))
                room = n_at_once
            taken = part[at : at + room]
            groups[-1][i] = taken
            at, room = at + len(taken), room - len(taken)
    return groups
