"""A cache of a limited number of bytes that threads share."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class ByteCache(Generic[V]):
    """A cache that drops the value used longest ago when a number of bytes is exceeded.

    Args:
        max_bytes: the limit; a value larger than that is not stored.

    Attributes:
        held_bytes: bytes of the values that are stored now.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, tuple[V, int]] = OrderedDict()

    def get(self, key: Hashable) -> V | None:
        """Return the value of a key and mark it as used last; None where it is not stored."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: Hashable, value: V, n_bytes: int) -> None:
        """Store a value that occupies `n_bytes` bytes.

        Args:
            key: name of the value.
            value: the value; a value larger than the whole cache is not stored.
            n_bytes: memory that the value occupies.
        """
        with self._lock:
            self._drop(key)
            if n_bytes > self.max_bytes:
                return
            self._values[key] = (value, n_bytes)
            self.held_bytes += n_bytes
            while self.held_bytes > self.max_bytes:
                self._drop(next(iter(self._values)))

    def drop_where(self, first: Hashable) -> None:
        """Drop all keys that are tuples beginning with `first` (those of a closed file, say)."""
        with self._lock:
            for key in [k for k in self._values if isinstance(k, tuple) and k[0] == first]:
                self._drop(key)

    def __getstate__(self) -> dict[str, int]:
        """The bound alone: a copy begins empty, since what is kept here can be made again."""
        return {"max_bytes": self.max_bytes}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _drop(self, key: Hashable) -> None:
        if key in self._values:
            self.held_bytes -= self._values.pop(key)[1]
