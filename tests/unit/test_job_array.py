"""Parts of a job array are read from the environment variables of each scheduler."""

from __future__ import annotations

import pickle

import pytest

from foveate import errors
from foveate.errors import FoveateError, OptionError, TooManyOpen
from foveate.prediction.job_array import JobPart, parse_part
from foveate.prediction.ray_workers import share_out

SLURM = {"SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "39", "SLURM_ARRAY_TASK_COUNT": "40"}
SGE = {"SGE_TASK_FIRST": "1", "SGE_TASK_LAST": "9", "SGE_TASK_STEPSIZE": "2"}


@pytest.mark.parametrize(
    ("text", "environment", "part"),
    [
        ("2/5", {}, "2/5"),
        (" 5/5 ", {"SLURM_ARRAY_TASK_ID": "3"}, "5/5"),
        ("array", {**SLURM, "SLURM_ARRAY_TASK_ID": "0"}, "1/40"),
        ("array", {**SLURM, "SLURM_ARRAY_TASK_ID": "39"}, "40/40"),
        ("array", {**SGE, "SGE_TASK_ID": "9"}, "5/5"),
        ("array", {"LSB_JOBINDEX": "3", "LSB_JOBINDEX_END": "8"}, "3/8"),
        ("array/40", {"PBS_ARRAY_INDEX": "7"}, "7/40"),
        ("array/40", {"PBS_ARRAYID": "40"}, "40/40"),
        ("array/40", {**SLURM, "SLURM_ARRAY_TASK_ID": "39"}, "40/40"),
        (
            "array",
            {"SGE_TASK_ID": "undefined", "LSB_JOBINDEX": "2", "LSB_JOBINDEX_END": "2"},
            "2/2",
        ),
    ],
)
def test_the_part_is_read_from_each_scheduler(
    text: str, environment: dict[str, str], part: str
) -> None:
    assert str(parse_part(text, environment)) == part


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("2", {}, "got '2', expected such as 2/5"),
        ("0/5", {}, "got 0/5, expected 1/5 to 5/5"),
        ("6/5", {}, "got 6/5"),
        ("1/0", {}, "got 1/0"),
        ("array", {}, "this is no task of a job array"),
        ("array", {"LSB_JOBINDEX": "0"}, "this is no task of a job array"),
        ("array", {"PBS_ARRAY_INDEX": "7"}, "does not say how many tasks there are"),
        (
            "array",
            {**SLURM, "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "2"},
            "only some tasks from 0 to 39 are in this array",
        ),
    ],
)
def test_invalid_parts_are_refused(text: str, environment: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_part(text, environment)


def test_parts_hold_each_image_once() -> None:
    parts = [JobPart(k, 3).pick(range(8)) for k in (1, 2, 3)]
    assert sorted(i for part in parts for i in part) == list(range(8))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("nodes", "n", "gpu", "expected"),
    [
        ([{"CPU": 8}], 2, True, (2, 4.0, 0.0)),
        ([{"CPU": 2}], 4, True, (4, 0.5, 0.0)),
        ([{"CPU": 8}, {"CPU": 4}], 3, False, (3, 4.0, 0.0)),
        ([{"CPU": 8}, {"CPU": 3}], 0, False, (11, 1.0, 0.0)),
        ([{"CPU": 16, "GPU": 4}, {"CPU": 64}], 0, True, (4, 4.0, 1.0)),
        ([{"CPU": 16, "GPU": 1}], 2, True, (2, 8.0, 0.5)),
        ([{"CPU": 16, "GPU": 4}], 8, False, (8, 2.0, 0.0)),
    ],
)
def test_ray_workers_get_places_on_one_node(
    nodes: list[dict[str, float]], n: int, gpu: bool, expected: tuple[int, float, float]
) -> None:
    count, options = share_out(nodes, n, gpu=gpu)
    assert (count, options["num_cpus"], options["num_gpus"]) == expected


def test_every_error_can_be_pickled() -> None:
    kinds = [
        k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, FoveateError)
    ]
    assert len(kinds) > 10
    for kind in kinds:
        error = TooManyOpen() if kind is TooManyOpen else kind("S1.svs: is damaged")
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is (FoveateError if kind is TooManyOpen else kind)
        assert str(again) == str(error)
