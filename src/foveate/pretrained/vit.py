"""Plain vision transformers of timm as encoders: images of any size, tokens as one map."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from foveate.errors import OptionError, one_line

Arguments = dict[str, Any]

_MODULES = ["vision_transformer", "deit"]


class VitMap(nn.Module):
    """The tokens of a ViT after its last norm, laid out as they lie in the image.

    Where there is a class token it stands beside the patch's own in every cell.

    Args:
        vit: made with ``dynamic_img_size``.
    """

    def __init__(self, vit: Any) -> None:
        super().__init__()
        # What would pool the tokens is not used, and would get no gradient.
        vit.attn_pool, vit.head = None, nn.Identity()
        self.vit = vit
        self.stride = int(vit.patch_embed.patch_size[0])
        self.width = int(vit.embed_dim)
        self.with_class = bool(vit.has_class_token)

    def forward(self, x: Tensor) -> list[Tensor]:
        """One map ``(b, d or 2 d, *ceil((y, x) / stride))`` of ``(b, 3, y, x)``."""
        below, right = (-n % self.stride for n in x.shape[-2:])
        x = functional.pad(x, (0, right, 0, below), "replicate")
        rows, columns = (n // self.stride for n in x.shape[-2:])
        tokens = self.vit.fc_norm(self.vit.forward_features(x))
        own = tokens[:, self.vit.num_prefix_tokens :].transpose(1, 2)
        map_ = own.unflatten(2, (rows, columns))
        if self.with_class:
            token = tokens[:, 0, :, None, None].expand(-1, -1, rows, columns)
            map_ = torch.cat([map_, token], 1)
        return [map_]

    def tiers(self) -> list[list[str]]:
        """Names of parameters: what embeds patches, each block, the last norm."""
        names = [f"vit.{name}" for name, _ in self.vit.named_parameters()]
        blocks = [f"vit.blocks.{i}." for i in range(len(self.vit.blocks))]
        last = ("vit.norm.", "vit.fc_norm.")
        first = [n for n in names if not n.startswith(("vit.blocks.", *last))]
        middle = [[n for n in names if n.startswith(block)] for block in blocks]
        return [first, *middle, [n for n in names if n.startswith(last)]]


def is_vit(name: str) -> bool:
    """Whether a network of timm is a plain ViT."""
    from timm.models import is_model_in_modules

    return bool(is_model_in_modules(name, _MODULES))


def create_vit(name: str, given: Mapping[str, Any], **options: Any) -> nn.Module:
    """A ViT of timm for images of any size.

    Args:
        name: as in ``timm.list_models()``.
        given: arguments of its constructor that differ from those of the name.
        options: for ``timm.create_model``.

    Raises:
        OptionError: timm does not take an argument.
    """
    import timm

    known = dict(given)
    layers = {"mlp_layer": timm.layers, "act_layer": nn}
    for key, module in layers.items():
        if isinstance(known.get(key), str):
            known[key] = getattr(module, known[key], known[key])
    try:
        return VitMap(timm.create_model(name, dynamic_img_size=True, **known, **options))
    except (TypeError, AssertionError) as error:
        reason = one_line(str(error))
        raise OptionError(f"encoder.model_args: timm cannot make '{name}' so: {reason}") from error


def parse_arguments(text: str) -> Arguments:
    """``init_values=1e-5,reg_tokens=4`` as keywords.

    Raises:
        OptionError: not of this form.
    """
    found: Arguments = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not key.strip().isidentifier():
            raise OptionError(f"encoder.model_args: got '{part}', expected key=value,key=value")
        try:
            found[key.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            found[key.strip()] = value.strip()
    return found


def write_arguments(arguments: Mapping[str, Any]) -> str:
    """What `parse_arguments` reads."""
    return ",".join(f"{key}={value}" for key, value in arguments.items())


def arguments_of(tensors: Mapping[str, Tensor]) -> Arguments:
    """The constructor's arguments that a file of weights tells by its names and shapes.

    Networks of pathology bear timm's names but differ from them in layer scale, registers, gated
    layers and depth. The number of attention heads cannot be told, it stays that of the name.

    Args:
        tensors: in timm's names or those of DINOv2, prefixes gone; empty where they are of no ViT.
    """
    end = "patch_embed.proj.weight"
    name = next((name for name in tensors if name.endswith(end)), None)
    if name is None or tensors[name].ndim != 4:
        return {}
    prefix = name.removesuffix(end)
    own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    width, side_px = own[end].shape[0], own[end].shape[-1]
    registers = own.get("reg_token", own.get("register_tokens"))
    found: Arguments = {
        "embed_dim": width,
        "patch_size": side_px,
        "depth": sum(n.startswith("blocks.") and n.endswith(".norm1.weight") for n in own),
        "reg_tokens": 0 if registers is None else registers.shape[1],
        "class_token": "cls_token" in own,
        "global_pool": "token" if "cls_token" in own else "avg",
        "pre_norm": "norm_pre.weight" in own,
        "fc_norm": "fc_norm.weight" in own,
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in own else None,
        "qkv_bias": "blocks.0.attn.qkv.bias" in own,
    }
    return found | _positions(own, found) | _gated(own, width)


def _positions(own: Mapping[str, Tensor], found: Arguments) -> Arguments:
    """Of the grid of patches, and whether other tokens have positions too."""
    if "pos_embed" not in own:
        return {}
    n = own["pos_embed"].shape[1]
    n_others = found["reg_tokens"] + found["class_token"]
    if "mask_token" in own and "register_tokens" in own:
        # In DINOv2's own files the class token's position comes first; timm adds it to the token.
        n, alone = n - 1, True
    else:
        alone = n_others > 0 and math.isqrt(n) ** 2 == n
    side = math.isqrt(n if alone else n - n_others)
    square = side**2 == (n if alone else n - n_others)
    size = {"img_size": side * found["patch_size"]} if square else {}
    return {"no_embed_class": alone, **size}


def _gated(tensors: Mapping[str, Tensor], width: int) -> Arguments:
    """Of the layers between two attentions."""
    before = tensors.get("blocks.0.mlp.fc1.weight", tensors.get("blocks.0.mlp.w12.weight"))
    after = tensors.get("blocks.0.mlp.fc2.weight", tensors.get("blocks.0.mlp.w3.weight"))
    if before is None or after is None:
        return {}
    # Half a unit more than the width times the ratio, which timm rounds down.
    ratio = {"mlp_ratio": (before.shape[0] + 0.5) / width}
    if before.shape[0] == 2 * after.shape[1]:
        return ratio | {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
    return ratio
