"""Measurements in a fresh process, which has its own memory peak and may be killed."""

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
_progress_pipes: list[Connection] = []


def measure_in_process(
    measure: Callable[..., dict[str, Any]],
    *args: Any,
    label: str,
    less: str,
    frugal: bool = True,
    tell: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Run `measure` in a process of its own and return its result.

    Args:
        measure: a function of a module.
        args: its arguments.
        label: what is measured, for the message when the process dies.
        less: what would take less memory.
        frugal: larger blocks come straight from the system and go back when freed, so that the peak
            counts what is held and not what the allocator keeps. Clearing them anew takes time.
        tell: called with the finished share that `measure` reports by `report_share_done`.

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
            future = pool.submit(measure, *args)
            while not future.done():
                if not ours.poll(_POLL_SECONDS):
                    continue
                share = ours.recv()
                if tell is not None:
                    tell(share)
            return future.result()
        except BrokenProcessPool:
            raise TrainingError(
                f"{label}: the process was killed, most likely for want of memory. Rows before it "
                f"are kept; {less} takes less"
            ) from None


def peaks(before: float, device: str) -> dict[str, Any]:
    """Return the peak columns of the step, the process and the device."""
    peak = peak_rss_mib()
    columns: dict[str, Any] = {
        "step_mib": round(peak - before, 1),
        "rss_peak_mib": round(peak, 1),
    }
    if device == "cuda":
        columns["device_peak_mib"] = round(peak_device_mib(), 1)
        columns["device_name"] = torch.cuda.get_device_name()
    return columns


def report_share_done(share: float, total: int = 1) -> None:
    """Send the finished share to the waiting process."""
    if _progress_pipes:
        _progress_pipes[-1].send(share / total)


def _begin(connection: Connection | None) -> None:
    """Prepare the measuring process."""
    _progress_pipes[:] = [] if connection is None else [connection]
    _end_with_parent()


def _end_with_parent() -> None:
    """Exit when the parent process is gone."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def _environment(more: Mapping[str, str]) -> Iterator[None]:
    """Set variables for processes started inside: the allocator reads them only at start."""
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
