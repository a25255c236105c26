"""Exact streaming: a stack of local layers on images of any size, in bounded memory.

A convolutional network looks, for one output cell, at a neighbourhood of the image. So its map can
be computed in parts, each from the part of the image that it depends on, and so can the gradient:
each part is computed again, back-propagated, and the sum over the parts is the gradient.

Which part of every layer a part of the output needs follows from the layers themselves, by interval
arithmetic backwards through the traced stack. Each layer then computes exactly that part, with
padding where the true border is and nowhere else. So outputs and gradients are those of the plain
stack up to rounding, for any size, stride, padding, branch or dimension.

Source: Pinckaers, van Ginneken & Litjens, "Streaming convolutional neural networks for end-to-end
learning with multi-megapixel images", TPAMI 2020. Differs: they run whole layers on overlapping
tiles and measure, with a pass of ones, which values to discard; here nothing is measured, nothing
is discarded, and batches, three dimensions, odd sizes and branches need no extra bookkeeping.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from foveate.errors import OptionError
from foveate.streaming.base import AbstractSource, NotLocal, Region, TooLittleMemory
from foveate.streaming.build import build
from foveate.streaming.cut import cut
from foveate.streaming.function import Job, MapSource, Meter, Tiled
from foveate.streaming.graph import Graph
from foveate.streaming.grid import Grid
from foveate.streaming.plan import MOST_STORED, Plan, check_rank, choose, for_tissue
from foveate.streaming.scratch import Stored
from foveate.streaming.spans import axis_spans
from foveate.streaming.trace import Traced, trace

__all__ = [
    "AbstractSource",
    "Field",
    "NotLocal",
    "Plan",
    "Region",
    "Streamed",
    "TooLittleMemory",
]

_MOST_SIZES = 256
"""Of images whose plans are kept: cohorts of volumes have a size each, and plan longer than they
compute."""


class Field(NamedTuple):
    """What one output cell sees along one axis; after up-sampling, the most that any cell sees.

    Attributes:
        stride: input cells from one output cell to the next.
        size: of the receptive field, in input cells.
        left: input cells it reaches before its own first one, ``cell * stride``.
        right: input cells it reaches after its own last one.
    """

    stride: Fraction
    size: int
    left: int
    right: int


class Streamed(nn.Module):
    """A stack of local layers, with its outputs and gradients, in bounded memory.

    Parameters get their gradients through autograd: any loop, optimiser, accumulation over steps,
    DDP and autocast work. Dropout and stochastic depth draw for each image at the beginning of a
    step, and dropout by the place of each element: the same elements are dropped in any tiles.

    Args:
        stack: from ``(b, c, *space)`` to one map ``(b, k, *cells)``. Convolutions, pooling, layers
            that look at one cell, frozen batch norm, layer norm over channels, branches,
            concatenations and up-sampling are local; others are refused by name.
        tile: side of the part of the image that a tile answers for, in input cells, per axis or
            one for all; None for the cheapest way that fits `budget_bytes`.
        budget_bytes: what a training step may hold beside the parameters and the final map.
        scratch: folder on disk for maps between two rounds of tiles that are too large for memory;
            None lays none there. They vanish with the step. Without a GPU only.
        map_dtype: of the final map, where it should take less room than the tiles' own.

    Attributes:
        progress: set it to be told, after every tile, the share of the step that is done.
        counts: tiles computed forward and backward since the last call.

    Raises:
        NotLocal: when first used: a layer looks at more than a neighbourhood.
        TooLittleMemory: not even the smallest tile fits.
    """

    def __init__(
        self,
        stack: nn.Module,
        *,
        tile: int | Sequence[int] | None = None,
        budget_bytes: int = 2 << 30,
        scratch: Path | None = None,
        map_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if tile is not None and min([tile] if isinstance(tile, int) else tile) < 1:
            raise OptionError(f"tile: got {tile}, expected at least 1")
        if scratch is not None and not scratch.is_dir():
            raise OptionError(f"scratch: {scratch} is no folder")
        self.stack, self.tile = stack, tile
        self.budget_bytes, self.scratch, self.map_dtype = budget_bytes, scratch, map_dtype
        self.progress: Callable[[float], None] | None = None
        self.counts: dict[str, int] = {}
        self._traced: dict[tuple[Any, ...], Traced] = {}
        self._graphs: dict[tuple[Any, ...], Graph] = {}
        self._plans: dict[tuple[Any, ...], Plan] = {}

    def forward(self, x: Tensor | AbstractSource) -> Tensor:
        """The map of images in memory ``(b, c, *space)``, or of one that is read as it is needed.

        Returns:
            ``(b, k, *cells)``.
        """
        held: Tensor | None = None
        below: Stored | None = None
        if isinstance(x, Tensor):
            check_rank(x.shape[2:])
            held, sources = x, _rows(x)
        else:
            sources = [x]
        graph = self._graph(sources[0])
        plan = self.plan_for(sources[0], len(sources))
        self.counts = {"forward": 0, "backward": 0}
        draws = [graph.draws(torch.empty(0, device=each.device)) for each in sources]
        meter = self._meter(plan, len(sources))
        for segment in plan.segments:
            dtype = self.map_dtype if segment is plan.segments[-1] else None
            if segment.at_once and len(sources) * plan.held_bytes <= self.budget_bytes:
                held = torch.cat(
                    [
                        self._at_once(graph, segment.grid, each, drawn)
                        for each, drawn in zip(sources, draws, strict=True)
                    ]
                )
                held = held if dtype is None else held.to(dtype)
                below = None
            else:
                job = Job(
                    segment.grid,
                    segment.passing,
                    sources,
                    draws,
                    dtype=dtype,
                    below=below,
                    scratch=self.scratch if segment.on_disk else None,
                    meter=meter,
                    counts=self.counts,
                )
                held = Tiled.apply(job, held, *self._learnt())
                below = job.made
            sources = _rows(held, below)
        if held is None:
            raise AssertionError("a plan without segments")
        return held

    def plan_for(self, source: AbstractSource, n_images: int = 1) -> Plan:
        """How this image is computed: `plan`, with smaller tiles where they leave out background.

        Args:
            source: the image.
            n_images: of its shape, whose maps are stored together.

        Raises:
            NotLocal, TooLittleMemory: see the class.
        """
        plan = self.plan(source.shape, source, n_images)
        if not source.has_blank or self.tile is not None:
            return plan
        graph, plans = self._graph(source), [plan]
        # A stored map is gone through whole, background and all: one round of tiles may be better.
        with suppress(TooLittleMemory):
            plans.append(self._plan(graph, n_images, scratch=None, most_stored=0))
        return min((for_tissue(graph, p, source) for p in plans), key=lambda p: p.work)

    def check(self, n_axes: int = 2, channels: int = 3) -> None:
        """Raise `NotLocal` where a layer cannot be streamed; before any image is seen."""
        device, dtype = self._kind(None)
        build(
            self._trace(), (channels, *(512,) * n_axes), torch.empty(0, device=device, dtype=dtype)
        )

    def plan(
        self,
        shape: Sequence[int],
        like: AbstractSource | Tensor | None = None,
        n_images: int = 1,
    ) -> Plan:
        """How images of a shape are computed: tiles, arithmetic, memory.

        Args:
            shape: ``(c, *space)``.
            like: of the device and type of the images; by default those of the parameters.
            n_images: whose maps are stored together.

        Raises:
            NotLocal, TooLittleMemory: see the class.
        """
        check_rank(shape[1:])
        device, dtype = self._kind(like)
        graph = self._graph_of(tuple(shape), device, dtype)
        scratch = self.scratch if device.type == "cpu" else None
        return self._plan(graph, n_images, scratch, MOST_STORED)

    def field(self, n_axes: int = 2, channels: int = 3) -> tuple[Field, ...]:
        """Stride and receptive field per axis, from the layers alone."""
        extent = 1 << 14
        device, dtype = self._kind(None)
        traced = self._trace()
        # One axis at a time may be long: a stand-in has no memory, but its size must be countable.
        graph = build(
            traced, (channels, *(extent,) * n_axes), torch.empty(0, device=device, dtype=dtype)
        )
        last = len(graph.steps) - 1
        found = []
        for axis in range(n_axes):
            n = graph.steps[last].extent[axis]
            cells = range(n // 2, n // 2 + min(64, n // 4))
            far = n // 4
            ends = np.asarray([*cells, cells[-1] + 1, n // 2 + far, n // 2 + far + 1])
            low, high = axis_spans(graph, last, axis, ends[:-1], ends[1:])
            # Far from borders, cells far apart look at equal neighbourhoods.
            stride = Fraction(int(low[0, -1] - low[0, 0]), far).limit_denominator(64)
            each = list(zip(cells, low[0].tolist(), high[0].tolist(), strict=False))
            found.append(
                Field(
                    stride,
                    max(end - begin for _, begin, end in each),
                    max(math.floor(cell * stride) - begin for cell, begin, _ in each),
                    max(end - math.ceil((cell + 1) * stride) for cell, _, end in each),
                )
            )
        return tuple(found)

    def reached(self) -> list[nn.Parameter]:
        """The parameters of the stack that its map depends on."""
        traced = self._trace()
        found: set[int] = set()
        for node in traced.graph.nodes:
            if node.op == "call_module":
                found |= {id(p) for p in traced.layer(node).parameters()}
            if node.op == "get_attr":
                owner, _, name = str(node.target).rpartition(".")
                found.add(id(getattr(traced.stack.get_submodule(owner), name)))
        return [p for p in self.stack.parameters() if id(p) in found]

    # -- inside -------------------------------------------------------------------------------

    def _at_once(
        self, graph: Graph, grid: Grid, source: AbstractSource, draws: Mapping[int, Tensor]
    ) -> Tensor:
        (tile,) = grid
        if isinstance(source, MapSource):
            crop = cut(source.x, tile.region)
        else:
            (crop,) = source.crops([tile.region])
        self.counts["forward"] += 1
        constants = graph.constants(grid.begin, grid.end)
        return graph.run(grid.begin, grid.end, crop, grid.spans(tile), draws, constants)

    def _plan(self, graph: Graph, n_images: int, scratch: Path | None, most_stored: int) -> Plan:
        learns = torch.is_grad_enabled()
        key = (id(graph), learns, self.budget_bytes, n_images, scratch, most_stored, str(self.tile))
        if key not in self._plans:
            room = 0 if scratch is None else shutil.disk_usage(scratch).free // 2
            self._plans[key] = choose(
                graph,
                budget_bytes=self.budget_bytes,
                scratch_bytes=room // n_images,
                learns=learns,
                sides=self._sides(graph.steps[0].extent),
                most_stored=most_stored,
            )
        return self._plans[key]

    def _meter(self, plan: Plan, n_images: int) -> Meter | None:
        tiled = [s.work(plan.learns) for s in plan.segments if not s.at_once]
        if self.progress is None or not tiled:
            return None
        return Meter(n_images * sum(tiled), self.progress)

    def _learnt(self) -> list[nn.Parameter]:
        return [p for p in self.reached() if p.requires_grad]

    def _sides(self, space: Sequence[int]) -> tuple[int, ...] | None:
        if self.tile is None:
            return None
        tile = (self.tile,) * len(space) if isinstance(self.tile, int) else tuple(self.tile)
        if len(tile) != len(space):
            raise OptionError(f"tile: got {tile}, expected one side or {len(space)}")
        return tuple(-(-n // t) for n, t in zip(space, tile, strict=True))

    def _kind(self, like: AbstractSource | Tensor | None) -> tuple[torch.device, torch.dtype]:
        if like is None:
            like = next(self.stack.parameters(), torch.empty(0))
        return torch.device(like.device), like.dtype

    def _graph(self, source: AbstractSource) -> Graph:
        return self._graph_of(source.shape, *self._kind(source))

    def _graph_of(self, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Graph:
        traced = self._trace()
        cast = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
        key = (id(traced), shape, device, dtype, cast)
        if key not in self._graphs:
            if len(self._graphs) > _MOST_SIZES:
                self._graphs.clear()
                self._plans.clear()
            like = torch.empty(0, device=device, dtype=dtype)
            self._graphs[key] = build(traced, shape, like)
        return self._graphs[key]

    def _trace(self) -> Traced:
        """Once per mode, layers and device: between two steps, layers may be frozen or replaced."""
        modes = tuple((id(m), m.training) for m in self.stack.modules())
        key = (self._kind(None)[0], modes)
        if key not in self._traced:
            self._traced[key] = trace(self.stack)
        return self._traced[key]

    def __getstate__(self) -> dict[str, Any]:
        """What was traced belongs to these very layers, and a step's progress to who called it."""
        return {**self.__dict__, "_traced": {}, "_graphs": {}, "_plans": {}, "progress": None}


def _rows(x: Tensor, stored: Stored | None = None) -> list[AbstractSource]:
    return [MapSource(x[i : i + 1], stored) for i in range(len(x))]
