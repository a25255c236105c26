"""End a command in order when a person (SIGINT) or a scheduler (SIGTERM) interrupts it."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import click

from foveate.cli.words import OK, USER_ERROR

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_FIRST_SIGNAL_CODE = 128
"""A command that signal n has ended has this exit code plus n, as in shells."""
_PATIENCE = 3
"""The signal that ends a process at once which does not end in order."""
_MAX_SECONDS_OF_IMPORTS = 60.0
_SECONDS_TO_NEXT_TRY = 0.02
_IMPORTING = "<frozen importlib._bootstrap>"


def run_interruptibly(run: Callable[[], int | str]) -> int:
    """Run a command, print its error if there is one, and return the exit code.

    The first signal raises `KeyboardInterrupt` in the command; the second is ignored, because it
    would stop the cleaning up after the first; the third ends the process at once, and the next
    command removes what it leaves. Signals that are ignored stay ignored, such as those of a
    command that a shell runs in the background. Whatever the command does with the exception, it
    has the exit code of the signal, and one line says that it was interrupted.

    Args:
        run: runs the command, and returns its exit code, or the message of an error.
    """
    if threading.current_thread() is not threading.main_thread():
        return _finish(run())
    signals = _Signals()
    code = OK
    try:
        with signals:
            outcome = run()
            # After a signal, errors tell of work that was cut off.
            code = USER_ERROR if signals.number else _finish(outcome)
    except KeyboardInterrupt:
        signals.number = signals.number or signal.SIGINT
    if signals.number is None:
        return code
    click.echo("\ninterrupted. The same command continues where this one stopped.", err=True)
    return _FIRST_SIGNAL_CODE + signals.number


def _finish(outcome: int | str) -> int:
    """Print the message of an error, if the outcome of a command is one; return the exit code."""
    if isinstance(outcome, int):
        return outcome
    click.echo(f"error: {' '.join(outcome.split())}", err=True)
    return USER_ERROR


def _end(number: int, frame: FrameType | None = None) -> None:
    """End the process at once with the exit code of a signal."""
    os._exit(_FIRST_SIGNAL_CODE + number)


class _Signals:
    """The handling of signals within a ``with`` block.

    Attributes:
        number: the first signal that has come; None before.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._active, self._n = False, 0
        self._until = 0.0
        self._before: dict[int, Any] = {}
        self._hook = sys.unraisablehook

    def __enter__(self) -> None:
        self._active = True
        sys.unraisablehook = self._raise_again
        for number in _SIGNALS:
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN:
                self._before[number] = before
                signal.signal(number, self._interrupt)

    def __exit__(self, *_: object) -> None:
        """Restore the handlers; after a signal, keep them until Python ends.

        Python waits for its threads when it ends, and resets handlers then, which would let a late
        signal end it with another exit code: signals are ignored from there on, and no timer is
        left.
        """
        self._active = False
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = self._hook
        if self.number is not None:
            atexit.register(self._ignore)
            return
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._n += 1
        if self._n >= _PATIENCE:
            _end(self.number or number)
        if self._n > 1:
            return
        self.number = number
        self._until = time.monotonic() + _MAX_SECONDS_OF_IMPORTS
        self._raise(frame)

    def _raise(self, frame: FrameType | None) -> None:
        """Raise `KeyboardInterrupt` in the command, but not within an import.

        A module may turn an exception into another error, and one that is half imported breaks
        what follows: the next try is soon.
        """
        if not self._active:
            return
        if _is_importing(frame) and time.monotonic() < self._until and self._try_later():
            return
        raise KeyboardInterrupt

    def _try_later(self) -> bool:
        """Raise the exception a moment later; return False where the system has no timer."""
        if not hasattr(signal, "setitimer"):
            return False
        signal.signal(signal.SIGALRM, lambda _, frame: self._raise(frame))
        signal.setitimer(signal.ITIMER_REAL, _SECONDS_TO_NEXT_TRY)
        return True

    def _raise_again(self, unraisable: Any) -> None:
        """Try again where Python has dropped the exception, as in a finaliser or a callback."""
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            self._hook(unraisable)
        elif self._active:
            self._try_later()

    def _ignore(self) -> None:
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)


def _is_importing(frame: FrameType | None) -> bool:
    """Return whether a module is being imported where a signal has stopped the program."""
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            return True
        frame = frame.f_back
    return False
