"""The command line. Heavy imports happen inside commands, so ``--help`` answers at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveate import __version__
from foveate.errors import FoveateError, OptionError, did_you_mean

if TYPE_CHECKING:
    from foveate.experiment import Outcome

OK, USER_ERROR, PARTIAL, INTERRUPTED = 0, 1, 2, 130
_PARTS = ("method", "encoder", "task")
_SECTIONS = ("train", "view", "split", "table", *_PARTS)


def main() -> None:
    """Run the command line; errors the user can mend are one line and exit code 1."""
    try:
        code = cli.main(prog_name="foveate", standalone_mode=False)
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.UsageError as error:
        code = _complain(f"{_usage(error)} See {_path(error)} --help")
    except click.ClickException as error:
        code = _complain(error.format_message())
    except FoveateError as error:
        code = _complain(str(error))
    except OSError as error:
        code = _complain(f"{error.filename or 'the system'}: {error.strerror or error}")
    except (KeyboardInterrupt, click.Abort):
        click.echo("\ninterrupted. The same command continues where this one stopped.", err=True)
        code = INTERRUPTED
    sys.exit(code if isinstance(code, int) else OK)


def _complain(message: str) -> int:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    return USER_ERROR


def _usage(error: click.UsageError) -> str:
    """What is wrong with the words of the command, in the manner of our own errors."""
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        known = [word for param in error.ctx.command.params for word in param.opts]
        return f"no option '{error.option_name}'.{did_you_mean(error.option_name, known)}"
    message = error.format_message().rstrip(".")
    return f"{message[:1].lower()}{message[1:]}{'' if message.endswith('?') else '.'}"


def _path(error: click.UsageError) -> str:
    return "foveate" if error.ctx is None else error.ctx.command_path


class _Sectioned(click.Command):
    """A command that also takes ``--section.key value`` for every key of the config."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take these out, so that their values are not taken for the table."""
        plain: list[str] = []
        rest = list(args)
        ctx.obj = {}
        while rest:
            word = rest.pop(0)
            if not word.startswith("--") or "." not in word.partition("=")[0]:
                plain.append(word)
                continue
            key, equals, value = word.partition("=")
            if not equals:
                if not rest:
                    raise OptionError(f"{key} needs a value")
                value = rest.pop(0)
            _put_section(ctx.obj, key, value)
        return super().parse_args(ctx, plain)


def _put_section(into: dict[str, Any], key: str, value: str) -> None:
    section, _, name = key.removeprefix("--").partition(".")
    if section not in _SECTIONS:
        raise OptionError(f"no option '{key}': no section '{section}'.{_near(section)}")
    if section in _PARTS:
        section += "_options"
    into.setdefault(section, {})[name.replace("-", "_")] = value


def _near(section: str) -> str:
    return did_you_mean(section, _SECTIONS)


def _add_plugins(_: click.Context, __: click.Parameter, folders: Sequence[Path]) -> None:
    from foveate.plugins import add_plugin_folder

    for folder in folders:
        add_plugin_folder(folder)


_plugins = click.option(
    "--plugins",
    type=click.Path(path_type=Path),
    multiple=True,
    expose_value=False,
    callback=_add_plugins,
    is_eager=True,
    help="Folder with methods/, readers/, tasks/ or encoders/ of your own. Its code is run.",
)


_spacing = click.option(
    "--spacing-um",
    "--view.assume-spacing-um",
    "spacing_um",
    type=click.FloatRange(min=0, min_open=True),
    help="Of slides that state none (micrometres per pixel).",
)
_device = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    show_default=True,
)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=True,
)
@click.version_option(__version__, prog_name="foveate")
@click.pass_context
def cli(ctx: click.Context, /) -> None:
    r"""Classify images far larger than a GPU's memory, from image-level labels alone.

    \b
    Start here:    foveate demo
    Your images:   foveate train labels.csv --out runs/first
    New images:    foveate predict runs/first slides/ --out predictions
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@cli.command(short_help="Synthetic gigapixel cohort, trained and reported, on a CPU.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("foveate-demo"), show_default=True
)
@click.option("--seed", default=0, show_default=True, help="Of the cohort, the split and training.")
@click.option("--slides", default=None, type=int, help="How many slides to write.")
def demo(out: Path, seed: int, slides: int | None) -> int:
    """Write a synthetic gigapixel cohort, train on it, and report, in minutes on a CPU.

    What decides is visible at full resolution only: `glimpse` finds it, `downsampled` cannot.
    """
    from foveate.demo import run_demo
    from foveate.terminal import Terminal

    with Terminal() as terminal:
        outcome = run_demo(out, terminal, seed=seed, n_slides=slides)
    _show_scores(outcome.metrics)
    click.echo(f"compared: {out / 'downsampled' / 'report.html'} (the whole slide shrunk)")
    _say_next(outcome, outcome.folder / "report.html")
    click.echo(f"          foveate train {out / 'cohort' / 'labels.csv'} --method abmil --out mine")
    return PARTIAL if outcome.n_quarantined else OK


@cli.command(cls=_Sectioned, short_help="Train on a TABLE of images and labels, and report.")
@click.argument("table", type=click.Path(path_type=Path), required=False)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--config", type=click.Path(path_type=Path), help="YAML file; flags override it.")
@click.option("--method", help="See `foveate methods`.  [default: glimpse]")
@click.option("--encoder", help="'small', or any network of timm.  [default: resnet18]")
@click.option("--task", help="binary, multiclass or auto.  [default: auto]")
@click.option("--path", "column", help="Column of the images' paths, where the guess is wrong.")
@click.option("--label", help="Label column, where the guess is wrong.")
@click.option("--patient", help="Column that groups images of one patient.")
@click.option(
    "--images", type=click.Path(path_type=Path), help="Folder that paths are relative to."
)
@click.option("--classes", help="Keep only these labels, comma-separated.")
@click.option("--folds", type=int, help="Cross-validation folds; 1 is a single hold-out.")
@click.option("--epochs", type=int, help="At most so many.")
@click.option("--seed", type=int, help="Of the split and of training.")
@click.option("--heatmaps", type=int, help="How many test images get pictures.  [default: 40]")
@click.option("--permute-labels", is_flag=True, help="Self-test: shuffled labels must give chance.")
@_plugins
@click.pass_context
def train(ctx: click.Context, /, out: Path, config: Path | None, **flags: Any) -> int:
    r"""Train on a TABLE of images and labels, evaluate on patients never seen, and report.

    The same command continues a run that was stopped. Every key of config.yaml is also a flag:

    \b
      --train.lr 1e-4  --train.batch-size 2  --train.patience 20
      --view.spacing-um 0.5  --view.patch-px 256  --view.fit 1024x1024
      --split.test-fraction 0.3  --task.positive malignant
      --method.patches 32        (options of the method: foveate methods glimpse)
    """
    from foveate.config import build_config, load_yaml

    given: dict[str, Any] = {} if config is None else load_yaml(config)
    _merge(given, _named_flags(flags))
    _merge(given, ctx.obj)
    if "path" not in given.get("table", {}):
        raise OptionError("no table: foveate train labels.csv --out RUN")
    return _train(build_config(given), out)


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@_spacing
@click.option("--heatmaps", default=1000, show_default=True, help="How many images get pictures.")
@_device
@_plugins
def predict(
    run: Path,
    images: tuple[Path, ...],
    out: Path,
    spacing_um: float | None,
    heatmaps: int,
    device: str,
) -> int:
    """Predict IMAGES (files, folders or a table) with the trained RUN.

    Writes predictions.csv, and a heatmap and GeoJSON for QuPath per image.
    """
    from foveate.inference import predict_paths
    from foveate.terminal import Terminal

    with Terminal() as terminal:
        summary = predict_paths(
            run,
            images,
            out,
            terminal,
            assume_spacing_um=spacing_um,
            n_heatmaps=heatmaps,
            device=device,
        )
    for row in summary.rows:
        shares = "  ".join(
            f"{k[5:]} {float(v):.3f}" for k, v in row.items() if k.startswith("prob_")
        )
        called = f"; threshold {float(row['threshold']):.3f}" if row["threshold"] else ""
        click.echo(f"{row['image_id']}: {row['predicted']}  ({shares}{called})")
    click.echo(f"\nwritten: {out / 'predictions.csv'}, pictures in {out / 'heatmaps'}")
    return PARTIAL if summary.failed else OK


@cli.command(short_help="Score the trained RUN on a labelled TABLE it has never seen.")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("table", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--label", help="Label column, where the guess is wrong.")
@click.option(
    "--images", type=click.Path(path_type=Path), help="Folder that paths are relative to."
)
@_spacing
@_device
@_plugins
def evaluate(
    run: Path,
    table: Path,
    out: Path,
    label: str | None,
    images: Path | None,
    spacing_um: float | None,
    device: str,
) -> int:
    """Score the trained RUN on a labelled TABLE that it has never seen."""
    from foveate.inference import evaluate_table
    from foveate.terminal import Terminal

    with Terminal() as terminal:
        metrics, failed = evaluate_table(
            run,
            table,
            out,
            terminal,
            label=label,
            images=images,
            assume_spacing_um=spacing_um,
            device=device,
        )
    _show_scores(metrics)
    click.echo(f"\nwritten: {out / 'metrics.json'}, {out / 'predictions.csv'}")
    return PARTIAL if failed else OK


@cli.command()
@click.argument("name", required=False)
@_plugins
def methods(name: str | None) -> None:
    """List the methods, or the options of one."""
    from foveate.plugins import find, names, options

    if name is None:
        for each in names("methods"):
            click.echo(f"{each:<14} {find('methods', each).summary}")
        click.echo("\noptions of one: foveate methods NAME")
        return
    part = find("methods", name)
    click.echo(f"{name}: {part.summary}\n\n{part.__doc__}\n")
    for option in options(part).values():
        click.echo(f"  --method.{option.name.replace('_', '-'):<20} default {option.default}")


@cli.command(short_help="Is the installation healthy, and how fast is it?")
@_plugins
def doctor() -> int:
    """Say what is installed, which readers work, and how fast disk, decoder and device are."""
    from foveate.doctor import examine

    healthy = True
    for finding in examine():
        click.echo(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.name:<18} {finding.text}")
        healthy &= finding.ok
    return OK if healthy else USER_ERROR


def _train(config: Any, out: Path) -> int:
    from foveate.experiment import run_experiment
    from foveate.report import write_progress, write_report
    from foveate.terminal import Terminal

    with Terminal() as terminal:
        outcome = run_experiment(config, out, terminal, after_epoch=write_progress)
        page = write_report(out)
    _show_scores(outcome.metrics)
    _say_next(outcome, page)
    return PARTIAL if outcome.n_quarantined else OK


def _say_next(outcome: Outcome, page: Path) -> None:
    click.echo(f"\nreport:   {page}\nheatmaps: {outcome.folder / 'heatmaps'}")
    if outcome.n_quarantined:
        click.echo(
            f"set aside: {outcome.n_quarantined} images, reasons in "
            f"{outcome.folder / 'quarantine.csv'} (exit code 2)"
        )
    click.echo(f"next:     foveate predict {outcome.folder} NEW_IMAGES --out predictions")


def _show_scores(metrics: dict[str, Any]) -> None:
    click.echo(
        f"{metrics['n_images']} images of {metrics['n_patients']} patients that training never saw:"
    )
    for name, score in metrics["metrics"].items():
        click.echo(
            f"  {name:<20} {score['value']:.3f}  (95 % interval {score['lo']:.3f} to "
            f"{score['hi']:.3f})"
        )


def _named_flags(flags: dict[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    places = {
        "table": ("table", "path"),
        "column": ("table", "image"),
        "label": ("table", "label"),
        "patient": ("table", "patient"),
        "images": ("table", "images"),
        "classes": ("table", "classes"),
        "folds": ("split", "folds"),
        "epochs": ("train", "epochs"),
    }
    for name, value in flags.items():
        if value is None or value is False:
            continue
        if name in places:
            section, key = places[name]
            given.setdefault(section, {})[key] = str(value) if isinstance(value, Path) else value
        elif name == "seed":
            given.setdefault("train", {})["seed"] = value
            given.setdefault("split", {})["seed"] = value
        else:
            given[name] = value
    return given


def _merge(into: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            into[key] |= value
        else:
            into[key] = value


if __name__ == "__main__":
    main()
