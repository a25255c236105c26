"""The choice of workers: this process alone, processes on this machine, or actors of Ray."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from foveate.errors import WorkerLost
from foveate.parts import plugin_folders
from foveate.prediction.options import PredictOptions
from foveate.prediction.workers import AbstractWorkers, Setup
from foveate.runs.models import Ensemble


@contextlib.contextmanager
def open_workers(models: Ensemble, options: PredictOptions) -> Iterator[AbstractWorkers | None]:
    """Create workers that are not started yet, and stop them at the end of the block.

    Args:
        models: models that answer.
        options: how they predict; ``workers`` and ``ray`` choose the kind and number of workers.

    Raises:
        WorkerLost: the models were not loaded from a folder.
        OptionError: Ray is not installed, or there is no such cluster.
    """
    if not options.workers and options.ray is None:
        yield None
        return
    if not models.folders:
        raise WorkerLost(
            "models that lie in no folder cannot be sent to other processes: save them first, or "
            "leave out workers and ray"
        )
    setup = Setup(
        models=tuple(folder.absolute() for folder in models.folders),
        digests=tuple(models.digests()),
        plugins=plugin_folders(),
        options=options,
        cwd=Path.cwd(),
    )
    if options.ray is None:
        from foveate.prediction.processes import ProcessWorkers

        workers: AbstractWorkers = ProcessWorkers(setup, options.workers)
    else:
        from foveate.prediction.ray_workers import RayWorkers

        workers = RayWorkers(setup, options.ray, options.workers)
    with workers:
        yield workers
