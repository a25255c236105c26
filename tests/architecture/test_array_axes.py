"""NumPy arrays that functions of some packages take and return have their axes in their types."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "foveate"
BARE = re.compile(r"NDArray\[|(?<!\[)\bnp\.ndarray\b")
"""An array type without axes; `Int64[np.ndarray, " n"]` states them."""


@pytest.mark.parametrize(
    ("text", "is_bare"),
    [
        ("def f(x: NDArray[np.int64]) -> None:", True),
        ("def f(x: np.ndarray) -> None:", True),
        ('def f(x: Int64[np.ndarray, " n"]) -> None:', False),
    ],
)
def test_arrays_without_axes_are_recognised(text: str, is_bare: bool) -> None:
    assert bool(BARE.search(text)) == is_bare


@pytest.mark.parametrize("place", ["streaming", "formats/grey_scale.py"])
def test_arrays_have_axes(place: str) -> None:
    paths = [SOURCE / place] if place.endswith(".py") else sorted((SOURCE / place).glob("*.py"))
    assert paths
    bare = [path.name for path in paths if BARE.search(path.read_text(encoding="utf-8"))]
    assert not bare
