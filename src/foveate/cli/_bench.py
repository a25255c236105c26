"""``foveate bench``: synthetic tasks of the field, one command a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from foveate.cli._words import OK, Sectioned, plugins_flag
from foveate.errors import OptionError

_TASKS = ("megapixel-mnist", "ultra-mnist", "needle-mnist", "spatial-bag")


@click.group(short_help="Synthetic tasks of the field: accuracy, time, memory, pixels read.")
def bench() -> None:
    r"""Run a benchmark; each method and seed is a row of OUT/results.csv.

    \b
    MNIST comes from a folder that you name: the four idx files, packed or not. Train and test
    digits never mix. The same command continues a run that was stopped; finished rows are kept.

    \b
      foveate bench megapixel-mnist --mnist mnist/ --out bench/mega --method ips --seeds 0,1,2
      foveate bench needle-mnist --mnist mnist/ --out bench/needle --method glimpse --side 512
      foveate bench memory --out bench/memory --method ips
    """


def _add(name: str) -> None:
    @bench.command(name, cls=Sectioned)
    @click.option("--mnist", type=click.Path(path_type=Path), required=True)
    @click.option("--out", type=click.Path(path_type=Path), required=True)
    @click.option("--method", default="glimpse", show_default=True, help="See `foveate methods`.")
    @click.option("--seeds", default="0", show_default=True, help="Comma-separated.")
    @click.option("--train-images", type=int, help="Canvases to train on, validation included.")
    @click.option("--test-images", type=int)
    @click.option("--variant", type=click.Choice(["ips", "ats"]), help="Of megapixel-mnist.")
    @click.option("--task", type=click.Choice(["A", "B"]), help="Of spatial-bag.")
    @click.option("--side", type=int, help="Of the canvas, pixels.")
    @click.option("--noise", type=int, help="Patterns per canvas of megapixel-mnist.")
    @click.option("--epochs", type=int)
    @click.option("--probe-minutes", type=float, help="Score the test part after so long, too.")
    @plugins_flag
    @click.pass_context
    def command(ctx: click.Context, /, **flags: Any) -> int:
        """Train a method on a benchmark's canvases and score it."""
        from foveate.benchmark import sweep
        from foveate.terminal import Terminal

        recipe = {k: flags[k] for k in ("variant", "task", "side", "noise") if flags[k] is not None}
        given = {k: dict(v) for k, v in ctx.obj.items()}
        if flags["epochs"] is not None:
            given.setdefault("train", {})["epochs"] = flags["epochs"]
        with Terminal() as terminal:
            rows = sweep(
                name,
                flags["mnist"],
                flags["out"],
                method=flags["method"],
                seeds=_seeds(flags["seeds"]),
                n_train=flags["train_images"],
                n_test=flags["test_images"],
                recipe=recipe,
                given=given,
                probe_minutes=flags["probe_minutes"],
                display=terminal,
            )
        for row in rows:
            said = "  ".join(f"{k} {v}" for k, v in row.items() if k.startswith("test_"))
            click.echo(f"{name} {row['method']} seed {row['seed']}: {said}")
        click.echo(f"\nwritten: {flags['out'] / 'results.csv'}")
        return OK


def _seeds(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise OptionError(f"--seeds: got '{text}', expected whole numbers such as 0,1,2") from None


for _name in _TASKS:
    _add(_name)
