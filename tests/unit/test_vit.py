"""Plain ViTs of timm: any image size, tokens as one map, weight files of other variants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from foveate.encoders import build_encoder
from foveate.encoders.base import AbstractEncoder
from foveate.errors import CheckpointError, OptionError
from foveate.methods.streaming_cnn import StreamingCnn
from foveate.nn.base import Head
from foveate.pretrained.vit import create_vit, format_arguments, infer_arguments, parse_arguments

SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 3, "num_heads": 3, "img_size": 64}


def vit(name: str = "vit_tiny_patch16_224", **options: object) -> Any:
    torch.manual_seed(2)
    net = timm.create_model(name, **{**SMALL, **options})
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net.eval()


def encoder_of(net: nn.Module, folder: Path, name: str, **options: object) -> AbstractEncoder:
    path = folder / "vit.pth"
    torch.save(net.state_dict(), path)
    return build_encoder(
        name, {"weights": str(path), "model_args": "num_heads=3", **options}
    ).eval()


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("vit_tiny_patch16_224", {}),
    "layer scale": ("vit_tiny_patch16_224", {"init_values": 1e-5}),
    "gated, layer scale": (
        "vit_tiny_patch16_224",
        {
            "init_values": 1e-5,
            "mlp_layer": timm.layers.SwiGLUPacked,
            "act_layer": nn.SiLU,
            "mlp_ratio": 5.3375,
            "reg_tokens": 4,
        },
    ),
    "registers without positions": (
        "vit_giant_patch14_reg4_dinov2",
        {"reg_tokens": 8, "patch_size": 14, "img_size": 56},
    ),
    "no class token": (
        "vit_tiny_patch16_224",
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
    ),
    "norm after pooling": ("vit_tiny_patch16_224", {"global_pool": "avg", "fc_norm": True}),
    "norm before": ("vit_tiny_patch16_224", {"pre_norm": True}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_match_timm(kind: str, tmp_path: Path) -> None:
    """The arguments come from the weight file, not from the name."""
    name, options = KINDS[kind]
    net = vit(name, **options)
    encoder = encoder_of(net, tmp_path, name)
    side = SMALL["img_size"] if "img_size" not in options else options["img_size"]
    x = torch.randn(2, 3, side, side)
    (map_,) = encoder.maps(x)
    tokens = net.fc_norm(net.forward_features(x))
    patch_tokens = tokens[:, net.num_prefix_tokens :]
    tokens_of_map = map_[:, :48].flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens_of_map, patch_tokens, rtol=1e-4, atol=1e-5)
    expected = [patch_tokens.mean(1), (patch_tokens.var(1, correction=0) + 1e-6).sqrt()]
    if net.has_class_token:
        expected.insert(0, tokens[:, 0])
        torch.testing.assert_close(
            map_[:, 48:], tokens[:, 0, :, None, None].expand(-1, -1, *map_.shape[2:])
        )
    assert encoder.map_dims == (map_.shape[1],)
    assert encoder.feature_groups == (48,) * len(expected)
    torch.testing.assert_close(
        encoder.features([map_]), torch.cat(expected, 1), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("size", [(1, 1), (33, 71), (64, 200), (17, 16)])
def test_images_of_any_size_are_accepted(size: tuple[int, int], tmp_path: Path) -> None:
    encoder = encoder_of(vit(), tmp_path, "vit_tiny_patch16_224")
    x = torch.randn(2, 3, *size)
    (map_,) = encoder.maps(x)
    assert map_.shape[2:] == tuple(-(-n // 16) for n in size)
    assert encoder(x).shape == (2, encoder.dim)
    encoder(x).sum().backward()


def test_background_has_no_weight_and_the_class_token_stays(tmp_path: Path) -> None:
    encoder = encoder_of(vit(), tmp_path, "vit_tiny_patch16_224")
    (map_,) = encoder.maps(torch.randn(1, 3, 64, 64))
    weight = torch.zeros(1, 64, 64)
    weight[:, :32] = 1
    torch.testing.assert_close(encoder.features([map_], weight), encoder.features([map_[:, :, :2]]))


def test_blocks_are_the_tiers_and_the_last_are_trained(tmp_path: Path) -> None:
    encoder = encoder_of(vit(), tmp_path, "vit_tiny_patch16_224", taught=2)
    tiers = encoder.tiers()
    assert [all(p.requires_grad for p in t) for t in tiers] == [False, False, True, True, True]
    assert {id(p) for t in tiers for p in t} == {id(p) for p in encoder.net.parameters()}


def test_positions_of_another_grid_are_resampled(tmp_path: Path) -> None:
    net = vit()
    state: dict[str, Tensor] = dict(net.state_dict())
    path = tmp_path / "vit.pth"
    torch.save(state, path)
    options = {"weights": str(path), "model_args": "num_heads=3,img_size=96"}
    positions = build_encoder("vit_tiny_patch16_224", options).net.vit.pos_embed
    expected = timm.layers.resample_abs_pos_embed(state["pos_embed"], [6, 6], [4, 4])
    torch.testing.assert_close(positions.data, expected)


def test_original_dinov2_files_are_loaded(tmp_path: Path) -> None:
    """Their parameter names differ, and the class token has a position."""
    options = {"reg_tokens": 4, "no_embed_class": True, "init_values": 1e-5}
    net = vit(**options)
    state = dict(net.state_dict())
    state["register_tokens"] = state.pop("reg_token")
    state["pos_embed"] = torch.cat([torch.zeros(1, 1, 48), state["pos_embed"]], 1)
    state["mask_token"] = torch.zeros(1, 48)
    path = tmp_path / "dinov2.pth"
    torch.save({"teacher": {f"backbone.{k}": v for k, v in state.items()}}, path)
    encoder = build_encoder(
        "vit_tiny_patch16_224", {"weights": str(path), "model_args": "num_heads=3"}
    ).eval()
    x = torch.randn(1, 3, 64, 64)
    expected = net.forward_features(x)[:, 5:]
    tokens = encoder.maps(x)[0][:, :48].flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)


def test_arguments_are_inferred_from_weights(tmp_path: Path) -> None:
    arguments = infer_arguments(vit(init_values=1e-5, reg_tokens=2).state_dict())
    assert arguments["depth"] == 3
    assert arguments["reg_tokens"] == 2
    assert parse_arguments(format_arguments(arguments)) == arguments
    assert infer_arguments({"conv1.weight": torch.zeros(1, 1, 3, 3)}) == {}


GATED = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU, "init_values": 1e-5}

PUBLISHED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "UNI": ("vit_large_patch16_224", "vit_large_patch16_224", {"init_values": 1e-5}),
    "UNI 2": (
        "vit_giant_patch14_reg4_dinov2",
        "vit_giant_patch14_224",
        GATED
        | {"embed_dim": 1536, "depth": 24, "num_heads": 24, "mlp_ratio": 2.66667 * 2}
        | {"reg_tokens": 8, "no_embed_class": True, "img_size": 224},
    ),
    "Virchow": ("vit_huge_patch14_224", "vit_huge_patch14_224", GATED | {"mlp_ratio": 5.3375}),
    "Virchow 2": (
        "vit_huge_patch14_224",
        "vit_huge_patch14_224",
        GATED | {"mlp_ratio": 5.3375, "reg_tokens": 4},
    ),
    "H-optimus": (
        "vit_giant_patch14_reg4_dinov2",
        "vit_giant_patch14_reg4_dinov2",
        {"init_values": 1e-5, "img_size": 224},
    ),
    "GigaPath": (
        "vit_giant_patch14_dinov2",
        "vit_giant_patch14_dinov2",
        {"patch_size": 16, "img_size": 224},
    ),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_arguments_of_published_networks_are_inferred(model: str) -> None:
    """The arguments match the published ones; networks are built without memory."""
    name, built_as, options = PUBLISHED[model]
    try:
        with torch.device("meta"):
            timm.create_model("test_vit")
    except (RuntimeError, NotImplementedError):
        pytest.skip("this timm cannot make a network without memory for it")
    with torch.device("meta"):
        expected = timm.create_model(built_as, num_classes=0, **options)
        state = expected.state_dict()
        arguments = parse_arguments(format_arguments(infer_arguments(state)))
        network: Any = create_vit(name, arguments)
    shapes = {key: tuple(t.shape) for key, t in state.items()}
    assert {key: tuple(t.shape) for key, t in network.vit.state_dict().items()} == shapes
    ours, theirs = network.vit.blocks[0], expected.blocks[0]
    assert ours.attn.num_heads == theirs.attn.num_heads
    assert type(ours.mlp.act) is type(theirs.mlp.act)
    assert network.vit.patch_embed.grid_size == expected.patch_embed.grid_size
    assert network.vit.no_embed_class == expected.no_embed_class


def test_heads_that_do_not_divide_the_width_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="model_args") as refused:
        encoder_of(vit(), tmp_path, "vit_tiny_patch16_224", model_args="num_heads=7")
    assert "\n" not in str(refused.value)
    with pytest.raises(OptionError, match="expected key=value"):
        encoder_of(vit(), tmp_path, "vit_tiny_patch16_224", model_args="num_heads")


def test_a_file_of_a_residual_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "resnet.pth"
    torch.save(timm.create_model("resnet10t").state_dict(), path)
    with pytest.raises(CheckpointError, match="none of its") as refused:
        build_encoder("test_vit", {"weights": str(path)})
    assert "\n" not in str(refused.value)


def test_streaming_refuses_a_vit_in_one_line() -> None:
    encoder = build_encoder("test_vit", {"pretrained": False})
    with pytest.raises(OptionError, match="every cell sees the whole image") as refused:
        StreamingCnn(encoder=encoder, heads=(Head("a", 1, False, "max"),))
    assert "\n" not in str(refused.value)
