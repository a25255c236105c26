"""Sparse canvases: stamps on a constant ground, rendered on demand.

An image of 17 gigapixels with 100,000 pasted digits is a file of a few megabytes that opens in
milliseconds.
"""

from benchmarks.canvas._coarse import render_coarse
from benchmarks.canvas._file import MAGIC, read_canvas, write_canvas
from benchmarks.canvas.base import Blend, Canvas, render

__all__ = ["MAGIC", "Blend", "Canvas", "read_canvas", "render", "render_coarse", "write_canvas"]
