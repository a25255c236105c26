"""Encoders by name: foveate's own, and every convolutional or hierarchical network of timm."""

from __future__ import annotations

from foveate.encoders.base import AbstractEncoder
from foveate.plugins import find, names, parse_options


def build_encoder(name: str, options: dict[str, object] | None = None) -> AbstractEncoder:
    """The encoder of this name; a name that is not foveate's own is looked up in timm.

    Raises:
        UnknownName: neither foveate nor timm has it.
        OptionError: an option that the encoder does not take.
    """
    given = dict(options or {})
    if name in names("encoders") and name != "timm":
        part = find("encoders", name)
        return part(**parse_options(part, given, "encoder"))  # type: ignore[no-any-return]
    part = find("encoders", "timm")
    return part(**parse_options(part, given | {"name": name}, "encoder"))  # type: ignore[no-any-return]
