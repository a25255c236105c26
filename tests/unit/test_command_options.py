"""Each option of a command is declared once: a field, from which its flag and its help follow."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable
from typing import Any

import click
import pytest

import foveate as fv
from foveate.cli import cli
from foveate.cli.flags import option_flags
from foveate.parts.fields import list_command_options, option
from foveate.runs.config import build_config, list_section_keys

COMMANDS = [("train", fv.RunOptions), ("predict", fv.PredictOptions)]
COMMANDS += [("evaluate", fv.EvaluateOptions)]
"""Each command with the class of its options."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """Options that two commands share.

    Attributes:
        deep: how ``deep``; by default
            not at all.
        size: largest size.
    """

    deep: bool = False
    size: int | None = option(None, flags=("--big",), keys=("a.size", "b.size"), shown=7)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Further(Base):
    """Options of one command.

    Attributes:
        by_name: values by name.
        kind: one of two.
    """

    by_name: typing.Mapping[str, str] | None = None
    kind: typing.Literal["x", "y"] = "x"


def test_a_declaration_is_read_with_what_it_inherits() -> None:
    deep, size, by_name, kind = list_command_options(Further)
    assert (deep.kind, deep.flags, deep.keys) == (bool, ("--deep",), ("deep",))
    assert deep.meaning == "how ``deep``; by default not at all."
    assert (size.kind, size.default, size.shown) == (int, None, 7)
    assert (size.flags, size.keys) == (("--big",), ("a.size", "b.size"))
    assert by_name.flags == ("--by-name",)
    assert kind.default == kind.shown == "x"


def test_flags_follow_from_a_declaration() -> None:
    @click.command()
    @option_flags(Further)
    def command(**options: Any) -> None:
        """Do nothing."""

    def parse(*words: str) -> dict[str, Any]:
        return command.make_context("command", list(words)).params

    assert parse() == dataclasses.asdict(Further())
    words = ("--deep", "--big", "3", "--by-name", "a=b", "--by-name", "c=d", "--kind", "y")
    assert Further(**parse(*words)) == Further(
        deep=True, size=3, by_name={"a": "b", "c": "d"}, kind="y"
    )
    with pytest.raises(click.BadParameter, match="'z' is not one of 'x', 'y'"):
        parse("--kind", "z")
    text = " ".join(command.get_help(click.Context(command)).split())
    assert "--deep How `deep`; by default not at all." in text
    assert "--big INTEGER Largest size. [default: 7]" in text
    assert "--by-name OLD=NEW Values by name. The flag may be repeated." in text


@pytest.mark.parametrize(("name", "options"), COMMANDS)
def test_a_command_has_a_flag_for_each_option_and_shows_what_it_means(
    name: str, options: type[Any]
) -> None:
    command = cli.commands[name]
    parameters = {str(parameter.name): parameter for parameter in command.params}
    text = "".join(command.get_help(click.Context(command)).split())
    for declared in list_command_options(options):
        assert parameters[declared.name].opts == list(declared.flags)
        meaning = declared.meaning.replace("``", "`")[1:].rstrip(".")
        assert "".join(meaning.split()) in text


@pytest.mark.parametrize(("name", "options"), COMMANDS)
def test_the_function_takes_the_options_as_one_object(name: str, options: type[Any]) -> None:
    function: Callable[..., Any] = getattr(fv, name)
    third = list(inspect.signature(function).parameters.values())[2 if name == "train" else 3]
    assert (third.name, third.annotation) == ("options", f"{options.__name__} | None")
    assert third.default is None


def test_an_unknown_option_is_an_error() -> None:
    with pytest.raises(TypeError, match="heatmap"):
        fv.PredictOptions(heatmap=3)  # type: ignore[call-arg]


def test_every_option_of_train_is_a_key_of_the_config() -> None:
    config = build_config({"table": {"path": "labels.csv"}})
    sections = {key.replace("-", "_") for key in list_section_keys()}
    for declared in list_command_options(fv.RunOptions):
        assert declared.default is None, "a default would override a config"
        for key in declared.keys:
            assert key in sections if "." in key else hasattr(config, key)


def test_a_classifier_takes_the_options_of_train_by_keyword() -> None:
    """scikit-learn needs them in the signature of the constructor."""
    keywords = set(inspect.signature(fv.Classifier).parameters)
    keywords -= {"out", "on_progress", "options"}
    assert keywords <= {field.name for field in dataclasses.fields(fv.RunOptions)}
