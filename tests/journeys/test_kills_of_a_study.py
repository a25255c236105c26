"""Commands of a study, each killed at random moments and given again: the artefacts are the same.

The commands run in one folder, with relative paths, as a user gives them; then the same commands
run in a copy of that folder, where each is killed with SIGKILL several times first.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from conftest import PICTURE_RUN
from foveate.runs.folder import read_rows
from helpers.commands import MAX_SECONDS, Child

OPTIONS = tuple(word for word in PICTURE_RUN if word not in ("--method", "mil_mean"))
COMMANDS: dict[str, tuple[object, ...]] = {
    "check": ("check", "labels.csv"),
    "train": ("train", "labels.csv", "--out", "run", "--method", "abmil", *OPTIONS),
    "compare": (
        "compare",
        "labels.csv",
        "--methods",
        "mil_mean,mil_max",
        "--out",
        "study",
        *OPTIONS,
    ),
    "report": ("report", "run", "study/mil_mean", "--out", "both.html"),
    "predict": ("predict", "run", "labels.csv", "--out", "answers"),
}
N_KILLS = 4
"""Kills of each command."""
_MEASURED = re.compile(r"second|mtime|_mib|memory|cost|waiting|throughput|frozen_lr_time|_s$")
"""Names of figures that are measured anew, and so differ between two runs of the same command."""
_NOT_COMPARED = {".png", ".svg", ".html", ".txt", ".jsonl", ".foveate"}
"""Pages, pictures and event files hold measured times; they must exist, and what they show is
compared."""


def finish(words: tuple[object, ...], folder: Path) -> float:
    """Run a command to its end; return the seconds that it took."""
    begun = time.monotonic()
    child = Child(*words, cwd=folder)
    _, err = child.communicate(timeout=MAX_SECONDS)
    assert child.returncode in (0, 2), err
    return time.monotonic() - begun


def kill_at(words: tuple[object, ...], folder: Path, seconds: float) -> bool:
    """Kill a command after some seconds; return whether it was still running."""
    child = Child(*words, cwd=folder)
    try:
        child.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGKILL)
    _, err = child.communicate(timeout=MAX_SECONDS)
    assert child.returncode in (-signal.SIGKILL, 0, 2), err
    return child.returncode == -signal.SIGKILL


def strip_measured(value: Any) -> Any:
    """Return plain values without the figures that are measured anew."""
    if isinstance(value, dict):
        return {k: strip_measured(v) for k, v in value.items() if not _MEASURED.search(str(k))}
    return [strip_measured(v) for v in value] if isinstance(value, list) else value


def read_artefact(path: Path, folder: Path) -> Any:
    """Return the content of a file as values that can be compared, without the folder's name."""
    if path.suffix == ".json":
        text = path.read_text(encoding="utf-8").replace(str(folder.resolve()), "")
        return strip_measured(json.loads(text))
    if path.suffix == ".csv":
        return [strip_measured(dict(row)) for row in read_rows(path)]
    if path.suffix == ".safetensors":
        return {name: tensor.tolist() for name, tensor in load_file(path).items()}
    return None if path.suffix in _NOT_COMPARED else path.read_bytes()


def list_artefacts(folder: Path) -> dict[str, Any]:
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {str(p.relative_to(folder)): read_artefact(p, folder) for p in files}


@pytest.mark.slow
def test_killed_commands_end_with_the_same_artefacts(picture_table: Path, tmp_path: Path) -> None:
    calm = tmp_path / "calm" / "cohort"
    shutil.copytree(picture_table.parent, calm, copy_function=shutil.copy2)
    if picture_table.name != "labels.csv":
        (calm / picture_table.name).rename(calm / "labels.csv")
    killed = Path(shutil.copytree(calm, tmp_path / "killed" / "cohort", copy_function=shutil.copy2))
    took = {name: finish(words, calm) for name, words in COMMANDS.items()}

    moments, n_hit = random.Random(7), 0
    for name, words in COMMANDS.items():
        for k in range(N_KILLS):
            # Later kills come later in what is left to do, which is not known: any moment.
            share = moments.uniform(0.1, 0.95) if k else moments.uniform(0.5, 0.95)
            n_hit += kill_at(words, killed, share * took[name])
        finish(words, killed)
    assert n_hit >= 0.6 * N_KILLS * len(COMMANDS), "most kills came too late to hit anything"

    expected, ended = list_artefacts(calm), list_artefacts(killed)
    assert sorted(ended) == sorted(expected)
    assert not [name for name in ended if name.endswith(".part")]
    for name, content in expected.items():
        assert ended[name] == content, f"{name} differs"
