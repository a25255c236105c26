"""Files that several tests write."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray


def encode_idx(array: NDArray[Any]) -> bytes:
    """Encode an array of bytes in the idx format of MNIST."""
    sides = b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sides + array.tobytes()
