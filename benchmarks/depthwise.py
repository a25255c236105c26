"""Seconds of a training step of depthwise convolutions on small maps: ours against PyTorch's.

usage: python benchmarks/depthwise.py [--threads 1] [--repeats 8]
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch
from torch import nn

from foveate.nn.depthwise import DepthwiseConv2d

SHAPES = ((64, 1152, 2), (16, 1152, 3), (64, 672, 4), (32, 1152, 7))
"""Numbers of maps, of channels, and the side of a map: those of `lite0` for patches of 64 pixels,
for slices of 64 voxels, and for a patch of 224 pixels, where both are the same."""


def main() -> None:
    """Measure and print the medians, the two in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=8)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    print("maps", "channels", "side", "ours s", "PyTorch's s", "ratio", sep="\t")
    for n, channels, side in SHAPES:
        x = torch.randn(n, channels, side, side).contiguous(memory_format=torch.channels_last)
        convolutions = [
            kind(channels, channels, 5, padding=2, groups=channels, bias=False)
            for kind in (DepthwiseConv2d, nn.Conv2d)
        ]
        pairs = [[_step(conv, x) for conv in convolutions] for _ in range(chosen.repeats + 1)]
        one, other = (median(seconds) for seconds in zip(*pairs[1:], strict=True))
        row = (n, channels, side, f"{one:.4f}", f"{other:.4f}", f"{one / other:.2f}")
        print(*row, sep="\t", flush=True)


def _step(conv: nn.Conv2d, x: torch.Tensor) -> float:
    """Return the seconds of a forward and a backward pass."""
    x = x.clone().requires_grad_()
    begun = time.perf_counter()
    conv(x).sum().backward()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
