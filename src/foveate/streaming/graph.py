"""A stack of layers as a sequence of local steps, each of which runs on parts of maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from foveate.streaming.base import AbstractOp, Call, Region
from foveate.streaming.site import ConstantRef, LateParameter, MapRef, find_constants
from foveate.streaming.views import narrow_dims

T = TypeVar("T")


@dataclass(frozen=True)
class GraphStep:
    """One use of a local operation in a stack.

    Attributes:
        name: path of the layer, for messages.
        op: the operation.
        apply: the layer or function that the operation calls.
        args: its positional arguments, with placeholders for maps and constants.
        kwargs: its keyword arguments, with placeholders for maps and constants.
        sources: numbers of the steps whose maps it takes; empty for the input.
        dims_before: spatial dimensions of its input.
        dims: spatial dimensions of its output.
        extent_cell: cells of its map per axis.
        channels: elements per cell, all outputs together.
        cell_bytes: bytes per cell, all outputs together.
        single: whether it returns one map, not several.
        floating: whether its map may have a gradient.
    """

    name: str
    op: AbstractOp
    apply: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    sources: tuple[int, ...]
    dims_before: tuple[int, ...]
    dims: tuple[int, ...]
    extent_cell: tuple[int, ...]
    channels: int
    cell_bytes: int
    single: bool
    floating: bool = True


_MAX_ELEMENTS = {"cuda": 2**31 - 1}
"""Elements of a map up to which layers are fast, by type of device: with indices of 64 bits, a GPU
took seven times as long."""


class Graph:
    """The steps of a stack for images of one shape; step 0 is the image.

    Args:
        steps: the steps in the order in which they run.
        constants: function, args and kwargs of every value that is computed from parameters alone.
        gradient_bytes: bytes of the gradients of the trained parameters.
        device: type of the device.

    Attributes:
        steps: the steps in the order in which they run.
        last_use: for each step, the last step that takes its map.
        n_uses: for each step, the number of steps that take its map.
        storable: numbers of the steps at which the stack can be divided into segments.
        gradient_bytes: bytes of the gradients of the trained parameters.
        max_elements: elements of a map up to which layers are fast on the device; None without
            bound.
    """

    def __init__(
        self,
        steps: Sequence[GraphStep],
        constants: Sequence[tuple[Any, ...]],
        gradient_bytes: int,
        device: str = "cpu",
    ) -> None:
        self.steps = list(steps)
        self.max_elements = _MAX_ELEMENTS.get(device)
        self.gradient_bytes = gradient_bytes
        self._constants = list(constants)
        self.n_uses = [0] * len(steps)
        self.last_use = list(range(len(steps)))
        for t, step in enumerate(steps):
            for s in step.sources:
                self.n_uses[s] += 1
                self.last_use[s] = t
        self.storable = [t for t in range(1, len(steps) - 1) if self._divides(t)]
        self._cache: dict[Any, Any] = {}

    def cached(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return the result of `make`, which is called once per key.

        Args:
            key: key of the result.
            make: computes the result.
        """
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    def of_segment(self, kind: Callable[[Graph, int, int], T], begin: int, end: int) -> T:
        """Return ``kind(graph, begin, end)`` for the steps of a segment, made once.

        Args:
            kind: class or function that makes it.
            begin: step whose map the segment reads.
            end: step whose map it computes.
        """
        made: T = self.cached((kind, begin, end), lambda: kind(self, begin, end))
        return made

    @property
    def regular(self) -> bool:
        """Whether moving the image by whole cells moves its map by whole cells."""
        return all(step.op.regular for step in self.steps)

    def _divides(self, t: int) -> bool:
        """Whether step t returns a map ``(b, c, *space)`` that all later steps depend on alone."""
        step = self.steps[t]
        is_map = step.single and step.dims == tuple(range(2, 2 + len(step.dims)))
        return is_map and step.floating and max(self.last_use[:t]) <= t

    def constants(self, begin: int, end: int) -> dict[int, Any]:
        """Compute the values that a segment takes and that depend on parameters alone.

        They are the same for all tiles. They have a gradient where gradients are enabled.

        Args:
            begin: step whose map is the input of the segment.
            end: last step of the segment.

        Returns:
            The values by number.
        """
        values: dict[int, Any] = {}

        def compute(arguments: Any) -> None:
            for number in (c.number for c in find_constants(arguments)):
                if number not in values:
                    apply, args, kwargs = self._constants[number]
                    compute((args, kwargs))
                    values[number] = apply(*_fill(args, {}, values), **_fill(kwargs, {}, values))

        arguments = [(step.args, dict(step.kwargs)) for step in self.steps[begin + 1 : end + 1]]
        compute(arguments)
        used = {c.number for c in find_constants(arguments)}
        return {number: value for number, value in values.items() if number in used}

    def draw(self, like: Shaped[Tensor, " ..."]) -> dict[int, Shaped[Tensor, " ..."]]:
        """Draw the random numbers of all steps for one image, in their order, whatever the tiles.

        Args:
            like: a tensor of any shape, of the device and dtype of the image.

        Returns:
            The draws by step, of the steps that draw.
        """
        drawn = {t: step.op.draw(step.channels, like) for t, step in enumerate(self.steps)}
        return {t: value for t, value in drawn.items() if value is not None}

    def run(
        self,
        begin: int,
        end: int,
        x: Float[Tensor, "1 c *_size"],
        spans: Mapping[int, Region],
        draws: Mapping[int, Shaped[Tensor, " ..."]],
        constants: Mapping[int, Any],
    ) -> Float[Tensor, "1 k *_size"]:
        """Compute a region of the map of step `end` from a region of the map of step `begin`.

        Args:
            begin: step whose map is the input.
            end: step whose map is computed.
            x: region ``spans[begin]`` of the input, ``(1, c, *size)``.
            spans: region to compute of each step.
            draws: random numbers of the image, from `draw`.
            constants: values from `constants`.

        Returns:
            The region ``spans[end]`` of the output, ``(1, k, *size)``.
        """
        values: dict[int, Any] = {begin: x}
        for t in (t for t in range(begin + 1, end + 1) if t in spans):
            step = self.steps[t]
            region = step.op.input_region(spans[t])
            inputs = {
                s: _crop_map(values[s], step.dims_before, spans[s], region) for s in step.sources
            }
            call = Call(
                step.apply,
                _fill(step.args, inputs, constants),
                _fill(step.kwargs, inputs, constants),
                step.dims_before,
                region,
                spans[t],
                reuse=step.sources[0] != begin and self._may_reuse(step, spans, region),
                drawn=draws.get(t),
            )
            values[t] = step.op.run(call)
            del call, inputs
            for s in (s for s in step.sources if self.last_use[s] == t):
                values.pop(s, None)
        out: Tensor = values[end]
        return out

    def _may_reuse(self, step: GraphStep, spans: Mapping[int, Region], region: Region) -> bool:
        """Return whether a step may overwrite its first argument, of which it reads a region."""
        first = step.sources[0]
        is_last_use = self.n_uses[first] == 1 and self.steps[first].op.fresh
        return is_last_use and spans[first] == region


def _fill(args: Any, maps: Mapping[int, Any], constants: Mapping[int, Any]) -> Any:
    """Return nested arguments with values in place of placeholders."""
    if isinstance(args, MapRef):
        return maps[args.step]
    if isinstance(args, ConstantRef):
        return constants[args.number]
    if isinstance(args, LateParameter):
        return args.get()
    if isinstance(args, Mapping):
        return {key: _fill(value, maps, constants) for key, value in args.items()}
    if isinstance(args, tuple | list) and not isinstance(args, torch.Size):
        return type(args)(_fill(value, maps, constants) for value in args)
    return args


def _crop_map(value: Any, dims: Sequence[int], covered: Region, region: Region) -> Any:
    """Return a view of a region of a part of a map, or of several maps.

    Args:
        value: the part, or a list or tuple of parts.
        dims: spatial dimensions of the part.
        covered: region of the map that the part covers.
        region: region of the map to return.
    """
    if isinstance(value, tuple | list):
        return type(value)(_crop_map(part, dims, covered, region) for part in value)
    if covered == region:
        return value
    spans = {
        dim: (low - begin, high - begin)
        for dim, (begin, end), (low, high) in zip(dims, covered, region, strict=True)
        if (begin, end) != (low, high)
    }
    return narrow_dims(value, spans)
