"""Which layers are local, and which operation each becomes; all others are refused by name."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from foveate.streaming.dropout import dropout, dropout_call, per_image
from foveate.streaming.pointwise import Pointwise
from foveate.streaming.rules_channels import (
    along,
    along_layer,
    attribute,
    channel_shuffle,
    extreme,
    item,
    pixel_shuffle,
    pixel_unshuffle,
)
from foveate.streaming.rules_windows import (
    convolution,
    convolution_call,
    interpolate,
    max_pool,
    max_pool_call,
    mean_pool,
    mean_pool_call,
    pad_call,
    pad_layer,
    padded_convolution,
    same_convolution,
    same_max_pool,
    transposed,
    transposed_call,
    upsample,
)
from foveate.streaming.site import (
    Built,
    Constant,
    Late,
    Ref,
    Refused,
    Rule,
    Scales,
    Site,
    channels_first,
)


def _activation(_: Site, module: Any) -> Built:
    return Built(Pointwise(mutates=bool(getattr(module, "inplace", False)), fresh=True))


def _batch_norm(site: Site, norm: Any) -> Built:
    channels_first(site)
    if norm.training or norm.running_mean is None:
        raise Refused(
            "batch norm on batch statistics looks at the whole image: freeze it (.eval()), or "
            "replace it by layer norm over channels"
        )
    own = tuple(Late(norm, name) for name in ("running_mean", "running_var", "weight", "bias"))
    return Built(Pointwise(fresh=True), scales=Scales(own, norm.eps))


def _batch_norm_call(site: Site, _: Any) -> Built:
    norm = ("running_mean", "running_var", "weight", "bias")
    names = ("input", *norm, "training", "momentum", "eps")
    given = dict(zip(names, site.shown, strict=False)) | site.named
    own = {"weight": None, "bias": None} | dict(zip(names, site.args, strict=False)) | site.kwargs
    channels_first(site)
    if given.get("training"):
        raise Refused(
            "batch norm on batch statistics looks at the whole image: freeze it (.eval())"
        )
    scales = Scales(tuple(own[name] for name in norm), given.get("eps", 1e-5))
    return Built(Pointwise(fresh=True), scales=scales)


def _layer_norm(site: Site, norm: Any) -> Built:
    return _normed(site, len(norm.normalized_shape))


def _layer_norm_call(site: Site, _: Any) -> Built:
    shape = site.shown[1] if len(site.shown) > 1 else site.named["normalized_shape"]
    return _normed(site, len(shape))


def _normed(site: Site, n_dims: int) -> Built:
    if any(d >= site.result.ndim - n_dims for d in site.dims):
        raise Refused("layer norm over space looks at the whole map: normalise channels only")
    return Built(Pointwise(fresh=True, work=8.0))


def _linear(site: Site, layer: Any) -> Built:
    if any(isinstance(arg, Ref) for arg in site.args[1:]):
        raise Refused("its weights are computed from the image")
    weight = layer.weight if isinstance(layer, nn.Linear) else site.shown[1]
    if site.dims[-1] == site.result.ndim - 1:
        raise Refused("a linear layer along a spatial axis looks at the whole map")
    return Built(Pointwise(fresh=True, work=2.0 * weight.shape[1]))


def _prelu(site: Site, target: Any) -> Built:
    weight = target.weight if isinstance(target, nn.PReLU) else site.shown[1]
    if weight.numel() > 1:
        channels_first(site)
    return Built(Pointwise(fresh=True))


def _elementwise(site: Site, target: Any) -> Built:
    if "out" in site.kwargs:
        raise Refused("it writes into another map (out=...)")
    ndim = site.result.ndim
    pairs = [*zip(site.args, site.shown, strict=True)]
    pairs += [(site.kwargs[key], site.named[key]) for key in site.kwargs]
    for arg, stand in pairs:
        if isinstance(arg, Constant) and isinstance(stand, Tensor):
            sides = [stand.shape[d - ndim] for d in (0, *site.dims) if ndim - d <= stand.ndim]
            if any(side != 1 for side in sides):
                raise Refused("a parameter has one value per place")
    return Built(Pointwise(mutates=overwrites(target, site.shown, site.named), fresh=True))


def overwrites(target: Any, args: Sequence[Any], named: Mapping[str, Any]) -> bool:
    """Whether a layer, function or method overwrites its first argument."""
    if isinstance(target, nn.Module):
        return bool(getattr(target, "inplace", False))
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    if name in _IN_PLACE or (name.endswith("_") and not name.startswith("_")):
        return True
    if not inspect.isfunction(target):
        return bool(named.get("inplace"))
    names = inspect.signature(target).parameters
    return bool((dict(zip(names, args, strict=False)) | dict(named)).get("inplace"))


def _identity(site: Site, _: Any) -> Built:
    return Built(Pointwise(), idle=True)


def _same_memory(site: Site, _: Any) -> Built:
    return Built(Pointwise())


def _permute(site: Site, target: Any) -> Built:
    named = site.named.get("dims")
    order = named if named is not None else site.shown[1:]
    if len(order) == 1 and isinstance(order[0], tuple | list):
        order = order[0]
    order = [d % len(order) for d in order]
    if order[0] != 0:
        raise Refused("it moves the images of a batch")
    return Built(Pointwise(), dims=_ascending([order.index(d) for d in site.dims]))


def _transpose(site: Site, target: Any) -> Built:
    first, second = (d % site.result.ndim for d in site.shown[1:3])
    if 0 in (first, second):
        raise Refused("it moves the images of a batch")
    swap = {first: second, second: first}
    return Built(Pointwise(), dims=_ascending([swap.get(d, d) for d in site.dims]))


def _ascending(dims: list[int]) -> tuple[int, ...]:
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
    **dict.fromkeys((nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), per_image),
    **dict.fromkeys(
        (
            *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
            *(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
            *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
            *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
            *(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
        ),
        pad_layer,
    ),
    **dict.fromkeys((nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d), upsample),
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
"""Layers of torch, by class; one with a `forward` of its own is traced through instead."""

BY_NAME: Mapping[str, Rule] = {
    "DropPath": per_image,
    "StochasticDepth": per_image,
    "Conv2dSame": same_convolution,
    "MaxPool2dSame": same_max_pool,
    "PaddedConv2d": padded_convolution,
}
"""Layers from elsewhere that cannot be traced through."""

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
    **dict.fromkeys((_F.conv1d, _F.conv2d, _F.conv3d), convolution_call),
    **dict.fromkeys((_F.max_pool1d, _F.max_pool2d, _F.max_pool3d), max_pool_call),
    **dict.fromkeys((torch.max_pool1d, torch.max_pool2d, torch.max_pool3d), max_pool_call),
    **dict.fromkeys((_F.avg_pool1d, _F.avg_pool2d, _F.avg_pool3d), mean_pool_call),
    **dict.fromkeys((_F.dropout, _F.dropout1d, _F.dropout2d, _F.dropout3d), dropout_call),
    _F.alpha_dropout: dropout_call,
    _F.prelu: _prelu,
    _F.pad: pad_call,
    _F.interpolate: interpolate,
    _F.batch_norm: _batch_norm_call,
    _F.layer_norm: _layer_norm_call,
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
    **dict.fromkeys((torch.max, torch.min), extreme(_elementwise)),
    **dict.fromkeys((_F.conv_transpose1d, _F.conv_transpose2d), transposed_call),
    _F.conv_transpose3d: transposed_call,
    _F.pixel_shuffle: pixel_shuffle,
    _F.pixel_unshuffle: pixel_unshuffle,
    **dict.fromkeys((torch.channel_shuffle, _F.native_channel_shuffle), channel_shuffle),
    operator.getitem: item,
    getattr: attribute,
}

_SAME = (
    *("contiguous", "to", "type", "type_as", "float", "double", "half", "bfloat16", "bool"),
    "detach",
)
_METHODS = ("add", "sub", "mul", "div", "neg", "pow", "exp", "log", "sqrt", "rsqrt", "abs")

METHODS: Mapping[str, Rule] = {
    **dict.fromkeys(_SAME, _same_memory),
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
    **dict.fromkeys(("max", "min"), extreme(_elementwise)),
}


def rule_of(module: nn.Module) -> Rule | None:
    """The rule of a layer, where it has one; subclasses with another `forward` have none."""
    if type(module).__name__ in BY_NAME:
        return BY_NAME[type(module).__name__]
    for kind in type(module).__mro__:
        own: Any = kind
        if kind in MODULES and type(module).forward is own.forward:
            return MODULES[kind]
    return None


def may_share(target: Any) -> bool:
    """Whether the result of a layer, function or method may be a view of its first argument."""
    if isinstance(target, nn.Module):
        idle = isinstance(target, nn.Identity | nn.modules.dropout._DropoutNd)
        return idle or BY_NAME.get(type(target).__name__) is per_image
    rule = METHODS.get(target) if isinstance(target, str) else FUNCTIONS.get(target)
    views = (_same_memory, _permute, _transpose, _parts, item, attribute, dropout_call)
    return rule is None or rule in views
