"""foveate: classify images far larger than a GPU's memory, from image-level labels alone."""

from __future__ import annotations

__version__ = "0.1.0"
