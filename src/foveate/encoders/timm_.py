"""Use any network of timm that returns feature maps, by name, with weights where available."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from foveate.encoders.base import (
    ProjectedEncoder,
    Projection,
    reads_weights,
    weighted_moments,
)
from foveate.errors import OptionError, UnknownName
from foveate.parts import names
from foveate.parts.options import Width
from foveate.pretrained.centres import measure_centres
from foveate.pretrained.hub import find_stored_file, why_unreachable
from foveate.pretrained.norms import Replacement, freeze_batch_norm, replace_batch_norm
from foveate.pretrained.vit import (
    Arguments,
    VitMap,
    create_vit,
    format_arguments,
    infer_arguments,
    is_vit,
    parse_arguments,
)
from foveate.pretrained.weights import Tensors, fit_weights, read_colours, read_weights
from foveate.wording import did_you_mean

log = logging.getLogger("foveate")

_MAX_MAPS = 4
"""How many maps give features, from the last: finer ones add little and take most memory."""

Norm = Literal["auto", "local", "frozen", "group", "channel"]


class TimmEncoder(ProjectedEncoder):
    """A timm network cut into its stages, or a plain ViT whose tokens form one map.

    Batch norm never uses batch statistics: with pretrained weights it is frozen, from scratch it is
    replaced by group norm. A ViT takes images of any size: the image is padded to whole patches by
    repeating its border, and positions are interpolated.

    With pretrained weights, features are the means and spreads of the last four maps; for a ViT
    they are its class token, and mean and spread of the patch tokens. From scratch they are the
    mean of the last map.

    Args:
        name: the network's name in ``timm.list_models()``.
        pretrained: take weights if they can be fetched; the log warns if they cannot.
        weights: a file to take weights from instead: safetensors, or written by ``torch.save``, in
            timm's names. The shape of a ViT follows its file rather than its name.
        weights_sha256: first digits of the file's sha256; another file is refused. A stored model
            contains them.
        stages: how many stages to keep, from the finest; 0 keeps all.
        taught: how many stages are trained end to end, from the last, where weights are pretrained;
            earlier ones keep theirs. By default all but the first two, of ViTs the last four
            blocks.
        norm: the treatment of batch norm: ``frozen``; or replaced by ``group`` norm over the patch
            or by ``channel`` norm of each cell. ``auto`` freezes it with pretrained weights and
            takes group norm from scratch; ``local`` freezes it too, but takes channel norm from
            scratch, which streaming needs.
        dim: length of the vector that features are projected to, with pretrained weights; from
            scratch, its length is the number of channels of the last map.
        model_args: for a ViT, arguments of timm's constructor as ``key=value,key=value`` that its
            file does not show, such as ``num_heads``. A stored model contains all of them.
        mean: mean of the RGB channels in [0, 1], for weights that were trained with others than
            the name's, where no ``config.json`` beside the file states them.
        std: standard deviation of the RGB channels, in the same case.

    Raises:
        UnknownName: timm has no such network, or it gives no maps of images of any size.
        OptionError: `model_args`, `mean` or `std` do not fit this network.
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
        dim: Width = 256,
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
        arguments = _vit_arguments(name, model_args, tensors)
        fetch = pretrained and not weights and reads_weights()
        self.net, self.from_scratch = _create(name, fetch, arguments)
        if not reads_weights():
            self.from_scratch = not pretrained
        if tensors:
            self._load_weights(tensors, name, weights)
        self._set_maps(stages)
        self._set_colours(mean, std, read_colours(weights) if tensors else {})
        if tensors:
            facts = (name, weights, digest, self.mean, self.std)
            log.info(
                "encoder %s: weights of %s (sha256 %s), for colours of mean %s, std %s", *facts
            )
        norm = self._set_norm(norm)
        self._set_features(dim, taught)
        freeze_batch_norm(self)
        self.resolved = {
            "norm": norm,
            "pretrained": not self.from_scratch,
            "weights_sha256": digest,
            "model_args": format_arguments(arguments),
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def _load_weights(self, tensors: Tensors, name: str, weights: str) -> None:
        """Load the weights of a file; `name` and `weights` name network and file in errors."""
        adapt = _vit_adapter(self)
        fit_weights(_inner(self.net), tensors, file=weights, encoder=name, adapt=adapt)
        self.from_scratch = False

    def _set_norm(self, norm: Norm) -> Norm:
        """Replace the batch norms where `norm` asks for it; return the norm that was chosen."""
        if norm in ("auto", "local"):
            replacement: Replacement = "group" if norm == "auto" else "channel"
            norm = replacement if self.from_scratch else "frozen"
        if norm in ("group", "channel"):
            replace_batch_norm(self.net, norm)
        return norm

    def train(self, mode: bool = True) -> TimmEncoder:
        """Set the training mode; batch norms stay frozen."""
        super().train(mode)
        freeze_batch_norm(self)
        return self

    def maps(self, x: Float[Tensor, "b 3 y x"]) -> list[Float[Tensor, "b _c *_cells"]]:
        """Compute the maps ``(b, map_dims[i], *cells)`` of images ``(b, 3, y, x)``."""
        maps: list[Tensor] = self.net(x)
        return maps[: len(self.strides)]

    @property
    def n_features(self) -> int:
        """Number of features of an image."""
        return self.dim if self.from_scratch else self.mixed.linear.in_features

    def features(
        self,
        maps: list[Float[Tensor, "b _c *_cells"]],
        weight: Float[Tensor, "b y x"] | None = None,
    ) -> Float[Tensor, "b n_features"]:
        """Compute means and spreads of the last maps, ``(b, n_features)``.

        From scratch, the mean of the last map.

        Args:
            maps: the maps that `maps` returns.
            weight: weights of the input pixels, ``(b, y, x)``, at least 0; equal by default.
        """
        if self.from_scratch:
            last = maps[-1]
            return last.mean((-2, -1)) if weight is None else weighted_moments(last, weight)[0]
        if self._class_at:
            patches, token = maps[-1][:, : self._class_at], maps[-1][:, self._class_at :]
            class_token, _ = weighted_moments(token)
            return torch.cat([class_token, *weighted_moments(patches, weight)], 1)
        moments = [weighted_moments(m, weight) for m in maps[-_MAX_MAPS:]]
        return torch.cat([*(m[0] for m in moments), *(m[1] for m in moments)], 1)

    def project(self, features: Float[Tensor, "b n_features"]) -> Float[Tensor, "b dim"]:
        """Project standardised features to ``(b, dim)``; from scratch, return them unchanged."""
        return features if self.from_scratch else super().project(features)

    def tiers(self) -> list[list[nn.Parameter]]:
        """Return the parameters of each stage, or of a ViT's patch embedding, blocks and norm.

        Empty from scratch.
        """
        if self.from_scratch:
            return []
        return [[self.net.get_parameter(name) for name in names] for names in self._tiers]

    def _set_maps(self, stages: int) -> None:
        """Set strides, channels and centres of the maps of the first `stages` stages (0: all)."""
        self._class_at = 0
        if isinstance(self.net, VitMap):
            width, stride = self.net.n_channels, self.net.stride
            self._class_at = width if self.net.with_class else 0
            self.strides, self.map_centres_px = (stride,), (stride / 2,)
            self.map_dims = (width + self._class_at,)
            self.local = False
            return
        info: Any = self.net.feature_info
        keep = stages or len(info)
        self.strides = tuple(int(s) for s in info.reduction()[:keep])
        self.map_dims = tuple(int(c) for c in info.channels()[:keep])
        self.map_centres_px = measure_centres(self.net, self.strides)

    def _set_colours(
        self,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        stated: Mapping[str, tuple[float, ...]],
    ) -> None:
        """Set the mean and std of the RGB channels.

        Args:
            mean: mean that the user gives; empty for that of the file, else of timm's name.
            std: standard deviation, in the same way.
            stated: ``mean`` and ``std`` that the file of weights states.
        """
        config: Any = getattr(_inner(self.net), "default_cfg", None) or {}
        mean = mean or stated.get("mean", ()) or tuple(config.get("mean", (0.485, 0.456, 0.406)))
        std = std or stated.get("std", ()) or tuple(config.get("std", (0.229, 0.224, 0.225)))
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise OptionError(
                f"encoder.mean, encoder.std: got {mean}, {std}, expected three numbers each, of "
                "std above 0"
            )
        self.mean, self.std = (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])

    def _set_features(self, dim: int, taught: int | None) -> None:
        """Set the length of the vector, and freeze the stages whose pretrained weights are kept.

        Args:
            dim: length of the vector that the features of a pretrained network are projected to.
            taught: number of its stages that are trained; None for the default number.
        """
        self.dim, self._tiers = self.map_dims[-1], []
        if self.from_scratch:
            return
        self.dim, self._tiers = dim, _tiers(self.net, len(self.strides))
        n = sum(self.map_dims[-_MAX_MAPS:])
        self.feature_groups = (self._class_at,) * 3 if self._class_at else (n, n)
        self.mixed = Projection(sum(self.feature_groups), dim)
        self._freeze_early(taught)

    def _freeze_early(self, taught: int | None) -> None:
        """Freeze all but the last `taught` stages; None for the default number."""
        vit = isinstance(self.net, VitMap)
        # The norm after the last block is trained with it.
        blocks = len(self._tiers) - vit
        if taught is None:
            taught = 4 if vit else max(blocks - 2, 0)
        n_frozen = len(self._tiers) if taught == 0 else max(blocks - taught, 0)
        for tier in self._tiers[:n_frozen]:
            for name in tier:
                self.net.get_parameter(name).requires_grad_(False)


def _check_name(name: str) -> None:
    """Raise `UnknownName` with the nearest names if timm has no network of a name."""
    import timm

    if not timm.is_model(name):
        known = [*timm.list_models(), *names("encoders")]
        near = did_you_mean(name, known)
        if len(name) <= 2 or len(near) >= 90:  # it lists all, or means nothing
            near = f" Take one of {', '.join(names('encoders'))}, or a network of timm"
        raise UnknownName(f"no encoder '{name}'.{near}")


def _vit_arguments(
    name: str, model_args: str, tensors: Mapping[str, Shaped[Tensor, " ..."]]
) -> Arguments:
    """Return the arguments of a ViT's constructor: the user's before those of the file."""
    if is_vit(name):
        return infer_arguments(tensors) | parse_arguments(model_args)
    if model_args:
        raise OptionError(
            f"encoder.model_args: encoder '{name}' is no ViT and takes none: leave it out"
        )
    return {}


def _create(name: str, pretrained: bool, arguments: Arguments) -> tuple[nn.Module, bool]:
    """Create the network, with weights if they can be had; return also whether it has none."""
    import timm

    known = timm.get_pretrained_cfg(name)
    if pretrained and known is not None and known.has_weights:
        path = find_stored_file(known)
        reason = "" if path else why_unreachable(known)
        if not reason:
            stored = {} if path is None else {"file": str(path), "custom_load": False}
            try:
                net = _build_net(name, arguments, pretrained=True, pretrained_cfg_overlay=stored)
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
    return _build_net(name, arguments, pretrained=False), True


def _build_net(name: str, arguments: Arguments, **options: Any) -> nn.Module:
    """Build the network with timm, and check that it takes images of any size."""
    import timm

    if is_vit(name):
        return create_vit(name, arguments, **options)
    try:
        net: nn.Module = timm.create_model(name, features_only=True, **options)
    except (NotImplementedError, AttributeError, TypeError, RuntimeError) as error:
        if options["pretrained"] and isinstance(error, RuntimeError):
            raise  # the caller handles weights that could not be fetched
        raise UnknownName(
            f"encoder '{name}' gives no feature maps: {error}; take a convolutional network or a "
            "plain ViT (vit_*)"
        ) from error
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
    """Return timm's network inside a `VitMap`, or the network itself."""
    return net.vit if isinstance(net, VitMap) else net


def _vit_adapter(encoder: TimmEncoder) -> Callable[[Tensors], Tensors] | None:
    """Return the function that converts a ViT's weights to timm's names and the network's grid.

    None for a network that is no ViT.
    """
    if not isinstance(encoder.net, VitMap):
        return None
    from timm.models.vision_transformer import checkpoint_filter_fn

    vit = encoder.net.vit

    def adapt(tensors: Tensors) -> Tensors:
        adapted: Tensors = checkpoint_filter_fn(dict(tensors), vit)
        return adapted

    return adapt


def _tiers(net: nn.Module, n_maps: int) -> list[list[str]]:
    """Group the names of parameters by the first map that depends on them.

    Dependencies are those in the autograd graph of a probe image.
    """
    if isinstance(net, VitMap):
        return net.tiers()
    names = {id(p): name for name, p in net.named_parameters()}
    order = {name: i for i, name in enumerate(names.values())}
    net.eval()
    with torch.enable_grad():
        maps = net(torch.zeros(1, 3, 160, 96))[:n_maps]
    net.train()
    seen: set[Any] = set()
    tiers: list[list[str]] = []
    for map_ in maps:
        tier, waiting = [], [map_.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            name = names.get(id(getattr(node, "variable", None)))
            tier += [name] if name else []
            waiting += [before for before, _ in node.next_functions]
        tiers.append(sorted(tier, key=order.__getitem__))
    return tiers
