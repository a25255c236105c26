"""MNIST from its four idx files, as published or compressed with gzip."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from benchmarks.mnist.base import DIGIT_PX, Bytes, Mnist
from foveate.errors import ImageNotFound, UnreadableImage

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

SOURCE = "https://ossci-datasets.s3.amazonaws.com/mnist/"
"""Address of the files: MNIST of LeCun, Cortes and Burges, CC BY-SA 3.0."""

_MAX_BYTES = 1 << 31
_MAX_AXES = 4


def read_idx(path: Path) -> Bytes:
    """Read one array of bytes in the idx format, with or without gzip.

    Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits".

    Raises:
        ImageNotFound: nothing is there.
        UnreadableImage: the file is no idx file of bytes, is damaged, too short or too long.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            head = file.read(4)
            if head[:3] != b"\0\0\x08" or not 1 <= head[3] <= _MAX_AXES:
                raise UnreadableImage(f"{path}: no idx file of bytes (it begins {head.hex()})")
            sides = np.frombuffer(file.read(4 * head[3]), ">u4")
            n = math.prod(sides.tolist())
            if len(sides) != head[3] or n > _MAX_BYTES:
                raise UnreadableImage(f"{path}: an idx header of impossible size")
            values = file.read(n + 1)
    except FileNotFoundError:
        raise ImageNotFound(f"{path}: no such file") from None
    except UnreadableImage:
        raise
    except (OSError, EOFError, IndexError, ValueError, zlib.error) as error:
        raise UnreadableImage(f"{path}: damaged ({' '.join(str(error).split())})") from error
    if len(values) != n:
        much = "more" if len(values) > n else "less"
        raise UnreadableImage(f"{path}: {much} than the {n} bytes that its header promises")
    return np.frombuffer(values, np.uint8).reshape(sides.tolist())


def load_mnist(folder: Path) -> Mnist:
    """Read both pools of MNIST, or of data in its format, from the four idx files.

    Raises:
        ImageNotFound: a file is missing; says which four are expected and where they can be had.
        UnreadableImage: a file is damaged, or images and labels do not belong together.
    """
    paths = [next((p for p in _named(folder, name) if p.is_file()), None) for name in FILES]
    absent = [name for name, path in zip(FILES, paths, strict=True) if path is None]
    if absent:
        raise ImageNotFound(
            f"{folder}: no {', '.join(absent)}. MNIST is the four files {', '.join(FILES)}, each "
            f"as it is or with .gz at the end; they can be had at {SOURCE}"
        )
    arrays = [read_idx(path) for path in paths if path is not None]
    for images, labels, path in (
        (arrays[0], arrays[1], paths[0]),
        (arrays[2], arrays[3], paths[2]),
    ):
        if images.shape[1:] != (DIGIT_PX, DIGIT_PX) or images.shape[:1] != labels.shape:
            raise UnreadableImage(
                f"{path}: images {images.shape} with labels {labels.shape}, "
                f"expected (n, {DIGIT_PX}, {DIGIT_PX}) and (n,)"
            )
        if labels.max(initial=0) > 9:
            raise UnreadableImage(f"{path}: its labels go up to {labels.max()}, expected 0 to 9")
    return Mnist(*arrays)


def _named(folder: Path, name: str) -> tuple[Path, Path]:
    """Return the paths of an idx file without and with gzip."""
    return folder / name, folder / f"{name}.gz"
