"""Seconds and peak memory of writing a cohort of 100 slides of 16384² and one of 32768².

python benchmarks/synthetic.py [--slides 100] [--workers 2] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

from foveate.synthetic import CohortSpec, SlideSpec, write_cohort

GIGA = SlideSpec(
    shape_px0=(32768, 32768), tissue_area_px0=(24e6, 32e6), n_islands=(8, 12), n_nodules=(64, 112)
)


def main() -> None:
    """Write the cohort and print the cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slides", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = chosen.folder or Path(scratch)
        started = time.perf_counter()
        write_cohort(
            folder,
            CohortSpec(chosen.slides, -(-chosen.slides * 3 // 4), SlideSpec(), GIGA),
            workers=chosen.workers,
        )
        seconds = time.perf_counter() - started
        sizes = [p.stat().st_size / 1e6 for p in sorted((folder / "slides").glob("*.tif"))]
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"slides {chosen.slides} + 1, workers {chosen.workers}: {seconds:.1f} s, peak RSS")
    print(f"{peak_mib:.0f} MiB, {sum(sizes):.0f} MB in all, {sizes[0]:.1f} MB the first")


if __name__ == "__main__":
    main()
