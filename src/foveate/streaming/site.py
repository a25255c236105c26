"""Uses of layers in a stack, and what a rule makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from foveate.streaming.base import AbstractOp


class Refused(Exception):
    """A use of a layer is not local, for the reason in the message; the caller adds the layer."""


@dataclass(frozen=True)
class LateParameter:
    """A parameter that is looked up when it is used, as it may be computed from others.

    Attributes:
        module: module that owns the parameter.
        name: name of the parameter in the module.
    """

    module: nn.Module
    name: str

    def get(self) -> Any:
        """Return the present value of the parameter."""
        return getattr(self.module, self.name)


@dataclass(frozen=True)
class MapRef:
    """A placeholder among arguments for the map of a step.

    Attributes:
        step: number of the step.
    """

    step: int


@dataclass(frozen=True)
class ConstantRef:
    """A placeholder among arguments for a value that is computed from parameters alone.

    Attributes:
        number: number of the value in the graph.
    """

    number: int


@dataclass(frozen=True)
class CallSite:
    """One use of a layer or function in a stack.

    Fake tensors have shapes, for an image of full size, but no values.

    Attributes:
        args: positional arguments with placeholders, which the operation runs with.
        kwargs: keyword arguments with placeholders, which the operation runs with.
        fake_args: the positional arguments with fake tensors in place of placeholders.
        fake_kwargs: the keyword arguments with fake tensors in place of placeholders.
        dims: spatial dimensions of the input.
        extent_cell: cells of the input per axis.
        fake_result: the result as a fake tensor, or several of them.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    fake_args: tuple[Any, ...]
    fake_kwargs: dict[str, Any]
    dims: tuple[int, ...]
    extent_cell: tuple[int, ...]
    fake_result: Any

    def bind(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the fake arguments by name, from the names of the positional arguments."""
        return dict(zip(names, self.fake_args, strict=False)) | self.fake_kwargs

    def options(self, target: Any, **defaults: Any) -> dict[str, Any]:
        """Return the options of a layer, or the arguments of a function, by name.

        Args:
            target: the layer or the function that is called.
            **defaults: the options with their defaults, in the order in which the function takes
                them after its input.
        """
        if isinstance(target, nn.Module):
            return {name: getattr(target, name, value) for name, value in defaults.items()}
        return defaults | self.bind(("input", *defaults))


class FrozenNorm(NamedTuple):
    """The arguments of a batch norm on stored statistics.

    Attributes:
        values: placeholders for mean, variance, weight and bias.
        eps: number that is added to the variance.
    """

    values: tuple[Any, ...]
    eps: float


@dataclass(frozen=True)
class RuleResult:
    """The operation that a rule makes of a call site.

    Attributes:
        op: the operation.
        args: its arguments with placeholders; None for those of the call site.
        dims: spatial dimensions of its output; None for those of the input.
        identity: whether it returns its first argument unchanged, so that no step is needed.
        norm: the batch norm that it is; None for any other layer.
    """

    op: AbstractOp
    args: tuple[Any, ...] | None = None
    dims: tuple[int, ...] | None = None
    identity: bool = False
    norm: FrozenNorm | None = None


Rule = Callable[[CallSite, Any], RuleResult]
"""A function from a call site, and the layer or function called, to the operation."""


def require_channels_first(site: CallSite) -> None:
    """Check that the input of a call site has its channels in dimension 1.

    Raises:
        Refused: the channels lie in another dimension.
    """
    if site.dims != tuple(range(2, 2 + len(site.extent_cell))):
        raise Refused("it expects channels in dimension 1; permute them back before")


def find_constants(args: Any) -> list[ConstantRef]:
    """Find the placeholders for constants among nested arguments."""
    if isinstance(args, ConstantRef):
        return [args]
    if isinstance(args, dict):
        args = list(args.values())
    if isinstance(args, tuple | list):
        return [constant for arg in args for constant in find_constants(arg)]
    return []


def first_argument(site: CallSite) -> Any:
    """Return the placeholder for the input map, a positional argument or ``input``."""
    return site.args[0] if site.args else site.kwargs["input"]
