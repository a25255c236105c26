"""Layers that cannot be streamed are refused by name, with advice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from foveate.streaming import NotLocal, Streamed


class WithFunction(nn.Module):
    """A network that calls a function on the map of a convolution."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 8, 3), function
        self.block = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x), *self.block)


class ParameterPerPosition(nn.Module):
    """A layer with one parameter per position."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 3, 32, 32))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.position


class DataDependentBranch(nn.Module):
    """A layer whose computation depends on the brightness of the image."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.mean() > 0 else x


class TwoInputs(nn.Module):
    """A network that takes a mask beside the image."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x * mask


def _compare_with_shifted(x: Tensor) -> Tensor:
    turned = x.permute(0, 2, 3, 1)
    turned.mul_(2)
    return x + 1


def _squeeze_excite() -> nn.Module:
    net = timm.create_model("efficientnet_b0", features_only=True, out_indices=(0,)).eval()
    return nn.Sequential(net.conv_stem, net.bn1, net.blocks[0])


def _attention(x: Tensor, layer: nn.Module) -> Tensor:
    rows = x.flatten(2).transpose(1, 2)
    return layer(rows, rows, rows)[0]


def _with_hook(where: str) -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()))
    net.get_submodule(where).register_forward_hook(lambda *_: None)
    return net


class HookedNetwork(nn.Module):
    """A network that returns the map that a plain function gathers as a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        gathered: list[Tensor] = []
        self.found, self.none = gathered, None
        self.conv.register_forward_hook(lambda *args: gathered.append(args[-1]))

    def forward(self, x: Tensor) -> Tensor:
        self.conv(x)
        return self.found.pop()


REFUSED: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "squeeze-excite": (_squeeze_excite, r"mean in '2\.0\.se'", "take a network without"),
    "instance norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4)),
        r"'1' \(InstanceNorm2d\)",
        "frozen batch norm",
    ),
    "group norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)),
        r"'1' \(GroupNorm\)",
        "layer norm over channels",
    ),
    "alone": (lambda: nn.GroupNorm(1, 3), "GroupNorm", "layer norm over channels"),
    "batch norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4))),
        r"'1\.0' \(BatchNorm2d\)",
        r"\.eval\(\)",
    ),
    "batch norm of timm": (
        lambda: timm.create_model("regnetx_002", features_only=True, out_indices=(0,)).train(),
        r"batch_norm in '.*stem\.bn'|batch_norm in 'stem_bn'",
        r"\.eval\(\)",
    ),
    "global pooling": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)),
        r"'1' \(AdaptiveAvgPool2d\)",
        "pool after streaming",
    ),
    "classifier": (
        lambda: torchvision.models.resnet18().eval(),
        r"'avgpool' \(AdaptiveAvgPool2d\)",
        "pool after streaming",
    ),
    "mean": (
        lambda: WithFunction(lambda x: x.mean((2, 3), keepdim=True)),
        "mean in the stack",
        "global",
    ),
    "attention": (
        lambda: WithFunction(_attention, nn.MultiheadAttention(8, 2, batch_first=True)),
        r"'block\.0' \(MultiheadAttention\)",
        "attend after streaming",
    ),
    "spatial norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.LayerNorm([4, 30, 30])),
        r"'1' \(LayerNorm\)",
        "normalise channels only",
    ),
    "flatten": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()),
        r"'1' \(Flatten\)",
        "flatten after streaming",
    ),
    "flatten, called": (
        lambda: WithFunction(lambda x: x.flatten(1)),
        "flatten in the",
        "after stream",
    ),
    "circular": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")),
        r"'0' \(Conv2d\)",
        "use 'zeros'",
    ),
    "circular layer": (lambda: nn.CircularPad2d(1), "CircularPad2d", "use 'constant'"),
    "circular call": (
        lambda: WithFunction(lambda x: functional.pad(x, (1, 1, 1, 1), "circular")),
        "pad in the stack",
        "use 'constant'",
    ),
    "bicubic": (lambda: nn.Upsample(scale_factor=2, mode="bicubic"), "Upsample", "use 'nearest'"),
    "indices": (
        lambda: WithFunction(lambda x, pool: pool(x)[0], nn.MaxPool2d(2, return_indices=True)),
        r"'block\.0' \(MaxPool2d\)",
        "leave it off",
    ),
    "control flow": (
        DataDependentBranch,
        "DataDependentBranch cannot be traced",
        "does not depend on the values",
    ),
    "two inputs": (TwoInputs, "TwoInputs takes 2 inputs", "wrap the stack"),
    "positions": (ParameterPerPosition, "add in the stack", "one value per place"),
    "coordinates": (
        lambda: WithFunction(lambda x: torch.cat([x, torch.ones(1, 1, 30, 30)], 1)),
        "cat in the stack",
        "parameters alone",
    ),
    "softmax": (
        lambda: WithFunction(lambda x: x.softmax(-1)),
        "softmax in",
        "along a spatial axis",
    ),
    "joined images": (
        lambda: WithFunction(lambda x: torch.cat([x, x])),
        "cat in",
        "images of a batch",
    ),
    "first image": (lambda: WithFunction(lambda x: x[:1]), "getitem in", "picks images"),
    "turned": (
        lambda: WithFunction(lambda x: x.transpose(2, 3)),
        "transpose in",
        "exchanges spatial",
    ),
    "prelu per row": (
        lambda: WithFunction(
            lambda x, act: act(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), nn.PReLU(30)
        ),
        r"'block\.0' \(PReLU\)",
        "permute them back",
    ),
    "sizes": (
        lambda: WithFunction(lambda x: x + functional.interpolate(x[:, :, :1], size=(1, 30))),
        "add in the stack",
        "maps of different sizes",
    ),
    "maps": (lambda: WithFunction(lambda x: [x, x]), "return one map", "wrap it"),  # type: ignore[arg-type, return-value]
    "view overwritten": (lambda: WithFunction(_compare_with_shifted), "mul_ in", "inplace=False"),
    "hook": (lambda: _with_hook("0"), r"'0' \(Conv2d\)", "remove the hook"),
    "hook of a block": (lambda: _with_hook("1"), r"'1' \(Sequential\)", "remove the hook"),
    "hook of the stack": (lambda: _with_hook(""), "^Sequential cannot", "remove the hook"),
    "hook that gathers": (
        HookedNetwork,
        r"hooks on 'conv' may gather",
        "return the maps from forward",
    ),
    "weights from the image": (
        lambda: WithFunction(lambda x: functional.conv2d(x, x)),
        "conv2d in",
        "computed from the image",
    ),
    "batch stochastic depth": (
        lambda: nn.Sequential(nn.Conv2d(3, 3, 1), torchvision.ops.StochasticDepth(0.5, "batch")),
        r"'1' \(StochasticDepth\)",
        "use 'row'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_layers_that_are_not_local_are_refused_by_name(name: str) -> None:
    make, where, advice = REFUSED[name]
    streamed = Streamed(make(), tile=8)
    with pytest.raises(NotLocal, match=where) as refused:
        streamed(torch.randn(1, 3, 32, 32))
    assert refused.match(advice), str(refused.value)


def test_check_refuses_without_an_image() -> None:
    with pytest.raises(NotLocal, match="InstanceNorm3d"):
        Streamed(nn.Sequential(nn.Conv3d(1, 4, 3), nn.InstanceNorm3d(4))).check(3, 1)
    Streamed(nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU())).check(3, 1)


def test_unused_branches_are_not_checked() -> None:
    """An unused head that overwrites its own maps is ignored."""

    def forward(x: Tensor, norm: nn.Module, relu: nn.Module) -> Tensor:
        relu(norm(x))
        return x * 2

    net = WithFunction(forward, nn.GroupNorm(2, 8), nn.ReLU(inplace=True))
    x = torch.randn(1, 3, 32, 32)
    streamed = Streamed(net, tile=8)
    torch.testing.assert_close(streamed(x), net(x))
    assert {id(p) for p in streamed.used_parameters()} == {id(p) for p in net.conv.parameters()}
