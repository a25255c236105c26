"""Streaming gives the maps and gradients of the plain network for published architectures."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from monai.networks import nets as monai_nets
from torch import Tensor, nn
from torch.nn import functional

from foveate.encoders import build_encoder
from foveate.encoders.base import AbstractEncoder
from foveate.streaming import Streamed

RESNET = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")


class LastMap(nn.Module):
    """A network that returns the coarsest of its maps."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        maps = self.net.maps(x) if isinstance(self.net, AbstractEncoder) else self.net(x)
        return maps[-1]


class UNet(nn.Module):
    """Three levels with skip connections; maps of odd sides are cropped to match."""

    def __init__(self, up: str) -> None:
        super().__init__()
        self.up = up
        self.first, self.second, self.third = self.block(3, 6), self.block(6, 8), self.block(8, 10)
        self.raise_third = self.raised(10, 8)
        self.raise_second = self.raised(8, 6)
        self.after_second, self.after_first = self.block(16, 8), self.block(12, 6)
        self.out = nn.Conv2d(6, 2, 1)

    def block(self, before: int, after: int) -> nn.Module:
        conv, norm = nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)
        return nn.Sequential(conv, norm, nn.ReLU(inplace=True))

    def raised(self, before: int, after: int) -> nn.Module:
        if self.up == "transposed":
            return nn.ConvTranspose2d(before, after, 2, stride=2)
        align = {"align_corners": True} if self.up == "bilinear" else {}
        return nn.Sequential(
            nn.Upsample(scale_factor=2, mode=self.up, **align), nn.Conv2d(before, after, 1)
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = self.first(x)
        second = self.second(functional.max_pool2d(first, 2, ceil_mode=True))
        return first, second, self.third(functional.avg_pool2d(second, 2, ceil_mode=True))

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.encode(x)
        above = self.raise_third(third)[:, :, : second.shape[2], : second.shape[3]]
        above = self.after_second(torch.cat([above, second], 1))
        above = self.raise_second(above)[:, :, : first.shape[2], : first.shape[3]]
        return self.out(self.after_first(torch.cat([above, first], 1)))


class UNetEncoder(UNet):
    """The encoder of the U-Net alone."""

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x)[-1]


def resnet(name: str, **options: object) -> nn.Module:
    net = getattr(torchvision.models, name)(**options)
    return nn.Sequential(*(getattr(net, part) for part in RESNET))


def monai_resnet() -> nn.Module:
    net = monai_nets.resnet10(spatial_dims=3, n_input_channels=1)
    parts = ("conv1", "bn1", "act", "maxpool", "layer1", "layer2", "layer3", "layer4")
    return nn.Sequential(*(getattr(net, part) for part in parts))


def monai_narrow() -> nn.Module:
    widths = [4, 6, 8, 10]
    net = monai_nets.ResNet(
        "basic", [1, 1, 1, 1], widths, spatial_dims=3, n_input_channels=1, conv1_t_stride=2
    )
    parts = ("conv1", "bn1", "act", "maxpool", "layer1", "layer2", "layer3", "layer4")
    return nn.Sequential(*(getattr(net, part) for part in parts))


def dense(depth: tuple[int, ...]) -> nn.Module:
    net = torchvision.models.DenseNet(growth_rate=8, block_config=depth, num_init_features=16)
    return net.features


def build_timm_network(name: str, **options: object) -> nn.Module:
    return LastMap(timm.create_model(name, features_only=True, **options))


def build_own_network(name: str, **options: object) -> nn.Module:
    return LastMap(build_encoder(name, options))


ODD, ODD_3D = (73, 107), (33, 41, 29)
TILES, TILES_3D = (40, 57, (37, 108)), (17, (33, 16, 15), (12, 41, 29))

FAST: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: resnet("resnet18")[:7],
    "dilated resnet": lambda: nn.Sequential(
        *resnet("resnet50", replace_stride_with_dilation=[True, True, True], width_per_group=8)[:6]
    ),
    "convnext": lambda: build_timm_network("convnext_atto", ls_init_value=1.0, out_indices=(1,)),
    "lite": lambda: build_timm_network("efficientnet_lite0", out_indices=(2,)),
    "tf lite": lambda: build_timm_network("tf_efficientnet_lite0", out_indices=(2,)),
    "regnetx": lambda: build_timm_network("regnetx_002", out_indices=(3,)),
    "densenet": lambda: dense((2, 2, 2)),
    "vgg": lambda: torchvision.models.vgg.make_layers([8, "M", 16, 16, "M", 24, 24, "M"], True),
    "unet encoder": lambda: UNetEncoder("nearest"),
    "unet nearest": lambda: UNet("nearest"),
    "unet bilinear": lambda: UNet("bilinear"),
    "unet transposed": lambda: UNet("transposed"),
    "small": lambda: build_own_network("small", norm="local"),
    "small with standardised kernels": lambda: build_own_network("small", norm="weights"),
    "own resnet10t": lambda: build_own_network(
        "resnet10t", norm="channel", pretrained=False, stages=2
    ),
    "monai": monai_narrow,
    "hooks": lambda: build_timm_network("legacy_xception", out_indices=(1,)),
}
SLOW: dict[str, Callable[[], nn.Module]] = {
    "resnet34": lambda: resnet("resnet34"),
    "resnet50": lambda: resnet("resnet50"),
    "dilated resnet50": lambda: resnet(
        "resnet50", replace_stride_with_dilation=[False, True, True]
    ),
    "convnext tiny": lambda: build_timm_network("convnext_tiny", ls_init_value=1.0),
    "convnext tiny of torchvision": lambda: (
        torchvision.models.convnext_tiny(layer_scale=1.0, stochastic_depth_prob=0.0).features
    ),
    "whole lite": lambda: build_timm_network("efficientnet_lite0"),
    "whole tf lite": lambda: build_timm_network("tf_efficientnet_lite0"),
    "densenet121": lambda: torchvision.models.densenet121().features,
    "vgg16": lambda: torchvision.models.vgg16_bn().features,
    "own resnet18": lambda: build_own_network("resnet18", norm="channel", pretrained=False),
    "own convnext": lambda: build_own_network("convnext_atto", norm="local", pretrained=False),
    "monai resnet10": monai_resnet,
    "xception41": lambda: build_timm_network("xception41", out_indices=(3,)),
}
NETS = FAST | SLOW


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """Return the network in double precision, with norms far from the identity."""
    torch.manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
    for name, parameter in net.named_parameters():
        if name.endswith(("gamma", "layer_scale")):
            nn.init.normal_(parameter, 1, 0.3)
    return net.double()


def run_backward(
    net: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[dict[str, Tensor | None], Tensor]:
    """Return gradients of parameters and image for a random upstream gradient, and the map."""
    x = x.clone().requires_grad_()
    net.zero_grad()
    actual = run(x)
    generator = torch.Generator().manual_seed(11)
    upstream = torch.randn(actual.shape, generator=generator, dtype=torch.float64)
    actual.backward(upstream.to(actual.dtype))
    return {"image": x.grad} | {n: p.grad for n, p in net.named_parameters()}, actual.detach()


def assert_same(
    actual: dict[str, Tensor | None], expected: dict[str, Tensor | None], bound: float = 1e-10
) -> None:
    assert actual.keys() == expected.keys()
    for name, right in expected.items():
        tensor = actual[name]
        if right is None or tensor is None:
            assert right is tensor, name
            continue
        error = float((tensor - right).abs().max() / right.abs().max().clamp_min(1e-300))
        assert error <= bound, f"{name}: {error:.1e}"


@pytest.mark.parametrize(
    "name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_maps_and_gradients_match_the_plain_network(name: str) -> None:
    net = randomised(NETS[name]())
    three = "monai" in name
    size, tiles = (ODD_3D, TILES_3D) if three else (ODD, TILES)
    x = torch.randn(2, 1 if three else 3, *size, dtype=torch.float64)
    expected, plain = run_backward(net, net, x)
    for tile in tiles:
        streamed = Streamed(net, tile=tile)
        actual, map_ = run_backward(net, streamed, x)
        assert streamed.counts["forward"] == streamed.counts["backward"] >= 4
        assert_same({"map": map_}, {"map": plain})
        assert_same(actual, expected)


# -- in use ---------------------------------------------------------------------------------------


def tiny_network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8).eval(), nn.ReLU(inplace=True)),
        *(nn.Conv2d(8, 8, 3, 2, 1), nn.GELU(), nn.Conv2d(8, 4, 3, padding=1)),
    )


def test_streaming_passes_gradcheck() -> None:
    stack = nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1), nn.Tanh(), nn.Conv2d(2, 1, 2)).double()
    streamed = Streamed(stack, tile=3)
    x = torch.randn(1, 1, 7, 6, dtype=torch.float64, requires_grad=True)
    parameters = list(stack.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: streamed(x), (x, *parameters))
    assert streamed.counts["forward"] > 4


def test_gradients_of_several_passes_add_up() -> None:
    net = tiny_network().double()
    images = torch.randn(3, 1, 3, 41, 37, dtype=torch.float64)
    expected = copy.deepcopy(net)
    torch.cat([expected(x) for x in images]).square().sum().backward()
    streamed = Streamed(net, tile=16)
    for x in images:
        streamed(x).square().sum().backward()
    for p, q in zip(net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_tiles_without_gradient_are_not_computed_again() -> None:
    net, x = tiny_network(), torch.randn(2, 3, 64, 64)
    streamed = Streamed(net, tile=16)
    actual = streamed(x)
    assert streamed.counts == {"forward": 32, "backward": 0}
    actual[0, :, 5, 9].sum().backward()
    assert streamed.counts == {"forward": 32, "backward": 1}
    gradients = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    net(x)[0, :, 5, 9].sum().backward()
    for p, q in zip(net.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, q, rtol=1e-4, atol=1e-5)


def test_zero_gradients_are_tensors_and_not_none() -> None:
    """Optimisers decay weights with a zero gradient, but not with a gradient of None."""
    net = tiny_network()
    (Streamed(net, tile=16)(torch.randn(1, 3, 32, 32)) * 0).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in net.parameters())


def test_frozen_layers_before_a_stored_map_are_allowed() -> None:
    """A segment without trainable parameters has no gradients and raises no error."""
    below = [nn.Conv2d(3, 4, 5, padding=2), nn.ReLU(), nn.MaxPool2d(8), nn.Conv2d(4, 32, 1)]
    above = [layer for _ in range(6) for layer in (nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())]
    net = randomised(nn.Sequential(*below, *above))
    for layer in below:
        layer.requires_grad_(False)
    x = torch.randn(1, 3, 320, 320, dtype=torch.float64)
    net(x).square().sum().backward()
    expected = {name: p.grad for name, p in net.named_parameters()}
    net.zero_grad()
    streamed = Streamed(net, budget_bytes=2 << 20)
    assert len(streamed.plan((3, 320, 320)).segments) == 2
    streamed(x).square().sum().backward()
    assert_same({name: p.grad for name, p in net.named_parameters()}, expected)


def test_changes_before_backward_are_errors() -> None:
    net, x = tiny_network(), torch.randn(1, 3, 32, 32)
    actual = Streamed(net, tile=16)(x)
    with torch.no_grad():
        net[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        actual.sum().backward()


def test_second_derivatives_are_refused() -> None:
    x = torch.randn(1, 3, 32, 32, requires_grad=True)
    (first,) = torch.autograd.grad(
        Streamed(tiny_network(), tile=16)(x).square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (first + x).sum().backward()


# -- changed after the first call -----------------------------------------------------------------


def _change_values(net: nn.Module) -> None:
    net.load_state_dict({k: torch.randn_like(v.float()).abs() for k, v in net.state_dict().items()})


def _replace_layer(net: nn.Module) -> None:
    net[5] = nn.Conv2d(8, 6, 5, padding=2)


def _replace_parameter(net: nn.Module) -> None:
    net[0].weight = nn.Parameter(torch.randn(8, 3, 3, 3))


def _change_mode(net: nn.Module) -> None:
    net.eval()


def _freeze(net: nn.Module) -> None:
    net[0].requires_grad_(False)


CHANGES = [
    _change_values,
    _replace_layer,
    _replace_parameter,
    _change_mode,
    _freeze,
    nn.Module.double,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__.strip("_"))
def test_a_network_may_change_after_the_first_call(change: Callable[[nn.Module], object]) -> None:
    net = nn.Sequential(*tiny_network(), nn.Dropout(0.9), nn.Dropout2d(0.9))
    streamed = Streamed(net, tile=16)
    streamed(torch.randn(1, 3, 40, 33)).sum().backward()
    change(net)
    net[6:].eval()
    x = torch.randn(1, 3, 40, 33)
    x = x.double() if change is nn.Module.double else x
    expected, plain = run_backward(net, net, x)
    actual, map_ = run_backward(net, streamed, x)
    assert_same({"map": map_} | actual, {"map": plain} | expected, 1e-4)


def test_buffers_of_traced_layers_move_with_the_network() -> None:
    """Buffers of timm's norms are read at each call, not only at the first one."""
    net = build_timm_network("regnetx_002", out_indices=(0,)).eval()
    streamed = Streamed(net, tile=32)
    streamed(torch.randn(1, 3, 64, 64))
    randomised(net)
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(streamed(x), net(x))


def test_hooks_that_gather_maps_are_removed_afterwards() -> None:
    net = build_timm_network("legacy_xception", out_indices=(0, 1)).eval()
    x = torch.randn(1, 3, 61, 67)
    plain, streamed = net(x), Streamed(net, tile=24)
    torch.testing.assert_close(streamed(x), plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(net(x), plain)
    other = copy.deepcopy(streamed)
    torch.testing.assert_close(other(x), plain, rtol=1e-4, atol=1e-4)


def test_copies_do_not_share_weights() -> None:
    x = torch.randn(1, 3, 40, 33)
    streamed = Streamed(tiny_network(), tile=16)
    streamed(x)
    for other in (copy.deepcopy(streamed), pickle.loads(pickle.dumps(streamed))):
        _change_values(other.stack)
        torch.testing.assert_close(other(x), other.stack(x))
    torch.testing.assert_close(streamed(x), streamed.stack(x))
