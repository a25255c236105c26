"""One table from this process, other processes, parts and Ray; a killed worker loses nothing."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from conftest import Ended, one_thread, picture
from foveate.files.lock import lock_folder
from foveate.runs.folder import read_json, read_rows

Command = Callable[..., Ended]
SECONDS = 600.0
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "foveate", *map(str, words)]


def child(*words: object, env: dict[str, str] | None = None) -> Ended:
    return subprocess.run(
        command(*words),
        capture_output=True,
        text=True,
        env=one_thread() | (env or {}),
        timeout=SECONDS,
        check=False,
    )


def new_images(folder: Path, n: int = 12) -> Path:
    """Pictures, one of which is cut off."""
    for i in range(n):
        picture(folder / f"N{i:02d}.png", 100 + i)
    cut = folder / "N03.png"
    cut.write_bytes(cut.read_bytes()[:300])
    return folder


def table(out: Path) -> bytes:
    """The bytes of the table without the column of seconds."""
    rows = [
        {k: v for k, v in row.items() if k != "seconds"}
        for row in read_rows(out / "predictions.csv")
    ]
    return "\n".join(",".join(row.values()) for row in rows).encode()


def keys(out: Path) -> list[str]:
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
    """What one process makes of them."""
    out = tmp_path_factory.mktemp("threads") / "out"
    ended = child("predict", picture_run, images, "--out", out, "--heatmaps", 2)
    assert ended.returncode == 2, ended.stderr
    assert len(read_rows(out / "predictions.csv")) == 11
    return out


def assert_same(out: Path, threads: Path) -> None:
    assert table(out) == table(threads)
    assert files(out) == files(threads)
    assert sorted(keys(out)) == sorted(keys(threads)), "each image was answered once"
    reasons = [read_rows(folder / "quarantine.csv") for folder in (out, threads)]
    assert reasons[0] == reasons[1]
    costs = [read_json(folder / "cost.json") for folder in (out, threads)]
    for key in ("decoded_px", "asked_px", "level0_px", "n_images"):
        assert costs[0][key] == costs[1][key]
    assert not list(out.rglob("*.part"))
    assert not (out / "parts").exists()


def test_two_processes_give_the_same_table(
    picture_run: Path, images: Path, threads: Path, tmp_path: Path, foveate: Command
) -> None:
    out = tmp_path / "out"
    words = ("predict", picture_run, images, "--out", out, "--heatmaps", 2, "--workers", 2)
    ended = foveate(*words)
    assert ended.returncode == 2, ended.stderr
    assert "set aside N03" in ended.stderr
    assert_same(out, threads)
    again = foveate(*words[:-2])
    assert "11 of 12 images are answered already" in again.stderr, "what failed is tried again"


def test_parts_give_the_same_table_and_are_collected(
    picture_run: Path, images: Path, threads: Path, tmp_path: Path, foveate: Command
) -> None:
    out = tmp_path / "out"
    words = ("predict", picture_run, images, "--out", out, "--heatmaps", 2)
    environment = {"SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "1"}
    both = [
        subprocess.Popen(
            command(*words, "--part", "array"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=one_thread() | environment | {"SLURM_ARRAY_TASK_ID": str(task)},
        )
        for task in range(2)
    ]
    said = [process.communicate(timeout=SECONDS) for process in both]
    assert [process.returncode for process in both] == [0, 2], said
    assert "part 1/2: 6 of 12 images, 0 answered already" in said[0][1]
    assert "the same command without --part collects all parts" in said[0][0]
    assert not (out / "predictions.csv").exists()
    again = foveate(*words, "--part", "3/3")
    assert "part 3/3: 4 of 12 images, 4 answered already" in again.stderr
    stamps = {p: p.stat().st_mtime_ns for p in (out / "heatmaps").iterdir()}
    ended = foveate(*words)
    assert ended.returncode == 2, ended.stderr
    assert "12 of 12 images are answered already" in ended.stderr
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps, "nothing was computed again"
    assert_same(out, threads)
    late = foveate(*words, "--part", "2/2")
    assert "part 2/2: 6 of 12 images, 5 answered already" in late.stderr, "but for what failed"


def test_parts_and_the_whole_do_not_write_at_once(
    picture_run: Path, images: Path, tmp_path: Path, foveate: Command
) -> None:
    out = tmp_path / "out"
    words = ("predict", picture_run, images, "--out", out, "--heatmaps", 0)
    with lock_folder(out / "parts" / "1_of_2"):
        ended = foveate(*words)
        assert ended.returncode == 1
        assert "part 1/2 is still being predicted" in ended.stderr
        assert "in use by another foveate" in foveate(*words, "--part", "1/2").stderr
    with lock_folder(out):
        assert "another foveate writes there" in foveate(*words, "--part", "1/2").stderr
    assert foveate(*words, "--part", "1/2").returncode == 0
    ended = foveate("predict", picture_run, images / "N01.png", "--out", out, "--heatmaps", 0)
    assert "holds answers to 6 images that are not among those given now" in ended.stderr
    ended = foveate(*words[:-1], 1)
    assert "heatmaps was 0, now it is 1" in ended.stderr


# -- killed workers -------------------------------------------------------------------------------


def workers_of(process: subprocess.Popen[bytes], ray: bool) -> list[psutil.Process]:
    found = []
    for one in psutil.Process(process.pid).children(recursive=True):
        words = one.cmdline()
        if (ray and words and words[0] == "ray::Worker.answer") or "spawn_main" in " ".join(words):
            found.append(one)
    return found


@pytest.mark.parametrize(
    "words", [("--workers", 2), pytest.param(("--workers", 2, "--ray", "local"), marks=needs_ray)]
)
def test_a_killed_worker_loses_nothing_and_the_table_is_the_same(
    words: Sequence[object], picture_run: Path, images: Path, threads: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(
        command("predict", picture_run, images, "--heatmaps", 2, "--out", out, *words),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=one_thread(),
    ) as process:
        victims = kill_one(process, out, ray="--ray" in words)
        _, said = process.communicate(timeout=SECONDS)
    assert victims, "a worker was killed in the middle"
    assert process.returncode == 2, said
    assert_same(out, threads)


def kill_one(process: subprocess.Popen[bytes], out: Path, *, ray: bool) -> int:
    """Kill one worker once a few images are answered; returns how many were killed."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and process.poll() is None:
        path = out / "answers.jsonl"
        if path.is_file() and path.read_bytes().count(b"\n") > 2:
            for one in workers_of(process, ray):
                one.kill()
                return 1
        time.sleep(0.02)
    return 0


def test_the_workers_of_a_killed_command_end(
    picture_run: Path, images: Path, threads: Path, tmp_path: Path, foveate: Command
) -> None:
    out = tmp_path / "out"
    words = ("predict", picture_run, images, "--heatmaps", 2, "--out", out, "--workers", 2)
    with subprocess.Popen(command(*words), stderr=subprocess.DEVNULL, env=one_thread()) as process:
        while not (out / "answers.jsonl").is_file() or len(keys(out)) < 2:
            assert process.poll() is None
            time.sleep(0.02)
        workers = workers_of(process, ray=False)
        process.kill()
    assert len(workers) == 2
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
    ended = foveate(*words[:-2])
    assert ended.returncode == 2, ended.stderr
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


def test_an_image_that_ends_every_worker_is_set_aside(picture_run: Path, tmp_path: Path) -> None:
    images, out = new_images(tmp_path / "in", 5), tmp_path / "out"
    plugin = tmp_path / "mine" / "readers" / "fatal.py"
    plugin.parent.mkdir(parents=True)
    plugin.write_text(FATAL)
    (images / "N02.png").write_text("FATAL")
    ended = child(
        *("predict", picture_run, images, "--out", out, "--heatmaps", 0, "--workers", 1),
        *("--plugins", tmp_path / "mine"),
    )
    assert ended.returncode == 2, ended.stderr
    reasons = {row["image_id"]: row["reason"] for row in read_rows(out / "quarantine.csv")}
    assert set(reasons) == {"N02", "N03"}
    assert "3 worker processes ended while they predicted it" in reasons["N02"]
    assert len(read_rows(out / "predictions.csv")) == 3


def test_what_is_wrong_with_a_worker_is_one_line(
    picture_run: Path, images: Path, tmp_path: Path, foveate: Command
) -> None:
    words = ("predict", picture_run, images, "--out", tmp_path / "out")
    ended = foveate(*words, "--part", "0/3")
    assert ended.stderr.startswith("error: --part: got 0/3, expected 1/3 to 3/3")
    if find_spec("ray") is None:
        ended = foveate(*words, "--ray", "local")
        assert "Ray is not installed; pip install 'foveate[ray]'" in ended.stderr
    else:
        ended = foveate(*words, "--ray", "127.0.0.1:1")
        assert "no cluster of Ray answers" in ended.stderr
    assert ended.returncode == 1
