"""One use of a layer in a stack, as the rules see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from foveate.streaming.base import AbstractOp


class Refused(Exception):
    """Why a use of a layer is not local; the caller adds its name."""


@dataclass(frozen=True)
class Late:
    """A parameter, looked up when it is used (it may be computed from others)."""

    module: nn.Module
    name: str

    def get(self) -> Any:
        """Its value now."""
        return getattr(self.module, self.name)


@dataclass(frozen=True)
class Ref:
    """Stands for the map of a step among arguments."""

    step: int


@dataclass(frozen=True)
class Constant:
    """Stands for what is computed from parameters alone."""

    number: int


@dataclass(frozen=True)
class Site:
    """One use of a layer or function.

    Attributes:
        args, kwargs: as in the graph, for the operation to run with.
        shown: the same arguments with stand-ins that have the shapes of the whole image.
        named: `shown` of the keywords.
        dims: spatial dimensions of its input.
        extent: cells of its input per axis.
        result: a stand-in of its result.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shown: tuple[Any, ...]
    named: dict[str, Any]
    dims: tuple[int, ...]
    extent: tuple[int, ...]
    result: Any


class Scales(NamedTuple):
    """What stands for mean, variance, weight and bias of a frozen batch norm; and its `eps`."""

    own: tuple[Any, ...]
    eps: float


@dataclass(frozen=True)
class Built:
    """An operation and what it is run with; None leaves the site's own.

    Attributes:
        idle: it gives its first argument itself.
        scales: it scales and shifts each channel, by these arguments.
    """

    op: AbstractOp
    args: tuple[Any, ...] | None = None
    dims: tuple[int, ...] | None = None
    idle: bool = False
    scales: Scales | None = None


Rule = Callable[[Site, Any], Built]


def channels_first(site: Site) -> None:
    """Refuse an operation whose input does not have its channels in dimension 1."""
    if site.dims != tuple(range(2, 2 + len(site.extent))):
        raise Refused("it expects channels in dimension 1; permute them back before")


def constants(args: Any) -> list[Constant]:
    """Those among arguments, however deep."""
    if isinstance(args, Constant):
        return [args]
    if isinstance(args, dict):
        args = list(args.values())
    if isinstance(args, tuple | list):
        return [c for each in args for c in constants(each)]
    return []


def first_argument(site: Site) -> Any:
    """What stands for the map, given by place or by name."""
    return site.args[0] if site.args else site.kwargs["input"]
