"""The threshold is printed beside each picture of the report in type that can be read."""

from __future__ import annotations

import re
from pathlib import Path

ROOT_PX = 16.0
"""The size of ``1rem`` in browsers."""


def font_px(css: str, selector: str) -> list[float]:
    """Return the sizes of type in all rules of a selector, in pixels."""
    sizes = []
    for rule in re.findall(rf"(?m)^\s*{re.escape(selector)} \{{([^}}]*)\}}", css):
        for number, unit in re.findall(r"font(?:-size)?:\s*([\d.]+)(rem|px|pt|em)", rule):
            sizes.append(float(number) * {"rem": ROOT_PX, "px": 1, "pt": 4 / 3}[unit])
    return sizes


def test_the_threshold_is_not_in_tiny_type(picture_run: Path) -> None:
    page = (picture_run / "report.html").read_text(encoding="utf-8")
    css = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert css is not None
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page, re.DOTALL)
    with_threshold = [text for text in captions if "called so from" in text]
    assert with_threshold
    for text in with_threshold:
        before = text.partition("called so from")[0]
        opened = re.findall(r"<(span|small|sub|sup)\b", before)
        closed = re.findall(r"</(span|small|sub|sup)>", before)
        assert len(opened) == len(closed), "no element of smaller type holds the threshold"
    bodies, caption = font_px(css[1], "body"), font_px(css[1], "figcaption")
    assert max(bodies) == 16, "the body on a screen, a narrow screen, and paper"
    assert len(caption) == 1
    assert caption[0] >= max(bodies) - 1
