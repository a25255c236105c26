"""Images predicted by other processes: the worker, and one loop for all kinds of workers.

A worker has loaded models and predicts one image at a time. Where it is killed, a new worker
replaces it and the image is tried again; an image that ends several workers is set aside.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import queue
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from foveate.errors import CheckpointError, FoveateError, PartFault, WorkerLost, converting
from foveate.memory import allow_more_files
from foveate.parts import add_plugin_folder
from foveate.prediction.answer import AnswerOrFailure, Failure
from foveate.prediction.options import PredictOptions
from foveate.prediction.predict import open_loader, predict_cases
from foveate.runs.models import load_models
from foveate.runtime import find_device
from foveate.table import Case

TRIES = 3
"""How often an image is tried whose worker ended."""


@dataclass(frozen=True)
class CaseJob:
    """One image to predict.

    Attributes:
        case: the image.
        with_pictures: whether the image gets pictures.
        tries: number of workers that ended while they predicted the image.
    """

    case: Case
    with_pictures: bool
    tries: int = 0


@dataclass(frozen=True)
class Setup:
    """The models that a worker loads, and how it predicts; picklable.

    Attributes:
        models: folders of the models.
        digests: hashes of the models, which must not change meanwhile.
        plugins: folders of plug-ins.
        options: how they predict.
        cwd: folder that relative paths begin at.
        threads: number of threads that compute; 0 leaves the default of PyTorch.
    """

    models: tuple[Path, ...]
    digests: tuple[str, ...]
    plugins: tuple[Path, ...]
    options: PredictOptions
    cwd: Path
    threads: int = 0


@dataclass(frozen=True)
class Reply:
    """The reply of a worker.

    Attributes:
        outcome: the answer, or why there is none; None from a worker that has only started.
        records: records that the worker logged.
        stop: an error that ends the command, and not only the image.
    """

    outcome: AnswerOrFailure | None = None
    records: tuple[logging.LogRecord, ...] = ()
    stop: FoveateError | None = None


class Worker:
    """Models and a loader, built once in a process, which predict one image after the other.

    Neither building nor predicting raises: errors are in the reply.

    Args:
        setup: folders of the models, and how they predict.
    """

    def __init__(self, setup: Setup) -> None:
        self._records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
        logging.captureWarnings(True)
        logging.getLogger("py.warnings").addHandler(logging.NullHandler())
        logger = logging.getLogger("foveate")
        logger.addHandler(logging.handlers.QueueHandler(self._records))
        logger.setLevel(logging.INFO)
        self._broken: FoveateError | None = None
        self._options = setup.options
        try:
            with converting("loading the models in a worker process", _explain_fault):
                self._build(setup)
        except FoveateError as error:
            error.add_note("".join(traceback.format_exception(error)))
            self._broken = error

    def ready(self) -> Reply:
        """Return a reply without an outcome, with the error of loading the models, if any."""
        return Reply(records=self._take_records(), stop=self._broken)

    def answer(self, job: CaseJob) -> Reply:
        """Predict one image, and reply with the outcome."""
        if self._broken is not None:
            return self.ready()
        pictured = {job.case.image_id} if job.with_pictures else set()
        try:
            with converting("a worker process", _explain_fault):
                (outcome,) = predict_cases(
                    self._models,
                    [job.case],
                    self._loader,
                    device=self._device,
                    options=self._options,
                    pictured=pictured,
                )
        except FoveateError as error:
            error.add_note("".join(traceback.format_exception(error)))
            return Reply(records=self._take_records(), stop=error)
        return Reply(outcome, self._take_records())

    def _build(self, setup: Setup) -> None:
        import torch

        allow_more_files()
        with contextlib.suppress(OSError):  # on a machine without this folder, only full paths work
            os.chdir(setup.cwd)
        if setup.threads:
            torch.set_num_threads(setup.threads)
        for folder in setup.plugins:
            add_plugin_folder(folder)
        self._models = load_models(setup.models)
        if tuple(self._models.digests()) != setup.digests:
            raise CheckpointError(
                f"{setup.models[0]}: the model was changed since the command began; give it again"
            )
        self._loader = open_loader(self._models, setup.options.assume_spacing_um)
        self._device = find_device(setup.options.device)

    def _take_records(self) -> tuple[logging.LogRecord, ...]:
        return tuple(self._records.get() for _ in range(self._records.qsize()))


def _explain_fault(error: Exception, about: object) -> PartFault:
    return PartFault(
        f"{about} failed ({type(error).__name__}): no image is to blame; leave out --workers and "
        "--ray to see where, and report it"
    )


class AbstractWorkers(ABC):
    """Workers of one kind, as a context that stops them at its end.

    Attributes:
        lost: errors that a future raises when its worker has ended.
    """

    lost: tuple[type[Exception], ...]

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of workers, started or not."""

    @abstractmethod
    def start(self, i: int) -> Future[Reply]:
        """Start worker i, anew where it has ended; the reply comes once its models are loaded."""

    @abstractmethod
    def submit(self, i: int, job: CaseJob) -> Future[Reply]:
        """Let worker i predict an image.

        Args:
            i: number of the worker.
            job: the image and how it is to be predicted.
        """

    @abstractmethod
    def stop(self) -> None:
        """End all workers at once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.stop()


def map_cases(workers: AbstractWorkers, jobs: Iterable[CaseJob]) -> Iterator[AnswerOrFailure]:
    """Let workers predict images; yield outcomes as they are ready, in any order.

    No more images are under way than there are workers.

    Args:
        workers: workers that are not started yet.
        jobs: one job per image.

    Raises:
        WorkerLost: workers cannot be started, or end one after the other.
        FoveateError: another error ends the command, such as a limit of open files.
    """
    waiting = deque(jobs)
    losses, replies = 0, 0
    idle: list[int] = []
    running: dict[Future[Reply], tuple[int, CaseJob | None]] = {
        workers.start(i): (i, None) for i in range(min(len(workers), len(waiting)))
    }
    while waiting or any(job is not None for _, job in running.values()):
        while idle and waiting:
            i, job = idle.pop(), waiting.popleft()
            running[workers.submit(i, job)] = i, job
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            i, ended = running.pop(future)
            try:
                outcome = _open_reply(future.result())
            except workers.lost as error:
                losses += 1
                if not replies or losses > TRIES * (len(workers) + 4):
                    raise WorkerLost(_ALL_END if replies else _NOT_STARTED) from error
                running[workers.start(i)] = i, None
                outcome = None if ended is None else _try_again(ended, waiting)
            else:
                losses, replies = 0 if outcome else losses, replies + 1
                idle.append(i)
            if outcome is not None:
                yield outcome


def _open_reply(reply: Reply) -> AnswerOrFailure | None:
    """Log the records of a reply, and return its outcome.

    Raises:
        FoveateError: the worker met an error that ends the command.
    """
    for record in reply.records:
        logging.getLogger(record.name).handle(record)
    if reply.stop is not None:
        raise reply.stop
    return reply.outcome


def _try_again(job: CaseJob, waiting: deque[CaseJob]) -> Failure | None:
    """Queue an image whose worker ended once more, or fail it after too many tries."""
    if job.tries + 1 < TRIES:
        waiting.appendleft(replace(job, tries=job.tries + 1))
        return None
    return Failure(
        job.case,
        f"{job.case.path}: {TRIES} worker processes ended while they predicted it, without a word; "
        "memory may not suffice for it, or the file ends a library",
    )


_NOT_STARTED = (
    "a worker process ended while it loaded the models: memory may not suffice for so many (take a "
    "smaller --workers), or foveate is not installed on a node of the cluster. In a script of your "
    'own, what starts workers has to stand under `if __name__ == "__main__":`'
)
_ALL_END = (
    "worker processes end one after the other, without a word: memory may not suffice for so many; "
    "take a smaller --workers. What was answered is kept, and the same command continues"
)
