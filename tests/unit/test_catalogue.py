"""The docstrings of methods are complete, and the page made from them is up to date."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from foveate import parts
from foveate.batch import Reads
from foveate.parts import find, names
from foveate.parts.options import options
from foveate.workflows.catalogue import (
    COMMAND,
    PARAGRAPHS,
    REQUIREMENTS,
    read_meanings,
    read_paragraphs,
    write_methods_page,
)

METHODS = names("methods")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "methods.md"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_the_required_paragraphs(name: str) -> None:
    part = find("methods", name)
    paragraphs = read_paragraphs(part)
    missing = [key for key in PARAGRAPHS if key != "Differs" and not paragraphs.get(key)]
    assert not missing, f"{part.__module__}: its docstring has no paragraph {missing}"
    assert paragraphs[""].endswith("."), "one sentence comes first"
    assert 10 < len(part.summary) < 90, f"summary of {len(part.summary)} characters"
    assert not part.summary.endswith(".")
    assert len(part.meets) == len(REQUIREMENTS)
    assert set(part.meets) <= {"yes", "partly", "no"}
    assert part.reads <= set(get_args(Reads))
    assert part.reads


@pytest.mark.parametrize("name", METHODS)
def test_exactly_the_options_are_documented(name: str) -> None:
    """Options are documented in the order of the signature."""
    part = find("methods", name)
    meaning = read_meanings(part)
    assert list(meaning) == list(options(part)), f"Args of {part.__name__}"
    assert all(text.strip() for text in meaning.values())


def test_docstrings_are_parsed_correctly() -> None:
    """Parse the docstring of a method with known text."""
    part = find("methods", "downsampled")
    assert read_paragraphs(part)[""].startswith("The whole image shrunk")
    assert list(read_paragraphs(part)) == ["", "Source", "Differs", "Use when", "Cost"]
    assert read_meanings(part) == {
        "dropout": "rate of dropout before the linear layer that is trained from the start."
    }
    page = write_methods_page()
    begin = page.index("## downsampled\n")
    section = page[begin : page.index("\n## ", begin)]
    meaning = "Rate of dropout before the linear layer that is trained from the start."
    assert f"| `--method.dropout` | `0.1` | {meaning} |" in section
    assert "**When to use it.** The decisive parts are visible in the glimpse" in section
    assert "Evidence is the class-independent share" in section
    assert "| [`downsampled`](#downsampled) | no | no | yes | yes | partly |" in page


def test_table_rows_have_all_cells() -> None:
    """Every row has as many cells as the head, which detects stray bars and line breaks."""
    width = 0
    for line in write_methods_page().splitlines():
        bars = line.replace("\\|", "").count("|")
        if not line.startswith("|"):
            width = 0
        elif width == 0:
            width = bars
        else:
            assert bars == width, line


def test_the_page_matches_the_docstrings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_folders", [])
    written = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    assert written == write_methods_page(), f"docs/methods.md is out of date; run: {COMMAND}"
