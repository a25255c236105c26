"""The limit ``--max-failed``: how many images a command may leave out and still succeed."""

from __future__ import annotations

import math
import re
from pathlib import Path

from foveate.errors import OptionError, TooManyFailed
from foveate.presentation import write_count

_FLAG = "--max-failed"
_SHARE = re.compile(r"(\d*\.\d+)|(\d+(?:\.\d+)?)\s*%")


def count_allowed(text: str, n_images: int) -> int:
    """Return how many images may fail: ``5`` of them, or a share such as ``0.1`` or ``10%``.

    Args:
        text: the limit as the user gave it.
        n_images: number of all images.

    Raises:
        OptionError: the text is no number of images and no share.
    """
    plain = text.strip()
    if plain.isdecimal():
        return int(plain)
    match = _SHARE.fullmatch(plain)
    share = 1.0 if match is None else float(match[1] or 0) + float(match[2] or 0) / 100
    if share >= 1:
        raise OptionError(
            f"{_FLAG}: got '{text}', expected a number of images such as 5, or a share such as "
            "0.1 or 10%"
        )
    return math.floor(share * n_images + 1e-9)


def check_failed(text: str | None, n_failed: int, n_images: int, quarantine: Path) -> None:
    """Check that no more images failed than the limit allows.

    Args:
        text: the limit as the user gave it; None for none.
        n_failed: number of images that could not be used.
        n_images: number of all images.
        quarantine: the table with the reasons, for the message.

    Raises:
        TooManyFailed: more images failed.
    """
    if text is None:
        return
    allowed = count_allowed(text, n_images)
    if n_failed > allowed:
        raise TooManyFailed(
            f"{n_failed} of {write_count(n_images, 'image')} failed, more than the {allowed} that "
            f"{_FLAG} {text} allows; {quarantine} lists them with reasons: mend these images, or "
            f"give a larger {_FLAG}"
        )
