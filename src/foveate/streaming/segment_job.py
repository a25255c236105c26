"""A segment with its images: where its maps are stored, and how far it is computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from foveate.memory import trim
from foveate.messages.display import OnProgress
from foveate.streaming.base import AbstractSource, Region
from foveate.streaming.grid import TileGrid
from foveate.streaming.scratch import DiskMap
from foveate.streaming.views import crop_region

_LARGE = 128 << 20
"""Bytes of a tile from which it is worth returning memory to the system."""
_TRIM_EVERY = 32
"""Number of tiles after which memory is returned to the system."""


class Meter:
    """A measure of the share of a step that is done, by operations.

    Segments that are computed at once do not count.

    Args:
        total: operations of the step.
        on_progress: function that is called with the share that is done.
    """

    def __init__(self, total: float, on_progress: OnProgress) -> None:
        self._total, self._on_progress, self._done = total, on_progress, 0.0

    def add(self, work: float) -> None:
        """Count operations that are done, or turn out not to be needed, and report the share."""
        self._done += work
        self._on_progress(min(self._done / self._total, 1.0))


class MapSource(AbstractSource):
    """A map of one image, in memory or on disk, as the input of the next segment.

    Args:
        x: the map, ``(1, c, *space)``.
        stored: the file that contains it; None for a map in memory.
    """

    def __init__(self, x: Float[Tensor, "1 c *space"], stored: DiskMap | None = None) -> None:
        self.x, self.stored = x, stored
        self.shape, self.device, self.dtype = tuple(x.shape[1:]), x.device, x.dtype

    def crops(self, regions: Sequence[Region]) -> Iterator[Float[Tensor, "1 c *size"]]:
        """Return views of the map, each ``(1, c, *size)``."""
        for region in regions:
            view = crop_region(self.x, region)
            if self.stored is not None:
                self.stored.prefetch(view)
            yield view


@dataclass
class SegmentJob:
    """A segment that is computed tile by tile on the images of a batch.

    Attributes:
        grid: tiles of the backward pass.
        forward_grid: tiles of the forward pass.
        sources: the images, or their maps from the segment before.
        draws: random numbers of each image, from `Graph.draw`.
        input_map: the input map where it is on disk, else None.
        scratch: folder for the output map; None for an output map in memory.
        output_map: the output map where it is on disk, else None.
        meter: measure of progress; None without.
        counts: number of tiles computed forward and backward, for tests and logs.
    """

    grid: TileGrid
    forward_grid: TileGrid
    sources: Sequence[AbstractSource]
    draws: Sequence[Mapping[int, Shaped[Tensor, " ..."]]]
    input_map: DiskMap | None = None
    scratch: Path | None = None
    output_map: DiskMap | None = None
    meter: Meter | None = None
    counts: dict[str, int] = field(default_factory=lambda: {"forward": 0, "backward": 0})

    def make_output(self, like: Float[Tensor, "1 k *size"]) -> Float[Tensor, "b k *space"]:
        """Make the output map ``(b, c, *space)`` to fill, in memory or on disk.

        Args:
            like: the output of a tile, whose dtype and memory format the map gets.
        """
        shape = (
            len(self.sources),
            like.shape[1],
            *self.grid.graph.steps[self.grid.end].extent_cell,
        )
        dtype, form = like.dtype, _memory_format(like)
        if self.scratch is None:
            return torch.empty(shape, dtype=dtype, device=like.device, memory_format=form)
        self.output_map = DiskMap(self.scratch, shape, dtype, form)
        return self.output_map.map

    def make_input_gradient(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
        """Make zeros for the gradient of the input ``(b, c, *space)``, in memory or on disk."""
        return torch.zeros_like(x) if self.input_map is None else self.input_map.add_gradient().map

    def report_done(self, grid: TileGrid, n: int, passes: int) -> None:
        """Report that tiles are done.

        Args:
            grid: tiles of the segment.
            n: number of tiles that are done.
            passes: forward passes that a tile takes.
        """
        if self.meter is not None:
            self.meter.add(passes * grid.work * n / len(grid))

    def prefetch_gradient(self, gradient: Float[Tensor, "1 k *size"]) -> None:
        """Begin to read a part ``(1, k, *size)`` of the gradient of an output map on disk."""
        if self.output_map is not None and self.output_map.gradient is not None:
            self.output_map.gradient.prefetch(gradient)

    def count_tile(self, way: Literal["forward", "backward"]) -> None:
        """Count a tile, and now and then return the allocator's unused memory to the system."""
        self.counts[way] += 1
        if self.counts[way] % _TRIM_EVERY == 0:
            self.trim_memory()

    def trim_memory(self) -> None:
        """Return unused memory to the system where tiles are large.

        The next tiles have other sizes, so the allocator would hold both.
        """
        if self.grid.training_bytes > _LARGE and self.sources[0].device.type == "cpu":
            trim()

    def release_pages(self) -> None:
        """Release the memory of maps on disk."""
        for stored in (self.input_map, self.output_map):
            if stored is not None:
                stored.release_pages()


def _memory_format(x: Shaped[Tensor, "b c *space"]) -> torch.memory_format:
    """Return channels-last where it is the only memory format of ``x (b, c, *space)``."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim)
    if last is None or x.is_contiguous() or not x.is_contiguous(memory_format=last):
        return torch.contiguous_format
    return last
