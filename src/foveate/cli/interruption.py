"""End a command in order when a person (SIGINT) or a scheduler (SIGTERM) interrupts it."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

from foveate.cli.words import INTERRUPTED

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PATIENCE = 3
"""The signal that ends a process at once which does not end in order."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raise `KeyboardInterrupt` at the first signal while the context lasts, and ignore the second.

    A second Ctrl-C would stop the cleaning up after the first. The third ends the process at once,
    and the next command removes what it leaves. Signals that are ignored stay ignored, such as
    those of a command that a shell runs in the background. After an interruption, the handlers
    stay, since Python waits for its threads when it ends; then it resets handlers, which would let
    a late signal end it with another exit code, so that signals are ignored from there on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    n_signals = 0

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal n_signals
        n_signals += 1
        if n_signals == 1:
            raise KeyboardInterrupt
        if n_signals >= _PATIENCE:
            os._exit(INTERRUPTED)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    caught = [number for number in _SIGNALS if before[number] is not signal.SIG_IGN]
    for number in caught:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        if n_signals:
            atexit.register(_ignore, caught)
        else:
            for number in caught:
                signal.signal(number, before[number])


def _ignore(numbers: Sequence[signal.Signals]) -> None:
    """Ignore signals from now on."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)
