"""Files that several tests write."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest
from numpy.typing import NDArray

UNREADABLE: Final = Path("/proc/self/mem")
"""A file of which no user can read the first byte, not even root."""
needs_proc = pytest.mark.skipif(not UNREADABLE.exists(), reason="a file that only Linux has")


def encode_idx(array: NDArray[Any]) -> bytes:
    """Encode an array of bytes in the idx format of MNIST."""
    sides = b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sides + array.tobytes()
