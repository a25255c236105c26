"""A cache bounded in bytes, shared by threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class ByteCache(Generic[V]):
    """Keeps the values used last, up to a number of bytes; the one used longest ago goes first.

    Args:
        max_bytes: the bound. A value larger than the bound is not kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, tuple[V, int]] = OrderedDict()

    def get(self, key: Hashable) -> V | None:
        """The value, now the most recently used one, or None."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: Hashable, value: V, n_bytes: int) -> None:
        """Keep a value that occupies this many bytes."""
        with self._lock:
            self._drop(key)
            if n_bytes > self.max_bytes:
                return
            self._values[key] = (value, n_bytes)
            self.held_bytes += n_bytes
            while self.held_bytes > self.max_bytes:
                self._drop(next(iter(self._values)))

    def drop_where(self, first: Hashable) -> None:
        """Forget every key that is a tuple beginning with `first` (a file that was closed)."""
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
