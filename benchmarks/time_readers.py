"""Patches per second of `read_many`, beside bare decoding of the tiles that they touch.

    python benchmarks/time_readers.py [--slide FILE] [--retile 256] [--rounds 7]

For each way that patches may lie, a pass over the same patches is timed with each reader, one after
the other, in several rounds; the medians are printed. Absolute figures do not carry over to another
machine, the ratios to bare decoding in the same run mostly do. Bare decoding takes the stored bytes
of every touched tile from memory, and decodes each tile once.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import imagecodecs
import numpy as np
import tifffile

from foveate.geometry import Box, Frame, um_from_px0
from foveate.images.image import AbstractImage
from foveate.images.respaced import RespacedImage
from foveate.readers.base import AbstractReader
from foveate.readers.openslide_ import OpenSlideReader
from foveate.readers.tiff import TiffReader

SLIDE = (
    Path(__file__).resolve().parents[1] / "../shared/data/pathology_atlas/giga/BS9__HE1_1.56Gpx.svs"
)
PATCH_PX, REGION_PX, BATCH = 256, 4096, 64
TISSUE_SHARE = 0.25
"""Stored tiles with fewer bytes, as a share of the largest ones, hold paper."""
QUALITY = 85

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """Boxes to read in order.

    Attributes:
        name: how they lie.
        boxes: the boxes, in pixels of level 0.
        shape: pixels that each is read as.
        batch: number of boxes in one call of `read_many`.
    """

    name: str
    boxes: list[Box]
    shape: tuple[int, int]
    batch: int = BATCH


class Tiles:
    """The stored JPEG tiles of level 0 of a slide, in memory.

    Args:
        path: the slide.
    """

    def __init__(self, path: Path) -> None:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            self.side, self.tables = page.tilewidth, page.jpegtables
            self.shape = page.imagelength // self.side, page.imagewidth // self.side
            self.across = -(-page.imagewidth // self.side)
            self.counts = page.databytecounts
            self.stored: list[bytes] = []
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                file.filehandle.seek(offset)
                self.stored.append(file.filehandle.read(count))

    def tissue(self) -> list[tuple[int, int]]:
        """List row and column of the tiles with tissue, two tiles or more from the border."""
        least = TISSUE_SHARE * np.percentile(self.counts, 99)
        places = itertools.product(range(2, self.shape[0] - 2), range(2, self.shape[1] - 2))
        return [(y, x) for y, x in places if self.counts[y * self.across + x] > least]

    def touched(self, boxes: Iterable[Box]) -> list[bytes]:
        """Return the stored bytes of all tiles that boxes touch, each once, in reading order."""
        found: set[int] = set()
        for box in boxes:
            low = [int(o // self.side) for o in box.origin]
            high = [math.ceil(e / self.side) for e in box.end]
            found |= {
                y * self.across + x
                for y, x in itertools.product(*map(range, low, high))
                if y < self.shape[0] and x < self.across
            }
        return [self.stored[i] for i in sorted(found)]

    def decode(self, tiles: Sequence[bytes], threads: int) -> Times:
        """Return the time in which threads decode tiles."""

        def work(part: Sequence[bytes]) -> None:
            for data in part:
                out = np.empty((self.side, self.side, 3), np.uint8)
                imagecodecs.jpeg8_decode(data, tables=self.tables, outcolorspace="RGB", out=out)

        return run(work, cut(tiles, 16), threads)


def cut(items: Sequence[T], n: int) -> list[Sequence[T]]:
    """Cut items into groups of `n`."""
    return [items[at : at + n] for at in range(0, len(items), n)]


class Times(NamedTuple):
    """Seconds on the clock and of the processor."""

    wall_s: float
    cpu_s: float


def run(work: Callable[[T], None], jobs: Sequence[T], threads: int) -> Times:
    """Return the seconds in which threads do all jobs."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: None, range(threads)))
        begun, used = time.perf_counter(), time.process_time()
        for done in [pool.submit(work, job) for job in jobs]:
            done.result()
        return Times(time.perf_counter() - begun, time.process_time() - used)


def make_plans(tiles: Tiles, n: int) -> list[Plan]:
    """Return the ways of reading `n` patches of tissue."""
    tissue, side = set(tiles.tissue()), tiles.side

    def lay(shift: int, extent: float) -> list[Box]:
        """Lay a lattice of boxes, moved off the stored grid, over tissue, tile by tile."""
        counts = [int((m * side - shift) // extent) for m in tiles.shape]
        corners = [[round(shift + i * extent) for i in range(n)] for n in counts]
        middle = extent / 2
        places = sorted(
            (y // side, x // side, y, x)
            for y, x in itertools.product(*corners)
            if (int((y + middle) // side), int((x + middle) // side)) in tissue
        )
        return [Box((y, x), (extent,) * 2, Frame.PX0) for _, _, y, x in places[:n]]

    shape = (PATCH_PX, PATCH_PX)
    regions = [(y * side, x * side) for y, x in sorted(tissue)[:: max(1, len(tissue) // 6)]]
    at_random = np.random.default_rng(0).permutation(n).tolist()
    shifted = lay(PATCH_PX // 2, PATCH_PX)
    return [
        Plan("on the grid", lay(0, PATCH_PX), shape),
        Plan("shifted by half", shifted, shape),
        Plan("shifted, at random", [shifted[i] for i in at_random if i < len(shifted)], shape),
        Plan("respaced, step 1.37", lay(PATCH_PX // 2, PATCH_PX * 1.37), shape),
        Plan("respaced, step 2", lay(PATCH_PX // 2, PATCH_PX * 2), shape),
        Plan(
            "regions of 4096²",
            [Box(at, (REGION_PX,) * 2, Frame.PX0) for at in regions],
            (REGION_PX, REGION_PX),
            1,
        ),
    ]


def read_with(
    reader: type[AbstractReader], path: Path, opened: list[AbstractImage], *, many: bool
) -> Callable[[Plan, int], Times]:
    """Return a function that times a pass over a plan with a new image.

    The images stay open in `opened`, so that the cache of decoded tiles is as full as in a long
    run; it holds no tile of the new image.
    """

    def timed(plan: Plan, threads: int) -> Times:
        image = RespacedImage(reader(path), (1.0, 1.0), unit="px")
        opened.append(image)
        boxes = [um_from_px0(box, (1.0, 1.0)) for box in plan.boxes]

        def work(part: Sequence[Box]) -> None:
            if many:
                image.read_many(part, plan.shape)
                return
            for box in part:
                image.read_at(box, plan.shape)

        return run(work, cut(boxes, plan.batch), threads)

    return timed


def retile(path: Path, side: int, out: Path) -> None:
    """Write level 0 of a slide anew in JPEG tiles of another side."""
    with TiffReader(path) as image, tifffile.TiffWriter(out) as file:
        height, width = (n // side * side for n in image.shape)
        rows = (image.read(Box((y, 0), (side, width), Frame.PX, 0)) for y in range(0, height, side))
        file.write(
            (row[:, x : x + side] for row in rows for x in range(0, width, side)),
            shape=(height, width, 3),
            dtype=np.uint8,
            tile=(side, side),
            photometric="rgb",
            compression="jpeg",
            compressionargs={"level": QUALITY, "outcolorspace": "ycbcr"},
            resolution=(4e4, 4e4),
            resolutionunit="CENTIMETER",
        )


def measure(path: Path, rounds: int, n: int) -> None:
    """Time all plans with all readers, and print a table.

    Slow readers are timed in the first round only.
    """
    tiles = Tiles(path)
    opened: list[AbstractImage] = []
    readers = {
        "read_many": read_with(TiffReader, path, opened, many=True),
        "read_at": read_with(TiffReader, path, opened, many=False),
        "OpenSlide": read_with(OpenSlideReader, path, opened, many=False),
    }
    print(f"{path.name}: tiles of {tiles.side}², patches of {PATCH_PX}²; patches a second")
    names = ("bare", *readers, "many/bare", "by processor time", "2 threads: bare", "many")
    print("| patches | threads | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 2) + "|")
    for plan in make_plans(tiles, n):
        stored = tiles.touched(plan.boxes)
        times: dict[tuple[str, int], list[Times]] = {}
        for k, threads in itertools.product(range(rounds), (1, 2)):
            times.setdefault(("bare", threads), []).append(tiles.decode(stored, threads))
            for name, timed in readers.items():
                if k == 0 or name == "read_many":
                    times.setdefault((name, threads), []).append(timed(plan, threads))
        for threads in (1, 2):
            rates = [
                len(plan.boxes) / statistics.median(t.wall_s for t in times[name, threads])
                for name in ("bare", *readers)
            ]
            pairs = list(zip(times["bare", threads], times["read_many", threads], strict=True))
            ratios = [
                statistics.median(bare.wall_s / many.wall_s for bare, many in pairs),
                statistics.median(bare.cpu_s / many.cpu_s for bare, many in pairs),
            ]
            if threads == 2:
                ratios += [_gain(times, name) for name in ("bare", "read_many")]
            cells = [f"{r:.0f}" if r > 20 else f"{r:.1f}" for r in rates]
            cells += [f"{ratio:.2f}" for ratio in ratios]
            print(f"| {plan.name} | {threads} | {' | '.join(cells)} |", flush=True)


def _gain(times: dict[tuple[str, int], list[Times]], name: str) -> float:
    """Return how many times as fast two threads are as one: the median over the rounds."""
    pairs = zip(times[name, 1], times[name, 2], strict=True)
    return statistics.median(one.wall_s / two.wall_s for one, two in pairs)


def main() -> None:
    """Measure all readers and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slide", type=Path, default=SLIDE)
    parser.add_argument("--retile", type=int, help="write the slide anew in tiles of this side")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--patches", type=int, default=1024)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.slide
        if options.retile:
            path = Path(folder) / f"tiles_of_{options.retile}.tif"
            retile(options.slide, options.retile, path)
        measure(path, options.rounds, options.patches)


if __name__ == "__main__":
    main()
