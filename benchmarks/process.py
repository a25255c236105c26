"""Measurements in a fresh process: its peak is its own, and it may die."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any

import torch

from foveate.errors import TrainingError
from foveate.memory import peak_device_mib, peak_rss_mib

_FRUGAL = {"MALLOC_MMAP_THRESHOLD_": "262144"}
_POLL_SECONDS = 0.2
_told: list[Connection] = []


def measured_apart(
    measure: Callable[..., dict[str, Any]],
    *args: Any,
    said: str,
    less: str,
    frugal: bool = True,
    tell: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """What `measure` gives in a process of its own.

    Args:
        measure: a function of a module.
        args: its arguments.
        said: what is measured, for the message when the process dies.
        less: what would take less memory.
        frugal: larger blocks come straight from the system and go back when freed, so that the peak
            counts what is held and not what the allocator keeps. Clearing them anew takes time.
        tell: is told the share that is done, as `measure` says with `say_done`.

    Raises:
        TrainingError: the process was killed, most likely for want of memory.
    """
    context = multiprocessing.get_context("spawn")
    environment = _environment(_FRUGAL if frugal else {})
    ours, theirs = context.Pipe(duplex=False)
    alone = ProcessPoolExecutor(
        1, mp_context=context, initializer=_begin, initargs=(theirs if tell else None,)
    )
    with environment, ours, theirs, alone as pool:
        try:
            found = pool.submit(measure, *args)
            while not found.done():
                if not ours.poll(_POLL_SECONDS):
                    continue
                share = ours.recv()
                if tell is not None:
                    tell(share)
            return found.result()
        except BrokenProcessPool:
            raise TrainingError(
                f"{said}: the process was killed, most likely for want of memory. Rows before it "
                f"are kept; {less} takes less"
            ) from None


def peaks(before: float, device: str) -> dict[str, Any]:
    """Columns: the peak of the step, of the process, and of the device."""
    peak = peak_rss_mib()
    found: dict[str, Any] = {
        "step_mib": round(peak - before, 1),
        "rss_peak_mib": round(peak, 1),
    }
    if device == "cuda":
        found["device_peak_mib"] = round(peak_device_mib(), 1)
        found["device_name"] = torch.cuda.get_device_name()
    return found


def say_done(share: float) -> None:
    """Tell the process that waits for this one how much is done."""
    if _told:
        _told[-1].send(share)


def _begin(told: Connection | None) -> None:
    _told[:] = [] if told is None else [told]
    _end_with_parent()


def _end_with_parent() -> None:
    """A measurement that nobody waits for any more must not go on for an hour."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def _environment(more: Mapping[str, str]) -> Iterator[None]:
    """Variables that processes begun in here are born with: the allocator reads them only then."""
    before = {key: os.environ.get(key) for key in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
