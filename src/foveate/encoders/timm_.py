"""Any network of timm that gives feature maps, by name, with its weights where they are had."""

from __future__ import annotations

import copy
import logging
from typing import Any, Literal

import torch
from torch import Tensor, nn

from foveate.encoders._norms import Replacement, freeze_batch_norm, replace_batch_norm
from foveate.encoders.base import AbstractEncoder
from foveate.errors import UnknownName, did_you_mean

log = logging.getLogger("foveate")


class TimmEncoder(AbstractEncoder):
    """A timm network cut into its stages.

    Batch norm never runs on batch statistics: with pretrained weights it is frozen, without it is
    replaced by group norm.

    Args:
        name: as in ``timm.list_models()``.
        pretrained: take weights when they can be fetched; says so when they cannot.
        stages: how many stages to keep, from the finest; 0 keeps all.
        norm: what becomes of batch norm: ``frozen``, ``group`` norm over the patch, ``channel``
            norm of each cell; ``auto`` freezes it with pretrained weights and takes group norm
            without, ``local`` likewise but channel norm, which streaming needs.

    Raises:
        UnknownName: timm has no such network, or it gives no feature maps.
    """

    def __init__(
        self,
        *,
        name: str = "resnet18",
        pretrained: bool = True,
        stages: int = 0,
        norm: Literal["auto", "local", "frozen", "group", "channel"] = "auto",
    ) -> None:
        super().__init__()
        import timm

        if not timm.is_model(name):
            near = did_you_mean(name, [*timm.list_models(), "small"]) if len(name) > 2 else ""
            raise UnknownName(f"no encoder '{name}'.{near if len(near) < 90 else ''}")
        self.net, self.from_scratch = _create(name, pretrained)
        info: Any = self.net.feature_info
        keep = stages or len(info)
        self.strides = tuple(int(s) for s in info.reduction()[:keep])
        self.map_dims = tuple(int(c) for c in info.channels()[:keep])
        self.dim = self.map_dims[-1]
        self.map_centres = _centres(self.net, self.strides)
        config: Any = getattr(self.net, "default_cfg", None) or {}
        self.mean = tuple(config.get("mean", (0.485, 0.456, 0.406)))
        self.std = tuple(config.get("std", (0.229, 0.224, 0.225)))
        if norm in ("auto", "local"):
            replacement: Replacement = "group" if norm == "auto" else "channel"
            norm = replacement if self.from_scratch else "frozen"
        if norm in ("group", "channel"):
            replace_batch_norm(self.net, norm)
        self.resolved = {"norm": norm}

    def train(self, mode: bool = True) -> TimmEncoder:
        """Training mode, but for batch norms, which stay frozen."""
        super().train(mode)
        freeze_batch_norm(self)
        return self

    def maps(self, x: Tensor) -> list[Tensor]:
        """The maps of the kept stages."""
        found: list[Tensor] = self.net(x)
        return found[: len(self.strides)]

    def pool(self, maps: list[Tensor]) -> Tensor:
        """The mean of the last map."""
        return maps[-1].mean((-2, -1))


def _create(name: str, pretrained: bool) -> tuple[nn.Module, bool]:
    import timm

    try:
        known = timm.get_pretrained_cfg(name)
        if pretrained and known is not None and known.has_weights:
            try:
                net = timm.create_model(name, pretrained=True, features_only=True)
                log.info("encoder %s: pretrained weights", name)
                return net, False
            except (OSError, RuntimeError, ValueError) as error:
                reason = str(error).splitlines()[0][:120]
                log.warning(
                    "encoder %s: pretrained weights cannot be fetched (%s); it starts from "
                    "scratch, which needs more images and more epochs",
                    name,
                    reason,
                )
        else:
            log.info("encoder %s: starts from scratch", name)
        return timm.create_model(name, pretrained=False, features_only=True), True
    except (RuntimeError, NotImplementedError, AttributeError, TypeError) as error:
        raise UnknownName(f"encoder '{name}' gives no feature maps: {error}") from error


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
