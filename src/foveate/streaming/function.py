"""One autograd operation: a segment of a stack, tile by tile, computed again for the gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from foveate.memory import trim
from foveate.streaming.base import AbstractSource, Flags, Region
from foveate.streaming.cut import cut
from foveate.streaming.grid import Grid, Tile
from foveate.streaming.scratch import Stored

_LARGE = 128 << 20
"""Bytes of a tile: smaller ones are not worth giving memory back for."""
_TRIM_EVERY = 32
"""Tiles."""


class Meter:
    """How much of a step is done, by operations; what is computed at once does not count.

    Args:
        total: operations.
        tell: is told the share that is done.
    """

    def __init__(self, total: float, tell: Callable[[float], None]) -> None:
        self._total, self._tell, self._done = total, tell, 0.0

    def add(self, work: float) -> None:
        """These are done, or need not be."""
        self._done += work
        self._tell(min(self._done / self._total, 1.0))


class MapSource(AbstractSource):
    """The map of one image, in memory or on disk."""

    def __init__(self, x: Tensor, stored: Stored | None = None) -> None:
        self.x, self.stored = x, stored
        self.shape, self.device, self.dtype = tuple(x.shape[1:]), x.device, x.dtype

    def crops(self, regions: Sequence[Region]) -> Iterator[Tensor]:
        """Views of the map."""
        for region in regions:
            found = cut(self.x, region)
            if self.stored is not None:
                self.stored.expect(found)
            yield found


@dataclass
class Job:
    """A segment on the images of a batch.

    Attributes:
        grid: its tiles, for the gradient.
        passing: its tiles, for the map.
        sources: one per image.
        draws: of each image, from `Graph.draws`.
        dtype: of the map that is returned; None for that of the tiles.
        below: where its input lies on disk.
        scratch: the folder to lay its map in; None holds it in memory.
        made: where its map lies on disk.
        meter: is told what is done.
        counts: tiles computed forward and backward, for tests and logs.
    """

    grid: Grid
    passing: Grid
    sources: Sequence[AbstractSource]
    draws: Sequence[Mapping[int, Tensor]]
    dtype: torch.dtype | None = None
    below: Stored | None = None
    scratch: Path | None = None
    made: Stored | None = None
    meter: Meter | None = None
    counts: dict[str, int] = field(default_factory=lambda: {"forward": 0, "backward": 0})

    def empty(self, like: Tensor) -> Tensor:
        """The map to fill, laid out as a tile's; on disk where it is to lie there."""
        shape = (len(self.sources), like.shape[1], *self.grid.graph.steps[self.grid.end].extent)
        dtype, form = self.dtype or like.dtype, _form(like)
        if self.scratch is None:
            return torch.empty(shape, dtype=dtype, device=like.device, memory_format=form)
        self.made = Stored(self.scratch, shape, dtype, form)
        return self.made.map

    def empty_gradient(self, x: Tensor) -> Tensor:
        """Zeros for the gradient of the input, beside it."""
        return torch.zeros_like(x) if self.below is None else self.below.add_gradient().map

    def done(self, grid: Grid, n: int, passes: int) -> None:
        """So many tiles, each worth so many forward passes."""
        if self.meter is not None:
            self.meter.add(passes * grid.work * n / len(grid))

    def expect(self, gradient: Tensor) -> None:
        """This part of the output's gradient is taken next."""
        if self.made is not None and self.made.gradient is not None:
            self.made.gradient.expect(gradient)

    def computed(self, way: Literal["forward", "backward"]) -> None:
        """One more tile: what the allocator keeps of tiles grows with them."""
        self.counts[way] += 1
        if self.counts[way] % _TRIM_EVERY == 0:
            self.trim()

    def trim(self) -> None:
        """The next tiles are of other sizes: what is kept for these would stand beside them."""
        if self.grid.held_bytes > _LARGE and self.sources[0].device.type == "cpu":
            trim()

    def let_go(self) -> None:
        """Keep no page of what lies on disk in memory."""
        for stored in (self.below, self.made):
            if stored is not None:
                stored.let_go()


class Tiled(torch.autograd.Function):
    """Map of a batch from its sources; gradients for parameters, and for the input map if asked."""

    @staticmethod
    def forward(ctx: Any, job: Job, x: Tensor | None, *parameters: Tensor) -> Tensor:
        """Compute the map ``(b, c, *space)`` tile by tile."""
        device = job.sources[0].device.type
        ctx.job, ctx.device = job, device
        # Saved, not merely kept: autograd then sees when they are overwritten before `backward`.
        ctx.save_for_backward(x, *parameters)
        ctx.autocast = (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        out: Tensor | None = None
        begin, end = job.grid.begin, job.grid.end
        constants = job.grid.graph.constants(begin, end)
        for i, source in enumerate(job.sources):
            for tile, map_ in _forward(job, source, job.draws[i], constants):
                if out is None:
                    out = job.empty(map_)
                cut(out[i : i + 1], tile.own).copy_(map_)
                job.let_go()
        if out is None:
            raise AssertionError("a segment without tiles")
        # Weights cast here have no gradient; PyTorch 2.8 would hand them to `backward` as well.
        torch.clear_autocast_cache()
        job.trim()
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of the inputs of `forward`, computing each tile again."""
        job: Job = ctx.job
        wants_input = ctx.needs_input_grad[1]
        x, *parameters = ctx.saved_tensors
        enabled, dtype = ctx.autocast
        graph, begin, end = job.grid.graph, job.grid.begin, job.grid.end
        with torch.enable_grad(), torch.autocast(ctx.device, dtype, enabled=enabled):
            constants = graph.constants(begin, end)
        leaves = {n: c.detach().requires_grad_() for n, c in constants.items() if _learns(c)}
        learnt = [
            p for p, needed in zip(parameters, ctx.needs_input_grad[2:], strict=True) if needed
        ]
        totals = _Totals([*learnt, *leaves.values()])
        toward = job.empty_gradient(x) if wants_input else None
        try:
            for i in range(len(job.sources)):
                blank = job.grid.blank(job.sources[i])
                tiles = _with_gradient(job, blank, gradient[i : i + 1])
                crops = _crops(job.sources[i], [t for t, _ in tiles], blank)
                job.done(job.grid, len(job.grid) - len(tiles), passes=3)
                for (tile, part), crop in zip(tiles, crops, strict=True):
                    crop = crop.detach().requires_grad_(wants_input)
                    with torch.enable_grad(), torch.autocast(ctx.device, dtype, enabled=enabled):
                        spans = job.grid.spans(tile)
                        out = graph.run(begin, end, crop, spans, job.draws[i], constants | leaves)
                    if not out.requires_grad:  # all that the segment uses is frozen
                        return (None,) * len(ctx.needs_input_grad)
                    found = torch.autograd.grad(
                        out,
                        [*([crop] if wants_input else []), *learnt, *leaves.values()],
                        part.to(out.dtype),
                        allow_unused=True,
                    )
                    if toward is not None and found[0] is not None:
                        cut(toward[i : i + 1], tile.region).add_(found[0])
                    totals.add(found[wants_input:])
                    job.computed("backward")
                    job.done(job.grid, 1, passes=3)
                    job.let_go()
        finally:
            if job.made is not None:
                job.made.gradient = None
        job.trim()
        totals.pass_on([constants[n] for n in leaves])
        every = iter(totals.found())
        return (None, toward, *(next(every) if n else None for n in ctx.needs_input_grad[2:]))


def _forward(
    job: Job,
    source: AbstractSource,
    draws: Mapping[int, Tensor],
    constants: Mapping[int, Any],
) -> Iterator[tuple[Tile, Tensor]]:
    """The maps of all tiles of an image; equal tiles over background are computed once."""
    grid = job.passing
    begin, end, graph = grid.begin, grid.end, grid.graph
    tiles, blank = list(grid), grid.blank(source)
    first = _first_alike(grid, blank)
    known: dict[Region, Tensor] = {}
    computed = [t for t in tiles if first.get(t.own, t.own) == t.own]
    crops = _crops(source, computed, blank)
    for tile in tiles:
        kept = first.get(tile.own)
        job.done(grid, 1, passes=1)
        if kept is not None and kept in known:
            yield tile, known[kept]
            continue
        map_ = graph.run(begin, end, next(crops), grid.spans(tile), draws, constants)
        job.computed("forward")
        if kept is not None:
            known[kept] = map_
        yield tile, map_


def _with_gradient(job: Job, blank: Flags, gradient: Tensor) -> list[tuple[Tile, Tensor]]:
    """Tiles whose gradient is not all zero; those of equal tiles over background are summed."""
    first = _first_alike(job.grid, blank)
    found: dict[Region, tuple[Tile, Tensor]] = {}
    for tile in job.grid:
        job.let_go()
        part = cut(gradient, tile.own)
        job.expect(part)
        if not part.any():
            continue
        own = first.get(tile.own, tile.own)
        if own in found:
            part = found[own][1] + part
        found[own] = (found[own][0] if own in found else tile, part)
    return list(found.values())


def _first_alike(grid: Grid, blank: Flags) -> dict[Region, Region]:
    """Of each tile over nothing but background, the first one that gives the same map."""
    first: dict[Any, Region] = {}
    alike = (tile for tile in grid if blank[tile.place])
    return {tile.own: first.setdefault(grid.key(tile), tile.own) for tile in alike}


def _crops(source: AbstractSource, tiles: Sequence[Tile], blank: Flags) -> Iterator[Tensor]:
    """What the tiles take, in order; background is made, not read."""
    read = source.crops([tile.region for tile in tiles if not blank[tile.place]])
    for tile in tiles:
        if not blank[tile.place]:
            yield next(read)
            continue
        value = source.background().view(1, -1, *(1,) * len(tile.region))
        yield value.expand(1, -1, *(high - low for low, high in tile.region)).contiguous()


class _Totals:
    """Sums of gradients; of half-precision parameters in single precision."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self._sums: list[Tensor | None] = [None] * len(parameters)

    def add(self, found: Sequence[Tensor | None]) -> None:
        """One tile's."""
        for k, new in enumerate(found):
            if new is None:
                continue
            old = self._sums[k]
            wide = torch.promote_types(new.dtype, torch.float32)
            self._sums[k] = new.to(wide) if old is None else old.add_(new)

    def pass_on(self, made: Sequence[Tensor]) -> None:
        """The sums of the last parameters, which were `made` from the others, to those."""
        first = len(self.parameters) - len(made)
        sums = [(m, s) for m, s in zip(made, self._sums[first:], strict=True) if s is not None]
        del self.parameters[first:], self._sums[first:]
        if sums and self.parameters:
            outputs, gradients = zip(*((m, s.to(m.dtype)) for m, s in sums), strict=True)
            self.add(torch.autograd.grad(outputs, self.parameters, gradients, allow_unused=True))

    def found(self) -> list[Tensor]:
        """In the parameters' own types; zeros where nothing was added, as the plain stack gives."""
        return [
            torch.zeros_like(p) if total is None else total.to(p.dtype)
            for total, p in zip(self._sums, self.parameters, strict=True)
        ]


def _learns(constant: Any) -> bool:
    return isinstance(constant, Tensor) and constant.requires_grad


def _form(x: Tensor) -> torch.memory_format:
    """Channels last where x lies so, and only so."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim)
    if last is None or x.is_contiguous() or not x.is_contiguous(memory_format=last):
        return torch.contiguous_format
    return last
