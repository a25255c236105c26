"""Rules of layers with sliding windows, and of layers that pad or resize maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from foveate.streaming.base import AbstractOp, Ints
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
    SlidingWindow,
    TransposedConvolution,
    WindowMax,
    WindowMean,
    make_windows,
    per_axis,
)


def convolution(site: CallSite, conv: Any, padding: str | None = None) -> RuleResult:
    """Translate a convolution, a layer or a function; its weights may be computed from parameters.

    Args:
        site: the call site.
        conv: the layer or function.
        padding: padding of `make_windows`; None for that of the layer or call.

    Raises:
        Refused: the padding joins opposite borders.
    """
    args, options = _convolution_arguments(site, conv, ("stride", "padding", "dilation", "groups"))
    weight, stride, stated_padding, dilation, groups = options
    padding, kernel = padding or stated_padding, weight.shape[2:]
    mode = getattr(conv, "padding_mode", "zeros")
    if mode == "zeros":
        axes = make_windows(kernel, stride, padding, dilation, site.extent_cell)
        return RuleResult(_convolve(site, weight, groups, axes), args)
    if mode not in ("reflect", "replicate"):
        raise Refused(f"padding_mode '{mode}' joins opposite borders; use 'zeros' or 'reflect'")
    padded = make_windows(kernel, 1, padding, dilation, site.extent_cell)
    border = _border([(w.left, w.right) for w in padded], site, mode)
    extent_cell = [n + w.left + w.right for n, w in zip(site.extent_cell, padded, strict=True)]
    axes = make_windows(kernel, stride, 0, dilation, extent_cell)
    return RuleResult(Chain(border, _convolve(site, weight, groups, axes)), args)


def _convolution_arguments(
    site: CallSite, conv: Any, options: Sequence[str]
) -> tuple[tuple[Any, ...], list[Any]]:
    """Collect the arguments of a convolution.

    Args:
        site: the call site.
        conv: the layer or function.
        options: names of the arguments after the bias, in order; empty for one that is not used.

    Returns:
        Placeholders for input, weight and bias; and the weight, of which only the shape is used,
        with the values of the named options.
    """
    if isinstance(conv, nn.Module):
        args = (site.args[0], LateParameter(conv, "weight"), LateParameter(conv, "bias"))
        return args, [getattr(conv, name) for name in ("weight", *options) if name]
    names = ("input", "weight", "bias", *options)
    defaults = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    values = defaults | site.bind(names)
    placeholders = {"bias": None} | dict(zip(names, site.args, strict=False)) | site.kwargs
    args = (placeholders["input"], placeholders["weight"], placeholders["bias"])
    if any(isinstance(arg, MapRef) for arg in args[1:]):
        raise Refused("its weights are computed from the image")
    return args, [values[name] for name in ("weight", *options) if name]


def _convolve(
    site: CallSite, weight: Float[Tensor, "k c *kernel"], groups: int, axes: Sequence[SlidingWindow]
) -> Convolution:
    """Make a convolution from its weight ``(k, c / groups, *kernel)`` and its sliding windows."""
    require_channels_first(site)
    work = 2.0 * math.prod(weight.shape[1:])
    return Convolution(axes, groups=groups, work=work)


def transposed(site: CallSite, conv: Any) -> RuleResult:
    """Translate a transposed convolution, a layer or a function.

    Args:
        site: the call site.
        conv: the layer, or the function that is called.
    """
    require_channels_first(site)
    options = ("stride", "padding", "", "groups", "dilation")
    args, values = _convolution_arguments(site, conv, options)
    weight, stride, padding, groups, dilation = values
    axes = make_windows(weight.shape[2:], stride, padding, dilation, site.extent_cell)
    work = 2.0 * weight.shape[0] / groups * math.prod(-(-w.kernel // w.stride) for w in axes)
    return RuleResult(TransposedConvolution(axes, groups=groups, work=work), args)


def max_pool(site: CallSite, pool: Any, padding: str | None = None) -> RuleResult:
    """Translate a maximum pooling, a layer or a function.

    Args:
        site: the call site.
        pool: the layer or function.
        padding: padding of `make_windows`; None for that of the layer or call.

    Raises:
        Refused: the positions of the maxima are returned.
    """
    options = site.options(
        pool,
        kernel_size=None,
        stride=None,
        padding=0,
        dilation=1,
        ceil_mode=False,
        return_indices=False,
    )
    if options["return_indices"]:
        raise Refused("return_indices gives positions within a part; leave it off")
    options["padding"] = padding or options["padding"]
    return RuleResult(WindowMax(_pooling_windows(site, options)), (first_argument(site),))


def mean_pool(site: CallSite, pool: Any) -> RuleResult:
    """Translate a mean pooling, a layer or a function.

    Args:
        site: the call site.
        pool: the layer, or the function that is called.
    """
    options = site.options(
        pool,
        kernel_size=None,
        stride=None,
        padding=0,
        ceil_mode=False,
        count_include_pad=True,
        divisor_override=None,
    )
    axes = _pooling_windows(site, options | {"dilation": 1})
    count_pad, divisor = options["count_include_pad"], options["divisor_override"]
    op = WindowMean(axes, count_pad=count_pad, divisor=divisor)
    return RuleResult(op, (first_argument(site),))


def _pooling_windows(site: CallSite, options: Mapping[str, Any]) -> list[SlidingWindow]:
    """Make the sliding windows of a pooling; the default stride is the side of the kernel."""
    require_channels_first(site)
    kernel, padding, dilation = (options[k] for k in ("kernel_size", "padding", "dilation"))
    return make_windows(kernel, options["stride"] or kernel, padding, dilation, site.extent_cell)


# -- borders and sizes ----------------------------------------------------------------------------


def pad(site: CallSite, target: Any) -> RuleResult:
    """Translate a padding, a layer or a function.

    Args:
        site: the call site.
        target: the layer, or the function that is called.

    Raises:
        Refused: channels are padded, or the mode joins opposite borders.
    """
    if isinstance(target, nn.Module):
        modes = {"Reflection": "reflect", "Replication": "replicate", "Circular": "circular"}
        name = type(target).__name__
        mode = next((mode for word, mode in modes.items() if name.startswith(word)), "constant")
        padding: Any = target.padding
        flat = per_axis(padding, 2 * len(site.extent_cell))
        value = getattr(target, "value", 0.0)
    else:
        options = site.options(target, pad=(), mode="constant", value=None)
        flat, mode, value = (options[name] for name in ("pad", "mode", "value"))
    # In PyTorch's order: cells before and behind the last dimension come first.
    ndim = site.fake_result.ndim
    sides = {ndim - 1 - i: (flat[2 * i], flat[2 * i + 1]) for i in range(len(flat) // 2)}
    if any(dim not in site.dims and side != (0, 0) for dim, side in sides.items()):
        raise Refused("it pads channels")
    spatial = [sides.get(dim, (0, 0)) for dim in site.dims]
    if mode == "constant":
        op: AbstractOp = ConstantPad([a for a, _ in spatial], site.extent_cell, float(value or 0.0))
    elif mode in ("reflect", "replicate"):
        op = _border(spatial, site, mode)
    else:
        raise Refused(f"mode '{mode}' joins opposite borders; use 'constant' or 'reflect'")
    return RuleResult(op, (first_argument(site),))


def _border(sides: Sequence[tuple[int, int]], site: CallSite, mode: str) -> Gather:
    """Make a padding that copies cells of the input.

    Args:
        sides: cells to add before and behind each axis.
        site: the call site.
        mode: ``reflect`` or ``replicate``.
    """
    index = [border_index(n, *s, mode) for n, s in zip(site.extent_cell, sides, strict=True)]
    return Gather(index, regular=True)


def resize(site: CallSite, target: Any) -> RuleResult:
    """Translate an up-sampling layer or an interpolation function.

    PyTorch resizes a ramp along each axis, which shows the input cells of each output cell.

    Args:
        site: the call site.
        target: the layer, or the function that is called.

    Raises:
        Refused: the interpolation is antialiased, or its mode is not supported.
    """
    require_channels_first(site)
    options = site.options(
        target,
        size=None,
        scale_factor=None,
        mode="nearest",
        align_corners=None,
        recompute_scale_factor=None,
        antialias=False,
    )
    if options["antialias"]:
        raise Refused("antialiased interpolation is not supported; leave antialias off")
    size, scale, mode = (options[name] for name in ("size", "scale_factor", "mode"))
    further = {name: options[name] for name in ("align_corners", "recompute_scale_factor")}
    if mode in ("linear", "bilinear", "trilinear"):
        places = []
        for axis, n in enumerate(site.extent_cell):
            ramp = torch.arange(n, dtype=torch.float64).view(1, 1, n)
            target_size = {"size": _of_axis(size, axis), "scale_factor": _of_axis(scale, axis)}
            resized = functional.interpolate(ramp, **target_size, mode="linear", **further)
            places.append(resized.flatten().numpy())
        return RuleResult(Blend(places, site.extent_cell), (first_argument(site),))
    if mode not in ("nearest", "nearest-exact"):
        raise Refused(f"mode '{mode}' is not supported; use 'nearest' or a linear one")
    further["mode"] = mode
    index = [_nearest(site, axis, size, scale, further) for axis in range(len(site.extent_cell))]
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
    n, outer = site.extent_cell[axis], site.fake_result.shape[2 + axis]
    if scale is None and outer == n:
        return np.arange(n)
    dtype = torch.promote_types(site.fake_result.dtype, torch.float32)
    ramp = torch.arange(n, dtype=dtype, device=site.fake_result.device)
    measured = []
    for form, others in _PROBES[len(site.extent_cell)]:
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
