"""Encoders by name: foveate's own, and every convolutional or hierarchical network of timm."""

from __future__ import annotations

from collections.abc import Mapping

from foveate.encoders.base import AbstractEncoder
from foveate.plugins import find, names, options, parse_options


def build_encoder(
    name: str,
    given: Mapping[str, object] | None = None,
    preferred: Mapping[str, object] | None = None,
) -> AbstractEncoder:
    """The encoder of this name; a name that is not foveate's own is looked up in timm.

    Args:
        name: of the encoder.
        given: its options.
        preferred: options that hold where `given` says nothing and the encoder has them.

    Raises:
        UnknownName: neither foveate nor timm has it.
        OptionError: an option that the encoder does not take.
    """
    own = name in names("encoders") and name != "timm"
    part = find("encoders", name if own else "timm")
    known = options(part)
    chosen = {k: v for k, v in (preferred or {}).items() if k in known} | dict(given or {})
    if not own:
        chosen["name"] = name
    return part(**parse_options(part, chosen, "encoder"))  # type: ignore[no-any-return]
