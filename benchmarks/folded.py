"""Seconds of `lite0` without gradients on a CPU: folded float32 against bfloat16.

usage: python benchmarks/folded.py [--threads 1] [--repeats 8]
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from unittest.mock import patch

import torch

from foveate.encoders import build_encoder, lite0

SHAPES = ((64, 64), (32, 96), (8, 224), (1, 512))
"""Numbers of patches and their side in pixels."""


def main() -> None:
    """Measure and print the medians, the two ways in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=8)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    encoder = build_encoder("lite0").eval()

    def measure(x: torch.Tensor, *, folded: bool) -> float:
        begun = time.perf_counter()
        tiles = patch.object(lite0, "computes_in_tiles", return_value=not folded)
        with tiles, torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            encoder.maps(x)
        return time.perf_counter() - begun

    print("patches", "side", "folded s", "bfloat16 s", "ratio", sep="\t")
    for n, side in SHAPES:
        x = torch.randn(n, 3, side, side)
        pairs = [
            (measure(x, folded=True), measure(x, folded=False)) for _ in range(chosen.repeats + 1)
        ]
        one, other = (median(seconds) for seconds in zip(*pairs[1:], strict=True))
        print(n, side, f"{one:.3f}", f"{other:.3f}", f"{one / other:.2f}", sep="\t", flush=True)


if __name__ == "__main__":
    main()
