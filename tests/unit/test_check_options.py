"""``check`` and ``train`` read a table by the same options, each declared once."""

from __future__ import annotations

import dataclasses

import click

import foveate as fv
from foveate.cli import cli
from foveate.parts.fields import list_command_options
from foveate.runs.options import TableOptions

OF_TABLES = {field.name for field in dataclasses.fields(TableOptions)}


def test_both_commands_have_the_options_of_tables_with_the_same_flags() -> None:
    assert {"column", "label", "patient", "files", "images", "classes", "renamed"} == OF_TABLES
    for name, options in (("check", fv.CheckOptions), ("train", fv.RunOptions)):
        flags = {str(parameter.name): parameter.opts for parameter in cli.commands[name].params}
        for declared in list_command_options(options):
            if declared.name != "reader_options":  # one flag for each option of each reader
                assert flags[declared.name] == list(declared.flags)
        assert {option.name for option in list_command_options(options)} >= OF_TABLES


def test_help_shows_what_each_option_means() -> None:
    command = cli.commands["check"]
    text = " ".join(command.get_help(click.Context(command)).split())
    assert (
        "--seconds INTEGER RANGE Time that the opening of one image may take. [default: 60" in text
    )
    assert "--memory-gib FLOAT RANGE" in text
    assert "Exit code: 0 nothing but notes, 2 problems, 1 training would stop." in text
