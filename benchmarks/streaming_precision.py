"""Rounding errors of streaming and of the plain network, in single and half precision.

    python benchmarks/streaming_precision.py [--side 320] [--tile 96] [--nets resnet18,...]

Per network, with random weights, frozen norms with random statistics and one random image: how far
the map and the gradients of all parameters are from those of the plain network in double precision,
``|found - true| / |true|``; gradients as one vector, then the worst parameter alone. Beside it, how
far the plain network is from itself in another order of sums (another memory format, a batch of
two), and how far streaming is from it.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from foveate.streaming import Streamed

RESNET = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
Passed = tuple[Tensor, list[Tensor]]


class LastMap(nn.Module):
    """A network that returns the coarsest map of a timm network."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        self.net = timm.create_model(name, features_only=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        """Return the coarsest map of the images ``x``."""
        last: Tensor = self.net(x)[-1]
        return last


def resnet(name: str) -> nn.Module:
    """Build a ResNet of timm."""
    net = getattr(torchvision.models, name)()
    return nn.Sequential(*(getattr(net, part) for part in RESNET))


NETS: Mapping[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: resnet("resnet18"),
    "resnet34": lambda: resnet("resnet34"),
    "resnet50": lambda: resnet("resnet50"),
    "convnext_tiny": lambda: LastMap("convnext_tiny", ls_init_value=1.0),
    "densenet121": lambda: torchvision.models.densenet121().features,
}


def randomised(net: nn.Module) -> nn.Module:
    """Freeze all norms, with random statistics and scales about one."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.8, 1.25)  # type: ignore[union-attr]
            nn.init.normal_(module.weight, 1, 0.1)
            nn.init.normal_(module.bias, 0, 0.1)
    return net


def run_backward(
    net: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor, *, half: bool
) -> Passed:
    """Return the map of the first image, and all gradients for a fixed upstream gradient."""
    net.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        maps = run(x)[:1]
    generator = torch.Generator().manual_seed(1)
    maps.backward(torch.randn(maps.shape, generator=generator).to(maps.dtype))
    return maps.detach().double(), [p.grad.double() for p in net.parameters() if p.grad is not None]


def errors(actual: Passed, true: Passed) -> tuple[float, float, float]:
    """Return the errors of the map, of all gradients together, and of the worst parameter."""
    (map_, gradients), (true_map, true_gradients) = actual, true
    apart = [a - b for a, b in zip(gradients, true_gradients, strict=True)]
    worst = max(float(d.norm() / b.norm()) for d, b in zip(apart, true_gradients, strict=True))
    length = sum(float(b.square().sum()) for b in true_gradients) ** 0.5
    total = sum(float(d.square().sum()) for d in apart) ** 0.5 / length
    return float((map_ - true_map).norm() / true_map.norm()), total, worst


def rows(name: str, x: Tensor, tile: int) -> list[str]:
    """Return the rows of the table for one network."""
    torch.manual_seed(0)
    net = randomised(NETS[name]())
    double = copy.deepcopy(net).double()
    true = run_backward(double, double, x.double(), half=False)
    other = copy.deepcopy(net).to(memory_format=torch.channels_last)
    pair = torch.cat([x, x.flip(-1)]).contiguous(memory_format=torch.channels_last)
    lines = []
    for half in (False, True):
        plain = run_backward(net, net, x, half=half)
        repeated = run_backward(other, other, pair, half=half)
        streamed = run_backward(net, Streamed(net, tile=tile), x, half=half)
        for quantity, result, against in (
            ("plain", plain, true),
            ("streamed", streamed, true),
            ("plain twice, apart", repeated, plain),
            ("streamed, plain, apart", streamed, plain),
        ):
            numbers = " | ".join(f"{e:.1e}" for e in errors(result, against))
            lines.append(f"| {name} | {'bf16' if half else 'float32'} | {quantity} | {numbers} |")
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=320)
    parser.add_argument("--tile", type=int, default=96)
    parser.add_argument("--nets", default=",".join(NETS))
    args = parser.parse_args()
    x = torch.randn(1, 3, args.side, args.side, generator=torch.Generator().manual_seed(2))
    print("| network | precision | of | map | gradients | worst parameter |")
    print("|---|---|---|---|---|---|")
    for name in args.nets.split(","):
        print("\n".join(rows(name, x, args.tile)), flush=True)


if __name__ == "__main__":
    main()
