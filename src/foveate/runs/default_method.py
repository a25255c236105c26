"""Choose the method of a run that names none: files of features need one that reads no pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foveate import defaults
from foveate.errors import FoveateError
from foveate.formats.hdf5 import MARK
from foveate.messages.display import Display, Silent
from foveate.runs.config import RunConfig, build_config
from foveate.runs.labels import read_table


def build_run_config(nested: Mapping[str, Any], display: Display) -> RunConfig:
    """Build the config of a run, and choose its method by the files of its table if it names none.

    Args:
        nested: nested values, as `build_config` takes them.
        display: shows the method that files of features get.

    Raises:
        OptionError, UnknownName: as `build_config`.
    """
    if "method" in nested:
        return build_config(nested)
    others = {key: value for key, value in nested.items() if key != "method_options"}
    if not _names_features(build_config(others)):
        return build_config(nested)
    method = defaults.METHOD_OF_FEATURES
    display.say(f"method: {method}, because the table names files of features")
    return build_config({**nested, "method": method})


def _names_features(config: RunConfig) -> bool:
    """Return whether the first file of the table that can be read is an HDF5 file."""
    try:
        cases = read_table(config, Silent()).cases
    except FoveateError:
        return False  # the run meets the same error when its folder is checked
    for case in cases:
        try:
            with case.path.open("rb") as file:
                return file.read(len(MARK)) == MARK
        except OSError:
            continue
    return False
