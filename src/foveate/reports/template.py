"""Fill the templates of the pages, which share their style."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate._version import __version__
from foveate.presentation import write_count, write_decimals, write_percent

MAX_LISTED = 200
"""Number of images that a page lists for one finding of a check."""


def fill_template(name: str, values: Mapping[str, Any], *, folder: Path | None = None) -> str:
    """Fill a template; a value that it lacks is an error.

    Args:
        name: file name of the template.
        values: values by the names that the template uses; ``version`` is added.
        folder: folder of the template; by default, and for what it includes, this one.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([*([folder] if folder else []), Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": write_percent, "decimals": write_decimals}
    environment.globals["counted"] = write_count
    return environment.get_template(name).render(version=__version__, **values)
