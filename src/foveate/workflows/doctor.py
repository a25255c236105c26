"""A check of the installation: versions, readers, decoder, disk and device are tried."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from foveate.errors import FoveateError, converting
from foveate.parts import names


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: the object of the check.
        ok: whether it works.
        text: version, speed or error.
    """

    name: str
    ok: bool
    text: str


def examine(run: Path | None = None) -> Iterator[Finding]:
    """Check the installation, one finding after the other; errors become findings.

    Args:
        run: folder of a run whose models are checked as well.
    """
    for package in (
        "torch",
        "timm",
        "lightning-fabric",
        "openslide-bin",
        "tifffile",
        "imagecodecs",
        "nibabel",
    ):
        yield _check_version(package)
    for name, look in (
        ("device", _check_device),
        ("memory", _check_memory),
        ("readers", _list_readers),
        ("slide round trip", _measure_round_trip),
        ("disk", _measure_disk),
        ("arithmetic", _measure_arithmetic),
    ):
        yield _try(name, look)
    if run is not None:
        yield _try("models", lambda: _check_models(run))


def _check_version(package: str) -> Finding:
    try:
        return Finding(package, True, version(package))
    except PackageNotFoundError:
        return Finding(package, False, "not installed: pip install foveate again")


def _try(name: str, look: Callable[[], str]) -> Finding:
    try:
        with converting(name, _explain_finding):
            return Finding(name, True, look())
    except FoveateError as error:  # the other checks must still run
        return Finding(name, False, " ".join(str(error).split()))


def _explain_finding(error: Exception, name: object) -> FoveateError:
    return FoveateError(f"{type(error).__name__}: {error}; install foveate again, or report this")


def _check_models(run: Path) -> str:
    from foveate.runs.models import find_models

    return find_models(run).describe()


def _check_device() -> str:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        return f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    return f"CPU, {torch.get_num_threads()} threads (no GPU found; everything works, more slowly)"


def _check_memory() -> str:
    import psutil

    memory = psutil.virtual_memory()
    return f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"


def _list_readers() -> str:
    return f"{', '.join(names('readers'))}; methods: {', '.join(names('methods'))}"


def _measure_round_trip() -> str:
    """Write a slide and read it back, through the same code as all reading; return the speed."""
    from foveate.readers import open_image
    from foveate.synthetic import SlideSpec, write_slide

    spec = SlideSpec(
        shape_px0=(2048, 2048),
        tissue_area_px0=(8e5, 1e6),
        n_islands=(1, 1),
        n_nodules=(2, 4),
        n_deciding=(1, 2),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        write_slide(path, positive=True, seed=0, spec=spec)
        with open_image(path) as image:
            begun = time.perf_counter()
            pixels = image.read_at(image.box_um, image.shape)
            seconds = time.perf_counter() - begun
    return f"{pixels.size / 3 / seconds / 1e6:.0f} megapixels per second decoded on one thread"


def _measure_disk() -> str:
    block = os.urandom(1 << 24)
    with tempfile.NamedTemporaryFile() as file:
        begun = time.perf_counter()
        for _ in range(4):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        seconds = time.perf_counter() - begun
    return (
        f"{4 * len(block) / seconds / 2**20:.0f} MiB per second written to {tempfile.gettempdir()}"
    )


def _measure_arithmetic() -> str:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    side = 4096 if device == "cuda" else 1024
    a = torch.from_numpy(np.ones((side, side), np.float32)).to(device)
    (a @ a).sum().item()
    begun = time.perf_counter()
    (a @ a).sum().item()
    return f"{2 * side**3 / (time.perf_counter() - begun) / 1e9:.0f} GFLOP per second in float32"
