"""Small real slides shared by tests."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from foveate.synthetic import SlideSpec, write_cohort

TINY = SlideSpec(
    shape_px0=(2048, 3072),
    tissue_px0=(1.0e6, 1.3e6),
    n_islands=(1, 2),
    n_nodules=(4, 6),
    n_deciding=(2, 3),
)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images; tests that need it are skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real images are not here: {folder}")
    return folder


@pytest.fixture(scope="session")
def tiny_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Table of 24 small slides of 20 patients."""
    folder = tmp_path_factory.mktemp("cohort")
    return write_cohort(
        folder, n_slides=24, n_patients=20, spec=TINY, giga_spec=None, seed=5, workers=2
    )


@pytest.fixture(scope="session")
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads that read crops."""
    with ThreadPoolExecutor(2) as threads:
        yield threads
