"""A stack of layers as a list of local steps, each of which runs on parts of maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.streaming.base import AbstractOp, Call, Region
from foveate.streaming.cut import narrowed
from foveate.streaming.site import Constant, Late, Ref, constants


@dataclass(frozen=True)
class Step:
    """One use of a local operation.

    Attributes:
        name: of the layer, for messages.
        op: what it needs and how it runs.
        apply, args, kwargs: layer and arguments, with `Ref` and `Constant` in them.
        sources: the steps whose maps it takes; empty for the input.
        dims_before, dims: spatial dimensions of what it takes and gives.
        extent: cells of the whole map per axis.
        channels: elements per cell, all outputs together.
        cell_bytes: bytes per cell, all outputs together.
        single: it gives one map, not several.
        floating: its map may have a gradient.
    """

    name: str
    op: AbstractOp
    apply: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    sources: tuple[int, ...]
    dims_before: tuple[int, ...]
    dims: tuple[int, ...]
    extent: tuple[int, ...]
    channels: int
    cell_bytes: int
    single: bool
    floating: bool = True


_MOST_ELEMENTS = {"cuda": 2**31 - 1}
"""By kind of device. With places that take 64 bits, a GPU took seven times as long."""


class Graph:
    """The steps of a stack for images of one shape; step 0 is the image.

    Attributes:
        steps: in the order in which they run.
        last_use: of each step's map, the last step that takes it.
        n_uses: how many steps take it.
        gradient_bytes: of the parameters that learn.
        most_elements: of a map, beyond which layers are slow on its device; None without bound.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        constants: Sequence[tuple[Any, ...]],
        gradient_bytes: int,
        device: str = "cpu",
    ) -> None:
        self.steps = list(steps)
        self.most_elements = _MOST_ELEMENTS.get(device)
        self.gradient_bytes = gradient_bytes
        self._constants = list(constants)
        self.n_uses = [0] * len(steps)
        self.last_use = list(range(len(steps)))
        for t, step in enumerate(steps):
            for s in step.sources:
                self.n_uses[s] += 1
                self.last_use[s] = t
        self.cuts = [t for t in range(1, len(steps) - 1) if self._divides(t)]
        self._kept: dict[Any, Any] = {}

    def kept(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once per key."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    @property
    def regular(self) -> bool:
        """Whether moving the image by whole cells moves its map by whole cells."""
        return all(step.op.regular for step in self.steps)

    def _divides(self, t: int) -> bool:
        """Whether step t gives a map ``(b, c, *space)`` and all that comes after takes only it."""
        step = self.steps[t]
        first = step.single and step.dims == tuple(range(2, 2 + len(step.dims)))
        return first and step.floating and max(self.last_use[:t]) <= t

    def constants(self, begin: int, end: int) -> dict[int, Any]:
        """What the steps after `begin` up to `end` take that is computed from parameters alone.

        By number; with gradient where that is on. It is the same for all parts of an image.
        """
        made: dict[int, Any] = {}

        def make(args: Any) -> None:
            for number in (c.number for c in constants(args)):
                if number not in made:
                    apply, own, named = self._constants[number]
                    make((own, named))
                    made[number] = apply(*_filled(own, {}, made), **_filled(named, {}, made))

        taken = [(step.args, dict(step.kwargs)) for step in self.steps[begin + 1 : end + 1]]
        make(taken)
        wanted = {c.number for c in constants(taken)}
        return {number: value for number, value in made.items() if number in wanted}

    def draws(self, like: Tensor) -> dict[int, Tensor]:
        """What the steps draw for one image, in their order, whatever its parts are."""
        drawn = {t: step.op.draw(step.channels, like) for t, step in enumerate(self.steps)}
        return {t: value for t, value in drawn.items() if value is not None}

    def run(
        self,
        begin: int,
        end: int,
        x: Tensor,
        spans: Mapping[int, Region],
        draws: Mapping[int, Tensor],
        constants: Mapping[int, Any],
    ) -> Tensor:
        """The part of step `end`'s map that `spans` asks for.

        Args:
            begin: the step whose map is given.
            end: the step whose map is wanted.
            x: of the map of `begin`, the part in ``spans[begin]``: ``(1, c, *size)``.
            spans: of each step, the part to compute.
            draws: from `draws`.
            constants: from `constants`.
        """
        values: dict[int, Any] = {begin: x}
        for t in range(begin + 1, end + 1):
            step = self.steps[t]
            if t not in spans:
                continue
            given = tuple(
                _span(step.op.needs(axis, *_arrays(span))) for axis, span in enumerate(spans[t])
            )
            taken = {
                s: _narrowed(values[s], step.dims_before, spans[s], given) for s in step.sources
            }
            first = step.sources[0]
            reuse = (
                first != begin
                and self.n_uses[first] == 1
                and self.steps[first].op.fresh
                and spans[first] == given
            )
            call = Call(
                step.apply,
                _filled(step.args, taken, constants),
                _filled(step.kwargs, taken, constants),
                step.dims_before,
                given,
                spans[t],
                reuse,
                draws.get(t),
            )
            values[t] = step.op.run(call)
            del call, taken
            for s in step.sources:
                if self.last_use[s] == t:
                    values.pop(s, None)
        found: Tensor = values[end]
        return found


def _filled(args: Any, maps: Mapping[int, Any], constants: Mapping[int, Any]) -> Any:
    """Arguments with values for what stands in their place."""
    if isinstance(args, Ref):
        return maps[args.step]
    if isinstance(args, Constant):
        return constants[args.number]
    if isinstance(args, Late):
        return args.get()
    if isinstance(args, Mapping):
        return {key: _filled(value, maps, constants) for key, value in args.items()}
    if isinstance(args, tuple | list) and not isinstance(args, torch.Size):
        return type(args)(_filled(value, maps, constants) for value in args)
    return args


def _narrowed(value: Any, dims: Sequence[int], held: Region, wanted: Region) -> Any:
    """The cells `wanted` of a map, or several, of those `held`: a view."""
    if isinstance(value, tuple | list):
        return type(value)(_narrowed(each, dims, held, wanted) for each in value)
    if held == wanted:
        return value
    spans = {
        dim: (low - begin, high - begin)
        for dim, (begin, end), (low, high) in zip(dims, held, wanted, strict=True)
        if (begin, end) != (low, high)
    }
    return narrowed(value, spans)


def _arrays(span: tuple[int, int]) -> tuple[Any, Any]:
    return np.asarray([span[0]]), np.asarray([span[1]])


def _span(ends: tuple[Any, Any]) -> tuple[int, int]:
    return int(ends[0][0]), int(ends[1][0])
