"""A segment of a stack as one autograd operation that computes tile by tile, and again backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

from foveate.memory import trim
from foveate.streaming.base import AbstractSource, Flags, Region
from foveate.streaming.grid import OutputTile, TileGrid
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

    def __init__(self, total: float, on_progress: Callable[[float], None]) -> None:
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
        dtype: dtype of the output map; None for that of the tiles.
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
    dtype: torch.dtype | None = None
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
        shape = (len(self.sources), like.shape[1], *self.grid.graph.steps[self.grid.end].extent)
        dtype, form = self.dtype or like.dtype, _memory_format(like)
        if self.scratch is None:
            return torch.empty(shape, dtype=dtype, device=like.device, memory_format=form)
        self.output_map = DiskMap(self.scratch, shape, dtype, form)
        return self.output_map.map

    def make_input_gradient(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
        """Make zeros for the gradient of the input ``(b, c, *space)``, in memory or on disk."""
        return torch.zeros_like(x) if self.input_map is None else self.input_map.add_gradient().map

    def report_done(self, grid: TileGrid, n: int, passes: int) -> None:
        """Report that n tiles of a grid are done, which take `passes` forward passes each.

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


class TiledSegment(torch.autograd.Function):
    """The output map of a segment, with gradients for its parameters and its input map."""

    @staticmethod
    def forward(
        ctx: Any,
        job: SegmentJob,
        x: Float[Tensor, "b c *space"] | None,
        *parameters: Shaped[Tensor, " ..."],
    ) -> Float[Tensor, "b k *cells"]:
        """Compute the output map ``(b, k, *cells)`` tile by tile.

        Args:
            ctx: context of autograd.
            job: the segment and its images.
            x: input map ``(b, c, *space)``; None where images are read from a source.
            *parameters: parameters that need a gradient, of any shapes.

        Raises:
            AssertionError: the segment has no tiles.
        """
        device = job.sources[0].device.type
        ctx.job, ctx.device = job, device
        # `save_for_backward` lets autograd notice when they are overwritten before `backward`.
        ctx.save_for_backward(x, *parameters)
        ctx.autocast = (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        out: Tensor | None = None
        begin, end = job.grid.begin, job.grid.end
        constants = job.grid.graph.constants(begin, end)
        for i, source in enumerate(job.sources):
            for tile, map_ in _run_tiles(job, source, job.draws[i], constants):
                if out is None:
                    out = job.make_output(map_)
                crop_region(out[i : i + 1], tile.output_region).copy_(map_)
                job.release_pages()
        assert out is not None  # a segment has tiles
        # Weights cast here have no gradient; PyTorch 2.8 would reuse them in `backward`.
        torch.clear_autocast_cache()
        job.trim_memory()
        return out

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: Float[Tensor, "b k *cells"]
    ) -> tuple[Shaped[Tensor, " ..."] | None, ...]:
        """Compute the gradients of the inputs of `forward`, computing each tile again.

        Args:
            ctx: context of autograd.
            gradient: gradient of the output map, ``(b, k, *cells)``.
        """
        job: SegmentJob = ctx.job
        needs_input = ctx.needs_input_grad[1]
        x, *parameters = ctx.saved_tensors
        enabled, dtype = ctx.autocast
        graph, begin, end = job.grid.graph, job.grid.begin, job.grid.end
        with torch.enable_grad(), torch.autocast(ctx.device, dtype, enabled=enabled):
            constants = graph.constants(begin, end)
        leaves = {
            n: c.detach().requires_grad_() for n, c in constants.items() if _needs_gradient(c)
        }
        trained = [
            p for p, needed in zip(parameters, ctx.needs_input_grad[2:], strict=True) if needed
        ]
        sums = _GradientSums([*trained, *leaves.values()])
        input_gradient = job.make_input_gradient(x) if needs_input else None
        try:
            for i in range(len(job.sources)):
                blank = job.grid.blank(job.sources[i])
                tiles = _tiles_with_gradient(job, blank, gradient[i : i + 1])
                crops = _read_crops(job.sources[i], [t for t, _ in tiles], blank)
                job.report_done(job.grid, len(job.grid) - len(tiles), passes=3)
                for (tile, part), crop in zip(tiles, crops, strict=True):
                    crop = crop.detach().requires_grad_(needs_input)
                    with torch.enable_grad(), torch.autocast(ctx.device, dtype, enabled=enabled):
                        spans = job.grid.spans(tile)
                        out = graph.run(begin, end, crop, spans, job.draws[i], constants | leaves)
                    if not out.requires_grad:  # all that the segment uses is frozen
                        return (None,) * len(ctx.needs_input_grad)
                    gradients = torch.autograd.grad(
                        out,
                        [*([crop] if needs_input else []), *trained, *leaves.values()],
                        part.to(out.dtype),
                        allow_unused=True,
                    )
                    if input_gradient is not None and gradients[0] is not None:
                        region = crop_region(input_gradient[i : i + 1], tile.input_region)
                        region.add_(gradients[0])
                    sums.add(gradients[needs_input:])
                    job.count_tile("backward")
                    job.report_done(job.grid, 1, passes=3)
                    job.release_pages()
        finally:
            if job.output_map is not None:
                job.output_map.gradient = None
        job.trim_memory()
        sums.pass_to_parameters([constants[n] for n in leaves])
        results = iter(sums.results())
        needed = ctx.needs_input_grad[2:]
        return (None, input_gradient, *(next(results) if n else None for n in needed))


def _run_tiles(
    job: SegmentJob,
    source: AbstractSource,
    draws: Mapping[int, Shaped[Tensor, " ..."]],
    constants: Mapping[int, Any],
) -> Iterator[tuple[OutputTile, Shaped[Tensor, "1 k *_size"]]]:
    """Compute the maps ``(1, k, *cells)`` of all tiles of an image.

    Equal tiles of background are computed once.
    """
    grid = job.forward_grid
    begin, end, graph = grid.begin, grid.end, grid.graph
    tiles, blank = list(grid), grid.blank(source)
    first = _first_equal_tiles(grid, blank)
    background_maps: dict[Region, Tensor] = {}
    computed = [t for t in tiles if first.get(t.output_region, t.output_region) == t.output_region]
    crops = _read_crops(source, computed, blank)
    for tile in tiles:
        key = first.get(tile.output_region)
        job.report_done(grid, 1, passes=1)
        if key is not None and key in background_maps:
            yield tile, background_maps[key]
            continue
        map_ = graph.run(begin, end, next(crops), grid.spans(tile), draws, constants)
        job.count_tile("forward")
        if key is not None:
            background_maps[key] = map_
        yield tile, map_


def _tiles_with_gradient(
    job: SegmentJob, blank: Flags, gradient: Float[Tensor, "1 k *cells"]
) -> list[tuple[OutputTile, Float[Tensor, "1 k *_size"]]]:
    """List the tiles whose gradient is not all zero; equal tiles of background are merged.

    Args:
        job: the segment.
        blank: which tiles contain background only, ``(tiles of the first axis, …)``.
        gradient: gradient of the output map of one image, ``(1, k, *cells)``.

    Returns:
        Each tile and its part of the gradient, ``(1, k, *size)``: of equal tiles their sum.
    """
    first = _first_equal_tiles(job.grid, blank)
    parts: dict[Region, tuple[OutputTile, Tensor]] = {}
    for tile in job.grid:
        job.release_pages()
        part = crop_region(gradient, tile.output_region)
        job.prefetch_gradient(part)
        if not part.any():
            continue
        key = first.get(tile.output_region, tile.output_region)
        if key in parts:
            part = parts[key][1] + part
        parts[key] = (parts[key][0] if key in parts else tile, part)
    return list(parts.values())


def _first_equal_tiles(grid: TileGrid, blank: Flags) -> dict[Region, Region]:
    """Return, for each tile of background, the first tile with the same map.

    Both are identified by their output regions.
    """
    first: dict[Any, Region] = {}
    tiles = (tile for tile in grid if blank[tile.index])
    return {t.output_region: first.setdefault(grid.key(t), t.output_region) for t in tiles}


def _read_crops(
    source: AbstractSource, tiles: Sequence[OutputTile], blank: Flags
) -> Iterator[Shaped[Tensor, "1 c *_size"]]:
    """Return the inputs ``(1, c, *size)`` of tiles in order; background is filled in, not read."""
    read = source.crops([tile.input_region for tile in tiles if not blank[tile.index]])
    for tile in tiles:
        if not blank[tile.index]:
            yield next(read)
            continue
        value = source.background().view(1, -1, *(1,) * len(tile.input_region))
        yield value.expand(1, -1, *(high - low for low, high in tile.input_region)).contiguous()


class _GradientSums:
    """Sums of gradients over tiles, in single precision where parameters are in half precision.

    Args:
        parameters: the parameters, then the constants that are computed from them.
    """

    def __init__(self, parameters: Sequence[Shaped[Tensor, " ..."]]) -> None:
        self.parameters = list(parameters)
        self._sums: list[Tensor | None] = [None] * len(parameters)

    def add(self, gradients: Sequence[Shaped[Tensor, " ..."] | None]) -> None:
        """Add the gradients of one tile: for each parameter a tensor of its shape, or None."""
        for k, new in enumerate(gradients):
            if new is None:
                continue
            old = self._sums[k]
            wide = torch.promote_types(new.dtype, torch.float32)
            self._sums[k] = new.to(wide) if old is None else old.add_(new)

    def pass_to_parameters(self, constants: Sequence[Shaped[Tensor, " ..."]]) -> None:
        """Back-propagate the sums of the constants to the parameters they are computed from.

        Args:
            constants: the constants with their graphs, of any shapes, in the order of the last
                sums.
        """
        first = len(self.parameters) - len(constants)
        sums = [(c, s) for c, s in zip(constants, self._sums[first:], strict=True) if s is not None]
        del self.parameters[first:], self._sums[first:]
        if sums and self.parameters:
            outputs, gradients = zip(*((c, s.to(c.dtype)) for c, s in sums), strict=True)
            self.add(torch.autograd.grad(outputs, self.parameters, gradients, allow_unused=True))

    def results(self) -> list[Shaped[Tensor, " ..."]]:
        """Return the sums in the dtypes of the parameters; zeros where nothing was added."""
        return [
            torch.zeros_like(p) if total is None else total.to(p.dtype)
            for total, p in zip(self._sums, self.parameters, strict=True)
        ]


def _needs_gradient(constant: object) -> bool:
    return isinstance(constant, Tensor) and constant.requires_grad


def _memory_format(x: Shaped[Tensor, "b c *space"]) -> torch.memory_format:
    """Return channels-last where it is the only memory format of ``x (b, c, *space)``."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim)
    if last is None or x.is_contiguous() or not x.is_contiguous(memory_format=last):
        return torch.contiguous_format
    return last
