"""Rules of layers that run along channels, or rearrange channels and space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from foveate.streaming.pointwise import Gather, PixelShuffle, PixelUnshuffle, Pointwise
from foveate.streaming.site import (
    CallSite,
    Refused,
    Rule,
    RuleResult,
    find_constants,
    first_argument,
    require_channels_first,
)

_ALL_DIMS = "without a dimension it looks at the whole image"


def along(
    default: int | None, index: int, *, missing: str = _ALL_DIMS, shares: bool = False
) -> Rule:
    """Make the rule of a function along one dimension, neither spatial nor that of the images.

    Args:
        default: the dimension where the call names none; None where there is no default.
        index: position of the dimension among the arguments.
        missing: reason for refusing a call without a dimension.
        shares: whether the result is a view.
    """

    def rule(site: CallSite, _: object) -> RuleResult:
        dim = site.fake_kwargs.get("dim", site.fake_kwargs.get("axis", default))
        if not {"dim", "axis"} & site.fake_kwargs.keys() and len(site.fake_args) > index:
            dim = site.fake_args[index]
        _check_dims(site, dim, missing)
        return RuleResult(Pointwise(fresh=not shares))

    return rule


def _check_dims(site: CallSite, dim: Any, missing: str) -> None:
    """Refuse a call site along the dimension or dimensions `dim` where they are not channels."""
    if dim is None or dim in ((), []) or isinstance(dim, bool):
        raise Refused(missing)
    ndim = len(site.extent_cell) + 2
    result = site.fake_result[0] if isinstance(site.fake_result, tuple | list) else site.fake_result
    if not isinstance(dim, int | tuple | list) or any(d % ndim in site.dims for d in _as_dims(dim)):
        raise Refused(f"it runs along a spatial axis (dim {dim})")
    if any(d % ndim == 0 for d in _as_dims(dim)):
        raise Refused("it runs along the images of a batch (dim 0)")
    if find_constants((site.args, site.kwargs)):
        raise Refused("it joins the map with what is computed from parameters alone")
    if result.ndim != ndim:
        raise Refused("it changes the number of dimensions; use keepdim=True")


def _as_dims(dim: int | Sequence[int]) -> tuple[int, ...]:
    return (dim,) if isinstance(dim, int) else tuple(dim)


def along_layer(site: CallSite, layer: Any) -> RuleResult:
    """Translate a layer along its dimension; ``Softmax2d`` has none and runs along channels.

    Args:
        site: the call site.
        layer: the layer.
    """
    _check_dims(site, getattr(layer, "dim", 1), "name its dimension: 1 for channels")
    return RuleResult(Pointwise(fresh=True), (first_argument(site),))


def min_or_max(elementwise: Rule) -> Rule:
    """Make the rule of ``max`` and ``min``, of two maps or along channels.

    Args:
        elementwise: the rule for two maps.
    """
    reduced = along(None, 1)

    def rule(site: CallSite, target: Any) -> RuleResult:
        second = (*site.fake_args[1:2], site.fake_kwargs.get("other"))
        return (elementwise if isinstance(second[0], Tensor) else reduced)(site, target)

    return rule


def attribute(site: CallSite, _: object) -> RuleResult:
    """Translate the choice of one of several maps by name, such as ``values``.

    Raises:
        Refused: an attribute of a single map is read.
    """
    if not isinstance(site.fake_args[0], tuple):
        raise Refused(f"'{site.fake_args[1]}' of a map is not known")
    return RuleResult(Pointwise())


def item(site: CallSite, _: object) -> RuleResult:
    """Translate slices of a map, or the choice of one of several maps.

    Raises:
        Refused: it picks images, single cells or dimensions, or cuts channels and space at once.
    """
    value, key = site.fake_args[:2]
    if isinstance(value, tuple | list):
        return RuleResult(Pointwise())
    keys = list(key) if isinstance(key, tuple) else [key]
    if any(k is Ellipsis for k in keys):
        at = next(i for i, k in enumerate(keys) if k is Ellipsis)
        keys[at : at + 1] = [slice(None)] * (value.ndim - len(keys) + 1)
    if not all(isinstance(k, slice) for k in keys):
        raise Refused("it picks single cells or dimensions; only slices keep a map a map")
    keys += [slice(None)] * (value.ndim - len(keys))
    if keys[0] != slice(None):
        raise Refused("it picks images of a batch")
    spatial = [keys[d] for d in site.dims]
    if all(k == slice(None) for k in spatial):
        return RuleResult(Pointwise())
    if any(k != slice(None) for d, k in enumerate(keys) if d not in site.dims):
        raise Refused("it cuts channels and space at once; cut one after the other")
    index = [np.arange(n)[k] for n, k in zip(site.extent_cell, spatial, strict=True)]
    return RuleResult(Gather(index, shares=True), (site.args[0],))


# -- between channels and space -------------------------------------------------------------------


def pixel_shuffle(site: CallSite, layer: Any) -> RuleResult:
    """Translate a rearrangement of channels to finer cells.

    Args:
        site: the call site.
        layer: the layer, or the function that is called.
    """
    return _check_shuffle(site, PixelShuffle(_factor(site, layer, "upscale_factor")))


def pixel_unshuffle(site: CallSite, layer: Any) -> RuleResult:
    """Translate a rearrangement of cells to channels of coarser cells.

    Args:
        site: the call site.
        layer: the layer, or the function that is called.
    """
    return _check_shuffle(site, PixelUnshuffle(_factor(site, layer, "downscale_factor")))


def _factor(site: CallSite, layer: Any, name: str) -> int:
    """Return the factor of a layer or call, by the name of its option."""
    factor = getattr(layer, name, None)
    if factor is None:
        factor = site.fake_kwargs[name] if name in site.fake_kwargs else site.fake_args[1]
    return int(factor)


def _check_shuffle(site: CallSite, op: PixelShuffle | PixelUnshuffle) -> RuleResult:
    """Refuse maps that are not ``(b, c, y, x)``; return the operation."""
    require_channels_first(site)
    if len(site.extent_cell) != 2:
        raise Refused("it is made for pictures (b, c, y, x): of a volume it mixes up the axes")
    return RuleResult(op, (first_argument(site),))


def channel_shuffle(site: CallSite, _: object) -> RuleResult:
    """Translate a rearrangement of the order of channels."""
    require_channels_first(site)
    return RuleResult(Pointwise(fresh=True))
