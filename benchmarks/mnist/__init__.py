"""Synthetic tasks of the field: accuracy, time, memory and pixels read, one row per run."""

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
from foveate.errors import OptionError, UnknownName
from foveate.loading.scan import ViewOptions
from foveate.messages.display import Display
from foveate.parts import find
from foveate.parts.options import parse_options
from foveate.runs.schedule import TrainOptions
from foveate.wording import did_you_mean

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
    options: Mapping[str, Mapping[str, Any]],
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
        options: sections ``train``, ``method_options``, ``encoder_options``, ``view``.
        probe_minutes: see `Run`.
        display: progress.

    Raises:
        OptionError, UnknownName: an option that this benchmark, method or section has not, or a
            value that is not allowed.
        ImageNotFound, UnreadableImage: MNIST is not in that folder, or damaged.
    """
    benchmark, settled = _settle(name, recipe)
    counts = _count_canvases(benchmark, n_train, n_test)
    description = "-".join(f"{k}{v}" for k, v in settled.items() if v is not None)
    description += f"-n{counts['n_train']}"
    settings = _parse_options(method, options)
    defaults = benchmark.defaults(method, settled)
    run = Run(
        benchmark=f"{name} {description}",
        method=method,
        view=_view(benchmark.view(settled), {**defaults["view"], **settings["view"]}),
        options=TrainOptions(**(defaults["train"] | settings["train"])),
        method_options=defaults["method"] | settings["method_options"],
        encoder_options=settings["encoder_options"],
        probe_minutes=probe_minutes,
    )
    digits, rows = load_mnist(mnist), []
    for seed in seeds:
        canvases = out / "canvases" / f"{name}-{description}-seed{seed}"
        display.say(f"canvases: {canvases}")
        parts = prepare(benchmark, canvases, digits, **counts, seed=seed, recipe=settled)
        seed_run = replace(run, options=replace(run.options, seed=seed))
        rows.append(run_row(seed_run, benchmark.task(settled), parts, out / "runs", display))
        write_table(out)
    return rows


def _settle(name: str, recipe: Mapping[str, Any]) -> tuple[Benchmark, dict[str, Any]]:
    """Return the benchmark of this name and the options of its canvases."""
    if name not in BENCHMARKS:
        raise UnknownName(f"no benchmark '{name}'.{did_you_mean(name, BENCHMARKS)}")
    benchmark = BENCHMARKS[name]
    for key in recipe:
        if key not in benchmark.recipe:
            raise OptionError(f"{name}: no option '{key}'.{did_you_mean(key, benchmark.recipe)}")
    return benchmark, {**benchmark.recipe, **recipe}


def _count_canvases(
    benchmark: Benchmark, n_train: int | None, n_test: int | None
) -> dict[str, int]:
    """Return the number of canvases of each split."""
    train = benchmark.n_train if n_train is None else n_train
    test = benchmark.n_test if n_test is None else n_test
    if train < 2:
        raise OptionError(
            f"--train-images: got {train}, expected 2 or more, as some of them are for validation"
        )
    if test < 1:
        raise OptionError(f"--test-images: got {test}, expected 1 or more")
    return {"n_train": train, "n_test": test}


def _parse_options(
    method: str, options: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Convert the user's options to their types; unknown ones are refused."""
    for section in options:
        if section not in _SECTIONS:
            name = section.removesuffix("_options")
            known = ", ".join(
                f"--{section_name.removesuffix('_options')}.*" for section_name in _SECTIONS
            )
            raise OptionError(f"--{name}.*: a benchmark settles these itself; allowed: {known}")
    if "seed" in options.get("train", {}):
        raise OptionError("--train.seed: give --seeds, which also seeds the canvases")
    sections = {section: dict(options.get(section, {})) for section in _SECTIONS}
    parts = (
        ("method_options", find("methods", method), "method"),
        ("encoder_options", find("encoders", "small"), "encoder"),
        ("train", TrainOptions, "train"),
    )
    return sections | {key: parse_options(part, sections[key], where) for key, part, where in parts}


def _view(view: View, options: Mapping[str, Any]) -> View:
    """Return the benchmark's view with some numbers changed."""
    for key in options:
        if key not in _VIEW:
            raise OptionError(f"no option 'view.{key}'.{did_you_mean(key, _VIEW)}")
    parsed = ViewOptions(**parse_options(ViewOptions, options, "view"))
    return replace(view, **{key: getattr(parsed, key) for key in options})
