"""Patches in groups, read ahead; images of several sizes through one network."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foveate.batch.types import Patches, channels_last
from foveate.images.resample import Pixels

if TYPE_CHECKING:
    from foveate.batch import Batch

_CHUNKS_AHEAD = 2
_KEPT_BYTES = 1 << 26


class Chunks:
    """Patches in groups, read by threads while the device computes; a loader for `replay`.

    Calling it with a chunk's number gives its crops and begins to read the next ones. What changes
    each patch is drawn when it is made, so that a second pass sees the same pixels. Pixels are
    kept for the second pass up to a fixed number of bytes; beyond that they are read again. Made
    where there is no gradient, so that no second pass comes, it keeps none.
    """

    def __init__(
        self, batch: Batch, patches: Sequence[Patches], size: int, *, augment: bool = True
    ) -> None:
        self._batch = batch
        self._parts = _grouped(patches, size)
        draws = batch.changes.draw_patches([len(part) for part in patches]) if augment else None
        ends = itertools.accumulate(sum(map(len, parts)) for parts in self._parts)
        bounds = list(itertools.pairwise([0, *ends]))
        self._draws = [None if draws is None else draws[slice(*ends)] for ends in bounds]
        self._augment = augment
        self._jobs: dict[int, list[Future[Pixels]]] = {}
        self._kept: dict[int, list[Pixels]] = {}
        self._room = _KEPT_BYTES if torch.is_grad_enabled() else 0

    def __len__(self) -> int:
        return len(self._parts)

    def __call__(self, c: int) -> Tensor:
        """The crops of chunk c, as `Batch.crops` gives them."""
        self._read_ahead(c)
        pixels = self._kept.get(c)
        if pixels is None:
            pixels = self._batch._wait(self._jobs.pop(c))
            n_bytes = sum(part.nbytes for part in pixels)
            if n_bytes <= self._room:
                self._kept[c] = pixels
                self._room -= n_bytes
        return self._batch._on_device(pixels, self._parts[c], self._draws[c], self._augment)

    def _read_ahead(self, c: int) -> None:
        wanted = range(c, min(c + 1 + _CHUNKS_AHEAD, len(self._parts)))
        # The second pass leaves chunks out: what was read for them must not pile up.
        for n in [n for n in self._jobs if n not in wanted]:
            for job in self._jobs.pop(n):
                job.cancel()
        for n in wanted:
            if n not in self._jobs and n not in self._kept:
                self._jobs[n] = self._batch._start(self._parts[n])


def run_by_shape(
    function: Callable[[Tensor], list[Tensor]], images: list[Tensor]
) -> list[list[Tensor]]:
    """Apply a network to images of several sizes: equal sizes together, none padded.

    Returns:
        per image, the maps ``(1, c, *space)``.
    """
    groups: dict[torch.Size, list[int]] = {}
    for i, image in enumerate(images):
        groups.setdefault(image.shape, []).append(i)
    found: dict[int, list[Tensor]] = {}
    for members in groups.values():
        maps = function(channels_last(torch.stack([images[i] for i in members])))
        for row, i in enumerate(members):
            found[i] = [m[row : row + 1] for m in maps]
    return [found[i] for i in range(len(images))]


def _grouped(patches: Sequence[Patches], size: int) -> list[list[Patches]]:
    """Cut the patches of all images, in order, into groups of at most `size`; at least one."""
    none = [part[:0] for part in patches]
    groups, room = [list(none)], size
    for i, part in enumerate(patches):
        at = 0
        while at < len(part):
            if room == 0:
                groups.append(list(none))
                room = size
            taken = part[at : at + room]
            groups[-1][i] = taken
            at, room = at + len(taken), room - len(taken)
    return groups
