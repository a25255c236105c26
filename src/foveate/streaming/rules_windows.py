"""The rules of layers that look at a window, and of those that change borders and sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from foveate.streaming.base import AbstractOp, Ints
from foveate.streaming.padded import kernel_padding
from foveate.streaming.pointwise import Blend, Chain, ConstantPad, Gather, border_index
from foveate.streaming.site import (
    Built,
    Late,
    Ref,
    Refused,
    Site,
    channels_first,
    first_argument,
)
from foveate.streaming.windows import (
    Convolution,
    MaxPool,
    MeanPool,
    Spread,
    TransposedConvolution,
    Window,
    each,
    same_windows,
    windows,
)


def convolution(site: Site, conv: Any) -> Built:
    """A convolution layer."""
    args = (site.args[0], Late(conv, "weight"), Late(conv, "bias"))
    mode = conv.padding_mode
    if mode in ("reflect", "replicate"):
        sides = windows(conv.kernel_size, 1, conv.padding, conv.dilation, site.extent)
        border = _border([(w.left, w.right) for w in sides], site, mode)
        extent = [n + w.left + w.right for n, w in zip(site.extent, sides, strict=True)]
        inner = _convolve(site, conv.weight, conv.stride, 0, conv.dilation, conv.groups, extent)
        return Built(Chain(border, inner), args)
    if mode != "zeros":
        raise Refused(f"padding_mode '{mode}' joins opposite borders; use 'zeros' or 'reflect'")
    slid = _convolve(
        site, conv.weight, conv.stride, conv.padding, conv.dilation, conv.groups, site.extent
    )
    return Built(slid, args)


def convolution_call(site: Site, _: Any) -> Built:
    """A convolution as a function: weights may be computed."""
    args, given = _convolution_arguments(site, ("stride", "padding", "dilation", "groups"))
    weight, stride, padding, dilation, groups = given
    return Built(_convolve(site, weight, stride, padding, dilation, groups, site.extent), args)


def _convolution_arguments(site: Site, options: Sequence[str]) -> tuple[tuple[Any, ...], list[Any]]:
    """What a convolution takes, to run with; and its weight and options, to look at.

    Args:
        site: the call.
        options: names of what follows the bias; those left blank are not looked at.
    """
    names = ("input", "weight", "bias", *options)
    usual = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    given = usual | dict(zip(names, site.shown, strict=False)) | site.named
    own = {"bias": None} | dict(zip(names, site.args, strict=False)) | site.kwargs
    args = (own["input"], own["weight"], own["bias"])
    if any(isinstance(arg, Ref) for arg in args[1:]):
        raise Refused("its weights are computed from the image")
    return args, [given["weight"], *(given[name] for name in options if name)]


def _convolve(
    site: Site,
    weight: Tensor,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    extent: Sequence[int],
) -> Convolution:
    channels_first(site)
    kernel = tuple(weight.shape[2:])
    work = 2.0 * math.prod(kernel) * weight.shape[1]
    slid = windows(kernel, stride, padding, dilation, extent)
    return Convolution(slid, groups=groups, work=work)


def same_convolution(site: Site, conv: Any) -> Built:
    """A convolution padded as TensorFlow does."""
    channels_first(site)
    slid = same_windows(conv.kernel_size, conv.stride, conv.dilation, site.extent)
    work = 2.0 * math.prod(conv.kernel_size) * conv.weight.shape[1]
    args = (site.args[0], Late(conv, "weight"), Late(conv, "bias"))
    return Built(Convolution(slid, groups=conv.groups, work=work), args)


def padded_convolution(site: Site, conv: Any) -> Built:
    """A convolution padded by its kernel alone."""
    channels_first(site)
    slid = []
    for k, s, n in zip(conv.kernel_size, conv.stride, site.extent, strict=True):
        left, right = kernel_padding(k, s, n)
        slid.append(Window(k, s, 1, left, right, n))
    work = 2.0 * math.prod(conv.kernel_size) * conv.weight.shape[1]
    args = (site.args[0], Late(conv, "weight"), Late(conv, "bias"))
    return Built(Convolution(slid, groups=conv.groups, work=work), args)


def transposed(site: Site, conv: Any) -> Built:
    """A transposed convolution layer."""
    args = (site.args[0], Late(conv, "weight"), Late(conv, "bias"))
    given = (conv.stride, conv.padding, conv.dilation)
    return Built(_spread(site, conv.weight, *given, conv.groups), args)


def transposed_call(site: Site, _: Any) -> Built:
    """A transposed convolution as a function: weights may be computed."""
    args, given = _convolution_arguments(site, ("stride", "padding", "", "groups", "dilation"))
    weight, stride, padding, groups, dilation = given
    return Built(_spread(site, weight, stride, padding, dilation, groups), args)


def _spread(
    site: Site, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int
) -> TransposedConvolution:
    channels_first(site)
    d = len(site.extent)
    s, dil, p = (each(v, d) for v in (stride, dilation, padding))
    spreads = [
        Spread(weight.shape[2 + axis], s[axis], dil[axis], p[axis], n)
        for axis, n in enumerate(site.extent)
    ]
    work = 2.0 * weight.shape[0] / groups
    work *= math.prod(-(-s.kernel // s.stride) for s in spreads)
    return TransposedConvolution(spreads, groups=groups, work=work)


def max_pool(site: Site, pool: Any) -> Built:
    """A maximum pooling layer."""
    if pool.return_indices:
        raise Refused("return_indices gives positions within a part; leave it off")
    return Built(MaxPool(_pooled(site, pool.kernel_size, pool.stride, pool.padding, pool.dilation)))


def max_pool_call(site: Site, function: Any) -> Built:
    """Maximum pooling as a function."""
    names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
    given: dict[str, Any] = {"stride": None, "padding": 0, "dilation": 1}
    given |= dict(zip(names, site.shown, strict=False)) | site.named
    options = (given[k] for k in ("kernel_size", "stride", "padding", "dilation"))
    return Built(MaxPool(_pooled(site, *options)), (first_argument(site),))


def same_max_pool(site: Site, pool: Any) -> Built:
    """Maximum pooling padded as TensorFlow does."""
    channels_first(site)
    return Built(MaxPool(same_windows(pool.kernel_size, pool.stride, pool.dilation, site.extent)))


def mean_pool(site: Site, pool: Any) -> Built:
    """A mean pooling layer."""
    slid = _pooled(site, pool.kernel_size, pool.stride, pool.padding, 1)
    divisor = getattr(pool, "divisor_override", None)
    return Built(MeanPool(slid, count_pad=pool.count_include_pad, divisor=divisor))


def mean_pool_call(site: Site, _: Any) -> Built:
    """Mean pooling as a function."""
    names = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
    given: dict[str, Any] = {"stride": None, "padding": 0, "count_include_pad": True}
    given["divisor_override"] = None
    given |= dict(zip((*names, "divisor_override"), site.shown, strict=False)) | site.named
    slid = _pooled(site, given["kernel_size"], given["stride"], given["padding"], 1)
    pool = MeanPool(slid, count_pad=given["count_include_pad"], divisor=given["divisor_override"])
    return Built(pool, (first_argument(site),))


def _pooled(site: Site, kernel: Any, stride: Any, padding: Any, dilation: Any) -> list[Window]:
    channels_first(site)
    return windows(kernel, stride or kernel, padding, dilation, site.extent)


# -- borders and sizes ----------------------------------------------------------------------------


def pad_layer(site: Site, pad: Any) -> Built:
    """A padding layer."""
    modes = {"Reflection": "reflect", "Replication": "replicate", "Circular": "circular"}
    word = next((m for w, m in modes.items() if type(pad).__name__.startswith(w)), "constant")
    flat = each(pad.padding, 2 * len(site.extent))
    return _padded(site, flat, word, float(getattr(pad, "value", 0.0)))


def pad_call(site: Site, _: Any) -> Built:
    """Padding as a function."""
    given = dict(zip(("input", "pad", "mode", "value"), site.shown, strict=False)) | site.named
    flat, value = tuple(given["pad"]), given.get("value")
    return _padded(site, flat, given.get("mode", "constant"), float(value or 0.0))


def _padded(site: Site, flat: Sequence[int], mode: str, value: float) -> Built:
    first = site.shown[0] if site.shown else site.named["input"]
    sides = {first.ndim - 1 - i: (flat[2 * i], flat[2 * i + 1]) for i in range(len(flat) // 2)}
    if any(dim not in site.dims and side != (0, 0) for dim, side in sides.items()):
        raise Refused("it pads channels")
    own = [sides.get(dim, (0, 0)) for dim in site.dims]
    if mode == "constant":
        pad: AbstractOp = ConstantPad([a for a, _ in own], site.extent, value)
    elif mode in ("reflect", "replicate"):
        pad = _border(own, site, mode)
    else:
        raise Refused(f"mode '{mode}' joins opposite borders; use 'constant' or 'reflect'")
    return Built(pad, (first_argument(site),))


def _border(sides: Sequence[tuple[int, int]], site: Site, mode: str) -> Gather:
    index = [border_index(n, *s, mode) for n, s in zip(site.extent, sides, strict=True)]
    return Gather(index, regular=True)


def upsample(site: Site, layer: Any) -> Built:
    """An up-sampling layer."""
    align = {"align_corners": layer.align_corners} if layer.align_corners is not None else {}
    recompute = layer.recompute_scale_factor
    return _resized(site, layer.size, layer.scale_factor, layer.mode, recompute, align)


def interpolate(site: Site, _: Any) -> Built:
    """Interpolation as a function."""
    names = ("input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor")
    given: dict[str, Any] = {"size": None, "scale_factor": None, "mode": "nearest"}
    given |= dict(zip((*names, "antialias"), site.shown, strict=False)) | site.named
    if given.get("antialias"):
        raise Refused("antialiased interpolation is not supported; leave antialias off")
    align = given.get("align_corners")
    return _resized(
        site,
        given["size"],
        given["scale_factor"],
        given["mode"],
        given.get("recompute_scale_factor"),
        {} if align is None else {"align_corners": align},
    )


def _resized(
    site: Site, size: Any, scale: Any, mode: str, recompute: Any, align: dict[str, bool]
) -> Built:
    """The layer itself says where its cells lie: it is asked to resize a ramp, axis by axis."""
    channels_first(site)
    options = {"recompute_scale_factor": recompute, "mode": mode}
    if mode in ("linear", "bilinear", "trilinear"):
        options |= {"mode": "linear", **align}
        places = []
        for axis, n in enumerate(site.extent):
            ramp = torch.arange(n, dtype=torch.float64).view(1, 1, n)
            own = {"size": _of_axis(size, axis), "scale_factor": _of_axis(scale, axis)}
            found = functional.interpolate(ramp, **own, **options)
            places.append(found.flatten().numpy())
        return Built(Blend(places, site.extent), (first_argument(site),))
    if mode not in ("nearest", "nearest-exact"):
        raise Refused(f"mode '{mode}' is not supported; use 'nearest' or a linear one")
    index = [_nearest(site, axis, size, scale, options) for axis in range(len(site.extent))]
    return Built(Gather(index), (first_argument(site),))


_PROBES: Mapping[int, Sequence[tuple[torch.memory_format, tuple[int, ...]]]] = {
    1: [(torch.contiguous_format, ())],
    2: [(f, (m,)) for f in (torch.contiguous_format, torch.channels_last) for m in (3, 150)],
    3: [(f, (3, m)) for f in (torch.contiguous_format, torch.channels_last_3d) for m in (3, 150)],
}
"""By axes: orders of a map in memory, and output cells of the axes that are not asked about."""


def _nearest(site: Site, axis: int, size: Any, scale: Any, options: dict[str, Any]) -> Ints:
    """The input cell of every output cell along an axis, as the layer itself gives it for a ramp.

    Asked in the map's own rank, precision and device, and for small and large maps in both orders
    in memory: the layer has several ways to compute it, which round otherwise.
    """
    n, outer = site.extent[axis], site.result.shape[2 + axis]
    if scale is None and outer == n:
        return np.arange(n)
    dtype = torch.promote_types(site.result.dtype, torch.float32)
    ramp = torch.arange(n, dtype=dtype, device=site.result.device)
    found = []
    for form, others in _PROBES[len(site.extent)]:
        sides, given = [2] * len(others), [float(m) / 2 for m in others]
        sides.insert(axis, n)
        own: dict[str, Any] = {"size": None, "scale_factor": None}
        if scale is None:
            own["size"] = [*others[:axis], outer, *others[axis:]]
        else:
            own["scale_factor"] = [*given[:axis], _of_axis(scale, axis), *given[axis:]]
        shape = [-1 if i == axis else 1 for i in range(len(sides))]
        maps = ramp.view(shape).expand(1, 8, *sides).contiguous(memory_format=form)
        cells = functional.interpolate(maps, **own, **options)[0, 0].movedim(axis, 0)
        found.append(cells.reshape(len(cells), -1)[:, 0].cpu().numpy().astype(np.int64))
    if any(not np.array_equal(other, found[0]) for other in found):
        raise Refused(
            "between these sizes, which cell is nearest hangs on how large the map is and how it "
            "lies in memory; take a whole scale_factor, another size, or a linear mode"
        )
    return found[0]


def _of_axis(value: Any, axis: int) -> Any:
    """A size or scale of one axis; None stays."""
    return value[axis] if isinstance(value, tuple | list | torch.Size) else value
