"""Rules of layers with sliding windows, and of layers that pad or resize maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from foveate.streaming.base import AbstractOp, Ints
from foveate.streaming.padded import kernel_padding
from foveate.streaming.pointwise import Blend, Chain, ConstantPad, Gather, border_index
from foveate.streaming.site import (
    CallSite,
    LateParameter,
    MapRef,
    Refused,
    RuleResult,
    first_argument,
    require_channels_first,
)
from foveate.streaming.windows import (
    Convolution,
    PerAxis,
    SlidingWindow,
    TransposedConvolution,
    TransposedWindow,
    WindowMax,
    WindowMean,
    make_same_windows,
    make_windows,
    per_axis,
)


def convolution(site: CallSite, conv: Any) -> RuleResult:
    """Translate a convolution layer.

    Raises:
        Refused: the padding joins opposite borders.
    """
    args = (site.args[0], LateParameter(conv, "weight"), LateParameter(conv, "bias"))
    mode = conv.padding_mode
    if mode in ("reflect", "replicate"):
        axes = make_windows(conv.kernel_size, 1, conv.padding, conv.dilation, site.extent)
        border = _border([(w.left, w.right) for w in axes], site, mode)
        extent = [n + w.left + w.right for n, w in zip(site.extent, axes, strict=True)]
        inner = _convolve(site, conv.weight, conv.stride, 0, conv.dilation, conv.groups, extent)
        return RuleResult(Chain(border, inner), args)
    if mode != "zeros":
        raise Refused(f"padding_mode '{mode}' joins opposite borders; use 'zeros' or 'reflect'")
    op = _convolve(
        site, conv.weight, conv.stride, conv.padding, conv.dilation, conv.groups, site.extent
    )
    return RuleResult(op, args)


def convolution_call(site: CallSite, _: object) -> RuleResult:
    """Translate a convolution function, whose weights may be computed from parameters."""
    args, values = _convolution_arguments(site, ("stride", "padding", "dilation", "groups"))
    weight, stride, padding, dilation, groups = values
    return RuleResult(_convolve(site, weight, stride, padding, dilation, groups, site.extent), args)


def _convolution_arguments(
    site: CallSite, options: Sequence[str]
) -> tuple[tuple[Any, ...], list[Any]]:
    """Collect the arguments of a convolution function.

    Args:
        site: the call site.
        options: names of the arguments after the bias, in order; empty for one that is not used.

    Returns:
        Placeholders for input, weight and bias; and the weight as a fake tensor, with the values of
        the named options.
    """
    names = ("input", "weight", "bias", *options)
    defaults = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    values = defaults | site.bind(names)
    placeholders = {"bias": None} | dict(zip(names, site.args, strict=False)) | site.kwargs
    args = (placeholders["input"], placeholders["weight"], placeholders["bias"])
    if any(isinstance(arg, MapRef) for arg in args[1:]):
        raise Refused("its weights are computed from the image")
    return args, [values["weight"], *(values[name] for name in options if name)]


def _convolve(
    site: CallSite,
    weight: Float[Tensor, "k c *kernel"],
    stride: PerAxis,
    padding: Any,
    dilation: PerAxis,
    groups: int,
    extent: Sequence[int],
) -> Convolution:
    """Make a convolution from its options and its weight ``(k, c / groups, *kernel)``.

    Args:
        site: the call site.
        weight: weight of the layer; only its shape is used.
        stride: stride, one number or one per axis.
        padding: padding, one number or one per axis, or ``same`` or ``valid``.
        dilation: dilation, one number or one per axis.
        groups: number of groups of channels.
        extent: cells of the input per axis.
    """
    require_channels_first(site)
    kernel = tuple(weight.shape[2:])
    work = 2.0 * math.prod(kernel) * weight.shape[1]
    axes = make_windows(kernel, stride, padding, dilation, extent)
    return Convolution(axes, groups=groups, work=work)


def same_convolution(site: CallSite, conv: Any) -> RuleResult:
    """Translate a convolution layer that pads as TensorFlow does ("same")."""
    axes = make_same_windows(conv.kernel_size, conv.stride, conv.dilation, site.extent)
    return _padded_convolution(site, conv, axes)


def kernel_padded_convolution(site: CallSite, conv: Any) -> RuleResult:
    """Translate a `PaddedConv2d`, whose padding depends only on its kernel."""
    axes = []
    for k, s, n in zip(conv.kernel_size, conv.stride, site.extent, strict=True):
        left, right = kernel_padding(k, s, n)
        axes.append(SlidingWindow(k, s, 1, left, right, n))
    return _padded_convolution(site, conv, axes)


def _padded_convolution(site: CallSite, conv: Any, axes: Sequence[SlidingWindow]) -> RuleResult:
    """Translate a convolution layer with the sliding windows of each axis."""
    require_channels_first(site)
    work = 2.0 * math.prod(conv.kernel_size) * conv.weight.shape[1]
    args = (site.args[0], LateParameter(conv, "weight"), LateParameter(conv, "bias"))
    return RuleResult(Convolution(axes, groups=conv.groups, work=work), args)


def transposed(site: CallSite, conv: Any) -> RuleResult:
    """Translate a transposed convolution layer."""
    args = (site.args[0], LateParameter(conv, "weight"), LateParameter(conv, "bias"))
    options = (conv.stride, conv.padding, conv.dilation, conv.groups)
    return RuleResult(_convolve_transposed(site, conv.weight, *options), args)


def transposed_call(site: CallSite, _: object) -> RuleResult:
    """Translate a call of a transposed convolution; its weight may be an output of other steps."""
    args, values = _convolution_arguments(site, ("stride", "padding", "", "groups", "dilation"))
    weight, stride, padding, groups, dilation = values
    return RuleResult(_convolve_transposed(site, weight, stride, padding, dilation, groups), args)


def _convolve_transposed(
    site: CallSite,
    weight: Float[Tensor, "c k *kernel"],
    stride: PerAxis,
    padding: PerAxis,
    dilation: PerAxis,
    groups: int,
) -> TransposedConvolution:
    """Make a transposed convolution from its weight ``(c, k / groups, *kernel)`` and options."""
    require_channels_first(site)
    d = len(site.extent)
    s, dil, p = (per_axis(v, d) for v in (stride, dilation, padding))
    axes = [
        TransposedWindow(weight.shape[2 + axis], s[axis], dil[axis], p[axis], n)
        for axis, n in enumerate(site.extent)
    ]
    work = 2.0 * weight.shape[0] / groups
    work *= math.prod(-(-s.kernel // s.stride) for s in axes)
    return TransposedConvolution(axes, groups=groups, work=work)


def max_pool(site: CallSite, pool: Any) -> RuleResult:
    """Translate a maximum pooling layer.

    Raises:
        Refused: the layer returns the positions of the maxima.
    """
    if pool.return_indices:
        raise Refused("return_indices gives positions within a part; leave it off")
    options = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    return RuleResult(WindowMax(_pooling_windows(site, *options)))


def max_pool_call(site: CallSite, function: Any) -> RuleResult:
    """Translate a maximum pooling function."""
    names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
    options: dict[str, Any] = {"stride": None, "padding": 0, "dilation": 1}
    options |= site.bind(names)
    values = (options[k] for k in ("kernel_size", "stride", "padding", "dilation"))
    return RuleResult(WindowMax(_pooling_windows(site, *values)), (first_argument(site),))


def same_max_pool(site: CallSite, pool: Any) -> RuleResult:
    """Translate a maximum pooling layer that pads as TensorFlow does ("same")."""
    require_channels_first(site)
    axes = make_same_windows(pool.kernel_size, pool.stride, pool.dilation, site.extent)
    return RuleResult(WindowMax(axes))


def mean_pool(site: CallSite, pool: Any) -> RuleResult:
    """Translate a mean pooling layer."""
    axes = _pooling_windows(site, pool.kernel_size, pool.stride, pool.padding, 1)
    divisor = getattr(pool, "divisor_override", None)
    return RuleResult(WindowMean(axes, count_pad=pool.count_include_pad, divisor=divisor))


def mean_pool_call(site: CallSite, _: object) -> RuleResult:
    """Translate a mean pooling function."""
    names = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
    options: dict[str, Any] = {"stride": None, "padding": 0, "count_include_pad": True}
    options["divisor_override"] = None
    options |= site.bind((*names, "divisor_override"))
    axes = _pooling_windows(site, options["kernel_size"], options["stride"], options["padding"], 1)
    op = WindowMean(
        axes, count_pad=options["count_include_pad"], divisor=options["divisor_override"]
    )
    return RuleResult(op, (first_argument(site),))


def _pooling_windows(
    site: CallSite, kernel: PerAxis, stride: PerAxis, padding: Any, dilation: PerAxis
) -> list[SlidingWindow]:
    """Make the sliding windows of a pooling; the default stride is the side of the kernel."""
    require_channels_first(site)
    return make_windows(kernel, stride or kernel, padding, dilation, site.extent)


# -- borders and sizes ----------------------------------------------------------------------------


def pad_layer(site: CallSite, pad: Any) -> RuleResult:
    """Translate a padding layer."""
    modes = {"Reflection": "reflect", "Replication": "replicate", "Circular": "circular"}
    mode = next((m for w, m in modes.items() if type(pad).__name__.startswith(w)), "constant")
    flat = per_axis(pad.padding, 2 * len(site.extent))
    return _pad(site, flat, mode, float(getattr(pad, "value", 0.0)))


def pad_call(site: CallSite, _: object) -> RuleResult:
    """Translate a padding function."""
    options = site.bind(("input", "pad", "mode", "value"))
    flat, value = tuple(options["pad"]), options.get("value")
    return _pad(site, flat, options.get("mode", "constant"), float(value or 0.0))


def _pad(site: CallSite, flat: Sequence[int], mode: str, value: float) -> RuleResult:
    """Translate a padding.

    Args:
        site: the call site.
        flat: cells to add before and behind each dimension, in PyTorch's order: the last dimension
            comes first.
        mode: PyTorch's name of the mode.
        value: value of the new cells in mode ``constant``.

    Raises:
        Refused: channels are padded, or the mode joins opposite borders.
    """
    first = site.fake_args[0] if site.fake_args else site.fake_kwargs["input"]
    sides = {first.ndim - 1 - i: (flat[2 * i], flat[2 * i + 1]) for i in range(len(flat) // 2)}
    if any(dim not in site.dims and side != (0, 0) for dim, side in sides.items()):
        raise Refused("it pads channels")
    spatial = [sides.get(dim, (0, 0)) for dim in site.dims]
    if mode == "constant":
        pad: AbstractOp = ConstantPad([a for a, _ in spatial], site.extent, value)
    elif mode in ("reflect", "replicate"):
        pad = _border(spatial, site, mode)
    else:
        raise Refused(f"mode '{mode}' joins opposite borders; use 'constant' or 'reflect'")
    return RuleResult(pad, (first_argument(site),))


def _border(sides: Sequence[tuple[int, int]], site: CallSite, mode: str) -> Gather:
    """Make a padding that copies cells of the input.

    Args:
        sides: cells to add before and behind each axis.
        site: the call site.
        mode: ``reflect`` or ``replicate``.
    """
    index = [border_index(n, *s, mode) for n, s in zip(site.extent, sides, strict=True)]
    return Gather(index, regular=True)


def upsample(site: CallSite, layer: Any) -> RuleResult:
    """Translate an up-sampling layer."""
    align = {"align_corners": layer.align_corners} if layer.align_corners is not None else {}
    recompute = layer.recompute_scale_factor
    return _resize(site, layer.size, layer.scale_factor, layer.mode, recompute, align)


def interpolate(site: CallSite, _: object) -> RuleResult:
    """Translate an interpolation function.

    Raises:
        Refused: the interpolation is antialiased, or its mode is not supported.
    """
    names = ("input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor")
    options: dict[str, Any] = {"size": None, "scale_factor": None, "mode": "nearest"}
    options |= site.bind((*names, "antialias"))
    if options.get("antialias"):
        raise Refused("antialiased interpolation is not supported; leave antialias off")
    align = options.get("align_corners")
    return _resize(
        site,
        options["size"],
        options["scale_factor"],
        options["mode"],
        options.get("recompute_scale_factor"),
        {} if align is None else {"align_corners": align},
    )


def _resize(
    site: CallSite, size: Any, scale: Any, mode: str, recompute: Any, align: dict[str, bool]
) -> RuleResult:
    """Translate a resizing; PyTorch resizes a ramp along each axis, which shows its input cells."""
    require_channels_first(site)
    options = {"recompute_scale_factor": recompute, "mode": mode}
    if mode in ("linear", "bilinear", "trilinear"):
        options |= {"mode": "linear", **align}
        places = []
        for axis, n in enumerate(site.extent):
            ramp = torch.arange(n, dtype=torch.float64).view(1, 1, n)
            target = {"size": _of_axis(size, axis), "scale_factor": _of_axis(scale, axis)}
            resized = functional.interpolate(ramp, **target, **options)
            places.append(resized.flatten().numpy())
        return RuleResult(Blend(places, site.extent), (first_argument(site),))
    if mode not in ("nearest", "nearest-exact"):
        raise Refused(f"mode '{mode}' is not supported; use 'nearest' or a linear one")
    index = [_nearest(site, axis, size, scale, options) for axis in range(len(site.extent))]
    return RuleResult(Gather(index), (first_argument(site),))


_PROBES: Mapping[int, Sequence[tuple[torch.memory_format, tuple[int, ...]]]] = {
    1: [(torch.contiguous_format, ())],
    2: [(f, (m,)) for f in (torch.contiguous_format, torch.channels_last) for m in (3, 150)],
    3: [(f, (3, m)) for f in (torch.contiguous_format, torch.channels_last_3d) for m in (3, 150)],
}
"""Maps on which `_nearest` measures, by their number of axes: memory format, and number of output
cells along the other axes."""


def _nearest(site: CallSite, axis: int, size: Any, scale: Any, options: dict[str, Any]) -> Ints:
    """Find the input cell that each output cell copies, along one axis, by resizing a ramp.

    PyTorch has several implementations of this, which round differently. The ramp therefore has the
    rank, precision and device of the map, and both sizes and memory formats of `_PROBES`.

    Raises:
        Refused: the implementations do not agree.
    """
    n, outer = site.extent[axis], site.fake_result.shape[2 + axis]
    if scale is None and outer == n:
        return np.arange(n)
    dtype = torch.promote_types(site.fake_result.dtype, torch.float32)
    ramp = torch.arange(n, dtype=dtype, device=site.fake_result.device)
    measured = []
    for form, others in _PROBES[len(site.extent)]:
        sides, factors = [2] * len(others), [float(m) / 2 for m in others]
        sides.insert(axis, n)
        target: dict[str, Any] = {"size": None, "scale_factor": None}
        if scale is None:
            target["size"] = [*others[:axis], outer, *others[axis:]]
        else:
            target["scale_factor"] = [*factors[:axis], _of_axis(scale, axis), *factors[axis:]]
        shape = [-1 if i == axis else 1 for i in range(len(sides))]
        maps = ramp.view(shape).expand(1, 8, *sides).contiguous(memory_format=form)
        cells = functional.interpolate(maps, **target, **options)[0, 0].movedim(axis, 0)
        measured.append(cells.reshape(len(cells), -1)[:, 0].cpu().numpy().astype(np.int64))
    if any(not np.array_equal(other, measured[0]) for other in measured):
        raise Refused(
            "between these sizes, which cell is nearest hangs on how large the map is and how it "
            "lies in memory; take a whole scale_factor, another size, or a linear mode"
        )
    return measured[0]


def _of_axis(value: Any, axis: int) -> Any:
    """Return the size or scale of an axis; `value` is one for all axes, one per axis, or None."""
    return value[axis] if isinstance(value, tuple | list | torch.Size) else value
