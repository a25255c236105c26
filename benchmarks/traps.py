"""Put known mistakes of published codes back, one at a time: a test must detect each.

    python benchmarks/traps.py [--only 2,8]

The mistakes are in ``traps.toml``, each an edit of our source and the test that must fail by it. A
copy of the sources and tests in a temporary folder is edited, never the checkout. The named tests
must first pass as they are; then each runs on the copy with its mistake. Exit status: 0 if every
mistake is caught, else 1.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 600


@dataclass(frozen=True)
class Edit:
    """A replacement of ``old``, which occurs exactly once in ``file`` below ``src/foveate``."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Trap:
    """A mistake, the code that has it, and the test below ``tests`` that must fail."""

    row: int
    mistake: str
    found_in: str
    test: str
    edits: tuple[Edit, ...]
    by: str = "AssertionError"


def known_traps() -> list[Trap]:
    """Read the traps of ``traps.toml``."""
    listed = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))["trap"]
    return [Trap(edits=tuple(Edit(**e) for e in entry.pop("edit")), **entry) for entry in listed]


def copy_sources(folder: Path) -> None:
    """Copy the sources, benchmarks, tests and pytest settings to a folder."""
    for name in ("src", "benchmarks", "tests"):
        left_out = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    shutil.copy(ROOT / "pyproject.toml", folder)


def edited_files(folder: Path, trap: Trap) -> dict[Path, str]:
    """Return the files of the copy with the mistake in them."""
    texts: dict[Path, str] = {}
    for edit in trap.edits:
        root = folder if edit.file.startswith("benchmarks/") else folder / "src" / "foveate"
        path = root / edit.file
        text = texts.get(path) or path.read_text(encoding="utf-8")
        if text.count(edit.old) != 1:
            sys.exit(
                f"row {trap.row}, {trap.mistake}: the source moved. {edit.file} has "
                f"{text.count(edit.old)} places, not one, that read\n\n{edit.old.strip()}\n\n"
                "Bring benchmarks/traps.toml up to date."
            )
        texts[path] = text.replace(edit.old, edit.new)
    return texts


@contextmanager
def apply_edits(texts: dict[Path, str]) -> Iterator[None]:
    """Write edited files into the copy, and restore them afterwards."""
    before = {path: path.read_text(encoding="utf-8") for path in texts}
    try:
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")
        yield
    finally:
        for path, text in before.items():
            path.write_text(text, encoding="utf-8")


def run(folder: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Run pytest on the copy until the first failure; returns exit status and output."""
    # Without stored bytecode: an edit within a second and of the same length would not be seen.
    alone = {"PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        "-x",
        "--tb=line",
        "-p",
        "no:cacheprovider",
        "-m",
        "slow or not slow",
    ]
    try:
        result = subprocess.run(
            [*command, *(f"tests/{test}" for test in tests)],
            cwd=folder,
            env=os.environ | threads | alone,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return -1, f"no end after {TIMEOUT_S} s"
    return result.returncode, result.stdout + result.stderr


def judge(trap: Trap, status: int, output: str) -> str:
    """Return ``caught`` only if an assertion failed: an edit that breaks the code does not count.

    Pytest ends with 1 when tests failed, and with more when it could not run them.
    """
    if status == 0:
        return "NOT CAUGHT"
    if status == 1 and re.search(rf"^\S+\.py:\d+: (assert |{trap.by})", output, re.MULTILINE):
        return "caught"
    return f"NOT CAUGHT (pytest {status}): {' '.join(output.split())[-300:]}"


def main() -> int:
    """Run all traps and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="rows, separated by commas")
    rows = {int(row) for row in (parser.parse_args().only or "").split(",") if row}
    traps = [trap for trap in known_traps() if not rows or trap.row in rows]
    if not traps:
        sys.exit(f"no trap has a row of {sorted(rows)}")
    begun, results = time.monotonic(), []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        copy_sources(folder)
        changes = [edited_files(folder, trap) for trap in traps]
        status, output = run(folder, sorted({trap.test for trap in traps}))
        if status != 0:
            sys.exit(f"{output}\nThese tests must pass before any mistake is put back.")
        print("| row | mistake | found in | test | result |\n|---|---|---|---|---|")
        for trap, texts in zip(traps, changes, strict=True):
            with apply_edits(texts):
                results.append(judge(trap, *run(folder, [trap.test])))
            test = trap.test.replace("|", "\\|")
            cells = (str(trap.row), trap.mistake, trap.found_in, f"`{test}`", results[-1])
            print(f"| {' | '.join(cells)} |", flush=True)
    caught = results.count("caught")
    print(f"\n{caught} of {len(traps)} caught, {time.monotonic() - begun:.0f} s")
    return 0 if caught == len(traps) else 1


if __name__ == "__main__":
    sys.exit(main())
