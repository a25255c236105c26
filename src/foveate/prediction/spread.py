"""The choice of workers: this process alone, processes on this machine, or actors of Ray."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from foveate.errors import WorkerLost
from foveate.exports import DEFAULT
from foveate.parts import plugin_folders
from foveate.prediction.workers import AbstractWorkers, Setup
from foveate.runs.models import Ensemble


@contextlib.contextmanager
def open_workers(
    models: Ensemble,
    *,
    assume_spacing_um: float | None,
    device: str,
    n: int,
    ray: str | None,
    exports: Sequence[str] = DEFAULT,
) -> Iterator[AbstractWorkers | None]:
    """Create workers that are not started yet, and stop them at the end of the block.

    Args:
        models: models that answer.
        assume_spacing_um: spacing of images that state none; with None, as in training.
        device: device that computes; ``auto`` takes a GPU when there is one.
        n: number of workers; 0 for this process alone, or for as many as a cluster of Ray has room
            for.
        ray: address of the cluster, ``auto`` or ``local``; None for no cluster.
        exports: kinds of pictures.

    Raises:
        WorkerLost: the models were not loaded from a folder.
        OptionError: Ray is not installed, or there is no such cluster.
    """
    if not n and ray is None:
        yield None
        return
    if not models.folders:
        raise WorkerLost("models that lie in no folder cannot be sent to other processes")
    setup = Setup(
        models=tuple(folder.absolute() for folder in models.folders),
        digests=tuple(models.digests()),
        plugins=plugin_folders(),
        assume_spacing_um=assume_spacing_um,
        device=device,
        exports=tuple(exports),
        cwd=Path.cwd(),
    )
    if ray is None:
        from foveate.prediction.processes import ProcessWorkers

        workers: AbstractWorkers = ProcessWorkers(setup, n)
    else:
        from foveate.prediction.ray_workers import RayWorkers

        workers = RayWorkers(setup, ray, n)
    with workers:
        yield workers
