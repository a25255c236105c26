"""Weights from a user's file: accepted formats, and refusals in one line."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from foveate.batch import View
from foveate.encoders import build_encoder
from foveate.encoders.base import AbstractEncoder
from foveate.errors import CheckpointError, OptionError
from foveate.runs.card import ModelCard
from foveate.runs.checkpoint import build_model, load_model, save_model

State = dict[str, Tensor]


def randomise_weights(net: nn.Module) -> nn.Module:
    """Set random weights of order 1 and norm statistics far from their defaults."""
    torch.manual_seed(4)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight, 1, 0.3)
    return net.eval()


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return randomise_weights(timm.create_model("resnet10t"))


@pytest.fixture(scope="module")
def stored(resnet: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet10t.safetensors"
    save_file(resnet.state_dict(), path)
    return path


def encoder_of(name: str, file: Path, **options: object) -> AbstractEncoder:
    return build_encoder(name, {"weights": str(file), **options}).eval()


def assert_last_map(encoder: AbstractEncoder, network: Any) -> None:
    x = torch.randn(2, 3, 64, 96)
    expected = network.forward_intermediates(x, intermediates_only=True)[-1]
    torch.testing.assert_close(encoder.maps(x)[-1], expected, rtol=1e-4, atol=1e-4)


def test_the_network_has_the_weights_of_the_file(resnet: nn.Module, stored: Path) -> None:
    encoder = encoder_of("resnet10t", stored)
    assert_last_map(encoder, resnet)
    assert not encoder.from_scratch
    assert encoder.resolved["norm"] == "frozen"
    digest = hashlib.sha256(stored.read_bytes()).hexdigest()
    assert encoder.resolved["weights_sha256"] == digest[:12]


WRAPPED: dict[str, Callable[[State], object]] = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"epoch": 3, "state_dict": s},
    "model": lambda s: {"model": s, "optimizer": {"lr": 0.1}},
    "teacher": lambda s: {"student": {}, "teacher": {f"backbone.{k}": v for k, v in s.items()}},
    "nested": lambda s: {"model": {"state_dict": {f"module.encoder.{k}": v for k, v in s.items()}}},
    "lightning": lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}},
    "with others": lambda s: s | {"projection_head.0.weight": torch.zeros(3, 3)},
    "half": lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()},
}


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("end", ["pth", "bin"])
def test_usual_key_prefixes_are_removed(
    name: str, end: str, resnet: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / f"weights.{end}"
    torch.save(WRAPPED[name](resnet.state_dict()), path)
    encoder = encoder_of("resnet10t", path)
    if name != "half":
        assert_last_map(encoder, resnet)


@pytest.mark.parametrize("name", ["convnext_atto", "efficientnet_lite0", "densenet121"])
def test_networks_with_renamed_stages_are_loaded(name: str, tmp_path: Path) -> None:
    """timm renames the layers of some networks when it splits them into stages."""
    network = randomise_weights(timm.create_model(name))
    path = tmp_path / "weights.safetensors"
    save_file(network.state_dict(), path)
    encoder = encoder_of(name, path)
    plain = timm.create_model(
        name,
        pretrained=True,
        features_only=True,
        pretrained_cfg_overlay={"state_dict": network.state_dict()},
    ).eval()
    x = torch.randn(1, 3, 64, 96)
    for ours, theirs in zip(encoder.maps(x), plain(x), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_lite0_accepts_a_weight_file(tmp_path: Path) -> None:
    network = randomise_weights(timm.create_model("tf_efficientnet_lite0"))
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": network.state_dict()}, path)
    encoder = encoder_of("lite0", path)
    assert_last_map(encoder, network)
    assert len(str(encoder.resolved["weights_sha256"])) == 12
    torch.save({"a.weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="none of its 1 tensors belongs to encoder 'lite0'"):
        encoder_of("lite0", path)


def test_normalisation_comes_from_user_then_file_then_name(
    resnet: nn.Module, tmp_path: Path
) -> None:
    path, beside = tmp_path / "weights.safetensors", tmp_path / "config.json"
    save_file(resnet.state_dict(), path)
    user_colours = encoder_of("resnet10t", path)
    assert user_colours.mean == timm.get_pretrained_cfg("resnet10t").mean
    beside.write_text('{"pretrained_cfg": {"mean": [0.7, 0.6, 0.5], "std": [0.3, 0.2, 0.1]}}')
    stated = encoder_of("resnet10t", path, std="0.25,0.25,0.25")
    assert (stated.mean, stated.std) == ((0.7, 0.6, 0.5), (0.25, 0.25, 0.25))
    beside.write_text("no JSON")
    assert encoder_of("resnet10t", path).mean == user_colours.mean


# -- what is told of an image ---------------------------------------------------------------------


def test_features_are_moments_of_the_last_four_maps(stored: Path) -> None:
    encoder = encoder_of("resnet10t", stored, dim=24)
    x = torch.randn(2, 3, 70, 90)
    maps = encoder.maps(x)
    features = encoder.features(maps)
    mean = torch.cat([m.mean((2, 3)) for m in maps[-4:]], 1)
    spread = torch.cat([(m.var((2, 3), correction=0) + 1e-6).sqrt() for m in maps[-4:]], 1)
    torch.testing.assert_close(features, torch.cat([mean, spread], 1))
    assert encoder.feature_groups == (mean.shape[1], spread.shape[1])
    assert encoder.n_features == features.shape[1]
    assert encoder(x).shape == (2, 24)


def test_zero_weight_pixels_are_ignored(stored: Path) -> None:
    encoder = encoder_of("resnet10t", stored)
    maps = [torch.randn(1, c, 8, 8) for c in encoder.map_dims]
    weight = torch.zeros(1, 64, 64)
    weight[:, :32] = 1
    upper = [m[:, :, :4] for m in maps]
    torch.testing.assert_close(encoder.features(maps, weight), encoder.features(upper))


def test_tiers_run_from_input_to_output_and_early_ones_keep_their_weights(stored: Path) -> None:
    encoder = encoder_of("resnet10t", stored)
    tiers = encoder.tiers()
    assert [len(t) > 0 for t in tiers] == [True] * 5
    reached = {id(p) for tier in tiers for p in tier}
    assert reached == {id(p) for p in encoder.net.parameters()}
    names = {id(p): n for n, p in encoder.net.named_parameters()}
    assert {names[id(p)].split(".")[0] for p in tiers[0]} == {"conv1", "bn1"}
    assert {names[id(p)].split(".")[0] for p in tiers[4]} == {"layer4"}
    assert [t[0].requires_grad for t in tiers] == [False, False, True, True, True]
    assert not any(
        p.requires_grad for p in encoder_of("resnet10t", stored, taught=0).net.parameters()
    )


def test_training_from_scratch_is_unchanged() -> None:
    encoder = build_encoder("resnet10t", {"pretrained": False})
    x = torch.randn(2, 3, 64, 64)
    maps = encoder.maps(x)
    assert encoder.dim == encoder.n_features == encoder.map_dims[-1]
    torch.testing.assert_close(encoder.pool(maps), maps[-1].mean((2, 3)))
    assert encoder.from_scratch
    assert encoder.tiers() == []
    assert all(p.requires_grad for p in encoder.parameters())


# -- refused --------------------------------------------------------------------------------------


class Harmful:
    """An object that runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this must never be printed",)


def _missing(path: Path, state: State) -> None:
    del state, path


def _truncated(path: Path, state: State) -> None:
    save_file(state, path)
    path.write_bytes(path.read_bytes()[:-1000])


def _truncated_pickle(path: Path, state: State) -> None:
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-1000])


def _code(path: Path, state: State) -> None:
    path.write_bytes(pickle.dumps({"state_dict": {"a": 1}, "x": Harmful()}, protocol=2))


def _code_in_zip(path: Path, state: State) -> None:
    torch.save({"state_dict": state, "x": Harmful()}, path)


def _text(path: Path, state: State) -> None:
    path.write_text("<html>404: not found</html>")


def _fewer(path: Path, state: State) -> None:
    torch.save({k: v for k, v in state.items() if not k.startswith("layer4")}, path)


def _another_shape(path: Path, state: State) -> None:
    torch.save(state | {"layer1.0.conv1.weight": torch.zeros(3, 3)}, path)


def _deeper(path: Path, state: State) -> None:
    torch.save(state | {"layer3.1.conv1.weight": torch.zeros(3, 3)}, path)


def _another_network(path: Path, state: State) -> None:
    torch.save({"blocks.0.attn.qkv.weight": torch.zeros(3, 3)}, path)


def _no_names(path: Path, state: State) -> None:
    torch.save([1, 2, 3], path)


REFUSED: dict[str, tuple[str, Callable[[Path, State], None], str]] = {
    "missing": ("a.pth", _missing, "no such file"),
    "truncated": ("a.safetensors", _truncated, "damaged or no safetensors"),
    "truncated pickle": ("a.pth", _truncated_pickle, "damaged or no file of PyTorch"),
    "code": ("a.pth", _code, "without running code"),
    "code in zip": ("a.pt", _code_in_zip, "without running code"),
    "text": ("a.bin", _text, "damaged or no file of PyTorch"),
    "text as safetensors": ("a.safetensors", _text, "damaged or no safetensors"),
    "fewer": ("a.pth", _fewer, r"\d+ of \d+ tensors missing \(first: layer4.0.conv1.weight\)"),
    "shape": ("a.pth", _another_shape, r"1 of another shape \(first: layer1.0.conv1.weight is"),
    "deeper": ("a.pth", _deeper, r"1 that it has no place for \(first: layer3.1.conv1.weight\)"),
    "another": ("a.pth", _another_network, "none of its 1 tensors"),
    "no names": ("a.pth", _no_names, "no tensors by name"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line(
    case: str, resnet: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, write, reason = REFUSED[case]
    path = tmp_path / name
    write(path, dict(resnet.state_dict()))
    with pytest.raises(CheckpointError, match=reason) as refused:
        encoder_of("resnet10t", path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "never be printed" not in capsys.readouterr().out


def test_another_file_than_the_one_named_is_refused(stored: Path) -> None:
    with pytest.raises(CheckpointError, match="expected 000000000000: it is another file"):
        encoder_of("resnet10t", stored, weights_sha256="000000000000")


def test_options_that_exclude_each_other_are_refused(stored: Path) -> None:
    with pytest.raises(OptionError, match="leave out one"):
        encoder_of("resnet10t", stored, pretrained=False)
    with pytest.raises(OptionError, match="is no ViT"):
        encoder_of("resnet10t", stored, model_args="depth=3")
    with pytest.raises(OptionError, match="three numbers each"):
        encoder_of("resnet10t", stored, mean="0.5,0.5")


# -- stored models --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet10t", "lite0", "test_vit"])
def test_a_stored_model_does_not_need_the_file(name: str, tmp_path: Path) -> None:
    network = randomise_weights(
        timm.create_model("tf_efficientnet_lite0" if name == "lite0" else name)
    )
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    view, classes = View(1.0, 64, 4.0), {"classes": ["a", "b"]}
    card = ModelCard("mil_mean", {}, name, {"weights": str(path)}, "binary", {}, classes, view)
    model = build_model(card, pretrained=True)
    settled = card.encoder_options | dict(model.method.encoder.resolved)
    card = ModelCard("mil_mean", {}, name, settled, "binary", {}, classes, view)
    save_model(tmp_path, card, model.method.state_dict())
    path.unlink()
    loaded = load_model(tmp_path)
    x = torch.randn(1, 3, 64, 64)
    expected = model.method.eval().encoder(x)
    torch.testing.assert_close(loaded.method.encoder(x), expected)
    assert loaded.method.encoder.mean == model.method.encoder.mean
    assert loaded.card.encoder_options["weights_sha256"] == settled["weights_sha256"] != ""
