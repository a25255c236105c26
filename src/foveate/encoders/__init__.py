"""Encoders by name."""

from foveate.encoders._build import build_encoder

__all__ = ["build_encoder"]
