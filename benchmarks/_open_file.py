"""Open one file in a process of its own, so that its time and memory can be measured.

python benchmarks/_open_file.py look FILE               (reads a glimpse of 128 pixels)
python benchmarks/_open_file.py pixels FILE OUT.npz     (stores all pixels of level 0)
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

import numpy as np

from foveate.errors import FoveateError
from foveate.geometry import Box, Frame
from foveate.images.respaced import RespacedImage
from foveate.readers import open_image


def look(path: str) -> str:
    """Open a file and read a glimpse; return seconds, memory and whether it was refused."""
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with open_image(path) as image:
            placed = image
            if not image.spacing_um:
                placed = RespacedImage(image, (1.0,) * image.ndim, unit="px")
            placed.glimpse(max(placed.box_um.size) / 128)
        text = "read"
    except FoveateError as error:
        text = f"refused: {error}"
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return f"{time.perf_counter() - begun:.2f} s, {peak:.0f} MiB, {text}"


def store_pixels(path: str, stored: str) -> str:
    """Store the pixels of level 0, spacing and number of levels; return why if it is refused."""
    try:
        with open_image(path) as image:
            pixels = image.read(Box((0,) * image.ndim, image.shape, Frame.PX, 0))
            np.savez(stored, pixels=pixels, um=image.spacing_um or (), levels=len(image.levels))
    except FoveateError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    commands: dict[str, Callable[..., object]] = {"look": look, "pixels": store_pixels}
    print(commands[sys.argv[1]](*sys.argv[2:]))
