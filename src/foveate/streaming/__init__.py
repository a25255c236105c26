"""Exact streaming: a stack of local layers on images of any size, in bounded memory.

An output cell of a convolutional network depends on a neighbourhood of the image, its receptive
field. So the output map can be computed in tiles, each from a part of the image. So can the
gradient: each tile is computed again and back-propagated, and the tiles' gradients are summed.

Which part of every layer's map a tile needs follows from the layers themselves, by interval
arithmetic backwards through the traced stack. Each layer then computes exactly that part, with
padding at the true border of the image and nowhere else. So outputs and gradients are those of the
plain stack up to rounding, for any size, stride, padding, branch or number of dimensions.

Source: Pinckaers, van Ginneken & Litjens, "Streaming convolutional neural networks for end-to-end
learning with multi-megapixel images", TPAMI 2020. Differs: they run whole layers on overlapping
tiles and measure, with a pass of ones, which values to discard. Here nothing is measured and
nothing discarded, and batches, three dimensions, odd sizes and branches are no special cases.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from foveate.errors import OptionError
from foveate.messages.display import OnProgress
from foveate.streaming.base import AbstractSource, NotLocal, Region, TooLittleMemory
from foveate.streaming.build import build_graph
from foveate.streaming.function import TiledSegment
from foveate.streaming.graph import Graph
from foveate.streaming.grid import TileGrid
from foveate.streaming.plan import (
    MAX_STORED,
    StreamingPlan,
    choose_streaming_plan,
    refine_for_background,
)
from foveate.streaming.scratch import DiskMap
from foveate.streaming.segment_job import MapSource, Meter, SegmentJob
from foveate.streaming.trace import TracedStack, trace
from foveate.streaming.views import crop_region

__all__ = [
    "AbstractSource",
    "NotLocal",
    "Region",
    "Streamed",
    "StreamingPlan",
    "TooLittleMemory",
]

_MAX_SIZES = 256
"""Image sizes whose plans are cached: volumes may all differ in size, and planning takes longer
than computing."""


class Streamed(nn.Module):
    """A stack of local layers whose outputs and gradients are computed in bounded memory.

    Parameters get their gradients through autograd: any loop, optimiser, accumulation over steps,
    DDP and autocast work. Dropout and stochastic depth draw once for each image and step, dropout
    by the position of each element: the same elements are dropped whatever the tiles are.

    Args:
        stack: module from images ``(b, c, *space)`` to one map ``(b, k, *cells)``. Convolutions,
            pooling, layers of single cells, frozen batch norm, layer norm over channels, branches,
            concatenations and up-sampling are local; other layers are refused by name.
        tile: side of a tile in input cells without its halo, per axis or one for all axes. None
            takes the cheapest plan that fits into `budget_bytes`.
        budget_bytes: memory of a training step beside the parameters and the final map.
        scratch: folder on disk for intermediate maps that are too large for memory; they are
            deleted with the step. None stores no map on disk. Used without a GPU only.

    Attributes:
        on_progress: function that is called after every tile with the share of the step that is
            done, from 0 to 1; None by default.
        counts: number of tiles computed ``forward`` and ``backward`` in the last step.

    Raises:
        NotLocal: on first use: a layer depends on more than a neighbourhood.
        TooLittleMemory: not even the smallest tile fits.
    """

    def __init__(
        self,
        stack: nn.Module,
        *,
        tile: int | Sequence[int] | None = None,
        budget_bytes: int = 2 << 30,
        scratch: Path | None = None,
    ) -> None:
        super().__init__()
        if tile is not None and min([tile] if isinstance(tile, int) else tile) < 1:
            raise OptionError(f"tile: got {tile}, expected at least 1")
        if scratch is not None and not scratch.is_dir():
            raise OptionError(f"scratch: {scratch} is no folder; make it first")
        self.stack, self.tile, self.budget_bytes, self.scratch = stack, tile, budget_bytes, scratch
        self.on_progress: OnProgress | None = None
        self.counts: dict[str, int] = {}
        self._traced: dict[tuple[Any, ...], TracedStack] = {}
        self._graphs: dict[tuple[Any, ...], Graph] = {}
        self._plans: dict[tuple[Any, ...], StreamingPlan] = {}

    def forward(
        self, x: Float[Tensor, "b c *space"] | AbstractSource
    ) -> Float[Tensor, "b k *cells"]:
        """Compute the map ``(b, k, *cells)`` of images.

        Args:
            x: images in memory, ``(b, c, *space)``, or one image that is read as it is needed.

        Raises:
            NotLocal, TooLittleMemory: see the class.
        """
        disk_map: DiskMap | None = None
        map_, sources = (x, _split_images(x)) if isinstance(x, Tensor) else (None, [x])
        graph = self._graph(sources[0])
        plan = self.plan_for(sources[0], len(sources))
        self.counts = {"forward": 0, "backward": 0}
        draws = [graph.draw(torch.empty(0, device=source.device)) for source in sources]
        meter = self._meter(plan, len(sources))
        for segment in plan.segments:
            if segment.at_once and len(sources) * plan.peak_bytes <= self.budget_bytes:
                map_ = torch.cat(
                    [
                        self._run_at_once(graph, segment.grid, source, drawn)
                        for source, drawn in zip(sources, draws, strict=True)
                    ]
                )
                disk_map = None
            else:
                job = SegmentJob(
                    segment.grid,
                    segment.forward_grid,
                    sources,
                    draws,
                    input_map=disk_map,
                    scratch=self.scratch if segment.on_disk else None,
                    meter=meter,
                    counts=self.counts,
                )
                map_ = TiledSegment.apply(job, map_, *self._trainable_parameters())
                disk_map = job.output_map
            sources = _split_images(map_, disk_map)
        assert map_ is not None  # a plan has segments
        return map_

    def plan_for(self, source: AbstractSource, n_images: int = 1) -> StreamingPlan:
        """Plan how an image is computed: like `plan`, with tiles that leave out its background.

        Args:
            source: the image.
            n_images: number of images of its shape whose maps are stored together.

        Raises:
            NotLocal, TooLittleMemory: see the class.
        """
        plan = self.plan(source.shape, source, n_images)
        if not source.has_blank or self.tile is not None:
            return plan
        graph, plans = self._graph(source), [plan]
        # Segments after a stored map compute its background too: one segment may be cheaper.
        with suppress(TooLittleMemory):
            plans.append(self._plan(graph, n_images, scratch=None, max_stored=0))
        return min((refine_for_background(graph, p, source) for p in plans), key=lambda p: p.work)

    def check(self, n_axes: int = 2, channels: int = 3) -> None:
        """Check, without an image, that all layers can be streamed.

        Args:
            n_axes: number of spatial axes of the images.
            channels: number of channels of the images.

        Raises:
            NotLocal: a layer depends on more than a neighbourhood.
        """
        device, dtype = self._device_and_dtype(None)
        build_graph(
            self._trace(), (channels, *(512,) * n_axes), torch.empty(0, device=device, dtype=dtype)
        )

    def plan(
        self,
        shape: Sequence[int],
        like: AbstractSource | Shaped[Tensor, " ..."] | None = None,
        n_images: int = 1,
    ) -> StreamingPlan:
        """Plan how images of a shape are computed: their tiles, operations and memory.

        Args:
            shape: shape of an image, ``(c, *space)``.
            like: an image or tensor of the same device and dtype; by default those of the
                parameters count.
            n_images: number of images whose maps are stored together.

        Raises:
            NotLocal, TooLittleMemory: see the class.
        """
        device, dtype = self._device_and_dtype(like)
        graph = self._graph_of(tuple(shape), device, dtype)
        scratch = self.scratch if device.type == "cpu" else None
        return self._plan(graph, n_images, scratch, MAX_STORED)

    def used_parameters(self) -> list[nn.Parameter]:
        """List the parameters of the stack that its map depends on."""
        traced = self._trace()
        used: set[int] = set()
        for node in traced.graph.nodes:
            if node.op == "call_module":
                used |= {id(p) for p in traced.layer(node).parameters()}
            if node.op == "get_attr":
                owner, _, name = str(node.target).rpartition(".")
                used.add(id(getattr(traced.stack.get_submodule(owner), name)))
        return [p for p in self.stack.parameters() if id(p) in used]

    # -- inside -------------------------------------------------------------------------------

    def _run_at_once(
        self,
        graph: Graph,
        grid: TileGrid,
        source: AbstractSource,
        draws: Mapping[int, Shaped[Tensor, " ..."]],
    ) -> Shaped[Tensor, "1 k *cells"]:
        """Compute the map ``(1, k, *cells)`` of one image in one tile, whose activations stay."""
        (tile,) = grid
        if isinstance(source, MapSource):
            crop = crop_region(source.x, tile.input_region)
        else:
            (crop,) = source.crops([tile.input_region])
        self.counts["forward"] += 1
        constants = graph.constants(grid.begin, grid.end)
        return graph.run(grid.begin, grid.end, crop, grid.spans(tile), draws, constants)

    def _plan(
        self, graph: Graph, n_images: int, scratch: Path | None, max_stored: int
    ) -> StreamingPlan:
        learns = torch.is_grad_enabled()
        key = (id(graph), learns, self.budget_bytes, n_images, scratch, max_stored, str(self.tile))
        if key not in self._plans:
            room = 0 if scratch is None else shutil.disk_usage(scratch).free // 2
            self._plans[key] = choose_streaming_plan(
                graph,
                budget_bytes=self.budget_bytes,
                scratch_bytes=room // n_images,
                learns=learns,
                n_tiles=self._sides(graph.steps[0].extent_cell),
                max_stored=max_stored,
            )
        return self._plans[key]

    def _meter(self, plan: StreamingPlan, n_images: int) -> Meter | None:
        tiled = [s.work(plan.learns) for s in plan.segments if not s.at_once]
        if self.on_progress is None or not tiled:
            return None
        return Meter(n_images * sum(tiled), self.on_progress)

    def _trainable_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.used_parameters() if p.requires_grad]

    def _sides(self, space: Sequence[int]) -> tuple[int, ...] | None:
        """Return the tiles per axis that the option `tile` asks for; None where it is not set."""
        if self.tile is None:
            return None
        tile = (self.tile,) * len(space) if isinstance(self.tile, int) else tuple(self.tile)
        if len(tile) != len(space):
            raise OptionError(f"tile: got {tile}, expected one side or {len(space)}")
        return tuple(-(-n // t) for n, t in zip(space, tile, strict=True))

    def _device_and_dtype(
        self, like: AbstractSource | Shaped[Tensor, " ..."] | None
    ) -> tuple[torch.device, torch.dtype]:
        """Return device and dtype of a source or tensor of any shape; None for the parameters."""
        if like is None:
            like = next(self.stack.parameters(), torch.empty(0))
        return torch.device(like.device), like.dtype

    def _graph(self, source: AbstractSource) -> Graph:
        return self._graph_of(source.shape, *self._device_and_dtype(source))

    def _graph_of(self, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Graph:
        if not 2 <= len(shape) <= 4:
            raise NotLocal(
                f"got an image of {len(shape) - 1} spatial axes; give (b, c, *space) with 1 to 3"
            )
        traced = self._trace()
        cast = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
        key = (id(traced), shape, device, dtype, cast)
        if key not in self._graphs:
            if len(self._graphs) > _MAX_SIZES:
                self._graphs.clear()
                self._plans.clear()
            like = torch.empty(0, device=device, dtype=dtype)
            self._graphs[key] = build_graph(traced, shape, like)
        return self._graphs[key]

    def _trace(self) -> TracedStack:
        """Trace the stack, once per device, layers and their modes.

        Between two steps, layers may be frozen or replaced.
        """
        modes = tuple((id(m), m.training) for m in self.stack.modules())
        key = (self._device_and_dtype(None)[0], modes)
        if key not in self._traced:
            self._traced[key] = trace(self.stack)
        return self._traced[key]

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without caches and progress.

        Caches refer to these very layers, not to a copy's, and progress belongs to the caller.
        """
        return {**self.__dict__, "_traced": {}, "_graphs": {}, "_plans": {}, "on_progress": None}


def _split_images(
    x: Shaped[Tensor, "b c *space"], stored: DiskMap | None = None
) -> list[AbstractSource]:
    """Make a source of each image of ``(b, c, *space)``, which may be on disk."""
    return [MapSource(x[i : i + 1], stored) for i in range(len(x))]
