"""Errors that would meet every image stop a command; the others set one image aside."""

from __future__ import annotations

import errno

import pytest

from foveate.errors import (
    DiskFull,
    FoveateError,
    OutOfMemory,
    PartFault,
    TooManyOpen,
    UnreadableImage,
    concerns_all_images,
)
from foveate.files.digest import code_sha256
from foveate.runs.folder import describe_environment
from foveate.streaming.base import NotLocal


@pytest.mark.parametrize(
    ("error", "stops"),
    [
        (TooManyOpen(), True),
        (PartFault("method 'm' failed"), True),
        (NotLocal("it looks at the whole image"), True),
        (DiskFull("full"), True),
        (UnreadableImage("damaged"), False),
        (OutOfMemory("one image needs more"), False),
    ],
)
def test_errors_that_concern_all_images(error: FoveateError, stops: bool) -> None:
    assert concerns_all_images(error) is stops


def test_a_full_disk_is_recognised_behind_another_error() -> None:
    error = UnreadableImage("cannot be written")
    error.__cause__ = OSError(errno.ENOSPC, "no space left")
    assert concerns_all_images(error)


def test_the_environment_names_the_code() -> None:
    """The version alone does not tell two states of the code apart."""
    code = describe_environment()["code"]
    assert code == code_sha256()
    assert len(code) == 12
    int(code, 16)
