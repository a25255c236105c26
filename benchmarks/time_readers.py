"""Tiles per second of the TIFF reader and of OpenSlide, beside decoding of the same blocks.

    python benchmarks/time_readers.py [--slide FILE] [--seconds 3]

Every line is measured in the same run on the same machine: absolute figures do not carry over to
another one, the ratios to bare decoding mostly do.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

from foveate.geometry import Box, Frame
from foveate.images.image import AbstractImage
from foveate.readers.openslide_ import OpenSlideReader
from foveate.readers.tiff import TiffReader

SLIDE = (
    Path(__file__).resolve().parents[1] / "../shared/data/pathology_atlas/giga/BS9__HE1_1.56Gpx.svs"
)
PATCH_PX = 256
EMPTY_BYTES = 4000
"""Stored blocks smaller than this hold paper; larger ones hold tissue."""


def tissue_blocks(path: Path) -> list[tuple[int, int, int, int]]:
    """List row, column, offset and byte count of all level-0 blocks with tissue."""
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        across = -(-page.imagewidth // page.tilewidth)
        down = page.imagelength // page.tilelength - 1
        blocks = enumerate(zip(page.dataoffsets, page.databytecounts, strict=True))
        return [
            (i // across, i % across, offset, count)
            for i, (offset, count) in blocks
            if count > EMPTY_BYTES and i // across < down and i % across < across - 2
        ]


def rate(work: Callable[[int], None], n: int, threads: int, seconds: float) -> float:
    """Return the calls per second of ``work(0..n)``, in order, repeated until the time is up."""
    places: Iterator[int] = itertools.cycle(range(n))
    counts = [0] * threads

    def run(thread: int) -> None:
        while time.perf_counter() < stop:
            work(next(places))
            counts[thread] += 1

    warm_until = time.perf_counter() + seconds / 2
    while time.perf_counter() < warm_until:  # memory is touched for the first time, caches fill
        work(next(places))
    stop = time.perf_counter() + seconds
    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, range(threads)))
    return sum(counts) / (time.perf_counter() - start)


def decode_blocks(path: Path, blocks: Sequence[tuple[int, int, int, int]]) -> Callable[[int], None]:
    """Return a function that decodes a stored block without a reader."""
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        tables, shape = page.jpegtables, (page.tilelength, page.tilewidth, 3)
        stored = []
        for _, _, offset, count in blocks:
            file.filehandle.seek(offset)
            stored.append(file.filehandle.read(count))

    def work(i: int) -> None:
        out = np.empty(shape, np.uint8)
        imagecodecs.jpeg8_decode(stored[i], tables=tables, outcolorspace="RGB", out=out)

    return work


def boxes(
    blocks: Sequence[tuple[int, int, int, int]], side: int, patch: int, shift: int
) -> list[Box]:
    """Return patches inside the tissue blocks, row by row, moved by `shift` off the stored grid."""
    inside = []
    for row, column, _, _ in blocks:
        for y, x in itertools.product(range(0, side, patch), repeat=2):
            origin = (row * side + y + shift, column * side + x + shift)
            inside.append(Box(origin, (patch, patch), Frame.PX, 0))
    return inside


def read_boxes(image: AbstractImage, boxes_to_read: Sequence[Box]) -> Callable[[int], None]:
    """Return a function that reads one of the boxes."""

    def work(i: int) -> None:
        image.read(boxes_to_read[i])

    return work


def main() -> None:
    """Measure all readers and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slide", type=Path, default=SLIDE)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    blocks = tissue_blocks(options.slide)
    with tifffile.TiffFile(options.slide) as file:
        side = file.pages.first.tilewidth
    share = (PATCH_PX / side) ** 2
    print(f"{options.slide.name}: {len(blocks)} tissue blocks of {side}², patches of {PATCH_PX}²")
    print("A patch's worth of bare decoding is its share of a stored block.")
    plans = {
        f"stored blocks {side}², whole pass": (boxes(blocks, side, side, 0), 1 / share),
        f"{PATCH_PX}² on the grid, in order": (boxes(blocks, side, PATCH_PX, 0), 1.0),
        f"{PATCH_PX}² shifted by half, in order": (
            boxes(blocks, side, PATCH_PX, PATCH_PX // 2),
            1.0,
        ),
        f"{PATCH_PX}² shifted, at random": (
            list(
                np.random.default_rng(0).permutation(
                    np.array(boxes(blocks, side, PATCH_PX, PATCH_PX // 2), dtype=object)
                )
            ),
            1.0,
        ),
    }
    for threads in (1, 2):
        yardstick = (
            rate(decode_blocks(options.slide, blocks), len(blocks), threads, options.seconds)
            / share
        )
        print(f"\n{threads} thread(s): bare decoding {yardstick:.0f} patches/s")
        for name, (plan_boxes, weight) in plans.items():
            for reader in (TiffReader, OpenSlideReader):
                with reader(options.slide) as image:
                    work = read_boxes(image, plan_boxes)
                    speed = rate(work, len(plan_boxes), threads, options.seconds) * weight
                    print(
                        f"  {name:34} {reader.__name__:16} {speed:7.0f} patches/s "
                        f"{speed / yardstick:5.2f} of bare"
                    )


if __name__ == "__main__":
    main()
