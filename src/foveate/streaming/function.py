"""A segment of a stack as one autograd operation that computes tile by tile, and again backward."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

from foveate.streaming.base import AbstractSource, Flags, Region
from foveate.streaming.gradient_sums import GradientSums
from foveate.streaming.grid import OutputTile, TileGrid
from foveate.streaming.segment_job import SegmentJob
from foveate.streaming.views import crop_region


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
        x, *parameters = ctx.saved_tensors
        needs_input, needed = ctx.needs_input_grad[1], ctx.needs_input_grad[2:]
        with _recording(ctx):
            constants = job.grid.graph.constants(job.grid.begin, job.grid.end)
        leaves = {
            n: c.detach().requires_grad_() for n, c in constants.items() if _needs_gradient(c)
        }
        trained = [p for p, need in zip(parameters, needed, strict=True) if need]
        sums = GradientSums([*trained, *leaves.values()])
        input_gradient = job.make_input_gradient(x) if needs_input else None
        try:
            for i in range(len(job.sources)):
                place = slice(i, i + 1)
                image = None if input_gradient is None else input_gradient[place]
                if not _backpropagate_image(
                    ctx, i, gradient[place], image, constants | leaves, sums
                ):
                    return (None,) * len(ctx.needs_input_grad)
        finally:
            if job.output_map is not None:
                job.output_map.gradient = None
        job.trim_memory()
        sums.pass_to_parameters([constants[n] for n in leaves])
        results = iter(sums.results())
        return (None, input_gradient, *(next(results) if n else None for n in needed))


@contextlib.contextmanager
def _recording(ctx: Any) -> Iterator[None]:
    """Record operations for their gradients, with the autocast of the forward pass."""
    enabled, dtype = ctx.autocast
    with torch.enable_grad(), torch.autocast(ctx.device, dtype, enabled=enabled):
        yield


def _backpropagate_image(
    ctx: Any,
    i: int,
    gradient: Float[Tensor, "1 k *cells"],
    input_gradient: Float[Tensor, "1 c *space"] | None,
    constants: Mapping[int, Any],
    sums: GradientSums,
) -> bool:
    """Add the gradients of all tiles of an image to `sums` and `input_gradient`.

    Args:
        ctx: context of autograd.
        i: number of the image.
        gradient: gradient of its output map, ``(1, k, *cells)``.
        input_gradient: gradient of its input map, ``(1, c, *space)``; None where none is needed.
        constants: values that all tiles use.
        sums: sums of the gradients of parameters and constants.

    Returns:
        Whether there are gradients: none if all that the segment uses is frozen.
    """
    job: SegmentJob = ctx.job
    grid, source = job.grid, job.sources[i]
    blank = grid.blank(source)
    tiles = _tiles_with_gradient(job, blank, gradient)
    crops = _read_crops(source, [tile for tile, _ in tiles], blank)
    job.report_done(grid, len(grid) - len(tiles), passes=3)
    for (tile, part), crop in zip(tiles, crops, strict=True):
        crop = crop.detach().requires_grad_(input_gradient is not None)
        with _recording(ctx):
            spans = grid.spans(tile)
            out = grid.graph.run(grid.begin, grid.end, crop, spans, job.draws[i], constants)
        if not out.requires_grad:
            return False
        wanted = [*([] if input_gradient is None else [crop]), *sums.parameters]
        gradients = torch.autograd.grad(out, wanted, part.to(out.dtype), allow_unused=True)
        if input_gradient is not None and gradients[0] is not None:
            crop_region(input_gradient, tile.input_region).add_(gradients[0])
        sums.add(gradients[len(gradients) - len(sums.parameters) :])
        job.count_tile("backward")
        job.report_done(grid, 1, passes=3)
        job.release_pages()
    return True


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


def _needs_gradient(constant: Any) -> bool:
    return isinstance(constant, Tensor) and constant.requires_grad
