"""Sparse canvases: a constant ground with stamps pasted on it, rendered where somebody looks.

An image of 17 gigapixels with 100,000 pasted digits is a file of a few megabytes that opens in
milliseconds.
"""

from foveate.sparse._coarse import render_coarse
from foveate.sparse._file import MAGIC, read_canvas, write_canvas
from foveate.sparse.base import Blend, Canvas, render

__all__ = ["MAGIC", "Blend", "Canvas", "read_canvas", "render", "render_coarse", "write_canvas"]
