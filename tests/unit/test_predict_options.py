"""Options of ``predict`` and ``evaluate`` are defined once, and shown wherever they are taken."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable
from typing import Any

import pytest

import foveate as fv
from foveate.cli import cli
from foveate.prediction.options import (
    EvaluateKeywords,
    EvaluateOptions,
    PredictKeywords,
    PredictOptions,
)

BOTH = [
    (fv.predict, PredictOptions, PredictKeywords),
    (fv.evaluate, EvaluateOptions, EvaluateKeywords),
]


@pytest.mark.parametrize(("function", "options", "keywords"), BOTH)
def test_the_keywords_are_the_fields(
    function: Callable[..., Any], options: type[Any], keywords: type[Any]
) -> None:
    assert typing.get_type_hints(keywords) == typing.get_type_hints(options)
    shown = inspect.signature(function).parameters
    for field in dataclasses.fields(options):
        assert shown[field.name].default == field.default
        assert shown[field.name].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize(("function", "options", "keywords"), BOTH)
def test_help_describes_each_keyword_once(
    function: Callable[..., Any], options: type[Any], keywords: type[Any]
) -> None:
    args = inspect.getdoc(function).partition("Args:\n")[2].partition("\n\n")[0]  # type: ignore[union-attr]
    described = [line.partition(":")[0].strip() for line in args.split("\n    ") if ": " in line]
    described = [name for name in described if name.isidentifier()]
    assert sorted(described) == sorted(inspect.signature(function).parameters)


def test_an_unknown_keyword_is_an_error() -> None:
    with pytest.raises(TypeError, match="heatmap"):
        fv.predict("run", "images", "out", heatmap=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["predict", "evaluate"])
def test_the_command_has_a_flag_for_each_option(name: str) -> None:
    flags = {str(parameter.name) for parameter in cli.commands[name].params}
    options = {"predict": PredictOptions, "evaluate": EvaluateOptions}[name]
    assert {field.name for field in dataclasses.fields(options)} <= flags
