"""Workers as processes on this machine."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context, parent_process

from foveate.prediction.workers import AbstractWorkers, CaseJob, Reply, Setup, Worker


class ProcessWorkers(AbstractWorkers):
    """Processes on this machine, each with one image at a time.

    With several GPUs, worker i computes on GPU i modulo their number.

    Args:
        setup: what each worker needs to build its models.
        n: number of workers.
    """

    lost = (BrokenProcessPool,)

    def __init__(self, setup: Setup, n: int) -> None:
        threads = 0 if "OMP_NUM_THREADS" in os.environ else max(1, (os.cpu_count() or 1) // n)
        self._setup = replace(setup, threads=threads)
        self._pools: list[ProcessPoolExecutor | None] = [None] * n

    def __len__(self) -> int:
        return len(self._pools)

    def start(self, i: int) -> Future[Reply]:
        """Start worker i, anew where it has ended; the reply comes once its models are loaded."""
        ended = self._pools[i]
        if ended is not None:
            ended.shutdown(wait=False, cancel_futures=True)
        # Not forked: threads and open files of this process must not be copied. One process a
        # pool, so that one that is killed takes no other image with it.
        pool = ProcessPoolExecutor(1, get_context("spawn"), _warm_up, (self._setup, i))
        self._pools[i] = pool
        return pool.submit(_report_ready)

    def submit(self, i: int, job: CaseJob) -> Future[Reply]:
        """Let worker i predict an image.

        Args:
            i: number of the worker.
            job: the image and how it is to be predicted.
        """
        pool = self._pools[i]
        assert pool is not None
        try:
            return pool.submit(_predict, job)
        except BrokenProcessPool as error:  # it ended while it was idle
            lost: Future[Reply] = Future()
            lost.set_exception(error)
            return lost

    def stop(self) -> None:
        """End all workers at once."""
        for pool in filter(None, self._pools):
            for process in list((pool._processes or {}).values()):
                process.kill()
            pool.shutdown(cancel_futures=True)
        self._pools = [None] * len(self._pools)


_worker: Worker | None = None
"""The worker of this process, where it is a worker process."""


def _warm_up(setup: Setup, i: int) -> None:
    """Prepare a worker process: its signals, its GPU and its models."""
    global _worker
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the command ends its workers itself
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _take_gpu(i)
    _worker = Worker(setup)


def _end_with_parent() -> None:
    """End this process when the process of the command has been killed."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _take_gpu(i: int) -> None:
    """Restrict this process to one of several GPUs."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is None:
        import torch

        shown = ",".join(map(str, range(torch.cuda.device_count())))
    if "," in shown:
        names = shown.split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = names[i % len(names)]


def _report_ready() -> Reply:
    """Return whether the models of this worker process are loaded."""
    assert _worker is not None
    return _worker.ready()


def _predict(job: CaseJob) -> Reply:
    """Predict an image in this worker process."""
    assert _worker is not None
    return _worker.answer(job)
