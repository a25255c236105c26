"""A reader of your own is one file: here, Netpbm's pixmaps, three lines and then RGB.

    python examples/own_reader.py out/

All commands open such files then, with ``--plugins my_parts`` on the command line.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

import foveate
from foveate.errors import UnreadableImage
from foveate.geometry import Box, Frame
from foveate.images.level import Level
from foveate.readers.base import AbstractReader

MARK = b"P6"


class PpmReader(AbstractReader):
    """Portable pixmaps (Netpbm's P6): ``P6``, width and height, 255, then RGB bytes.

    Args:
        path: of the file.

    Raises:
        UnreadableImage: the file is shorter than its header says.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        mark, size, most, content = path.read_bytes().split(b"\n", 3)
        width, height = map(int, size.split())
        if (mark, most) != (MARK, b"255") or len(content) < 3 * width * height:
            raise UnreadableImage(f"{path}: shorter than its header says; copy it again")
        self._pixels: np.ndarray[Any, Any] | None
        self._pixels = np.frombuffer(content, np.uint8, 3 * width * height)
        self._pixels = self._pixels.reshape(height, width, 3)
        self.kind, self.spacing_um, self.channels = "picture", None, 3
        self.levels, self.dtype = (Level((height, width), (1.0, 1.0)),), np.dtype(np.uint8)
        self.reader = "netpbm"

    @classmethod
    def recognises(cls, path: Path, head: bytes) -> bool:
        """Whether the file begins with the mark."""
        return head.startswith(MARK + b"\n")

    def _read_level(
        self, level: int, origin_px: tuple[int, ...], size_px: tuple[int, ...]
    ) -> np.ndarray[Any, Any]:
        if self._pixels is None:
            raise UnreadableImage(f"{self.path}: the image is closed")
        (y, x), (height, width) = origin_px, size_px
        self.count.add(decoded_px=height * width)
        return self._pixels[y : y + height, x : x + width].copy()

    def close(self) -> None:
        """Forget the pixels. Closing twice is harmless."""
        self._pixels = None


def main(out: Path) -> None:
    """Put this file into a folder of parts, write an image, and open it."""
    readers = out / "my_parts" / "readers"
    readers.mkdir(parents=True, exist_ok=True)
    shutil.copy(__file__, readers)
    foveate.add_plugin_folder(readers.parent)

    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    path = out / "noise.ppm"
    path.write_bytes(MARK + b"\n96 64\n255\n" + pixels.tobytes())
    with foveate.open_image(path) as image:
        print(image.reader, image.shape, image.channels)
        corner = image.read(Box((0, 0), (32, 32), Frame.PX, level=0))
        print(corner.shape, corner.dtype)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
