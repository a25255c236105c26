"""Journal entries, a lock that is released when a process is killed, and image facts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from foveate.errors import CheckpointError, FolderInUse
from foveate.files.journal import Journal
from foveate.files.lock import NAME, is_locked, lock_folder
from foveate.images.likeness import ImageFacts, is_blank, trained_on
from foveate.prediction.pictures import safe_name
from helpers.commands import one_thread_environment

ABOUT = {"models": ["ab"], "heatmaps": 3}


def test_added_entries_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    journal = Journal(path, ABOUT)
    journal.add("a", {"row": {"p": 0.25}})
    journal.add("b\udce9\n", {"failed": "cut"})
    journal.add("a", {"row": {"p": 0.5}})
    again = Journal(path, ABOUT)
    assert again.entries == {"a": {"row": {"p": 0.5}}, "b\udce9\n": {"failed": "cut"}}
    again.finish()
    assert Journal(path, ABOUT).entries.keys() == {"a"}, "what failed is tried again"
    again.add("c", {"failed": "cut"})
    assert Journal(path, ABOUT).entries.keys() == {"a", "c"}


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_truncated_line_is_dropped_and_written_again(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    journal = Journal(path, ABOUT)
    journal.add("a", {"row": 1})
    journal.add("b", {"row": {"text": "x" * 40}})
    os.truncate(path, path.stat().st_size - cut)
    again = Journal(path, ABOUT)
    assert again.entries == {"a": {"row": 1}}
    again.add("b", {"row": 2})
    assert Journal(path, ABOUT).entries == {"a": {"row": 1}, "b": {"row": 2}}
    assert all(json.loads(line) for line in path.read_bytes().splitlines())


def test_entries_of_other_inputs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    Journal(path, ABOUT).add("a", {"row": 1})
    with pytest.raises(CheckpointError, match=r"heatmaps was 3, now it is 4.*another --out"):
        Journal(path, ABOUT | {"heatmaps": 4})
    assert Journal(path, ABOUT).entries, "nothing was lost by that"
    assert not Journal(path, ABOUT | {"heatmaps": 4}, anew=True).entries
    failures = Journal(tmp_path / "failures.jsonl", ABOUT)
    failures.add("a", {"failed": "states no pixel size"})
    Journal(failures.path, ABOUT | {"heatmaps": 4}).add("a", {"row": 1})
    for data in (b"\xff\xfe\n", b"[]\n", b"no lines"):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="cannot be read"):
            Journal(path, ABOUT)


HOLDER = """
import sys, time
from pathlib import Path
from foveate.files.lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_releases_its_lock(tmp_path: Path) -> None:
    words = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=one_thread_environment()) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        assert is_locked(tmp_path)
        with pytest.raises(FolderInUse, match=f"process {child.pid} on"), lock_folder(tmp_path):
            pass
        child.send_signal(signal.SIGKILL)
    assert (tmp_path / NAME).exists()
    assert not is_locked(tmp_path)
    with lock_folder(tmp_path):
        assert is_locked(tmp_path)
    assert not (tmp_path / NAME).exists()


def test_only_one_process_gets_the_lock(tmp_path: Path) -> None:
    """Two processes never hold the lock at once, even if the lock file is removed."""
    words = [sys.executable, "-c", RACER, str(tmp_path)]
    racers = [subprocess.Popen(words, env=one_thread_environment()) for _ in range(4)]
    until = time.monotonic() + 60
    for racer in racers:
        assert racer.wait(timeout=max(1, until - time.monotonic())) == 0
    assert int((tmp_path / "count").read_text()) == len((tmp_path / "log").read_text())


RACER = """
import sys
from pathlib import Path
from foveate.errors import FolderInUse
from foveate.files.lock import lock_folder
folder = Path(sys.argv[1])
for _ in range(300):
    try:
        with lock_folder(folder):
            path = folder / "count"
            n = int(path.read_text() or 0) if path.exists() else 0
            path.write_text(str(n + 1))
            with (folder / "log").open("a") as file:
                file.write("x")
    except FolderInUse:
        pass
"""


def test_names_of_files_fit_and_differ() -> None:
    for name in ("x" * 300, "病" * 100, "a/b", ".hidden", "caf\udce9", "ok"):
        names = safe_name(name)
        assert len(f".{names}.geojson.4194304.part".encode()) <= 255
        assert "/" not in names
        assert not names.startswith(".")
    assert safe_name("x" * 300) != safe_name("x" * 301)
    assert safe_name("ok") == "ok"


def test_facts_of_training_images_are_stored() -> None:
    facts = [
        ImageFacts((100, 200), (0.5, 0.5), "um", "slide", "a", 3),
        ImageFacts((400, 50), (0.25, 0.25), "um", "picture", "b", 1, assumed=True),
    ]
    known = trained_on(facts)
    assert (known.n, known.assumed, known.unit) == (2, 1, "um")
    assert (known.kinds, known.channels) == (("picture", "slide"), (1, 3))
    assert known.spacing_um == pytest.approx((0.25, 0.5))
    assert known.side_um == pytest.approx((100.0, 100.0))


@pytest.mark.parametrize(("spread", "blank"), [(0, True), (5, True), (30, False)])
def test_an_image_of_one_colour_is_blank(spread: int, blank: bool) -> None:
    pixels = np.full((20, 20, 3), 200, np.uint8)
    pixels[3, 4, 1] -= spread
    assert is_blank(pixels) is blank
    assert is_blank(pixels.astype(np.uint16) * 257) is blank
