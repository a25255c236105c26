"""Half-written files of killed processes are removed when a data set is written again."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.mnist import needle_mnist
from benchmarks.mnist.base import Mnist
from foveate.synthetic import CohortSpec, SlideSpec, write_cohort

ENDED = 4_194_305
"""Number of a process that no system gives, as Linux counts to 4,194,304."""


def remains_of_a_kill(folder: Path, name: str) -> Path:
    """Write the part of a file that a killed process had written."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".{name}.{ENDED}.part"
    path.write_bytes(b"half")
    return path


def pool(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw twenty pictures of digits."""
    images = np.random.default_rng(seed).integers(0, 256, (20, 28, 28), np.uint8)
    return images, np.arange(20, dtype=np.uint8) % 10


def test_a_killed_writer_of_canvases_leaves_nothing(tmp_path: Path) -> None:
    mnist, numbers = Mnist(*pool(0), *pool(1)), {"side": 128, "n_train": 2, "n_test": 1}
    table = needle_mnist.write(tmp_path / "set", mnist, **numbers)
    table.unlink()  # which is written last
    part = remains_of_a_kill(tmp_path / "set" / "train", "00001.sparse")
    assert needle_mnist.write(tmp_path / "set", mnist, **numbers) == table
    assert table.is_file()
    assert not part.exists()


def test_a_killed_writer_of_slides_leaves_nothing(tmp_path: Path) -> None:
    part = remains_of_a_kill(tmp_path / "slides", "S001.tif")
    spec = SlideSpec(
        shape_px0=(2048, 2048),
        tissue_area_px0=(1.0e6, 1.3e6),
        n_islands=(1, 1),
        n_nodules=(3, 3),
        n_deciding=(1, 1),
    )
    write_cohort(tmp_path, CohortSpec(n_slides=1, n_patients=1, spec=spec, seed=1), workers=1)
    assert (tmp_path / "slides" / "S001.tif").is_file()
    assert not part.exists()
