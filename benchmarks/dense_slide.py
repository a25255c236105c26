"""Write a gigapixel slide without glass by repeating a piece of tissue of a real slide.

    python benchmarks/dense_slide.py SLIDE OUT.tif [--side 32768] [--y 0 --x 0]

What `python -m benchmarks streaming --image OUT.tif` reads when nothing can be left out. The piece
is 4,096 pixels a side; without --y and --x it is the one with the least glass.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from foveate.geometry import Box, Frame
from foveate.readers import open_image
from foveate.synthetic.pyramid import write_pyramid
from foveate.synthetic.spec import Bytes, SlideSpec, SlideTile

PIECE, TILE = 4096, 512
COARSE = 64


def main() -> None:
    """Write the slide."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slide", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--side", type=int, default=32768, help="a multiple of 4,096")
    parser.add_argument("--y", type=int, help="level-0 row of the piece")
    parser.add_argument("--x", type=int)
    options = parser.parse_args()
    with open_image(options.slide) as image:
        if image.spacing_um is None:
            raise SystemExit(f"{options.slide}: states no spacing; give another slide")
        y, x, (dy, dx) = options.y, options.x, image.spacing_um
        if y is None or x is None:
            shape = tuple(n // COARSE for n in image.shape)
            small = np.asarray(image.read_at(image.box_um, shape), np.uint8)
            y, x = (COARSE * n for n in _fullest(small))
        place = Box((y * dy, x * dx), (PIECE * dy, PIECE * dx), Frame.UM)
        piece = np.asarray(image.read_at(place, (PIECE, PIECE)), np.uint8)
    n = PIECE // TILE

    def row(k: int) -> dict[int, SlideTile]:
        return {c: _tile(piece, k % n, c % n) for c in range(options.side // TILE)}

    spec = SlideSpec(shape_px0=(options.side,) * 2, tile_px=TILE)
    write_pyramid(options.out, spec, np.full(3, 240, np.uint8), row)
    print(f"{options.out}: {options.side} x {options.side}, tissue of row {y}, column {x}")


def _fullest(small: Bytes) -> tuple[int, int]:
    """Return row and column of the piece with the least bright glass."""
    side = PIECE // COARSE
    dark = (small.mean(-1) < 225).astype(np.float64).cumsum(0).cumsum(1)
    dark = np.pad(dark, ((1, 0), (1, 0)))
    total = dark[side:, side:] - dark[:-side, side:] - dark[side:, :-side] + dark[:-side, :-side]
    y, x = np.unravel_index(int(total.argmax()), total.shape)
    return int(y), int(x)


def _tile(piece: Bytes, row: int, column: int) -> SlideTile:
    """Describe one copy of the piece."""
    y, x = row * TILE, column * TILE
    return SlideTile(np.ascontiguousarray(piece[y : y + TILE, x : x + TILE]), (row, column))


if __name__ == "__main__":
    main()
