"""The command line. Heavy imports happen inside commands, so ``--help`` answers at once."""

from __future__ import annotations

import sys

import click

from foveate import __version__
from foveate.cli import _bench, _commands
from foveate.cli._words import INTERRUPTED, OK, USER_ERROR
from foveate.errors import FoveateError, did_you_mean
from foveate.memory import use_huge_pages


def main() -> None:
    """Run the command line; errors the user can mend are one line and exit code 1."""
    use_huge_pages()
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


_HELP = """Classify images far larger than a GPU's memory, from image-level labels alone.

\b
Start here:    foveate demo
Your images:   foveate train labels.csv --out runs/first
New images:    foveate predict runs/first slides/ --out predictions
"""


@click.group(
    help=_HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=True,
)
@click.version_option(__version__, prog_name="foveate")
@click.pass_context
def cli(ctx: click.Context, /) -> None:
    """Show the commands."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for command in (
    _commands.demo,
    _commands.train,
    _commands.predict,
    _commands.evaluate,
    _commands.methods,
    _commands.doctor,
    _bench.bench,
):
    cli.add_command(command)
