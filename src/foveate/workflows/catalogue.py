"""What the methods say of themselves, as one page: ``docs/methods.md`` is made from docstrings."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

from foveate.parts import find, names, options

COMMAND = "foveate methods --markdown > docs/methods.md"
REQUIREMENTS = (
    "only relevant parts in detail",
    "any number of them",
    "any image size",
    "one GPU",
    "dependencies between parts",
)
PARAGRAPHS = ("Source", "Differs", "Use when", "Cost")
_READS = {
    "glimpse": "a glimpse",
    "crops": "patches it chooses",
    "bag": "every patch with foreground",
    "whole": "every pixel of the foreground",
}
_TITLES = {
    "Use when": "When to use it",
    "Cost": "What it reads and holds",
    "Source": "Source",
    "Differs": "What we do differently, and why",
}
"""The paragraphs in the order of the page: what users ask first comes first."""


def methods_page() -> str:
    """The page in Markdown: which method to take, the requirements, then each in detail."""
    found = {name: find("methods", name) for name in names("methods")}
    lines = [
        "# Methods",
        "",
        f"Made from the docstrings by `{COMMAND}`. `foveate methods NAME` shows one of them.",
        "",
        "Every method is one sentence: **glimpse → locate → extract → embed → aggregate → "
        "predict**. They differ in how they locate and in how they aggregate; readers, loop, "
        "tasks, evaluation and heatmaps are the same for all. Choose one with `--method NAME` "
        "(`glimpse` if none is given); its options are flags, such as `--method.patches 32`.",
        "",
        *_table(
            ("method", "what it does", "reads", "of"),
            [
                [_link(name), _capital(part.summary), _reads(part), _images(part)]
                for name, part in found.items()
            ],
        ),
        "",
        "## Against the five requirements",
        "",
        "What each says of itself. *Partly* means within limits: see when to use it, below.",
        "",
        *_table(
            ("method", *REQUIREMENTS),
            [[_link(name), *part.meets] for name, part in found.items()],
        ),
    ]
    for name, part in found.items():
        lines += ["", *_one(name, part)]
    return "\n".join(lines) + "\n"


def told(part: type[Any]) -> dict[str, str]:
    """The paragraphs of a method's module docstring by their names, the first one as ``""``."""
    text = inspect.cleandoc(sys.modules[part.__module__].__doc__ or "")
    first, *rest = re.split(r"\n\s*\n", text)
    said = {"": _joined(first)}
    name = ""
    for paragraph in rest:
        start, colon, body = paragraph.partition(":")
        if colon and start in PARAGRAPHS:
            name = start
            said[name] = _joined(body)
        else:
            said[name] += "\n\n" + _joined(paragraph)
    return said


def meanings(part: type[Any]) -> dict[str, str]:
    """What the Args of a class docstring say of each option."""
    _, _, text = inspect.cleandoc(part.__doc__ or "").partition("Args:\n")
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        start = re.match(r"^    (\w+): (.*)$", line)
        if start:
            name = start[1]
            found[name] = start[2]
        elif name and line.startswith("     "):
            found[name] += " " + line.strip()
        elif line.strip():
            break
    return found


def _one(name: str, part: type[Any]) -> list[str]:
    said = told(part)
    # More about it: what its class says before the arguments.
    more, *_ = re.split(r"\n\s*\n(?=Args:|Raises:)", inspect.cleandoc(part.__doc__ or ""))
    lines = [f"## {name}", "", _code(said[""]), "", _code(_joined(more))]
    for key, title in _TITLES.items():
        if key in said:
            lines += ["", f"**{title}.** {_code(_capital(said[key]))}"]
    known, meaning = options(part).values(), meanings(part)
    rows = [
        [
            f"`--method.{option.name.replace('_', '-')}`",
            f"`{typed}`" if (typed := _typed(option.default)) else "–",
            _code(_capital(meaning.get(option.name, ""))),
        ]
        for option in known
    ]
    return [*lines, "", *_table(("option", "default", "meaning"), rows)] if rows else lines


def _table(head: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [list(head), *rows]]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], "|---" * len(head) + "|", *lines[1:]]


def _link(name: str) -> str:
    return f"[`{name}`](#{name})"


def _reads(part: type[Any]) -> str:
    return ", ".join(text for key, text in _READS.items() if key in part.reads)


def _images(part: type[Any]) -> str:
    return "pictures, volumes" if 3 in part.axes else "pictures"


def _typed(value: Any) -> str:
    """A default as it is typed on the command line."""
    if isinstance(value, tuple):
        return ",".join(_typed(each) for each in value)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _code(text: str) -> str:
    return text.replace("``", "`")


def _joined(paragraph: str) -> str:
    return " ".join(paragraph.split())


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
