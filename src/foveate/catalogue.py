"""What the methods say of themselves, as one page: ``docs/methods.md`` is made from docstrings."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

from foveate.plugins import find, names, options

REQUIREMENTS = (
    "only relevant parts in detail",
    "any number of them",
    "any image size",
    "one GPU",
    "dependencies between parts",
)
_READS = {
    "glimpse": "a glimpse",
    "crops": "patches it chooses",
    "bag": "every patch with foreground",
}
_PARAGRAPHS = ("Source", "Differs", "Use when", "Cost")


def methods_page() -> str:
    """The page in Markdown: the methods against the five requirements, then each in detail."""
    found = {name: find("methods", name) for name in names("methods")}
    lines = [
        "# Methods",
        "",
        "Made from the docstrings by `foveate methods --markdown > docs/methods.md`; "
        "`foveate methods NAME` shows one.",
        "",
        "Every method is one sentence: **glimpse → locate → extract → embed → aggregate → "
        "predict**. They differ in how they locate. All share readers, loop, tasks, evaluation "
        "and heatmaps.",
        "",
        "## Against the five requirements",
        "",
        "| method | " + " | ".join(REQUIREMENTS) + " | reads |",
        "|---" * (len(REQUIREMENTS) + 2) + "|",
    ]
    for name, part in found.items():
        reads = ", ".join(text for key, text in _READS.items() if key in part.reads)
        lines.append(f"| [`{name}`](#{name}) | " + " | ".join((*part.meets, reads)) + " |")
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
        if colon and start in _PARAGRAPHS:
            name = start
            said[name] = _joined(body)
        else:
            said[name] += "\n\n" + _joined(paragraph)
    return said


def _one(name: str, part: type[Any]) -> list[str]:
    said = told(part)
    lines = [f"## {name}", "", said.pop("")]
    titles = {"Differs": "What we do differently, and why", "Use when": "When to use it"}
    titles |= {"Source": "Source", "Cost": "What it reads and holds"}
    for key in _PARAGRAPHS:
        if key in said:
            lines += ["", f"**{titles[key]}.** {_capital(said[key])}"]
    lines += ["", "| option | default | |", "|---|---|---|"]
    meanings = _meanings(part)
    for option in options(part).values():
        flag = f"`--method.{option.name.replace('_', '-')}`"
        lines.append(f"| {flag} | {option.default} | {meanings.get(option.name, '')} |")
    return lines


def _meanings(part: type[Any]) -> dict[str, str]:
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
    return {key: value.replace("|", "\\|") for key, value in found.items()}


def _joined(paragraph: str) -> str:
    return " ".join(paragraph.split())


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
