"""One part of the images for each task of a job array: ``--part 2/5``, or ``--part array``.

The number of the task stands in the environment; each scheduler has its own variables for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from foveate.errors import OptionError

T = TypeVar("T")


@dataclass(frozen=True)
class _Scheduler:
    """Environment variables of one scheduler; names that it does not set are empty."""

    index: str
    first: str = ""
    last: str = ""
    step: str = ""
    count: str = ""


_SCHEDULERS = (
    _Scheduler(
        *("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX"),
        *("SLURM_ARRAY_TASK_STEP", "SLURM_ARRAY_TASK_COUNT"),
    ),
    _Scheduler("SGE_TASK_ID", "SGE_TASK_FIRST", "SGE_TASK_LAST", "SGE_TASK_STEPSIZE"),
    _Scheduler("LSB_JOBINDEX", "", "LSB_JOBINDEX_END", "LSB_JOBINDEX_STEP"),
    _Scheduler("PBS_ARRAY_INDEX"),
    _Scheduler("PBS_ARRAYID"),
)


@dataclass(frozen=True)
class JobPart:
    """One of several parts of the images, dealt out in turn, so that all parts are similar.

    Attributes:
        number: number of the part, from 1 to `count`.
        count: number of parts.
    """

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def folder(self) -> str:
        """Name of the folder for the answers of this part."""
        return f"{self.number}_of_{self.count}"

    def pick(self, items: Sequence[T]) -> list[T]:
        """Return the items of this part: one of every `count`, in order."""
        return list(items[self.number - 1 :: self.count])


def parse_part(text: str, environment: Mapping[str, str]) -> JobPart:
    """Read ``--part``: ``2/5``; ``array`` for the task of a job array; ``array/5`` of 5 tasks.

    Args:
        text: value of the option.
        environment: environment of the process, where schedulers state the task.

    Raises:
        OptionError: the text is none of these, or the environment states no task.
    """
    match = re.fullmatch(r"(array|\d+)(?:/(\d+))?", text.strip())
    if match is None or (match[1] != "array" and match[2] is None):
        raise OptionError(f"--part: got '{text}', expected such as 2/5, or array in a job array")
    count = None if match[2] is None else int(match[2])
    if match[1] != "array":
        part = JobPart(int(match[1]), int(match[2]))
    else:
        part = _array_task(environment, count)
    if not 1 <= part.number <= part.count:
        raise OptionError(
            f"--part: got {part}, expected 1/{part.count} to {part.count}/{part.count}; tasks are "
            "numbered from 1"
        )
    return part


def _array_task(environment: Mapping[str, str], count: int | None) -> JobPart:
    """Return the task of the job array that this process is.

    Raises:
        OptionError: this process is no task of a job array, or the number of tasks is unknown.
    """
    for scheduler in _SCHEDULERS:
        # LSF calls a job outside an array number 0, SGE "undefined".
        index = _read_number(environment, scheduler.index)
        if index is None or (scheduler.index == "LSB_JOBINDEX" and index == 0):
            continue
        step = _read_number(environment, scheduler.step) or 1
        first = _read_number(environment, scheduler.first)
        if count is not None:
            return JobPart(index + 1 if first == 0 else index, count)
        first = 1 if first is None else first
        last = _read_number(environment, scheduler.last)
        if last is None:
            raise OptionError(
                f"--part array: {scheduler.index} does not say how many tasks there are; give it "
                "as well, such as --part array/40"
            )
        tasks = (last - first) // step + 1
        if (_read_number(environment, scheduler.count) or tasks) != tasks:
            raise OptionError(
                f"--part array: only some tasks from {first} to {last} are in this array; say of "
                f"how many parts it is one, such as --part array/{last}"
            )
        return JobPart((index - first) // step + 1, tasks)
    raise OptionError(
        "--part array: this is no task of a job array (no SLURM_ARRAY_TASK_ID, SGE_TASK_ID, "
        "LSB_JOBINDEX, PBS_ARRAY_INDEX or PBS_ARRAYID); give the part, such as --part 2/5"
    )


def _read_number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    return int(text) if text.isdecimal() else None
