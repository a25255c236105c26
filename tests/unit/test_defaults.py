"""Every option of a command has one name and one default, on the command line and in Python."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import click
import pytest

import foveate as fv
from foveate import defaults
from foveate.api.settings import nest_options
from foveate.cli import cli
from foveate.errors import OptionError
from foveate.parts import PartKind, names
from foveate.runs.config import RunConfig, TableOptions, build_config

FUNCTIONS = {"methods": "list_methods", "features": "extract_features"}
"""Public functions with another name than their command."""
OF_COMMANDS_ONLY = {"help", "plugins", "config", "name", "markdown"}
"""Parameters of commands alone: help, plug-ins (`add_plugin_folder`), and ways of printing."""
OF_FUNCTIONS_ONLY = {"on_progress", "more", "encoder_options", "reader_options"}
OPTIONS: dict[str, type[Any]] = {
    "audit": fv.AuditOptions,
    "check": fv.CheckOptions,
    "compare": fv.RunOptions,
    "evaluate": fv.EvaluateOptions,
    "features": fv.FeatureOptions,
    "predict": fv.PredictOptions,
}
"""The class of options of each command that has one."""
COMMANDS = sorted(set(cli.commands) - {"train"})


def _list_parameters(command: click.Command) -> dict[str, click.Parameter]:
    return {str(p.name): p for p in command.params if p.name not in OF_COMMANDS_ONLY}


def _list_defaults(name: str) -> dict[str, Any]:
    """The defaults of a function's arguments, and of the fields of its options."""
    arguments = inspect.signature(getattr(fv, FUNCTIONS.get(name, name))).parameters
    left_out = OF_FUNCTIONS_ONLY | OF_COMMANDS_ONLY
    plain = {key: p.default for key, p in arguments.items() if key not in left_out}
    options = [] if plain.pop("options", False) is False else [OPTIONS[name]]
    fields = {f.name: f.default for kind in options for f in dataclasses.fields(kind)}
    fields = {key: value for key, value in fields.items() if key not in OF_FUNCTIONS_ONLY}
    if name == "compare":  # it has a list of methods instead
        del fields["method"]
    return plain | fields


def _parse_least(command: click.Command) -> dict[str, Any]:
    """The values that a command hands on if only its required parameters are given."""
    words = []
    for parameter in command.params:
        if parameter.required or parameter.name == "table":
            words += [*(parameter.opts[:1] if isinstance(parameter, click.Option) else ()), "x"]
    return command.make_context(str(command.name), words).params


def _make_plain(value: Any) -> Any:
    """A path as text, and an empty tuple of a flag that may be repeated as None."""
    return str(value) if isinstance(value, Path) else None if value == () else value


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_the_names_and_defaults_of_its_function(name: str) -> None:
    command = cli.commands[name]
    expected = _list_defaults(name)
    assert set(_list_parameters(command)) == set(expected)
    values = _parse_least(command)
    for key, default in expected.items():
        if default is not inspect.Parameter.empty:
            assert _make_plain(values[key]) == default, f"{name}: {key}"


def _look_up(config: RunConfig, key: str) -> Any:
    """The value of a flag of ``train`` in a config, by the place that its keyword has there."""
    (section, inner), *_ = nest_options({key: "value"}).items()
    found = getattr(config, section)
    return found if inner == "value" else getattr(found, next(iter(inner)))


DEFAULTS = RunConfig(TableOptions("labels.csv"))


@pytest.mark.parametrize(
    "name", sorted(set(_list_parameters(cli.commands["train"])) - {"table", "out"})
)
def test_a_flag_of_train_shows_the_default_of_the_config(name: str) -> None:
    """Flags of ``train`` have no value of their own, or they would override a config file."""
    command = cli.commands["train"]
    parameter = _list_parameters(command)[name]
    assert not _parse_least(command)[name]
    value = _look_up(DEFAULTS, name)
    record = parameter.get_help_record(click.Context(command))
    assert record is not None
    shown = re.search(r"\[default: (.*)\]", " ".join(record[1].split()))
    if value is None:
        assert shown is None or name == "epochs"
    elif value is False:
        assert shown is None
    else:
        assert shown is not None, f"--{name} shows no default"
        assert shown[1] == (",".join(value) if isinstance(value, tuple) else str(value))


def test_the_classifier_has_the_defaults_of_the_config() -> None:
    arguments = inspect.signature(fv.Classifier).parameters
    for key in ("method", "encoder", "task", "folds", "refit", "epochs", "seed", "device"):
        assert arguments[key].default == _look_up(DEFAULTS, key), key


def test_no_default_is_written_a_second_time() -> None:
    """Only `foveate.defaults` holds the numbers of heatmaps and the kinds of pictures."""
    root = Path(fv.__file__ or "").parent
    sources = ("cli/commands.py", "cli/flags.py", "api/commands.py", "workflows/predict.py")
    for path in (*sources, "runs/config.py", "exports/__init__.py"):
        text = (root / path).read_text(encoding="utf-8")
        for written in (defaults.PREDICT_HEATMAPS, defaults.TRAIN_HEATMAPS, '"geojson"'):
            assert not re.search(rf"(?<![\w.]){written}(?![\w.])", text), f"{path}: {written}"


@pytest.mark.parametrize(
    ("option", "kind"),
    [("method", "methods"), ("encoder", "encoders"), ("task", "tasks"), ("export", "exports")],
)
def test_help_lists_the_parts(
    option: str, kind: PartKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / kind).mkdir()
    (tmp_path / kind / "added_by_a_plugin.py").touch()
    monkeypatch.setattr("foveate.parts._folders", [tmp_path])
    command = cli.commands["train"]
    record = _list_parameters(command)[option].get_help_record(click.Context(command))
    assert record is not None
    text = record[1]
    expected = {"added_by_a_plugin", *names(kind)} - ({"timm"} if kind == "encoders" else set())
    assert expected <= set(re.findall(r"\w+", text))


def test_python_knows_every_flag_of_train() -> None:
    """Keywords that are flags go to the config; before, some were taken for method options."""
    nested = nest_options(
        {"column": "file", "classes": "a,b", "devices": 2, "export": "png", "refit": True}
    )
    nested["table"]["path"] = "labels.csv"
    config = build_config(nested)
    assert (config.table.image, config.table.classes) == ("file", ("a", "b"))
    assert (config.train.devices, config.export, config.refit) == (2, ("png",), True)
    with pytest.raises(OptionError, match=r"no option 'method\.device_count'"):
        build_config(nested | nest_options({"device_count": 2}))


def test_the_devices_of_commands_are_those_of_training() -> None:
    (field,) = (f for f in dataclasses.fields(DEFAULTS.train) if f.name == "device")
    flag = _list_parameters(cli.commands["predict"])["device"]
    assert field.default == defaults.DEVICE
    assert isinstance(flag.type, click.Choice)
    assert defaults.DEVICE in flag.type.choices
