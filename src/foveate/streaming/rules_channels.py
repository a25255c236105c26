"""The rules of what runs along channels, or moves cells between channels and space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from foveate.streaming.pointwise import Gather, PixelShuffle, PixelUnshuffle, Pointwise
from foveate.streaming.site import (
    Built,
    Refused,
    Rule,
    Site,
    channels_first,
    constants,
    first_argument,
)

WHOLE = "without a dimension it looks at the whole image"


def along(
    default: int | None, position: int, *, missing: str = WHOLE, shares: bool = False
) -> Rule:
    """What runs along one dimension, which must not be spatial, nor that of the images.

    Args:
        default: the dimension, where the call names none.
        position: of the dimension among the arguments.
        missing: what to say where there is neither.
        shares: the result is a view.
    """

    def rule(site: Site, _: Any) -> Built:
        found = site.named.get("dim", site.named.get("axis", default))
        if not {"dim", "axis"} & site.named.keys() and len(site.shown) > position:
            found = site.shown[position]
        _check_dims(site, found, missing)
        return Built(Pointwise(fresh=not shares))

    return rule


def _check_dims(site: Site, found: Any, missing: str) -> None:
    if found is None or found in ((), []) or isinstance(found, bool):
        raise Refused(missing)
    ndim = len(site.extent) + 2
    result = site.result[0] if isinstance(site.result, tuple | list) else site.result
    if not isinstance(found, int | tuple | list) or any(
        d % ndim in site.dims for d in _each_dim(found)
    ):
        raise Refused(f"it runs along a spatial axis (dim {found})")
    if any(d % ndim == 0 for d in _each_dim(found)):
        raise Refused("it runs along the images of a batch (dim 0)")
    if constants((site.args, site.kwargs)):
        raise Refused("it joins the map with what is computed from parameters alone")
    if result.ndim != ndim:
        raise Refused("it changes the number of dimensions; use keepdim=True")


def _each_dim(dim: int | Sequence[int]) -> tuple[int, ...]:
    """One dimension or several."""
    return (dim,) if isinstance(dim, int) else tuple(dim)


def along_layer(site: Site, layer: Any) -> Built:
    """A layer that runs along the dimension it was made with; ``Softmax2d`` along channels."""
    _check_dims(site, getattr(layer, "dim", 1), "name its dimension: 1 for channels")
    return Built(Pointwise(fresh=True), (first_argument(site),))


def extreme(elementwise: Rule) -> Rule:
    """``max`` and ``min``: of two maps, or along channels with the channel that it was.

    Args:
        elementwise: the rule for two maps.
    """
    reduced = along(None, 1)

    def rule(site: Site, target: Any) -> Built:
        two = [*site.shown[1:2], *(site.named[k] for k in ("other",) if k in site.named)]
        return (elementwise if any(isinstance(v, Tensor) for v in two) else reduced)(site, target)

    return rule


def attribute(site: Site, _: Any) -> Built:
    """One of the maps that a call gives by name, such as ``values``."""
    if not isinstance(site.shown[0], tuple):
        raise Refused(f"'{site.shown[1]}' of a map is not known")
    return Built(Pointwise())


def item(site: Site, _: Any) -> Built:
    """Slices, or one of several maps."""
    value, key = site.shown[:2]
    if isinstance(value, tuple | list):
        return Built(Pointwise())
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
        return Built(Pointwise())
    if any(k != slice(None) for d, k in enumerate(keys) if d not in site.dims):
        raise Refused("it cuts channels and space at once; cut one after the other")
    index = [np.arange(n)[k] for n, k in zip(site.extent, spatial, strict=True)]
    return Built(Gather(index, shares=True), (site.args[0],))


# -- between channels and space -------------------------------------------------------------------


def pixel_shuffle(site: Site, layer: Any) -> Built:
    """Channels become finer cells."""
    return _shuffled(site, PixelShuffle(_factor(site, layer, "upscale_factor")))


def pixel_unshuffle(site: Site, layer: Any) -> Built:
    """Cells become channels of coarser ones."""
    return _shuffled(site, PixelUnshuffle(_factor(site, layer, "downscale_factor")))


def _factor(site: Site, layer: Any, name: str) -> int:
    own = getattr(layer, name, None)
    if own is None:
        own = site.named[name] if name in site.named else site.shown[1]
    return int(own)


def _shuffled(site: Site, op: PixelShuffle | PixelUnshuffle) -> Built:
    channels_first(site)
    if len(site.extent) != 2:
        raise Refused("it is made for pictures (b, c, y, x): of a volume it mixes up the axes")
    return Built(op, (first_argument(site),))


def channel_shuffle(site: Site, _: Any) -> Built:
    """Channels in another order."""
    channels_first(site)
    return Built(Pointwise(fresh=True))
