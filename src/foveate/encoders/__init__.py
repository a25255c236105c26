"""Networks that turn pixels into maps and vectors, found by name (`build_encoder`)."""

from foveate.encoders._build import build_encoder

__all__ = ["build_encoder"]
