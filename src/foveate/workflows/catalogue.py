"""The page ``docs/methods.md``, made from the docstrings of the methods."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foveate import defaults
from foveate.parts import find, names
from foveate.parts.fields import read_entries
from foveate.parts.options import options

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
    "crops": "chosen patches",
    "bag": "every patch with foreground",
    "whole": "every pixel of the foreground",
}
_TITLES = {
    "Use when": "When to use it",
    "Cost": "Cost",
    "Source": "Source",
    "Differs": "Differences from the source",
}
"""Titles of the paragraphs, in the order of the page: the first questions of users come first."""


def write_methods_page() -> str:
    """Write the page in Markdown: which method to take, the requirements, each method in detail."""
    parts = {name: find("methods", name) for name in names("methods")}
    lines = [
        "# Methods",
        "",
        f"Made from the docstrings by `{COMMAND}`. `foveate methods NAME` prints one method.",
        "",
        "Every method is one sentence: **glimpse → locate → extract → embed → aggregate → "
        "predict**. The methods differ in how they locate and in how they aggregate; readers, "
        "loop, tasks, evaluation and heatmaps are the same for all. Choose one with "
        f"`--method NAME` (the default is `{defaults.METHOD}`); its options are flags, such as "
        "`--method.patches 32`.",
        "",
        *_write_table(
            ("method", "summary", "reads", "images"),
            [
                [
                    _write_link(name),
                    _capitalise(part.summary),
                    _describe_reads(part),
                    _describe_images(part),
                ]
                for name, part in parts.items()
            ],
        ),
        "",
        "## Against the five requirements",
        "",
        "Each method's own statement. *Partly* means within limits, which its section describes.",
        "",
        *_write_table(
            ("method", *REQUIREMENTS),
            [[_write_link(name), *part.meets] for name, part in parts.items()],
        ),
    ]
    for name, part in parts.items():
        lines += ["", *_write_method(name, part)]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class MethodOption:
    """One option of a method, as ``foveate methods NAME`` shows it.

    Attributes:
        name: the keyword.
        default: its default.
        meaning: its meaning in words.
    """

    name: str
    default: Any
    meaning: str


@dataclass(frozen=True)
class MethodDescription:
    """A method in words, from its docstrings.

    Attributes:
        name: name of the method.
        summary: one line.
        paragraphs: paragraphs about the method by title: ``Source``, ``Differs``, ``Use when``,
            ``Cost``; the first one is called ``""``.
        details: what its class says.
        options: options in the order of its constructor.
    """

    name: str
    summary: str
    paragraphs: Mapping[str, str]
    details: str
    options: tuple[MethodOption, ...]


def describe_method(name: str) -> MethodDescription:
    """Describe a method: its source, when to use it, its cost and options.

    Raises:
        UnknownName: there is no method of this name.

    Example:
        >>> description = foveate.describe_method("abmil")
        >>> description.paragraphs["Cost"]
        'reads every patch with foreground, …'
        >>> [option.name for option in description.options]
        ['pooling', …]
    """
    part = find("methods", name)
    meanings = read_meanings(part)
    described = [
        MethodOption(option.name, option.default, meanings.get(option.name, ""))
        for option in options(part).values()
    ]
    summary, paragraphs = part.summary, read_paragraphs(part)
    return MethodDescription(name, summary, paragraphs, read_summary(part), tuple(described))


def read_paragraphs(part: type[Any]) -> dict[str, str]:
    """Return the paragraphs of a method's module docstring by name, the first one as ``""``."""
    text = inspect.cleandoc(sys.modules[part.__module__].__doc__ or "")
    first, *rest = re.split(r"\n\s*\n", text)
    paragraphs = {"": _join_lines(first)}
    name = ""
    for paragraph in rest:
        start, colon, body = paragraph.partition(":")
        if colon and start in PARAGRAPHS:
            name = start
            paragraphs[name] = _join_lines(body)
        else:
            paragraphs[name] += "\n\n" + _join_lines(paragraph)
    return paragraphs


def read_summary(part: type[Any]) -> str:
    """Return the docstring of a class without its Args and Raises."""
    return re.split(r"\n\s*\n(?=Args:|Raises:)", inspect.cleandoc(part.__doc__ or ""))[0]


def read_meanings(part: type[Any]) -> dict[str, str]:
    """Return what Args say about each option, by option and in the order of the options.

    The text comes from the docstring of the class, or from that of the nearest base class that has
    one. What the class describes that is no option of it stands at the end.
    """
    texts = read_entries(part.__doc__ or "", "Args")
    inherited: dict[str, str] = {}
    for base in part.__mro__[1:]:
        inherited = read_entries(base.__doc__ or "", "Args") | inherited
    known = {name: (inherited | texts).get(name) for name in options(part)}
    return {name: text for name, text in known.items() if text is not None} | texts


def _write_method(name: str, part: type[Any]) -> list[str]:
    paragraphs, more = read_paragraphs(part), _join_lines(read_summary(part))
    lines = [f"## {name}", "", _write_code(paragraphs[""]), "", _write_code(more)]
    for key, title in _TITLES.items():
        if key in paragraphs:
            lines += ["", f"**{title}.** {_write_code(_capitalise(paragraphs[key]))}"]
    rows = [
        [
            f"`--method.{option.name.replace('_', '-')}`",
            f"`{typed}`" if (typed := _write_default(option.default)) else "–",
            _write_code(_capitalise(option.meaning)),
        ]
        for option in describe_method(name).options
    ]
    return [*lines, "", *_write_table(("option", "default", "meaning"), rows)] if rows else lines


def _write_table(head: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [list(head), *rows]]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], "|---" * len(head) + "|", *lines[1:]]


def _write_link(name: str) -> str:
    return f"[`{name}`](#{name})"


def _describe_reads(part: type[Any]) -> str:
    return ", ".join(text for key, text in _READS.items() if key in part.reads)


def _describe_images(part: type[Any]) -> str:
    return "pictures, volumes" if 3 in part.axes else "pictures"


def _write_default(value: object) -> str:
    """Write a default as it is typed on the command line."""
    if isinstance(value, tuple):
        return ",".join(_write_default(item) for item in value)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _write_code(text: str) -> str:
    return text.replace("``", "`")


def _join_lines(paragraph: str) -> str:
    return " ".join(paragraph.split())


def _capitalise(text: str) -> str:
    return text[:1].upper() + text[1:]
