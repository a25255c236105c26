"""How long OpenMP's threads may spin: seconds of a training step of 48 patches through `lite0`.

    python benchmarks/threads.py [--threads 2] [--spins 300000 30000 2000] [--beside 0]

Each number of spins (``GOMP_SPINCOUNT``, which must be set before PyTorch is loaded) has a process
of its own. ``--beside 2`` keeps two more processes busy meanwhile, as on a machine that is shared.
The foveate command line sets 30000 (`foveate.memory.wait_briefly`); OpenMP's own value is 300000.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

STEP = """
import sys, time, torch
from foveate.encoders import build_encoder
torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
encoder = build_encoder("lite0").train()
patches = torch.randn(48, 3, 64, 64).contiguous(memory_format=torch.channels_last)
for _ in range(6):
    begun = time.perf_counter()
    sum(map_.square().mean() for map_ in encoder.maps(patches)).backward()
    print(time.perf_counter() - begun)
"""
BUSY = "while True: pass"


def measure(spins: int, threads: int) -> list[float]:
    """Return the seconds of five steps, after one that warms up."""
    result = subprocess.run(
        [sys.executable, "-c", STEP, str(threads)],
        env=os.environ | {"GOMP_SPINCOUNT": str(spins)},
        capture_output=True,
        text=True,
        check=True,
    )
    return [float(line) for line in result.stdout.split()][1:]


def main() -> None:
    """Print the seconds for each number of spins."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--spins", type=int, nargs="+", default=[300_000, 30_000, 2000])
    parser.add_argument("--beside", type=int, default=0, help="busy processes beside")
    chosen = parser.parse_args()
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(chosen.beside)]
    try:
        for spins in chosen.spins:
            seconds = measure(spins, chosen.threads)
            median, most = statistics.median(seconds), max(seconds)
            print(f"{spins:>7} spins: median {median:.3f} s, longest {most:.3f} s")
    finally:
        for other in others:
            other.kill()


if __name__ == "__main__":
    main()
