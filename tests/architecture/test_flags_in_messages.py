"""Every flag that the program's texts name exists, in a command in which the text can appear."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import cast

import pytest

from foveate import defaults
from foveate.cli import cli
from foveate.cli.words import Sectioned
from foveate.parts import PartKind, find, names
from foveate.parts.options import options
from foveate.runs.config import list_section_keys
from helpers.sources import MODULES

_FLAG = re.compile(r"(?<![\w-])--(?!-)([a-zA-Z][\w.-]*\w)")
_OTHER_PROGRAMS = {"vips": {"tile", "pyramid"}, "ray start": {"head"}}
"""Flags of other programs, by the words that stand before them in the same text."""
_PATTERNS = {"section.key", "reader", "reader.NAME.option", "method.NAME"}
"""Flags that stand for many others."""
_COMMANDS_OF = {
    "training/": {"train"},
    "workflows/train.py": {"train"},
    "workflows/folds.py": {"train"},
    "runs/new_plan.py": {"train"},
    "prediction/": {"predict", "evaluate"},
    "workflows/predict.py": {"predict", "evaluate"},
    "evaluation/": {"evaluate"},
}
"""Parts of the package whose texts appear in these commands only; a flag must be one of theirs."""
_ALSO_OF_TRAINING = {
    ("prediction/predict.py", "train.lr"): "the advice is to train again",
    ("errors.py", "train.batch-size"): "the advice for a training",
}


def _list_flags() -> dict[str, set[str]]:
    """Return the flags of each command, without the hyphens; those of parts are of ``train``."""
    flags = {
        name: {"help", *(w.removeprefix("--") for p in command.params for w in p.opts)}
        for name, command in cli.commands.items()
    }
    sections = set(list_section_keys())
    for section in defaults.PARTS:
        kind = cast(PartKind, f"{section}s")
        for name in names(kind):
            sections |= {f"{section}.{key.replace('_', '-')}" for key in options(find(kind, name))}
    for name in names("readers"):
        keys = options(find("readers", name))
        sections |= {f"reader.{name}.{key.replace('_', '-')}" for key in keys}
    for name, command in cli.commands.items():
        flags[name] |= sections if isinstance(command, Sectioned) else set()
    return flags


def _docstrings(tree: ast.Module) -> set[int]:
    """Return the ids of the nodes of a module that are docstrings, or stand alone as one."""
    return {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}


def _texts() -> Iterator[tuple[str, int, str]]:
    """Yield all texts of the package but docstrings, with file and line."""
    for path, tree in MODULES.items():
        formatted = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
        left_out = _docstrings(tree) | {id(value) for node in formatted for value in node.values}
        for text in formatted:
            literals = [v.value if isinstance(v, ast.Constant) else "§" for v in text.values]
            yield path, text.lineno, "".join(map(str, literals))
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and id(node) not in left_out:
                yield path, node.lineno, str(node.value)


def _named() -> Iterator[tuple[str, int, str]]:
    """Yield the flags that the texts name, of foveate's commands, with file and line."""
    for path, line, text in _texts():
        others = {
            flag for words, flags in _OTHER_PROGRAMS.items() if words in text for flag in flags
        }
        for match in _FLAG.finditer(text):
            if match[1] not in others | _PATTERNS and text[match.end() :][:1] != "§":
                yield path, line, match[1]


def test_every_flag_that_a_text_names_is_one_of_a_command() -> None:
    flags = _list_flags()
    known = set().union(*flags.values())
    named = list(_named())
    assert len(named) > 60
    assert not [f"{path}:{line} --{flag}" for path, line, flag in named if flag not in known]


@pytest.mark.parametrize("place", sorted(_COMMANDS_OF))
def test_a_text_names_flags_of_the_commands_that_print_it(place: str) -> None:
    flags = _list_flags()
    allowed = set().union(*(flags[command] for command in _COMMANDS_OF[place]))
    wrong = [
        f"{path}:{line} --{flag}"
        for path, line, flag in _named()
        if path.startswith(place) and flag not in allowed
        if (path, flag) not in _ALSO_OF_TRAINING
    ]
    assert not wrong
