"""Count the pixels that are read from one file."""

from __future__ import annotations

import threading

VALUES = ("hounsfield", "mask", "other")
"""Kinds of a volume's values: CT in Hounsfield units, few different values, or any other scale."""


class ReadCount:
    """Counts the pixels that were decoded from one file and asked of it. Safe to share by threads.

    Attributes:
        values: the kind of a volume's values (one of `VALUES`), once its voxels have been read;
            None for other images, and where the reader does not judge them.
        decoded_px, unknown_px: pixels decoded, and those of them that are no finite numbers.
        asked_px: pixels returned to callers, of all resolutions.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sum: ReadCount | None = None
        self.values: str | None = None
        self.decoded_px = self.asked_px = self.unknown_px = 0

    def add(self, *, decoded_px: int = 0, asked_px: int = 0, unknown_px: int = 0) -> None:
        """Add pixels to the counts.

        Args:
            decoded_px: pixels decoded from any level of the file.
            asked_px: pixels returned at any resolution.
            unknown_px: those of them that are no finite numbers.
        """
        with self._lock:
            self.decoded_px += decoded_px
            self.asked_px += asked_px
            self.unknown_px += unknown_px
        if self._sum is not None:
            self._sum.add(decoded_px=decoded_px, asked_px=asked_px, unknown_px=unknown_px)

    def join(self, total: ReadCount) -> None:
        """Add these counts, and all later ones, to the counts of several files together.

        Args:
            total: the counts of the files together.
        """
        self._sum = total
        total.add(decoded_px=self.decoded_px, asked_px=self.asked_px, unknown_px=self.unknown_px)
