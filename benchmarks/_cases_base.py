"""Base of the checks of shared cases: inputs, commands, and their output."""

from __future__ import annotations

import csv
import ctypes
import functools
import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FAST = (
    *("--method", "mil_mean", "--encoder.width", "4", "--encoder.dim", "8", "--epochs", "1"),
    *("--heatmaps", "2"),
)
PICTURES = (*FAST, "--encoder", "small", "--view.patch-px", "32")
VOLUMES = (*FAST, "--encoder", "small3d", "--view.patch-px", "16", "--view.glimpse-px", "16")
_STRANGER = 54321
"""A user without a name or a home."""
_DROP_CAPABILITY, _CAPABILITIES = 24, 64
_SECONDS = 1200


@dataclass(frozen=True)
class Check:
    """One expectation of a case, the actual result, and whether they agree."""

    expected: str
    actual: str
    ok: bool


@dataclass(frozen=True)
class CommandOutput:
    """The exit code and all output of a command."""

    code: int
    text: str

    @property
    def lines(self) -> list[str]:
        """Return the lines that are not blank."""
        return [line for line in self.text.replace("\r", "\n").split("\n") if line.strip()]

    def lines_with(self, *words: str) -> list[str]:
        """Return the lines that contain all of these words, ignoring case."""
        return [x for x in self.lines if all(word.lower() in x.lower() for word in words)]

    @property
    def error(self) -> str:
        """Return the single error line; empty without one or with a traceback."""
        errors = self.lines_with("error: ")
        clean = "Traceback" not in self.text and "fault of foveate" not in self.text
        return errors[0] if self.code == 1 and len(errors) == 1 and clean else ""

    @property
    def brief(self) -> str:
        """Return the exit code and the last line, at most 300 characters."""
        last = self.error or (self.lines or ["nothing said"])[-1]
        return f"exit {self.code}: {last}"[:300]


@dataclass(frozen=True)
class Case:
    """The folder of a case with its inputs, and a run trained on a tiny cohort."""

    folder: Path
    base: Path

    @property
    def results(self) -> Path:
        """Return the folder of results."""
        return self.folder / "results"

    def foveate(
        self,
        *words: object,
        files: int | None = None,
        stranger: bool = False,
    ) -> CommandOutput:
        """Run a command in the folder of the case.

        Args:
            words: of the command.
            files: how many it may have open.
            stranger: it is another user's, without a home, who may write nothing that the mode of
                a file forbids.
        """

        def limit() -> None:
            if files is not None:
                resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
            if stranger:
                _drop_privileges()

        result = subprocess.run(
            [sys.executable, "-m", "foveate", *map(str, words)],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_SECONDS,
            preexec_fn=limit,
            env=_environment_without_home() if stranger else None,
            check=False,
        )
        self.results.mkdir(exist_ok=True)
        with (self.results / "said.txt").open("ab") as log:
            log.write(f"\n$ foveate {' '.join(map(str, words))}\n".encode())
            log.write(result.stdout + f"exit {result.returncode}\n".encode())
        return CommandOutput(result.returncode, result.stdout.decode(errors="replace"))

    @functools.cached_property
    def run(self) -> Path:
        """Return a run trained on the tiny cohort of slides, which all cases share."""
        run = self.base / "run"
        if not (run / "metrics.json").is_file():
            make(self.base.parent / "base.py", self.base, self.base)
            result = self.foveate("train", self.base / "labels.csv", "--out", run, *PICTURES)
            if result.code:
                sys.exit(f"the tiny cohort cannot be trained on: {result.brief}")
        return run

    def train(self, name: str, table: str, *words: object, **how: Any) -> CommandOutput:
        """Train on a table of the case; the run is `results/NAME`."""
        return self.foveate("train", table, "--out", self.results / name, *PICTURES, *words, **how)

    def predict(self, name: str, *words: object, **how: Any) -> CommandOutput:
        """Predict images of the case by the run of the tiny cohort, into `results/NAME`."""
        out = self.results / name
        return self.foveate("predict", self.run, *words, "--out", out, **how)

    def rows(self, name: str, file: str = "predictions.csv") -> list[dict[str, str]]:
        """Read the rows of a table among the results; none if the file is missing."""
        path = self.results / name / file
        if not path.is_file():
            return []
        with path.open(encoding="utf-8", newline="") as file_:
            return list(csv.DictReader(file_))

    def splits(self, name: str) -> dict[str, Any]:
        """Read the split of a run among the results; empty if there is none."""
        path = self.results / name / "splits.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}

    def inputs(self, name: str) -> dict[str, Any]:
        """Read the images, labels and patients that a run started with; empty without a run."""
        path = self.results / name / "inputs.json"
        return dict(json.loads(path.read_text())["images"]) if path.is_file() else {}


@functools.cache
def _other_users_may_run() -> bool:
    """Tell whether another user can execute this Python."""
    command = [sys.executable, "-c", "import foveate, torch"]
    try:
        return (
            subprocess.run(command, user=_STRANGER, capture_output=True, check=False).returncode
            == 0
        )
    except OSError:
        return False


def _environment_without_home() -> dict[str, str]:
    """Return the environment without the home and cache folders of the user."""
    _other_users_may_run()
    variables = {k: v for k, v in os.environ.items() if not k.startswith("XDG_") and k != "USER"}
    return variables | {"HOME": "/nowhere"}


def _drop_privileges() -> None:
    """Change from root to another user, or drop root's power over file modes."""
    if os.geteuid() != 0:
        return
    if _other_users_may_run():
        os.setgroups([])
        os.setgid(_STRANGER)
        os.setuid(_STRANGER)
        return
    system = ctypes.CDLL(None)
    for capability in range(_CAPABILITIES):
        system.prctl(_DROP_CAPABILITY, capability, 0, 0, 0)


def make(script: Path, *words: object) -> None:
    """Run the script that writes the inputs of a case, in its folder."""
    cwd = script.parent
    shared = cwd if (cwd / "common.py").is_file() else cwd.parent
    command = [sys.executable, script.name, *map(str, words)]
    subprocess.run(command, cwd=cwd, env=os.environ | {"PYTHONPATH": _paths(shared)}, check=True)


def _paths(first: Path) -> str:
    """Return the search path of commands, with one folder first."""
    return os.pathsep.join(filter(None, [str(first), os.environ.get("PYTHONPATH")]))
