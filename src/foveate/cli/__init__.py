"""The command line. Heavy imports happen inside commands, so ``--help`` answers at once."""

from __future__ import annotations

import logging
import sys

import click

from foveate._version import __version__
from foveate.cli import commands
from foveate.cli.demo import demo
from foveate.cli.features import features
from foveate.cli.interruption import run_interruptibly
from foveate.cli.output import outlasting_readers
from foveate.cli.words import OK, Sectioned
from foveate.errors import ArrayError, FoveateError, PartFault, converting, explain_shortage
from foveate.memory import allow_more_files, use_huge_pages, wait_briefly
from foveate.wording import did_you_mean


def main(command: click.Command | None = None, name: str = "foveate") -> None:
    """Run the command line; an error that the user can correct is one line and exit code 1.

    Args:
        command: command to run, `cli` by default.
        name: name of the program in messages.
    """
    with outlasting_readers():
        code = run_interruptibly(lambda: _run(cli if command is None else command, name))
    sys.exit(code)


def _run(command: click.Command, name: str) -> int | str:
    """Run a command; return its exit code, or the message of an error."""
    try:
        use_huge_pages()
        wait_briefly()
        allow_more_files()
        _silence_libraries()
        with converting(name, _explain_last):
            code = command.main(prog_name=name, standalone_mode=False)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.Abort:  # so click converts an interruption
        raise KeyboardInterrupt from None
    except click.UsageError as error:
        path = name if error.ctx is None else error.ctx.command_path
        return f"{_describe_usage_error(error)} See {path} --help"
    except click.ClickException as error:
        return error.format_message()
    except PartFault as error:
        return f"{error}. {_write_trace(error)} shows where it happened"
    except ArrayError as error:
        return _report_fault(error)
    except FoveateError as error:
        return str(error)
    return code if isinstance(code, int) else OK


def _explain_last(error: Exception, name: object) -> FoveateError | None:
    """Build the error to print for one that nothing else has converted; None for click's."""
    if isinstance(error, click.ClickException | click.exceptions.Exit | click.Abort):
        return None
    if isinstance(error, OSError):
        return FoveateError(
            f"{error.filename or 'the system'}: {error.strerror or 'it refuses'}; check that you "
            "may read and write there, and that the disk or network works"
        )
    return explain_shortage(error) or FoveateError(_report_fault(error))


def _report_fault(error: Exception) -> str:
    """Write an unforeseen error to a file, and return the message that names the file."""
    return (
        "this is a fault of foveate, or of a part given with --plugins: please report it with "
        f"{_write_trace(error)}, which shows where it happened. `foveate doctor` checks the "
        "installation"
    )


def _write_trace(error: Exception) -> str:
    """Write the command and the trace of an error to a new file, and return its path."""
    import tempfile
    import traceback

    text = "".join(traceback.format_exception(error))
    with tempfile.NamedTemporaryFile(
        "w", prefix="foveate-fault-", suffix=".txt", delete=False, errors="backslashreplace"
    ) as file:
        file.write(f"{' '.join(sys.argv)}\nfoveate {__version__}\n\n{text}")
    return file.name


def _silence_libraries() -> None:
    """Keep warnings of libraries off the terminal; warnings of foveate stay."""
    logging.captureWarnings(True)
    if logging.lastResort is not None and not logging.lastResort.filters:
        logging.lastResort.addFilter(logging.Filter("foveate"))


def _describe_usage_error(error: click.UsageError) -> str:
    """Describe a wrong use of the command, in the style of foveate's errors."""
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        name, context = error.option_name, error.ctx
        known = [word for param in context.command.params for word in param.opts]
        return f"no option '{name}'.{_suggest_option(name, known, context)}"
    message = error.format_message().rstrip(".")
    return f"{message[:1].lower()}{message[1:]}{'' if message.endswith('?') else '.'}"


def _suggest_option(name: str, known: list[str], ctx: click.Context) -> str:
    """Suggest an option: one of the same name in a section, else the most similar one."""
    if isinstance(ctx.command, Sectioned):
        from foveate.runs.config import list_section_keys

        bare = name.lstrip("-").replace("_", "-")
        keys = list_section_keys()
        meant = [f"--{key}" for key in keys if key.partition(".")[2] == bare]
        if meant:
            return f" Did you mean '{meant[0]}'?"
        known = [*known, *(f"--{key}" for key in keys)]
    return did_you_mean(name, known)


_HELP = """Classify images far larger than a GPU's memory, from image-level labels alone.

\b
Start here:    foveate demo
Before:        foveate check labels.csv
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
    """Show the commands where none is given."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for command in (
    demo,
    commands.init,
    commands.check,
    commands.train,
    commands.compare,
    commands.report,
    commands.predict,
    commands.evaluate,
    commands.audit,
    features,
    commands.methods,
    commands.doctor,
):
    cli.add_command(command)
