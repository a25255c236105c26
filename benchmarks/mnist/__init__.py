"""Synthetic tasks of the field: accuracy, time, memory and pixels read, one row each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.mnist import megapixel_mnist, needle_mnist, spatial_bag, ultra_mnist
from benchmarks.mnist.base import Benchmark, prepare
from benchmarks.mnist.idx import load_mnist
from benchmarks.mnist.run import Run, run_row, write_table
from foveate.batch import View
from foveate.errors import OptionError, UnknownName, did_you_mean
from foveate.loading.scan import ViewOptions
from foveate.messages.display import Display
from foveate.parts import find, parse_options
from foveate.runs.schedule import TrainOptions

BENCHMARKS: Mapping[str, Benchmark] = {
    "megapixel-mnist": megapixel_mnist.BENCHMARK,
    "ultra-mnist": ultra_mnist.BENCHMARK,
    "needle-mnist": needle_mnist.BENCHMARK,
    "spatial-bag": spatial_bag.BENCHMARK,
}

_SECTIONS = ("train", "view", "method_options", "encoder_options")
_VIEW = ("spacing_um", "patch_px", "glimpse_spacing_um")


def sweep(
    name: str,
    mnist: Path,
    out: Path,
    *,
    method: str,
    seeds: Sequence[int],
    n_train: int | None,
    n_test: int | None,
    recipe: Mapping[str, Any],
    given: Mapping[str, Mapping[str, Any]],
    probe_minutes: float | None,
    display: Display,
) -> list[dict[str, Any]]:
    """Run every seed on canvases of its own and return the rows, which ``OUT/results.csv`` holds.

    Args:
        name: of the benchmark.
        mnist: folder of the idx files.
        out: where canvases, runs and the table go.
        method: which method.
        seeds: of canvases and training.
        n_train: canvases to train on; None for the benchmark's own number.
        n_test: canvases to test on.
        recipe: options of the canvases that differ from the benchmark's.
        given: sections ``train``, ``method_options``, ``encoder_options``, ``view``.
        probe_minutes: see `Run`.
        display: progress.

    Raises:
        OptionError, UnknownName: an option that this benchmark, method or section has not, or a
            value that is not allowed.
        ImageNotFound, UnreadableImage: MNIST is not in that folder, or damaged.
    """
    benchmark, settled = _settle(name, recipe)
    counts = _counted(benchmark, n_train, n_test)
    said = "-".join(f"{k}{v}" for k, v in settled.items() if v is not None)
    said += f"-n{counts['n_train']}"
    settings = _given(method, given)
    defaults = benchmark.defaults(method, settled)
    run = Run(
        benchmark=f"{name} {said}",
        method=method,
        view=_view(benchmark.view(settled), {**defaults["view"], **settings["view"]}),
        options=TrainOptions(**(defaults["train"] | settings["train"])),
        method_options=defaults["method"] | settings["method_options"],
        encoder_options=settings["encoder_options"],
        probe_minutes=probe_minutes,
    )
    digits, rows = load_mnist(mnist), []
    for seed in seeds:
        canvases = out / "canvases" / f"{name}-{said}-seed{seed}"
        display.say(f"canvases: {canvases}")
        parts = prepare(benchmark, canvases, digits, **counts, seed=seed, recipe=settled)
        own = replace(run, options=replace(run.options, seed=seed))
        rows.append(run_row(own, benchmark.task(settled), parts, out / "runs", display))
        write_table(out)
    return rows


def _settle(name: str, recipe: Mapping[str, Any]) -> tuple[Benchmark, dict[str, Any]]:
    """The benchmark of this name and the options of its canvases."""
    if name not in BENCHMARKS:
        raise UnknownName(f"no benchmark '{name}'.{did_you_mean(name, BENCHMARKS)}")
    benchmark = BENCHMARKS[name]
    for key in recipe:
        if key not in benchmark.recipe:
            raise OptionError(f"{name}: no option '{key}'.{did_you_mean(key, benchmark.recipe)}")
    return benchmark, {**benchmark.recipe, **recipe}


def _counted(benchmark: Benchmark, n_train: int | None, n_test: int | None) -> dict[str, int]:
    """How many canvases each split has."""
    train = benchmark.n_train if n_train is None else n_train
    test = benchmark.n_test if n_test is None else n_test
    if train < 2:
        raise OptionError(
            f"--train-images: got {train}, expected 2 or more, as some of them are for validation"
        )
    if test < 1:
        raise OptionError(f"--test-images: got {test}, expected 1 or more")
    return {"n_train": train, "n_test": test}


def _given(method: str, given: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What a user says, of the right types; nothing of it may go unheard."""
    for section in given:
        if section not in _SECTIONS:
            name = section.removesuffix("_options")
            known = ", ".join(f"--{each.removesuffix('_options')}.*" for each in _SECTIONS)
            raise OptionError(f"--{name}.*: a benchmark settles these itself; allowed: {known}")
    if "seed" in given.get("train", {}):
        raise OptionError("--train.seed: give --seeds, which also seeds the canvases")
    found = {section: dict(given.get(section, {})) for section in _SECTIONS}
    parts = (
        ("method_options", find("methods", method), "method"),
        ("encoder_options", find("encoders", "small"), "encoder"),
        ("train", TrainOptions, "train"),
    )
    return found | {key: parse_options(part, found[key], where) for key, part, where in parts}


def _view(view: View, given: Mapping[str, Any]) -> View:
    """The benchmark's geometry of reading with some of its numbers changed."""
    for key in given:
        if key not in _VIEW:
            raise OptionError(f"no option 'view.{key}'.{did_you_mean(key, _VIEW)}")
    wanted = ViewOptions(**parse_options(ViewOptions, given, "view"))
    return replace(view, **{key: getattr(wanted, key) for key in given})
