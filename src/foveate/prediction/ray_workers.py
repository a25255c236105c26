"""Workers as actors of Ray, on one machine or on many that share a file system."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from foveate.errors import OptionError
from foveate.prediction.workers import AbstractWorkers, CaseJob, Reply, Setup, Worker

log = logging.getLogger("foveate")
_SECONDS = 10.0


class RayWorkers(AbstractWorkers):
    """Actors of Ray with warm models, each with one image at a time.

    Args:
        setup: what each worker needs to build its models.
        address: address of the cluster; ``auto`` takes the one that runs here, and begins one on
            this machine where none does; ``local`` always begins one.
        n: number of workers; 0 takes one per GPU of the cluster, or one per CPU without GPUs.

    Raises:
        OptionError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, setup: Setup, address: str, n: int = 0) -> None:
        try:
            import ray
        except ImportError as error:
            raise OptionError(
                "--ray: Ray is not installed; run pip install 'foveate[ray]'"
            ) from error
        self._ray: Any = ray  # Ray annotates a part of its functions only
        self._setup = setup
        self.lost = (
            ray.exceptions.RayActorError,
            ray.exceptions.ObjectLostError,
            ray.exceptions.OutOfMemoryError,
            ray.exceptions.WorkerCrashedError,
        )
        self._begun = not ray.is_initialized()
        if self._begun:
            _connect(ray, address, n)
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        n, options = share_out(nodes, n, gpu=setup.options.device in ("auto", "cuda"))
        self._actor_class: Any = ray.remote(Worker).options(
            max_restarts=0, scheduling_strategy="SPREAD", **options
        )
        self._actors: list[Any] = [None] * n

    def __len__(self) -> int:
        return len(self._actors)

    def start(self, i: int) -> Future[Reply]:
        """Start worker i, anew where it has ended; the reply comes once its models are loaded."""
        self._actors[i] = self._actor_class.remote(self._setup)
        ready: Future[Reply] = self._actors[i].ready.remote().future()
        return ready

    def submit(self, i: int, job: CaseJob) -> Future[Reply]:
        """Let worker i predict an image.

        Args:
            i: number of the worker.
            job: the image and how it is to be predicted.
        """
        reply: Future[Reply] = self._actors[i].answer.remote(job).future()
        return reply

    def stop(self) -> None:
        """End all workers at once, and the cluster where it was begun for them."""
        for actor in filter(None, self._actors):
            self._ray.kill(actor)
        self._actors = [None] * len(self._actors)
        if self._begun:
            self._ray.shutdown()


def _connect(ray: Any, address: str, n: int) -> None:
    """Join a cluster, or begin one on this machine.

    Raises:
        OptionError: there is no cluster at the address.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    try:
        if address == "local":
            cpus = max(n, os.cpu_count() or 1)
            ray.init("local", num_cpus=cpus, include_dashboard=False, **quiet)
        elif address == "auto":
            ray.init(**quiet)
        else:
            _knock(address)
            ray.init(address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        log.info("%s", address, exc_info=error)
        raise OptionError(
            f"--ray {address}: no cluster of Ray answers; `ray status` says what runs, `ray start "
            "--head` begins one, --ray local begins one on this machine for this command. One that "
            "asks for a token needs RAY_AUTH_MODE=token and the same RAY_AUTH_TOKEN here"
        ) from error


def _knock(address: str) -> None:
    """Connect once to ``HOST:PORT`` or ``ray://HOST:PORT``; Ray itself would try for minutes.

    Raises:
        OSError: nobody listens there.
        ValueError: there is no port.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    socket.create_connection((host, int(port)), timeout=_SECONDS).close()


def share_out(
    nodes: Sequence[Mapping[str, float]], n: int, *, gpu: bool
) -> tuple[int, dict[str, float]]:
    """Divide a cluster among workers, so that each worker fits on one node.

    Args:
        nodes: resources of each node: ``CPU``, ``GPU``.
        n: number of workers; 0 takes one per GPU, or one per CPU without GPUs.
        gpu: whether workers compute on GPUs where there are any.

    Returns:
        Number of workers, and the ``num_cpus`` and ``num_gpus`` of each.
    """
    gpus = sum(node.get("GPU", 0) for node in nodes) if gpu else 0
    n = n or max(1, int(gpus or sum(node.get("CPU", 0) for node in nodes)))
    each_gpu = min(1.0, math.floor(1e4 * gpus / n) / 1e4)
    most = int(max((node.get("CPU", 0) for node in nodes), default=1))
    for cpus in (*range(most, 0, -1), *(1 / k for k in range(2, n + 1))):
        places = sum(_count_places(node, cpus, each_gpu) for node in nodes)
        if places >= n:
            return n, {"num_cpus": math.floor(1e4 * cpus) / 1e4, "num_gpus": each_gpu}
    return n, {"num_cpus": 0.0, "num_gpus": each_gpu}


def _count_places(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Count the workers that fit on a node."""
    by_cpu = math.floor(node.get("CPU", 0) / cpus + 1e-9)
    return min(by_cpu, math.floor(node.get("GPU", 0) / gpus + 1e-9)) if gpus else by_cpu
