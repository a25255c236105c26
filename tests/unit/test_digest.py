"""The digest that identifies files."""

from __future__ import annotations

from pathlib import Path

from foveate.files.digest import file_sha256
from foveate.wording import one_line


def test_the_digest_matches_the_standard(tmp_path: Path) -> None:
    """FIPS 180-2, example B.1."""
    file = tmp_path / "abc"
    file.write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(file) == expected


def test_a_library_message_becomes_one_short_line() -> None:
    assert one_line("a\n  b\tc\x1b[31m") == "a b c [31m"
    assert one_line("x" * 900) == "x" * 500
    assert one_line("x" * 900, max_letters=160) == "x" * 160
