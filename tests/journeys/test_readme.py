"""The README's commands and Python lines run, on a small cohort and with flags for seconds.

Each line is run as it stands, with small flags behind it; a line that no entry below covers fails.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from foveate.runs.folder import read_json
from helpers.commands import Completed

README = Path(__file__).resolve().parents[2] / "README.md"

SKIPPED = {
    "pip install -e .": "it installs; .ci/run does it",
    "pip install -e '.[test]'": "it installs; .ci/run does it",
    "foveate demo": "it takes minutes; tests/journeys/test_demo.py runs a small one",
    "pytest": "it is the run that this test belongs to",
}
"""Commands that are not run, with the reason."""

SMALL = (
    *("--encoder", "small", "--encoder.width", "8", "--encoder.dim", "16", "--epochs", "1"),
    *("--view.patch-px", "32", "--method.patches", "4", "--method.eval-patches", "4"),
    *("--heatmaps", "1"),
)
SMALL_COMPARED = tuple(
    word
    for i, word in enumerate(SMALL)
    if not {"--method.patches", "--method.eval-patches"} & {word, SMALL[i - 1]}
)
"""The same without options of one method."""
FLAGS: dict[str, tuple[str, ...]] = {
    "init": (),
    "check": (),
    "train": SMALL,
    "compare": (*("--methods", "abmil,mil_max"), *SMALL_COMPARED),
    "predict": ("--heatmaps", "1"),
    "evaluate": (),
    "audit": ("--images", "2"),
    "report": (),
    "features": ("--view.patch-px", "32"),
    "methods": (),
    "doctor": (),
}
"""Flags behind each command, for a run of seconds."""

CODES = {"check": (0, 2)}
"""Exit codes other than 0 that are no failure: files of the two classes differ in size here."""

PYTHON_SMALL = (
    "folds=2, encoder='small', encoder__width=8, encoder__dim=16, epochs=1, heatmaps=1, "
    "view__patch_px=32, patches=4, eval_patches=4"
)
PYTHON = {"folds=5": PYTHON_SMALL}
"""Replacements in the Python block, for a run of seconds."""


def _read_blocks(language: str) -> list[str]:
    text = README.read_text(encoding="utf-8")
    blocks: list[str] = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return blocks


def _list_commands() -> list[str]:
    """All commands of the bash blocks, without comments."""
    lines = "\n".join(_read_blocks("bash")).splitlines()
    texts = (line.partition("#")[0] for line in lines)
    return [word.strip() for text in texts for word in re.split(r"&&|;", text) if word.strip()]


COMMANDS = [command for command in _list_commands() if command not in SKIPPED]


@pytest.fixture
def folder(picture_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the names that the README uses, filled with pictures."""
    frame = pd.read_csv(picture_table)
    shutil.copytree(picture_table.parent / "in", tmp_path / "in")
    for name in ("labels.csv", "other.csv"):
        frame.to_csv(tmp_path / name, index=False)
    for place in ("new_slides/P00.png", "new_slides/P01.png", "new/S1.svs", "new/S2.svs"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        shutil.copy(tmp_path / frame["path"][0], tmp_path / place)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_is_run_or_skipped_for_a_reason() -> None:
    commands = _list_commands()
    assert set(SKIPPED) <= set(commands), "a command that the README no longer has"
    for command in COMMANDS:
        program, name, *_ = command.split()
        assert program == "foveate", f"{command}: run it here, or skip it with a reason"
        assert name in FLAGS, f"{command}: name the flags that make it small"
    (block,) = _read_blocks("python")
    assert all(block.count(text) == 1 for text in PYTHON)
    others = set(re.findall(r"^```(\w+)", README.read_text(encoding="utf-8"), re.MULTILINE))
    assert others == {"bash", "python"}, "blocks of another language are not run"


def test_the_readme_runs(folder: Path, foveate: Callable[..., Completed]) -> None:
    for command in COMMANDS:
        _, name, *words = command.split()
        ended = foveate(name, *words, *FLAGS[name])
        assert ended.returncode in CODES.get(name, (0,)), f"{command}: {ended.stderr}"
    for page in ("runs/first/report.html", "all.html", "vectors/features.csv"):
        assert (folder / page).is_file()
    for out in ("out", "external"):
        assert (folder / out / "predictions.csv").is_file()

    (block,) = _read_blocks("python")
    for text, small in PYTHON.items():
        block = block.replace(text, small)
    exec(compile(block, str(README), "exec"), {})
    assert read_json(folder / "S1.geojson")["features"]
