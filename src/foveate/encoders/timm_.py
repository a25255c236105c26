"""Any network of timm that gives feature maps, by name, with its weights where they are had."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from foveate.encoders.base import (
    ProjectedEncoder,
    Projection,
    reads_weights,
    weighted_moments,
)
from foveate.errors import OptionError, UnknownName, did_you_mean
from foveate.pretrained.hub import stored_file, why_unreachable
from foveate.pretrained.norms import Replacement, freeze_batch_norm, replace_batch_norm
from foveate.pretrained.vit import (
    Arguments,
    VitMap,
    arguments_of,
    create_vit,
    is_vit,
    parse_arguments,
    write_arguments,
)
from foveate.pretrained.weights import Tensors, fit_weights, read_weights, stated_colours

log = logging.getLogger("foveate")

_MOST_MAPS = 4
"""Whose means and spreads are features: finer ones say little and hold most of the memory."""

Norm = Literal["auto", "local", "frozen", "group", "channel"]


class TimmEncoder(ProjectedEncoder):
    """A timm network cut into its stages, or a plain ViT with its tokens as one map.

    Batch norm never runs on batch statistics: with pretrained weights it is frozen, without it is
    replaced by group norm. A ViT takes images of any size: the last patch is filled by repeating
    the border, positions are interpolated.

    With pretrained weights features are means and spreads of the last four maps, of a ViT its class
    token, and mean and spread of the others; from scratch, the mean of the last map.

    Args:
        name: as in ``timm.list_models()``.
        pretrained: take weights when they can be fetched; says so when they cannot.
        weights: a file to take weights from instead: safetensors, or what ``torch.save`` wrote, in
            timm's names. What a ViT's file tells of its shape comes before what its name does.
        weights_sha256: first digits of the file's sha256; another file is refused. A model that is
            stored tells them.
        stages: how many stages to keep, from the finest; 0 keeps all.
        taught: how many stages are taught end to end, from the last, where weights are pretrained;
            earlier ones keep theirs. By default all but the first two, of ViTs the last four
            blocks.
        norm: what becomes of batch norm: ``frozen``, ``group`` norm over the patch, ``channel``
            norm of each cell; ``auto`` freezes it with pretrained weights and takes group norm
            without, ``local`` likewise but channel norm, which streaming needs.
        dim: length of the vector that features are projected to, with pretrained weights; without
            it is the channels of the last map.
        model_args: of a ViT, arguments of timm's constructor as ``key=value,key=value`` that its
            file does not tell, such as ``num_heads``. A model that is stored tells all.
        mean: of the channels of RGB in [0, 1], for weights that were trained with others than the
            name's own, where no ``config.json`` beside the file states them.
        std: likewise, the spread.

    Raises:
        UnknownName: timm has no such network, or it gives no maps of images of any size.
        OptionError: `model_args`, `mean` or `std` are not of this network.
        CheckpointError: the file of weights cannot be used.
    """

    def __init__(
        self,
        *,
        name: str = "resnet18",
        pretrained: bool = True,
        weights: str = "",
        weights_sha256: str = "",
        stages: int = 0,
        taught: int | None = None,
        norm: Norm = "auto",
        dim: int = 256,
        model_args: str = "",
        mean: tuple[float, ...] = (),
        std: tuple[float, ...] = (),
    ) -> None:
        super().__init__()
        _check_name(name)
        tensors: Tensors = {}
        digest = weights_sha256
        if weights and reads_weights():
            tensors, digest = read_weights(weights, weights_sha256)
        arguments = _arguments(name, model_args, tensors)
        fetch = pretrained and not weights and reads_weights()
        self.net, self.from_scratch = _create(name, fetch, arguments)
        if not reads_weights():
            self.from_scratch = not pretrained
        if tensors:
            fit_weights(_inner(self.net), tensors, file=weights, encoder=name, adapt=_adapted(self))
            self.from_scratch = False
        self._lay_out(stages)
        stated = stated_colours(weights) if tensors else {}
        self._set_colours(mean or stated.get("mean", ()), std or stated.get("std", ()))
        if tensors:
            told = (name, weights, digest, self.mean, self.std)
            log.info("encoder %s: weights of %s (sha256 %s), for colours of mean %s, std %s", *told)
        if norm in ("auto", "local"):
            replacement: Replacement = "group" if norm == "auto" else "channel"
            norm = replacement if self.from_scratch else "frozen"
        if norm in ("group", "channel"):
            replace_batch_norm(self.net, norm)
        self.dim, self._tiers = self.map_dims[-1], []
        if not self.from_scratch:
            self._tiers = _tiers(self.net, len(self.strides))
            self._describe(dim)
            self._keep_early(taught)
        freeze_batch_norm(self)
        self.resolved = {
            "norm": norm,
            "pretrained": not self.from_scratch,
            "weights_sha256": digest,
            "model_args": write_arguments(arguments),
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def train(self, mode: bool = True) -> TimmEncoder:
        """Training mode, but for batch norms, which stay frozen."""
        super().train(mode)
        freeze_batch_norm(self)
        return self

    def maps(self, x: Tensor) -> list[Tensor]:
        """The maps of the kept stages."""
        found: list[Tensor] = self.net(x)
        return found[: len(self.strides)]

    @property
    def n_features(self) -> int:
        """Length of `features`."""
        return self.dim if self.from_scratch else self.mixed.linear.in_features

    def features(self, maps: list[Tensor], weight: Tensor | None = None) -> Tensor:
        """Means and spreads of the last maps, or the mean of the last, ``(b, n_features)``."""
        if self.from_scratch:
            last = maps[-1]
            return last.mean((-2, -1)) if weight is None else weighted_moments(last, weight)[0]
        if self._class_at:
            own, token = maps[-1][:, : self._class_at], maps[-1][:, self._class_at :]
            shared, _ = weighted_moments(token)
            return torch.cat([shared, *weighted_moments(own, weight)], 1)
        moments = [weighted_moments(m, weight) for m in maps[-_MOST_MAPS:]]
        return torch.cat([*(m[0] for m in moments), *(m[1] for m in moments)], 1)

    def project(self, features: Tensor) -> Tensor:
        """Standardised features through a linear layer, ``(b, dim)``; a mean stays as it is."""
        return features if self.from_scratch else super().project(features)

    def tiers(self) -> list[list[nn.Parameter]]:
        """Per stage, or per block of a ViT after what embeds its patches; empty from scratch."""
        if self.from_scratch:
            return []
        return [[self.net.get_parameter(name) for name in names] for names in self._tiers]

    def _lay_out(self, stages: int) -> None:
        """Settle strides, channels and places of the kept maps."""
        self._class_at = 0
        if isinstance(self.net, VitMap):
            width, stride = self.net.width, self.net.stride
            self._class_at = width if self.net.with_class else 0
            self.strides, self.map_centres = (stride,), (stride / 2,)
            self.map_dims = (width + self._class_at,)
            self.local = False
            return
        info: Any = self.net.feature_info
        keep = stages or len(info)
        self.strides = tuple(int(s) for s in info.reduction()[:keep])
        self.map_dims = tuple(int(c) for c in info.channels()[:keep])
        self.map_centres = _centres(self.net, self.strides)

    def _set_colours(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        config: Any = getattr(_inner(self.net), "default_cfg", None) or {}
        mean = mean or tuple(config.get("mean", (0.485, 0.456, 0.406)))
        std = std or tuple(config.get("std", (0.229, 0.224, 0.225)))
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise OptionError(
                f"encoder.mean, encoder.std: got {mean}, {std}, expected three numbers each, of "
                "std above 0"
            )
        self.mean, self.std = (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])

    def _describe(self, dim: int) -> None:
        """Settle what is told of an image."""
        self.dim = dim
        n = sum(self.map_dims[-_MOST_MAPS:])
        self.feature_groups = (self._class_at,) * 3 if self._class_at else (n, n)
        self.mixed = Projection(sum(self.feature_groups), dim)

    def _keep_early(self, taught: int | None) -> None:
        """Exclude early stages from what is taught."""
        vit = isinstance(self.net, VitMap)
        # The norm after the last block is taught with it.
        blocks = len(self._tiers) - vit
        if taught is None:
            taught = 4 if vit else max(blocks - 2, 0)
        kept = len(self._tiers) if taught == 0 else max(blocks - taught, 0)
        for names in self._tiers[:kept]:
            for name in names:
                self.net.get_parameter(name).requires_grad_(False)


def _check_name(name: str) -> None:
    import timm

    if not timm.is_model(name):
        near = did_you_mean(name, [*timm.list_models(), "small"]) if len(name) > 2 else ""
        raise UnknownName(f"no encoder '{name}'.{near if len(near) < 90 else ''}")


def _arguments(name: str, given: str, tensors: Mapping[str, Tensor]) -> Arguments:
    """Of a ViT's constructor: what the file tells, then what the user says."""
    if is_vit(name):
        return arguments_of(tensors) | parse_arguments(given)
    if given:
        raise OptionError(f"encoder.model_args: encoder '{name}' is no ViT and takes none")
    return {}


def _create(name: str, pretrained: bool, arguments: Arguments) -> tuple[nn.Module, bool]:
    """The network and whether its weights are random."""
    import timm

    known = timm.get_pretrained_cfg(name)
    if pretrained and known is not None and known.has_weights:
        path = stored_file(known)
        reason = "" if path else why_unreachable(known)
        if not reason:
            stored = {} if path is None else {"file": str(path), "custom_load": False}
            try:
                net = _made(name, arguments, pretrained=True, pretrained_cfg_overlay=stored)
                log.info("encoder %s: pretrained weights", name)
                return net, False
            except (OSError, RuntimeError, ValueError) as error:
                reason = str(error).splitlines()[0][:120]
        log.warning(
            "encoder %s: pretrained weights cannot be fetched (%s); it starts from scratch, which "
            "needs more images and more epochs",
            name,
            reason,
        )
    elif pretrained:
        log.info("encoder %s: starts from scratch", name)
    return _made(name, arguments, pretrained=False), True


def _made(name: str, arguments: Arguments, **options: Any) -> nn.Module:
    import timm

    if is_vit(name):
        return create_vit(name, arguments, **options)
    try:
        net: nn.Module = timm.create_model(name, features_only=True, **options)
    except (NotImplementedError, AttributeError, TypeError, RuntimeError) as error:
        if options["pretrained"] and isinstance(error, RuntimeError):
            raise  # fetching may have failed
        raise UnknownName(f"encoder '{name}' gives no feature maps: {error}") from error
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, 3, 203, 167))
    except (AssertionError, RuntimeError) as error:
        raise UnknownName(
            f"encoder '{name}' does not take images of any size; take a convolutional network or "
            "a plain ViT (vit_*)"
        ) from error
    return net.train()


def _inner(net: nn.Module) -> nn.Module:
    return net.vit if isinstance(net, VitMap) else net


def _adapted(encoder: TimmEncoder) -> Any:
    """What brings a ViT's file into timm's form, its positions to the network's grid."""
    if not isinstance(encoder.net, VitMap):
        return None
    from timm.models.vision_transformer import checkpoint_filter_fn

    vit = encoder.net.vit

    def adapt(tensors: Tensors) -> Tensors:
        found: Tensors = checkpoint_filter_fn(dict(tensors), vit)
        return found

    return adapt


def _tiers(net: nn.Module, n_maps: int) -> list[list[str]]:
    """Names of parameters by the first map that hangs on them, found in the graph of a probe."""
    if isinstance(net, VitMap):
        return net.tiers()
    names = {id(p): name for name, p in net.named_parameters()}
    order = {name: i for i, name in enumerate(names.values())}
    net.eval()
    with torch.enable_grad():
        maps = net(torch.zeros(1, 3, 160, 96))[:n_maps]
    net.train()
    seen: set[Any] = set()
    found: list[list[str]] = []
    for map_ in maps:
        own, waiting = [], [map_.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            name = names.get(id(getattr(node, "variable", None)))
            own += [name] if name else []
            waiting += [before for before, _ in node.next_functions]
        found.append(sorted(own, key=order.__getitem__))
    return found


def _centres(net: nn.Module, strides: tuple[int, ...]) -> tuple[float, ...]:
    """Where cell 0 of each map is centred, from the extent of a middle cell's receptive field.

    Kernels with odd sides put it at 0.5, patchifying stems at half a stride. A field that covers
    the whole probe (global layers) tells nothing; half a stride is assumed then.
    """
    probe = copy.deepcopy(net).eval().requires_grad_(False)
    for module in probe.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
                setattr(module, name, nn.Identity())
            if isinstance(child, nn.MaxPool2d):
                # The largest of equal values would be the first: all of the window counts.
                sides = (child.kernel_size, child.stride, child.padding, child.ceil_mode)
                setattr(module, name, nn.AvgPool2d(*sides))
    side = 512
    x = torch.ones(1, 3, side, 64, requires_grad=True)
    centres = []
    for i, stride in enumerate(strides):
        try:
            found = probe(x)[i]
            row = found.shape[-2] // 2
            (gradient,) = torch.autograd.grad(found[:, :, row].sum(), x)
        except (RuntimeError, IndexError, AssertionError):
            centres.append(stride / 2)
            continue
        rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
        whole = len(rows) == 0 or int(rows[0]) == 0 or int(rows[-1]) == side - 1
        middle = stride / 2 if whole else (int(rows[0]) + int(rows[-1]) + 1) / 2 - row * stride
        centres.append(float(middle))
    return tuple(centres)
