"""Build plain vision transformers of timm that take images of any size and give one map."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

from foveate.errors import OptionError
from foveate.wording import one_line

Arguments = dict[str, Any]

_MODULES = ["vision_transformer", "deit"]


class VitMap(nn.Module):
    """A ViT whose tokens after the last norm are laid out as a map of the image.

    Where there is a class token, it is appended to the patch token of every cell.

    Args:
        vit: timm's network, made with ``dynamic_img_size``.

    Attributes:
        stride: input pixels per cell.
        n_channels: channels of a token.
        with_class: whether cells hold the class token too.
    """

    def __init__(self, vit: Any) -> None:
        super().__init__()
        # The layers that pool the tokens are not used: their parameters would get no gradient.
        vit.attn_pool, vit.head = None, nn.Identity()
        self.vit = vit
        self.stride = int(vit.patch_embed.patch_size[0])
        self.n_channels = int(vit.embed_dim)
        self.with_class = bool(vit.has_class_token)

    def forward(self, x: Float[Tensor, "b 3 y x"]) -> list[Float[Tensor, "b _c _rows _columns"]]:
        """Compute one map ``(b, d or 2 d, *ceil((y, x) / stride))`` of images ``(b, 3, y, x)``."""
        below, right = (-n % self.stride for n in x.shape[-2:])
        x = functional.pad(x, (0, right, 0, below), "replicate")
        rows, columns = (n // self.stride for n in x.shape[-2:])
        tokens = self.vit.fc_norm(self.vit.forward_features(x))
        patch_tokens = tokens[:, self.vit.num_prefix_tokens :].transpose(1, 2)
        map_ = patch_tokens.unflatten(2, (rows, columns))
        if self.with_class:
            token = tokens[:, 0, :, None, None].expand(-1, -1, rows, columns)
            map_ = torch.cat([map_, token], 1)
        return [map_]

    def tiers(self) -> list[list[str]]:
        """Return the names of parameters in order: the patch embedding, each block, the norm."""
        names = [f"vit.{name}" for name, _ in self.vit.named_parameters()]
        blocks = [f"vit.blocks.{i}." for i in range(len(self.vit.blocks))]
        last = ("vit.norm.", "vit.fc_norm.")
        first = [n for n in names if not n.startswith(("vit.blocks.", *last))]
        middle = [[n for n in names if n.startswith(block)] for block in blocks]
        return [first, *middle, [n for n in names if n.startswith(last)]]


def is_vit(name: str) -> bool:
    """Return whether a network of timm is a plain ViT, by its name."""
    from timm.models import is_model_in_modules

    return bool(is_model_in_modules(name, _MODULES))


def create_vit(name: str, arguments: Mapping[str, Any], **options: Any) -> nn.Module:
    """Build a ViT of timm for images of any size.

    Args:
        name: the name in ``timm.list_models()``.
        arguments: arguments of the network's constructor that differ from those of the name.
        **options: further arguments of ``timm.create_model``.

    Raises:
        OptionError: timm does not take an argument.
    """
    import timm

    resolved = dict(arguments)
    layers = {"mlp_layer": timm.layers, "act_layer": nn}
    for key, module in layers.items():
        if isinstance(resolved.get(key), str):
            resolved[key] = getattr(module, resolved[key], resolved[key])
    try:
        return VitMap(timm.create_model(name, dynamic_img_size=True, **resolved, **options))
    except (TypeError, AssertionError) as error:
        reason = one_line(str(error))
        raise OptionError(
            f"encoder.model_args: timm cannot make '{name}' so: {reason}. Correct the arguments, "
            "or leave them out"
        ) from error


def parse_arguments(text: str) -> Arguments:
    """Parse a text such as ``init_values=1e-5,reg_tokens=4`` to keyword arguments.

    Raises:
        OptionError: the text is not of this form.
    """
    arguments: Arguments = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not key.strip().isidentifier():
            raise OptionError(f"encoder.model_args: got '{part}', expected key=value,key=value")
        try:
            arguments[key.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            arguments[key.strip()] = value.strip()
    return arguments


def format_arguments(arguments: Mapping[str, Any]) -> str:
    """Write keyword arguments as the text that `parse_arguments` reads."""
    return ",".join(f"{key}={value}" for key, value in arguments.items())


def infer_arguments(tensors: Mapping[str, Shaped[Tensor, " ..."]]) -> Arguments:
    """Infer the arguments of a ViT's constructor from the names and shapes of its weights.

    Networks of pathology have timm's names but differ from timm's networks in layer scale,
    registers, gated layers and depth. The number of attention heads does not show in the weights:
    it stays that of the name.

    Args:
        tensors: weights by name, in timm's names or those of DINOv2, without prefixes.

    Returns:
        the arguments; empty where the tensors are not of a ViT.
    """
    end = "patch_embed.proj.weight"
    name = next((name for name in tensors if name.endswith(end)), None)
    if name is None or tensors[name].ndim != 4:
        return {}
    prefix = name.removesuffix(end)
    weights = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    width, side_px = weights[end].shape[0], weights[end].shape[-1]
    registers = weights.get("reg_token", weights.get("register_tokens"))
    arguments: Arguments = {
        "embed_dim": width,
        "patch_size": side_px,
        "depth": sum(n.startswith("blocks.") and n.endswith(".norm1.weight") for n in weights),
        "reg_tokens": 0 if registers is None else registers.shape[1],
        "class_token": "cls_token" in weights,
        "global_pool": "token" if "cls_token" in weights else "avg",
        "pre_norm": "norm_pre.weight" in weights,
        "fc_norm": "fc_norm.weight" in weights,
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in weights else None,
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
    }
    return arguments | _infer_positions(weights, arguments) | _infer_mlp(weights, width)


def _infer_positions(
    tensors: Mapping[str, Shaped[Tensor, " ..."]], arguments: Arguments
) -> Arguments:
    """Infer the image size, and whether only patch tokens have position embeddings."""
    if "pos_embed" not in tensors or tensors["pos_embed"].ndim != 3:
        return {}
    n = tensors["pos_embed"].shape[1]
    n_others = arguments["reg_tokens"] + arguments["class_token"]
    if "mask_token" in tensors and "register_tokens" in tensors:
        # In DINOv2's own files the class token's position comes first; timm adds it to the token.
        n, patches_only = n - 1, True
    else:
        patches_only = n_others > 0 and math.isqrt(n) ** 2 == n
    side = math.isqrt(n if patches_only else n - n_others)
    square = side**2 == (n if patches_only else n - n_others)
    size = {"img_size": side * arguments["patch_size"]} if square else {}
    return {"no_embed_class": patches_only, **size}


def _infer_mlp(tensors: Mapping[str, Shaped[Tensor, " ..."]], width: int) -> Arguments:
    """Infer the width of the layers between two attentions, and whether they are gated."""
    before = tensors.get("blocks.0.mlp.fc1.weight", tensors.get("blocks.0.mlp.w12.weight"))
    after = tensors.get("blocks.0.mlp.fc2.weight", tensors.get("blocks.0.mlp.w3.weight"))
    if before is None or after is None:
        return {}
    # timm rounds width times ratio down: half a unit more guards against rounding errors.
    ratio = {"mlp_ratio": (before.shape[0] + 0.5) / width}
    if before.shape[0] == 2 * after.shape[1]:
        return ratio | {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
    return ratio
