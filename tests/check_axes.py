"""The check of tensors' types and axes, which ``conftest.py`` puts on the calls of the product."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

from beartype import beartype
from torch.fx import Proxy

PACKAGES = (
    *("nn", "bags", "aggregators", "methods", "attention_maps", "encoders", "pretrained", "tasks"),
    *("batch", "runs", "runtime", "training", "evaluation", "formats"),
)
"""Packages of ``foveate`` whose calls are checked. `streaming` is left out: its tests make so many
calls that checks would double their time."""


_ALL_CALLS, _EVERY = 200, 16
"""Of each function, the first calls of a process are all checked, then one of this many: checks of
all calls took a fifth of the suite's time."""


def check_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check the arguments and the result of a function that have axes in their types.

    All other types are left to mypy. Calls with the proxies of ``torch.fx``, which have no axes,
    pass.
    """
    hints = function.__annotations__
    for name, hint in hints.items():
        if "jaxtyping" not in repr(hint):
            hints[name] = Any
    if all(hint is Any for hint in hints.values()):
        return function
    checked: Callable[..., Any] = beartype(function)
    calls = itertools.count()

    @functools.wraps(function)
    def check(*args: Any, **kwargs: Any) -> Any:
        call = next(calls)
        if call > _ALL_CALLS and call % _EVERY:
            return function(*args, **kwargs)
        traced = any(_holds_proxy(value) for value in (*args, *kwargs.values()))
        return function(*args, **kwargs) if traced else checked(*args, **kwargs)

    return check


def _holds_proxy(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_holds_proxy(inner) for inner in value)
    return isinstance(value, Proxy)
