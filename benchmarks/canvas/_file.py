"""The file format of a sparse canvas: a mark, a JSON header and three little-endian arrays.

=========  ================  =======================================
pastes     ``(n, 4)`` int32  top row, left column, stamp, scale
stamps     ``(m, 2)`` int32  height and width
pixels     ``(p,)`` uint8    all stamps one after the other, by rows
=========  ================  =======================================

Nothing in it is ever executed or unpacked, and its length follows from the header, so a damaged
file is noticed before anything is believed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.canvas.base import Canvas, check
from foveate.errors import ImageNotFound, UnreadableImage
from foveate.files.atomic import write_aside
from foveate.wording import one_line

MAGIC = b"\x89SPARSE\n"
"""The first bytes of every canvas file."""

_VERSION = 1
_HEADER_BYTES = 1 << 10
_COUNTS = ("pastes", "stamps", "pixels")


def write_canvas(path: Path, canvas: Canvas) -> None:
    """Write a canvas atomically; equal canvases give equal bytes."""
    pastes = np.column_stack([canvas.origins, canvas.stamp_ids, canvas.scales])
    counts = (len(pastes), len(canvas.stamp_sizes), len(canvas.stamp_pixels))
    known = {
        "version": _VERSION,
        "shape": list(map(int, canvas.shape)),
        "background": int(canvas.background),
        "blend": canvas.blend,
        **dict(zip(_COUNTS, counts, strict=True)),
    }
    header = json.dumps(known).encode("ascii")
    parts = (
        *(MAGIC, len(header).to_bytes(4, "little"), header),
        *(pastes.astype("<i4").tobytes(), canvas.stamp_sizes.astype("<i4").tobytes()),
        canvas.stamp_pixels.tobytes(),
    )
    write_aside(path, lambda aside: _write_content(aside, b"".join(parts)))


def _write_content(path: Path, content: bytes) -> None:
    """Write bytes to a new file."""
    path.write_bytes(content)


def read_canvas(path: Path) -> Canvas:
    """Read a canvas.

    Raises:
        ImageNotFound: nothing is there.
        UnreadableImage: the file is no sparse canvas, is damaged or is cut short.
    """
    try:
        with path.open("rb", buffering=0) as file:
            start, known = _header(file.read(_HEADER_BYTES))
            n, m, p = (_count(known, name) for name in _COUNTS)
            length, due = os.fstat(file.fileno()).st_size, start + 16 * n + 8 * m + p
            check(length == due, f"{length} bytes where its header promises {due}")
            file.seek(start)
            body = file.readall()
        check(len(body) == due - start, "it changed while it was read")
        pastes = np.frombuffer(body, "<i4", 4 * n).reshape(n, 4).astype(np.int64)
        sizes = np.frombuffer(body, "<i4", 2 * m, 16 * n).reshape(m, 2).astype(np.int64)
        pixels = np.frombuffer(body, np.uint8, p, 16 * n + 8 * m)
        height, width = (int(side) for side in known["shape"])
        ground, blend = int(known["background"]), known["blend"]
        corners, ids, scales = pastes[:, :2], pastes[:, 2], pastes[:, 3]
        return Canvas((height, width), corners, ids, scales, sizes, pixels, ground, blend)
    except FileNotFoundError:
        raise ImageNotFound(f"{path}: no such file") from None
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        reason = one_line(str(error))
        raise UnreadableImage(f"{path}: cannot be opened ({reason})") from error


def _header(head: bytes) -> tuple[int, dict[str, Any]]:
    """Return the offset of the arrays and the content of the header."""
    check(head.startswith(MAGIC), "it begins with other bytes")
    start = len(MAGIC) + 4
    end = start + int.from_bytes(head[len(MAGIC) : start], "little")
    check(start < end <= len(head), "its header is cut short")
    known = json.loads(head[start:end])
    check(isinstance(known, dict) and known.get("version") == _VERSION, "an unknown version")
    return end, known


def _count(known: dict[str, Any], name: str) -> int:
    """Return a header field that must be a count."""
    value = known[name]
    check(type(value) is int and value >= 0, f"{name}: {value!r}")
    return int(value)
