"""Build an encoder by name: foveate's own, or timm's convolutional networks and plain ViTs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

from foveate.encoders.base import AbstractEncoder, without_weights
from foveate.errors import OptionError
from foveate.parts import check_built, find, names
from foveate.parts.options import options, parse_options


def build_encoder(
    name: str,
    settings: Mapping[str, object] | None = None,
    preferred: Mapping[str, object] | None = None,
    *,
    pretrained: bool = True,
) -> AbstractEncoder:
    """Build the encoder of a name; a name that is not foveate's own is looked up in timm.

    Args:
        name: name of the encoder.
        settings: values of its options.
        preferred: values for options that `settings` leaves out, if the encoder has them.
        pretrained: False to read and fetch no weights, for a stored model that has its own.

    Raises:
        UnknownName: neither foveate nor timm has an encoder of this name.
        OptionError: the encoder does not take an option, or two options exclude each other.
        CheckpointError: the encoder's file of weights cannot be used.
    """
    is_part = name in names("encoders") and name != "timm"
    part = find("encoders", name if is_part else "timm")
    known = options(part)
    chosen = {k: v for k, v in (preferred or {}).items() if k in known} | dict(settings or {})
    if not is_part:
        chosen["name"] = name
    parsed = parse_options(part, chosen, "encoder")
    if parsed.get("weights") and not parsed.get("pretrained", True):
        raise OptionError(
            "encoder.weights is given, but encoder.pretrained is false: leave out one"
        )
    with nullcontext() if pretrained else without_weights():
        encoder: AbstractEncoder = check_built("encoders", part(**parsed))
        return encoder
