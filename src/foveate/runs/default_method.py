"""Choose the method of a run that names none: files of features need one that reads no pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foveate import defaults
from foveate.errors import FoveateError, OptionError
from foveate.formats.hdf5 import MARK
from foveate.messages.display import Display
from foveate.parts import find, names
from foveate.runs.config import RunConfig, build_config
from foveate.runs.labels import read_table
from foveate.table import CaseTable


def build_run_config(
    nested: Mapping[str, Any], display: Display
) -> tuple[RunConfig, CaseTable | None]:
    """Build the config of a run, and choose its method by the files of its table if it names none.

    Args:
        nested: nested values, as `build_config` takes them.
        display: shows the method that files of features get.

    Returns:
        The config, and the table if it was read.

    Raises:
        OptionError, UnknownName: as `build_config`.
    """
    if "method" in nested:
        return build_config(nested), None
    others = {key: value for key, value in nested.items() if key != "method_options"}
    config = build_config(others)
    try:
        table = read_table(config)
    except FoveateError:  # the run meets the same error once its folder is checked
        return build_config(nested), None
    if not names_features(table):
        return build_config(nested), table
    method = defaults.METHOD_OF_FEATURES
    display.say(f"method: {method}, because the table names files of features")
    return build_config({**nested, "method": method}), table


def names_features(table: CaseTable) -> bool:
    """Return whether the first file of a table that can be read is an HDF5 file."""
    for case in table.cases:
        try:
            with case.path.open("rb") as file:
                return file.read(len(MARK)) == MARK
        except OSError:
            continue
    return False


def refuse_features(methods: Sequence[str], flag: str) -> None:
    """Refuse methods that read pixels, where a table names files of features.

    Args:
        methods: names of the methods.
        flag: the option that names them: ``method`` or ``methods``.

    Raises:
        OptionError: one of the methods reads pixels.
    """
    wrong = [name for name in methods if find("methods", name).needs_pixels]
    if not wrong:
        return
    first = defaults.METHOD_OF_FEATURES
    others = [n for n in names("methods") if n != first and not find("methods", n).needs_pixels]
    take = f"{first} (or {', '.join(others)})"
    if flag == "methods":
        take = f"{first},{others[0]} (or others of {', '.join(others)})"
    reads = f"'{wrong[0]}' reads" if len(wrong) == 1 else f"{', '.join(wrong)} read"
    raise OptionError(
        f"{flag}: {reads} pixels, but the table names files of features, which hold none: take "
        f"--{flag} {take}"
    )
