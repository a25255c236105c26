"""One process, several processes, job-array parts and Ray write the same table."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from conftest import picture
from foveate.files.lock import lock_folder
from foveate.runs.folder import read_json, read_rows
from helpers.commands import Child, Completed, run_child

Command = Callable[..., Completed]
SECONDS = 600.0
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")


def new_images(folder: Path, n: int = 12) -> Path:
    """Write pictures, one of which is truncated."""
    for i in range(n):
        picture(folder / f"N{i:02d}.png", 100 + i)
    cut = folder / "N03.png"
    cut.write_bytes(cut.read_bytes()[:300])
    return folder


def read_table_bytes(out: Path) -> bytes:
    """Return the bytes of the table without the column of seconds."""
    rows = [
        {k: v for k, v in row.items() if k != "seconds"}
        for row in read_rows(out / "predictions.csv")
    ]
    return "\n".join(",".join(row.values()) for row in rows).encode()


def read_keys(out: Path) -> list[str]:
    lines = (out / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    return [line.split('"key": "')[1].split('"')[0] for line in lines if '"key"' in line]


def files(out: Path) -> dict[str, bytes]:
    return {
        p.name: p.read_bytes() for p in sorted((out / "heatmaps").iterdir()) if p.suffix != ".npz"
    }


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_images(tmp_path_factory.mktemp("new") / "in")


@pytest.fixture(scope="module")
def threads(picture_run: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Predict the images in one process and return the folder."""
    out = tmp_path_factory.mktemp("threads") / "out"
    result = run_child("predict", picture_run, images, "--out", out, "--heatmaps", 2)
    assert result.returncode == 2, result.stderr
    assert len(read_rows(out / "predictions.csv")) == 11
    return out


def assert_same(out: Path, threads: Path) -> None:
    assert read_table_bytes(out) == read_table_bytes(threads)
    assert files(out) == files(threads)
    assert sorted(read_keys(out)) == sorted(read_keys(threads)), "each image was answered once"
    reasons = [read_rows(folder / "quarantine.csv") for folder in (out, threads)]
    assert reasons[0] == reasons[1]
    costs = [read_json(folder / "cost.json") for folder in (out, threads)]
    for key in ("decoded_px", "asked_px", "level0_px", "n_images"):
        assert costs[0][key] == costs[1][key]
    assert not list(out.rglob("*.part"))
    assert not (out / "parts").exists()


@pytest.mark.slow
def test_two_processes_write_the_same_table(
    picture_run: Path, images: Path, threads: Path, tmp_path: Path, foveate: Command
) -> None:
    out = tmp_path / "out"
    words = ("predict", picture_run, images, "--out", out, "--heatmaps", 2, "--workers", 2)
    result = foveate(*words)
    assert result.returncode == 2, result.stderr
    assert "set aside N03" in result.stderr
    assert_same(out, threads)
    again = foveate(*words[:-2])
    assert "11 of 12 images are answered already" in again.stderr, "what failed is tried again"


@pytest.mark.slow
def test_job_array_parts_write_the_same_table(
    picture_run: Path, images: Path, threads: Path, tmp_path: Path, foveate: Command
) -> None:
    out = tmp_path / "out"
    words = ("predict", picture_run, images, "--out", out, "--heatmaps", 2)
    environment = {"SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "1"}
    both = [
        Child(*words, "--part", "array", env=environment | {"SLURM_ARRAY_TASK_ID": str(task)})
        for task in range(2)
    ]
    outputs = [process.communicate(timeout=SECONDS) for process in both]
    assert [process.returncode for process in both] == [0, 2], outputs
    assert "part 1/2: 6 of 12 images, 0 answered already" in outputs[0][1]
    assert "the same command without --part collects all parts" in outputs[0][0]
    assert not (out / "predictions.csv").exists()
    again = foveate(*words, "--part", "3/3")
    assert "part 3/3: 4 of 12 images, 4 answered already" in again.stderr
    stamps = {p: p.stat().st_mtime_ns for p in (out / "heatmaps").iterdir()}
    result = foveate(*words)
    assert result.returncode == 2, result.stderr
    assert "12 of 12 images are answered already" in result.stderr
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps, "nothing was computed again"
    assert_same(out, threads)
    late = foveate(*words, "--part", "2/2")
    assert "part 2/2: 6 of 12 images, 5 answered already" in late.stderr, "but for what failed"


def test_a_part_and_a_full_command_exclude_each_other(
    picture_run: Path, images: Path, tmp_path: Path, foveate: Command
) -> None:
    out = tmp_path / "out"
    words = ("predict", picture_run, images, "--out", out, "--heatmaps", 0)
    with lock_folder(out / "parts" / "1_of_2"):
        result = foveate(*words)
        assert result.returncode == 1
        assert "part 1/2 is still being predicted" in result.stderr
        assert "in use by another foveate" in foveate(*words, "--part", "1/2").stderr
    with lock_folder(out):
        assert "another foveate writes there" in foveate(*words, "--part", "1/2").stderr
    assert foveate(*words, "--part", "1/2").returncode == 0
    result = foveate("predict", picture_run, images / "N01.png", "--out", out, "--heatmaps", 0)
    assert "holds answers to 6 images that are not among those given now" in result.stderr
    result = foveate(*words[:-1], 1)
    assert "heatmaps was 0, now it is 1" in result.stderr


# -- killed workers -------------------------------------------------------------------------------


def workers_of(process: Child, ray: bool) -> list[psutil.Process]:
    workers = []
    for one in psutil.Process(process.pid).children(recursive=True):
        words = one.cmdline()
        if (ray and words and words[0] == "ray::Worker.answer") or "spawn_main" in " ".join(words):
            workers.append(one)
    return workers


@pytest.mark.parametrize(
    "words",
    [
        ("--workers", 2),
        pytest.param(("--workers", 2, "--ray", "local"), marks=[needs_ray, pytest.mark.slow]),
    ],
)
def test_a_killed_worker_does_not_change_the_table(
    words: Sequence[object], picture_run: Path, images: Path, threads: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = Child("predict", picture_run, images, "--heatmaps", 2, "--out", out, *words)
    victims = kill_one(process, out, ray="--ray" in words)
    _, errors = process.communicate(timeout=SECONDS)
    assert victims, "a worker was killed in the middle"
    assert process.returncode == 2, errors
    assert_same(out, threads)


def kill_one(process: Child, out: Path, *, ray: bool) -> int:
    """Kill one worker after a few predictions; returns how many were killed."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and process.poll() is None:
        path = out / "answers.jsonl"
        if path.is_file() and path.read_bytes().count(b"\n") > 2:
            for one in workers_of(process, ray):
                one.kill()
                return 1
        time.sleep(0.02)
    return 0


@pytest.mark.slow
def test_the_workers_of_a_killed_command_end(
    picture_run: Path, images: Path, threads: Path, tmp_path: Path, foveate: Command
) -> None:
    out = tmp_path / "out"
    words = ("predict", picture_run, images, "--heatmaps", 2, "--out", out, "--workers", 2)
    process = Child(*words)
    while not (out / "answers.jsonl").is_file() or len(read_keys(out)) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    workers = workers_of(process, ray=False)
    process.kill()
    assert len(workers) == 2
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
    result = foveate(*words[:-2])
    assert result.returncode == 2, result.stderr
    assert_same(out, threads)


FATAL = '''
"""Ends the process that opens its file."""

from __future__ import annotations

import os
from pathlib import Path

from foveate.readers.base import AbstractReader


class FatalReader(AbstractReader):
    """Ends the process that opens its file."""

    priority = 99

    def __init__(self, path: Path) -> None:
        os._exit(9)

    @classmethod
    def recognises(cls, path: Path, head: bytes) -> bool:
        return head.startswith(b"FATAL")

    def _read_level(self, level, origin_px, size_px):
        """Not reached."""

    def close(self):
        """Not reached."""
'''


@pytest.mark.slow
def test_an_image_that_ends_every_worker_is_set_aside(picture_run: Path, tmp_path: Path) -> None:
    images, out = new_images(tmp_path / "in", 5), tmp_path / "out"
    plugin = tmp_path / "mine" / "readers" / "fatal.py"
    plugin.parent.mkdir(parents=True)
    plugin.write_text(FATAL)
    (images / "N02.png").write_text("FATAL")
    result = run_child(
        *("predict", picture_run, images, "--out", out, "--heatmaps", 0, "--workers", 1),
        *("--plugins", tmp_path / "mine"),
    )
    assert result.returncode == 2, result.stderr
    reasons = {row["image_id"]: row["reason"] for row in read_rows(out / "quarantine.csv")}
    assert set(reasons) == {"N02", "N03"}
    assert "3 worker processes ended while they predicted it" in reasons["N02"]
    assert len(read_rows(out / "predictions.csv")) == 3


def test_a_wrong_part_or_worker_number_is_refused(
    picture_run: Path, images: Path, tmp_path: Path, foveate: Command
) -> None:
    words = ("predict", picture_run, images, "--out", tmp_path / "out")
    result = foveate(*words, "--part", "0/3")
    assert result.stderr.startswith("error: --part: got 0/3, expected 1/3 to 3/3")
    if find_spec("ray") is None:
        result = foveate(*words, "--ray", "local")
        assert "Ray is not installed; pip install 'foveate[ray]'" in result.stderr
    else:
        result = foveate(*words, "--ray", "127.0.0.1:1")
        assert "no cluster of Ray answers" in result.stderr
    assert result.returncode == 1
