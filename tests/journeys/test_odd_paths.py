"""Paths given to ``predict`` that are no images: one clear line, and never a wait or a trace."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import picture
from foveate.runs.folder import read_rows
from helpers.commands import Completed, assert_refused

Command = Callable[..., Completed]


def write_fifo(path: Path) -> None:
    os.mkfifo(path)


def write_loop(path: Path) -> None:
    path.symlink_to(path.name)


def write_dangling(path: Path) -> None:
    path.symlink_to("nowhere.png")


def write_unreadable(path: Path) -> None:
    path.mkdir()
    for i in range(3):
        (path / f"B{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")


def write_animation(path: Path) -> None:
    from PIL import Image

    frames = [Image.new("RGB", (96, 96), (n, n, n)) for n in (0, 90, 200)]
    frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (write_fifo, "is a pipe or a device"),
        (write_loop, "its link leads back to itself"),
        (write_dangling, "a link to a file that is not there"),
        (write_unreadable, "no image could be predicted; the first: "),
        (write_animation, "holds 3 pages of the same size"),
        (Path.mkdir, "holds no file that could be an image"),
        (lambda path: None, "no such file or folder; check the name"),
    ],
)
def test_a_path_without_any_image_is_refused(
    picture_run: Path,
    tmp_path: Path,
    foveate: Command,
    write: Callable[[Path], object],
    reason: str,
) -> None:
    path = tmp_path / "given"
    write(path)
    result = foveate("predict", picture_run, path, "--out", tmp_path / "out")
    assert_refused(result, str(path), reason)
    assert not (tmp_path / "out" / "predictions.csv").exists() or not read_rows(
        tmp_path / "out" / "predictions.csv"
    )


def test_a_path_given_twice_and_through_a_link_is_one_image(
    picture_run: Path, tmp_path: Path, foveate: Command
) -> None:
    path = picture(tmp_path / f"{'n' * 241}.png", 1)  # 245 bytes
    (tmp_path / "link.png").symlink_to(path)
    words = ("predict", picture_run, path, path, tmp_path / "link.png", "--out", tmp_path / "out")
    assert foveate(*words).returncode == 0
    (row,) = read_rows(tmp_path / "out" / "predictions.csv")
    assert row["path"] == str(path)
