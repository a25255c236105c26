"""Which workers predict: none besides this process, processes of this machine, or Ray's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from foveate.errors import WorkerLost
from foveate.parts import plugin_folders
from foveate.prediction.workers import AbstractWorkers, Setup
from foveate.runs.models import Ensemble


@contextlib.contextmanager
def open_workers(
    models: Ensemble, *, assume_spacing_um: float | None, device: str, n: int, ray: str | None
) -> Iterator[AbstractWorkers | None]:
    """Hold workers that are not started yet, and stop them at the end.

    Args:
        models: what answers.
        assume_spacing_um: of images that state no spacing; None as in training.
        device: ``auto`` takes a GPU when there is one.
        n: how many; 0 for this process alone, or for all places of a cluster of Ray.
        ray: the address of the cluster, ``auto`` or ``local``; None for none.

    Raises:
        WorkerLost: the models lie in no folder.
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
