"""``python -m benchmarks``: commands for synthetic tasks, memory and streaming."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from foveate import cli
from foveate.cli.flags import plugins_flag
from foveate.cli.words import OK, Sectioned
from foveate.errors import OptionError
from foveate.parts import add_plugin_folder

_HELP = """Run a benchmark; each method and seed is a row of OUT/results.csv.

\b
MNIST comes from a folder that you name: the four idx files, packed or not. Train
and test digits never mix. The same command continues a run that was stopped;
finished rows are kept.

\b
  python -m benchmarks megapixel-mnist --mnist mnist/ --out out/mega --seeds 0,1,2
  python -m benchmarks needle-mnist --mnist mnist/ --out out/needle --method glimpse --side 512
  python -m benchmarks memory --out out/memory --method ips --sides 4096,16384 --kept 100,1000

Which methods there are: foveate methods --plugins benchmarks.
"""

_TASK_HELP = """{summary}

\b
Canvases are written once, into OUT/canvases; every seed has its own. A validation part
(8 % of the training canvases) picks the weights; the test part is scored once, as is and
with patches trading places. OUT/results.csv has a row per method and seed: test scores,
minutes, peak memory, pixels read, the epoch in which the loss left chance (0: never).

\b
Options of method, encoder (`small`), training and reading are flags, too:
  --method.patches 32  --encoder.width 32  --train.lr 1e-3  --view.patch-px 64
"""

_MEMORY_HELP = """Measure what one training step holds in memory, by image size and patches kept.

\b
Each row is a fresh process on a canvas with something in every patch; no MNIST is needed.
`step_mib` is the peak of the process less what it held before the step (on a GPU see
`device_peak_mib`). The same command goes on with the rows that are missing.

\b
  python -m benchmarks memory --out out/memory --method ips --sides 4096,16384 --kept 100,1000
  python -m benchmarks memory --out out/memory --method glimpse --method.patches 64
"""

_STREAMING_HELP = """Measure training steps that stream: exactness, seconds, memory.

\b
Each row is a fresh process. `bound_seconds` is the arithmetic of forward, forward again and
backward at the rate of plain steps on a part of the image, measured in the same run. With
--plain, plain and streamed steps take turns and their results are compared.

\b
  python -m benchmarks streaming --out out/streaming --sides 2048,4096 --plain
  python -m benchmarks streaming --out out/streaming --image slide.tif --group 4 --bf16
  python -m benchmarks streaming --out out/streaming --encoder resnet3d --sides 128,512
"""

_METHODS = "See `foveate methods --plugins benchmarks`."

_METHOD = {"megapixel-mnist": "centred_glimpse"}
"""Default method of each benchmark whose default is not `glimpse`."""

Flag = Callable[[Any], Any]


def _side(default: int, *allowed: int) -> Flag:
    """Return the flag for the side of an image in pixels."""
    kind = click.Choice([str(side) for side in allowed]) if allowed else click.INT
    return click.option("--side", type=kind, help=f"Of the canvas, pixels.  [default: {default}]")


_RECIPES: Mapping[str, tuple[str, tuple[Flag, ...]]] = {
    "megapixel-mnist": (
        "Five digits, three of them alike, among noise: majority, largest, topmost, all.",
        (
            click.option(
                "--variant",
                type=click.Choice(["ips", "ats"]),
                help="Of which paper; they are not comparable.  [default: ips]",
            ),
            _side(1500),
            click.option("--noise", type=int, help="Patches of noise a canvas.  [default: 50]"),
        ),
    ),
    "ultra-mnist": (
        "Three to five digits of wildly different size; the label is their sum.",
        (_side(512, 512, 4000),),
    ),
    "needle-mnist": (
        "Is there a three among all the other digits? Its share falls as the canvas grows.",
        (
            _side(256, 64, 128, 256, 512, 1024, 2048, 4096, 6144),
            click.option(
                "--clutter",
                type=click.IntRange(0),
                help="Other digits a canvas.  [default: as published for the side, 25 at 256]",
            ),
        ),
    ),
    "spatial-bag": (
        "Fifty digits: only how they lie decides (B, C), or which they are (A).",
        (
            click.option(
                "--task",
                type=click.Choice(["A", "B", "C"]),
                help="A: is there a nine; B: do the odd digits lie close together; C: do the odd "
                "or the even ones (then places alone tell nothing).  [default: B]",
            ),
            _side(4096),
        ),
    ),
}

_mnist = click.option(
    "--mnist", type=click.Path(path_type=Path), required=True, help="Folder of the idx files."
)
_out = click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of the results."
)


@click.group(
    help=_HELP,
    short_help="Synthetic tasks of the field: accuracy, time, memory, pixels read.",
    invoke_without_command=True,
)
@click.pass_context
def bench(ctx: click.Context, /) -> None:
    """Group the commands of the benchmarks."""
    add_plugin_folder(Path(__file__).resolve().parent)
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def _add(name: str, summary: str, own_flags: tuple[Flag, ...]) -> None:
    """Add the command of one benchmark task to the group."""

    @click.option(
        "--method",
        default=_METHOD.get(name, "glimpse"),
        show_default=True,
        help=_METHODS,
    )
    @click.option("--seeds", default="0", show_default=True, help="One row each: 0,1,2.")
    @click.option(
        "--train-images",
        type=int,
        help="Canvases to train on, validation included. [default: 2000]",
    )
    @click.option("--test-images", type=int, help="Canvases to test on.  [default: 1000]")
    @click.option("--epochs", type=int, help="At most so many; by default the benchmark's own.")
    @click.option("--probe-minutes", type=float, help="Score the test part after so long, too.")
    @plugins_flag
    @click.pass_context
    def command(ctx: click.Context, /, **flags: Any) -> int:
        return _sweep(name, {k: dict(v) for k, v in ctx.obj.items()}, flags)

    for flag in reversed((_mnist, _out, *own_flags)):
        command = flag(command)
    help_text = _TASK_HELP.format(summary=summary)
    bench.command(name, cls=Sectioned, help=help_text, short_help=summary)(command)


def _sweep(name: str, options: dict[str, dict[str, Any]], flags: dict[str, Any]) -> int:
    """Run one benchmark task for all seeds and print its rows; returns the exit code."""
    from benchmarks.mnist import sweep
    from foveate.cli.terminal import Terminal

    names = ("variant", "task", "side", "noise", "clutter")
    recipe = {k: flags[k] for k in names if flags.get(k) is not None}
    if "side" in recipe:
        recipe["side"] = int(recipe["side"])
    if flags["epochs"] is not None:
        options.setdefault("train", {})["epochs"] = flags["epochs"]
    with Terminal() as terminal:
        rows = sweep(
            name,
            flags["mnist"],
            flags["out"],
            method=flags["method"],
            seeds=_numbers("--seeds", flags["seeds"]),
            n_train=flags["train_images"],
            n_test=flags["test_images"],
            recipe=recipe,
            options=options,
            probe_minutes=flags["probe_minutes"],
            display=terminal,
        )
    for row in rows:
        scores = "  ".join(f"{k} {v}" for k, v in row.items() if k.startswith("test_"))
        click.echo(f"{name} {row['method']} seed {row['seed']}: {scores}")
    click.echo(f"\nwritten: {flags['out'] / 'results.csv'}")
    return OK


for _name, (_summary, _own) in _RECIPES.items():
    _add(_name, _summary, _own)


@bench.command(cls=Sectioned, help=_MEMORY_HELP, short_help="What one training step holds.")
@_out
@click.option(
    "--method",
    default="glimpse",
    show_default=True,
    help=_METHODS,
)
@click.option("--sides", default="4096,16384", show_default=True, help="Of the canvases, pixels.")
@click.option("--patch-px", default=256, show_default=True, help="Side of a patch.")
@click.option("--batch-size", default=1, show_default=True, help="Images a step.")
@click.option("--kept", help="Patches that gradients flow through, for methods with that option.")
@click.option("--width", type=int, help="Of the encoder `small`; short for --encoder.width.")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where."
)
@plugins_flag
@click.pass_context
def memory(ctx: click.Context, /, out: Path, method: str, kept: str | None, **flags: Any) -> int:
    """Measure training steps."""
    from benchmarks.memory import sweep_memory
    from foveate.cli.terminal import Terminal

    for section in ctx.obj:
        if section not in ("method_options", "encoder_options"):
            name = section.removesuffix("_options")
            raise OptionError(f"--{name}.*: nothing of that is measured; see --help")
    fixed = ctx.obj.get("method_options", {})
    encoder = ctx.obj.get("encoder_options", {})
    encoder |= {} if flags["width"] is None else {"width": flags["width"]}
    sets = [fixed] if kept is None else [fixed | {"kept": n} for n in _numbers("--kept", kept)]
    with Terminal() as terminal:
        rows = sweep_memory(
            out,
            method=method,
            sides=_numbers("--sides", flags["sides"]),
            batch_size=flags["batch_size"],
            patch_px=flags["patch_px"],
            encoder_options=encoder,
            method_options=sets,
            device=flags["device"],
            display=terminal,
        )
    for row in rows:
        extra = "".join(f"  {key} {row[key]}" for key in sets[0] if key in row)
        top = row.get("device_peak_mib", row["step_mib"])
        click.echo(
            f"{row['side']:>7} px  {row['gigapixels']:>8} gigapixels  {row['patches']:>8} patches"
            f"{extra}:  {top:.0f} MiB a step, {row['rss_peak_mib']:.0f} MiB in all, "
            f"{row['seconds']:.1f} s"
        )
    click.echo(f"\nwritten: {out / 'results.csv'}")
    return OK


@bench.command(cls=Sectioned, help=_STREAMING_HELP, short_help="Exactness, time, memory.")
@_out
@click.option("--encoder", default="resnet18", show_default=True, help="resnet3d for volumes.")
@click.option("--sides", default="2048,4096", show_default=True, help="Of the images, pixels.")
@click.option("--budget-mib", default=2048, show_default=True, help="What a step may hold.")
@click.option("--tile", default=0, help="Side of a tile, instead of those that fit the budget.")
@click.option("--plain", is_flag=True, help="Take turns with the plain step, which must fit.")
@click.option("--bf16", is_flag=True, help="In half precision.")
@click.option("--image", type=click.Path(path_type=Path), help="Read this file instead of noise.")
@click.option("--skip-background", is_flag=True, help="Leave out the background of that file.")
@click.option("--group", default=1, show_default=True, help="Cells a side averaged into one.")
@click.option("--scratch", help="Folder on disk for maps that are too large for memory.")
@click.option(
    "--frugal", is_flag=True, help="Count what is held, not what the allocator keeps; slower."
)
def streaming(out: Path, sides: str, image: Path | None, **flags: Any) -> int:
    """Measure streamed training steps."""
    from benchmarks.streaming import Streaming, sweep_streaming
    from foveate.cli.terminal import Terminal

    every = _numbers("--sides", sides) if image is None else [1 << 20]
    file = None if image is None else str(image.resolve())
    with Terminal() as terminal:
        rows = sweep_streaming(
            out,
            steps=[Streaming(side=side, image=file, **flags) for side in every],
            display=terminal,
        )
    for row in rows:
        click.echo(f"{row['shape']} px: {row['tiles']}")
        click.echo(
            f"  {row['seconds']} s, {row['to_bound']} × the bound of {row['bound_seconds']} s; "
            f"{row['step_mib']:.0f} MiB a step, {row['rss_peak_mib']:.0f} MiB in all"
        )
        if "to_plain" in row:
            click.echo(
                f"  {row['to_plain']} × the plain step of {row['plain_seconds']} s; errors: output "
                f"{row['output_error']:.1e}, gradients {row['gradient_error']:.1e}"
            )
    click.echo(f"\nwritten: {out / 'results.csv'}")
    return OK


def _numbers(flag: str, text: str) -> list[int]:
    """Parse comma-separated integers of a flag."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise OptionError(f"{flag}: got '{text}', expected whole numbers such as 0,1,2") from None


def main() -> None:
    """Run the command line."""
    cli.main(bench, "python -m benchmarks")


if __name__ == "__main__":
    main()
