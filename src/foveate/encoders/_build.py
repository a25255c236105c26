"""Encoders by name: foveate's own, and timm's convolutional networks and plain ViTs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

from foveate.encoders.base import AbstractEncoder, without_weights
from foveate.errors import OptionError
from foveate.parts import find, names, options, parse_options


def build_encoder(
    name: str,
    given: Mapping[str, object] | None = None,
    preferred: Mapping[str, object] | None = None,
    *,
    pretrained: bool = True,
) -> AbstractEncoder:
    """The encoder of this name; a name that is not foveate's own is looked up in timm.

    Args:
        name: of the encoder.
        given: its options.
        preferred: options that hold where `given` says nothing and the encoder has them.
        pretrained: False leaves out reading or fetching weights, for a model whose own lie in it.

    Raises:
        UnknownName: neither foveate nor timm has it.
        OptionError: an option that the encoder does not take, or two that exclude each other.
        CheckpointError: the encoder's file of weights cannot be used.
    """
    own = name in names("encoders") and name != "timm"
    part = find("encoders", name if own else "timm")
    known = options(part)
    chosen = {k: v for k, v in (preferred or {}).items() if k in known} | dict(given or {})
    if not own:
        chosen["name"] = name
    parsed = parse_options(part, chosen, "encoder")
    if parsed.get("weights") and not parsed.get("pretrained", True):
        raise OptionError(
            "encoder.weights is given, but encoder.pretrained is false: leave out one"
        )
    with nullcontext() if pretrained else without_weights():
        return part(**parsed)  # type: ignore[no-any-return]
