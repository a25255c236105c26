"""Rules that translate layers to local operations; layers without a rule are refused by name.

A rule takes a call site, and the layer or function that is called there. It returns the operation,
or raises `Refused` where this use is not local.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from foveate.streaming.dropout import dropout, dropout_call, image_dropout
from foveate.streaming.pointwise import Pointwise
from foveate.streaming.rules_channels import (
    along,
    along_layer,
    attribute,
    channel_shuffle,
    item,
    min_or_max,
    pixel_shuffle,
    pixel_unshuffle,
)
from foveate.streaming.rules_windows import (
    convolution,
    max_pool,
    mean_pool,
    pad,
    resize,
    transposed,
)
from foveate.streaming.site import (
    CallSite,
    ConstantRef,
    FrozenNorm,
    LateParameter,
    MapRef,
    Refused,
    Rule,
    RuleResult,
    require_channels_first,
)


def _activation(_: CallSite, module: Any) -> RuleResult:
    return RuleResult(Pointwise(mutates=bool(getattr(module, "inplace", False)), fresh=True))


def _batch_norm(site: CallSite, norm: Any) -> RuleResult:
    require_channels_first(site)
    on_batch: bool
    eps: Any
    names = ("running_mean", "running_var", "weight", "bias")
    if isinstance(norm, nn.Module):
        values: tuple[Any, ...] = tuple(LateParameter(norm, name) for name in names)
        on_batch, eps = norm.training or norm.running_mean is None, norm.eps
    else:
        options = site.bind(("input", *names, "training", "momentum", "eps"))
        on_batch, eps = bool(options.get("training")), options.get("eps", 1e-5)
        args = dict(zip(("input", *names), site.args, strict=False)) | site.kwargs
        values = tuple(args.get(name) for name in names)
    if on_batch:
        raise Refused(
            "batch norm on batch statistics looks at the whole image: freeze it (.eval()), or "
            "replace it by layer norm over channels"
        )
    return RuleResult(Pointwise(fresh=True), norm=FrozenNorm(values, eps))


def _layer_norm(site: CallSite, norm: Any) -> RuleResult:
    n_dims = len(site.options(norm, normalized_shape=())["normalized_shape"])
    if any(d >= site.fake_result.ndim - n_dims for d in site.dims):
        raise Refused("layer norm over space looks at the whole map: normalise channels only")
    return RuleResult(Pointwise(fresh=True, work=8.0))


def _linear(site: CallSite, layer: Any) -> RuleResult:
    if any(isinstance(arg, MapRef) for arg in site.args[1:]):
        raise Refused("its weights are computed from the image")
    weight = layer.weight if isinstance(layer, nn.Linear) else site.fake_args[1]
    if site.dims[-1] == site.fake_result.ndim - 1:
        raise Refused("a linear layer along a spatial axis looks at the whole map")
    return RuleResult(Pointwise(fresh=True, work=2.0 * weight.shape[1]))


def _prelu(site: CallSite, target: Any) -> RuleResult:
    weight = target.weight if isinstance(target, nn.PReLU) else site.fake_args[1]
    if weight.numel() > 1:
        require_channels_first(site)
    return RuleResult(Pointwise(fresh=True))


def _elementwise(site: CallSite, target: Any) -> RuleResult:
    if "out" in site.kwargs:
        raise Refused("it writes into another map (out=...)")
    ndim = site.fake_result.ndim
    pairs = [*zip(site.args, site.fake_args, strict=True)]
    pairs += [(site.kwargs[key], site.fake_kwargs[key]) for key in site.kwargs]
    for arg, fake in pairs:
        if isinstance(arg, ConstantRef) and isinstance(fake, Tensor):
            sides = [fake.shape[d - ndim] for d in (0, *site.dims) if ndim - d <= fake.ndim]
            if any(side != 1 for side in sides):
                raise Refused("a parameter has one value per place")
    return RuleResult(
        Pointwise(mutates=overwrites(target, site.fake_args, site.fake_kwargs), fresh=True)
    )


def overwrites(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a layer, function or method overwrites its first argument.

    Args:
        target: the layer, the function, or the name of the method.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
    """
    if isinstance(target, nn.Module):
        return bool(getattr(target, "inplace", False))
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    if name in _IN_PLACE or (name.endswith("_") and not name.startswith("_")):
        return True
    if not inspect.isfunction(target):
        return bool(kwargs.get("inplace"))
    names = inspect.signature(target).parameters
    return bool((dict(zip(names, args, strict=False)) | dict(kwargs)).get("inplace"))


def _identity(site: CallSite, _: object) -> RuleResult:
    return RuleResult(Pointwise(), identity=True)


def _same_memory(site: CallSite, _: object) -> RuleResult:
    return RuleResult(Pointwise())


def _permute(site: CallSite, target: Any) -> RuleResult:
    dims = site.fake_kwargs.get("dims")
    order = dims if dims is not None else site.fake_args[1:]
    if len(order) == 1 and isinstance(order[0], tuple | list):
        order = order[0]
    order = [d % len(order) for d in order]
    if order[0] != 0:
        raise Refused("it moves the images of a batch")
    return RuleResult(Pointwise(), dims=_check_order([order.index(d) for d in site.dims]))


def _transpose(site: CallSite, target: Any) -> RuleResult:
    first, second = (d % site.fake_result.ndim for d in site.fake_args[1:3])
    if 0 in (first, second):
        raise Refused("it moves the images of a batch")
    swap = {first: second, second: first}
    return RuleResult(Pointwise(), dims=_check_order([swap.get(d, d) for d in site.dims]))


def _check_order(dims: list[int]) -> tuple[int, ...]:
    """Return spatial dimensions, which must keep their order."""
    if sorted(dims) != dims:
        raise Refused("it exchanges spatial axes")
    return tuple(dims)


# -- the tables -----------------------------------------------------------------------------------

_parts = along(0, 2, shares=True)
_softmax = along(None, 1, missing="name its dimension: 1 for channels")
_reduced = along(None, 1)
_IN_PLACE = {"iadd", "isub", "imul", "itruediv", "ipow"}
_F = functional

_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign),
    *(nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Threshold),
)

MODULES: Mapping[type[nn.Module], Rule] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), convolution),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), transposed),
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), max_pool),
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), mean_pool),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm),
    **dict.fromkeys(_ACTIVATIONS, _activation),
    **dict.fromkeys((nn.Dropout, nn.AlphaDropout), dropout),
    **dict.fromkeys((nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), image_dropout),
    **dict.fromkeys(
        (
            *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
            *(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
            *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
            *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
            *(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
        ),
        pad,
    ),
    **dict.fromkeys((nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d), resize),
    **dict.fromkeys((nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin, nn.GLU), along_layer),
    nn.PixelShuffle: pixel_shuffle,
    nn.PixelUnshuffle: pixel_unshuffle,
    nn.ChannelShuffle: channel_shuffle,
    nn.PReLU: _prelu,
    nn.Identity: _identity,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _layer_norm,
    nn.Linear: _linear,
}
"""Rules of PyTorch's layers, by class. A subclass with another `forward` is traced through."""

BY_NAME: Mapping[str, Rule] = {
    "DropPath": image_dropout,
    "StochasticDepth": image_dropout,
    "Conv2dSame": partial(convolution, padding="tensorflow"),
    "MaxPool2dSame": partial(max_pool, padding="tensorflow"),
    "PaddedConv2d": partial(convolution, padding="kernel"),
    "DepthwiseConv2d": convolution,
}
"""Rules of further layers that cannot be traced through, by the name of the class."""

_ARITHMETIC = (
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, operator.pow),
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow),
    *(torch.add, torch.sub, torch.mul, torch.div, torch.neg, torch.pow, torch.exp, torch.log),
    *(torch.sqrt, torch.rsqrt, torch.abs, torch.square, torch.clamp, torch.maximum, torch.minimum),
    *(torch.sigmoid, torch.tanh, torch.relu, torch.where, torch.erf),
    *(_F.relu, _F.relu6, _F.leaky_relu, _F.elu, _F.selu, _F.celu, _F.gelu, _F.silu, _F.mish),
    *(_F.hardswish, _F.hardsigmoid, _F.hardtanh, _F.sigmoid, _F.tanh, _F.softplus),
    *(_F.logsigmoid, _F.softsign, _F.tanhshrink, _F.softshrink, _F.hardshrink, _F.threshold),
    *(torch.relu_, torch.sigmoid_, torch.tanh_, torch.sin, torch.cos, torch.log1p, torch.expm1),
    *(torch.sign, torch.reciprocal, torch.lerp, torch.addcmul, torch.addcdiv),
    *(operator.gt, operator.ge, operator.lt, operator.le, operator.eq, operator.ne),
    *(torch.gt, torch.ge, torch.lt, torch.le, torch.eq, torch.ne, torch.isfinite, torch.isnan),
    *(operator.and_, operator.or_, operator.xor, operator.invert, torch.masked_fill),
    *(torch.logical_and, torch.logical_or, torch.logical_xor, torch.logical_not),
)

FUNCTIONS: Mapping[Any, Rule] = {
    **dict.fromkeys(_ARITHMETIC, _elementwise),
    **dict.fromkeys((_F.conv1d, _F.conv2d, _F.conv3d), convolution),
    **dict.fromkeys((_F.max_pool1d, _F.max_pool2d, _F.max_pool3d), max_pool),
    **dict.fromkeys((torch.max_pool1d, torch.max_pool2d, torch.max_pool3d), max_pool),
    **dict.fromkeys((_F.avg_pool1d, _F.avg_pool2d, _F.avg_pool3d), mean_pool),
    **dict.fromkeys((_F.dropout, _F.dropout1d, _F.dropout2d, _F.dropout3d), dropout_call),
    _F.alpha_dropout: dropout_call,
    _F.prelu: _prelu,
    _F.pad: pad,
    _F.interpolate: resize,
    _F.batch_norm: _batch_norm,
    _F.layer_norm: _layer_norm,
    _F.linear: _linear,
    torch.permute: _permute,
    torch.transpose: _transpose,
    torch.cat: along(0, 1),
    torch.concat: along(0, 1),
    torch.chunk: _parts,
    torch.split: _parts,
    **dict.fromkeys((torch.softmax, torch.log_softmax, _F.softmax, _F.log_softmax), _softmax),
    _F.softmin: _softmax,
    _F.normalize: along(1, 2),
    _F.glu: along(-1, 1),
    **dict.fromkeys((torch.mean, torch.sum, torch.amax, torch.amin, torch.prod), _reduced),
    **dict.fromkeys((torch.std, torch.var, torch.logsumexp), _reduced),
    **dict.fromkeys((torch.max, torch.min), min_or_max(_elementwise)),
    **dict.fromkeys((_F.conv_transpose1d, _F.conv_transpose2d, _F.conv_transpose3d), transposed),
    _F.pixel_shuffle: pixel_shuffle,
    _F.pixel_unshuffle: pixel_unshuffle,
    **dict.fromkeys((torch.channel_shuffle, _F.native_channel_shuffle), channel_shuffle),
    operator.getitem: item,
    getattr: attribute,
}

_SAME_VALUES = (
    *("contiguous", "to", "type", "type_as", "float", "double", "half", "bfloat16", "bool"),
    "detach",
)
_METHODS = ("add", "sub", "mul", "div", "neg", "pow", "exp", "log", "sqrt", "rsqrt", "abs")

METHODS: Mapping[str, Rule] = {
    **dict.fromkeys(_SAME_VALUES, _same_memory),
    **{name + end: _elementwise for name in _METHODS for end in ("", "_")},
    **dict.fromkeys(("relu", "relu_", "sigmoid", "sigmoid_", "tanh", "clamp"), _elementwise),
    **dict.fromkeys(("clamp_", "square", "clone", "clip"), _elementwise),
    **dict.fromkeys(("gt", "ge", "lt", "le", "eq", "ne", "where"), _elementwise),
    **dict.fromkeys(("masked_fill", "masked_fill_", "sign"), _elementwise),
    **dict.fromkeys(("logical_and", "logical_or", "logical_not"), _elementwise),
    "permute": _permute,
    "transpose": _transpose,
    "chunk": _parts,
    "split": _parts,
    **dict.fromkeys(("softmax", "log_softmax"), _softmax),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "prod", "std", "var"), _reduced),
    "logsumexp": _reduced,
    **dict.fromkeys(("max", "min"), min_or_max(_elementwise)),
}


def find_rule(module: nn.Module) -> Rule | None:
    """Find the rule of a layer; None without one, as for a subclass with another `forward`."""
    if type(module).__name__ in BY_NAME:
        return BY_NAME[type(module).__name__]
    for kind in type(module).__mro__:
        base: Any = kind
        if kind in MODULES and type(module).forward is base.forward:
            return MODULES[kind]
    return None


def may_share(target: Any) -> bool:
    """Return whether the result of a call may be a view of its first argument.

    Args:
        target: the layer, the function, or the name of the method.
    """
    if isinstance(target, nn.Module):
        may_be_identity = isinstance(target, nn.Identity | nn.modules.dropout._DropoutNd)
        return may_be_identity or BY_NAME.get(type(target).__name__) is image_dropout
    rule = METHODS.get(target) if isinstance(target, str) else FUNCTIONS.get(target)
    views = (_same_memory, _permute, _transpose, _parts, item, attribute, dropout_call)
    return rule is None or rule in views
